//! `/etc/ld.so.cache`: which file the loader takes for a library's name.

use std::collections::HashMap;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEAD: usize = 48;
const ENTRY: usize = 24;
/// Entries of an old cache before the new one.
const OLD_ENTRY: usize = 12;
const OLD_HEAD: usize = 16;
/// The upper half of an entry's capabilities: the lower is the number of a directory below `glibc-hwcaps`.
const IS_SUBDIRECTORY: u32 = 1 << 30;
const ISA_LEVEL: u32 = 0x3ff;

#[derive(Clone, Debug)]
struct Entry {
    flags: u32,
    /// Directory below `glibc-hwcaps`.
    level: Option<String>,
    path: Vec<u8>,
}

/// The loader's cache.
#[derive(Clone, Debug, Default)]
pub struct LdCache {
    entries: HashMap<Vec<u8>, Vec<Entry>>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn text(bytes: &[u8], at: u32) -> Option<&[u8]> {
    let rest = bytes.get(at as usize..)?;
    rest.iter().position(|b| *b == 0).map(|end| &rest[..end])
}

impl LdCache {
    /// Reads the bytes of a cache. What does not fit is left out.
    pub fn parse(bytes: &[u8]) -> LdCache {
        let mut cache = LdCache::default();
        let start = if bytes.starts_with(OLD_MAGIC) {
            let count = word(bytes, 12).unwrap_or(0) as usize;
            count.checked_mul(OLD_ENTRY).and_then(|n| n.checked_add(OLD_HEAD)).map(|n| n.next_multiple_of(8))
        } else {
            Some(0)
        };
        let Some(bytes) = start.and_then(|start| bytes.get(start..)).filter(|b| b.starts_with(MAGIC)) else {
            return cache;
        };
        let count = word(bytes, 20).unwrap_or(0) as usize;
        let levels = levels(bytes).unwrap_or_default();
        for entry in bytes.get(HEAD..).unwrap_or_default().chunks_exact(ENTRY).take(count) {
            let parts = (word(entry, 0), word(entry, 4), word(entry, 8), word(entry, 16), word(entry, 20));
            let (Some(flags), Some(key), Some(value), Some(low), Some(high)) = parts else { continue };
            let level = match (low, high) {
                (0, 0) => None,
                (low, high) if high & !ISA_LEVEL == IS_SUBDIRECTORY => match levels.get(low as usize) {
                    Some(name) => Some(name.clone()),
                    None => continue,
                },
                // For processors of old; the loader of today leaves them out.
                _ => continue,
            };
            if let (Some(name), Some(path)) = (text(bytes, key), text(bytes, value)) {
                let entry = Entry { flags, level, path: path.to_vec() };
                cache.entries.entry(name.to_vec()).or_default().push(entry);
            }
        }
        cache
    }

    /// Files for a name, in the order in which the loader prefers them. `flags` say kind and machine of the library,
    /// `levels` are the directories below `glibc-hwcaps` for this processor, the best first.
    pub fn find<'c>(&'c self, name: &[u8], flags: u32, levels: &[&str]) -> impl Iterator<Item = &'c [u8]> {
        let all = self.entries.get(name).map(Vec::as_slice).unwrap_or_default();
        let rank = |entry: &Entry| match &entry.level {
            None => Some(levels.len()),
            Some(level) => levels.iter().position(|l| l == level),
        };
        let mut fit: Vec<(usize, &'c [u8])> =
            all.iter().filter(|e| e.flags == flags).filter_map(|e| Some((rank(e)?, e.path.as_slice()))).collect();
        fit.sort_by_key(|(rank, _)| *rank);
        fit.into_iter().map(|(_, path)| path)
    }
}

/// Names of the directories below `glibc-hwcaps` that entries refer to.
fn levels(bytes: &[u8]) -> Option<Vec<String>> {
    let at = word(bytes, 32)? as usize;
    if at == 0 || word(bytes, at)? != 0xeaa4_2174 {
        return None;
    }
    let sections = word(bytes, at + 4)?.min(64) as usize;
    for section in 0..sections {
        let here = at + 8 + 16 * section;
        if word(bytes, here)? != 1 {
            continue;
        }
        let (offset, size) = (word(bytes, here + 8)? as usize, word(bytes, here + 12)?.min(4096) as usize);
        let names = (0..size / 4).map(|i| {
            let name = word(bytes, offset + 4 * i).and_then(|at| text(bytes, at));
            String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
        });
        return Some(names.collect());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_does_no_harm() {
        let Ok(good) = std::fs::read("/etc/ld.so.cache") else { return };
        for cut in [0, 3, 20, 48, 60, good.len() / 2] {
            LdCache::parse(&good[..cut.min(good.len())]);
        }
        let mut bad = good.clone();
        for (i, byte) in bad.iter_mut().enumerate().skip(20).step_by(7).take(4000) {
            *byte = (i * 31) as u8;
        }
        LdCache::parse(&bad);
        LdCache::parse(b"ld.so-1.7.0\0\xff\xff\xff\xff");
    }
}
