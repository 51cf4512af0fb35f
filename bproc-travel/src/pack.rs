//! On the master: packs a program for its way. What was found out once is used again as long as every file and every
//! directory that it came from is as it was: a few calls of stat.

use crate::digest::{Identity, Memo};
use crate::offers::Offers;
use crate::open;
use crate::resolve::{self, Want, bundle};
use bproc_proto::{Failure, Item, Link, Luggage};
use bproc_sys::as_user;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Programs that are remembered.
const MOST: usize = 1024;
/// Symbolic links on the way to one file.
const MAX_LINKS: usize = 40;

/// Programs that are packed at the same time, at most.
const PLACES: usize = 16;

/// Who wants to execute.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What something that was looked at was like.
#[derive(Clone, PartialEq, Eq)]
enum Stamp {
    /// A file, by its content; a directory, by its entries.
    Content(Option<Identity>),
    /// Who may use it.
    Rights(Option<[u64; 5]>),
}

struct Packed {
    stamps: Vec<(PathBuf, Stamp)>,
    items: Vec<Item>,
    /// Looking at them waits for no network.
    local: bool,
    /// Not for everybody: who wants it must show that he may read it, or execute it.
    private: Vec<(PathBuf, i32)>,
}

/// Packs programs.
pub struct Packer {
    memo: Memo,
    offers: Arc<Offers>,
    /// Without a working directory where none was asked for.
    packed: Mutex<HashMap<Want, Arc<Packed>>>,
    /// Programs that are being packed, by [`place_of`].
    at_work: [Mutex<()>; PLACES],
    machine: Vec<u8>,
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    if error.raw_os_error() == Some(libc::EACCES)
        && std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
    {
        return Failure { number: libc::EACCES, message: format!("{}: this is no file", path.display()) };
    }
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    Failure { number: error.raw_os_error().unwrap_or(libc::EIO), message: format!("{}: {words}", path.display()) }
}

fn place_of(want: &Want) -> usize {
    let mut hasher = DefaultHasher::new();
    want.hash(&mut hasher);
    (hasher.finish() % PLACES as u64) as usize
}

fn stamp_content(path: &Path) -> Stamp {
    Stamp::Content(std::fs::metadata(path).ok().map(|meta| Identity::of(&meta)))
}

fn stamp_rights(path: &Path) -> Stamp {
    let rights = |m: std::fs::Metadata| [m.dev(), m.ino(), m.mode().into(), m.uid().into(), m.gid().into()];
    Stamp::Rights(std::fs::metadata(path).ok().map(rights))
}

impl Packer {
    /// With nothing packed yet. What is packed is offered to nodes.
    pub fn new(offers: Arc<Offers>) -> Packer {
        Packer {
            memo: Memo::default(),
            offers,
            packed: Mutex::default(),
            at_work: Default::default(),
            machine: machine(),
        }
    }

    /// The program with all that it is made of. Blocks: reads files that it has not seen yet.
    ///
    /// # Errors
    /// What execve would say to this caller of the program or its interpreter, and of libraries that he may not read.
    pub fn pack(&self, want: Want, caller: &Caller) -> Result<Luggage, Failure> {
        let packed = match self.known(&want, |_| true) {
            Some(packed) => packed,
            None => {
                // Many start the same at once: one of them reads the files.
                let _one = self.at_work[place_of(&anywhere(&want))].lock().unwrap_or_else(PoisonError::into_inner);
                match self.known(&want, |_| true) {
                    Some(packed) => packed,
                    None => self.pack_anew(want, caller)?,
                }
            }
        };
        for (path, mode) in &packed.private {
            as_user::may(caller.uid, caller.gid, &caller.groups, path.as_os_str().as_bytes(), *mode)
                .map_err(|error| failed(path, &error.into()))?;
        }
        Ok(Luggage { items: packed.items.clone(), machine: self.machine.clone(), ..Luggage::default() })
    }

    /// The program if it was packed before, for everybody, from disks of this machine, and nothing has changed since.
    pub fn packed(&self, want: &Want) -> Option<Luggage> {
        let packed = self.known(want, |packed| packed.local && packed.private.is_empty())?;
        Some(Luggage { items: packed.items.clone(), machine: self.machine.clone(), ..Luggage::default() })
    }

    /// What was packed before, fits and is as it was.
    fn known(&self, want: &Want, fits: impl Fn(&Packed) -> bool) -> Option<Arc<Packed>> {
        [&anywhere(want), want].into_iter().find_map(|want| {
            let known = self.packed.lock().unwrap_or_else(PoisonError::into_inner).get(want).cloned();
            known.filter(|packed| fits(packed) && packed.is_valid())
        })
    }

    fn pack_anew(&self, want: Want, caller: &Caller) -> Result<Arc<Packed>, Failure> {
        let found =
            bundle(&want, &|path| open_as(path, caller)).map_err(|missing| failed(&missing.path, &missing.error))?;
        let mut stamps: BTreeMap<PathBuf, Stamp> = BTreeMap::new();
        let mut dirs = BTreeSet::new();
        let (mut items, mut private) = (Vec::new(), Vec::new());
        for (number, part) in found.parts.into_iter().enumerate() {
            // Interpreters of scripts and the loader must be executable, too; libraries need not.
            let mode = if number == 0 { libc::X_OK } else { libc::R_OK };
            let (item, stamp) = self.item(&part.path, part.file, part.companion)?;
            if !is_public(&part.path, mode, &mut dirs) {
                private.push((part.path.clone(), mode));
            }
            stamps.insert(part.path, stamp);
            items.push(item);
        }
        for dir in found.searched {
            let stamp = stamp_content(&dir);
            stamps.insert(dir, stamp);
        }
        for dir in dirs {
            let stamp = stamp_rights(&dir);
            stamps.entry(dir).or_insert(stamp);
        }
        let local = stamps.keys().all(|path| is_local(path));
        let packed = Arc::new(Packed { stamps: stamps.into_iter().collect(), items, local, private });
        let mut all = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(if found.relative { want } else { anywhere(&want) }, packed.clone());
        Ok(packed)
    }

    fn item(&self, path: &Path, file: File, companion: bool) -> Result<(Item, Stamp), Failure> {
        let told = |error: io::Error| failed(path, &error);
        let (identity, digest) = self.memo.digest(&file).map_err(told)?;
        let links = trail(path).map_err(told)?;
        self.offers.offer(digest, path.into(), identity, file);
        let item = Item {
            path: path.as_os_str().as_bytes().to_vec(),
            links,
            digest: digest.0.to_vec(),
            size: identity.size,
            identity: identity.to_wire(),
            companion,
        };
        Ok((item, Stamp::Content(Some(identity))))
    }

    /// Packs files that belong to no program; those that are not there, or are no files, are left out.
    pub fn pack_files(&self, paths: &BTreeSet<PathBuf>) -> Luggage {
        let pack = |path: &PathBuf| {
            let file = open::regular(path).map_err(|error| failed(path, &error))?;
            self.item(path, file, false).map(|(item, _)| item)
        };
        let items = paths.iter().filter_map(|path| match pack(path) {
            Ok(item) => Some(item),
            Err(failure) => {
                tracing::warn!(reason = %failure.message, "a file to keep at hand on nodes is left out");
                None
            }
        });
        Luggage { items: items.collect(), machine: self.machine.clone(), ..Luggage::default() }
    }

    /// The libraries of a program, and its loader; not the program itself.
    ///
    /// # Errors
    /// The program is not there.
    pub fn libraries_of(&self, program: &Path) -> Result<Vec<PathBuf>, Failure> {
        let want = Want { path: program.as_os_str().as_bytes().to_vec(), cwd: b"/".to_vec(), ..Want::default() };
        let found = bundle(&want, &open::regular).map_err(|m| failed(&m.path, &m.error))?;
        Ok(found.parts.into_iter().skip(1).map(|part| part.path).collect())
    }
}

impl Packed {
    fn is_valid(&self) -> bool {
        self.stamps.iter().all(|(path, stamp)| match stamp {
            Stamp::Content(_) => stamp_content(path) == *stamp,
            Stamp::Rights(_) => stamp_rights(path) == *stamp,
        })
    }
}

/// Root is not let into everything (network file systems): then the caller's own rights are tried. What is no file is
/// refused, even though the loader would wait for a FIFO that is named as a library: here, many would wait for it.
fn open_as(path: &Path, caller: &Caller) -> io::Result<File> {
    match open::regular(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let bytes = path.as_os_str().as_bytes();
            let flags = libc::O_RDONLY | open::FLAGS;
            let fd = as_user::open(caller.uid, caller.gid, &caller.groups, b"/", bytes, flags, 0)?;
            open::checked(File::from(fd))
        }
        other => other,
    }
}

/// Everybody may read it (and execute it, if that is asked), and pass through all directories above. Those are noted.
fn is_public(path: &Path, mode: i32, dirs: &mut BTreeSet<PathBuf>) -> bool {
    let wanted = if mode == libc::X_OK { 0o005 } else { 0o004 };
    let mut public = std::fs::metadata(path).is_ok_and(|meta| meta.mode() & wanted == wanted);
    for dir in path.ancestors().skip(1) {
        public &= std::fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0);
        dirs.insert(dir.into());
    }
    public
}

/// True on file systems that are known to be on this machine.
fn is_local(path: &Path) -> bool {
    use nix::sys::statfs;
    let local = [
        statfs::EXT4_SUPER_MAGIC,
        statfs::XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
        statfs::OVERLAYFS_SUPER_MAGIC,
    ];
    match statfs::statfs(path) {
        Ok(found) => local.contains(&found.filesystem_type()),
        // What is not there is where its directory is.
        Err(_) => path.parent().is_some_and(is_local),
    }
}

/// The symbolic links on the way to a file.
fn trail(path: &Path) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    let mut done = PathBuf::from("/");
    let mut rest: Vec<Vec<u8>> = parts(path);
    while let Some(part) = rest.pop() {
        match part.as_slice() {
            b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        let next = done.join(OsStr::from_bytes(&part));
        match std::fs::read_link(&next) {
            Ok(target) => {
                if links.len() >= MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                rest.extend(parts(&target));
                let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
                links.push(Link { path: bytes(&next), target: bytes(&target) });
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => done = next,
            Err(error) => return Err(error),
        }
    }
    Ok(links)
}

/// Parts of a path, the last first.
pub(crate) fn parts(path: &Path) -> Vec<Vec<u8>> {
    let all = path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty());
    let mut out: Vec<Vec<u8>> = all.map(<[u8]>::to_vec).collect();
    out.reverse();
    out
}

/// Tells machines and their starts apart.
pub fn machine() -> Vec<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().as_bytes().to_vec()
}

/// What of an environment the loader heeds, and what program is meant.
pub fn want(path: &[u8], cwd: &[u8], environment: &[Vec<u8>]) -> Want {
    let get = |name: &[u8]| {
        let entry =
            environment.iter().find(|entry| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"=")));
        entry.map(|entry| entry[name.len() + 1..].to_vec()).filter(|value| !value.is_empty())
    };
    Want {
        path: path.to_vec(),
        cwd: cwd.to_vec(),
        library_path: get(b"LD_LIBRARY_PATH"),
        preload: get(b"LD_PRELOAD"),
        search_path: get(b"PATH"),
    }
}

/// For what is the same in all working directories.
fn anywhere(want: &Want) -> Want {
    Want { cwd: Vec::new(), ..want.clone() }
}

/// For tests and tools: the paths of what would travel.
pub fn paths(luggage: &Luggage) -> Vec<&Path> {
    luggage.items.iter().map(|item| Path::new(OsStr::from_bytes(&item.path))).collect()
}

pub use resolve::Want as Wanted;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("s");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let packer = Packer::new(Arc::default());
        let executable = |yes| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(if yes { 0o755 } else { 0o644 }))
                .unwrap();
        };
        executable(true);
        let request = || want(script.as_os_str().as_bytes(), b"/tmp", &[]);
        let caller = Caller::default();
        let one = packer.pack(request(), &caller).unwrap();
        assert!(paths(&one).contains(&Path::new("/bin/sh")));
        assert_eq!(packer.pack(request(), &caller).unwrap(), one);
        std::fs::write(&script, "#!/bin/sh\nexit\n").unwrap();
        assert_ne!(packer.pack(request(), &caller).unwrap().items[0].digest, one.items[0].digest);
        executable(false);
        assert_eq!(packer.pack(request(), &caller).unwrap_err().number, libc::EACCES);
        std::fs::remove_file(&script).unwrap();
        assert_eq!(packer.pack(request(), &caller).unwrap_err().number, libc::ENOENT);
    }

    #[test]
    fn fifos_are_waited_for_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("libc.so.6");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let packer = Packer::new(Arc::default());
        let environment = [[b"LD_LIBRARY_PATH=", dir.path().as_os_str().as_bytes()].concat()];
        let packed = packer.pack(want(b"/bin/sh", b"/", &environment), &Caller::default()).unwrap();
        assert!(!paths(&packed).contains(&fifo.as_path()) && packed.items.len() > 1);
        let failure = packer.pack(want(fifo.as_os_str().as_bytes(), b"/", &[]), &Caller::default()).unwrap_err();
        assert!(failure.number == libc::EACCES && failure.message.ends_with("this is no file"), "{failure:?}");
        assert!(packer.pack_files(&BTreeSet::from([fifo.clone()])).items.is_empty());
        assert!(packer.libraries_of(&fifo).is_err());
    }

    #[test]
    fn interpreters_may_be_named_from_the_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::copy("/bin/true", at(name).join("i")).unwrap();
        }
        std::fs::copy("/bin/true", at("script")).unwrap();
        std::fs::write(at("script"), "#!./i\n").unwrap();
        let packer = Packer::new(Arc::default());
        let pack = |cwd: &str| {
            let want = want(at("script").as_os_str().as_bytes(), at(cwd).as_os_str().as_bytes(), &[]);
            packer.pack(want, &Caller::default())
        };
        for name in ["a", "b", "a"] {
            assert!(paths(&pack(name).unwrap()).contains(&at(name).join("./i").as_path()));
        }
        assert_eq!(pack("").unwrap_err().number, libc::ENOENT);
        // Others are found out about once.
        for cwd in [b"/tmp", b"/usr"] {
            packer.pack(want(b"/bin/true", cwd, &[]), &Caller::default()).unwrap();
        }
        assert_eq!(packer.packed.lock().unwrap().len(), 3);
    }

    #[test]
    fn links_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir(at.join("real")).unwrap();
        std::fs::write(at.join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", at.join("dir")).unwrap();
        std::os::unix::fs::symlink(at.join("dir/file"), at.join("link")).unwrap();
        let links = trail(&at.join("link")).unwrap();
        assert_eq!(links.len(), 2);
        assert_eq!(links[1].target, b"real");
        std::os::unix::fs::symlink("loop", at.join("loop")).unwrap();
        assert_eq!(trail(&at.join("loop")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }
}
