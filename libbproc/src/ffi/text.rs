//! Strings and arrays of strings that C gives.

use std::ffi::CStr;

use libc::c_char;

use super::Result;

/// The bytes of a string.
///
/// # Safety
/// `text` is null or a C string.
pub(super) unsafe fn bytes(text: *const c_char) -> Result<Vec<u8>> {
    if text.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: as the caller promises.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes().to_vec())
}

/// As [`bytes`], where the text must be UTF-8.
///
/// # Safety
/// As [`bytes`].
pub(super) unsafe fn string(text: *const c_char) -> Result<String> {
    // SAFETY: as the caller promises.
    String::from_utf8(unsafe { bytes(text) }?).map_err(|_| libc::EINVAL)
}

/// The strings of an array that null ends; a null array is empty, as for execve(2).
///
/// # Safety
/// `list` is null or an array of C strings ended by null.
pub(super) unsafe fn list(list: *const *const c_char) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if list.is_null() {
        return out;
    }
    let mut entry = list;
    // SAFETY: as the caller promises; the array is left at its null.
    unsafe {
        while !(*entry).is_null() {
            out.push(CStr::from_ptr(*entry).to_bytes().to_vec());
            entry = entry.add(1);
        }
    }
    out
}

/// Writes `value` and a NUL.
///
/// # Errors
/// ERANGE when it does not fit, EFAULT for null.
///
/// # Safety
/// `to` is null or has `room` bytes.
pub(super) unsafe fn write(value: &[u8], to: *mut c_char, room: usize) -> Result<()> {
    if to.is_null() {
        return Err(libc::EFAULT);
    }
    if value.len() >= room {
        return Err(libc::ERANGE);
    }
    // SAFETY: `room` holds the value and one byte more.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), value.len());
        *to.add(value.len()) = 0;
    }
    Ok(())
}

/// Fills a field of characters: cut off if need be, always with a NUL.
pub(super) fn field<const N: usize>(value: &[u8]) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().take(N.saturating_sub(1)).zip(value) {
        *to = *from as c_char;
    }
    out
}
