//! Memory and its marks.

use super::{Result, call, padded};
use crate::abi::{MmMap, nr};
use core::ptr;
use core::sync::atomic::AtomicU64;

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;

/// Fresh zeroed memory that stays until [`unmap`].
pub(crate) fn map_zeroed(len: usize) -> Result<&'static mut [u8]> {
    map(len, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX)
}

/// Fresh zeroed memory that all clones of this process share, for ever.
pub(crate) fn map_shared(len: usize) -> Result<&'static [AtomicU64]> {
    let area = map(len, MAP_SHARED | MAP_ANONYMOUS, usize::MAX)?;
    // SAFETY: pages are aligned for words, the area is never unmapped, and nobody has it but by these words.
    Ok(unsafe { core::slice::from_raw_parts(area.as_ptr().cast(), area.len() / size_of::<AtomicU64>()) })
}

/// A private writable view of a file's first `len` bytes.
pub(crate) fn map_file(fd: i32, len: usize) -> Result<&'static mut [u8]> {
    map(len, MAP_PRIVATE, fd as usize)
}

fn map(len: usize, flags: usize, fd: usize) -> Result<&'static mut [u8]> {
    // SAFETY: a new area at an address of the kernel's choice overlaps nothing.
    let at = unsafe { call(nr::MMAP, [0, len, PROT_READ_WRITE, flags, fd, 0]) }?;
    // SAFETY: the kernel has mapped `len` bytes here for us alone, readable and writable.
    Ok(unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) })
}

/// Gives memory of [`map_zeroed`] or [`map_file`] back.
pub(crate) fn unmap(area: &'static mut [u8]) {
    // SAFETY: the area is ours and its only reference ends here.
    let _ = unsafe { call(nr::MUNMAP, [area.as_mut_ptr() as usize, area.len(), 0, 0, 0, 0]) };
}

/// End of the heap area, of which the ghost uses nothing.
pub(crate) fn program_break() -> u64 {
    plain!(nr::BRK, 0).unwrap_or(0) as u64
}

const PR_SET_MM: usize = 35;
const PR_SET_MM_MAP: usize = 14;

/// Tells the kernel where arguments and the like are.
pub(crate) fn set_mm_map(map: &MmMap) -> Result<()> {
    // SAFETY: the record has the kernel's layout; these addresses are shown by /proc and never used by the program.
    unsafe {
        call(nr::PRCTL, [PR_SET_MM, PR_SET_MM_MAP, ptr::from_ref(map) as usize, core::mem::size_of::<MmMap>(), 0, 0])
    }
    .map(|_| ())
}
