//! The pages of a stopped process, found and streamed. Memory here does not grow with the image.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::Progress;
use super::contents::Contents;
use crate::error::Error;
use crate::image::{AreaKind, Image, PAGE, Run, Writer};
use crate::sys::SysError;
use crate::sys::memory::{MemFile, PageMap, Which, read_many};

/// Bytes of pages in a block: fits the second-level cache, many blocks keep a link busy.
const BLOCK: usize = 1 << 20;
const RUNS: usize = 1024;

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

    /// Writes all pages as blocks.
    pub(crate) fn stream<W: Write>(&self, out: &mut Writer<W>, progress: Progress<'_>) -> Result<(), Error> {
        let mut block = Block {
            data: self.room.lock().map(|mut room| std::mem::take(&mut room.0)).unwrap_or_default(),
            ..Block::default()
        };
        // There may be none: the room is gone after the first time.
        block.data.resize(BLOCK, 0);
        let mut done = 0;
        for (from, to, how, zero) in &self.ranges {
            let mut at = *from;
            while at < *to {
                if block.len == BLOCK || block.pieces.len() == RUNS || (!block.pieces.is_empty() && block.how != *how) {
                    done += self.flush(&mut block, out)?;
                    progress(done, self.pages);
                }
                let len = (*to - at).min((BLOCK - block.len) as u64);
                block.how = *how;
                block.pieces.push((at, len, *zero));
                block.len += len as usize;
                at += len;
            }
        }
        done += self.flush(&mut block, out)?;
        progress(done, self.pages);
        Ok(())
    }

    fn flush<W: Write>(&self, block: &mut Block, out: &mut Writer<W>) -> Result<u64, Error> {
        if block.pieces.is_empty() {
            return Ok(0);
        }
        self.fill(block)?;
        let pages = (block.len as u64) / PAGE;
        let (runs, len) = block.squeeze();
        if !runs.is_empty() {
            out.block(&runs, &block.data[..len]).map_err(|why| Error::Io { op: "write", why })?;
        }
        block.pieces.clear();
        block.len = 0;
        Ok(pages)
    }

    fn fill(&self, block: &mut Block) -> Result<(), Error> {
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
    /// Leaves zero pages out and closes the gaps. The runs, and the bytes that are left.
    fn squeeze(&mut self) -> (Vec<Run>, usize) {
        const P: usize = PAGE as usize;
        let mut runs: Vec<Run> = Vec::with_capacity(self.pieces.len());
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
                match runs.last_mut().filter(|_| open) {
                    Some(run) => run.pages += 1,
                    None => runs.push(Run { start: start + i * PAGE, pages: 1 }),
                }
                open = true;
            }
            from += *len as usize;
        }
        (runs, to)
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
        let (runs, len) = block.squeeze();
        assert_eq!(runs, [Run { start: 0x11000, pages: 1 }, Run { start: 0x20000, pages: 2 }]);
        assert_eq!(len, 3 * PAGE as usize);
        assert_eq!(block.data[5], 7);
    }
}
