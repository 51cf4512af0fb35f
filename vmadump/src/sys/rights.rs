//! What a user may open, tried with that user's rights.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use super::{SysError, done};

/// Groups, file system gid and uid of the calling thread, as it had them. Dropping it takes them back.
pub(crate) struct Lent {
    groups: Vec<u32>,
    gid: u32,
    uid: u32,
}

/// A number that is nobody's: setting it only tells the present one.
const NOBODY: u32 = u32::MAX;

fn set_groups(groups: &[u32]) -> Result<(), SysError> {
    // SAFETY: the kernel reads so many numbers. The system call concerns the calling thread only.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }, "take a user's groups", 0)
        .map(drop)
}

fn set_ids(gid: u32, uid: u32) -> Result<(u32, u32), SysError> {
    // SAFETY: numbers only. The system calls concern the calling thread only, and tell what was before.
    let set = |call, id: u32| unsafe { libc::syscall(call, id) } as u32;
    let before = (set(libc::SYS_setfsgid, gid), set(libc::SYS_setfsuid, uid));
    let now = (set(libc::SYS_setfsgid, NOBODY), set(libc::SYS_setfsuid, NOBODY));
    if now == (gid, uid) {
        return Ok(before);
    }
    set(libc::SYS_setfsuid, before.1);
    set(libc::SYS_setfsgid, before.0);
    Err(SysError { op: "take a user's rights to files", pid: 0, errno: libc::EPERM })
}

impl Lent {
    /// From now on the calling thread opens files as this user.
    pub(crate) fn of(uid: u32, gid: u32, groups: &[u32]) -> Result<Lent, SysError> {
        // SAFETY: without room the call tells how many there are, then it writes no more than so many.
        let count = done(unsafe { libc::getgroups(0, std::ptr::null_mut()) }.into(), "read its own groups", 0)?;
        let mut own = vec![0; count as usize];
        // SAFETY: as above.
        let count = done(unsafe { libc::getgroups(count as i32, own.as_mut_ptr()) }.into(), "read its own groups", 0)?;
        own.truncate(count as usize);
        set_groups(groups)?;
        match set_ids(gid, uid) {
            Ok((gid, uid)) => Ok(Lent { groups: own, gid, uid }),
            Err(error) => set_groups(&own).and(Err(error)),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What it had before it may have again: its real and effective ids never changed.
        let back = set_ids(self.gid, self.uid).and_then(|_| set_groups(&self.groups));
        debug_assert!(back.is_ok(), "{back:?}");
    }
}

/// Finds whatever is at a path below `root`, as a process with that root directory would. It is only looked at, for to open
/// some devices does something.
pub(crate) fn find_below(root: &File, path: &[u8]) -> io::Result<File> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const RESOLVE_IN_ROOT: u64 = 16;
    let path = std::ffi::CString::new(path)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let how = How { flags: flags as u64, mode: 0, resolve: RESOLVE_IN_ROOT };
    // SAFETY: path and how outlive the call, which is told how large that is.
    let fd =
        unsafe { libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<How>()) };
    let fd = done(fd, "open", 0)?;
    // SAFETY: a new descriptor of ours.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

/// May the calling thread open what was found, with such flags?
pub(crate) fn may_open(found: &File, flags: i32) -> io::Result<()> {
    if flags & libc::O_DIRECTORY != 0 && !found.metadata()?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    let mode = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => return Ok(()),
        libc::O_RDONLY => libc::R_OK,
        libc::O_WRONLY => libc::W_OK,
        _ => libc::R_OK | libc::W_OK,
    };
    let how = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: an empty path, which lives for ever; numbers else.
    let ret = unsafe { libc::syscall(libc::SYS_faccessat2, found.as_raw_fd(), c"".as_ptr(), mode, how) };
    done(ret, "open", 0)?;
    Ok(())
}

/// Opens a regular file below `root` for reading, as a process with that root directory would.
pub(crate) fn open_below(root: &File, path: &[u8]) -> io::Result<File> {
    let found = find_below(root, path)?;
    match found.metadata()?.is_file() {
        true => File::open(format!("/proc/self/fd/{}", found.as_raw_fd())),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// May nothing be executed from where the file lies?
pub(crate) fn is_noexec(file: &File) -> bool {
    // SAFETY: zeros are a valid statvfs, which outlives the call.
    unsafe {
        let mut about: libc::statvfs = std::mem::zeroed();
        libc::fstatvfs(file.as_raw_fd(), &raw mut about) != 0 || about.f_flag & libc::ST_NOEXEC != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_given_back() {
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let status = || crate::procfs::status(&std::fs::read("/proc/thread-self/status").unwrap());
        let before = status();
        {
            let _lent = Lent::of(65534, 65533, &[7, 8]).unwrap();
            let now = status();
            assert_eq!((now.uids[3], now.gids[3], now.groups), (65534, 65533, vec![7, 8]));
        }
        assert_eq!(status(), before);
    }

    #[test]
    fn paths_stay_below() {
        let dir = std::env::temp_dir().join(format!("below-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a")).unwrap();
        std::fs::write(dir.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink("/a/file", dir.join("link")).unwrap();
        let root = File::open(&dir).unwrap();
        let there = |path: &[u8]| open_below(&root, path).is_ok();
        assert!(!there(b"/a"), "a directory");
        let found = (there(b"/a/file"), there(b"/link"), there(b"/../../a/file"), there(b"/etc/passwd"));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, (true, true, true, false));
    }
}
