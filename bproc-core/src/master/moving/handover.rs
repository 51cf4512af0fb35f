//! Moves in their last step when a master begins anew, or the agent of a source. A node that greets names those of its
//! processes that stand still and may go on elsewhere, and those that it may let run any moment; what became of one that
//! nobody remembers is what its target has.

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;

use super::{Departed, ECANCELED, Move, MoveFacts, MoveId, Phase};
use crate::master::model::{Action, Order, Process, Refusal};
use crate::master::{LOST, Master, Out};
use bproc_common::id::{NodeId, Pid};
use std::collections::{BTreeSet, HashSet};

/// A process that stands still at the source of a move, in its last step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    /// Who.
    pub pid: Pid,
    /// Which move.
    pub id: MoveId,
    /// Where to; none: the master.
    pub to: Option<NodeId>,
    /// It waits to be told what became of it; else it will know by itself.
    pub in_doubt: bool,
    /// Where it goes to the master: it is not a ghost there.
    pub home: bool,
}

impl Master {
    /// A node's agent is a new one, which knows of no move but those that it has `told`; `there` are the processes that it
    /// found.
    pub(in crate::master) fn moves_of_new_agent(
        &mut self,
        node: NodeId,
        there: &HashSet<Pid>,
        told: &[Leaving],
        out: &mut Out,
    ) {
        let concerned = |m: &Move| m.from == Some(node) || m.facts.to == Some(node);
        let mut pids: Vec<Pid> = self.moves.iter().filter(|(_, m)| concerned(m)).map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        for pid in pids {
            let named = |m: &&Move| m.from == Some(node) && told.iter().any(|l| (l.pid, l.id) == (pid, m.id));
            let Some(m) = self.moves.get(&pid).filter(|m| !named(m)) else { continue };
            let (id, is_there) = (m.id, there.contains(&pid));
            if m.phase != Phase::Sending {
                self.move_failed(pid, Refusal::NodeDied(node), out);
            } else if m.from == Some(node) {
                let failed =
                    Departed::Failed(Refusal::Failed(node, ECANCELED, "the node's agent was restarted".into()));
                self.departed(pid, id, if is_there { failed } else { Departed::Lost(node) }, out);
            } else {
                self.arrived(pid, id, if is_there { Ok(()) } else { Err(Refusal::NodeDied(node)) }, out);
            }
        }
    }

    /// The agent of a source, a node's or the master's own, knows of this one; the master perhaps does not.
    pub fn leaving(&mut self, from: Option<NodeId>, told: &Leaving, out: &mut Out) {
        let Leaving { pid, id, to, in_doubt, home } = *told;
        let place = self.processes.get(&pid).and_then(|p| p.node);
        let elsewhere = place.is_some() && place != from && place != to;
        let ended = from.is_some() && !self.recovering && !self.processes.contains_key(&pid);
        if self.moves.get(&pid).is_some_and(|m| m.id != id) || elsewhere || (ended && !self.moves.contains_key(&pid)) {
            // It has gone on from there, or ended.
            if let Some(node) = from {
                self.relatives.entry(pid).or_default().insert(node);
                out.push(Action::Watch(pid));
            }
            if in_doubt {
                self.decide(pid, id, from, true, out);
            }
            return;
        }
        if !self.moves.contains_key(&pid) {
            if !home && from.is_some() {
                self.processes.entry(pid).or_insert_with(|| Process::inherited(None));
            }
            let failed = || Refusal::Failed(NodeId::MASTER, ECANCELED, "it did not come to run".into());
            let arrived = to.is_none().then(|| if home { Ok(()) } else { Err(failed()) });
            self.moves.insert(pid, Move { arrived, ..Move::taken_over(pid, id, from, to) });
        }
        if in_doubt {
            self.departed(pid, id, Departed::InDoubt, out);
        }
        self.look_at_target(pid, out);
    }

    /// What became of it, to a source in doubt.
    pub(super) fn decide(&mut self, pid: Pid, id: MoveId, from: Option<NodeId>, moved: bool, out: &mut Out) {
        match from {
            Some(node) => self.order(node, Order::Decide(pid, id, moved), out),
            None => out.push(Action::DecideHere(pid, id, moved)),
        }
    }

    /// A move that was taken over is decided by what its target has.
    pub(in crate::master) fn look_at_target(&mut self, pid: Pid, out: &mut Out) {
        let Some(m) = self.moves.get(&pid).filter(|m| m.ask.is_none() && m.arrived.is_none()) else { return };
        let (Some(to), id, from) = (m.facts.to, m.id, m.from) else { return };
        if self.nodes.get(&to.0).is_none_or(|n| n.epoch.is_none()) || self.arriving.contains_key(&(pid, id)) {
            return;
        }
        let process = self.processes.get(&pid);
        if process.is_some_and(|p| p.node == Some(to)) {
            self.arrived(pid, id, Ok(()), out);
        } else if from.is_none() || process.is_some_and(|p| p.connected || p.held) {
            // One whose ghost is gone has run there, and ended.
            self.arrived(pid, id, Err(Refusal::NodeDied(to)), out);
        }
    }

    /// The same for all; after a node's greeting.
    pub(in crate::master) fn look_at_targets(&mut self, out: &mut Out) {
        let mut pids: Vec<Pid> = self.moves.iter().filter(|(_, m)| m.ask.is_none()).map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        for pid in pids {
            self.look_at_target(pid, out);
        }
    }

    /// Is this the process of a move that a former master began?
    pub fn is_taken_over(&self, pid: Pid) -> bool {
        self.moves.get(&pid).is_some_and(|m| m.ask.is_none())
    }

    /// A node may let these run any moment, and says when it does.
    pub(in crate::master) fn arriving_at(&mut self, node: NodeId, moves: &[(Pid, MoveId)]) {
        self.arriving.retain(|_, at| *at != node);
        self.arriving.extend(moves.iter().map(|r#move| (*r#move, node)));
    }

    /// The target of a move that nobody remembers has let it run.
    pub(super) fn arrived_unknown(&mut self, pid: Pid, node: NodeId, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid).filter(|p| p.node.is_none() && p.end.is_none()) {
            process.node = Some(node);
            self.node_known(pid, node, out);
        }
    }

    /// Time to find each other is over: targets that have not come have ended all that they had, and so has a process
    /// whose ghost is gone.
    pub(in crate::master) fn decide_left_over(&mut self, ghosts: &HashSet<Pid>, out: &mut Out) {
        let open: BTreeSet<Pid> = self.moves.iter().filter(|(_, m)| m.ask.is_none()).map(|(pid, _)| *pid).collect();
        for pid in open {
            let Some((id, from, to)) = self.moves.get(&pid).map(|m| (m.id, m.from, m.facts.to)) else { continue };
            let process = self.processes.get(&pid);
            let ghost = ghosts.contains(&pid) || process.is_some_and(|p| p.connected || p.held);
            let undecided = self.moves.get(&pid).is_some_and(|m| m.arrived.is_none());
            if from.is_some() && !ghost {
                if undecided && !self.arriving.contains_key(&(pid, id)) {
                    self.arrived(pid, id, Ok(()), out);
                    self.exited(pid, LOST, out);
                }
                self.kill_on_arrival(pid);
                self.ghost_gone(pid, out);
            } else if let (true, Some(to)) = (undecided, to)
                && !self.arriving.contains_key(&(pid, id))
            {
                self.arrived(pid, id, Err(Refusal::NodeDied(to)), out);
            }
        }
    }
}

impl Move {
    /// One that a former master began.
    fn taken_over(pid: Pid, id: MoveId, from: Option<NodeId>, to: Option<NodeId>) -> Move {
        let facts = MoveFacts {
            pid,
            parent: None,
            to,
            uid: 0,
            gids: BTreeSet::new(),
            speaker: None,
            owner: 0,
            comm: Vec::new(),
            relatives: Vec::new(),
            children: Vec::new(),
        };
        Move {
            id,
            ask: None,
            facts,
            from,
            phase: Phase::Sending,
            arrived: None,
            departed: None,
            frozen: true,
            taken: false,
            adopting: false,
            reaped: Vec::new(),
            signals: Vec::new(),
            kill: false,
        }
    }
}
