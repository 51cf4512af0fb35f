//! The initramfs: a tree described in memory, written as a `newc` archive.
//!
//! Device nodes and root's ownership are mere numbers in it, so an ordinary
//! user can make one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

enum Node {
    Directory(u32),
    Bytes(u32, Vec<u8>),
    Copy(u32, u32, PathBuf),
    Link(String),
    Device(u32, u32, u32),
}

/// A root file system in the making. Later additions replace earlier ones.
#[derive(Default)]
pub(super) struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// Path inside the archive: absolute, merged `/usr`, no `.` or `..`.
    fn inside(path: &str) -> String {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                other => parts.push(other),
            }
        }
        let merged = parts.len() > 1 && matches!(parts[0], "bin" | "sbin" | "lib" | "lib64");
        let path = parts.join("/");
        if merged { format!("usr/{path}") } else { path }
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = Self::inside(path);
        let mut parent = path.as_str();
        while let Some((head, _)) = parent.rsplit_once('/') {
            self.nodes.entry(head.to_owned()).or_insert(Node::Directory(0o755));
            parent = head;
        }
        self.nodes.insert(path, node);
    }

    /// True if something is there already.
    pub(super) fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(&Self::inside(path))
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, Node::Directory(mode));
    }

    /// Adds a file with this content.
    pub(super) fn bytes(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.add(path, Node::Bytes(mode, content.into()));
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link(target.to_owned()));
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.add(path, Node::Device(mode, major, minor));
    }

    /// Adds a copy of a file of the host (through symbolic links).
    pub(super) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let meta = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        // Python compares the time of a source with its compiled form.
        let time = u32::try_from(meta.mtime()).unwrap_or(0);
        self.add(path, Node::Copy(mode, time, from.to_owned()));
        Ok(())
    }

    /// Adds a directory of the host with all that is in it, links as links;
    /// returns the files copied.
    pub(super) fn tree(&mut self, path: &str, from: &Path) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        self.directory(path, 0o755);
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                bail!("{} has a name that is not UTF-8", entry.path().display());
            };
            let place = format!("{path}/{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                files.extend(self.tree(&place, &entry.path())?);
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.link(&place, &target.to_string_lossy());
            } else if kind.is_file() {
                self.copy(&place, &entry.path())?;
                files.push(entry.path());
            }
        }
        Ok(files)
    }

    /// Writes the archive to a file; returns its size in bytes.
    pub(super) fn write(&self, path: &Path) -> Result<u64> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut out = Writer { out: BufWriter::with_capacity(1 << 20, file), size: 0, inode: 0 };
        for (name, node) in &self.nodes {
            out.node(name, node).with_context(|| format!("cannot put {name} into {}", path.display()))?;
        }
        out.header("TRAILER!!!", Meta::default())?;
        out.out.flush()?;
        Ok(out.size)
    }
}

/// What a header says beside the name.
#[derive(Clone, Copy, Default)]
struct Meta {
    mode: u32,
    time: u32,
    size: u32,
    device: (u32, u32),
}

struct Writer<W: Write> {
    out: W,
    size: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    fn node(&mut self, name: &str, node: &Node) -> io::Result<()> {
        let mut meta = Meta::default();
        match node {
            Node::Directory(mode) => {
                meta.mode = 0o040_000 | mode;
                self.header(name, meta)
            }
            Node::Bytes(mode, bytes) => {
                meta.mode = 0o100_000 | mode;
                self.content(name, meta, bytes)
            }
            Node::Copy(mode, time, from) => {
                let mut file = File::open(from)?;
                let size = file.metadata()?.len();
                meta.mode = 0o100_000 | mode;
                meta.time = *time;
                meta.size = length(size)?;
                self.header(name, meta)?;
                let copied = io::copy(&mut file, &mut self.out)?;
                self.size += copied;
                if copied != size {
                    return Err(io::Error::other(format!("{} changed while it was read", from.display())));
                }
                self.pad()
            }
            Node::Link(target) => {
                meta.mode = 0o120_777;
                self.content(name, meta, target.as_bytes())
            }
            Node::Device(mode, major, minor) => {
                meta.mode = 0o020_000 | mode;
                meta.device = (*major, *minor);
                self.header(name, meta)
            }
        }
    }

    fn content(&mut self, name: &str, mut meta: Meta, bytes: &[u8]) -> io::Result<()> {
        meta.size = length(bytes.len() as u64)?;
        self.header(name, meta)?;
        self.data(bytes)?;
        self.pad()
    }

    fn header(&mut self, name: &str, meta: Meta) -> io::Result<()> {
        self.inode += 1;
        let directory = meta.mode & 0o170_000 == 0o040_000;
        let fields: [u32; 13] = [
            self.inode,
            meta.mode,
            0, // uid
            0, // gid
            if directory { 2 } else { 1 },
            meta.time,
            meta.size,
            0, // device of the file: two numbers
            0,
            meta.device.0,
            meta.device.1,
            length(name.len() as u64 + 1)?,
            0, // checksum, which this format does not use
        ];
        self.data(b"070701")?;
        for field in fields {
            self.data(format!("{field:08x}").as_bytes())?;
        }
        self.data(name.as_bytes())?;
        self.data(&[0])?;
        self.pad()
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Headers and contents end at a multiple of four.
    fn pad(&mut self) -> io::Result<()> {
        let rest = (4 - self.size % 4) % 4;
        self.data(&[0; 3][..rest as usize])
    }
}

fn length(size: u64) -> io::Result<u32> {
    u32::try_from(size).map_err(|_| io::Error::other("larger than 4 GiB"))
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn merges_usr_and_makes_parents() {
        let mut archive = Archive::default();
        archive.bytes("/lib64/../bin/./x", 0o755, "hello");
        assert!(archive.has("/usr/bin/x"));
        assert!(archive.has("/bin/x"));
        assert!(archive.has("/usr/bin"));
        assert!(!archive.has("/bin"));
    }

    #[test]
    fn archive_is_aligned_and_ends_with_the_trailer() {
        let path = std::env::temp_dir().join(format!("bproc-cpio-{}", std::process::id()));
        let mut archive = Archive::default();
        archive.bytes("/a", 0o644, "12345");
        archive.link("/b", "a");
        archive.device("/null", 0o666, 1, 3);
        let size = archive.write(&path).expect("written");
        let bytes = std::fs::read(&path).expect("read back");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(size % 4, 0);
        assert_eq!(bytes.windows(6).filter(|w| w == b"070701").count(), 4);
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
