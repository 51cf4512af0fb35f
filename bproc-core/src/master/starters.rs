//! Which processes go when a `bpsh` is killed: all that it started and what these have forked, wherever they are by then.
//!
//! Each start names its `bpsh`, and forks hand the name on; ghosts keep it for a new master. A `bpsh` that ends in its own time has
//! outlived the programs that it started, and what they left behind stays, as natively. One that is killed by SIGKILL, or is gone
//! before them, takes everything along.

use super::model::{Action, GhostCommand, Phase};
use super::{Master, Out};
use bproc_common::id::Pid;

/// Killed ones of which the names are kept, for what was forked in their last moment.
const REMEMBERED: usize = 256;

/// A `bpsh` of this machine's life: its number, and when it began.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Starter(pub u64);

impl Master {
    /// A `bpsh` of a former master's time lives.
    pub fn starter_found(&mut self, pid: Pid, starter: Starter) {
        self.starters.insert(pid, starter);
    }

    /// A process of the master's own is gone. If it was a `bpsh`, programs that it waited for go, too.
    pub(super) fn starter_gone(&mut self, pid: Pid, out: &mut Out) {
        let Some(starter) = self.starters.remove(&pid) else { return };
        let waited_for = |p: &super::Process| p.starter == Some(starter) && p.parent == Some(pid) && p.end.is_none();
        if self.processes.values().any(waited_for) {
            self.starter_killed(starter, out);
        }
    }

    /// A `bpsh` is killed by SIGKILL.
    pub fn starter_killed(&mut self, starter: Starter, out: &mut Out) {
        if self.condemned.contains(&starter) {
            return;
        }
        self.condemned.push_back(starter);
        if self.condemned.len() > REMEMBERED {
            self.condemned.pop_front();
        }
        let theirs = self.processes.iter().filter(|(_, p)| p.starter == Some(starter));
        let mut theirs: Vec<Pid> = theirs.map(|(pid, _)| *pid).collect();
        theirs.sort_unstable();
        for pid in theirs {
            self.kill_condemned(pid, out);
        }
    }

    /// Ends a process whose `bpsh` was killed.
    pub(super) fn kill_condemned(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get(&pid).filter(|p| p.end.is_none()) else { return };
        let Some(starter) = process.starter else { return };
        // One that is being started dies with its parent.
        if !self.condemned.contains(&starter) || !matches!(process.phase, Phase::Running) {
            return;
        }
        if process.made && !self.moves.contains_key(&pid) {
            // At the gate it is told to a successor, too, and waits until it is known where its process runs.
            out.push(Action::KillGhost(pid));
        }
        self.kill_remote(pid, out);
    }

    /// A ghost that has connected says by whom its process was started, as far as it knows.
    pub fn ghost_started_by(&mut self, pid: Pid, told: Option<Starter>, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match (told, process.starter) {
            (Some(told), None) => process.starter = Some(told),
            // Made by the nursery, or again.
            (None, Some(starter)) => process.tell(pid, GhostCommand::Starter(starter), out),
            _ => {}
        }
        // Perhaps it was not made when its process was killed.
        self.kill_condemned(pid, out);
    }
}
