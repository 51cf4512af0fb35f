//! Terminals.

use crate::error::{Result, check};
use bproc_common::id::Pid;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{null, null_mut};

/// Makes a pseudo terminal: the master's end and the slave's, both close-on-exec.
///
/// # Errors
/// ENOSPC, ENOENT when there are no more or none at all.
pub fn open() -> Result<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: room for two descriptors; neither name nor modes are asked for.
    check("openpty", unsafe { libc::openpty(&raw mut master, &raw mut slave, null_mut(), null(), null()) })?;
    // SAFETY: both were just made, and nobody else has them.
    let ends = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    for end in [&ends.0, &ends.1] {
        // SAFETY: integers.
        check("F_SETFD", unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(ends)
}

/// Sets the size of the terminal that a process has as its standard input.
///
/// # Errors
/// ENOENT, ESRCH, ENOTTY when it has none.
pub fn resize_of(pid: Pid, winsize: &[u8; 8]) -> std::io::Result<()> {
    let link = format!("/proc/{pid}/fd/0");
    // Opening something else could have effects.
    if !std::fs::read_link(&link)?.starts_with("/dev/pts") {
        return Err(std::io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let terminal = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(link)?;
    Ok(set_size(&terminal, winsize)?)
}

/// Sets the modes: a `struct termios` as bytes. One of another size changes nothing.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn set_modes(terminal: impl AsFd, modes: &[u8]) -> Result<()> {
    if modes.len() != size_of::<libc::termios>() {
        return Ok(());
    }
    // SAFETY: as many bytes as the struct has, which has no invalid values; it need not be aligned.
    let modes = unsafe { modes.as_ptr().cast::<libc::termios>().read_unaligned() };
    // SAFETY: reads the struct.
    check("tcsetattr", unsafe { libc::tcsetattr(terminal.as_fd().as_raw_fd(), libc::TCSANOW, &raw const modes) })?;
    Ok(())
}

/// Sets the size: a `struct winsize` as bytes.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn set_size(terminal: impl AsFd, winsize: &[u8; 8]) -> Result<()> {
    // SAFETY: TIOCSWINSZ reads a struct winsize, which is four u16 without padding: the eight bytes pointed to.
    check("TIOCSWINSZ", unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, winsize.as_ptr()) })?;
    Ok(())
}
