//! Every system call and every unsafe block of the crate. Callers get safe
//! functions whose errors name the operation and the process.

pub(crate) mod blob;
pub(crate) mod channel;
pub(crate) mod cpu;
pub(crate) mod files;
pub(crate) mod inside;
pub(crate) mod memfile;
pub(crate) mod memory;
pub(crate) mod own;
pub(crate) mod process;
pub(crate) mod ptrace;
pub(crate) mod rights;
pub(crate) mod signals;

use std::fmt;
use std::io;

/// A system call that failed, on whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SysError {
    /// What was tried, as a verb phrase that a pid can follow.
    pub op: &'static str,
    /// The process or thread concerned, 0 for none.
    pub pid: i32,
    /// errno.
    pub errno: i32,
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = io::Error::from_raw_os_error(self.errno);
        match self.pid {
            pid if pid > 0 && self.errno == libc::ESRCH => write!(f, "process {pid} has ended"),
            0 => write!(f, "cannot {}: {why}", self.op),
            pid => write!(f, "cannot {} {pid}: {why}", self.op),
        }
    }
}

impl std::error::Error for SysError {}

impl SysError {
    /// The last system call's failure.
    pub fn last(op: &'static str, pid: i32) -> Self {
        SysError { op, pid, errno: io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
    }

    /// From an error of the standard library.
    pub fn from_io(op: &'static str, pid: i32, e: &io::Error) -> Self {
        SysError { op, pid, errno: e.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<SysError> for io::Error {
    fn from(e: SysError) -> Self {
        io::Error::from_raw_os_error(e.errno)
    }
}

pub(crate) fn done(ret: libc::c_long, op: &'static str, pid: i32) -> Result<i64, SysError> {
    if ret < 0 { Err(SysError::last(op, pid)) } else { Ok(ret) }
}
