//! Descriptors and what is read, written and waited for through them.

use super::{Result, call, padded};
use crate::abi::{O_RDONLY, O_WRONLY, PollFd, Timespec, nr};
use core::ffi::CStr;
use core::ptr;

pub(crate) fn close(fd: i32) {
    let _ = plain!(nr::CLOSE, fd);
}

/// Closes every descriptor.
pub(crate) fn close_all() {
    let _ = plain!(nr::CLOSE_RANGE, 0, u32::MAX, 0);
}

/// A copy at the first free number from `from` on, closed by exec.
pub(crate) fn dup_from(fd: i32, from: i32) -> Result<i32> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    plain!(nr::FCNTL, fd, F_DUPFD_CLOEXEC, from).map(|n| n as i32)
}

/// A copy at exactly this number, kept by exec. The numbers must differ.
pub(crate) fn dup_to(fd: i32, number: i32) -> Result<()> {
    plain!(nr::DUP3, fd, number, 0).map(|_| ())
}

pub(crate) fn set_blocking(fd: i32) -> Result<()> {
    const F_SETFL: usize = 4;
    plain!(nr::FCNTL, fd, F_SETFL, 0).map(|_| ())
}

pub(crate) fn open(path: &CStr, flags: usize) -> Result<i32> {
    const AT_FDCWD: isize = -100;
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: the path is NUL-terminated and live.
    unsafe { call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0]) }
        .map(|fd| fd as i32)
}

pub(crate) fn read(fd: i32, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the slice is writable for its length.
    unsafe { call(nr::READ, [fd as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) }
}

pub(crate) fn read_at(fd: i32, into: &mut [u8], at: usize) -> Result<usize> {
    // SAFETY: the slice is writable for its length.
    unsafe { call(nr::PREAD64, [fd as usize, into.as_mut_ptr() as usize, into.len(), at, 0, 0]) }
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the slice is readable for its length.
    unsafe { call(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// Size of a file, by its end.
pub(crate) fn file_size(fd: i32) -> Result<u64> {
    const SEEK_END: usize = 2;
    plain!(nr::LSEEK, fd, 0, SEEK_END).map(|n| n as u64)
}

/// Reads the whole of a small file, or as much as fits.
pub(crate) fn read_file<'a>(path: &CStr, into: &'a mut [u8]) -> Result<&'a [u8]> {
    let fd = open(path, O_RDONLY)?;
    let mut n = 0;
    let end = loop {
        match read(fd, &mut into[n..]) {
            Ok(0) => break Ok(()),
            Ok(got) => n += got,
            Err(error) => break Err(error),
        }
    };
    close(fd);
    end.map(|()| &into[..n])
}

/// Writes a number into a file of one.
pub(crate) fn write_number(path: &CStr, number: i64) -> Result<()> {
    let mut text = [0u8; 20];
    let mut at = text.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        text[at] = b'-';
    }
    let fd = open(path, O_WRONLY)?;
    let written = write(fd, &text[at..]);
    close(fd);
    written.map(|_| ())
}

/// Waits; `left` becomes what is left of it.
pub(crate) fn poll(fds: &mut [PollFd], left: Option<&mut Timespec>) -> Result<usize> {
    let left = left.map_or(0, |t| ptr::from_mut(t) as usize);
    // SAFETY: entries and time are live; the kernel writes both within their bounds.
    unsafe { call(nr::PPOLL, [fds.as_mut_ptr() as usize, fds.len(), left, 0, 0, 0]) }
}

/// A timer that does not run yet.
pub(crate) fn timer() -> Result<i32> {
    const CLOCK_MONOTONIC: usize = 1;
    const NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    plain!(nr::TIMERFD_CREATE, CLOCK_MONOTONIC, NONBLOCK_CLOEXEC).map(|fd| fd as i32)
}

/// Has the timer beat every so many nanoseconds; 0 stops it.
pub(crate) fn set_timer(fd: i32, nanoseconds: u64) -> Result<()> {
    let every =
        Timespec { seconds: (nanoseconds / 1_000_000_000) as i64, nanoseconds: (nanoseconds % 1_000_000_000) as i64 };
    let beats = [every, every];
    // SAFETY: pause and first beat are live and laid out as the kernel wants; the former setting is not asked for.
    unsafe { call(nr::TIMERFD_SETTIME, [fd as usize, 0, beats.as_ptr() as usize, 0, 0, 0]) }.map(|_| ())
}

/// Makes the terminal at this descriptor the controlling one.
pub(crate) fn take_terminal(fd: i32) -> Result<()> {
    const TIOCSCTTY: usize = 0x540e;
    plain!(nr::IOCTL, fd, TIOCSCTTY, 0).map(|_| ())
}
