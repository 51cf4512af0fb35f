//! Files that are written at a position which another process shares: where each went on by itself, they would write over
//! each other's output.

use std::fs;
use std::path::Path;

use super::fds::{Seen, numbers, one};
use crate::procfs;
use crate::sys::files;
use crate::sys::process::same_file;

/// A descriptor by which a process writes to a regular file, not always at its end.
#[derive(Debug, Clone)]
pub(super) struct Position {
    fd: i32,
    link: Vec<u8>,
    /// Another process that has the same open file.
    with: Option<i32>,
}

impl Position {
    /// None of other descriptors, and of those that are read only or append.
    pub(super) fn of(pid: i32, seen: &Seen) -> Option<Position> {
        let flags = seen.flags() as i32;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & (libc::O_APPEND | libc::O_PATH) == 0;
        let is_file = || fs::metadata(format!("/proc/{pid}/fd/{}", seen.fd)).is_ok_and(|meta| meta.is_file());
        let found = writes && seen.link.first() == Some(&b'/') && is_file();
        found.then(|| Position { fd: seen.fd, link: seen.link.clone(), with: None })
    }

    /// Of one that is like this one still.
    pub(super) fn is(&self, seen: &Seen) -> bool {
        self.fd == seen.fd && self.link == seen.link
    }

    /// In words, if it is shared.
    pub(super) fn shared(&self) -> Option<String> {
        let with = in_its_space(self.with?);
        let path = String::from_utf8_lossy(&self.link);
        Some(format!(
            "file {path}, open for writing at a position that process {with} shares: close it in one of them, open it for \
             appending, or have the move drop it (bpmove -d)"
        ))
    }

    /// `link` is what descriptor `fd` of the process `other` leads to.
    pub(super) fn compare(&mut self, pid: i32, link: &[u8], (other, fd): (i32, &Path)) {
        if self.with.is_none() && link == self.link {
            let number = fd.file_name().and_then(|name| name.to_str()?.parse().ok());
            let same = number.is_some_and(|number| same_file((pid, self.fd), (other, number)));
            self.with = same.then_some(other);
        }
    }
}

/// The number that a process has for itself.
fn in_its_space(pid: i32) -> i32 {
    let text = files::read_record(&format!("/proc/{pid}/status")).unwrap_or_default();
    procfs::status(&text).ns_pid.last().copied().unwrap_or(pid)
}

/// Another process that has the same open file as descriptor `fd` of the process, if that is a regular file which is written,
/// and not always at its end. Slow where it is: everybody's descriptors are looked at.
pub fn who_shares_position(pid: i32, fd: i32) -> Option<i32> {
    let mut found = Position::of(pid, &one(pid, fd)?)?;
    for other in numbers().into_iter().filter(|other| *other != pid) {
        for at in fs::read_dir(format!("/proc/{other}/fd")).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if let Ok(link) = fs::read_link(&at) {
                found.compare(pid, link.as_os_str().as_encoded_bytes(), (other, &at));
            }
        }
    }
    found.with
}
