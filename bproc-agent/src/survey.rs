//! Whether a process can be moved, found out without touching it, while its new place is made: what keeps it is told before it
//! would be stopped.

use crate::kernel::Kin;
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

/// What is wanted of a move, and who knows what /proc does not tell.
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
    /// On a node: the first process of its space.
    pub init: Option<i32>,
    /// Whom to ask.
    pub kin: Kin,
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

/// What is said of a process whose first thread has ended.
pub fn ended(host_pid: i32, pid: i32) -> Failure {
    let threads = fs::read_dir(format!("/proc/{host_pid}/task")).map_or(0, Iterator::count);
    match threads {
        0 | 1 => Failure { number: libc::ESRCH, message: format!("process {pid} has ended") },
        _ => {
            let refusal = Refusal::FirstThreadEnded;
            let error = Error::from(refusal.clone());
            Failure { number: error.errno(), message: format!("process {pid} cannot move: {refusal}") }
        }
    }
}

fn look(host_pid: i32, wishes: &Wishes) -> Result<(), Failure> {
    let beyond = crate::rights::refusal(host_pid, wishes.rights.as_ref());
    let own = own_root(host_pid, wishes.ghost.as_deref()).into_iter().chain(own_namespaces(host_pid, wishes.init));
    let landlock = landlock(host_pid, &wishes.kin);
    let beyond: Vec<String> = beyond.into_iter().chain(own).chain(landlock).collect();
    match (takes(host_pid, wishes), beyond.as_slice()) {
        (Ok(()), []) => Ok(()),
        (Ok(()), more) => Err(Failure { number: libc::EPERM, message: more.join("; ") }),
        (Err(error), []) => Err(Failure { number: error.errno(), message: error.to_string() }),
        (Err(error), more) => Err(Failure { number: error.errno(), message: format!("{error}; {}", more.join("; ")) }),
    }
}

/// Why a process cannot move whose rules would not: it would be free of them elsewhere, and what stands for it here would not.
pub fn landlock(host_pid: i32, kin: &Kin) -> Option<String> {
    kin.landlock(host_pid).map(|what| format!("it {what}"))
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
            Err(Error::Refused(
                Refusal::OpenFiles(_) | Refusal::VforkParent(_) | Refusal::SharedSpace | Refusal::Executing,
            )) if looks > 1 => looks -= 1,
            checked => return checked,
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why a process cannot move out of namespaces that its place does not have by itself: it would come back into others. On a node
/// those of the space are compared, but for mounts, of which programs that travelled have their own there; on the master
/// those of this agent or of the machine.
fn own_namespaces(host_pid: i32, init: Option<i32>) -> Option<String> {
    const KINDS: [(&str, &str); 7] = [
        ("net", "network"),
        ("uts", "host name"),
        ("ipc", "IPC"),
        ("cgroup", "cgroup"),
        ("user", "user"),
        ("time", "time"),
        ("mnt", "mount"),
    ];
    let of = |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
    let own = |kind: &str| of(&host_pid.to_string(), kind);
    let places = init.map_or_else(|| vec!["self".to_owned(), "1".to_owned()], |init| vec![init.to_string()]);
    let foreign = |kind: &str| {
        let mut places = places.iter().filter_map(|place| of(place, kind)).peekable();
        let known = places.peek().is_some();
        own(kind).is_some_and(|own| known && places.all(|place| place != own))
    };
    let differ = |kind: &str, children: &str| own(kind).zip(own(children)).is_some_and(|(own, theirs)| own != theirs);
    let mounts = init.is_none();
    let mut names: Vec<&str> =
        KINDS.iter().filter(|(kind, _)| (mounts || *kind != "mnt") && foreign(kind)).map(|(_, name)| *name).collect();
    if differ("pid", "pid_for_children") {
        names.push("pid (for its children)");
    }
    if differ("time", "time_for_children") {
        names.push("time (for its children)");
    }
    let many = if names.len() == 1 { "a namespace" } else { "namespaces" };
    (!names.is_empty()).then(|| format!("it has {many} of its own, which it would lose: {}", names.join(", ")))
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
