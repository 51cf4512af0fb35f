//! A pretended agent for the ghost's release binary, and ways to start it: on this
//! machine as a child ([`Ghost`]), or as the first process of a pid and mount namespace
//! of its own ([`Space`]).
//!
//! Everything has a time limit, and nothing survives a test: children are ended and
//! reaped on drop, and die with the thread that made them.

mod agent;
mod wire;

pub use agent::{Ghost, Space, binary, wait_status};
pub use wire::{Conn, Listener, Packet};

use bproc_common::exec::{Builder, Head};
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

/// A siginfo as the kernel lays it out: signal, code, pid, uid, value.
pub fn siginfo(signal: i32, code: i32, pid: i32, uid: u32, value: u64) -> [u8; 128] {
    let mut info = [0; 128];
    info[..4].copy_from_slice(&signal.to_ne_bytes());
    info[8..12].copy_from_slice(&code.to_ne_bytes());
    info[16..20].copy_from_slice(&pid.to_ne_bytes());
    info[20..24].copy_from_slice(&uid.to_ne_bytes());
    info[24..32].copy_from_slice(&value.to_ne_bytes());
    info
}

/// Signal, code, pid, uid and value of a siginfo.
pub fn parts(info: &[u8]) -> (i32, i32, i32, u32, u64) {
    let word = |at: usize| i32::from_ne_bytes(info[at..at + 4].try_into().expect("4 bytes"));
    let value = u64::from_ne_bytes(info[24..32].try_into().expect("8 bytes"));
    (word(0), word(8), word(16), word(20) as u32, value)
}

/// A memfd with these bytes.
pub fn memfd(bytes: &[u8]) -> File {
    // SAFETY: a constant name; the descriptor is new and ours.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"block".as_ptr(), libc::MFD_CLOEXEC)) };
    file.write_all(bytes).expect("memfd takes the bytes");
    file
}

/// Head of a block for root with everything that a process usually has.
pub fn root_head() -> Head {
    Head { umask: 0o22, cap_bounding: u64::MAX, ..Head::default() }
}

/// An exec block of `sh -c SCRIPT` whose standard output is the only descriptor.
pub fn shell<'a>(head: Head, script: &str, change: impl FnOnce(&mut Builder<'a>)) -> File {
    let argv = ["sh", "-c", script].map(|a| a.as_bytes().to_vec());
    let envp = [b"PATH=/usr/bin:/bin".to_vec(), b"GREETING=hello".to_vec()];
    let mut builder = Builder { head, path: b"/bin/sh", cwd: b"/", fds: &[1], ..Builder::default() };
    change(&mut builder);
    memfd(&Builder { argv: &argv, envp: &envp, ..builder }.build().expect("a good block"))
}
