//! Opening files that users name: what is no regular file is not even opened (a FIFO would wait for its other end, a
//! device may do something), and reading waits for nothing that is still to be written.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How a file is opened that may be something else by now. Some regular files, as of tracefs, wait when read without
/// the first.
pub const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a regular file for reading.
///
/// # Errors
/// As open(2); EACCES for what is no regular file, as execve(2) says.
pub fn regular(path: &Path) -> io::Result<File> {
    // What this is, is known before it is opened: nobody can put anything else in its place between the two.
    let place = checked(File::options().read(true).custom_flags(libc::O_PATH).open(path)?)?;
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    checked(File::options().read(true).custom_flags(FLAGS).open(link)?)
}

/// Refuses what is no regular file.
///
/// # Errors
/// EACCES.
pub fn checked(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

/// The bytes of a regular file.
///
/// # Errors
/// As [`regular`]; it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("fifo", at("link")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for path in [at("fifo"), at("link"), at("socket"), at(""), "/dev/null".into()] {
            assert_eq!(regular(&path).unwrap_err().raw_os_error(), Some(libc::EACCES), "{}", path.display());
        }
        std::fs::write(at("file"), "x").unwrap();
        assert_eq!(read(&at("file")).unwrap(), b"x");
        assert_eq!(regular(&at("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}
