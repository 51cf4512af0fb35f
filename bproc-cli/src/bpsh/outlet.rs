//! One of our two outputs: what waits to be written, and whose turn it is.
//!
//! Unsorted, everybody's bytes are appended as they come. Sorted, the first node that has not ended writes; what the
//! others say is kept, in memory at first, then in a temporary file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that wait for a slow reader before nodes are held back.
const CAPACITY: usize = 256 << 10;
/// Bytes of a node whose turn has not come that are kept in memory.
const MEMORY: usize = 64 << 10;

/// Bytes kept for later.
#[derive(Debug, Default)]
struct Spool {
    memory: VecDeque<u8>,
    file: Option<File>,
    read: u64,
    written: u64,
}

impl Spool {
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.file.is_none()
    }

    fn push(&mut self, data: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + data.len() <= MEMORY {
            self.memory.extend(data);
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(temporary_file()?);
            (self.read, self.written) = (0, 0);
        }
        if let Some(file) = &self.file {
            file.write_all_at(data, self.written)?;
            self.written += data.len() as u64;
        }
        Ok(())
    }

    /// Appends up to `most` bytes to `out`, the oldest first.
    fn pull(&mut self, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if !self.memory.is_empty() {
            let n = most.min(self.memory.len());
            out.extend(self.memory.drain(..n));
            return Ok(());
        }
        if let Some(file) = &self.file {
            let n = most.min((self.written - self.read) as usize);
            let at = out.len();
            out.resize(at + n, 0);
            file.read_exact_at(&mut out[at..], self.read)?;
            self.read += n as u64;
            if self.read == self.written {
                self.file = None;
            }
        }
        Ok(())
    }
}

fn temporary_file() -> io::Result<File> {
    let (fd, path) = nix::unistd::mkstemp(&std::env::temp_dir().join("bpsh-XXXXXX"))?;
    nix::unistd::unlink(&path)?;
    Ok(File::from(fd))
}

/// Whose turn it is.
#[derive(Debug)]
struct Turns {
    spools: Vec<Spool>,
    ended: Vec<bool>,
    /// Stands before the output of each; empty: nothing does.
    heads: Vec<Vec<u8>>,
    /// Who writes now; the number of all at the end.
    now: usize,
    head_written: bool,
}

/// What waits for one of our outputs.
#[derive(Debug)]
pub(crate) struct Outlet {
    pending: Vec<u8>,
    written: usize,
    turns: Option<Turns>,
    broken: bool,
}

impl Outlet {
    /// Everybody writes as it comes.
    pub(crate) fn unsorted() -> Outlet {
        Outlet { pending: Vec::new(), written: 0, turns: None, broken: false }
    }

    /// One writer after the other, each after its head.
    pub(crate) fn sorted(heads: Vec<Vec<u8>>) -> Outlet {
        let n = heads.len();
        let spools = (0..n).map(|_| Spool::default()).collect();
        let turns = Turns { spools, ended: vec![false; n], heads, now: 0, head_written: false };
        Outlet { turns: Some(turns), ..Outlet::unsorted() }
    }

    /// There is room for more of this writer.
    pub(crate) fn has_room(&self, writer: usize) -> bool {
        let room = self.pending.len() - self.written < CAPACITY;
        match &self.turns {
            Some(turns) if turns.now == writer => room && turns.spools[writer].is_empty(),
            Some(_) => true,
            None => room,
        }
    }

    /// Takes what a writer says.
    ///
    /// # Errors
    /// What the temporary file says.
    pub(crate) fn push(&mut self, writer: usize, data: &[u8]) -> io::Result<()> {
        if self.broken {
            return Ok(());
        }
        self.refill()?;
        match &mut self.turns {
            Some(turns) if turns.now != writer || !turns.spools[writer].is_empty() => turns.spools[writer].push(data),
            _ => {
                self.pending.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// The writer says no more.
    pub(crate) fn end(&mut self, writer: usize) {
        if let Some(turns) = &mut self.turns {
            turns.ended[writer] = true;
        }
    }

    /// Brings up what was kept and may be written now.
    ///
    /// # Errors
    /// What the temporary file says.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        if self.written > 0 && (self.written == self.pending.len() || self.written >= CAPACITY) {
            self.pending.drain(..self.written);
            self.written = 0;
        }
        let Some(turns) = self.turns.as_mut().filter(|_| !self.broken) else { return Ok(()) };
        while turns.now < turns.spools.len() && self.pending.len() - self.written < CAPACITY {
            if !turns.head_written {
                self.pending.append(&mut turns.heads[turns.now]);
                turns.head_written = true;
            }
            let spool = &mut turns.spools[turns.now];
            if !spool.is_empty() {
                spool.pull(CAPACITY, &mut self.pending)?;
            } else if turns.ended[turns.now] {
                turns.now += 1;
                turns.head_written = false;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// What is to be written next.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending[self.written..]
    }

    /// So much of it was written.
    pub(crate) fn wrote(&mut self, n: usize) {
        self.written += n;
    }

    /// Nobody reads any more: everything is dropped, now and later.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.turns = None;
        self.pending = Vec::new();
        self.written = 0;
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        let kept = self.turns.as_ref().is_some_and(|t| t.now < t.spools.len());
        self.pending().is_empty() && !kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes out all that may be written now.
    fn drain(outlet: &mut Outlet, to: &mut Vec<u8>) {
        loop {
            outlet.refill().unwrap();
            let n = outlet.pending().len().min(1000);
            if n == 0 {
                return;
            }
            to.extend_from_slice(&outlet.pending()[..n]);
            outlet.wrote(n);
        }
    }

    #[test]
    fn sorted_output_comes_in_order_whoever_is_first() {
        let mut outlet = Outlet::sorted(vec![b"0:".to_vec(), b"1:".to_vec(), b"2:".to_vec()]);
        let mut got = Vec::new();
        outlet.push(2, b"c").unwrap();
        outlet.push(1, b"b").unwrap();
        outlet.end(2);
        drain(&mut outlet, &mut got);
        assert_eq!(got, b"0:");
        outlet.push(0, b"a").unwrap();
        drain(&mut outlet, &mut got);
        assert_eq!(got, b"0:a");
        outlet.end(0);
        drain(&mut outlet, &mut got);
        assert_eq!(got, b"0:a1:b");
        outlet.push(1, b"B").unwrap();
        outlet.end(1);
        drain(&mut outlet, &mut got);
        assert_eq!(got, b"0:a1:bB2:c");
        assert!(outlet.is_empty());
    }

    #[test]
    fn much_output_is_kept_in_a_file_and_comes_back_in_order() {
        let mut outlet = Outlet::sorted(vec![Vec::new(); 2]);
        let text: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
        for piece in text.chunks(4097) {
            assert!(outlet.has_room(1));
            outlet.push(1, piece).unwrap();
        }
        assert!(outlet.turns.as_ref().unwrap().spools[1].file.is_some());
        outlet.end(0);
        let mut got = Vec::new();
        outlet.refill().unwrap();
        assert!(outlet.pending().len() < 2 * CAPACITY + MEMORY);
        // More of the writer whose turn it now is must not overtake what is kept.
        outlet.push(1, b"end").unwrap();
        outlet.end(1);
        drain(&mut outlet, &mut got);
        assert!(got.len() == text.len() + 3 && got[..text.len()] == text && got.ends_with(b"end"));
    }

    #[test]
    fn a_slow_reader_holds_back_and_a_gone_one_frees_all() {
        let mut outlet = Outlet::unsorted();
        outlet.push(0, &vec![0; CAPACITY]).unwrap();
        assert!(!outlet.has_room(0) && !outlet.has_room(1));
        outlet.break_off();
        outlet.push(0, b"x").unwrap();
        assert!(outlet.has_room(0) && outlet.is_empty());
    }
}
