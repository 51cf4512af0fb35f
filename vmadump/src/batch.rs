//! A table of system calls for the batch program, with the data that they point
//! to. Addresses are those of the place where it will run.

use crate::image::PAGE;
use crate::sys::blob::{self, CALL, COPY, ENTRY, JUMP, READ, RESULT_AT, SIGRETURN, SUM};

/// Memory set aside in the target: one page of code, then data and entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    /// First address; the code.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Scratch {
    /// Where data begins.
    pub fn data(&self) -> u64 {
        self.base + PAGE
    }

    /// Address after the last.
    pub fn end(&self) -> u64 {
        self.base + self.size
    }
}

/// Number of a call in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index(usize);

struct Entry {
    kind: u32,
    must: bool,
    nr: u64,
    args: [u64; 6],
    what: &'static str,
}

/// Calls to be made, in order.
pub struct Batch {
    at: u64,
    data: Vec<u8>,
    entries: Vec<Entry>,
}

impl Batch {
    /// An empty batch whose data will lie at `at` (aligned to 64).
    pub fn new(at: u64) -> Self {
        Batch { at, data: Vec::new(), entries: Vec::new() }
    }

    /// Puts bytes at a 64-byte boundary; their address.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(64), 0);
        let at = self.at + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }

    /// Room for a result; its address.
    pub fn room(&mut self, len: usize) -> u64 {
        self.data(&vec![0; len])
    }

    /// A path or name with its NUL; its address.
    pub fn text(&mut self, text: &[u8]) -> u64 {
        let at = self.data(text);
        self.data.push(0);
        at
    }

    /// Words.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.data(&bytes)
    }

    fn push(&mut self, kind: u32, must: bool, nr: i64, args: &[u64], what: &'static str) -> Index {
        let mut six = [0; 6];
        six[..args.len()].copy_from_slice(args);
        self.entries.push(Entry { kind, must, nr: nr as u64, args: six, what });
        Index(self.entries.len() - 1)
    }

    /// A call that must succeed; the batch ends where it does not.
    pub fn must(&mut self, nr: i64, args: &[u64], what: &'static str) -> Index {
        self.push(CALL, true, nr, args, what)
    }

    /// A call that may fail.
    pub fn may(&mut self, nr: i64, args: &[u64], what: &'static str) -> Index {
        self.push(CALL, false, nr, args, what)
    }

    /// Reads exactly `len` bytes from a descriptor.
    pub fn read(&mut self, fd: i32, to: u64, len: u64) -> Index {
        self.push(READ, true, 0, &[fd as u64, to, len], "read the pages")
    }

    /// Copies memory.
    pub fn copy(&mut self, to: u64, from: u64, len: u64) -> Index {
        self.push(COPY, true, 0, &[to, from, len], "copy the pages")
    }

    /// Takes memory into the four lanes of a page checksum at `lanes`.
    pub fn sum(&mut self, from: u64, len: u64, lanes: u64) -> Index {
        self.push(SUM, true, 0, &[from, len, lanes], "sum up the pages")
    }

    /// Returns from a signal whose frame is at `frame`.
    pub fn sigreturn(&mut self, frame: u64) {
        self.push(SIGRETURN, true, 0, &[frame], "start");
    }

    /// Goes on with the entry at an address elsewhere.
    pub(crate) fn jump(&mut self, entry: u64) {
        self.push(JUMP, true, 0, &[entry], "go on");
    }

    /// Nothing to do?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that data and entries need.
    pub fn size(&self) -> u64 {
        (self.data.len().next_multiple_of(64) + (self.entries.len() + 1) * ENTRY) as u64
    }

    /// Address of the first entry.
    pub fn entry(&self) -> u64 {
        self.at + self.data.len().next_multiple_of(64) as u64
    }

    /// Data and entries as they must lie in memory from `at` on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.data.clone();
        out.resize(out.len().next_multiple_of(64), 0);
        for e in &self.entries {
            out.extend(e.kind.to_ne_bytes());
            out.extend(u32::from(e.must).to_ne_bytes());
            out.extend(e.nr.to_ne_bytes());
            out.extend(e.args.iter().flat_map(|a| a.to_ne_bytes()));
            // A result that was never written is told from a success.
            out.extend(NOT_RUN.to_ne_bytes());
        }
        out.extend([0; ENTRY]);
        debug_assert_eq!(blob::END, 0);
        out
    }

    /// Where the batch's memory begins.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The calls with this description, in order.
    pub fn named(&self, what: &'static str) -> impl Iterator<Item = Index> {
        self.entries.iter().enumerate().filter(move |(_, e)| e.what == what).map(|(i, _)| Index(i))
    }

    /// An argument of the call at which the batch ended early.
    pub fn first_failed_argument(&self, memory: &[u8], argument: usize) -> Option<u64> {
        let first = self.data.len().next_multiple_of(64);
        let failed = self.entries.iter().enumerate().find(|(i, e)| {
            let at = first + i * ENTRY + RESULT_AT;
            let ret = memory.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_ne_bytes);
            e.must && (-4095..0).contains(&ret)
        })?;
        failed.1.args.get(argument).copied()
    }

    /// Checks what came back in the same memory.
    pub fn results(&self, memory: Vec<u8>) -> Result<Results, (&'static str, i32)> {
        let first = self.data.len().next_multiple_of(64);
        let mut rets = Vec::with_capacity(self.entries.len());
        for (i, e) in self.entries.iter().enumerate() {
            let at = first + i * ENTRY + RESULT_AT;
            let ret = memory
                .get(at..at + 8)
                .map_or(NOT_RUN, |b| i64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
            if ret == NOT_RUN {
                return Err((e.what, libc::EINTR));
            }
            if e.must && (-4095..0).contains(&ret) {
                return Err((e.what, -ret as i32));
            }
            rets.push(ret);
        }
        Ok(Results { at: self.at, memory, rets })
    }
}

const NOT_RUN: i64 = i64::MIN + 7;

/// What a batch left behind.
pub struct Results {
    at: u64,
    memory: Vec<u8>,
    rets: Vec<i64>,
}

impl Results {
    /// A call's return value.
    pub fn ret(&self, index: Index) -> i64 {
        self.rets[index.0]
    }

    /// Bytes at an address that the batch gave out.
    pub fn bytes(&self, at: u64, len: usize) -> &[u8] {
        let from = (at - self.at) as usize;
        self.memory.get(from..from + len).unwrap_or_default()
    }

    /// A word there.
    pub fn word(&self, at: u64) -> u64 {
        self.bytes(at, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// A half word there.
    pub fn half(&self, at: u64) -> u32 {
        self.bytes(at, 4).try_into().map_or(0, u32::from_ne_bytes)
    }
}

/// A hole of `size` bytes that none of the (sorted or not) ranges touches, with room around it.
pub(crate) fn find_hole(used: &mut [(u64, u64)], size: u64) -> Option<u64> {
    const LOW: u64 = 0x10_0000_0000;
    used.sort_unstable();
    let mut at = LOW;
    for (start, end) in used.iter() {
        if at + size + PAGE <= *start {
            break;
        }
        at = at.max(end.next_multiple_of(PAGE) + PAGE);
    }
    (at + size + PAGE <= crate::image::TASK_END).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_lie_between() {
        let mut used = vec![(0x40_0000, 0x50_0000), (0x10_0000_0000, 0x10_0001_0000), (0x10_0002_0000, 0x20_0000_0000)];
        assert_eq!(find_hole(&mut used, 0x8000), Some(0x10_0001_1000));
        assert_eq!(find_hole(&mut used, 0x10000), Some(0x20_0000_1000));
        assert_eq!(find_hole(&mut [(0, crate::image::TASK_END)], 0x1000), None);
    }
}
