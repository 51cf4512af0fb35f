//! What a process may do beyond the rights of its real user: a set-user-id program, or capabilities that it kept. The master
//! sees it when the process leaves, and vouches for it as long as it is away; nobody else does.

use bproc_common::id::Pid;
use bproc_mover::wire::Owner;
use bproc_proto::{Rights, SpawnSpec};
use bproc_sys::pidfd::PidFd;
use std::collections::HashMap;
use vmadump::procfs::{Status, status};

/// CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE: what whoever stands for it must be able to
/// get by executing a program, or to use while it is built.
const NEEDED: u64 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 21 | 1 << 40;

/// By its number, as the caller sees it.
fn look(pid: i32) -> Vec<Status> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| Some(status(&std::fs::read(thread.path().join("status")).ok()?))).collect()
}

fn of_all(threads: &[Status]) -> Rights {
    let mut rights = Rights::default();
    for thread in threads {
        let [inheritable, permitted, effective, _, ambient] = thread.caps;
        rights.capabilities |= inheritable | permitted | effective | ambient;
        rights.uids.extend(thread.uids);
        rights.gids.extend(thread.gids.iter().chain(&thread.groups));
    }
    for list in [&mut rights.uids, &mut rights.gids] {
        list.sort_unstable();
        list.dedup();
    }
    rights
}

/// All that a process of the caller's own machine has; nothing if it is root's, or has no more than its user.
pub fn of(pid: i32) -> Option<Rights> {
    let threads = look(pid);
    let first = threads.first()?;
    let mut rights = of_all(&threads);
    let user = first.uids[0];
    let (uid, caps) = (rights.uids.iter().any(|uid| *uid != user), rights.capabilities);
    let gid = rights.gids.iter().any(|gid| *gid != first.gids[0] && !first.groups.contains(gid));
    rights.uids.retain(|uid| *uid != user);
    (user != 0 && (uid || gid || caps != 0)).then_some(rights)
}

/// Why a process cannot move: it has rights that nobody vouches for, or its stand-in could not have those that it needs.
/// `known`: all that it may have beyond its user's; none: whatever it has.
pub fn refusal(host_pid: i32, known: Option<&Rights>) -> Option<String> {
    let threads = look(host_pid);
    let first = threads.first()?;
    let bounding = threads.iter().fold(!0, |all, thread| all & thread.caps[3]);
    let own = status(&std::fs::read("/proc/self/status").unwrap_or_default()).caps[3];
    // What it may use it gets back from there, too.
    let usable = threads.iter().fold(NEEDED, |all, thread| all | thread.caps[1]);
    let missing = usable & own & !bounding;
    if missing != 0 {
        return Some(format!(
            "its bounding set lacks capabilities ({missing:#x}) without which nothing can stand here for it"
        ));
    }
    let (user, known) = (first.uids[0], known?);
    if user == 0 {
        return None;
    }
    let has = of_all(&threads);
    let beyond = "for which nobody vouches: the master's agent, since it runs, has not seen it leave with them";
    if let Some(uid) = has.uids.iter().find(|uid| **uid != user && !known.uids.contains(uid)) {
        return Some(format!("it belongs to user {user} and has the rights of user {uid}, {beyond}"));
    }
    let caps = has.capabilities & !known.capabilities;
    (caps != 0).then(|| format!("it belongs to user {user} and has capabilities ({caps:#x}), {beyond}"))
}

/// Whose rights a process has where it comes to; none: root's.
pub fn owner(spec: &SpawnSpec) -> Option<Owner> {
    let c = spec.credentials.clone().unwrap_or_default();
    let rights = spec.rights.clone().unwrap_or_default();
    (c.ruid != 0).then_some(Owner {
        uid: c.ruid,
        gid: c.rgid,
        groups: c.groups,
        uids: rights.uids,
        gids: rights.gids,
        caps: rights.capabilities,
        bounding: c.cap_bounding,
        limits: spec.limits.iter().map(|limit| limit.hard).collect(),
    })
}

/// What processes had that are away, by their numbers.
#[derive(Default)]
pub struct Vouched(HashMap<Pid, (PidFd, Rights)>);

impl Vouched {
    /// One has left the master with these. What stands for it keeps its number.
    pub fn left(&mut self, pid: Pid, rights: Rights) {
        self.0.retain(|_, (stand_in, _)| stand_in.has_exited().is_ok_and(|exited| !exited));
        if let Ok(stand_in) = PidFd::open(pid) {
            self.0.insert(pid, (stand_in, rights));
        }
    }

    /// It has come back.
    pub fn home(&mut self, pid: Pid) {
        self.0.remove(&pid);
    }

    /// What one that is away may have.
    pub fn of(&self, pid: Pid) -> Option<Rights> {
        let (stand_in, rights) = self.0.get(&pid)?;
        stand_in.has_exited().is_ok_and(|exited| !exited).then(|| rights.clone())
    }
}
