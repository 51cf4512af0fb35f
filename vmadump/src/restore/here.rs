//! Which files of a process that is to come are here already.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use crate::compile::{HEAD, is_same};
use crate::error::Error;
use crate::image::FileRef;
use crate::plan::Owner;
use crate::sys::rights::{Lent, is_noexec, open_below};

/// Of each file, whether the same one (by size, and build id or time) is there for a process that has the root directory of
/// `body`, and may be mapped by its user; without one by root.
///
/// # Errors
/// The body is gone; this program may not try what its user may.
pub fn has(body: i32, files: &[FileRef], user: Option<&Owner>) -> Result<Vec<bool>, Error> {
    let root = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(format!("/proc/{body}/root"))
        .map_err(|_| Error::Gone(body))?;
    let _lent = user.filter(|u| u.uid != 0).map(|u| Lent::of(u.uid, u.gid, &u.groups)).transpose()?;
    Ok(files.iter().map(|file| is_there(&root, file).unwrap_or(false)).collect())
}

fn is_there(root: &File, wanted: &FileRef) -> std::io::Result<bool> {
    let mut file = open_below(root, &wanted.path)?;
    let meta = file.metadata()?;
    if is_noexec(&file) {
        return Ok(false);
    }
    let mut head = [0; HEAD];
    let mut length = 0;
    while length < HEAD {
        match file.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    let time = (meta.mtime(), meta.mtime_nsec() as u32);
    Ok(is_same(wanted, meta.len(), time, &head[..length]).is_ok())
}
