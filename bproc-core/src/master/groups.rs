//! Signals to whole groups from nodes.
//!
//! A process on a node signals a group: the kernel there reaches its members on that node, and stand-ins of some of the
//! others. Its ghost does the same here, once, with its user's rights: so every member is reached that has a ghost or is the
//! master's own. Ghosts of those that are on that node have got a copy then, of which the kernel tells before they do.
//!
//! Where it is not certain who is on that node (something moves or starts), and for signals that stop and continue, each
//! stand-in's signal goes its way alone, as all others do.

use super::model::GhostCommand;
use super::{Master, Out, Phase, Process};
use crate::group::{Mark, is_whole};
use bproc_common::id::{NodeId, Pid};

/// Far more than can be under way.
const MOST: usize = 256;

/// A signal to a group, as a node names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupCall {
    /// Which group.
    pub group: i32,
    /// The system call, among those of this node.
    pub call: u64,
}

/// What became of one.
#[derive(Debug)]
pub(super) struct Repeated {
    from: NodeId,
    call: u64,
    /// Whose ghost was told to do the same, and by which signal; `None`: each goes its way alone.
    by: Option<(Pid, i32)>,
}

impl Master {
    /// True when the signal reaches its receiver by the ghost of its sender.
    pub(super) fn repeat(&mut self, from: NodeId, group: GroupCall, siginfo: &[u8], out: &mut Out) -> bool {
        if let Some(known) = self.repeated.iter().find(|r| r.from == from && r.call == group.call) {
            return known.by.is_some();
        }
        let by = self.repeater(from, Mark::of(siginfo));
        if self.repeated.len() == MOST {
            self.repeated.pop_front();
        }
        self.repeated.push_back(Repeated { from, call: group.call, by });
        let Some((sender, signal)) = by else { return false };
        if let Some(process) = self.processes.get_mut(&sender) {
            process.tell(sender, GhostCommand::SignalGroup(group.group, signal), out);
        }
        true
    }

    /// Whose ghost can send it, if all is certain.
    fn repeater(&self, from: NodeId, mark: Mark) -> Option<(Pid, i32)> {
        let recovers = self.recovering && self.awaited.is_some();
        let is_uncertain = |p: &Process| matches!(p.phase, Phase::Starting { .. }) || (self.recovering && p.inherited);
        if !is_whole(mark.signal) || recovers || !self.moves.is_empty() || self.processes.values().any(is_uncertain) {
            return None;
        }
        let sender = Pid::new(mark.sender)?;
        let process = self.processes.get(&sender)?;
        let can = process.connected && !process.unheld && process.can_act() && process.ghost_stopped.is_none();
        (process.node == Some(from) && can).then_some((sender, mark.signal))
    }

    /// eBPF: a ghost has got a signal with all of its group.
    pub fn group_signalled(&mut self, pid: Pid, mark: Mark) {
        let is_by =
            |by: Option<(Pid, i32)>| by.is_some_and(|(by, signal)| (by.get(), signal) == (mark.sender, mark.signal));
        let Some(from) = self.repeated.iter().rev().find(|r| is_by(r.by)).map(|r| r.from) else { return };
        let is_there = |pid: &Pid| self.processes.get(pid).is_some_and(|p| p.node == Some(from));
        if !is_there(&pid) {
            return;
        }
        self.copies.expect(pid.get(), mark);
        for (child, parent) in &self.cloning {
            if *parent == pid && is_there(child) {
                self.copies.expect_bare(child.get(), mark.signal);
            }
        }
    }

    /// What this one does is its own again.
    pub(super) fn repeats_no_more(&mut self, pid: Pid) {
        for repeated in &mut self.repeated {
            repeated.by = repeated.by.filter(|(by, _)| *by != pid);
        }
    }
}
