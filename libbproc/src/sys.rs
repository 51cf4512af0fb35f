//! The few system calls of the client that belong to the caller's own process: what it blocks and ignores, and exec.

mod fork;

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub(crate) use fork::fork_without_signal;

const FUTEX_WAIT: i32 = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
const FUTEX_WAKE: i32 = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;

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
        // The kernel's own record: handler, flags, restorer, mask. libc's call keeps 32 and 33 to itself.
        let mut action = [0usize; 4];
        // SAFETY: null asks for the present action only; the kernel writes the four words.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, std::ptr::null::<usize>(), action.as_mut_ptr(), 8usize);
        }
        if action[0] == libc::SIG_IGN {
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

/// Replaces the process; returns only on failure. Both arrays are ended by null.
pub(crate) fn exec(path: &CStr, argv: &[*const c_char], envp: &[*const c_char]) -> io::Error {
    debug_assert!(argv.last().is_some_and(|p| p.is_null()) && envp.last().is_some_and(|p| p.is_null()));
    // SAFETY: `path` is NUL-terminated, `argv` and `envp` are arrays of such strings ended by null; all live here.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// As [`exec`], and all descriptors are closed on success: what the old program had open must not be held open by
/// the new one. Takes no memory.
pub(crate) fn exec_without_descriptors(path: &CStr, argv: &[*const c_char], envp: &[*const c_char]) -> io::Error {
    // SAFETY: no pointers; the flag changes nothing before the exec.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    exec(path, argv, envp)
}

/// What the calling process takes off the mode of new files; none where /proc does not tell.
pub(crate) fn umask() -> Option<u32> {
    let me = bproc_common::id::Pid::new(std::process::id() as i32)?;
    bproc_sys::process::Process::open(me).and_then(|me| me.status()).map(|status| status.umask).ok()
}

/// The signal that the process gets when its parent dies; 0: none.
pub(crate) fn pdeathsig() -> i32 {
    let mut signal: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    signal
}

/// The calling thread's secure bits of capabilities(7), without the one that exec clears.
pub(crate) fn securebits() -> u32 {
    const KEEP_CAPS: u32 = 16;
    // SAFETY: no pointers. It cannot fail.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    bits as u32 & !KEEP_CAPS
}

/// A child as fork(2) makes it, 0 in the child, but its parent gets no signal when it ends, unless it has executed
/// a program meanwhile: exec makes it an ordinary child. libc knows nothing of it: the child must not take memory.
pub(crate) fn clone_without_signal() -> io::Result<i32> {
    // SAFETY: no flags and no stack: a copy of the process, as fork makes it.
    match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

/// A number above this one that no descriptor of the process has, held by one on `/dev/null`.
pub(crate) fn reserve(above: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let null = std::fs::File::open("/dev/null")?;
    let from = |lowest: i32| {
        // SAFETY: no pointers; the new descriptor is ours.
        match unsafe { libc::fcntl(null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above.max(lowest - 1).saturating_add(1)) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the call has just made it.
            number => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        }
    };
    // Not a low number, which the caller may want to use; but a limit may leave no others, and what makes the process anew at home
    // needs some above.
    if number_limit() < 128 { from(3) } else { from(64).or_else(|_| from(3)) }
}

/// How many descriptors the process may have.
fn number_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the struct.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur
}

/// The same as this descriptor, which is the only one and closed on exec, on a number that is not of a standard stream: one that the
/// process has closed is to be closed in what a move makes of it.
pub(crate) fn raised(fd: OwnedFd) -> io::Result<OwnedFd> {
    // The copy that the standard library makes is never on these numbers.
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fd.try_clone() }
}

/// Puts a descriptor on the number of another one, which is open and the caller's.
pub(crate) fn replace(from: &impl AsRawFd, at: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; both are open.
    match unsafe { libc::dup3(from.as_raw_fd(), at, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The connection that stands on this number. Not to be dropped: the number is somebody else's, who keeps it open.
pub(crate) fn conn_at(place: RawFd) -> std::mem::ManuallyDrop<bproc_sys::seqpacket::Conn> {
    use std::os::fd::FromRawFd;
    // SAFETY: it is open as long as `place`, and never closed here.
    std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place) }.into())
}

/// Writes a value into a pipe; false if nobody reads it.
pub(crate) fn tell<T: Copy>(pipe: &OwnedFd, value: &T) -> bool {
    // SAFETY: the value lives through the call; so few bytes go into a pipe as one.
    unsafe { libc::write(pipe.as_raw_fd(), (&raw const *value).cast(), size_of::<T>()) > 0 }
}

/// Writes a value into a pipe and ends the process, without running what others have registered for its end.
pub(crate) fn tell_and_exit<T: Copy>(pipe: &OwnedFd, value: &T) -> ! {
    tell(pipe, value);
    exit_with(1)
}

/// The next value from a pipe; `None` at its end.
pub(crate) fn hear<T: Copy + Default>(pipe: RawFd) -> Option<T> {
    let mut value = T::default();
    loop {
        // SAFETY: `value` has room for that many bytes, and T is plain numbers (crate's own types only).
        let n = unsafe { libc::read(pipe, (&raw mut value).cast(), size_of::<T>()) };
        if n < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            continue;
        }
        return (n == size_of::<T>() as isize).then_some(value);
    }
}

/// Waits until the lower half of the word is another one than this, somebody tells of a change, or for so long; may
/// return without.
pub(crate) fn wait_for_change(word: &AtomicU64, lower: u32, limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is there for ever or as long as the call, and its lower half lies first; null, or a time.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), FUTEX_WAIT, lower, limit) };
}

/// Wakes all who wait for a change of the word.
pub(crate) fn tell_of_change(word: &AtomicU64) {
    // SAFETY: only the address matters.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), FUTEX_WAKE, libc::c_int::MAX) };
}

/// Closes a number that may be nobody's.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: no pointers; whose it was forgets it.
    unsafe { libc::close(fd) };
}

/// What execve(2) does to a process beside exchanging its memory, as far as an image does not: what is to be closed is
/// closed, its timers are deleted, and it has no signal stack.
pub(crate) fn leave_program() {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in numbers {
        // SAFETY: no pointers. Whose it was does not go on.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
                libc::close(fd);
            }
        }
    }
    let timers = std::fs::read_to_string("/proc/self/timers").unwrap_or_default();
    for timer in vmadump::procfs::timers(&timers) {
        // SAFETY: no pointers.
        unsafe { libc::syscall(libc::SYS_timer_delete, timer.id) };
    }
    // SAFETY: zeros but for the flag are a valid stack, which outlives the call.
    unsafe {
        let mut none: libc::stack_t = std::mem::zeroed();
        none.ss_flags = libc::SS_DISABLE;
        libc::sigaltstack(&raw const none, std::ptr::null_mut());
    }
}

/// Gives the calling child what its parent keeps over execve(2), and a child does not get.
pub(crate) fn keep_as_parent(pdeathsig: i32, subreaper: bool) {
    // SAFETY: no pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, pdeathsig);
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(subreaper));
    }
}

/// Gets the process the orphans below it?
pub(crate) fn is_subreaper() -> bool {
    let mut is: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut is) == 0 && is != 0 }
}

/// Ends the process, without running what others have registered for its end.
pub(crate) fn exit_with(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

/// Ends a child of our own that was not reaped, and takes it away.
pub(crate) fn end(child: i32) {
    debug_assert!(child > 0);
    // SAFETY: no pointers; a child that was not reaped has its number to itself.
    unsafe { libc::kill(child, libc::SIGKILL) };
    reap(child);
}

/// Bytes of memory that are the process's own, as far as they are there.
pub(crate) fn own_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut words = text.split(' ').skip(1).filter_map(|word| word.parse::<u64>().ok());
    let (resident, shared) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    resident.saturating_sub(shared) * 4096
}

/// Takes away a child of our own that has ended or is about to.
pub(crate) fn reap(child: i32) {
    debug_assert!(child > 0);
    // SAFETY: a null status is not wanted; the number is that of one child.
    while unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) } < 0
        && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
    {}
}

/// Takes a child away that has ended, or is about to, without ever executing a program; `false`: it has executed one.
pub(crate) fn reap_signalless(child: i32) -> bool {
    debug_assert!(child > 0);
    loop {
        // SAFETY: as in `reap`. Only children that execute nothing are waited for so.
        let got = unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WCLONE) };
        if got >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return got == child;
        }
    }
}

/// A child as fork(2) makes it; 0 in the child.
pub(crate) fn fork() -> io::Result<i32> {
    // SAFETY: no pointers; the child goes on as the caller's own code would after fork(2).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}
