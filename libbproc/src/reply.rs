//! The answer to a spawn, read without taking memory: for a child that was cloned behind libc's back.
//!
//! Field numbers are those of `client.proto`; a test compares with the generated types.

use std::ffi::{CStr, c_char};

use crate::frame::INLINE_MAX;

/// Most entries of the ghost's environment.
const ENTRIES_MAX: usize = 64;

/// A field of a protobuf message.
enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip<'b>(from: &mut &'b [u8], len: usize) -> Option<&'b [u8]> {
    let (taken, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(taken)
}

/// The next field with its number; `None` at the end or for nonsense (then bytes are left).
fn field<'b>(from: &mut &'b [u8]) -> Option<(u64, Value<'b>)> {
    if from.is_empty() {
        return None;
    }
    let key = varint(from)?;
    let value = match key & 7 {
        0 => Value::Number(varint(from)?),
        1 => Value::Bytes(skip(from, 8)?),
        2 => {
            let len = usize::try_from(varint(from)?).ok()?;
            Value::Bytes(skip(from, len)?)
        }
        5 => Value::Bytes(skip(from, 4)?),
        _ => return None,
    };
    Some((key >> 3, value))
}

/// The bytes of `Spawned`.
///
/// # Errors
/// The number of the failure; EPROTO for anything else.
pub(crate) fn parse(mut reply: &[u8]) -> Result<&[u8], i32> {
    match field(&mut reply) {
        Some((1, Value::Bytes(mut failure))) => {
            let mut number = libc::EPROTO;
            while let Some((at, value)) = field(&mut failure) {
                if let (1, Value::Number(n)) = (at, value) {
                    // sint32: zigzag.
                    number = ((n >> 1) as i64 ^ -((n & 1) as i64)) as i32;
                }
            }
            Err(number.max(1))
        }
        Some((3, Value::Bytes(spawned))) => Ok(spawned),
        _ => Err(libc::EPROTO),
    }
}

/// Whether the answer to a move is good, and the rank in it.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_moved(mut reply: &[u8]) -> Result<(Where, usize), i32> {
    let whole = reply;
    match field(&mut reply) {
        Some((10, Value::Bytes(mut moved))) => {
            let (mut place, mut rank) = (Where::Here, 0);
            while let Some((number, value)) = field(&mut moved) {
                match (number, value) {
                    (3, Value::Number(1..)) => place = Where::There,
                    (4, Value::Number(told)) => rank = usize::try_from(told).map_err(|_| libc::EPROTO)?,
                    _ => {}
                }
            }
            Ok((place, rank))
        }
        _ => parse(whole).and(Err(libc::EPROTO)),
    }
}

/// Where a process that asked to be moved hears the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// Where it asked.
    Here,
    /// Where it has come to.
    There,
}

/// Room for the strings of a `Spawned`.
#[derive(Debug)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    environment: Vec<*const c_char>,
}

/// What is to be executed.
pub(crate) struct Program<'s> {
    pub(crate) path: &'s CStr,
    /// Ended by null.
    pub(crate) environment: &'s [*const c_char],
}

impl Strings {
    pub(crate) fn new() -> Strings {
        // The strings of a packet, each with a NUL more, are not longer than the packet: each has two bytes of head.
        Strings { bytes: Vec::with_capacity(INLINE_MAX), environment: Vec::with_capacity(ENTRIES_MAX + 1) }
    }

    /// Takes the strings over; `None` when there are too many or when they are none.
    pub(crate) fn fill(&mut self, mut spawned: &[u8]) -> Option<Program<'_>> {
        self.bytes.clear();
        self.environment.clear();
        let mut path = None;
        while let Some((at, value)) = field(&mut spawned) {
            let Value::Bytes(text) = value else { continue };
            let start = self.bytes.len();
            if text.contains(&0) || start + text.len() >= self.bytes.capacity() {
                return None;
            }
            self.bytes.extend_from_slice(text);
            self.bytes.push(0);
            match at {
                1 => path = Some(start),
                2 if self.environment.len() < ENTRIES_MAX => {
                    // The vector never grows beyond its capacity, so it does not move.
                    self.environment.push(self.bytes.get(start..)?.as_ptr().cast());
                }
                _ => return None,
            }
        }
        self.environment.push(std::ptr::null());
        let path = CStr::from_bytes_until_nul(self.bytes.get(path?..)?).ok()?;
        spawned.is_empty().then_some(Program { path, environment: &self.environment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bproc_proto::Failure;
    use bproc_proto::client::{Reply, Spawned, reply::Body};
    use prost::Message;

    fn bytes(body: Body) -> Vec<u8> {
        Reply { body: Some(body) }.encode_to_vec()
    }

    fn texts(program: &Program<'_>) -> Vec<String> {
        let entries = program.environment.iter().take_while(|p| !p.is_null());
        // SAFETY: each points to a string of `Strings`.
        entries.map(|p| unsafe { CStr::from_ptr(*p) }.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn reads_what_the_generated_types_write() {
        let entries = vec![b"A=1".to_vec(), vec![], b"SOCKET=/run/x".to_vec()];
        let spawned = Spawned { ghost_path: b"/usr/libexec/ghost".to_vec(), ghost_environment: entries };
        let packet = bytes(Body::Spawned(spawned));
        let mut strings = Strings::new();
        let program = strings.fill(parse(&packet).unwrap()).unwrap();
        assert_eq!(program.path, c"/usr/libexec/ghost");
        assert_eq!(texts(&program), ["A=1", "", "SOCKET=/run/x"]);
        for number in [1, 2, 301, i32::MAX] {
            let failure = bytes(Body::Failure(Failure { number, message: "it is down".into() }));
            assert_eq!(parse(&failure), Err(number));
        }
    }

    #[test]
    fn a_move_is_good_or_has_a_number() {
        let moved = bproc_proto::client::Moved { frozen_ns: 5, bytes: 7, arrived: true, rank: 300 };
        assert_eq!(parse_moved(&bytes(Body::Moved(moved))), Ok((Where::There, 300)));
        assert_eq!(parse_moved(&bytes(Body::Moved(Default::default()))), Ok((Where::Here, 0)));
        assert_eq!(parse_moved(&bytes(Body::Failure(Failure { number: 301, message: "down".into() }))), Err(301));
        assert_eq!(parse_moved(&bytes(Body::Done(Default::default()))), Err(libc::EPROTO));
        assert_eq!(parse_moved(&[]), Err(libc::EPROTO));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut strings = Strings::new();
        assert_eq!(parse(&[]), Err(libc::EPROTO));
        assert_eq!(parse(&bytes(Body::Done(Default::default()))), Err(libc::EPROTO));
        let spawned = |path: &[u8], entries| Spawned { ghost_path: path.to_vec(), ghost_environment: entries };
        assert!(strings.fill(&spawned(b"a\0b", vec![]).encode_to_vec()).is_none());
        assert!(strings.fill(&spawned(b"a", vec![vec![b'x']; ENTRIES_MAX + 1]).encode_to_vec()).is_none());
        assert!(strings.fill(&[]).is_none());
        // Every way to cut off or spoil a good one.
        let good = bytes(Body::Spawned(spawned(b"/ghost", vec![b"A=1".to_vec()])));
        for len in 0..good.len() {
            let cut = parse(good.get(..len).unwrap()).ok().and_then(|s| strings.fill(s).map(|p| p.path.to_owned()));
            assert!(cut.is_none(), "{len}");
        }
        for at in 0..good.len() {
            for value in 0..=255 {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = parse(&bad).ok().and_then(|s| strings.fill(s).map(|p| p.path.to_owned()));
            }
        }
    }
}
