//! One error for all system calls: what was tried, on what, and the kernel's answer.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bproc_common::id::Pid;

/// Result of a system call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A system call that failed. Turns into an [`io::Error`] with the same errno by `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    op: &'static str,
    on: On,
    errno: i32,
}

/// On what it was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
enum On {
    Nothing,
    Pid(i32),
    Path(PathBuf),
}

impl Error {
    /// An error that did not come from `errno`.
    pub(crate) fn new(op: &'static str, errno: i32) -> Error {
        Error { op, on: On::Nothing, errno }
    }

    /// The calling thread's `errno`.
    pub(crate) fn last(op: &'static str) -> Error {
        Error::io(op, &io::Error::last_os_error())
    }

    /// From an I/O error; one without an errno becomes EIO.
    pub(crate) fn io(op: &'static str, error: &io::Error) -> Error {
        Error::new(op, error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Names the process.
    pub(crate) fn pid(self, pid: Pid) -> Error {
        Error { on: On::Pid(pid.get()), ..self }
    }

    /// Names the file.
    pub(crate) fn path(self, path: &Path) -> Error {
        Error { on: On::Path(path.to_owned()), ..self }
    }

    /// The errno, positive.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What was tried.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// True when the process, or what it had, is no more (ESRCH, ENOENT, ECHILD).
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, libc::ESRCH | libc::ENOENT | libc::ECHILD)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)?;
        match &self.on {
            On::Nothing => {}
            On::Pid(pid) => write!(f, " of process {pid}")?,
            On::Path(path) => write!(f, " of {}", path.display())?,
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::from_raw_os_error(error.errno)
    }
}

/// `ret` unless it is -1: then the thread's errno.
pub(crate) fn check(op: &'static str, ret: libc::c_int) -> Result<libc::c_int> {
    if ret == -1 { Err(Error::last(op)) } else { Ok(ret) }
}

/// The same for what `syscall(2)` returns.
pub(crate) fn check_long(op: &'static str, ret: libc::c_long) -> Result<libc::c_long> {
    if ret == -1 { Err(Error::last(op)) } else { Ok(ret) }
}
