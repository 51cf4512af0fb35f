//! Where an image goes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// So many links may lead from one to the next, as the kernel has it.
const MOST_LINKS: u32 = 40;
/// Where an image goes.
pub(crate) enum Output {
    /// What is open already, a pipe, a device: it is written as it is.
    There(File),
    /// A half-written image must never stand under the name of a whole one, and is its user's only, as a core is. Where
    /// the file system allows it, it has no name at all until it is whole, and nothing is left of one that never is.
    New {
        file: File,
        /// The name that it has until it is whole.
        partial: Option<PathBuf>,
        name: PathBuf,
    },
}

/// What a path leads to.
enum End {
    /// A descriptor of this program.
    Own(i32),
    /// A descriptor of another one.
    Other,
    /// What has this path, or will have it.
    Path(PathBuf),
}

impl Output {
    pub(crate) fn open(file: &Path) -> Result<Output, String> {
        let cannot = |e: io::Error| format!("cannot write {}: {e}", file.display());
        if file == Path::new("-") {
            return own(1).map(Output::There).map_err(|e| format!("cannot write to standard output: {e}"));
        }
        let name = match end(file).map_err(cannot)? {
            End::Own(number) => return own(number).map(Output::There).map_err(cannot),
            End::Other => {
                return File::options().write(true).truncate(true).open(file).map(Output::There).map_err(cannot);
            }
            End::Path(name) => name,
        };
        match fs::metadata(file) {
            Ok(there) if there.is_dir() => Err(format!("cannot write {}: it is a directory", file.display())),
            Ok(there) if !there.is_file() => File::options().write(true).open(file).map(Output::There).map_err(cannot),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(cannot(e)),
            _ => {
                let (file, partial) =
                    new_beside(&name).map_err(|e| format!("cannot create {}: {e}", name.display()))?;
                Ok(Output::New { file, partial, name })
            }
        }
    }

    pub(crate) fn file(&self) -> &File {
        match self {
            Output::There(file) | Output::New { file, .. } => file,
        }
    }

    /// It is whole.
    pub(crate) fn keep(&mut self) -> io::Result<()> {
        let Output::New { file, partial, name } = self else { return Ok(()) };
        file.sync_data()?;
        if partial.is_none() {
            *partial = Some(fresh(name, |path| vmadump::give_name(file.as_fd(), path))?.1);
        }
        if let Some(from) = &partial {
            fs::rename(from, name)?;
        }
        *partial = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Output::New { partial: Some(partial), .. } = self {
            let _: io::Result<()> = fs::remove_file(partial);
        }
    }
}

/// One of this program's descriptors, if it can be written to.
fn own(number: i32) -> io::Result<File> {
    let mut file = File::from(vmadump::own_descriptor(number)?);
    // Told before anything is written.
    file.write(&[]).map(|_| file)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Follows links as far as they lead, also to where nothing is yet, but no descriptor's: what its link says is not what it is.
fn end(file: &Path) -> io::Result<End> {
    let mut at = file.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(name) = at.file_name().map(OsStr::to_owned) else { return Ok(End::Path(at)) };
        let dir = fs::canonicalize(folder(&at))?;
        if is_descriptors(&dir) {
            let own = ["/proc/self/fd", "/proc/thread-self/fd"];
            let own = own.iter().any(|own| fs::canonicalize(own).is_ok_and(|own| own == dir));
            return match name.to_str().and_then(|name| name.parse().ok()) {
                Some(number) if own => Ok(End::Own(number)),
                _ => Ok(End::Other),
            };
        }
        at = dir.join(name);
        match fs::read_link(&at) {
            Ok(to) => at = dir.join(to),
            Err(_) => return Ok(End::Path(at)),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Is it a directory of some process's descriptors?
fn is_descriptors(dir: &Path) -> bool {
    let Ok(rest) = dir.strip_prefix("/proc") else { return false };
    let names: Vec<&str> = rest.iter().filter_map(OsStr::to_str).collect();
    matches!(names[..], [_, "fd"] | [_, "task", _, "fd"])
}

/// A new file for its owner alone where `name` will be, and the name that it has meanwhile, if it has one.
fn new_beside(name: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let mut options = File::options();
    options.write(true).mode(0o600);
    match options.custom_flags(libc::O_TMPFILE).open(folder(name)) {
        Ok(file) => return Ok((file, None)),
        // Not every file system has such files.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        Err(e) => return Err(e),
    }
    // Nothing that is there already is taken, and no link followed.
    options.custom_flags(libc::O_NOFOLLOW).create_new(true);
    fresh(name, |path| options.open(path)).map(|(file, path)| (file, Some(path)))
}

/// Makes something with a name in the same directory that nobody has and nobody can guess.
fn fresh<T>(name: &Path, mut make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    loop {
        let chance = RandomState::new().hash_one(name);
        let path = folder(name).join(format!(".vmadump-{chance:016x}"));
        match make(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (made, path)),
        }
    }
}
