//! The structures and numbers of `sys/bproc.h`. A test compiles the header and compares.

use libc::{c_char, c_int, c_long, c_short, c_uint, c_void, sockaddr};

pub(super) const NODE_MASTER: c_int = -1;
pub(super) const NODE_SELF: c_int = -2;
pub(super) const NODE_NONE: c_int = -3;
pub(super) const NODE_ANY: c_int = -4;
pub(super) const X_OK: c_int = 1;
pub(super) const IO_FILE: c_short = 0;
pub(super) const IO_SOCKET: c_short = 1;
pub(super) const IO_MEMFILE: c_short = 2;
pub(super) const IO_SEND_INFO: c_short = 1;
pub(super) const IO_DELAY: c_short = 2;
pub(super) const IO_MAX_LEN: c_int = 16;
pub(super) const STATE_XATTR: &[u8] = b"bproc.state";
pub(super) const ADDR_XATTR: &[u8] = b"bproc.addr";
pub(super) const XATTR_PREFIX: &[u8] = b"bproc.";
pub(super) const XATTR_MAX_NAME: usize = 63;
pub(super) const XATTR_MAX_VALUE: usize = 64;
/// `BPROC_ARCH_X86_64`, the one architecture that there is.
pub(super) const ARCH: u8 = 4;
/// Bytes of a state with its NUL.
pub(super) const STATE_ROOM: usize = 16;

#[repr(C)]
pub(super) struct Version {
    pub(super) bproc_magic: [c_char; 3],
    pub(super) arch: u8,
    pub(super) magic: u32,
    pub(super) version_string: [c_char; 24],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct NodeInfo {
    pub(super) node: c_int,
    pub(super) status: [c_char; STATE_ROOM],
    pub(super) mode: c_uint,
    pub(super) user: c_uint,
    pub(super) group: c_uint,
    pub(super) addr: sockaddr,
}

#[repr(C)]
pub(super) struct NodeSet {
    pub(super) size: c_int,
    pub(super) alloc: c_int,
    pub(super) node: *mut NodeInfo,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ProcInfo {
    pub(super) pid: c_int,
    pub(super) node: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoFile {
    pub(super) flags: c_int,
    pub(super) mode: c_int,
    pub(super) offset: c_long,
    pub(super) name: [c_char; 256],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoMemory {
    pub(super) base: *mut c_void,
    pub(super) size: c_long,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union IoData {
    pub(super) addr: sockaddr,
    pub(super) file: IoFile,
    pub(super) mem: IoMemory,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Io {
    pub(super) fd: c_int,
    pub(super) kind: c_short,
    pub(super) flags: c_short,
    pub(super) d: IoData,
}

const _: () = {
    assert!(size_of::<Version>() == 32);
    assert!(size_of::<NodeInfo>() == 48);
    assert!(std::mem::offset_of!(NodeInfo, addr) == 32);
    assert!(size_of::<NodeSet>() == 16);
    assert!(size_of::<ProcInfo>() == 8);
    assert!(size_of::<Io>() == 280);
    assert!(std::mem::offset_of!(Io, d) == 8);
    assert!(std::mem::offset_of!(IoFile, name) == 16);
};
