//! Packets between a process and its agent.
//!
//! A packet of the SEQPACKET socket is an 8-byte head, two native u32: [`MAGIC`] and the length of the payload; then
//! the payload, one protobuf message. A payload above [`INLINE_MAX`] travels in a sealed memfd instead, which is the
//! first descriptor of the packet; the length then has [`IN_MEMFD`] set and nothing follows the head. The descriptors
//! after it belong to the message.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bproc_sys::memfd;
use bproc_sys::seqpacket::{Conn, MAX_FDS};

/// First word of every packet.
pub const MAGIC: u32 = 0x4250_4331;
/// Bytes of the head.
pub const HEAD: usize = 8;
/// Longest payload in bytes that travels in the packet itself.
pub const INLINE_MAX: usize = 64 << 10;
/// Longest payload in bytes.
pub const PAYLOAD_MAX: usize = 64 << 20;
/// Longest packet in bytes: a buffer of this size takes every one.
pub const PACKET_MAX: usize = HEAD + INLINE_MAX;
/// Bit of the length: the payload is in a memfd.
pub const IN_MEMFD: u32 = 1 << 31;
/// Most descriptors of a message, so that the memfd has room too.
pub const MESSAGE_FDS_MAX: usize = MAX_FDS - 1;

/// Why a packet cannot be made or read.
#[derive(Debug)]
pub enum FrameError {
    /// The other side closed the connection.
    Closed,
    /// Cut off, by length or by number of descriptors.
    Truncated,
    /// Not a packet of ours.
    Magic,
    /// The length in the head is not that of the packet.
    Length,
    /// The payload is longer than [`PAYLOAD_MAX`].
    TooLong(u64),
    /// The memfd that the head tells of did not come, or is not what it should be.
    Memfd(io::Error),
    /// More descriptors than [`MESSAGE_FDS_MAX`].
    TooManyFds(usize),
    /// The socket failed. `WouldBlock` on a non-blocking one means: not now.
    Io(io::Error),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Closed => f.write_str("the connection was closed"),
            FrameError::Truncated => f.write_str("the packet was cut off"),
            FrameError::Magic => f.write_str("the packet does not begin as it should (another version?)"),
            FrameError::Length => f.write_str("the packet's length is not what its head says"),
            FrameError::TooLong(n) => write!(f, "a message of {n} bytes is longer than {PAYLOAD_MAX}"),
            FrameError::Memfd(e) => write!(f, "the memfd with the message: {e}"),
            FrameError::TooManyFds(n) => write!(f, "{n} descriptors are more than {MESSAGE_FDS_MAX}"),
            FrameError::Io(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl FrameError {
    /// The nearest errno.
    pub fn errno(&self) -> i32 {
        match self {
            FrameError::Closed => libc::ECONNRESET,
            FrameError::TooLong(_) => libc::E2BIG,
            FrameError::TooManyFds(_) => libc::EMFILE,
            FrameError::Memfd(e) | FrameError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EPROTO,
        }
    }
}

/// A packet ready to be sent, any number of times.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    memfd: Option<OwnedFd>,
}

impl Packet {
    /// Makes the packet of a payload.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], [`FrameError::Memfd`] when the memfd cannot be made.
    pub fn new(payload: &[u8]) -> Result<Packet, FrameError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(FrameError::TooLong(payload.len() as u64));
        }
        let inline = payload.len() <= INLINE_MAX;
        let length = payload.len() as u32 | if inline { 0 } else { IN_MEMFD };
        let mut bytes = Vec::with_capacity(HEAD + if inline { payload.len() } else { 0 });
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend(length.to_ne_bytes());
        if inline {
            bytes.extend(payload);
            return Ok(Packet { bytes, memfd: None });
        }
        let memfd = memfd::seal_bytes(c"bproc-message", payload).map_err(|e| FrameError::Memfd(e.into()))?;
        Ok(Packet { bytes, memfd: Some(memfd) })
    }

    /// What goes into the packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The descriptor that must be the packet's first, if there is one.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }

    /// Sends it with the message's descriptors. Takes no memory, so it may run in a forked child.
    ///
    /// # Errors
    /// [`FrameError::TooManyFds`]; [`FrameError::Io`].
    pub fn send(&self, conn: &Conn, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        if fds.len() > MESSAGE_FDS_MAX {
            return Err(FrameError::TooManyFds(fds.len()));
        }
        let Some(memfd) = self.memfd() else {
            return conn.send(&self.bytes, fds).map_err(FrameError::Io);
        };
        let mut all = [memfd; MAX_FDS];
        all[1..=fds.len()].copy_from_slice(fds);
        conn.send(&self.bytes, &all[..=fds.len()]).map_err(FrameError::Io)
    }
}

/// Reads the payload of one packet and the descriptors that belong to the message.
///
/// # Errors
/// All kinds but [`FrameError::Io`]. The memfd of an untrusted sender is read only if it is sealed.
pub fn decode(packet: &[u8], mut fds: Vec<OwnedFd>) -> Result<(Vec<u8>, Vec<OwnedFd>), FrameError> {
    let word = |at: usize| Some(u32::from_ne_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    if packet.is_empty() {
        return Err(FrameError::Closed);
    }
    if word(0) != Some(MAGIC) {
        return Err(FrameError::Magic);
    }
    let head = word(4).ok_or(FrameError::Length)?;
    let (length, rest) = ((head & !IN_MEMFD) as usize, &packet[HEAD..]);
    if length > PAYLOAD_MAX {
        return Err(FrameError::TooLong(length as u64));
    }
    if head & IN_MEMFD == 0 {
        if rest.len() != length {
            return Err(FrameError::Length);
        }
        return Ok((rest.to_vec(), fds));
    }
    if !rest.is_empty() || fds.is_empty() {
        return Err(FrameError::Length);
    }
    let memfd = fds.remove(0);
    let payload = memfd::read_all(&memfd, PAYLOAD_MAX as u64).map_err(|e| FrameError::Memfd(e.into()))?;
    if payload.len() != length {
        return Err(FrameError::Length);
    }
    Ok((payload, fds))
}

/// Receives one packet; `buffer` has [`PACKET_MAX`] bytes.
///
/// # Errors
/// Every kind of [`FrameError`].
pub fn recv(conn: &Conn, buffer: &mut [u8]) -> Result<(Vec<u8>, Vec<OwnedFd>), FrameError> {
    let got = conn.recv(buffer).map_err(FrameError::Io)?;
    if got.truncated {
        return Err(FrameError::Truncated);
    }
    decode(&buffer[..got.len], got.fds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn there_and_back(payload: &[u8], fds: &[BorrowedFd<'_>]) -> (Vec<u8>, Vec<OwnedFd>) {
        let (a, b) = Conn::pair().unwrap();
        Packet::new(payload).unwrap().send(&a, fds).unwrap();
        recv(&b, &mut vec![0; PACKET_MAX]).unwrap()
    }

    #[test]
    fn small_and_large_payloads_arrive_with_their_descriptors() {
        let null = File::open("/dev/null").unwrap();
        for size in [0, 1, INLINE_MAX, INLINE_MAX + 1, 10 << 20] {
            let payload: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let (got, fds) = there_and_back(&payload, &[null.as_fd(), null.as_fd()]);
            assert!(got == payload && fds.len() == 2, "{size}");
        }
    }

    #[test]
    fn as_many_descriptors_as_a_packet_takes() {
        let null = File::open("/dev/null").unwrap();
        let most = [null.as_fd(); MESSAGE_FDS_MAX];
        assert_eq!(there_and_back(&vec![0; INLINE_MAX + 1], &most).1.len(), MESSAGE_FDS_MAX);
        let (a, _b) = Conn::pair().unwrap();
        let refused = Packet::new(b"").unwrap().send(&a, &[null.as_fd(); MAX_FDS]);
        assert!(matches!(refused, Err(FrameError::TooManyFds(MAX_FDS))));
    }

    #[test]
    fn too_long_is_refused_before_it_is_sent() {
        assert!(matches!(Packet::new(&vec![0; PAYLOAD_MAX + 1]), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let head = |length: u32| [MAGIC.to_ne_bytes(), length.to_ne_bytes()].concat();
        let null = || vec![OwnedFd::from(File::open("/dev/null").unwrap())];
        assert!(matches!(decode(b"", vec![]), Err(FrameError::Closed)));
        assert!(matches!(decode(b"GET / HTTP/1.1", vec![]), Err(FrameError::Magic)));
        assert!(matches!(decode(&MAGIC.to_ne_bytes(), vec![]), Err(FrameError::Length)));
        assert!(matches!(decode(&head(1), vec![]), Err(FrameError::Length)));
        assert!(matches!(decode(&head(IN_MEMFD | 1), vec![]), Err(FrameError::Length)));
        assert!(matches!(decode(&head(IN_MEMFD | 1), null()), Err(FrameError::Memfd(_))));
        assert!(matches!(decode(&head(!IN_MEMFD), vec![]), Err(FrameError::TooLong(_))));
        let wrong = vec![memfd::seal_bytes(c"x", b"abc").unwrap()];
        assert!(matches!(decode(&head(IN_MEMFD | 2), wrong), Err(FrameError::Length)));
    }
}
