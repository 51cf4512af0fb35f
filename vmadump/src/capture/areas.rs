//! Mappings become areas of the image: what travels as data, what as a file reference, what not at all.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{DUMP_EXEC, DUMP_LIBS, DUMP_OTHER};
use crate::error::Refusal;
use crate::image::{Area, AreaKind, FileRef, MemoryFile, TASK_END, advice};
use crate::procfs::{self, Map};
use crate::wire::Bytes;

/// The memory of a process as the image will have it.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    /// All mappings, vdso and the like too.
    pub(crate) maps: Vec<Map>,
    pub(crate) areas: Vec<Area>,
    pub(crate) files: Vec<FileRef>,
    /// Of each area: bytes from its start that can be read (a file may end before its mapping does).
    pub(crate) readable: Vec<u64>,
    /// Objects that must not be shared with anyone: device, inode, name.
    objects: Vec<((u32, u32), u64, String)>,
    /// Memory files that descriptors lead to: device, inode.
    pub(crate) memory: Vec<((u64, u64), MemoryFile)>,
}

const ADVICE: [(&[u8; 2], u32); 11] = [
    (b"lo", advice::LOCKED),
    (b"lf", advice::LOCKED_LATE),
    (b"dc", advice::DONT_FORK),
    (b"dd", advice::DONT_DUMP),
    (b"hg", advice::HUGE),
    (b"nh", advice::NO_HUGE),
    (b"wf", advice::WIPE_ON_FORK),
    (b"mg", advice::MERGEABLE),
    (b"nr", advice::NO_RESERVE),
    (b"sr", advice::SEQUENTIAL),
    (b"rr", advice::RANDOM),
];

fn refuse(map: &Map) -> Result<(), Refusal> {
    let name = || String::from_utf8_lossy(&map.name).into_owned();
    if map.name.starts_with(b"anon_inode:[io_uring]") {
        return Err(Refusal::IoUring);
    }
    if map.name.starts_with(b"/[aio]") {
        return Err(Refusal::Aio);
    }
    if map.has(b"um") || map.has(b"uw") || map.has(b"ui") {
        return Err(Refusal::Userfaultfd);
    }
    if map.has(b"ht") {
        return Err(Refusal::HugeTlb(map.start));
    }
    if map.has(b"sl") && map.name != b"[uprobes]" {
        return Err(Refusal::SealedMemory(map.start));
    }
    if map.has(b"ss") {
        return Err(Refusal::ShadowStack);
    }
    if map.name.starts_with(b"/secretmem") {
        return Err(Refusal::SecretMemory);
    }
    let device = map.name.starts_with(b"/dev/") && map.name != b"/dev/zero" && !map.name.starts_with(b"/dev/shm/");
    if map.has(b"io")
        || map.has(b"pf")
        || device
        || map.name.starts_with(b"anon_inode:")
        || map.name.starts_with(b"socket:")
    {
        return Err(Refusal::DeviceMapping(name()));
    }
    Ok(())
}

/// Which dump flag decides about a file.
fn class(path: &[u8], exe: &[u8]) -> u32 {
    let below =
        |dir: &[u8]| path.strip_prefix(dir).is_some_and(|rest| matches!(rest.first(), Some(b'/' | b'3' | b'6' | b'x')));
    if path == exe {
        DUMP_EXEC
    } else if below(b"/lib") || below(b"/usr/lib") {
        DUMP_LIBS
    } else {
        DUMP_OTHER
    }
}

impl Layout {
    pub(crate) fn new(
        maps: Vec<Map>,
        known: &HashMap<Vec<u8>, FileRef>,
        travels: impl Fn(&FileRef, u32) -> bool,
        exe: &[u8],
    ) -> Result<Self, Refusal> {
        let (mut out, mut why) = (Layout::default(), Vec::new());
        let vdso = procfs::vdso_of(&maps).map(|(first, code)| (first, code.end));
        for map in &maps {
            if map.start >= TASK_END || vdso.is_some_and(|(from, to)| map.start >= from && map.end <= to) {
                continue;
            }
            if map.name.starts_with(b"[vvar") || map.name == b"[vdso]" {
                continue;
            }
            // Left by an undump from inside; nobody uses it.
            if map.name == b"[anon:vmadump]" {
                continue;
            }
            let carried = refuse(map).and_then(|()| out.add(map, known, &travels, exe));
            why.extend(carried.err());
        }
        if let Some(refusal) = Refusal::all(why) {
            return Err(refusal);
        }
        if let Some(file) = known.get(exe) {
            out.file(file);
        }
        out.maps = maps;
        Ok(out)
    }

    /// Index of a file in the table.
    pub(crate) fn file(&mut self, file: &FileRef) -> u32 {
        let at = self.files.iter().position(|f| f == file).unwrap_or_else(|| {
            self.files.push(file.clone());
            self.files.len() - 1
        });
        at as u32
    }

    fn add(
        &mut self,
        map: &Map,
        known: &HashMap<Vec<u8>, FileRef>,
        travels: &impl Fn(&FileRef, u32) -> bool,
        exe: &[u8],
    ) -> Result<(), Refusal> {
        let len = map.end - map.start;
        let mut readable = len;
        let known = known.get(&map.name).filter(|_| !map.deleted);
        let memory = map.deleted
            || map.name.starts_with(b"/dev/shm/")
            || map.name.starts_with(b"/dev/zero")
            || map.name.starts_with(b"/memfd:")
            || map.name.starts_with(b"[anon_shmem");
        let kind = if map.inode == 0 {
            AreaKind::Anon
        } else if map.shared && (memory || map.name.starts_with(b"/SYSV")) {
            let object = self.objects.iter().position(|o| (o.0, o.1) == (map.dev, map.inode)).unwrap_or_else(|| {
                self.objects.push((map.dev, map.inode, String::from_utf8_lossy(&map.name).into_owned()));
                self.objects.len() - 1
            });
            AreaKind::Shared { object: object as u32, offset: map.offset }
        } else if map.shared && map.prot & 2 != 0 {
            return Err(Refusal::SharedFile(String::from_utf8_lossy(&map.name).into_owned()));
        } else {
            match known {
                Some(file) if map.prot & 2 == 0 && !travels(file, class(&map.name, exe)) => {
                    AreaKind::File { file: self.file(file), offset: map.offset }
                }
                Some(file) => {
                    readable = len.min(file.size.saturating_sub(map.offset).next_multiple_of(crate::image::PAGE));
                    AreaKind::Data
                }
                None => AreaKind::Data,
            }
        };
        let mut bits = ADVICE.iter().filter(|(f, _)| map.has(f)).fold(0, |all, (_, bit)| all | bit);
        if map.has(b"gd") || map.name == b"[stack]" {
            bits |= advice::GROWS_DOWN;
        }
        let shared = map.shared && kind != AreaKind::Data;
        self.readable.push(readable);
        self.areas.push(Area {
            start: map.start,
            end: map.end,
            prot: map.prot,
            shared,
            advice: bits,
            kind,
            pages: 0,
            name: Bytes(map.name.clone()),
        });
        Ok(())
    }

    /// Before [`super::Source::new`]: how many pages the areas have at most, for files may end early.
    pub(crate) fn tell_readable(&self, image: &mut crate::image::Image) {
        for (area, len) in image.areas.iter_mut().zip(&self.readable) {
            area.pages = len / crate::image::PAGE;
        }
    }

    /// Has it memory that somebody could share?
    pub(crate) fn shares(&self) -> bool {
        !self.objects.is_empty()
    }

    /// Number of the shared memory that is this file (device, inode).
    pub(crate) fn object_of(&self, (dev, inode): (u64, u64)) -> Option<u32> {
        let of = (libc::major(dev), libc::minor(dev));
        self.objects.iter().position(|o| (o.0, o.1) == (of, inode)).map(|at| at as u32)
    }

    /// Refuses memory that another process maps too.
    pub(crate) fn alone(&self, pid: i32) -> Result<(), Refusal> {
        if self.objects.is_empty() {
            return Ok(());
        }
        let owner = |pid: i32| fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).ok();
        let mine = owner(pid);
        let Ok(dir) = fs::read_dir("/proc") else { return Ok(()) };
        let all = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        // Whoever shares memory got it by fork or from the same user.
        self.alone_among(all.filter(|other| *other != pid && owner(*other) == mine))
    }

    /// Refuses memory that one of these maps too.
    pub(crate) fn alone_among(&self, others: impl Iterator<Item = i32>) -> Result<(), Refusal> {
        for other in others {
            let Ok(text) = fs::read(format!("/proc/{other}/maps")) else { continue };
            for map in procfs::maps(&text).iter().filter(|m| m.inode != 0) {
                if let Some((.., what)) = self.objects.iter().find(|o| (o.0, o.1) == (map.dev, map.inode)) {
                    return Err(Refusal::SharedMemory { what: what.clone(), with: other });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_decide_by_place() {
        assert_eq!(class(b"/usr/lib/x86_64-linux-gnu/libc.so.6", b"/bin/a"), DUMP_LIBS);
        assert_eq!(class(b"/lib64/ld.so", b"/bin/a"), DUMP_LIBS);
        assert_eq!(class(b"/bin/a", b"/bin/a"), DUMP_EXEC);
        assert_eq!(class(b"/library/a", b"/bin/a"), DUMP_OTHER);
    }

    #[test]
    fn a_device_and_a_ring_are_refused() {
        let maps = procfs::maps(b"1000000-1001000 rw-s 00000000 00:0d 5 /dev/dri/card0\n");
        assert!(matches!(Layout::new(maps, &HashMap::new(), |_, _| false, b""), Err(Refusal::DeviceMapping(_))));
        let maps = procfs::maps(b"1000000-1001000 rw-s 00000000 00:0d 5 anon_inode:[io_uring]\n");
        assert!(matches!(Layout::new(maps, &HashMap::new(), |_, _| false, b""), Err(Refusal::IoUring)));
    }
}
