//! The pages of a stopped process, found and streamed. Memory here does not grow with the image.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, mpsc};

use super::Progress;
use super::contents::Contents;
use crate::error::Error;
use crate::image::{AreaKind, Image, PAGE, Run, Writer};
use crate::sys::SysError;
use crate::sys::memory::{MemFile, PageMap, Which, read_many};

/// Bytes of pages in a block: fits the second-level cache, many blocks keep a link busy.
const BLOCK: usize = 1 << 20;
const RUNS: usize = 1024;
/// Pages from which on reading is worth a thread of its own: 16 MiB.
const APART: u64 = 4096;

/// Where a block is read to.
pub(crate) struct Room(Vec<u8>);

impl Room {
    /// Memory that the kernel has given already: page by page, while the process stands still, it takes much longer than
    /// the reading.
    pub(crate) fn touched() -> Room {
        Room(vec![1; BLOCK])
    }
}

/// Where the pages of a process are read.
pub(crate) struct Source {
    pid: i32,
    memory: MemFile,
    room: Mutex<Room>,
    /// Ranges to read, upwards, none spanning two areas; true: zero pages may be left out.
    ranges: Vec<(u64, u64, How, bool)>,
    pages: u64,
    contents: Vec<Contents>,
}

/// How a range is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum How {
    /// As memory, many at once.
    #[default]
    Fast,
    /// As memory, by /proc/PID/mem only.
    Hidden,
    /// From the memory file of this number.
    File(usize),
}

impl Source {
    /// Finds the pages worth sending and tells the areas how many they have. `readable` is known for data areas.
    pub(crate) fn new(
        pid: i32,
        memory: MemFile,
        room: Room,
        image: &mut Image,
        contents: Vec<Contents>,
    ) -> Result<Self, Error> {
        let mut map = PageMap::open(pid)?;
        let mut source = Source { pid, memory, room: Mutex::new(room), ranges: Vec::new(), pages: 0, contents };
        let mut found = Vec::new();
        for area in &mut image.areas {
            found.clear();
            let mut how = if area.prot & 1 == 0 { How::Hidden } else { How::Fast };
            match area.kind {
                AreaKind::Anon => map.ranges(area.start, area.end, Which::Present, &mut found)?,
                AreaKind::File { .. } if area.shared => {}
                AreaKind::File { .. } => map.ranges(area.start, area.end, Which::Private, &mut found)?,
                // What has no page table entry yet may still have contents.
                AreaKind::Data | AreaKind::Shared { .. } => {
                    let end = area.start + area.pages * PAGE;
                    if end > area.start {
                        found.push((area.start, end));
                    }
                }
                AreaKind::Contents { .. } => {
                    if let Some(at) = source.contents.iter().position(|c| c.start == area.start) {
                        found.extend(&source.contents[at].parts);
                        how = How::File(at);
                    }
                }
            }
            area.pages = found.iter().map(|(from, to)| (to - from) / PAGE).sum();
            let zero = !matches!(area.kind, AreaKind::File { .. });
            source.pages += area.pages;
            source.ranges.extend(found.iter().map(|(from, to)| (*from, *to, how, zero)));
        }
        Ok(source)
    }

    /// The memory behind it.
    pub(crate) fn memory(&self) -> &MemFile {
        &self.memory
    }

    /// Writes all pages as blocks. Of a large process the next block is read while the one before is written.
    pub(crate) fn stream<W: Write>(&self, out: &mut Writer<W>, progress: Progress<'_>) -> Result<(), Error> {
        let data = self.room.lock().map(|mut room| std::mem::take(&mut room.0)).unwrap_or_default();
        let first = Block { data, ..Block::default() };
        let mut done = 0;
        let mut write = |block: &Block| {
            if !block.runs.is_empty() {
                let written = out.block(&block.runs, &block.data[..block.kept]);
                written.map_err(|why| Error::Io { op: "write", why })?;
            }
            done += block.len as u64 / PAGE;
            progress(done, self.pages);
            Ok(())
        };
        if self.pages < APART {
            return self.each(first, |block| write(&block).map(|()| Some(block)));
        }
        std::thread::scope(|scope| {
            let (full, filled) = mpsc::sync_channel(1);
            let (empty, next) = mpsc::channel();
            let reader = std::thread::Builder::new().name("pages".into()).spawn_scoped(scope, move || {
                // One is filled, one waits, one is written. Who has had enough hangs up.
                let mut fresh = 2;
                self.each(first, |block| {
                    let more = full.send(block).is_ok();
                    let block = (fresh > 0).then(Block::default);
                    fresh -= u32::from(block.is_some());
                    Ok(block.or_else(|| next.recv().ok()).filter(|_| more))
                })
            });
            // No room for a thread.
            let Ok(reader) = reader else {
                return self.each(Block::default(), |block| write(&block).map(|()| Some(block)));
            };
            let written = filled.into_iter().try_for_each(|block: Block| {
                write(&block)?;
                // The reader may have come to the end.
                let _ = empty.send(block);
                Ok(())
            });
            drop(empty);
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.and(read)
        })
    }

    /// Fills blocks one after the other. `take` gets each, and gives the one to be filled next, or ends it.
    fn each(&self, mut block: Block, mut take: impl FnMut(Block) -> Result<Option<Block>, Error>) -> Result<(), Error> {
        for (from, to, how, zero) in &self.ranges {
            let mut at = *from;
            while at < *to {
                if block.len == BLOCK || block.pieces.len() == RUNS || (!block.pieces.is_empty() && block.how != *how) {
                    self.fill(&mut block)?;
                    let Some(next) = take(block)? else { return Ok(()) };
                    block = next;
                    block.clear();
                }
                let len = (*to - at).min((BLOCK - block.len) as u64);
                block.how = *how;
                block.pieces.push((at, len, *zero));
                block.len += len as usize;
                at += len;
            }
        }
        if block.pieces.is_empty() {
            return Ok(());
        }
        self.fill(&mut block)?;
        take(block).map(drop)
    }

    /// Reads what the block shall have, and leaves zero pages out.
    fn fill(&self, block: &mut Block) -> Result<(), Error> {
        // The room may be gone after the first time.
        block.data.resize(BLOCK, 0);
        self.read(block)?;
        block.squeeze();
        Ok(())
    }

    fn read(&self, block: &mut Block) -> Result<(), Error> {
        if let How::File(at) = block.how {
            let Some(contents) = self.contents.get(at) else { return Ok(()) };
            let mut at = 0;
            for (from, len, _) in &block.pieces {
                let room = &mut block.data[at..at + *len as usize];
                read_file(&contents.file, from - contents.start, room)
                    .map_err(|e| SysError::from_io("read a memory file of", self.pid, &e))?;
                at += *len as usize;
            }
            return Ok(());
        }
        let mut got = 0;
        if block.how == How::Fast {
            let ranges: Vec<(u64, u64)> = block.pieces.iter().map(|p| (p.0, p.1)).collect();
            got = read_many(self.pid, &ranges, &mut block.data[..block.len])?;
        }
        // What the fast way could not read.
        let mut at = 0;
        for (from, len, _) in &block.pieces {
            let len = *len as usize;
            if at + len > got {
                let skip = got.saturating_sub(at) / PAGE as usize * PAGE as usize;
                self.memory.read(from + skip as u64, &mut block.data[at + skip..at + len])?;
            }
            at += len;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Block {
    data: Vec<u8>,
    /// Address, bytes, zero pages may be left out.
    pieces: Vec<(u64, u64, bool)>,
    len: usize,
    how: How,
    /// What is left of it, in the first bytes of `data`.
    runs: Vec<Run>,
    kept: usize,
}

/// Bytes of a file; zero beyond its end.
fn read_file(file: &File, mut at: u64, mut into: &mut [u8]) -> std::io::Result<()> {
    while !into.is_empty() {
        let got = file.read_at(into, at)?;
        if got == 0 {
            into.fill(0);
            break;
        }
        at += got as u64;
        into = &mut into[got..];
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    // Eight words at a time; most pages differ from zero in the first.
    page.as_chunks::<64>()
        .0
        .iter()
        .all(|c| c.as_chunks::<8>().0.iter().fold(0, |all, w| all | u64::from_ne_bytes(*w)) == 0)
}

impl Block {
    /// Nothing is in it any more.
    fn clear(&mut self) {
        self.pieces.clear();
        self.len = 0;
    }

    /// Leaves zero pages out and closes the gaps.
    fn squeeze(&mut self) {
        const P: usize = PAGE as usize;
        self.runs.clear();
        let (mut from, mut to) = (0, 0);
        for (start, len, zero) in &self.pieces {
            let mut open = false;
            for i in 0..len / PAGE {
                let at = from + i as usize * P;
                if *zero && is_zero(&self.data[at..at + P]) {
                    open = false;
                    continue;
                }
                if to != at {
                    self.data.copy_within(at..at + P, to);
                }
                to += P;
                match self.runs.last_mut().filter(|_| open) {
                    Some(run) => run.pages += 1,
                    None => self.runs.push(Run { start: start + i * PAGE, pages: 1 }),
                }
                open = true;
            }
            from += *len as usize;
        }
        self.kept = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_left_out_only_where_they_may() {
        let mut block = Block { data: vec![0; 4 * PAGE as usize], ..Block::default() };
        block.data[PAGE as usize + 5] = 7;
        block.pieces = vec![(0x10000, 2 * PAGE, true), (0x20000, 2 * PAGE, false)];
        block.squeeze();
        assert_eq!(block.runs, [Run { start: 0x11000, pages: 1 }, Run { start: 0x20000, pages: 2 }]);
        assert_eq!(block.kept, 3 * PAGE as usize);
        assert_eq!(block.data[5], 7);
    }
}
