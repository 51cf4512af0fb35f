//! Moving running processes: who goes where, in which order, and the way back from each phase.
//!
//! ```text
//!  asked ─▶ Surveying ──can move──▶ Receiving ──listens──▶ Sending ──arrived and departed──▶ moved
//!              │ cannot                │ cannot               │ failed at either end: runs on at the source
//!              └───────────────────────┴──────────────────────┴──▶ answered with the reason
//! ```
//!
//! On every machine where a process is known, something has its number and its place among parents, children, group
//! and session: the process itself, its ghost (on the master) or a skeleton (on a node). A process that comes is built
//! *into* that stand-in, one that goes becomes it. So nobody's parent or child changes by a move, on no machine.
//!
//! The word to go passes between the two machines directly; each tells the master what it knows, in its own stream of
//! events. The target's word decides: only it knows whether the process ever ran there. Signals that reach the ghost
//! meanwhile wait here.

mod handover;
mod held;

pub use handover::Leaving;

use super::model::{Action, Ask, GhostCommand, Order, Phase as Life, Process, Refusal};
use super::{Master, Out, SIGKILL};
use bproc_common::id::{NodeId, Pid};
use std::collections::BTreeSet;

const ECANCELED: i32 = 125;

/// What a move is decided by.
#[derive(Clone, Debug)]
pub struct MoveFacts {
    /// Who moves.
    pub pid: Pid,
    /// Its parent.
    pub parent: Option<Pid>,
    /// Where to; none: the master.
    pub to: Option<NodeId>,
    /// Effective uid of whoever asks.
    pub uid: u32,
    /// Effective gid and supplementary groups of whoever asks; if a node speaks for him, those of the process.
    pub gids: BTreeSet<u32>,
    /// The node that speaks for whoever asks; none: he asks on the master.
    pub speaker: Option<Speaker>,
    /// User whose process it is.
    pub owner: u32,
    /// Its name.
    pub comm: Vec<u8>,
    /// Pids that it refers to: parent, leaders of its group and session.
    pub relatives: Vec<Pid>,
    /// Its children, zombies too.
    pub children: Vec<Pid>,
}

/// A node that says who asks there.
#[derive(Clone, Copy, Debug)]
pub struct Speaker {
    /// The node.
    pub node: NodeId,
    /// Uid of the asker's ghost, which the master knows by itself; none: no process of the node's space.
    pub ghost: Option<u32>,
}

impl MoveFacts {
    /// By the rights of which user a process that is at `place` moves.
    ///
    /// Who is root of a node is root of what runs there, and of nothing else: its word on who asks counts as far as
    /// the master knows it, and beyond that for the node's own processes, which then go where their user may.
    ///
    /// # Errors
    /// It is not for this asker to move it.
    pub fn rights(&self, place: Option<NodeId>) -> Result<u32, Refusal> {
        let may = |uid: u32| uid == 0 || uid == self.owner;
        let Some(Speaker { node, ghost }) = self.speaker else {
            return if may(self.uid) { Ok(self.uid) } else { Err(Refusal::NotYours(self.pid)) };
        };
        if !may(self.uid) {
            return Err(Refusal::NotYours(self.pid));
        }
        // A process of root's may have become anybody's there; one of a user's that says to be another runs what has
        // his rights on that node.
        let known = ghost.map(|uid| if uid == 0 { self.uid } else { uid });
        match known.filter(|uid| may(*uid)) {
            Some(uid) => Ok(uid),
            None if place == Some(node) => Ok(self.owner),
            None => Err(Refusal::Unvouched(self.pid, node)),
        }
    }
}

/// Names one move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MoveId(pub u64);

/// What a source says at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Departed {
    /// It runs at the target; its stand-in is here, unless that died at once.
    Gone {
        /// It is.
        stand_in: bool,
        /// The process was stopped, and so is that; told of the master's own.
        stopped: bool,
    },
    /// It runs here still.
    Failed(Refusal),
    /// It stands still here until it is told what became of it.
    InDoubt,
    /// The source is lost with everything on it.
    Lost(NodeId),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Surveying,
    Receiving,
    Sending,
}

#[derive(Debug)]
pub(super) struct Move {
    pub(super) id: MoveId,
    /// None: a former master's client, who was told when the connection broke.
    ask: Option<Ask>,
    facts: MoveFacts,
    from: Option<NodeId>,
    phase: Phase,
    arrived: Option<Result<(), Refusal>>,
    departed: Option<Departed>,
    /// It stands still.
    frozen: bool,
    /// The ghost that it is built into has been given to the target's half.
    taken: bool,
    /// The target has yet to learn which children it has now; the source waits.
    adopting: bool,
    /// Children that it has reaped there before both ends had spoken.
    reaped: Vec<Pid>,
    /// Number and siginfo of signals that wait for its arrival.
    signals: Vec<(u32, Vec<u8>)>,
    kill: bool,
}

fn answer(ask: Option<Ask>, result: Result<(), Refusal>, out: &mut Out) {
    out.extend(ask.map(|ask| Action::Answer(ask, result)));
}

impl Master {
    /// Names moves from here on. A number that no former master has used: nodes may tell of its moves yet.
    pub fn name_moves_from(&mut self, number: u64) {
        self.last_move = number;
    }

    /// Somebody asks that a process be moved. For one that runs on the master it is known already that it can be.
    pub fn move_asked(&mut self, ask: Ask, facts: MoveFacts, out: &mut Out) {
        self.settle_calls(true, out);
        let pid = facts.pid;
        let process = self.processes.get(&pid);
        let from = process.and_then(|p| p.node);
        let lost_track = process.is_some_and(|p| p.node.is_none());
        let busy = self.moves.contains_key(&pid)
            || lost_track
            || process.is_some_and(|p| !matches!(p.phase, Life::Running) || p.orphan.is_some());
        let refusal = match facts.rights(from) {
            _ if process.is_some_and(|p| p.end.is_some() || p.at_gate || p.ghost_gone) => Some(Refusal::Ended(pid)),
            Err(refusal) => Some(refusal),
            Ok(_) if busy => Some(Refusal::Busy(pid)),
            Ok(uid) => facts.to.and_then(|to| self.refused_by(to, uid, &facts.gids)),
        };
        if let Some(refusal) = refusal {
            return out.push(Action::Answer(ask, Err(refusal)));
        }
        if from == facts.to {
            return out.push(Action::Answer(ask, Ok(())));
        }
        self.last_move = self.last_move.wrapping_add(1);
        let id = MoveId(self.last_move);
        let fresh = Move {
            id,
            ask: Some(ask),
            facts,
            from,
            phase: Phase::Surveying,
            arrived: None,
            departed: None,
            frozen: false,
            taken: false,
            adopting: false,
            reaped: Vec::new(),
            signals: Vec::new(),
            kill: false,
        };
        self.repeats_no_more(pid);
        self.moves.insert(pid, fresh);
        match from {
            Some(node) => self.order(node, Order::Survey(pid, id), out),
            None => self.surveyed(pid, id, Ok(()), out),
        }
    }

    /// The move of this process, if it is this one, in this phase.
    fn in_phase(&mut self, pid: Pid, id: MoveId, phase: Phase) -> Option<&mut Move> {
        self.moves.get_mut(&pid).filter(|m| m.id == id && m.phase == phase)
    }

    /// The source says whether it can move.
    pub fn surveyed(&mut self, pid: Pid, id: MoveId, result: Result<(), Refusal>, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Surveying) else { return };
        if let Err(refusal) = result {
            return self.move_failed(pid, refusal, out);
        }
        m.phase = Phase::Receiving;
        let Some(to) = m.facts.to else {
            return out.push(Action::ReceiveHere(pid, id));
        };
        // Its own number too, for as long as it has not come: its stand-in must hear of its end.
        let elsewhere: Vec<Pid> = m.facts.relatives.iter().chain(&m.facts.children).copied().chain([pid]).collect();
        if self.nodes.get(&to.0).is_none_or(|n| !n.is_reachable()) {
            return self.move_failed(pid, Refusal::NodeDied(to), out);
        }
        for relative in elsewhere {
            self.speak_for(relative, to, out);
        }
        self.order(to, Order::Receive(pid, id), out);
    }

    /// The target listens, or cannot receive.
    pub fn receiving(&mut self, pid: Pid, id: MoveId, result: Result<(), Refusal>, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Receiving) else { return };
        if let Err(refusal) = result {
            return self.move_failed(pid, refusal, out);
        }
        m.phase = Phase::Sending;
        match m.from {
            Some(node) => self.order(node, Order::Depart(pid, id), out),
            None => out.push(Action::SendFromHere(pid, id)),
        }
    }

    /// It is decided from whom the target gets the image, which others get too.
    pub fn relay(&mut self, pid: Pid, id: MoveId, out: &mut Out) {
        if let Some(to) = self.in_phase(pid, id, Phase::Sending).and_then(|m| m.facts.to) {
            self.order(to, Order::Relay(pid, id), out);
        }
    }

    /// The process stands still at the source, and all that it did before has been told. Its children, if they are
    /// others than were known when the move began: then the source waits until the target has them too.
    pub fn frozen(&mut self, pid: Pid, id: MoveId, children: Option<Vec<Pid>>, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Sending) else { return };
        m.frozen = true;
        let to = m.facts.to;
        if let Some(children) = children {
            m.facts.children.clone_from(&children);
            match to {
                Some(node) if m.arrived.is_none() => {
                    m.adopting = true;
                    for child in children {
                        self.speak_for(child, node, out);
                    }
                    self.order(node, Order::Children(pid, id), out);
                }
                // The ghost's children are what the process's are.
                _ => self.go_on(pid, id, out),
            }
        }
        self.take_ghost(pid, out);
    }

    /// The ghost becomes the process when every child that this has reaped is gone from among the ghost's, too.
    pub(super) fn take_ghost(&mut self, pid: Pid, out: &mut Out) {
        let unreaped = || self.processes.values().any(|p| p.parent == Some(pid) && p.reap && p.end.is_some());
        let wanted = |m: &Move| m.facts.to.is_none() && m.frozen && !m.taken && m.arrived.is_none();
        if !self.moves.get(&pid).is_some_and(wanted) || unreaped() {
            return;
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.unheld = true;
            if process.ghost_stopped.is_some() {
                // It obeys all the same what it was told before.
                out.push(Action::Thaw(pid));
            }
        }
        if let Some(m) = self.moves.get_mut(&pid) {
            m.taken = true;
            out.push(Action::TakeGhost(pid, m.id));
        }
    }

    /// It ended before its ghost was taken: its mover here, which waits for the ghost, is told that nothing comes.
    pub(super) fn cancel_homecoming(&mut self, pid: Pid, out: &mut Out) {
        let waits = |m: &&Move| m.phase == Phase::Sending && m.facts.to.is_none() && !m.taken && m.arrived.is_none();
        out.extend(self.moves.get(&pid).filter(waits).map(|m| Action::CancelHere(pid, m.id)));
    }

    /// The target has skeletons of the children that the process has, or cannot have.
    pub fn adopted_children(&mut self, pid: Pid, id: MoveId, result: Result<(), Refusal>, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Sending).filter(|m| m.adopting) else { return };
        m.adopting = false;
        match result {
            Ok(()) => self.go_on(pid, id, out),
            Err(refusal) => {
                // The source tells its end of it, the target that nothing comes.
                out.push(Action::Trouble(format!("the children of process {pid} at its target: {refusal:?}")));
                self.stay(pid, id, out);
            }
        }
    }

    /// The source need not wait any more.
    fn go_on(&mut self, pid: Pid, id: MoveId, out: &mut Out) {
        match self.moves.get(&pid).and_then(|m| m.from) {
            Some(node) => self.order(node, Order::GoOn(pid, id), out),
            None => out.push(Action::GoOnHere(pid, id)),
        }
    }

    /// The source is to give up.
    fn stay(&mut self, pid: Pid, id: MoveId, out: &mut Out) {
        match self.moves.get(&pid).and_then(|m| m.from) {
            Some(node) => self.order(node, Order::Cancel(pid, id), out),
            None => out.push(Action::ProceedHere(pid, id, false)),
        }
    }

    /// A process of the master's own is about to go: from now on it has a ghost.
    pub fn committing(&mut self, pid: Pid, id: MoveId, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Sending) else {
            return out.push(Action::ProceedHere(pid, id, false));
        };
        let lost = matches!(m.arrived, Some(Err(_)));
        let (to, parent, children) = (m.facts.to, m.facts.parent, m.facts.children.clone());
        if !lost {
            let starter = parent.and_then(|parent| self.starters.get(&parent).copied());
            self.processes.insert(pid, Process { unheld: true, starter, ..Process::new(to, parent) });
            self.are_children_of(pid, &children);
        }
        out.push(Action::ProceedHere(pid, id, !lost));
    }

    /// The target's last word.
    pub fn arrived(&mut self, pid: Pid, id: MoveId, result: Result<(), Refusal>, out: &mut Out) {
        let late = self.arriving.remove(&(pid, id)).filter(|_| result.is_ok());
        let Some(m) = self.moves.get_mut(&pid).filter(|m| m.id == id && m.arrived.is_none()) else {
            return late.into_iter().for_each(|node| self.arrived_unknown(pid, node, out));
        };
        if m.phase != Phase::Sending {
            let refusal = result.err().unwrap_or(Refusal::Busy(pid));
            return self.move_failed(pid, refusal, out);
        }
        let to = m.facts.to;
        if let (Ok(()), Some(process), Some(to)) = (&result, self.processes.get_mut(&pid), to) {
            process.node = Some(to);
        }
        m.arrived = Some(result);
        if let (Some(to), Some(_)) = (to, late) {
            self.node_known(pid, to, out);
        }
        self.settle_move(pid, out);
    }

    /// The source's last word.
    pub fn departed(&mut self, pid: Pid, id: MoveId, departed: Departed, out: &mut Out) {
        let Some(m) = self.in_phase(pid, id, Phase::Sending) else { return };
        m.departed = Some(departed);
        self.settle_move(pid, out);
    }

    fn settle_move(&mut self, pid: Pid, out: &mut Out) {
        let Some(m) = self.moves.get_mut(&pid) else { return };
        let (id, from, to) = (m.id, m.from, m.facts.to);
        match (&m.arrived, &m.departed) {
            (Some(Ok(())), Some(Departed::Gone { stand_in, stopped })) => {
                let (stand_in, stopped) = (*stand_in, *stopped);
                self.moved(pid, stand_in, stopped, out);
            }
            (Some(Ok(())), Some(Departed::Lost(_))) => self.moved(pid, false, false, out),
            (Some(Ok(())), Some(Departed::Failed(_))) => {
                out.push(Action::Trouble(format!("both ends of a move say that process {pid} runs there")));
                self.moved(pid, false, false, out);
            }
            (Some(Err(_)), Some(Departed::Failed(refusal))) => {
                let refusal = refusal.clone();
                self.move_failed(pid, refusal, out);
            }
            (Some(Err(_)), Some(Departed::Lost(node))) => {
                let node = *node;
                self.move_failed(pid, Refusal::NodeDied(node), out);
                self.exited(pid, SIGKILL, out);
                self.reaped(pid, out);
            }
            // Nobody has it any more: it died with whoever had it last. Its ghost is one again.
            (Some(Err(_)), Some(Departed::Gone { .. })) if to.is_none() => {
                self.move_failed(pid, Refusal::Ended(pid), out);
                if let Some(left) = from {
                    self.relatives.entry(pid).or_default().insert(left);
                    out.push(Action::Watch(pid));
                }
                self.exited(pid, SIGKILL, out);
                self.reaped(pid, out);
            }
            (Some(Err(_)), Some(Departed::Gone { stand_in, stopped })) => {
                let (stand_in, stopped) = (*stand_in, *stopped);
                self.moved(pid, stand_in, stopped, out);
                if let Some(to) = to {
                    // What it was to be built into stands there still.
                    self.relatives.entry(pid).or_default().insert(to);
                    out.push(Action::Watch(pid));
                }
                self.exited(pid, SIGKILL, out);
                self.reaped(pid, out);
            }
            (Some(result), Some(Departed::InDoubt)) => {
                let moved = result.is_ok();
                m.departed = None;
                self.decide(pid, id, from, moved, out);
            }
            // It waits for a target that is no more.
            (Some(Err(_)), None) if m.adopting => {
                m.adopting = false;
                self.stay(pid, id, out);
            }
            // The target notices by itself; this is quicker, and works when nothing was ever sent.
            (None, Some(Departed::Failed(_) | Departed::Lost(_))) => match to {
                Some(node) => self.order(node, Order::Cancel(pid, id), out),
                None => out.push(Action::CancelHere(pid, id)),
            },
            _ => {}
        }
    }

    fn moved(&mut self, pid: Pid, stand_in: bool, stopped: bool, out: &mut Out) {
        let Some(m) = self.moves.remove(&pid) else { return };
        if let Some(left) = m.from {
            self.relatives.entry(pid).or_default().insert(left);
            out.push(Action::Watch(pid));
        }
        let Some(to) = m.facts.to else {
            return self.came_home(pid, m, out);
        };
        if let Some(nodes) = self.relatives.get_mut(&pid) {
            nodes.remove(&to);
        }
        self.has_children(pid, &m.facts.children, &m.reaped, out);
        answer(m.ask, Ok(()), out);
        if m.from.is_none() {
            if stand_in {
                out.push(Action::Hold(pid));
                out.push(Action::TrackSignals(pid));
            } else if let Some(process) = self.processes.get_mut(&pid) {
                process.ghost_gone = true;
            }
            if let (Some(process), true) = (self.processes.get_mut(&pid), stand_in && stopped) {
                process.left_stopped();
            }
            if let (Some(process), false) = (self.processes.get_mut(&pid), m.facts.comm.is_empty()) {
                process.tell(pid, GhostCommand::Name(m.facts.comm.clone()), out);
            }
        }
        let children = m.facts.children.clone();
        self.deliver_held(pid, to, m, out);
        self.watch_family(pid, &children, out);
        if self.processes.get(&pid).is_some_and(|p| p.ghost_gone) {
            // It died in its last moment here; what it does there since has no ghost to show it.
            self.ghost_gone(pid, out);
        }
    }

    /// One that comes has reaped a child where it comes to.
    pub(super) fn reaped_on_arrival(&mut self, child: Pid) {
        let its =
            |m: &&mut Move| m.phase == Phase::Sending && m.facts.to.is_some() && m.facts.children.contains(&child);
        for m in self.moves.values_mut().filter(its) {
            m.reaped.push(child);
        }
    }

    /// The node to which it is going.
    pub(super) fn target_of(&self, pid: Pid) -> Option<NodeId> {
        self.moves.get(&pid).filter(|m| m.phase != Phase::Surveying).and_then(|m| m.facts.to)
    }

    /// The process took the ghost's place: it is an ordinary one of the master's again.
    fn came_home(&mut self, pid: Pid, m: Move, out: &mut Out) {
        self.leave_orphans(pid, out);
        let (parent, unreaped) = self.processes.remove(&pid).map(|p| (p.parent, p.unreaped)).unwrap_or_default();
        for child in unreaped {
            // It will reap the ghost itself.
            self.forget(child, out);
        }
        self.left_behind.retain(|_, parent| *parent != pid);
        if let Some(parent) = parent.filter(|parent| self.processes.contains_key(parent)) {
            // Who waits for it is elsewhere.
            self.left_behind.insert(pid, parent);
            self.watch_child(parent, pid, out);
        }
        out.push(Action::UntrackSignals(pid));
        out.extend(m.signals.into_iter().map(|(_, siginfo)| Action::SignalHome(pid, siginfo)));
        if m.kill {
            out.push(Action::KillHome(pid));
        }
        answer(m.ask, Ok(()), out);
    }

    /// The process runs on where it was.
    fn move_failed(&mut self, pid: Pid, refusal: Refusal, out: &mut Out) {
        let Some(m) = self.moves.remove(&pid) else { return };
        match (m.phase, &m.arrived, m.facts.to) {
            (Phase::Sending, Some(_), _) | (Phase::Surveying, ..) => {}
            (_, _, Some(node)) => self.order(node, Order::Cancel(pid, m.id), out),
            (_, _, None) => out.push(Action::CancelHere(pid, m.id)),
        }
        answer(m.ask, Err(refusal), out);
        match m.from {
            None => {
                // A ghost of a former master's time may have come meanwhile.
                let to = m.facts.to;
                if self.processes.get(&pid).is_some_and(|p| p.node == to || !p.inherited) {
                    let unreaped = self.processes.remove(&pid).map(|p| p.unreaped).unwrap_or_default();
                    for child in unreaped {
                        // It ended while it was thought to wait for its parent there.
                        self.forget(child, out);
                    }
                } else if let Some(node) = self.processes.get(&pid).and_then(|p| p.node) {
                    self.deliver_held(pid, node, m, out);
                }
            }
            Some(node) => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.node = Some(node);
                }
                if m.ask.is_none() {
                    self.node_known(pid, node, out);
                }
                if m.taken {
                    out.push(Action::Hold(pid));
                }
                if let (None, Some(process)) = (m.facts.to, self.processes.get_mut(&pid)) {
                    // Its ghost is a new one, or one that was left as it is.
                    process.tell(pid, GhostCommand::TakeSignals, out);
                    if m.taken {
                        process.tell(pid, GhostCommand::WatchChildren, out);
                    }
                }
                self.deliver_held(pid, node, m, out);
            }
        }
    }

    /// Is its ghost about to become the process?
    pub(super) fn is_being_taken(&self, pid: Pid) -> bool {
        self.moves.get(&pid).is_some_and(|m| m.taken)
    }

    /// Is it on its way?
    pub(super) fn on_its_way(&self, pid: Pid) -> bool {
        self.moves.get(&pid).is_some_and(|m| m.phase == Phase::Sending)
    }

    /// A node is lost: moves to it fail, and of those from it the target will tell.
    pub(super) fn moves_of_lost(&mut self, node: NodeId, out: &mut Out) {
        let concerned = |m: &Move| m.from == Some(node) || m.facts.to == Some(node);
        let mut pids: Vec<Pid> = self.moves.iter().filter(|(_, m)| concerned(m)).map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        for pid in pids {
            let Some(m) = self.moves.get_mut(&pid) else { continue };
            if m.phase != Phase::Sending {
                self.move_failed(pid, Refusal::NodeDied(node), out);
                continue;
            }
            if m.from == Some(node) {
                m.departed = Some(Departed::Lost(node));
            } else {
                // What has arrived there is gone again.
                m.arrived = Some(Err(Refusal::NodeDied(node)));
            }
            self.settle_move(pid, out);
        }
    }

    /// Nothing about where it is, or its ghost, is under way. True for the master's own, too.
    pub fn is_settled(&self, pid: Pid) -> bool {
        // One that was stopped before it could connect does so when it goes on.
        let told = |p: &Process| p.connected || p.ghost_stopped.is_some();
        let ready =
            |p: &Process| matches!(p.phase, Life::Running) && told(p) && !p.unheld && p.made && p.orphan.is_none();
        !self.moves.contains_key(&pid) && self.processes.get(&pid).is_none_or(|p| p.end.is_some() || ready(p))
    }
}
