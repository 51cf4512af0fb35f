//! Signals to whole groups.
//!
//! One that is sent here reaches ghosts. When these have told of it, each node is told once, and its kernel delivers it to all
//! members there at once, those included that were forked a moment before and have no ghosts yet. The ghosts' copies follow, to be
//! noted only: whoever takes over from an agent that was killed knows by their numbers what has been delivered.
//!
//! A process on a node signals a group: the kernel there reaches its members on that node, and stand-ins of some of the
//! others. Its ghost does the same here, once, with its user's rights: so every member is reached that has a ghost or is the
//! master's own. Ghosts of those that are on that node have got a copy then, of which the kernel tells before they do.
//!
//! Where it is not certain who is on that node (something moves or starts), and for signals that stop and continue, each
//! stand-in's signal goes its way alone, as all others do.

use super::model::{GhostCommand, Order};
use super::{Master, Out, Phase, Process};
use crate::group::{Mark, Record, is_whole};
use bproc_common::id::{NodeId, Pid};
use std::collections::BTreeSet;

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

/// A signal to a group that reached ghosts.
#[derive(Debug)]
pub(super) struct Call {
    call: u64,
    group: i32,
    mark: Mark,
    uid: u32,
    /// The node that told of it, which has it.
    from: Option<NodeId>,
    /// Whose ghosts have copies.
    copied: BTreeSet<Pid>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// What came to its members before is passed on before: who has yet to tell of his copy, and who has.
    Gathers { awaited: BTreeSet<Pid>, told: Vec<(Pid, u32, Vec<u8>)> },
    /// Nodes were told.
    Whole,
    /// Each goes its way alone.
    Alone,
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
        if !self.is_certain(mark.signal) {
            return None;
        }
        let sender = Pid::new(mark.sender)?;
        let process = self.processes.get(&sender)?;
        let can = process.connected && !process.unheld && process.can_act() && process.ghost_stopped.is_none();
        (process.node == Some(from) && can).then_some((sender, mark.signal))
    }

    /// eBPF: a ghost has got a signal with all of its group.
    pub fn group_signalled(&mut self, pid: Pid, record: Record) {
        let Record { mark, queued, call, .. } = record;
        let from = self.note_call(record);
        let Some(process) = self.processes.get(&pid) else { return };
        let has_it = from.is_some() && process.node == from;
        let can_tell = process.connected && !process.unheld && process.can_act() && process.ghost_stopped.is_none();
        let Some(known) = self.calls.iter_mut().find(|c| c.call == call) else { return };
        let is_one = match &mut known.state {
            State::Gathers { awaited, .. } => {
                if queued && !has_it {
                    known.copied.insert(pid);
                    // What a process on a node sent before does not come through ghosts.
                    awaited.extend((can_tell && from.is_none()).then_some(pid));
                }
                true
            }
            State::Whole => true,
            State::Alone => false,
        };
        let what = |node: Option<NodeId>| match from.is_some() && node == from {
            true => Some(None),
            false => is_one.then_some(Some(call)),
        };
        let mut all = vec![(pid, mark)];
        let bare = Mark { code: 0, sender: 0, ..mark };
        all.extend(self.cloning.iter().filter(|(_, parent)| **parent == pid).map(|(child, _)| (*child, bare)));
        for (pid, mark) in all.into_iter().filter(|_| queued) {
            if let Some(what) = self.processes.get(&pid).and_then(|p| what(p.node)) {
                self.copies.expect(pid.get(), mark, what);
            }
        }
    }

    /// eBPF: a ghost has got SIGKILL with all of its group, which its node does likewise: nobody forked there before is left.
    /// Each that has a ghost is killed by itself as well.
    pub fn group_killed(&mut self, record: Record, out: &mut Out) {
        if !self.calls.iter().any(|c| c.call == record.call) {
            self.note_call(record);
            self.settle(record.call, out);
        }
    }

    /// The first record of each says whether it can go as one. From which node it comes.
    fn note_call(&mut self, record: Record) -> Option<NodeId> {
        let Record { mark, group, call, .. } = record;
        if let Some(known) = self.calls.iter().find(|c| c.call == call) {
            return known.from;
        }
        let is_by =
            |by: Option<(Pid, i32)>| by.is_some_and(|(by, signal)| (by.get(), signal) == (mark.sender, mark.signal));
        let from = self.repeated.iter().rev().find(|r| is_by(r.by)).map(|r| r.from);
        // A sender that is in no space of ours has no number there.
        let is_anybodys = record.is_set_uid
            || (record.has_other_rights && from.is_none())
            || (mark.code <= 0 && mark.sender <= 0)
            || group <= 1;
        let state = match !is_anybodys && self.is_certain(mark.signal) {
            true => State::Gathers { awaited: BTreeSet::new(), told: Vec::new() },
            false => State::Alone,
        };
        let is_over = |c: &Call| !matches!(c.state, State::Gathers { .. });
        if self.calls.len() == MOST
            && let Some(at) = self.calls.iter().position(is_over)
        {
            self.calls.remove(at);
        }
        if self.calls.len() < MOST {
            self.calls.push_back(Call { call, group, mark, uid: record.uid, from, copied: BTreeSet::new(), state });
        }
        from
    }

    /// A ghost tells of its copy.
    pub(super) fn copy_of_group(&mut self, pid: Pid, number: u32, siginfo: Vec<u8>, call: u64, out: &mut Out) {
        let Some(known) = self.calls.iter_mut().find(|c| c.call == call) else {
            return self.pass_on(pid, number, siginfo, out);
        };
        match &mut known.state {
            State::Gathers { awaited, told } => {
                awaited.remove(&pid);
                told.push((pid, number, siginfo));
            }
            State::Whole => {
                let group = known.group;
                self.pass_copy(pid, number, siginfo, GroupCall { group, call }, out);
            }
            State::Alone => self.pass_on(pid, number, siginfo, out),
        }
    }

    /// The node notes it, so that one who is told of it again knows it.
    fn pass_copy(&mut self, pid: Pid, number: u32, siginfo: Vec<u8>, of: GroupCall, out: &mut Out) {
        let is_on_its_way = self.on_its_way(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.node {
            Some(_) if process.end.is_some() => process.arrived(pid, number, out),
            Some(node) if !is_on_its_way => {
                let GroupCall { group, call } = of;
                self.order(node, Order::Copy { pid, number, siginfo, group, call }, out);
            }
            // It had it before it went: a signal that is none goes after it, for the sake of its number.
            _ => self.pass_on(pid, number, vec![0; siginfo.len()], out),
        }
    }

    /// What this ghost tells next comes after what it has told of.
    pub(super) fn settle_calls_of(&mut self, pid: Pid, out: &mut Out) {
        let tells = |c: &&Call| matches!(&c.state, State::Gathers { told, .. } if told.iter().any(|(p, ..)| *p == pid));
        for call in self.calls.iter().filter(tells).map(|c| c.call).collect::<Vec<_>>() {
            self.settle(call, out);
        }
    }

    /// Sends what need not wait for ghosts any more. After each fact; `all`: now and then, whatever they do.
    pub fn settle_calls(&mut self, all: bool, out: &mut Out) {
        let mut due = Vec::new();
        for c in &mut self.calls {
            let State::Gathers { awaited, .. } = &mut c.state else { continue };
            // One that is not stopped reads: what came to it before is passed on before.
            awaited.retain(|pid| {
                let process = self.processes.get(pid);
                process.is_some_and(|p| p.connected && !p.unheld && p.can_act() && p.ghost_stopped.is_none())
            });
            if awaited.is_empty() || all {
                due.push(c.call);
            }
        }
        for call in due {
            self.settle(call, out);
        }
    }

    /// Each node is told once, but the one that it came from; or all go their ways alone.
    fn settle(&mut self, call: u64, out: &mut Out) {
        let Some(at) = self.calls.iter().position(|c| c.call == call) else { return };
        let Call { group, mark, uid, from, .. } = self.calls[at];
        let is_whole = self.is_certain(mark.signal);
        let copied = std::mem::take(&mut self.calls[at].copied);
        let state = if is_whole { State::Whole } else { State::Alone };
        let told = match std::mem::replace(&mut self.calls[at].state, state) {
            State::Gathers { told, .. } => told,
            // As it was decided.
            state => return self.calls[at].state = state,
        };
        if is_whole {
            let nodes: BTreeSet<NodeId> = self.processes.values().filter_map(|p| p.node).collect();
            for node in nodes.into_iter().filter(|node| Some(*node) != from) {
                let is_there = |pid: &&Pid| self.processes.get(pid).is_some_and(|p| p.node == Some(node));
                let copied = copied.iter().filter(is_there).copied().collect();
                self.order(node, Order::SignalGroup { group, siginfo: mark.siginfo(uid), call, copied }, out);
            }
        }
        for (pid, number, siginfo) in told {
            match is_whole {
                true => self.pass_copy(pid, number, siginfo, GroupCall { group, call }, out),
                false => self.pass_on(pid, number, siginfo, out),
            }
        }
    }

    /// Is it known of everybody where he is, and that he stays there until what is ordered now is done?
    fn is_certain(&self, signal: i32) -> bool {
        let recovers = self.recovering && self.awaited.is_some();
        // A ghost whose process failed to come home has perhaps got signals of which the kernel did not tell.
        let is_uncertain =
            |p: &Process| matches!(p.phase, Phase::Starting { .. }) || p.unheld || (self.recovering && p.inherited);
        is_whole(signal) && !recovers && self.moves.is_empty() && !self.processes.values().any(is_uncertain)
    }

    /// What this one does is its own again.
    pub(super) fn repeats_no_more(&mut self, pid: Pid) {
        for repeated in &mut self.repeated {
            repeated.by = repeated.by.filter(|(by, _)| *by != pid);
        }
    }
}
