//! The system calls of the cases, as they are: libraries would add a meaning of their own.

use std::io;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::time::Duration;

/// Name of an errno.
pub fn name(errno: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EINTR, "EINTR"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::ECHILD, "ECHILD"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EACCES, "EACCES"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENOSYS, "ENOSYS"),
    ];
    known.iter().find(|(number, _)| *number == errno).map_or(format!("errno {errno}"), |(_, name)| (*name).to_owned())
}

/// The calling thread's errno.
pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What a call returned: `0`, a number, or the errno's name.
pub fn said(result: i32) -> String {
    if result < 0 { name(errno()) } else { result.to_string() }
}

/// fork(2): 0 in the child.
pub fn fork() -> io::Result<i32> {
    // SAFETY: all users are single-threaded here, so that the child may do what it likes.
    match unsafe { libc::fork() } {
        pid if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// _exit(2).
pub fn exit(code: i32) -> ! {
    // SAFETY: takes an integer.
    unsafe { libc::_exit(code) }
}

/// kill(2). Numbers that mean everybody are refused: a failed fork must not end the machine.
pub fn kill(pid: i32, signal: i32) -> i32 {
    assert!(pid > 1, "kill({pid})");
    // SAFETY: integers.
    unsafe { libc::kill(pid, signal) }
}

/// kill(0): the caller's group, which must be a group of its own.
pub fn kill_own_group(signal: i32) -> i32 {
    // SAFETY: integers.
    let (group, session) = unsafe { (libc::getpgrp(), libc::getsid(0)) };
    assert_eq!(group, session, "the group belongs to somebody else");
    // SAFETY: integers.
    unsafe { libc::kill(0, signal) }
}

/// killpg(3).
pub fn killpg(group: i32, signal: i32) -> i32 {
    assert!(group > 1, "killpg({group})");
    // SAFETY: integers.
    unsafe { libc::killpg(group, signal) }
}

/// sigqueue(3).
pub fn sigqueue(pid: i32, signal: i32, value: usize) -> i32 {
    assert!(pid > 1, "sigqueue({pid})");
    // SAFETY: integers; the value is never used as a pointer.
    unsafe { libc::sigqueue(pid, signal, libc::sigval { sival_ptr: value as *mut _ }) }
}

/// tgkill(2).
pub fn tgkill(pid: i32, thread: i32, signal: i32) -> i32 {
    assert!(pid > 1 && thread > 1, "tgkill({pid}, {thread})");
    // SAFETY: integers.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) as i32 }
}

/// A set of these signals.
pub fn set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a zeroed set is emptied, then filled with valid numbers.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// sigprocmask(2); returns the mask before.
pub fn mask(how: i32, signals: &libc::sigset_t) -> libc::sigset_t {
    // SAFETY: both sets live over the call.
    unsafe {
        let mut before = zeroed();
        libc::sigprocmask(how, signals, &raw mut before);
        before
    }
}

/// sigaction(2) with a handler of one argument, SIG_IGN or SIG_DFL.
pub fn action(signal: i32, handler: usize, flags: i32) -> i32 {
    // SAFETY: the caller gives a function of the right shape for its flags, or one of the constants.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, null_mut())
    }
}

/// rt_sigaction(2) without a handler, for the numbers that the C library keeps to itself, too.
pub fn raw_action(signal: i32, constant: usize) -> i32 {
    // The kernel's record: handler, flags, restorer, mask of eight bytes.
    let record: [u64; 4] = [constant as u64, 0, 0, 0];
    // SAFETY: the record lives over the call, and says how long its mask is.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, record.as_ptr(), 0, 8) as i32 }
}

/// Siginfo, as far as it is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Signal.
    pub signal: i32,
    /// si_code.
    pub code: i32,
    /// Sender, or child.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// si_status, which lies where the value of a queued signal does.
    pub status: i32,
    /// Value of a queued signal.
    pub value: usize,
}

impl Info {
    /// Reads it out of the kernel's.
    pub fn of(info: &libc::siginfo_t) -> Info {
        // SAFETY: the fields lie within the record, which is wholly initialised, and every bit pattern is a number.
        unsafe {
            Info {
                signal: info.si_signo,
                code: info.si_code,
                pid: info.si_pid(),
                uid: info.si_uid(),
                status: info.si_status(),
                value: info.si_value().sival_ptr as usize,
            }
        }
    }
}

/// sigtimedwait(2); `None` when none came.
pub fn next_signal(signals: &[i32], limit: Duration) -> Option<Info> {
    let end = std::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let time = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: set, record and time live over the call.
        let (result, info) = unsafe {
            let mut info = zeroed();
            (libc::sigtimedwait(&set(signals), &raw mut info, &raw const time), info)
        };
        match result {
            n if n > 0 => return Some(Info::of(&info)),
            _ if errno() == libc::EINTR && !left.is_zero() => {}
            _ => return None,
        }
    }
}

/// True while the signal is pending and blocked.
pub fn is_pending(signal: i32) -> bool {
    // SAFETY: the set lives over the calls.
    unsafe {
        let mut set = zeroed();
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

extern "C" fn nothing(_: i32) {}

/// Has blocking calls end with EINTR after so many seconds.
pub fn interrupt_after(seconds: u32) {
    action(libc::SIGALRM, nothing as *const () as usize, 0);
    // SAFETY: takes an integer.
    unsafe { libc::alarm(seconds) };
}

/// waitpid(2): the pid or what was said, and the status.
pub fn waitpid(pid: i32, options: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: the status lives over the call.
    (unsafe { libc::waitpid(pid, &raw mut status, options) }, status)
}

/// waitid(2): what was said and the record, zeroed when there was nothing.
pub fn waitid(kind: libc::idtype_t, id: u32, options: i32) -> (i32, Info) {
    // SAFETY: the record lives over the call.
    unsafe {
        let mut info = zeroed();
        let result = libc::waitid(kind, id, &raw mut info, options);
        (result, Info::of(&info))
    }
}

/// A wait status in words.
pub fn status(status: i32) -> String {
    if libc::WIFEXITED(status) {
        format!("exit {}", libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        format!("signal {}{}", libc::WTERMSIG(status), if libc::WCOREDUMP(status) { " core" } else { "" })
    } else if libc::WIFSTOPPED(status) {
        format!("stopped {}", libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        "continued".to_owned()
    } else {
        format!("status {status:#x}")
    }
}

/// pidfd_open(2), or the errno.
pub fn pidfd(pid: i32) -> Result<i32, String> {
    // SAFETY: integers.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        fd if fd >= 0 => Ok(fd as i32),
        _ => Err(name(errno())),
    }
}

/// pidfd_send_signal(2).
pub fn pidfd_kill(fd: i32, signal: i32) -> i32 {
    // SAFETY: integers, no siginfo.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, null::<libc::siginfo_t>(), 0) as i32 }
}

/// True when the descriptor becomes readable within the limit.
pub fn readable(fd: i32, limit: Duration) -> bool {
    let end = std::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one record that lives over the call.
        let result = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
        // A handler ran, most likely the one that is waited for.
        if result >= 0 || errno() != libc::EINTR {
            return result > 0;
        }
    }
}

/// A number from a call that takes integers only.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $kind:ty),*) = $call:ident;)*) => {
        $($(#[$doc])* pub fn $name($($argument: $kind),*) -> i32 {
            // SAFETY: integers only.
            unsafe { libc::$call($($argument),*) as i32 }
        })*
    };
}

plain! {
    /// getpid(2).
    getpid() = getpid;
    /// getppid(2).
    getppid() = getppid;
    /// getpgrp(2).
    getpgrp() = getpgrp;
    /// getpgid(2).
    getpgid(pid: i32) = getpgid;
    /// getsid(2).
    getsid(pid: i32) = getsid;
    /// setsid(2).
    setsid() = setsid;
    /// setpgid(2).
    setpgid(pid: i32, group: i32) = setpgid;
    /// setuid(2).
    setuid(uid: u32) = setuid;
    /// setgid(2).
    setgid(gid: u32) = setgid;
    /// umask(2).
    umask(bits: u32) = umask;
    /// alarm(2).
    alarm(seconds: u32) = alarm;
    /// nice(2), the new value.
    nice(by: i32) = nice;
    /// pause(2).
    pause() = pause;
}

/// setgroups(2).
pub fn setgroups(groups: &[u32]) -> i32 {
    // SAFETY: the slice lives over the call.
    unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }
}

/// prctl(2) with one integer.
pub fn prctl(option: i32, value: libc::c_ulong) -> i32 {
    // SAFETY: the options used here take integers.
    unsafe { libc::prctl(option, value, 0, 0, 0) }
}

/// setrlimit(2).
pub fn setrlimit(resource: u32, soft: u64, hard: u64) -> i32 {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the record lives over the call.
    unsafe { libc::setrlimit(resource, &raw const limit) }
}
