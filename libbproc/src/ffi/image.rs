//! Dump and undump of the calling process.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

use libc::c_int;

use super::{Result, answer, export};
use vmadump::capture::DUMP_ALL;

/// The caller's descriptor as a file that is not closed.
fn file(fd: c_int) -> Result<ManuallyDrop<File>> {
    // SAFETY: no pointers.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(libc::EBADF);
    }
    // SAFETY: it is open, and never closed through this.
    Ok(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}

unsafe extern "C" fn bproc_dump(fd: c_int, flags: c_int) -> c_int {
    answer((|| {
        let flags = u32::try_from(flags).ok().filter(|flags| flags & !DUMP_ALL == 0).ok_or(libc::EINVAL)?;
        let written = vmadump::inside::dump_self(&*file(fd)?, flags).map_err(|e| e.errno())?;
        // An image of more than 2 GiB: the most that an int tells.
        Ok(c_int::try_from(written).unwrap_or(c_int::MAX))
    })())
}

unsafe extern "C" fn bproc_undump(fd: c_int) -> c_int {
    answer(file(fd).and_then(|file| Err(vmadump::inside::undump_self(&*file).errno())))
}

/// The name in 0.x.
unsafe extern "C" fn bproc_vmadump(fd: c_int, flags: c_int) -> c_int {
    // SAFETY: no pointers.
    unsafe { bproc_dump(fd, flags) }
}

/// The name in 0.x.
unsafe extern "C" fn bproc_vmaundump(fd: c_int) -> c_int {
    // SAFETY: no pointers.
    unsafe { bproc_undump(fd) }
}

export!(bproc_dump, bproc_undump, bproc_vmadump, bproc_vmaundump);
