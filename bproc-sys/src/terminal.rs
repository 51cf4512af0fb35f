//! Terminals.

use crate::error::{Result, check};
use std::os::fd::{AsFd, AsRawFd};

/// Sets the size: a `struct winsize` as bytes.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn set_size(terminal: impl AsFd, winsize: &[u8; 8]) -> Result<()> {
    // SAFETY: TIOCSWINSZ reads a struct winsize, which is four u16 without padding: the eight bytes pointed to.
    check("TIOCSWINSZ", unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, winsize.as_ptr()) })?;
    Ok(())
}
