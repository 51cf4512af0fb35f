//! Writes an image to any `Write`, front to back.

use std::io::{self, Write};

use super::{ARCH_X86_64, CRITICAL, HEADER_LEN, Image, MAGIC, PAGE, Run, SECTION_LEN, Section, VERSION};
use crate::crc::{crc32c, pages};
use crate::wire::{Wire, encode};

/// An image being written.
pub struct Writer<W: Write> {
    out: W,
    number: u32,
    sums: Vec<u8>,
    pages: u64,
    bytes: u64,
}

/// The first bytes of every image of this version.
pub fn header() -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER_LEN);
    head.extend_from_slice(&MAGIC);
    VERSION.0.put(&mut head);
    VERSION.1.put(&mut head);
    ARCH_X86_64.put(&mut head);
    (PAGE as u32).put(&mut head);
    [0u32; 2].put(&mut head);
    crc32c(&head).put(&mut head);
    head
}

impl<W: Write> Writer<W> {
    /// Writes the header and all sections but the pages.
    pub fn new(mut out: W, image: &Image) -> io::Result<Self> {
        out.write_all(&header())?;
        Self::after_header(out, image)
    }

    /// After [`header`]: writes all sections but the pages, and flushes, so that a target can build while the pages are
    /// still being read.
    pub fn after_header(out: W, image: &Image) -> io::Result<Self> {
        let mut writer = Writer { out, number: 0, sums: Vec::new(), pages: 0, bytes: HEADER_LEN as u64 };
        let mut front = Vec::new();
        let mut add = |writer: &mut Self, kind, critical, payload: Vec<u8>| {
            let sum = crc32c(&payload);
            front.extend(writer.section_head(kind, critical, payload.len() as u64, sum, 0));
            front.extend(payload);
        };
        add(&mut writer, Section::Meta, true, encode(&image.meta));
        add(&mut writer, Section::Cpu, true, encode(&image.cpu));
        add(&mut writer, Section::Mm, true, encode(&image.mm));
        add(&mut writer, Section::Files, true, encode(&image.files));
        add(&mut writer, Section::Areas, true, encode(&image.areas));
        if let Some(vdso) = &image.vdso {
            add(&mut writer, Section::Vdso, true, encode(vdso));
        }
        add(&mut writer, Section::Creds, true, encode(&image.creds));
        add(&mut writer, Section::Threads, true, encode(&image.threads));
        add(&mut writer, Section::Signals, true, encode(&image.signals));
        add(&mut writer, Section::Timers, true, encode(&image.timers));
        add(&mut writer, Section::Process, true, encode(&image.process));
        add(&mut writer, Section::Fds, true, encode(&image.fds));
        if !image.processors.is_empty() {
            add(&mut writer, Section::Processors, false, encode(&image.processors));
        }
        if !image.memory_files.is_empty() {
            add(&mut writer, Section::MemoryFiles, true, encode(&image.memory_files));
        }
        if let Some(settings) = &image.settings {
            add(&mut writer, Section::Settings, false, encode(settings));
        }
        if let Some(habits) = &image.habits {
            add(&mut writer, Section::Habits, false, encode(habits));
        }
        if !image.vdsos.is_empty() {
            add(&mut writer, Section::Vdsos, true, encode(&image.vdsos));
        }
        add(&mut writer, Section::Front, false, Vec::new());
        writer.emit(&front)?;
        writer.out.flush()?;
        Ok(writer)
    }

    /// Writes one block: the pages of `runs`, one after the other in `data`.
    pub fn block(&mut self, runs: &[Run], data: &[u8]) -> io::Result<()> {
        let mut table = Vec::with_capacity(4 + 12 * runs.len());
        (runs.len() as u32).put(&mut table);
        for run in runs {
            run.start.put(&mut table);
            run.pages.put(&mut table);
        }
        let table_sum = crc32c(&table);
        let len = (table.len() + data.len()) as u64;
        let mut front = self.section_head(Section::Pages, true, len, pages(data), table_sum);
        front.extend(table);
        self.pages += data.len() as u64 / PAGE;
        self.emit(&front)?;
        self.emit(data)
    }

    /// Writes the last section and flushes. Returns the bytes of the image.
    pub fn finish(mut self) -> io::Result<u64> {
        let mut payload = Vec::new();
        self.pages.put(&mut payload);
        crc32c(&self.sums).put(&mut payload);
        let mut all = self.section_head(Section::End, true, payload.len() as u64, crc32c(&payload), 0);
        all.extend(payload);
        self.emit(&all)?;
        self.out.flush()?;
        Ok(self.bytes)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.bytes
    }

    fn emit(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn section_head(&mut self, kind: Section, critical: bool, len: u64, sum: u32, table_sum: u32) -> Vec<u8> {
        let mut head = Vec::with_capacity(SECTION_LEN);
        (kind as u32).put(&mut head);
        (if critical { CRITICAL } else { 0 }).put(&mut head);
        len.put(&mut head);
        sum.put(&mut head);
        table_sum.put(&mut head);
        self.number.put(&mut head);
        crc32c(&head).put(&mut head);
        self.number += 1;
        self.sums.extend_from_slice(&sum.to_le_bytes());
        // The end section sums up what came before it; a long image must not grow this list.
        if self.sums.len() >= 1 << 16 {
            let folded = crc32c(&self.sums);
            self.sums.clear();
            self.sums.extend_from_slice(&folded.to_le_bytes());
        }
        head
    }
}
