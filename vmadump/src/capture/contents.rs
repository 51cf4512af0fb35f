//! Memory files (memfd) of which nobody else has a part: what they hold travels as pages, at addresses that the process
//! does not use.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::areas::Layout;
use super::fds::{Channels, Seen, lost};
use crate::batch::find_hole;
use crate::error::{Error, Refusal};
use crate::image::{Area, AreaKind, FdKind, Image, MemoryFile, PAGE};
use crate::procfs::fdinfo;
use crate::sys::process::get_fd;
use crate::sys::{SysError, memfile};
use crate::wire::Bytes;

/// What a memory file holds, for [`super::Source`].
pub(crate) struct Contents {
    pub(crate) file: File,
    /// Address of its first byte in the image.
    pub(crate) start: u64,
    /// Addresses of what it holds, whole pages.
    pub(crate) parts: Vec<(u64, u64)>,
}

/// Name of a memory file, by what /proc says of a descriptor that leads to it.
pub(super) fn name(link: &[u8]) -> Option<&[u8]> {
    link.strip_prefix(b"/memfd:")?.strip_suffix(b" (deleted)")
}

/// Device and inode of what the descriptor of a process leads to.
pub(super) fn identity(pid: i32, fd: i32) -> Option<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// A descriptor that leads to a memory file.
pub(super) fn descriptor(pid: i32, seen: &Seen, name: &[u8], layout: &mut Layout, own: &Channels) -> FdKind {
    let what = format!("memfd {}", Bytes(name.to_vec()).text());
    let stays = |why: &str| lost(&format!("{what}{why}"));
    let Some(key) = identity(pid, seen.fd) else { return stays("") };
    match own.memory.get(&key) {
        Some(None) => {}
        Some(Some(other)) => return stays(&format!(", which process {other} has, too")),
        None => return stays(", which is new"),
    }
    if seen.flags() & libc::O_PATH as u32 != 0 {
        return stays(", opened as a path only");
    }
    if fdinfo(&seen.info, "lock").is_some() {
        return stays(", locked");
    }
    let Ok(file) = get_fd(pid, seen.fd) else { return stays("") };
    let Some(seals) = memfile::seals(file.as_fd()) else { return stays(" of huge pages") };
    let Ok(meta) = File::from(file).metadata() else { return stays("") };
    let offset = fdinfo(&seen.info, "pos").and_then(|p| p.parse().ok()).unwrap_or(0);
    let index = layout.memory.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
        let object = layout.object_of(key);
        let file =
            MemoryFile { name: Bytes(name.to_vec()), size: meta.len(), mode: meta.mode() & 0o7777, seals, object };
        layout.memory.push((key, file));
        layout.memory.len() - 1
    });
    FdKind::Memory { file: index as u32, offset }
}

/// Gives the contents of memory files their places in the image. `used`: all that the process has.
pub(super) fn lay(pid: i32, image: &mut Image, used: &mut Vec<(u64, u64)>) -> Result<Vec<Contents>, Error> {
    let mut all = Vec::new();
    for index in 0..image.memory_files.len() {
        let (size, object) = (image.memory_files[index].size, image.memory_files[index].object);
        let leads = |kind: &FdKind| matches!(kind, FdKind::Memory { file, .. } if *file as usize == index);
        let Some(fd) = image.fds.iter().find(|fd| leads(&fd.kind)).map(|fd| fd.fd) else { continue };
        let file = File::open(format!("/proc/{pid}/fd/{fd}"))
            .map_err(|e| SysError::from_io("open a memory file of", pid, &e))?;
        // They come once, not with what maps them.
        for area in &mut image.areas {
            if matches!(area.kind, AreaKind::Shared { object: of, .. } if Some(of) == object) {
                area.pages = 0;
            }
        }
        let parts = memfile::parts(&file, size)?;
        if parts.is_empty() {
            continue;
        }
        let len = size.next_multiple_of(PAGE);
        let start = find_hole(used, len).ok_or(Refusal::NoRoom)?;
        used.push((start, start + len));
        let mut pages: Vec<(u64, u64)> = Vec::new();
        for (from, to) in parts {
            let (from, to) = (start + from / PAGE * PAGE, start + to.next_multiple_of(PAGE));
            match pages.last_mut() {
                Some(last) if last.1 >= from => last.1 = to,
                _ => pages.push((from, to)),
            }
        }
        let area = Area {
            start,
            end: start + len,
            prot: 3,
            shared: false,
            advice: 0,
            kind: AreaKind::Contents { file: index as u32 },
            pages: pages.iter().map(|(from, to)| (to - from) / PAGE).sum(),
            name: image.memory_files[index].name.clone(),
        };
        let at = image.areas.partition_point(|other| other.start < start);
        image.areas.insert(at, area);
        all.push(Contents { file, start, parts: pages });
    }
    Ok(all)
}
