//! The connection to the other mover, as the agents handed it over: its bytes as they are, or in sealed records of
//! TLS 1.3 (RFC 8446, section 5.2) whose keys the agents agreed on. Nothing but data is said on it: what else TLS
//! knows (new keys, new certificates) is an error here.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use vmadump::restore::ImageSource;

use crate::wire;

/// Silence of the other mover after which it counts as lost.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Longest content of a record.
const CONTENT: usize = 1 << 14;
const HEAD: usize = 5;
const TAG: usize = 16;
/// Head, content, its type, tag.
const RECORD: usize = HEAD + CONTENT + 1 + TAG;
/// Records written or read at once.
const AT_ONCE: usize = 16;
const DATA: u8 = 23;
const ALERT: u8 = 21;
/// Records under one key: AES-GCM must not see more of this length (RFC 8446, section 5.5). 256 GiB.
const MOST_RECORDS: u64 = 1 << 24;

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// One direction's key, and the number of its next record.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    next: u64,
    end: u64,
}

impl Key {
    fn new(suite: u32, key: &wire::Key) -> io::Result<Key> {
        let algorithm = match suite {
            wire::AES_128_GCM => &AES_128_GCM,
            wire::AES_256_GCM => &AES_256_GCM,
            wire::CHACHA20_POLY1305 => &CHACHA20_POLY1305,
            _ => return Err(damaged("a cipher suite that is not known")),
        };
        let iv = key.iv.as_slice().try_into().map_err(|_| damaged("a key that does not fit its suite"))?;
        let unbound = UnboundKey::new(algorithm, &key.key).map_err(|_| damaged("a key that does not fit its suite"))?;
        let end = if suite == wire::CHACHA20_POLY1305 { u64::MAX } else { MOST_RECORDS };
        Ok(Key { key: LessSafeKey::new(unbound), iv, next: key.sequence, end })
    }

    fn nonce(&mut self) -> io::Result<Nonce> {
        if self.next >= self.end {
            return Err(damaged("too many bytes for one connection; the image is too large"));
        }
        let mut nonce = self.iv;
        for (byte, mixed) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
            *byte ^= mixed;
        }
        self.next += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// What goes to the other end.
pub struct Outgoing {
    stream: TcpStream,
    seal: Option<(Key, Vec<u8>)>,
}

impl Outgoing {
    /// Says no more.
    pub fn end(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

impl Write for Outgoing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some((key, buffer)) = &mut self.seal else { return self.stream.write(data) };
        let data = &data[..data.len().min(AT_ONCE * CONTENT)];
        buffer.clear();
        for content in data.chunks(CONTENT) {
            let start = buffer.len();
            let length = content.len() + 1 + TAG;
            let head = [DATA, 3, 3, (length >> 8) as u8, length as u8];
            buffer.extend(head);
            buffer.extend(content);
            buffer.push(DATA);
            let inner = &mut buffer[start + HEAD..];
            let nonce = key.nonce()?;
            let tag = key.key.seal_in_place_separate_tag(nonce, Aad::from(head), inner);
            buffer.extend(tag.map_err(|_| damaged("a record cannot be sealed"))?.as_ref());
        }
        self.stream.write_all(buffer)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What comes from the other end.
pub enum Incoming {
    /// As it is.
    Plain(TcpStream),
    /// In records.
    Sealed(Box<Opener>),
    /// In records that a thread opens. The target of a move reads them itself.
    Opened(UnixStream),
}

impl Incoming {
    /// The same bytes on a descriptor that anybody can read.
    ///
    /// # Errors
    /// No socket pair, no thread.
    pub fn readable(self) -> io::Result<Incoming> {
        let Incoming::Sealed(mut opener) = self else { return Ok(self) };
        let (mut theirs, ours) = UnixStream::pair()?;
        std::thread::Builder::new().name("opener".into()).spawn(move || {
            // The end of the pair is the end of all that comes, whatever the reason.
            let _ = opener.pour_into(&mut theirs);
        })?;
        Ok(Incoming::Opened(ours))
    }

    /// For one more reader of the same bytes, after this one.
    ///
    /// # Errors
    /// It is sealed and not [`Self::readable`].
    pub fn again(&self) -> io::Result<Incoming> {
        match self {
            Incoming::Plain(stream) => stream.try_clone().map(Incoming::Plain),
            Incoming::Opened(stream) => stream.try_clone().map(Incoming::Opened),
            Incoming::Sealed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Incoming::Plain(stream) => stream.read(into),
            Incoming::Sealed(opener) => opener.read(into),
            Incoming::Opened(stream) => stream.read(into),
        }
    }
}

impl ImageSource for Incoming {
    fn raw(&self) -> Option<RawFd> {
        match self {
            Incoming::Plain(stream) => Some(stream.as_raw_fd()),
            Incoming::Sealed(_) => None,
            Incoming::Opened(stream) => Some(stream.as_raw_fd()),
        }
    }
}

/// Opens records.
pub struct Opener {
    stream: TcpStream,
    key: Key,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are not used yet: from, to.
    raw: (usize, usize),
    /// Content of an opened record that was not asked for yet.
    left: (usize, usize),
}

impl Opener {
    fn new(stream: TcpStream, key: Key) -> Opener {
        Opener { stream, key, buffer: vec![0; AT_ONCE * RECORD], raw: (0, 0), left: (0, 0) }
    }

    /// Reads what is there, one whole record at least. False at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.raw.0..self.raw.1, 0);
        self.raw = (0, self.raw.1 - self.raw.0);
        while self.whole()?.is_none() {
            let got = match self.stream.read(&mut self.buffer[self.raw.1..]) {
                // A mover that was stopped goes on.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            if got == 0 {
                return Ok(false);
            }
            self.raw.1 += got;
        }
        Ok(true)
    }

    /// Bytes of the next record, if all of it is there.
    fn whole(&self) -> io::Result<Option<usize>> {
        let Some(head) = self.buffer[self.raw.0..self.raw.1].first_chunk::<HEAD>() else { return Ok(None) };
        let length = usize::from(head[3]) << 8 | usize::from(head[4]);
        if head[0] != DATA || !(TAG + 1..=RECORD - HEAD).contains(&length) {
            return Err(damaged("no record of data"));
        }
        Ok(Some(HEAD + length).filter(|all| self.raw.1 - self.raw.0 >= *all))
    }

    /// Opens the next record, if all of it is there: where its content lies in the buffer. The outer `None`: not there;
    /// an empty range after the other end's farewell.
    fn open(&mut self) -> io::Result<Option<(usize, usize)>> {
        let Some(all) = self.whole()? else { return Ok(None) };
        let at = self.raw.0;
        self.raw.0 += all;
        let (head, sealed) = self.buffer[at..at + all].split_at_mut(HEAD);
        let nonce = self.key.nonce()?;
        let opened = self.key.key.open_in_place(nonce, Aad::from(head), sealed);
        let opened = opened.map_err(|_| damaged("a record that was not sealed by the other end"))?;
        // Zeros may follow on the type.
        let kind = opened.iter().rposition(|byte| *byte != 0).ok_or_else(|| damaged("a record without a type"))?;
        match opened[kind] {
            DATA => Ok(Some((at + HEAD, at + HEAD + kind))),
            ALERT => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Err(damaged("a record of something else than data")),
        }
    }

    /// Everything that comes, until the end.
    fn pour_into(&mut self, out: &mut UnixStream) -> io::Result<()> {
        while self.fill()? {
            let mut ranges = Vec::with_capacity(AT_ONCE);
            while let Some(range) = self.open()? {
                ranges.push(range);
            }
            let mut slices: Vec<IoSlice<'_>> = ranges.iter().map(|(a, b)| IoSlice::new(&self.buffer[*a..*b])).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match out.write_vectored(rest) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    written => IoSlice::advance_slices(&mut rest, written?),
                }
            }
        }
        Ok(())
    }
}

impl Read for Opener {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left.0 == self.left.1 {
            match self.open()? {
                Some(range) => self.left = range,
                None if !self.fill()? => return Ok(0),
                None => {}
            }
        }
        let content = &self.buffer[self.left.0..self.left.1];
        let count = content.len().min(into.len());
        into[..count].copy_from_slice(&content[..count]);
        self.left.0 += count;
        Ok(count)
    }
}

/// Both directions of a connection that was handed over. It notices silence.
///
/// # Errors
/// What setsockopt says; keys that are none.
pub fn line(stream: TcpStream, keys: Option<&wire::Keys>) -> io::Result<(Incoming, Outgoing)> {
    line_within(stream, keys, SILENCE)
}

/// [`line`], with another patience.
///
/// # Errors
/// As there.
pub fn line_within(
    stream: TcpStream,
    keys: Option<&wire::Keys>,
    patience: Duration,
) -> io::Result<(Incoming, Outgoing)> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let out = stream.try_clone()?;
    let Some(keys) = keys else { return Ok((Incoming::Plain(stream), Outgoing { stream: out, seal: None })) };
    let (Some(receive), Some(send)) = (&keys.receive, &keys.send) else {
        return Err(damaged("a key for one direction only"));
    };
    let (receive, send) = (Key::new(keys.suite, receive)?, Key::new(keys.suite, send)?);
    let seal = Some((send, Vec::with_capacity(AT_ONCE * RECORD)));
    Ok((Incoming::Sealed(Box::new(Opener::new(stream, receive))), Outgoing { stream: out, seal }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn key(length: usize, seed: u8, sequence: u64) -> wire::Key {
        wire::Key { key: vec![seed; length], iv: vec![seed ^ 0x55; 12], sequence }
    }

    fn keys(suite: u32, send: u8, receive: u8) -> wire::Keys {
        let length = if suite == wire::AES_128_GCM { 16 } else { 32 };
        wire::Keys { suite, send: Some(key(length, send, 7)), receive: Some(key(length, receive, 7)) }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (a, listener.accept().unwrap().0)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 977) as u8).collect()
    }

    /// Both ends of a sealed connection; the first end's incoming is readable by anybody.
    fn ends(suite: u32) -> ((Incoming, Outgoing), (Incoming, Outgoing)) {
        let (a, b) = pair();
        let (a, b) = (line(a, Some(&keys(suite, 1, 2))).unwrap(), line(b, Some(&keys(suite, 2, 1))).unwrap());
        ((a.0.readable().unwrap(), a.1), b)
    }

    #[test]
    fn bytes_arrive_in_both_directions() {
        for suite in [wire::AES_128_GCM, wire::AES_256_GCM, wire::CHACHA20_POLY1305] {
            for length in [0, 1, CONTENT, CONTENT + 1, AT_ONCE * CONTENT + 3, 3 << 20] {
                let ((mut from_b, mut to_b), (mut from_a, mut to_a)) = ends(suite);
                let sent = bytes(length);
                let theirs = sent.clone();
                let other = thread::spawn(move || {
                    let mut got = vec![0; theirs.len()];
                    from_a.read_exact(&mut got).unwrap();
                    assert!(got == theirs, "forth");
                    to_a.write_all(&got).unwrap();
                });
                to_b.write_all(&sent).unwrap();
                let mut got = Vec::new();
                from_b.read_to_end(&mut got).unwrap();
                other.join().unwrap();
                assert!(got == sent, "back");
            }
        }
    }

    #[test]
    fn what_is_not_from_the_other_end_is_no_data() {
        let mut record = Vec::new();
        let (a, mut wire_end) = pair();
        let mut out = line(a, Some(&keys(wire::AES_256_GCM, 1, 2))).unwrap().1;
        out.write_all(b"hello").unwrap();
        drop(out);
        wire_end.read_to_end(&mut record).unwrap();
        assert!(!record.windows(5).any(|w| w == b"hello"));
        let open = |raw: &[u8]| {
            let (mut a, b) = pair();
            a.write_all(raw).unwrap();
            drop(a);
            let (mut from, _to) = line(b, Some(&keys(wire::AES_256_GCM, 2, 1))).unwrap();
            let mut got = Vec::new();
            from.read_to_end(&mut got).map(|_| got)
        };
        assert_eq!(open(&record).unwrap(), b"hello");
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 1;
            // A longer length waits for more, and finds the end.
            assert!(open(&damaged).is_ok_and(|got| got.is_empty()) || open(&damaged).is_err(), "byte {at}");
        }
        for length in 0..record.len() {
            assert!(open(&record[..length]).unwrap().is_empty(), "{length} bytes");
        }
        assert!(open(&[record.as_slice(), &record].concat()).is_err(), "said twice");
        assert!(open(&[DATA, 3, 3, 0xff, 0xff]).is_err());
        assert!(open(b"GET / HTTP/1.1").is_err());
    }

    #[test]
    fn keys_must_fit() {
        let (a, _b) = pair();
        let mut wrong = keys(wire::AES_256_GCM, 1, 2);
        wrong.suite = wire::AES_128_GCM;
        assert!(line(a.try_clone().unwrap(), Some(&wrong)).is_err());
        wrong.suite = 9;
        assert!(line(a.try_clone().unwrap(), Some(&wrong)).is_err());
        assert!(line(a, Some(&wire::Keys { suite: wire::AES_128_GCM, send: None, receive: None })).is_err());
    }

    #[test]
    fn a_key_has_an_end() {
        let (a, _b) = pair();
        let mut worn = keys(wire::AES_128_GCM, 1, 2);
        worn.send = Some(key(16, 1, MOST_RECORDS - 1));
        let mut out = line(a, Some(&worn)).unwrap().1;
        out.write_all(b"the last").unwrap();
        assert!(out.write_all(b"one more").is_err());
    }
}
