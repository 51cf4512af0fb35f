//! Who is named by a start, or by a process that comes: parent, leaders, children. Each of them may end elsewhere in the
//! middle of it. Its skeleton ends afterwards: until then the new one is cloned by it, or joins its group, or is not
//! there yet to wait for it.

use super::Actor;
use super::space::look_at;
use super::spawn::Member;
use bproc_common::id::Pid;
use bproc_proto::link as wire;
use bproc_proto::{Relative, SpawnSpec};
use bproc_sys::process::Process;
use std::collections::BTreeSet;

/// What names them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Naming {
    /// The start with this number of its order.
    Start(u64),
    /// A move: process and number.
    Room(i32, u64),
    /// What this one has left to its parent.
    Orphans(i32),
}

impl Naming {
    /// The room for a move.
    pub fn room(r#move: Option<wire::Move>) -> Naming {
        let r#move = r#move.unwrap_or_default();
        Naming::Room(r#move.pid, r#move.id)
    }
}

impl Actor {
    pub(super) fn name(&mut self, what: Naming, spec: &SpawnSpec, children: &[Relative]) {
        let relatives = spec.relatives.iter().flat_map(|r| [r.pid, r.ppid, r.pgid, r.sid]);
        let names = relatives.chain([spec.ppid, spec.pgid, spec.sid]).chain(children.iter().map(|c| c.pid));
        let names = names.filter(|pid| *pid > 1 && *pid != spec.pid).collect();
        // Alive when it was named: what was noted of one with its number is of another.
        for pid in spec.relatives.iter().chain(children).map(|r| r.pid).chain([spec.pid]) {
            self.ended_early.remove(&pid);
        }
        self.named.insert(what, names);
    }

    /// All who have skeletons here, or will have for what is under way: whoever orders next is to tell their ends.
    pub(super) fn stand_ins(&self) -> Vec<i32> {
        let named = self.named.values().flatten().copied();
        // One into which a process is being built is a stand-in again if that fails, and connects a moment later.
        let bodies = self.halves.keys().chain(&self.unconnected).copied();
        let all: BTreeSet<i32> = self.family.pids().into_iter().chain(named).chain(bodies).collect();
        all.into_iter().filter(|pid| *pid > 1 && !self.table.is_here(*pid)).collect()
    }

    pub(super) fn is_named(&self, pid: i32) -> bool {
        self.named.values().any(|names| names.contains(&pid))
    }

    /// One that has ended elsewhere while others of its session or group are here: who comes to these joins them through
    /// its skeleton. Not if that has children, who are orphans now, or a parent here, who waits.
    pub(super) fn still_leads(&self, pid: i32, skeleton: &Member) -> bool {
        let process = Pid::new(skeleton.host_pid).and_then(|host| Process::open(host).ok());
        let childless = process.and_then(|p| p.children().ok()).is_some_and(|children| children.is_empty());
        let found = Pid::new(skeleton.host_pid).and_then(|host| look_at(host, None, self.ghost_exe));
        self.table.is_led_by(pid) && childless && found.is_some_and(|f| !self.table.runs(f.ppid))
    }

    /// Someone is gone: leaders that lead nobody any more may go.
    pub(super) fn end_dead_leaders(&mut self) {
        let idle =
            |pid: &i32, _: &mut i32| !self.table.is_led_by(*pid) && !self.named.values().any(|n| n.contains(pid));
        for (pid, status) in self.dead_leaders.extract_if(.., idle).collect::<Vec<_>>() {
            self.relative_ended(pid, status);
        }
    }

    pub(super) fn no_longer_named(&mut self, what: Naming) {
        for pid in self.named.remove(&what).unwrap_or_default() {
            if !self.is_named(pid)
                && let Some(status) = self.ended_when_named.remove(&pid)
            {
                self.relative_ended(pid, status);
            }
        }
        self.apply_halts();
        self.end_dead_leaders();
    }
}
