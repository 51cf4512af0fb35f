//! Finding the program as a shell would.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::AccessFlags;

/// Where programs are looked for when PATH is not set.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// Why there is no such program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// Nowhere on PATH.
    Command,
    /// The path that was given does not exist.
    File,
    /// It may not be executed.
    Permission,
    /// It is a directory.
    Directory,
}

impl NotFound {
    /// Exit status, as a shell's.
    pub(crate) fn status(self) -> i32 {
        match self {
            NotFound::Command | NotFound::File => 127,
            NotFound::Permission | NotFound::Directory => 126,
        }
    }
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotFound::Command => "command not found",
            NotFound::File => "No such file or directory",
            NotFound::Permission => "Permission denied",
            NotFound::Directory => "Is a directory",
        })
    }
}

fn check(path: &Path) -> Result<(), NotFound> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => NotFound::Permission,
        _ => NotFound::File,
    })?;
    if metadata.is_dir() {
        return Err(NotFound::Directory);
    }
    nix::unistd::faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|_| NotFound::Permission)
}

/// The path of a program, as a shell would give it to exec. A name with a slash is not looked up; `path` is the value of
/// PATH, in which an empty entry means `cwd`.
///
/// # Errors
/// As a shell tells them: what is found but cannot be run is remembered while the search goes on.
pub(crate) fn find(name: &OsStr, path: Option<&OsStr>, cwd: &Path) -> Result<PathBuf, NotFound> {
    if name.as_bytes().contains(&b'/') {
        return check(&cwd.join(name)).map(|()| name.into());
    }
    let mut why = NotFound::Command;
    if name.is_empty() {
        return Err(why);
    }
    for dir in path.map_or(DEFAULT_PATH, OsStr::as_bytes).split(|b| *b == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        let found = PathBuf::from(OsStr::from_bytes(dir)).join(name);
        match check(&cwd.join(&found)) {
            Ok(()) => return Ok(found),
            Err(NotFound::Permission) => why = NotFound::Permission,
            Err(_) => {}
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(name: &str, path: &str) -> Result<PathBuf, NotFound> {
        find(OsStr::new(name), Some(OsStr::new(path)), Path::new("/bin"))
    }

    #[test]
    fn as_a_shell_finds_it() {
        assert_eq!(look("sh", "/nowhere:/bin:/usr/bin"), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(look("sh", "/nowhere:"), Ok(PathBuf::from("./sh")));
        assert_eq!(look("./sh", "/nowhere"), Ok(PathBuf::from("./sh")));
        assert_eq!(look("no-such-program", "/bin"), Err(NotFound::Command));
        assert_eq!(look("/no/such", ""), Err(NotFound::File));
        assert_eq!(look("/etc", ""), Err(NotFound::Directory));
        assert_eq!(look("/etc/passwd", ""), Err(NotFound::Permission));
        assert_eq!(look("passwd", "/etc"), Err(NotFound::Permission));
        assert_eq!(look("", "/bin"), Err(NotFound::Command));
    }
}
