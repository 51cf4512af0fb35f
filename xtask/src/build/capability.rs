//! The file capability of the ghost: CAP_CHECKPOINT_RESTORE, permitted and
//! effective, so that a ghost can clone its children's ghosts with chosen pids.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

const CAP_CHECKPOINT_RESTORE: u32 = 40;
const VFS_CAP_REVISION_2: u32 = 0x0200_0000;
const VFS_CAP_FLAGS_EFFECTIVE: u32 = 1;

/// Sets the capability on this file. Only root can; copying loses it.
pub fn set(file: &Path) -> Result<()> {
    let path = CString::new(file.as_os_str().as_bytes()).context("a path holds a zero byte")?;
    let value = value();
    // SAFETY: both names end with a zero byte, and `value` is readable for its length.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error()).with_context(|| {
        format!(
            "cannot give {} the capability cap_checkpoint_restore (root and a file system with xattrs are needed)",
            file.display()
        )
    })
}

/// `struct vfs_cap_data` of revision 2: magic, then permitted and inheritable, low and high halves.
fn value() -> [u8; 20] {
    let words = [VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, 0, 0, 1 << (CAP_CHECKPOINT_RESTORE - 32), 0];
    let mut bytes = [0; 20];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_capability_is_what_setcap_writes() {
        // getfattr -e hex -n security.capability, after setcap cap_checkpoint_restore+ep
        let hex: String = super::value().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0100000200000000000000000001000000000000");
    }
}
