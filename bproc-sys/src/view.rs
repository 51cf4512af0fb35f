//! Views: mount namespaces in which a program finds, at their ordinary paths, files that the machine itself does not
//! have there. Made once, entered by every process that wants the same; they last as long as somebody holds or is in
//! them, and leave nothing behind on the machine.
//!
//! A view begins as a copy of another namespace. On it single files are bound over others, and directories are laid
//! over others, read-only. Where even the root directory lacks something, a root of its own is made, with everything
//! of the old one bound into it.

use crate::error::{Error, Result, check, check_long};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
const RESOLVE_IN_ROOT: u64 = 0x10;
const ATTR_RDONLY: u64 = 1;
const ATTR_NOSUID: u64 = 2;
const ATTR_NODEV: u64 = 4;
const ATTR_NOEXEC: u64 = 8;
/// Where the laid files are in a root of its own.
pub const TREE_IN_ROOT: &str = "/.bproc";

/// What is done to a view, in this order. Paths to lay things on are as the program sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The file or directory of the tree stands in the place of what is there.
    Bind(PathBuf),
    /// The directory of the tree is laid over what is there; both can be seen.
    Overlay(PathBuf),
    /// In a root of its own: the tree's entry of the root directory is put beside the others.
    Top(OsString),
}

/// What a view is made from.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The mount namespace to begin with.
    pub from: BorrowedFd<'a>,
    /// The directory that is to be the root, as seen in it.
    pub root: &'a Path,
    /// The files to lay: a directory in which each is where the program shall find it. As seen in `from`.
    pub tree: &'a Path,
    /// `None`: the root stays as it is (then `root` must be `/`). Else an empty directory to build the new one on.
    pub staging: Option<&'a Path>,
    /// Leave the tree visible at [`TREE_IN_ROOT`].
    pub show_tree: bool,
    /// What to lay.
    pub steps: &'a [Step],
}

/// Makes a view: a descriptor of its mount namespace, for setns(2).
///
/// # Errors
/// What fails first, with the path.
pub fn make(plan: Plan<'_>) -> Result<OwnedFd> {
    // Namespaces and root directory of a thread end with it.
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| build(&plan));
        maker.join().unwrap_or_else(|_| Err(Error::new("make a view", libc::EIO)))
    })
}

fn build(plan: &Plan<'_>) -> Result<OwnedFd> {
    // In the namespace, /proc is that of a space in which this thread has no number.
    let own = Own(open_path(Path::new("/proc/thread-self"))?);
    // SAFETY: plain integers; only this thread is meant.
    unsafe {
        check("unshare", libc::unshare(libc::CLONE_FS))?;
        check("setns", libc::setns(plan.from.as_raw_fd(), libc::CLONE_NEWNS))?;
        check("unshare", libc::unshare(libc::CLONE_NEWNS))?;
    }
    match plan.staging {
        Some(staging) => {
            own_root(plan, staging)?;
            for step in plan.steps {
                lay(Path::new(TREE_IN_ROOT), step, &own)?;
            }
            if !plan.show_tree {
                detach(Path::new(TREE_IN_ROOT))?;
                std::fs::remove_dir(TREE_IN_ROOT).map_err(|e| Error::io("remove", &e))?;
            }
            let root = open_path(Path::new("/"))?;
            set_attributes(&root, ATTR_RDONLY, 0, Path::new("/"))?;
        }
        None => plan.steps.iter().try_for_each(|step| lay(plan.tree, step, &own))?,
    }
    own.open(c"ns/mnt").map(OwnedFd::from)
}

/// The directory of this thread in the machine's `/proc`.
struct Own(OwnedFd);

impl Own {
    fn open(&self, name: &CStr) -> Result<File> {
        // SAFETY: the name is NUL-terminated and lives over the call.
        let fd = unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        owned("open what /proc tells of this thread", fd.into(), Path::new("/proc")).map(File::from)
    }
}

/// Makes a root of its own from all that is in the old one.
fn own_root(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(plan.root).map_err(|e| Error::io("read", &e).path(plan.root))?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        entries.push((name, path, meta));
    }
    let mut parts: Vec<(OsString, Part)> = Vec::new();
    for (name, path, meta) in entries {
        let other = other_source(plan.root, &name, &path);
        let part = if meta.is_symlink() {
            Part::Link(std::fs::read_link(&path).map_err(|e| Error::io("read", &e).path(&path))?)
        } else {
            let tree = clone_tree(other.as_deref().unwrap_or(&path), true)?;
            if meta.is_dir() { Part::Dir(tree) } else { Part::File(tree) }
        };
        parts.push((name, part));
    }
    // What no program can do without.
    for name in ["proc", "dev"] {
        if !parts.iter().any(|(n, _)| n == name) {
            parts.push((name.into(), Part::Dir(clone_tree(&Path::new("/").join(name), true)?)));
        }
    }
    let tree = clone_tree(plan.tree, false)?;
    set_attributes(&tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, ATTR_NOEXEC, plan.tree)?;
    mount(c"tmpfs", staging, Some(c"tmpfs"), libc::MS_NODEV | libc::MS_NOSUID, c"mode=0755,size=1m")?;
    for (name, part) in parts {
        let at = staging.join(&name);
        match part {
            Part::Link(target) => {
                std::os::unix::fs::symlink(target, &at).map_err(|e| Error::io("link", &e).path(&at))?
            }
            Part::Dir(tree) => put_dir(&tree, &at)?,
            Part::File(tree) => put_file(&tree, &at)?,
        }
    }
    put_dir(&tree, &staging.join(&TREE_IN_ROOT[1..]))?;
    change_root(staging)
}

enum Part {
    Link(PathBuf),
    Dir(OwnedFd),
    File(OwnedFd),
}

/// Of another root directory `/proc` is the space's in any case, and `/dev` the machine's unless it has one.
fn other_source(root: &Path, name: &OsStr, path: &Path) -> Option<PathBuf> {
    if root == Path::new("/") {
        return None;
    }
    let has_devices = || {
        std::fs::symlink_metadata(path.join("null"))
            .is_ok_and(|null| null.file_type().is_char_device() && null.rdev() != 0)
    };
    let replaced = name == "proc" || (name == "dev" && !has_devices());
    replaced.then(|| Path::new("/").join(name))
}

fn put_dir(tree: &OwnedFd, at: &Path) -> Result<()> {
    match std::fs::create_dir(at) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("make", &e).path(at)),
        _ => {}
    }
    attach(tree, at)
}

fn put_file(tree: &OwnedFd, at: &Path) -> Result<()> {
    File::create(at).map_err(|e| Error::io("make", &e).path(at))?;
    attach(tree, at)
}

fn change_root(new: &Path) -> Result<()> {
    let path = text(new)?;
    // SAFETY: the paths are NUL-terminated and live over the calls.
    unsafe {
        check("chdir", libc::chdir(path.as_ptr())).map_err(|e| e.path(new))?;
        if libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0 {
            // The old root is on top of the new one now.
            check("umount", libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        } else {
            // The machine runs on its initramfs, which nothing can be exchanged for: cover it.
            let none = std::ptr::null::<libc::c_char>();
            check("move", libc::mount(c".".as_ptr(), c"/".as_ptr(), none, libc::MS_MOVE, none.cast()))?;
        }
        check("chroot", libc::chroot(c".".as_ptr()))?;
        check("chdir", libc::chdir(c"/".as_ptr()))?;
    }
    Ok(())
}

fn lay(tree: &Path, step: &Step, own: &Own) -> Result<()> {
    match step {
        Step::Bind(at) => {
            let source = tree.join(at.strip_prefix("/").unwrap_or(at));
            attach(&laid(&source)?, at)
        }
        Step::Top(name) => {
            let (source, at) = (tree.join(name), Path::new("/").join(name));
            let meta = std::fs::symlink_metadata(&source).map_err(|e| Error::io("look at", &e).path(&source))?;
            if meta.is_symlink() {
                let target = std::fs::read_link(&source).map_err(|e| Error::io("read", &e).path(&source))?;
                return std::os::unix::fs::symlink(target, &at).map_err(|e| Error::io("link", &e).path(&at));
            }
            if meta.is_dir() { put_dir(&laid(&source)?, &at) } else { put_file(&laid(&source)?, &at) }
        }
        Step::Overlay(at) => {
            let source = tree.join(at.strip_prefix("/").unwrap_or(at));
            overlay(&source, at, own)
        }
    }
}

/// A clone of a part of the tree that nobody can write to.
fn laid(source: &Path) -> Result<OwnedFd> {
    let clone = clone_tree(source, false)?;
    set_attributes(&clone, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, ATTR_NOEXEC, source)?;
    Ok(clone)
}

/// Lays a directory over another. What is mounted below that stays to be seen.
fn overlay(source: &Path, at: &Path, own: &Own) -> Result<()> {
    let real = std::fs::canonicalize(at).map_err(|e| Error::io("look at", &e).path(at))?;
    let mut below = Vec::new();
    for path in mounts_below(&real, own)? {
        below.push((clone_tree(&path, true)?, path));
    }
    let mut options = b"lowerdir=".to_vec();
    escape(source, &mut options);
    options.push(b':');
    escape(&real, &mut options);
    let options = CString::new(options).map_err(|_| Error::new("mount", libc::EINVAL).path(at))?;
    mount(c"overlay", &real, Some(c"overlay"), libc::MS_RDONLY | libc::MS_NODEV, &options)?;
    below.iter().try_for_each(|(tree, path)| attach(tree, path))
}

fn escape(path: &Path, into: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            into.push(b'\\');
        }
        into.push(*byte);
    }
}

/// Mount points below a directory, those left out that are below another.
fn mounts_below(dir: &Path, own: &Own) -> Result<Vec<PathBuf>> {
    let mut text = Vec::new();
    own.open(c"mountinfo")?.read_to_end(&mut text).map_err(|e| Error::io("read the mounts", &e))?;
    let mut all: Vec<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
        .filter(|point| point.starts_with(dir) && point != dir)
        .collect();
    all.sort();
    all.dedup();
    let mut top: Vec<PathBuf> = Vec::new();
    for point in all {
        if !top.iter().any(|t| point.starts_with(t)) {
            top.push(point);
        }
    }
    Ok(top)
}

/// Blanks and the like are told as `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match digits {
            Some(d) => {
                out.push(d.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::new("use the name", libc::EINVAL).path(path))
}

fn mount(source: &CStr, at: &Path, kind: Option<&CStr>, flags: libc::c_ulong, options: &CStr) -> Result<()> {
    let target = text(at)?;
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all texts are NUL-terminated and live over the call.
    let ret = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, options.as_ptr().cast()) };
    check("mount on", ret).map_err(|e| e.path(at))?;
    Ok(())
}

fn detach(at: &Path) -> Result<()> {
    let path = text(at)?;
    // SAFETY: the path is NUL-terminated and lives over the call.
    check("umount", unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map_err(|e| e.path(at))?;
    Ok(())
}

fn owned(op: &'static str, ret: libc::c_long, path: &Path) -> Result<OwnedFd> {
    let fd = check_long(op, ret).map_err(|e| e.path(path))?;
    // SAFETY: the call returned a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A detached copy of what is at the path.
fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let name = text(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated and lives over the call.
    let ret = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
    owned("clone the mount", ret, path)
}

fn attach(tree: &OwnedFd, at: &Path) -> Result<()> {
    let target = text(at)?;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    // SAFETY: the paths are NUL-terminated and live over the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags)
    };
    check_long("mount on", ret).map_err(|e| e.path(at))?;
    Ok(())
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let name = text(path)?;
    // SAFETY: the path is NUL-terminated and lives over the call.
    let fd = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    owned("open", fd.into(), path)
}

fn set_attributes(tree: &OwnedFd, set: u64, clear: u64, path: &Path) -> Result<()> {
    let attributes: [u64; 4] = [set, clear, 0, 0];
    // SAFETY: the record has the size that is told and lives over the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    check_long("set the flags of the mount", ret).map_err(|e| e.path(path))?;
    Ok(())
}

/// A directory that paths are looked up in as if it were the root: links lead nowhere else.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens it.
    ///
    /// # Errors
    /// It is no directory, or is not there.
    pub fn open(path: &Path) -> Result<Root> {
        Ok(Root(open_path(path)?))
    }

    fn get(&self, path: &Path, flags: i32) -> Result<File> {
        let name = text(path)?;
        let how: [u64; 3] = [(flags | libc::O_CLOEXEC) as u64, 0, RESOLVE_IN_ROOT];
        // SAFETY: path and record live over the call, with the size that is told.
        let ret = unsafe {
            let fd = self.0.as_fd().as_raw_fd();
            libc::syscall(libc::SYS_openat2, fd, name.as_ptr(), how.as_ptr(), size_of_val(&how))
        };
        owned("open", ret, path).map(File::from)
    }

    /// What is at the path, links followed; `None` when there is nothing.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn find(&self, path: &Path) -> Result<Option<std::fs::Metadata>> {
        match self.get(path, libc::O_PATH) {
            Ok(file) => file.metadata().map(Some).map_err(|e| Error::io("look at", &e).path(path)),
            Err(error) if matches!(error.errno(), libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is at the path itself, and where it points if it is a link; `None` when there is nothing.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn find_link(&self, path: &Path) -> Result<Option<Option<PathBuf>>> {
        let file = match self.get(path, libc::O_PATH | libc::O_NOFOLLOW) {
            Ok(file) => file,
            Err(error) if matches!(error.errno(), libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut target = vec![0; libc::PATH_MAX as usize];
        // SAFETY: the kernel writes no more than the length told into memory that lives.
        let got = unsafe { libc::readlinkat(file.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) };
        if got < 0 {
            return Ok(Some(None));
        }
        target.truncate(got as usize);
        Ok(Some(Some(PathBuf::from(OsString::from_vec(target)))))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As open(2).
    pub fn read(&self, path: &Path) -> Result<File> {
        self.get(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)
    }

    /// True for a directory without entries.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_empty(&self, path: &Path) -> Result<bool> {
        let dir = self.get(path, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let mut entries = std::fs::read_dir(link).map_err(|e| Error::io("read", &e).path(path))?;
        Ok(entries.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134"), b"/a b\\");
        let mut out = Vec::new();
        escape(Path::new("/a:b,c"), &mut out);
        assert_eq!(out, b"/a\\:b\\,c");
    }

    #[test]
    fn links_do_not_lead_out_of_a_root() {
        let dir = std::env::temp_dir().join(format!("bproc-view-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        let root = Root::open(&dir).unwrap();
        assert!(root.find(Path::new("link")).unwrap().is_none());
        assert_eq!(root.find_link(Path::new("link")).unwrap(), Some(Some("/etc/passwd".into())));
        assert_eq!(root.find_link(Path::new("etc")).unwrap(), Some(None));
        assert_eq!(root.find_link(Path::new("none")).unwrap(), None);
        assert!(root.is_empty(Path::new("etc")).unwrap());
        assert!(!root.is_empty(Path::new("/")).unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
