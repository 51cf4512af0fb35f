//! Capabilities of files: the ghost's binary carries one, so that a ghost of any user can clone ghosts with chosen pids.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result, check};
use crate::pod::Zeroable;

/// CAP_CHECKPOINT_RESTORE (Linux 5.9): clone3 with set_tid, ns_last_pid.
pub const CHECKPOINT_RESTORE: u32 = 40;
/// CAP_SYS_ADMIN.
pub const SYS_ADMIN: u32 = 21;
/// CAP_SYS_PTRACE.
pub const SYS_PTRACE: u32 = 19;
/// CAP_SYS_RESOURCE.
pub const SYS_RESOURCE: u32 = 24;

/// VFS_CAP_REVISION_2 with the effective bit.
const MAGIC: u32 = 0x0200_0001;
const NAME: &std::ffi::CStr = c"security.capability";

/// The attribute's value for these capabilities: permitted and effective, none inheritable.
fn value(capabilities: &[u32]) -> [u8; 20] {
    let bits = capabilities.iter().filter(|c| **c < 64).fold(0u64, |bits, c| bits | 1 << c);
    let mut out = [0; 20];
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..8].copy_from_slice(&(bits as u32).to_le_bytes());
    out[12..16].copy_from_slice(&((bits >> 32) as u32).to_le_bytes());
    out
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::new("use", libc::EINVAL).path(path))
}

/// Gives the file these capabilities, permitted and effective, and reads them back.
///
/// # Errors
/// EPERM without CAP_SETFCAP; EOPNOTSUPP where the file system has no such attributes; ENOEXEC when the file system
/// is mounted nosuid, so that they would be ignored; EIO when something else is read back.
pub fn set_file_caps(path: &Path, capabilities: &[u32]) -> Result<()> {
    let name = c_path(path)?;
    let value = value(capabilities);
    // SAFETY: both strings are NUL-terminated, the value has the length that is told.
    let ret = unsafe { libc::setxattr(name.as_ptr(), NAME.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check("setting of file capabilities", ret).map_err(|e| e.path(path))?;
    if has_file_caps(path, capabilities)? {
        Ok(())
    } else {
        Err(Error::new("verification of file capabilities", libc::EIO).path(path))
    }
}

/// Whether the file has exactly these capabilities, permitted and effective.
///
/// # Errors
/// ENOEXEC when its file system is mounted nosuid, so that they would be ignored; what getxattr(2) says.
pub fn has_file_caps(path: &Path, capabilities: &[u32]) -> Result<bool> {
    let name = c_path(path)?;
    let mut fs = libc::statvfs::zeroed();
    // SAFETY: the path is NUL-terminated, `fs` lives through the call.
    check("statvfs", unsafe { libc::statvfs(name.as_ptr(), &raw mut fs) }).map_err(|e| e.path(path))?;
    if fs.f_flag & libc::ST_NOSUID != 0 {
        return Err(Error::new("use of file capabilities on a nosuid mount", libc::ENOEXEC).path(path));
    }
    let mut found = [0u8; 64];
    // SAFETY: both strings are NUL-terminated, the buffer has the length that is told.
    let len = unsafe { libc::getxattr(name.as_ptr(), NAME.as_ptr(), found.as_mut_ptr().cast(), found.len()) };
    if len < 0 {
        let error = Error::last("reading of file capabilities").path(path);
        return if error.errno() == libc::ENODATA { Ok(false) } else { Err(error) };
    }
    Ok(found.get(..len as usize) == Some(value(capabilities).as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_40_is_bit_8_of_the_second_word() {
        let v = value(&[CHECKPOINT_RESTORE]);
        assert_eq!(v[..4], [1, 0, 0, 2]);
        assert_eq!(v[4..12], [0; 8]);
        assert_eq!(v[12..16], [0, 1, 0, 0]);
    }
}
