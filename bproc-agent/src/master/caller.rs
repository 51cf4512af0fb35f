//! Who asks to go on as a program on a node: all that the new process takes over from the caller, read from /proc
//! while the caller waits.

use crate::kernel::Kin;
use bproc_common::id::Pid;
use bproc_core::master::Starter;
use bproc_proto as proto;
use bproc_sys::process::{Process, Status};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Ancestors at most that get skeletons. Of more the topmost has another parent there than here, who could not wait for it.
const LONGEST: usize = 64;

/// What the caller is.
#[derive(Debug)]
pub struct Caller {
    /// Effective uid.
    pub uid: u32,
    /// Effective gid and supplementary groups.
    pub gids: BTreeSet<u32>,
    /// Its parent.
    pub parent: Option<Pid>,
    /// Real uid if all its uids are the same, else root's: whose process it is.
    pub owner: u32,
    /// Its name.
    pub comm: Vec<u8>,
    /// Parent, leaders of group and session, and of the parent's, also those that have ended: their numbers are taken. And
    /// its ancestors.
    pub relatives: Vec<Pid>,
}

/// A process that asks, and its status, which is long to read.
pub struct Asking {
    process: Process,
    status: Status,
}

impl Asking {
    /// By its number.
    ///
    /// # Errors
    /// When its status cannot be read.
    pub fn look(pid: Pid) -> bproc_sys::Result<Asking> {
        let process = Process::open(pid)?;
        let status = process.status()?;
        Ok(Asking { process, status })
    }
}

/// Fills what the agent decides in the spec (credentials, limits, numbers) and returns what the caller is.
pub fn complete(asking: &Asking, spec: &mut proto::SpawnSpec, kin: &Kin) -> bproc_sys::Result<Caller> {
    use std::os::unix::ffi::OsStrExt;
    let Asking { process, status } = asking;
    let (pid, stat) = (process.pid(), process.stat()?);
    if spec.cwd.is_empty() {
        // A directory that was removed or cannot be named: the node takes "/".
        spec.cwd = process.cwd().map_or_else(|_| b"/".to_vec(), |d| d.as_os_str().as_bytes().to_vec());
    }
    spec.umask = status.umask;
    spec.limits = process.limits()?.iter().map(|l| proto::Limit { soft: l.soft, hard: l.hard }).collect();
    spec.nice = stat.nice;
    spec.no_new_privs = status.no_new_privs;
    spec.credentials = Some(proto::Credentials {
        ruid: status.uids.real,
        euid: status.uids.effective,
        suid: status.uids.saved,
        rgid: status.gids.real,
        egid: status.gids.effective,
        sgid: status.gids.saved,
        groups: status.groups.clone(),
        cap_bounding: status.caps.bounding,
        cap_inheritable: status.caps.inheritable,
        cap_ambient: status.caps.ambient,
    });
    (spec.pid, spec.ppid, spec.pgid, spec.sid) = (pid.get(), stat.ppid, stat.pgrp, stat.session);
    let numbers = BTreeSet::from([stat.ppid, stat.pgrp, stat.session]);
    let others = |number: &i32| *number > 1 && *number != pid.get();
    spec.relatives = numbers.iter().copied().filter(others).filter_map(relative).collect();
    let line = line(stat.ppid, kin.subreaper(pid), kin);
    let numbers: BTreeSet<i32> = line.iter().map(|r| r.pid).chain(numbers).collect();
    spec.relatives.retain(|r| !line.iter().any(|l| l.pid == r.pid));
    spec.relatives.extend(line);
    // The leaders of relatives get skeletons too.
    let leaders = spec.relatives.iter().flat_map(|r| [r.pgid, r.sid]);
    let numbers: BTreeSet<i32> = leaders.chain(numbers).filter(others).collect();
    let relatives = numbers.into_iter().filter_map(Pid::new).collect();
    let mut gids: BTreeSet<u32> = status.groups.iter().copied().collect();
    gids.insert(status.gids.effective);
    Ok(Caller {
        uid: status.uids.effective,
        gids,
        parent: Pid::new(stat.ppid),
        owner: owner_by(status),
        comm: stat.comm,
        relatives,
    })
}

fn owner_by(status: &Status) -> u32 {
    let uids = &status.uids;
    let same = uids.real == uids.effective && uids.real == uids.saved;
    if same { uids.real } else { 0 }
}

/// Whose process somebody on this machine is: [`Caller::owner`].
pub fn owner(pid: i32) -> Option<u32> {
    Some(owner_by(&Process::open(Pid::new(pid)?).ok()?.status().ok()?))
}

/// What a start takes over of its caller beyond what [`complete`] fills.
///
/// # Errors
/// When the caller is gone.
pub fn settings(asking: &Asking) -> bproc_sys::Result<proto::Settings> {
    let s = asking.process.settings()?;
    Ok(proto::Settings {
        processors: s.processors,
        policy: s.policy,
        priority: s.priority,
        io_priority: s.io_priority,
        personality: s.personality,
        core_filter: s.core_filter,
        oom_score_adj: s.oom_score_adj,
        timer_slack_ns: s.timer_slack_ns,
    })
}

/// Why a process may not go on as a program on a node: something holds it that would not go along. Its secure bits are told by
/// itself.
///
/// # Errors
/// When the agent's own status cannot be read.
pub fn refusal(asking: &Asking, securebits: u32, kin: &Kin) -> bproc_sys::Result<Option<String>> {
    // Its namespaces and filters stay what they are.
    static OWN: OnceLock<Status> = OnceLock::new();
    let own = match OWN.get() {
        Some(own) => own,
        None => {
            let own = Pid::new(std::process::id() as i32).map(Asking::look).transpose()?;
            OWN.get_or_init(|| own.map_or_else(Status::default, |own| own.status))
        }
    };
    let pid = asking.process.pid();
    let why = held_by(&asking.status, own).or_else(|| bits_of(&asking.status, securebits)).map(str::to_owned);
    let landlock = || kin.landlock(pid.get()).map(|what| format!("{what} to a node: start it outside"));
    Ok(why.or_else(landlock).map(|why| format!("process {pid} {why}")))
}

fn held_by(status: &Status, own: &Status) -> Option<&'static str> {
    const STRICT: u32 = 1;
    let caps = &status.caps;
    if status.ns_pids.len() > own.ns_pids.len() {
        Some("is in a pid namespace of its own, which no node has: start it outside")
    } else if status.seccomp == STRICT || status.seccomp_filters > own.seccomp_filters {
        // Those of a container hold the agent, too.
        Some("has seccomp filters, which a start on a node would take off: start it without them")
    } else if status.uids.effective == 0 && caps.bounding & !caps.permitted != 0 {
        // An exec on the node would give root all that the bounding set leaves.
        Some(
            "is root without root's rights (secure bits or dropped capabilities), which a start on a node would give back: \
              start it with them, or take them from its bounding set",
        )
    } else {
        None
    }
}

/// Secure bits change what a set-user-id program can do that is not made for them. So who could not have set them is not believed.
fn bits_of(status: &Status, securebits: u32) -> Option<&'static str> {
    /// Those that only take rights away, or that anybody may set: no raising of ambient capabilities, and the like for files.
    const HARMLESS: u32 = 0xfc0;
    const CAP_SETPCAP: u64 = 1 << 8;
    (securebits & !HARMLESS != 0 && status.caps.permitted & CAP_SETPCAP == 0).then_some(
        "has secure bits that it may not set, which a start on a node would take off: start it without them, or with CAP_SETPCAP",
    )
}

/// A parent and its ancestors, as long as one skeleton can make the other: one of its own session, or the leader of another. Each
/// may come to where its stand-in is, and wait there for its children; and the subreaper's gets orphans as it does itself. Servers
/// above a session (sshd, tmux, what the system runs on) do not come, and nobody on a node shall reach them by `kill(-1)`.
fn line(parent: i32, subreaper: Option<i32>, kin: &Kin) -> Vec<proto::Relative> {
    let mut line: Vec<proto::Relative> = Vec::new();
    let mut number = parent;
    while line.len() < LONGEST {
        let fits = |r: &proto::Relative| line.last().is_none_or(|below| below.sid == r.sid || below.sid == below.pid);
        let Some(next) = relative(number).filter(|r| r.pid > 1 && fits(r)) else { break };
        let is_above = line.last().is_some_and(|below| below.sid != next.sid);
        if is_above && Pid::new(number).is_none_or(|pid| kin.is_connected(pid)) {
            break;
        }
        number = next.ppid;
        line.push(proto::Relative { subreaper: subreaper == Some(next.pid), ..next });
    }
    line
}

/// One who may be gone already: then only its number remains, and nobody can be signalled by it.
pub fn relative(number: i32) -> Option<proto::Relative> {
    let process = Process::open(Pid::new(number)?).ok()?;
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    Some(proto::Relative {
        pid: number,
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        uid: status.uids.real,
        gid: status.gids.real,
        comm: stat.comm,
        ..proto::Relative::default()
    })
}

/// The `bpsh` that has this number now; none if it is gone, and with it what it starts.
pub fn starter(number: i32) -> Option<Starter> {
    /// Pids are below 2 to this power.
    const PID_BITS: u32 = 22;
    let stat = Process::open(Pid::new(number)?).ok()?.stat().ok()?;
    Some(Starter(stat.starttime << PID_BITS | number as u64))
}

/// A child, and what its parent knows of how it is.
pub fn child(number: i32) -> Option<proto::Relative> {
    let relative = relative(number)?;
    let process = Process::open(Pid::new(number)?).ok()?;
    let stat = process.stat().ok()?;
    Some(crate::kin::with_state(relative, stat.state, stat.exit_code, process.is_stopped(stat.state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(lines: &str) -> Status {
        Status::try_from(format!("Uid:\t0\t0\t0\t0\nNSpid:\t7\nCapPrm:\t3\nCapBnd:\t3\n{lines}").as_bytes()).unwrap()
    }

    #[test]
    fn who_would_gain_rights_is_refused() {
        let own = status("Seccomp:\t2\nSeccomp_filters:\t1\n");
        let why = |lines| held_by(&status(lines), &own).unwrap_or_default();
        for fine in ["", "Seccomp:\t2\nSeccomp_filters:\t1\n", "CapBnd:\t1\n", "Uid:\t9\t9\t9\t9\nCapPrm:\t0\n"] {
            assert_eq!(why(fine), "", "{fine}");
        }
        assert!(why("NSpid:\t700\t1\n").contains("pid namespace"));
        assert!(why("Seccomp:\t1\n").contains("seccomp"));
        assert!(why("Seccomp:\t2\nSeccomp_filters:\t2\n").contains("seccomp"));
        assert!(why("CapPrm:\t1\n").contains("root's rights"));
        let bits = |lines, bits| bits_of(&status(lines), bits).is_none();
        let (no_root, no_raise) = (1, 0xc0);
        assert!(bits("CapPrm:\t100\n", no_root) && bits("CapPrm:\t0\n", no_raise));
        assert!(!bits("CapPrm:\tff\n", no_root) && !bits("CapPrm:\t0\n", no_root | no_raise));
    }
}
