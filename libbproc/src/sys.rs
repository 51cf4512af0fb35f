//! The few system calls of the client that belong to the caller's own process: what it blocks and ignores, and exec.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;

/// Bit of a signal in a mask: signal 1 is bit 0.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that the calling thread blocks.
pub(crate) fn blocked() -> u64 {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: null asks for the present mask only, which goes to `set`; all zeros is a valid set.
    let set = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr());
        set.assume_init()
    };
    // SAFETY: `set` is valid and the numbers are signals.
    (1..=64).filter(|s| unsafe { libc::sigismember(&raw const set, *s) } == 1).map(bit).sum()
}

/// Signals that the process ignores.
pub(crate) fn ignored() -> u64 {
    let mut mask = 0;
    for signal in 1..=64 {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: null asks for the present action only; all zeros is a valid sigaction. A number that libc keeps
        // to itself gives an error and leaves zeros, the default action.
        let action = unsafe {
            libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
            action.assume_init()
        };
        if action.sa_sigaction == libc::SIG_IGN {
            mask |= bit(signal);
        }
    }
    mask
}

/// Pointers to strings as execve(2) wants them, ended by null. The strings must not move or go meanwhile: their
/// bytes are on the heap, so the `CString`s may move.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Replaces the process; returns only on failure. All descriptors are closed on success: what the old program had
/// open must not be held open by the new one.
pub(crate) fn exec_without_descriptors(path: &CStr, argv: &[*const c_char], envp: &[CString]) -> io::Error {
    let envp = pointers(envp);
    // SAFETY: no pointers; the flag changes nothing before the exec.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: `path` is NUL-terminated, `argv` and `envp` are arrays of such strings ended by null; all live here.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}
