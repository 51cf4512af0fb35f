//! bpf(2), where aya does not call it for us.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;

/// A call that gives a descriptor.
pub(crate) fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as are told, and what they point to lives as long as the caller's frame.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A loaded program.
pub(crate) fn program(id: u32) -> io::Result<OwnedFd> {
    /// `union bpf_attr` of BPF_PROG_GET_FD_BY_ID.
    #[repr(C)]
    struct Wanted {
        id: u32,
        next: u32,
        flags: u32,
    }
    bpf(BPF_PROG_GET_FD_BY_ID, &Wanted { id, next: 0, flags: 0 })
}
