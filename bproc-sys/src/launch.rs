//! The child's side of starting a program: everything is laid out before the fork, since only async-signal-safe calls
//! may be made after it. Raw system calls throughout: the caller may be one thread of many, and libc's idea of the
//! child (its pid, its threads) is not to be trusted.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result, check, check_long};

/// Argument of clone3(2), first published version; later fields are zero when left out.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
}

/// clone3(2) without a new stack: like fork(2).
///
/// # Safety
/// In the child (return value 0) only async-signal-safe calls may be made, and it must not return.
pub(crate) unsafe fn clone3(args: &CloneArgs) -> libc::c_long {
    // SAFETY: `args` lives through the call and has the size that is told; no CLONE_VM, so the child has a copy of
    // this stack. The rest is the caller's duty.
    unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(args), size_of::<CloneArgs>()) }
}

/// A program with its arguments, environment and descriptors, ready to be executed after a fork.
pub(crate) struct Program {
    path: CString,
    /// Owners of what the tables below point to.
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Copies above every target, and the target of each.
    moves: Vec<(OwnedFd, RawFd)>,
    /// Copied over the standard descriptors that nothing is passed at.
    null: OwnedFd,
    /// First number that is surely above all targets.
    floor: RawFd,
}

impl Program {
    /// Lays it out. `fds`: what to pass at which number. Standard descriptors not named there become /dev/null.
    pub(crate) fn new(
        path: &Path,
        argv: &[&OsStr],
        env: &[(&OsStr, &OsStr)],
        fds: &[(BorrowedFd<'_>, RawFd)],
    ) -> Result<Program> {
        let c = |bytes: &[u8]| {
            CString::new(bytes)
                .map_err(|_| Error::new("start of program (NUL in an argument)", libc::EINVAL).path(path))
        };
        let floor = fds.iter().map(|(_, to)| *to).max().unwrap_or(2).max(2) + 1;
        if fds.iter().any(|(_, to)| *to < 0) {
            return Err(Error::new("start of program (negative descriptor)", libc::EINVAL).path(path));
        }
        let args = argv.iter().map(|a| c(a.as_bytes())).collect::<Result<Vec<_>>>()?;
        let envs =
            env.iter().map(|(k, v)| c(&[k.as_bytes(), b"=", v.as_bytes()].concat())).collect::<Result<Vec<_>>>()?;
        let table = |of: &[CString]| of.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        let (argv, envp) = (table(&args), table(&envs));
        let mut moves = Vec::with_capacity(fds.len());
        for (fd, to) in fds {
            moves.push((dup_above(fd.as_raw_fd(), floor)?, *to));
        }
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|e| Error::io("open", &e).path(Path::new("/dev/null")))?;
        let null = dup_above(null.as_raw_fd(), floor)?;
        let strings = args.into_iter().chain(envs).collect();
        Ok(Program { path: c(path.as_os_str().as_bytes())?, _strings: strings, argv, envp, moves, null, floor })
    }

    /// A pipe whose ends no target overwrites: reading end, writing end.
    pub(crate) fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` has room for two.
        check("pipe2", unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
        // SAFETY: the call has just made both, nobody else owns them.
        let [r, w] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok((dup_above(r.as_raw_fd(), self.floor)?, dup_above(w.as_raw_fd(), self.floor)?))
    }

    /// In the child: signals to their defaults, descriptors in place, all others closed on exec, exec. Comes back
    /// only with the errno of what failed.
    ///
    /// # Safety
    /// To be called in a forked child only, which ends with [`fail`] after it.
    pub(crate) unsafe fn exec(&self) -> i32 {
        // SAFETY: async-signal-safe calls on memory that was laid out before the fork.
        unsafe {
            default_signals();
            libc::syscall(libc::SYS_umask, 0o022);
            if libc::syscall(libc::SYS_chdir, c"/".as_ptr()) == -1 {
                return errno();
            }
            let all = libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            if all == -1 {
                return errno();
            }
            for to in 0..3 {
                if libc::syscall(libc::SYS_dup3, self.null.as_raw_fd(), to, 0) == -1 {
                    return errno();
                }
            }
            for (from, to) in &self.moves {
                if libc::syscall(libc::SYS_dup3, from.as_raw_fd(), *to, 0) == -1 {
                    return errno();
                }
            }
            libc::syscall(libc::SYS_execve, self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            errno()
        }
    }
}

/// A copy of `fd`, closed on exec, with a number not below `floor`.
fn dup_above(fd: RawFd, floor: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let new = check("dup of descriptor", unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, floor) })?;
    // SAFETY: the call has just made the descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// The calling thread's errno, without allocation.
pub(crate) fn errno() -> i32 {
    // SAFETY: the location is valid for the thread's life.
    unsafe { *libc::__errno_location() }
}

/// Every signal to its default action and unblocked: Rust ignores SIGPIPE, and ignoring survives an exec.
///
/// # Safety
/// To be called in a forked child only.
unsafe fn default_signals() {
    // The kernel's own structure: handler, flags, restorer, mask; all zero is SIG_DFL.
    let action = [0u64; 4];
    let none = 0u64;
    // SAFETY: the kernel reads structures of the sizes told; null means that the old value is not wanted.
    unsafe {
        for signal in 1..=crate::signal::MAX {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), std::ptr::null_mut::<u64>(), 8);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, std::ptr::null_mut::<u64>(), 8);
    }
}

/// In the child: tells `errno` through the pipe and ends.
///
/// # Safety
/// To be called in a forked child only.
pub(crate) unsafe fn fail(pipe: RawFd, errno: i32) -> ! {
    // SAFETY: four bytes that live through the call; exit_group does not come back.
    unsafe {
        libc::syscall(libc::SYS_write, pipe, &raw const errno, 4);
        loop {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

/// Writes a number into a pipe.
///
/// # Safety
/// None beyond async-signal-safety, which it has.
pub(crate) unsafe fn tell(pipe: RawFd, value: i32) {
    // SAFETY: four bytes that live through the call.
    unsafe { libc::syscall(libc::SYS_write, pipe, &raw const value, 4) };
}

/// Reads a number that [`tell`] or [`fail`] wrote; `None` at the end of the pipe.
pub(crate) fn hear(pipe: BorrowedFd<'_>) -> Option<i32> {
    let mut value = 0i32;
    loop {
        // SAFETY: four bytes that live through the call.
        let n = unsafe { libc::read(pipe.as_raw_fd(), (&raw mut value).cast(), 4) };
        match n {
            4 => return Some(value),
            -1 if errno() == libc::EINTR => {}
            _ => return None,
        }
    }
}

/// Waits for a child that is known to be at its end.
pub(crate) fn reap(pid: i32) {
    if pid <= 0 {
        return;
    }
    loop {
        // SAFETY: null means that the status is not wanted; the pid is of a child of this process.
        let ret = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if ret != -1 || errno() != libc::EINTR {
            return;
        }
    }
}

/// In the child: dies with the thread that made it.
///
/// # Safety
/// To be called in a forked child only, whose parent was `parent`.
pub(crate) unsafe fn tie_to(parent: i32, signal: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe {
        if libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) == -1 {
            return errno();
        }
        // It may have died before. In a new pid namespace the parent always shows as 0.
        let now = libc::syscall(libc::SYS_getppid) as i32;
        if now != parent && now != 0 { libc::ESRCH } else { 0 }
    }
}

/// In the child: writes a short text to a file.
///
/// # Safety
/// None beyond async-signal-safety, which it has.
pub(crate) unsafe fn put_text(path: &CStr, text: &[u8]) -> i32 {
    // SAFETY: the path is NUL-terminated, the text has the length that is told.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
        if fd == -1 {
            return errno();
        }
        let n = libc::syscall(libc::SYS_write, fd, text.as_ptr(), text.len());
        let result = if n == -1 { errno() } else { 0 };
        libc::syscall(libc::SYS_close, fd);
        result
    }
}

/// The result of a clone3 as a pid.
pub(crate) fn cloned(op: &'static str, ret: libc::c_long) -> Result<i32> {
    check_long(op, ret).map(|pid| pid as i32)
}

/// All signals blocked around a fork, so that no handler of the parent runs in the child.
pub(crate) fn quiet() -> crate::signal::AllBlocked {
    crate::signal::AllBlocked::new()
}
