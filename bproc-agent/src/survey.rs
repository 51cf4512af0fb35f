//! Whether a process can be moved, found out without touching it, while its new place is made: what keeps it is told before it
//! would be stopped.

use bproc_common::id::Pid;
use bproc_proto::{Failure, Rights};
use bproc_sys::process::Process;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;
use vmadump::capture::{FdPolicy, Options, check};
use vmadump::facts::Machine;
use vmadump::{Error, Refusal};

/// Looks until something that passes by itself, mostly, is taken for lasting.
const LOOKS: u32 = 10;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(2);

/// A look at a process, under way.
pub type Survey = JoinHandle<Result<(), Failure>>;

/// What is wanted of a move.
#[derive(Debug)]
pub struct Wishes {
    /// Which read-only mappings travel as data.
    pub flags: u32,
    /// 0: carry open files or refuse; 1: drop what cannot be carried; 2: standard streams only.
    pub files: u32,
    /// What the target said of itself; nothing: any.
    pub target: Vec<u8>,
    /// What the process may have beyond its user's rights; none: whatever it has.
    pub rights: Option<Rights>,
    /// The program that must stand for it, on the master.
    pub ghost: Option<PathBuf>,
}

/// Begins to look, on a thread of its own.
pub fn begin(host_pid: i32, wishes: Wishes) -> Survey {
    tokio::task::spawn_blocking(move || look(host_pid, &wishes))
}

/// What came of it, for whoever wants process `pid` moved.
///
/// # Errors
/// Why it cannot be.
pub async fn passed(survey: Option<Survey>, pid: i32) -> Result<(), Failure> {
    let Some(survey) = survey else { return Ok(()) };
    let result = survey.await.unwrap_or_else(|e| Err(Failure { number: libc::EIO, message: e.to_string() }));
    result.map_err(|failure| {
        let why = failure.message.strip_prefix("refused: ").unwrap_or(&failure.message);
        Failure { number: failure.number, message: format!("process {pid} cannot move: {why}") }
    })
}

fn look(host_pid: i32, wishes: &Wishes) -> Result<(), Failure> {
    let beyond = crate::rights::refusal(host_pid, wishes.rights.as_ref());
    let beyond: Vec<String> = beyond.into_iter().chain(own_root(host_pid, wishes.ghost.as_deref())).collect();
    match (takes(host_pid, wishes), beyond.as_slice()) {
        (Ok(()), []) => Ok(()),
        (Ok(()), more) => Err(Failure { number: libc::EPERM, message: more.join("; ") }),
        (Err(error), []) => Err(Failure { number: error.errno(), message: error.to_string() }),
        (Err(error), more) => Err(Failure { number: error.errno(), message: format!("{error}; {}", more.join("; ")) }),
    }
}

/// Does the target take it, and can it be carried?
fn takes(host_pid: i32, wishes: &Wishes) -> Result<(), Error> {
    if let Some(target) = Machine::decode(&wishes.target) {
        target.takes()?;
    }
    let fds = match wishes.files {
        0 => FdPolicy::Carry,
        1 => FdPolicy::DropOthers,
        _ => FdPolicy::StdioOnly,
    };
    let options = Options { flags: wishes.flags, fds, positions: true };
    let mut looks = LOOKS;
    loop {
        match check(host_pid, &options) {
            // A shell has copies of its descriptors elsewhere for a moment; a child executes a program soon.
            Err(Error::Refused(Refusal::OpenFiles(_) | Refusal::VforkParent(_))) if looks > 1 => looks -= 1,
            checked => return checked,
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why a process cannot move out of the root directory that it has: where it comes to it would have another, and on the
/// master it could not become its ghost.
fn own_root(host_pid: i32, ghost: Option<&Path>) -> Option<String> {
    let process = Process::open(Pid::new(host_pid)?).ok()?;
    let id = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let below =
        |path: &Path| PathBuf::from(format!("/proc/{host_pid}/root")).join(path.strip_prefix("/").unwrap_or(path));
    let same = ghost.is_none_or(|ghost| id(&below(ghost)) == id(ghost));
    let own = !same || !process.root_is_mount().ok()?;
    own.then(|| "it has a root directory of its own (chroot), which would not be that of its stand-in".to_owned())
}
