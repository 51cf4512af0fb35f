//! Files that are nothing but memory: what they are, and where they hold anything.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{SysError, done};

/// F_SEAL_* of a memory file; none where it is of huge pages, or no such file at all.
pub(crate) fn seals(file: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: all zero is a valid value, which the call fills; both outlive it.
    let (ret, kind, seals) = unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        let ret = libc::fstatfs(file.as_raw_fd(), &raw mut about);
        (ret, about.f_type, libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS))
    };
    (ret == 0 && kind == libc::TMPFS_MAGIC && seals >= 0).then_some(seals as u32)
}

/// Parts of a file of `size` bytes that are no holes: first byte, byte after the last.
pub(crate) fn parts(file: &File, size: u64) -> Result<Vec<(u64, u64)>, SysError> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < size {
        // SAFETY: no memory involved.
        let from = unsafe { libc::lseek(file.as_raw_fd(), at as i64, libc::SEEK_DATA) };
        if from < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) {
            break;
        }
        let from = done(from, "look for the contents of a memory file", 0)? as u64;
        // SAFETY: no memory involved.
        let to = unsafe { libc::lseek(file.as_raw_fd(), from as i64, libc::SEEK_HOLE) };
        let to = (done(to, "look for the contents of a memory file", 0)? as u64).min(size);
        if to <= from {
            break;
        }
        all.push((from, to));
        at = to;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd};
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_not_read() {
        // SAFETY: a new descriptor of ours.
        let file = unsafe {
            let fd = libc::memfd_create(c"some".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        file.set_len(1 << 30).unwrap();
        assert_eq!(parts(&file, 1 << 30).unwrap(), []);
        file.write_all_at(b"x", 5).unwrap();
        file.write_all_at(b"y", (1 << 30) - 3).unwrap();
        let parts = parts(&file, 1 << 30).unwrap();
        assert_eq!((parts[0].0, parts.last().unwrap().1), (0, 1 << 30));
        assert!(parts.iter().map(|(from, to)| to - from).sum::<u64>() < 8 << 20);
        assert_eq!(seals(file.as_fd()), Some(0));
        assert_eq!(seals(std::io::stdin().as_fd()), None);
    }
}
