//! Files of /proc, which tell no size, so that the standard library reads them in many small pieces; and names for files
//! that have none.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::done;

/// Larger than what most of them have; the kernel gives one page of a list at a time.
const ROOM: usize = 8 << 10;

/// All that a file has.
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut all = vec![0; ROOM];
    let mut length = 0;
    loop {
        match file.read(&mut all[length..])? {
            0 => break,
            n => length += n,
        }
        if all.len() - length < ROOM / 2 {
            all.resize(all.len() * 2, 0);
        }
    }
    all.truncate(length);
    Ok(all)
}

/// The same of a file that the kernel writes in one piece (status, stat, fdinfo and the like, no lists).
pub fn read_record(path: &str) -> io::Result<Vec<u8>> {
    let mut record = vec![0; ROOM];
    let length = File::open(path)?.read(&mut record)?;
    if length == record.len() {
        return read(path);
    }
    record.truncate(length);
    Ok(record)
}

/// A duplicate of a descriptor of this process, by its number.
///
/// # Errors
/// EBADF: it is not open.
pub fn own_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let copy = done(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into(), "duplicate a descriptor", 0)?;
    // SAFETY: a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// Gives a file that was made without a name (O_TMPFILE) one that nothing has yet.
///
/// # Errors
/// EEXIST: something has it; else the system's.
pub fn give_name(file: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(name.as_os_str().as_bytes())?;
    let here = libc::AT_FDCWD;
    // SAFETY: both paths outlive the call.
    let ret = unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    done(ret.into(), "link", 0)?;
    Ok(())
}
