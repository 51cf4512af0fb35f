//! What the loader reads of an ELF file: interpreter, wanted libraries, where to look for them. Foreign bytes:
//! whatever does not fit makes the file no ELF file, or the entry not there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most program headers that are looked at.
const MAX_HEADERS: usize = 1024;
/// Bytes of a dynamic section that are looked at.
const MAX_DYNAMIC: u64 = 1 << 20;
/// Longest text.
const MAX_TEXT: usize = 4096;
/// Most libraries that one file may want.
const MAX_NEEDED: usize = 4096;

/// What the loader wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// 64 bits.
    pub wide: bool,
    /// `EM_*`.
    pub machine: u16,
    /// The loader of a program.
    pub interpreter: Option<Vec<u8>>,
    /// Libraries wanted, in their order.
    pub needed: Vec<Vec<u8>>,
    /// Its own name as a library.
    pub soname: Option<Vec<u8>>,
    /// Old search path.
    pub rpath: Option<Vec<u8>>,
    /// Search path.
    pub runpath: Option<Vec<u8>>,
    /// The system's directories are not to be searched.
    pub no_default: bool,
}

struct Reader<'f> {
    file: &'f File,
    wide: bool,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

struct Header {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

impl Reader<'_> {
    fn bytes(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        if at > i64::MAX as u64 - length as u64 {
            return Ok(Vec::new());
        }
        let mut out = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut out[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.truncate(filled);
        Ok(out)
    }

    fn text(&self, at: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = self.bytes(at, MAX_TEXT)?;
        let Some(end) = bytes.iter().position(|b| *b == 0) else { return Ok(None) };
        bytes.truncate(end);
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn headers(&self, head: &[u8]) -> io::Result<Option<Vec<Header>>> {
        let place = match self.wide {
            true => u64_at(head, 32).zip(u16_at(head, 54)).zip(u16_at(head, 56)),
            false => u32_at(head, 28).map(u64::from).zip(u16_at(head, 42)).zip(u16_at(head, 44)),
        };
        let Some(((at, size), count)) = place else { return Ok(None) };
        let (size, count) = (usize::from(size), usize::from(count).min(MAX_HEADERS));
        if size < if self.wide { 56 } else { 32 } {
            return Ok(None);
        }
        let table = self.bytes(at, size * count)?;
        let header = |entry: &[u8]| {
            Some(match self.wide {
                true => Header {
                    kind: u32_at(entry, 0)?,
                    offset: u64_at(entry, 8)?,
                    address: u64_at(entry, 16)?,
                    size: u64_at(entry, 32)?,
                },
                false => Header {
                    kind: u32_at(entry, 0)?,
                    offset: u32_at(entry, 4)?.into(),
                    address: u32_at(entry, 8)?.into(),
                    size: u32_at(entry, 16)?.into(),
                },
            })
        };
        Ok(Some(table.chunks_exact(size).filter_map(header).collect()))
    }

    fn dynamic(&self, from: &Header) -> io::Result<Vec<(u64, u64)>> {
        let bytes = self.bytes(from.offset, from.size.min(MAX_DYNAMIC) as usize)?;
        let entries = bytes.chunks_exact(if self.wide { 16 } else { 8 });
        let entry = |e: &[u8]| match self.wide {
            true => u64_at(e, 0).zip(u64_at(e, 8)),
            false => u32_at(e, 0).map(u64::from).zip(u32_at(e, 4).map(u64::from)),
        };
        Ok(entries.filter_map(entry).take_while(|(tag, _)| *tag != 0).collect())
    }
}

/// Reads a file. `None`: it is no little-endian ELF file.
///
/// # Errors
/// It cannot be read.
pub fn read(file: &File) -> io::Result<Option<Elf>> {
    let mut reader = Reader { file, wide: true };
    let head = reader.bytes(0, 64)?;
    if head.get(..4) != Some(b"\x7fELF") || head.get(5) != Some(&1) {
        return Ok(None);
    }
    reader.wide = match head.get(4) {
        Some(1) => false,
        Some(2) => true,
        _ => return Ok(None),
    };
    let (Some(machine), Some(headers)) = (u16_at(&head, 18), reader.headers(&head)?) else { return Ok(None) };
    let mut elf = Elf { wide: reader.wide, machine, ..Elf::default() };
    let find = |kind| headers.iter().find(|h| h.kind == kind);
    const LOAD: u32 = 1;
    const DYNAMIC: u32 = 2;
    const INTERP: u32 = 3;
    if let Some(header) = find(INTERP) {
        elf.interpreter = reader.text(header.offset)?;
    }
    let Some(dynamic) = find(DYNAMIC) else { return Ok(Some(elf)) };
    let entries = reader.dynamic(dynamic)?;
    let value = |wanted: u64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let in_file = |address: u64| {
        let inside = |h: &&Header| h.kind == LOAD && address >= h.address && address - h.address < h.size;
        headers.iter().find(inside).and_then(|h| (address - h.address).checked_add(h.offset))
    };
    let Some(texts) = value(5).and_then(in_file) else { return Ok(Some(elf)) };
    let text = |offset: Option<u64>| match offset.and_then(|o| texts.checked_add(o)) {
        Some(at) => reader.text(at),
        None => Ok(None),
    };
    for (_, offset) in entries.iter().filter(|(tag, _)| *tag == 1).take(MAX_NEEDED) {
        elf.needed.extend(text(Some(*offset))?);
    }
    elf.soname = text(value(14))?;
    elf.rpath = text(value(15))?;
    elf.runpath = text(value(29))?;
    elf.no_default = value(0x6fff_fffb).is_some_and(|flags| flags & 0x800 != 0);
    Ok(Some(elf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_program_of_this_machine_is_read() {
        let own = read(&File::open("/proc/self/exe").unwrap()).unwrap().unwrap();
        assert!(own.interpreter.is_some() && own.needed.iter().any(|n| n.starts_with(b"libc.")));
    }

    #[test]
    fn what_is_damaged_does_no_harm() {
        let good = std::fs::read("/proc/self/exe").unwrap();
        let mut state = 1u64;
        for round in 0..300 {
            let mut bytes = good[..4096.min(good.len())].to_vec();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % 512;
                bytes[at.max(6)] = (state >> 20) as u8;
            }
            bytes.truncate(if round % 3 == 0 { round } else { bytes.len() });
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            read(&file).unwrap();
        }
        let text = tempfile::tempfile().unwrap();
        assert_eq!(read(&text).unwrap(), None);
    }
}
