//! Opening files with a user's rights while being root: on a thread of its own, whose credentials and directory
//! change and end with it.

use crate::error::{Error, Result, check};
use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd};

/// Opens `path` (from `cwd`, or `/` where the user cannot enter that) with these ids and no capabilities.
///
/// # Errors
/// What open(2) says for that user; EINVAL for a path with NUL.
pub fn open(uid: u32, gid: u32, groups: &[u32], cwd: &[u8], path: &[u8], flags: i32, mode: u32) -> Result<OwnedFd> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::new("open", libc::EINVAL));
    let (cwd, path) = (text(cwd)?, text(path)?);
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            // SAFETY: all are raw system calls on this thread alone, with pointers that live until they return; the
            // thread ends after them, so that nobody else sees its credentials or directory.
            let fd = unsafe {
                check("unshare", libc::unshare(libc::CLONE_FS))?;
                check("setgroups", libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) as i32)?;
                check("setresgid", libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32)?;
                check("setresuid", libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32)?;
                libc::umask(0);
                if libc::chdir(cwd.as_ptr()) != 0 {
                    check("chdir", libc::chdir(c"/".as_ptr()))?;
                }
                check("open", libc::open(path.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOCTTY, mode))?
            };
            // SAFETY: open gave a fresh descriptor that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        opener.join().unwrap_or_else(|_| Err(Error::new("open", libc::EIO)))
    })
}

/// Asks whether someone with these ids may use `path` so (`R_OK`, `X_OK`).
///
/// # Errors
/// What access(2) says for that user; EINVAL for a path with NUL.
pub fn may(uid: u32, gid: u32, groups: &[u32], path: &[u8], mode: i32) -> Result<()> {
    let path = CString::new(path).map_err(|_| Error::new("use", libc::EINVAL))?;
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            // SAFETY: all are raw system calls on this thread alone, with pointers that live until they return; the
            // thread ends after them, so that nobody else sees its credentials.
            unsafe {
                check("setgroups", libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) as i32)?;
                check("setresgid", libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32)?;
                check("setresuid", libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32)?;
                check("use", libc::access(path.as_ptr(), mode)).map(drop)
            }
        });
        asker.join().unwrap_or_else(|_| Err(Error::new("use", libc::EIO)))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn rights_are_the_users() {
        // SAFETY: takes nothing, cannot fail.
        let is_root = || unsafe { libc::geteuid() } == 0;
        if !is_root() {
            println!("skipped: needs root");
            return;
        }
        let open = |uid| super::open(uid, uid, &[], b"/", b"/etc/shadow", libc::O_RDONLY, 0);
        assert_eq!(open(65534).unwrap_err().errno(), libc::EACCES);
        assert!(open(0).is_ok());
        let may = |uid, mode| super::may(uid, uid, &[], b"/etc/shadow", mode);
        assert_eq!(may(65534, libc::R_OK).unwrap_err().errno(), libc::EACCES);
        assert!(may(0, libc::R_OK).is_ok());
        assert!(is_root());
    }
}
