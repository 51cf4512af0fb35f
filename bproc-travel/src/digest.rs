//! Files by their content: digests, and the memory of those that were computed, by what stat tells of a file.

use ring::digest::{Context, SHA256};
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SHA-256 of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// From the wire. `None` when it has another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Digest> {
        bytes.try_into().ok().map(Digest)
    }

    /// From the hexadecimal digits that [`fmt::Display`] prints.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let digits = text.as_bytes();
        let mut out = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(out))
    }

    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Of a whole file; reads it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(file: &File) -> io::Result<Digest> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 18];
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(got) => {
                    hasher.update(&buffer[..got]);
                    at += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A digest in the making.
pub struct Hasher(Context);

impl Hasher {
    /// Of nothing yet.
    pub fn new() -> Hasher {
        Hasher(Context::new(&SHA256))
    }

    /// What follows.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all.
    pub fn finish(self) -> Digest {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        Digest(out)
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher::new()
    }
}

/// What stat tells of a file's content: nothing of it changes unless the content may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Modification, nanoseconds of the epoch.
    pub mtime: u64,
    /// Change, nanoseconds of the epoch.
    pub ctime: u64,
}

impl Identity {
    /// From stat.
    pub fn of(meta: &Metadata) -> Identity {
        let ns = |s: i64, ns: i64| (s as u64).wrapping_mul(1_000_000_000).wrapping_add(ns as u64);
        Identity {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: ns(meta.mtime(), meta.mtime_nsec()),
            ctime: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// As it travels.
    pub fn to_wire(self) -> Vec<u64> {
        vec![self.dev, self.ino, self.mtime, self.ctime]
    }

    /// True when this is what travelled, with the size that stood beside it.
    pub fn is_wire(&self, wire: &[u64], size: u64) -> bool {
        wire == [self.dev, self.ino, self.mtime, self.ctime] && size == self.size
    }
}

/// A file that changed a moment ago may change again without its times telling: clocks of file systems tick.
const TICK: Duration = Duration::from_millis(20);
/// More are not remembered.
const MOST: usize = 1 << 16;

/// Digests of files that were read.
#[derive(Debug, Default)]
pub struct Memo(Mutex<HashMap<Identity, Digest>>);

impl Memo {
    /// The digest of a file; reads it unless it is known.
    ///
    /// # Errors
    /// It cannot be read, or changes meanwhile (EAGAIN).
    pub fn digest(&self, file: &File) -> io::Result<(Identity, Digest)> {
        let before = Identity::of(&file.metadata()?);
        if let Some(known) = self.known(&before) {
            return Ok((before, known));
        }
        let digest = Digest::of_file(file)?;
        if Identity::of(&file.metadata()?) != before {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        self.learn(before, digest);
        Ok((before, digest))
    }

    /// What is known.
    pub fn known(&self, identity: &Identity) -> Option<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(identity).copied()
    }

    /// Remembers, unless the file is too fresh to be told from its next version.
    pub fn learn(&self, identity: Identity, digest: Digest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if now.saturating_sub(Duration::from_nanos(identity.ctime)) < TICK {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(identity, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_go_both_ways() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(Digest::from_hex("ba"), None);
        assert_eq!(Digest::from_hex(&"g".repeat(64)), None);
    }

    #[test]
    fn a_changed_file_has_another_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let memo = Memo::default();
        std::fs::write(file.path(), "one").unwrap();
        let (_, one) = memo.digest(file.as_file()).unwrap();
        std::fs::write(file.path(), "two").unwrap();
        let (_, two) = memo.digest(file.as_file()).unwrap();
        assert_ne!(one, two);
        assert_eq!(two, Digest::of(b"two"));
    }
}
