//! The system calls of the tools that need `unsafe`, and nothing else.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use bproc_common::id::Pid;
use bproc_common::wait::Status;

/// Opens /dev/null in the place of standard streams that are closed: else a pipe would get such a number and be
/// written to by mistake. An exec closes it again.
#[cfg_attr(test, allow(dead_code))]
pub(crate) fn open_standard_streams() {
    for fd in 0..3 {
        // SAFETY: no pointers but a static string. A free low number is taken by open, lowest first.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            }
        }
    }
}

/// Closes everything but the standard streams. Nothing may have been opened yet.
pub(crate) fn close_inherited() {
    // SAFETY: numbers only; nobody in this process has a descriptor beyond 2.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Borrows a standard stream. They are open for the whole life of the process.
pub(crate) fn standard(fd: i32) -> BorrowedFd<'static> {
    debug_assert!((0..3).contains(&fd));
    // SAFETY: `open_standard_streams` has opened 0 to 2 and nothing closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Was this standard stream closed when the program was started? Only what has been opened since is closed by an exec.
pub(crate) fn was_closed(fd: i32) -> bool {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

/// The environment as it was given, odd entries included.
pub(crate) fn environment() -> Vec<Vec<u8>> {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let mut out = Vec::new();
    // SAFETY: `environ` is an array of NUL-terminated strings ended by null, or null; nothing changes it: there is
    // one thread and it never calls setenv.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            out.push(CStr::from_ptr(*entry).to_bytes().to_vec());
            entry = entry.add(1);
        }
    }
    out
}

/// fork(2): `Some` child in the parent, `None` in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::new(pid)),
    }
}

/// Ends a forked child without running what the parent has registered for its end.
pub(crate) fn exit_child(status: i32) -> ! {
    // SAFETY: no pointers; does not return.
    unsafe { libc::_exit(status) }
}

/// A child that has ended, reaped.
pub(crate) fn reap_any() -> Option<(Pid, Status)> {
    let mut raw = 0;
    // SAFETY: `raw` lives through the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut raw, libc::WNOHANG) };
    Pid::new(pid).map(|pid| (pid, Status::from_raw(raw)))
}

/// Sends a signal to a child that has not been reaped.
pub(crate) fn kill_child(pid: Pid, signal: i32) {
    // SAFETY: no pointers; the pid is positive and, not being reaped, still the child's. A child that has ended
    // takes the signal without effect.
    unsafe { libc::kill(pid.get(), signal) };
}

/// Who leads a session alone hears that its terminal is gone: this process tells its group, itself included, as its end would.
/// Nothing if it leads none.
pub(crate) fn hang_up_session() {
    // SAFETY: no pointers; a leader's own number, which is greater than 1, is its group's.
    unsafe {
        let own = libc::getpid();
        if own > 1 && libc::getsid(0) == own && libc::getpgrp() == own {
            libc::killpg(own, libc::SIGHUP);
            libc::killpg(own, libc::SIGCONT);
        }
    }
}

/// Sets a signal's disposition to ignored or default; returns whether it was ignored.
pub(crate) fn set_ignored(signal: i32, ignored: bool) -> bool {
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed, only a disposition.
    unsafe { libc::signal(signal, action) == libc::SIG_IGN }
}

/// Dies by the signal's default action, as a native program would have. The exit status is what a shell would show
/// should the signal not kill.
pub(crate) fn die_by(signal: i32) -> i32 {
    set_ignored(signal, false);
    // SAFETY: the set is initialised by sigemptyset before use; all pointers live through the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    128 + signal
}

/// Has the kernel kill this process when its parent, who must still be `parent`, dies.
pub(crate) fn die_with(parent: u32) {
    // SAFETY: no pointers.
    let orphan = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        u32::try_from(libc::getppid()).ok() != Some(parent)
    };
    if orphan {
        exit_child(1);
    }
}

/// Bytes of a `struct winsize` of the terminal, or nothing when it is none.
pub(crate) fn window_size(terminal: BorrowedFd<'_>) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut bytes = vec![0u8; size_of::<libc::winsize>()];
    // SAFETY: the buffer has the size of what the call writes, which has no stricter needs than bytes for copying.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, bytes.as_mut_ptr()) };
    if ret == 0 { bytes } else { Vec::new() }
}

/// Bytes of the `struct termios` of the terminal, or nothing when it is none.
pub(crate) fn terminal_modes(terminal: BorrowedFd<'_>) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    // SAFETY: all zeros is a valid termios; it lives through the call and is read back as plain bytes.
    unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) != 0 {
            return Vec::new();
        }
        std::slice::from_raw_parts((&raw const modes).cast::<u8>(), size_of::<libc::termios>()).to_vec()
    }
}

/// Makes `file` a standard stream; it stays open over exec.
///
/// # Errors
/// What dup2(2) says.
pub(crate) fn redirect(file: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers; standard streams are never owned by a Rust object.
    match unsafe { libc::dup2(file.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Blocks and ignores what was blocked and ignored when bpsh was started.
pub(crate) fn restore_signals(signals: bproc::Signals) {
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        set_ignored(signal, signals.ignored & (1 << (signal - 1)) != 0);
    }
    // SAFETY: the set is initialised by sigemptyset before use; all pointers live through the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in (1..=64).filter(|s| signals.blocked & (1 << (s - 1)) != 0) {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Arguments for exec.
///
/// # Errors
/// EINVAL for a NUL byte inside.
pub(crate) fn c_strings(strings: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> io::Result<Vec<CString>> {
    let convert = |s| CString::new(s).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    strings.into_iter().map(|s| convert(s.into())).collect()
}
