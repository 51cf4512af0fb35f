//! Bytes that travel as a descriptor and cannot change underway.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result, check};

/// The seals that make content and size final.
const FINAL: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// An empty memfd that can be sealed later, closed on exec. `name` shows in `/proc/PID/maps`.
///
/// # Errors
/// ENOMEM, EMFILE and what memfd_create(2) says.
pub fn create(name: &CStr) -> Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated.
    let fd = check("memfd_create", unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })?;
    // SAFETY: the call has just made the descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A memfd with these bytes, sealed against any change.
///
/// # Errors
/// As [`create`], and ENOMEM while writing.
pub fn seal_bytes(name: &CStr, bytes: &[u8]) -> Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    file.write_all(bytes).map_err(|e| Error::io("write to memfd", &e))?;
    // SAFETY: no pointers.
    check("seal memfd", unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, FINAL | libc::F_SEAL_SEAL) })?;
    Ok(file.into())
}

/// All bytes of a memfd that came from somebody else. It must be sealed against shrinking, growing and writing: so
/// it is no file of a slow or malicious file system, and stays the same while it is read.
///
/// # Errors
/// EINVAL when it is no memfd, EPERM when a seal is missing, EFBIG above `limit` bytes.
pub fn read_all(fd: impl AsFd, limit: u64) -> Result<Vec<u8>> {
    let fd = fd.as_fd();
    // SAFETY: no pointers.
    let seals = check("read seals of memfd", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })?;
    if seals & FINAL != FINAL {
        return Err(Error::new("read of unsealed memfd", libc::EPERM));
    }
    let file = File::from(fd.try_clone_to_owned().map_err(|e| Error::io("dup of memfd", &e))?);
    let size = file.metadata().map_err(|e| Error::io("fstat of memfd", &e))?.len();
    if size > limit {
        return Err(Error::new("read of too large memfd", libc::EFBIG));
    }
    // A sparse memfd costs its sender nothing: take no memory for it that is not there.
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size as usize).map_err(|_| Error::new("read of memfd", libc::ENOMEM))?;
    bytes.resize(size as usize, 0);
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("read of memfd", &e))?;
    Ok(bytes)
}
