//! Descriptors: what each leads to, and which can go along.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::FdPolicy;
use super::areas::Layout;
use super::survey::file_ref;
use crate::error::{Error, Refusal, Uncarried};
use crate::image::{Fd, FdKind};
use crate::procfs::fdinfo;
use crate::sys::files;
use crate::sys::process::same_file;

struct Seen {
    fd: i32,
    link: Vec<u8>,
    info: String,
}

fn all(pid: i32) -> Result<Vec<Seen>, Error> {
    let dir = fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|e| crate::sys::SysError::from_io("read the descriptors of", pid, &e))?;
    let mut seen: Vec<Seen> = dir
        .flatten()
        .filter_map(|entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            let link = fs::read_link(entry.path()).ok()?.into_os_string().into_encoded_bytes();
            let info = String::from_utf8(files::read_record(&format!("/proc/{pid}/fdinfo/{fd}")).ok()?).ok()?;
            Some(Seen { fd, link, info })
        })
        .collect();
    seen.sort_by_key(|s| s.fd);
    Ok(seen)
}

/// Refuses processes with descriptors that no policy lets go.
pub(super) fn refuse_kinds(pid: i32) -> Result<(), Error> {
    for seen in all(pid)? {
        match seen.link.as_slice() {
            b"anon_inode:[io_uring]" => return Err(Refusal::IoUring.into()),
            b"anon_inode:[userfaultfd]" => return Err(Refusal::Userfaultfd.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses open files that cannot go along, unless they may be dropped.
pub(super) fn refuse(pid: i32, policy: FdPolicy) -> Result<(), Error> {
    if policy != FdPolicy::Carry {
        return Ok(());
    }
    let mut layout = Layout::default();
    let lost: Vec<Uncarried> = read(pid, policy, &mut layout)?
        .into_iter()
        .filter(|f| f.fd > 2)
        .filter_map(|f| match f.kind {
            FdKind::NotCarried { what } => Some(Uncarried { fd: f.fd, what: what.text() }),
            FdKind::Terminal { path } => Some(Uncarried { fd: f.fd, what: format!("terminal {}", path.text()) }),
            _ => None,
        })
        .collect();
    if lost.is_empty() { Ok(()) } else { Err(Refusal::OpenFiles(lost).into()) }
}

/// The descriptors for the image.
pub(super) fn read(pid: i32, policy: FdPolicy, layout: &mut Layout) -> Result<Vec<Fd>, Error> {
    let mut out: Vec<Fd> = Vec::new();
    let mut regular: Vec<(i32, Vec<u8>)> = Vec::new();
    for seen in all(pid)? {
        if policy == FdPolicy::StdioOnly && seen.fd > 2 {
            break;
        }
        let flags = fdinfo(&seen.info, "flags").and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0);
        let twin = regular.iter().find(|(fd, link)| *link == seen.link && same_file((pid, *fd), (pid, seen.fd)));
        let kind = match twin {
            Some((fd, _)) => FdKind::SameAs { fd: *fd },
            None => kind(pid, &seen, layout),
        };
        // A copy of a standard stream goes along with that, whatever it is.
        if seen.fd <= 2 || matches!(kind, FdKind::Regular { .. } | FdKind::Eventfd { .. } | FdKind::Device { .. }) {
            regular.push((seen.fd, seen.link));
        }
        out.push(Fd { fd: seen.fd, flags, kind });
    }
    Ok(out)
}

fn kind(pid: i32, seen: &Seen, layout: &mut Layout) -> FdKind {
    let lost = |what: &str| FdKind::NotCarried { what: what.as_bytes().to_vec().into() };
    let link = String::from_utf8_lossy(&seen.link).into_owned();
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return match name {
            "[eventfd]" => {
                let count =
                    fdinfo(&seen.info, "eventfd-count").and_then(|c| u64::from_str_radix(c, 16).ok()).unwrap_or(0);
                FdKind::Eventfd { count, semaphore: fdinfo(&seen.info, "eventfd-semaphore") == Some("1") }
            }
            _ => lost(name.trim_matches(['[', ']'])),
        };
    }
    let Ok(meta) = fs::metadata(format!("/proc/{pid}/fd/{}", seen.fd)) else { return lost(&link) };
    let kind = meta.file_type();
    if link.ends_with(" (deleted)") {
        return lost(&format!("deleted file {}", link.trim_end_matches(" (deleted)")));
    }
    if kind.is_file() && seen.link.first() == Some(&b'/') {
        if fdinfo(&seen.info, "lock").is_some() {
            return lost(&format!("locked file {link}"));
        }
        if link.starts_with("/proc/") || link.starts_with("/sys/") {
            return lost(&link);
        }
        let offset = fdinfo(&seen.info, "pos").and_then(|p| p.parse().ok()).unwrap_or(0);
        return match file_ref(pid, &seen.link, meta.ino()) {
            Some(file) => FdKind::Regular { file: layout.file(&file), offset },
            None => lost(&format!("file {link}, which is not at its path any more")),
        };
    }
    let path = || seen.link.clone().into();
    if kind.is_dir() {
        return FdKind::Directory { path: path() };
    }
    if kind.is_char_device() {
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        return match (major, minor) {
            (1, 3 | 5 | 7 | 8 | 9) => FdKind::Device { path: path() },
            (4 | 5 | 136..=143, _) => FdKind::Terminal { path: path() },
            _ => lost(&format!("device {link}")),
        };
    }
    lost(link.split(':').next().unwrap_or("unknown"))
}
