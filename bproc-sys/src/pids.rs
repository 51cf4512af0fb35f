//! The kernel's pid counter of the caller's pid namespace.

use crate::error::{Error, Result};
use std::path::Path;

const MAX: &str = "/proc/sys/kernel/pid_max";
const LAST: &str = "/proc/sys/kernel/ns_last_pid";
/// Largest pid_max that 64-bit kernels take.
const LIMIT: i32 = 4_194_304;

fn read(path: &str) -> Result<i32> {
    let told = |errno| Error::new("read", errno).path(Path::new(path));
    let text = std::fs::read_to_string(path).map_err(|e| told(e.raw_os_error().unwrap_or(libc::EIO)))?;
    text.trim().parse().map_err(|_| told(libc::EINVAL))
}

fn write(path: &str, value: i32) -> Result<()> {
    std::fs::write(path, value.to_string())
        .map_err(|e| Error::new("write", e.raw_os_error().unwrap_or(libc::EIO)).path(Path::new(path)))
}

/// Pids are below this.
///
/// # Errors
/// /proc cannot be read.
pub fn max() -> Result<i32> {
    read(MAX)
}

/// Makes room for all pids that the kernel can count.
///
/// # Errors
/// EPERM, EACCES or EROFS without the right to.
pub fn raise_max() -> Result<()> {
    if max()? < LIMIT { write(MAX, LIMIT) } else { Ok(()) }
}

/// The pid given last.
///
/// # Errors
/// /proc cannot be read.
pub fn last() -> Result<i32> {
    read(LAST)
}

/// Makes forks go on after this pid.
///
/// # Errors
/// EPERM without CAP_CHECKPOINT_RESTORE, EINVAL above pid_max.
pub fn set_last(pid: i32) -> Result<()> {
    write(LAST, pid)
}
