//! Who lives on this machine, seen from outside of every space.

use std::fs;
use std::path::{Path, PathBuf};

/// A process as /proc tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Its pid here.
    pub pid: i32,
    /// Its pids from here inwards: the last one is that in its own name space.
    pub pids: Vec<i32>,
    /// Parent's pid here.
    pub ppid: i32,
    /// Letter of its state.
    pub state: char,
    /// The program that it runs; empty for a zombie.
    pub exe: PathBuf,
    /// Its short name.
    pub comm: String,
    /// Its pid name space's inode.
    pub space: u64,
}

impl Proc {
    /// The process with this pid here; `None` when there is none.
    pub fn read(pid: i32) -> Option<Proc> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let space = fs::read_link(format!("/proc/{pid}/ns/pid"))
            .ok()
            .and_then(|link| link.to_str()?.trim_start_matches("pid:[").trim_end_matches(']').parse().ok());
        Some(Proc {
            pid,
            pids: field("NSpid:")?.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
            ppid: field("PPid:")?.parse().ok()?,
            state: field("State:")?.chars().next()?,
            exe: without_mark(exe),
            comm: field("Name:")?.to_owned(),
            space: space.unwrap_or(0),
        })
    }

    /// Its number in its own name space.
    pub fn inner(&self) -> i32 {
        self.pids.last().copied().unwrap_or(self.pid)
    }

    /// True in a pid name space below the machine's.
    pub fn is_inside(&self) -> bool {
        self.pids.len() > 1
    }
}

/// The path of a program that has been replaced or removed meanwhile, too.
fn without_mark(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

/// All processes.
pub fn all() -> Vec<Proc> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Proc::read).collect()
}

/// Those that run a program from below `dir`.
pub fn from_below(dir: &Path) -> Vec<Proc> {
    all().into_iter().filter(|process| process.exe.starts_with(dir)).collect()
}

/// The process that stands behind a ghost of the cluster installed in `dir`: it has the ghost's pid in a space, and
/// its program comes from there, too, or is any program if `dir` is `None`.
pub fn behind(pid: i32, program: Option<&Path>) -> Option<Proc> {
    all().into_iter().find(|process| {
        process.is_inside() && process.inner() == pid && program.is_none_or(|program| process.exe == program)
    })
}

/// Reads a byte of another process's memory, as a debugger does.
///
/// # Errors
/// The number of the error.
pub fn peek(pid: i32) -> Result<u8, i32> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|error| error.raw_os_error().unwrap_or(-1))?;
    // Its program's own first page; an address that is not mapped would be another error.
    let first = maps.split('-').next().and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(libc::ESRCH)?;
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(first), iov_len: 1 };
    // SAFETY: one writable byte here; the other address is only looked up, in the other process.
    let done = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    if done == 1 { Ok(byte) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)) }
}
