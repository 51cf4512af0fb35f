//! The directory of pinned maps and links, which outlives the agent.
//!
//! ```text
//! PIN_DIR/            a bpffs, mounted here when it is not one yet
//!   v1-0123…/         one complete set; the name tells object, offsets and role
//!     map-NAME, link-PROGRAM
//!   new/              a set being made, renamed when it is complete
//! ```
//! Whatever is not the wanted set is left from another version or a failed
//! load, and is removed.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// `f_type` of a bpffs.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const NEW: &str = "new";

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Pin { what, path: path.to_owned(), source }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: statfs is plain integers, for which zero is a value.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a buffer of the right type.
    if unsafe { libc::statfs(path.as_ptr(), &mut fs) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fs.f_type as i64 == BPF_FS_MAGIC)
}

/// Makes the directory, and mounts a bpffs on it when it is not on one.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(failed("make the pin directory", dir))?;
    if is_bpffs(dir).map_err(failed("examine", dir))? {
        return Ok(());
    }
    let target = c_path(dir).map_err(failed("mount", dir))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: terminated strings, options as text.
    let done =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast()) };
    if done != 0 {
        return Err(failed("mount a bpffs on", dir)(io::Error::last_os_error()));
    }
    Ok(())
}

/// Removes every set but `keep`, and tells where that one is if it is complete.
pub(crate) fn sweep(dir: &Path, keep: &str) -> Result<Option<PathBuf>> {
    let mut found = None;
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == keep {
            found = Some(path);
        } else if name == NEW || name.starts_with('v') {
            remove_set(&path)?;
        }
    }
    Ok(found)
}

/// Removes one set; programs whose last link was in it are detached by this.
pub(crate) fn remove_set(set: &Path) -> Result<()> {
    fs::remove_dir_all(set).map_err(failed("remove the pins in", set))
}

/// Begins a set.
pub(crate) fn begin(dir: &Path) -> Result<PathBuf> {
    let new = dir.join(NEW);
    fs::create_dir(&new).map_err(failed("make", &new))?;
    Ok(new)
}

/// Makes a finished set the valid one.
pub(crate) fn publish(dir: &Path, name: &str) -> Result<()> {
    let set = dir.join(name);
    fs::rename(dir.join(NEW), &set).map_err(failed("publish the pins as", &set))
}

/// Names of the programs whose links are in a set.
pub(crate) fn links(set: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(set).map_err(failed("list", set))? {
        let name = entry.map_err(failed("list", set))?.file_name();
        if let Some(program) = name.to_string_lossy().strip_prefix("link-") {
            names.push(program.to_owned());
        }
    }
    Ok(names)
}

/// Removes all sets, the mount if the directory is one, and the directory.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    sweep(dir, "")?;
    if is_bpffs(dir).map_err(failed("examine", dir))? && is_mount(dir).map_err(failed("examine", dir))? {
        let target = c_path(dir).map_err(failed("unmount", dir))?;
        // SAFETY: a terminated path.
        if unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) } != 0 {
            return Err(failed("unmount", dir)(io::Error::last_os_error()));
        }
    }
    fs::remove_dir(dir).map_err(failed("remove", dir))
}

/// Whether something is mounted right here.
fn is_mount(dir: &Path) -> io::Result<bool> {
    let dir = dir.canonicalize()?;
    let Some(parent) = dir.parent() else {
        return Ok(true);
    };
    Ok(fs::metadata(&dir)?.dev() != fs::metadata(parent)?.dev())
}
