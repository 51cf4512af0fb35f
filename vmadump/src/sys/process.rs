//! Processes from outside: making a blank one, asking and setting what the kernel
//! lets others ask and set, and handing descriptors over.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{SysError, done};

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Bytes of the kernel's `clone_args`.
pub(crate) const CLONE_ARGS: usize = size_of::<CloneArgs>();

/// `clone_args` of a thread with a chosen id, for an injected call. `tid_at` is where the id lies in the target.
pub(crate) fn thread_args(tid_at: u64) -> Vec<u8> {
    let flags = (libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM) as u64;
    [flags, 0, 0, 0, 0, 0, 0, 0, tid_at, u64::from(tid_at != 0), 0].iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// A child that does nothing at all until it is traced, with the wanted pid if one is given. It dies with the
/// calling thread until someone changes that.
pub(crate) fn blank(pid: Option<i32>) -> Result<i32, SysError> {
    let want = pid.unwrap_or(0);
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if pid.is_some() {
        args.set_tid = &raw const want as u64;
        args.set_tid_size = 1;
    }
    let parent = std::process::id() as i32;
    // SAFETY: a plain fork by clone3. The child of a process with threads must touch nothing that a lock
    // protects: it makes three system calls and loops.
    unsafe {
        let ret = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>());
        if ret == 0 {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            if libc::syscall(libc::SYS_getppid) as i32 != parent && libc::syscall(libc::SYS_getppid) != 0 {
                libc::syscall(libc::SYS_exit_group, 127);
            }
            loop {
                libc::syscall(libc::SYS_pause);
            }
        }
        done(ret, if pid.is_some() { "make a process with the pid" } else { "make a process" }, want).map(|p| p as i32)
    }
}

/// Sends a signal to exactly one process of ours (never 0 or below).
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), SysError> {
    if pid <= 0 {
        return Err(SysError { op: "signal process", pid, errno: libc::ESRCH });
    }
    // SAFETY: no memory involved; pid is one process.
    done(unsafe { libc::kill(pid, signal) }.into(), "signal process", pid).map(drop)
}

/// Robust futex list of a thread: head and length.
pub(crate) fn robust_list(tid: i32) -> Result<[u64; 2], SysError> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    done(ret, "read the robust list of", tid)?;
    Ok([head, len])
}

/// Resource limits of a process.
pub(crate) fn limits(pid: i32) -> Result<[[u64; 2]; 16], SysError> {
    let mut all = [[0; 2]; 16];
    for (which, pair) in all.iter_mut().enumerate() {
        *pair = limit(pid, which)?;
    }
    Ok(all)
}

/// One of them: soft, hard.
pub(crate) fn limit(pid: i32, which: usize) -> Result<[u64; 2], SysError> {
    let mut pair = [0; 2];
    // SAFETY: the pair is as large as rlimit64.
    let ret = unsafe { libc::syscall(libc::SYS_prlimit64, pid, which, 0usize, pair.as_mut_ptr()) };
    done(ret, "read the limits of", pid)?;
    Ok(pair)
}

/// Sets one.
pub(crate) fn set_limit(pid: i32, which: usize, pair: [u64; 2]) -> Result<(), SysError> {
    // SAFETY: the pair is as large as rlimit64.
    let ret = unsafe { libc::syscall(libc::SYS_prlimit64, pid, which, pair.as_ptr(), 0usize) };
    done(ret, "set the limits of", pid).map(drop)
}

/// Policy, real-time priority and nice value of a thread.
pub(crate) fn scheduling(tid: i32) -> Result<(u32, u32, i32), SysError> {
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: param outlives the call; getpriority takes no pointer. The raw call returns 20 - nice.
    let (policy, got, nice) = unsafe {
        (
            libc::sched_getscheduler(tid),
            libc::sched_getparam(tid, &raw mut param),
            libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid),
        )
    };
    done(policy.min(got).into(), "read the scheduling of", tid)?;
    done(nice, "read the priority of", tid)?;
    Ok((policy as u32, param.sched_priority as u32, 20 - nice as i32))
}

/// Class and data of a thread's priority of input and output.
pub(crate) fn io_priority(tid: i32) -> Result<u32, SysError> {
    // SAFETY: numbers only; 1 means one thread.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid) };
    done(value, "read the input and output priority of", tid).map(|value| value as u32)
}

/// Processors that a thread may run on: bit by number.
pub(crate) fn processors(tid: i32) -> Result<Vec<u8>, SysError> {
    let mut set = vec![0u8; 1024];
    // SAFETY: the set outlives the call, which is told its length.
    let len = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, set.len(), set.as_mut_ptr()) };
    set.truncate(done(len, "read the processors of", tid)? as usize);
    while set.last() == Some(&0) {
        set.pop();
    }
    Ok(set)
}

/// Do two descriptors of processes lead to the same open file (kcmp)?
pub(crate) fn same_file(a: (i32, i32), b: (i32, i32)) -> bool {
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, 0, a.1, b.1) == 0 }
}

/// A duplicate of descriptor `fd` of the process `pid`.
pub(crate) fn get_fd(pid: i32, fd: i32) -> Result<OwnedFd, SysError> {
    // SAFETY: numbers only; the results are new descriptors of ours.
    unsafe {
        let pidfd = done(libc::syscall(libc::SYS_pidfd_open, pid, 0), "open a pidfd of", pid)?;
        let pidfd = OwnedFd::from_raw_fd(pidfd as RawFd);
        let got = done(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0), "take a descriptor from", pid)?;
        Ok(OwnedFd::from_raw_fd(got as RawFd))
    }
}

/// Who is told when a descriptor of ours is ready: F_OWNER_*, the number (0: nobody), the signal (0: SIGIO).
pub(crate) fn told_of(fd: BorrowedFd<'_>) -> Option<(i32, i32, u32)> {
    const GET_OWNER: i32 = 16;
    const GET_SIGNAL: i32 = 11;
    let mut owner = [0i32; 2];
    // SAFETY: the pair is as large as f_owner_ex, and outlives the call.
    let (got, signal) = unsafe {
        (libc::fcntl(fd.as_raw_fd(), GET_OWNER, owner.as_mut_ptr()), libc::fcntl(fd.as_raw_fd(), GET_SIGNAL))
    };
    (got == 0 && signal >= 0 && (0..=2).contains(&owner[0])).then_some((owner[0], owner[1], signal as u32))
}

/// Sends one byte and the descriptors (at most 200) over a socket.
pub(crate) fn send_fds(over: BorrowedFd<'_>, fds: &[RawFd]) -> Result<(), SysError> {
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = vec![0u64; 2 + fds.len().div_ceil(2)];
    // SAFETY: control is aligned and large enough for one header and the numbers; zeroed msghdr is valid.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of_val(fds) as u32) as usize;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as usize;
        libc::CMSG_DATA(head).cast::<RawFd>().copy_from_nonoverlapping(fds.as_ptr(), fds.len());
        libc::sendmsg(over.as_raw_fd(), &raw const message, 0)
    };
    done(sent as i64, "hand descriptors over", 0).map(drop)
}

/// Waits for the end of a child; its wait status.
pub(crate) fn reap(pid: i32) -> io::Result<i32> {
    let mut raw = 0;
    loop {
        // SAFETY: raw outlives the call.
        if unsafe { libc::waitpid(pid, &raw mut raw, libc::__WALL) } == pid {
            return Ok(raw);
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// Do two processes share their address space or their descriptor table (kcmp)?
pub(crate) fn shares_space(a: i32, b: i32) -> bool {
    // SAFETY: numbers only. KCMP_VM is 1, KCMP_FILES 2.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, 1, 0, 0) == 0 || libc::syscall(libc::SYS_kcmp, a, b, 2, 0, 0) == 0 }
}
