//! The packet socket to the agent, with descriptors.

use super::{Errno, Result, call, close, padded, set_blocking};
use crate::abi::{errno, nr};
use core::ptr;

/// Longest path that a Unix socket's address holds.
pub(crate) const SOCKET_PATH: usize = 107;

/// A SEQPACKET connection to the path, blocking. EAGAIN when the listener's queue is full.
pub(crate) fn connect(path: &[u8]) -> Result<i32> {
    const AF_UNIX: usize = 1;
    const SEQPACKET_CLOEXEC_NONBLOCK: usize = 5 | 0o2_000_000 | 0o4_000;
    let mut address = [0u8; 110];
    let text = path.get(..path.len().min(SOCKET_PATH)).unwrap_or(&[]);
    address[..2].copy_from_slice(&(AF_UNIX as u16).to_ne_bytes());
    address[2..2 + text.len()].copy_from_slice(text);
    let fd = plain!(nr::SOCKET, AF_UNIX, SEQPACKET_CLOEXEC_NONBLOCK, 0)? as i32;
    // SAFETY: the address is live and as long as told.
    let done = unsafe { call(nr::CONNECT, [fd as usize, address.as_ptr() as usize, 3 + text.len(), 0, 0, 0]) };
    match done.and_then(|_| set_blocking(fd).map(|()| 0)) {
        Ok(_) => Ok(fd),
        Err(error) => {
            close(fd);
            Err(error)
        }
    }
}

#[repr(C)]
struct IoVec {
    at: usize,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: usize,
    name_len: usize,
    iov: usize,
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: usize,
}

/// Sends one packet made of two parts.
pub(crate) fn send(fd: i32, head: &[u8], payload: &[u8]) -> Result<()> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let parts = [head, payload].map(|part| IoVec { at: part.as_ptr() as usize, len: part.len() });
    let message = MsgHdr {
        name: 0,
        name_len: 0,
        iov: parts.as_ptr() as usize,
        iov_len: parts.len(),
        control: 0,
        control_len: 0,
        flags: 0,
    };
    loop {
        // SAFETY: the record and what it points to are live and only read.
        match unsafe { call(nr::SENDMSG, [fd as usize, ptr::from_ref(&message) as usize, MSG_NOSIGNAL, 0, 0, 0]) } {
            Err(Errno(errno::EINTR)) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Most descriptors that a packet can bring.
pub(crate) const MAX_FDS: usize = 253;
const CONTROL_HEAD: usize = 16;

/// Room for the descriptors of a packet.
#[repr(C, align(8))]
pub(crate) struct Control([u8; CONTROL_HEAD + 4 * MAX_FDS + 4]);

impl Control {
    pub(crate) const fn new() -> Control {
        Control([0; CONTROL_HEAD + 4 * MAX_FDS + 4])
    }
}

/// What [`receive`] got.
pub(crate) struct Received {
    /// Bytes of the packet, even if there was room for less.
    pub(crate) bytes: usize,
    /// Descriptors put into `fds`.
    pub(crate) fds: usize,
    /// Some descriptors did not fit.
    pub(crate) cut: bool,
}

/// Takes one packet with its descriptors, without waiting.
pub(crate) fn receive(fd: i32, into: &mut [u8], control: &mut Control, fds: &mut [i32; MAX_FDS]) -> Result<Received> {
    // DONTWAIT, CMSG_CLOEXEC, and TRUNC for the true length.
    const FLAGS: usize = 0x40 | 0x4000_0000 | 0x20;
    const MSG_CTRUNC: usize = 8;
    let part = IoVec { at: into.as_mut_ptr() as usize, len: into.len() };
    let mut message = MsgHdr {
        name: 0,
        name_len: 0,
        iov: ptr::from_ref(&part) as usize,
        iov_len: 1,
        control: ptr::from_mut(control) as usize,
        control_len: CONTROL_HEAD + 4 * MAX_FDS,
        flags: 0,
    };
    // SAFETY: the record and what it points to are live and writable for the lengths told.
    let bytes = unsafe { call(nr::RECVMSG, [fd as usize, &raw mut message as usize, FLAGS, 0, 0, 0]) }?;
    let mut got = 0;
    if message.control_len >= CONTROL_HEAD {
        let c = &control.0;
        let len = usize::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
        let rights = c[8..16] == [1, 0, 0, 0, 1, 0, 0, 0];
        if rights && let Some(numbers) = c.get(CONTROL_HEAD..len.min(message.control_len)) {
            for (slot, number) in fds.iter_mut().zip(numbers.chunks_exact(4)) {
                *slot = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
                got += 1;
            }
        }
    }
    Ok(Received { bytes, fds: got, cut: message.flags & MSG_CTRUNC != 0 })
}
