//! Reads an image from any `Read`. Hostile bytes lead to an error, never to a
//! panic, and never to more memory than has really arrived.

use std::io::{self, Read};

use super::{
    ARCH_X86_64, CRITICAL, HEADER_LEN, Image, MAGIC, MAX_BLOCK, MAX_RUNS, MAX_SECTION, PAGE, Run, SECTION_LEN, Section,
    Unsound, VERSION, check,
};
use crate::crc::{crc32c, pages};
use crate::wire::{Bytes, Cursor, Malformed, Wire, decode};

/// Why bytes are no image that this library can use.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The source failed.
    #[error("cannot read the image: {0}")]
    Io(#[from] io::Error),
    /// The bytes end too early.
    #[error("the image is cut off in {0}")]
    Truncated(&'static str),
    /// Not an image at all.
    #[error("this is not a process image (the first bytes are not VMADUMP)")]
    NotAnImage,
    /// Made by another generation of the format.
    #[error("the image has format version {0}.{1}; this program reads 1.x")]
    Version(u16, u16),
    /// Made on another architecture.
    #[error("the image is for architecture {0}; this machine is x86_64 (4)")]
    Architecture(u32),
    /// Pages of another size.
    #[error("the image has pages of {0} bytes; this machine has 4096")]
    PageSize(u32),
    /// A checksum does not fit.
    #[error("the image is damaged: the checksum of {0} is wrong")]
    Checksum(&'static str),
    /// A newer program put something in that must be understood.
    #[error("the image has a section of unknown type {0} that must not be skipped; a newer version made it")]
    UnknownSection(u32),
    /// A section is not where or what it must be.
    #[error("the image is damaged: {0}")]
    Malformed(#[from] Malformed),
    /// The parts do not fit together.
    #[error("the image is not sound: {0}")]
    Unsound(#[from] Unsound),
}

/// One block of pages, its data still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageBlock {
    /// The runs, in the order of the data.
    pub runs: Vec<Run>,
    /// Bytes of data.
    pub len: u64,
    /// [`crate::crc::pages`] of the data.
    pub sum: u32,
}

struct SectionHead {
    kind: u32,
    critical: bool,
    len: u64,
    sum: u32,
    table_sum: u32,
}

/// An image being read: first the [`Image`], then block by block.
pub struct Reader<R: Read> {
    from: R,
    number: u32,
    sums: Vec<u8>,
    next: Option<SectionHead>,
    image: Image,
    pages: u64,
    area: usize,
    last: u64,
    done: bool,
    minor: u16,
}

fn exactly<R: Read>(from: &mut R, buf: &mut [u8], what: &'static str) -> Result<(), FormatError> {
    from.read_exact(buf).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => FormatError::Truncated(what),
        _ => FormatError::Io(e),
    })
}

/// Reads `len` bytes; memory grows only as they arrive.
fn payload<R: Read>(from: &mut R, len: u64) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(len.min(64 << 10) as usize);
    let got = from.by_ref().take(len).read_to_end(&mut bytes)? as u64;
    if got == len { Ok(bytes) } else { Err(FormatError::Truncated("a section")) }
}

#[derive(Default)]
struct Parts {
    meta: Option<super::Meta>,
    cpu: Option<super::Cpu>,
    mm: Option<super::Mm>,
    files: Option<Vec<super::FileRef>>,
    areas: Option<Vec<super::Area>>,
    vdso: Option<super::Vdso>,
    vdsos: Option<Vec<super::Vdso>>,
    creds: Option<Vec<super::Creds>>,
    threads: Option<Vec<super::Thread>>,
    signals: Option<super::Signals>,
    timers: Option<super::Timers>,
    process: Option<super::Process>,
    fds: Option<Vec<super::Fd>>,
    processors: Option<Vec<Bytes>>,
    memory_files: Option<Vec<super::MemoryFile>>,
    settings: Option<super::Settings>,
    habits: Option<super::Habits>,
}

fn once<T: Wire>(slot: &mut Option<T>, bytes: &[u8]) -> Result<(), FormatError> {
    if slot.is_some() {
        return Err(Malformed("a section appears twice").into());
    }
    *slot = Some(decode(bytes)?);
    Ok(())
}

/// Reads the header, which is the same whoever's image it is. The minor version of the format.
///
/// # Errors
/// It is none, or of an image that this library cannot use.
pub fn read_header(from: &mut impl Read) -> Result<u16, FormatError> {
    let mut head = [0; HEADER_LEN];
    exactly(from, &mut head, "the header")?;
    if head[..8] != MAGIC {
        return Err(FormatError::NotAnImage);
    }
    let mut cursor = Cursor::new(&head[8..]);
    let (major, minor) = (u16::get(&mut cursor)?, u16::get(&mut cursor)?);
    let (arch, page) = (u32::get(&mut cursor)?, u32::get(&mut cursor)?);
    let _reserved = <[u32; 2]>::get(&mut cursor)?;
    if u32::get(&mut cursor)? != crc32c(&head[..HEADER_LEN - 4]) {
        return Err(FormatError::Checksum("the header"));
    }
    if major != VERSION.0 {
        return Err(FormatError::Version(major, minor));
    }
    if arch != ARCH_X86_64 {
        return Err(FormatError::Architecture(arch));
    }
    if u64::from(page) != PAGE {
        return Err(FormatError::PageSize(page));
    }
    Ok(minor)
}

impl<R: Read> Reader<R> {
    /// Reads everything before the pages and checks that it is sound.
    pub fn new(mut from: R) -> Result<Self, FormatError> {
        let minor = read_header(&mut from)?;
        Self::after_header(from, minor)
    }

    /// [`Self::new`] after [`read_header`].
    pub fn after_header(mut from: R, minor: u16) -> Result<Self, FormatError> {
        let (mut number, mut sums) = (0, Vec::new());
        let mut parts = Parts::default();
        let (mut count, mut total) = (0u32, 0u64);
        let next = loop {
            let head = section_head(&mut from, &mut number, &mut sums)?;
            if head.kind == Section::Pages as u32 || head.kind == Section::End as u32 {
                break Some(head);
            }
            total += head.len;
            count += 1;
            if head.len > MAX_SECTION || total > 2 * MAX_SECTION || count > 256 {
                return Err(Malformed("its sections are larger than any process needs").into());
            }
            let bytes = payload(&mut from, head.len)?;
            if crc32c(&bytes) != head.sum {
                return Err(FormatError::Checksum("a section"));
            }
            parts.take(&head, &bytes)?;
            if head.kind == Section::Front as u32 {
                break None;
            }
        };
        let image = parts.finish()?;
        check::check(&image)?;
        Ok(Reader { from, number, sums, next, image, pages: 0, area: 0, last: 0, done: false, minor })
    }

    /// What the image says about the process.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Minor version of the format.
    pub fn minor(&self) -> u16 {
        self.minor
    }

    /// Where the bytes come from. Between [`Self::block`] and the next call exactly the block's
    /// data must be taken from it.
    pub fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// Ends reading.
    pub fn into_parts(self) -> (Image, R) {
        (self.image, self.from)
    }

    /// The next block's runs, or `None` at the sound end of the image. Its data comes next in [`Self::source`].
    pub fn block(&mut self) -> Result<Option<PageBlock>, FormatError> {
        if self.done {
            return Ok(None);
        }
        loop {
            let head = match self.next.take() {
                Some(head) => head,
                None => section_head(&mut self.from, &mut self.number, &mut self.sums)?,
            };
            if head.kind == Section::End as u32 {
                return self.end(&head).map(|()| None);
            }
            if head.kind == Section::Pages as u32 {
                return self.runs(&head).map(Some);
            }
            if head.critical || head.kind <= Section::End as u32 || head.kind == Section::MemoryFiles as u32 {
                return Err(FormatError::UnknownSection(head.kind));
            }
            if head.len > MAX_SECTION {
                return Err(Malformed("a section is larger than any may be").into());
            }
            payload(&mut self.from, head.len)?;
        }
    }

    /// Reads the data of `block` and verifies it. `into` is reused from block to block.
    pub fn data(&mut self, block: &PageBlock, into: &mut Vec<u8>) -> Result<(), FormatError> {
        into.clear();
        let got = self.from.by_ref().take(block.len).read_to_end(into)? as u64;
        if got != block.len {
            return Err(FormatError::Truncated("the pages"));
        }
        if pages(into) != block.sum {
            return Err(FormatError::Checksum("a block of pages"));
        }
        Ok(())
    }

    fn runs(&mut self, head: &SectionHead) -> Result<PageBlock, FormatError> {
        let mut count = [0; 4];
        exactly(&mut self.from, &mut count, "the pages")?;
        let runs = u32::from_le_bytes(count);
        if runs == 0 || runs > MAX_RUNS {
            return Err(Malformed("a block of pages has an impossible number of runs").into());
        }
        let mut table = count.to_vec();
        table.extend(payload(&mut self.from, u64::from(runs) * 12)?);
        if crc32c(&table) != head.table_sum {
            return Err(FormatError::Checksum("a list of pages"));
        }
        let mut cursor = Cursor::new(&table[4..]);
        let mut list = Vec::with_capacity(runs as usize);
        let mut len = 0;
        for _ in 0..runs {
            let run = Run { start: u64::get(&mut cursor)?, pages: u32::get(&mut cursor)? };
            self.place(run)?;
            len += run.len();
            list.push(run);
        }
        if len > MAX_BLOCK || head.len != len + table.len() as u64 {
            return Err(Malformed("a block of pages is not as long as its runs").into());
        }
        self.pages += len / PAGE;
        Ok(PageBlock { runs: list, len, sum: head.sum })
    }

    /// Runs go upward and lie in one area each.
    fn place(&mut self, run: Run) -> Result<(), FormatError> {
        let end = run.start.checked_add(run.len()).ok_or(Malformed("a run of pages wraps around"))?;
        if run.pages == 0 || !run.start.is_multiple_of(PAGE) || run.start < self.last {
            return Err(Malformed("runs of pages are not in order").into());
        }
        while self.image.areas.get(self.area).is_some_and(|a| a.end <= run.start) {
            self.area += 1;
        }
        match self.image.areas.get(self.area) {
            Some(a) if a.start <= run.start && end <= a.end && a.pages > 0 => {
                self.last = end;
                Ok(())
            }
            _ => Err(Malformed("a run of pages lies outside of the areas").into()),
        }
    }

    fn end(&mut self, head: &SectionHead) -> Result<(), FormatError> {
        if head.len != 12 {
            return Err(Malformed("the end section has the wrong length").into());
        }
        let bytes = payload(&mut self.from, head.len)?;
        if crc32c(&bytes) != head.sum {
            return Err(FormatError::Checksum("the end section"));
        }
        let mut cursor = Cursor::new(&bytes);
        if u64::get(&mut cursor)? != self.pages {
            return Err(Malformed("the number of pages is not as promised").into());
        }
        // The end's own checksum was added last and is not part of the sum.
        let upto = self.sums.len() - 4;
        if u32::get(&mut cursor)? != crc32c(&self.sums[..upto]) {
            return Err(FormatError::Checksum("the whole image"));
        }
        self.done = true;
        Ok(())
    }
}

fn section_head<R: Read>(from: &mut R, number: &mut u32, sums: &mut Vec<u8>) -> Result<SectionHead, FormatError> {
    let mut raw = [0; SECTION_LEN];
    exactly(from, &mut raw, "a section header")?;
    let mut cursor = Cursor::new(&raw);
    let kind = u32::get(&mut cursor)?;
    let flags = u32::get(&mut cursor)?;
    let len = u64::get(&mut cursor)?;
    let (sum, table_sum) = (u32::get(&mut cursor)?, u32::get(&mut cursor)?);
    let position = u32::get(&mut cursor)?;
    if u32::get(&mut cursor)? != crc32c(&raw[..SECTION_LEN - 4]) {
        return Err(FormatError::Checksum("a section header"));
    }
    if position != *number {
        return Err(Malformed("sections are missing or out of order").into());
    }
    *number = number.wrapping_add(1);
    if sums.len() >= 1 << 16 {
        let folded = crc32c(sums);
        sums.clear();
        sums.extend_from_slice(&folded.to_le_bytes());
    }
    sums.extend_from_slice(&sum.to_le_bytes());
    Ok(SectionHead { kind, critical: flags & CRITICAL != 0, len, sum, table_sum })
}

impl Parts {
    fn take(&mut self, head: &SectionHead, bytes: &[u8]) -> Result<(), FormatError> {
        match head.kind {
            1 => once(&mut self.meta, bytes),
            2 => once(&mut self.cpu, bytes),
            3 => once(&mut self.mm, bytes),
            4 => once(&mut self.files, bytes),
            5 => once(&mut self.areas, bytes),
            6 => once(&mut self.vdso, bytes),
            7 => once(&mut self.creds, bytes),
            8 => once(&mut self.threads, bytes),
            9 => once(&mut self.signals, bytes),
            10 => once(&mut self.timers, bytes),
            11 => once(&mut self.process, bytes),
            12 => once(&mut self.fds, bytes),
            15 => once(&mut self.processors, bytes),
            16 => once(&mut self.memory_files, bytes),
            17 => once(&mut self.settings, bytes),
            19 => once(&mut self.habits, bytes),
            20 => once(&mut self.vdsos, bytes),
            kind if head.critical => Err(FormatError::UnknownSection(kind)),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Image, FormatError> {
        let missing = || FormatError::Malformed(Malformed("a section is missing"));
        Ok(Image {
            meta: self.meta.ok_or_else(missing)?,
            cpu: self.cpu.ok_or_else(missing)?,
            mm: self.mm.ok_or_else(missing)?,
            files: self.files.ok_or_else(missing)?,
            areas: self.areas.ok_or_else(missing)?,
            vdso: self.vdso,
            vdsos: self.vdsos.unwrap_or_default(),
            creds: self.creds.ok_or_else(missing)?,
            threads: self.threads.ok_or_else(missing)?,
            signals: self.signals.ok_or_else(missing)?,
            timers: self.timers.ok_or_else(missing)?,
            process: self.process.ok_or_else(missing)?,
            fds: self.fds.ok_or_else(missing)?,
            processors: self.processors.unwrap_or_default(),
            memory_files: self.memory_files.unwrap_or_default(),
            settings: self.settings,
            habits: self.habits,
        })
    }
}
