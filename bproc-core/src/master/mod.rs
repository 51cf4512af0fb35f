//! Decisions of the master's agent: which processes run where, what their ghosts are told, what the nodes are told.
//!
//! ```text
//!  spawn ─▶ Starting ──(held by the keeper, runs on the node)──▶ Running ──(gone on the node)──▶ ended: gate opens
//!              │ failed: caller told, let go                        ▲ │
//!              ▼                                              fork ─┘ └─ ghost killed: SIGKILL to the node, gate stays shut
//! ```
//!
//! Each call takes one fact and appends what is to be done to `out`; the agent performs it in that order.
//! - this file: nodes, spawn, life and death of processes
//! - [`signals`]: signals, stop and continue · `groups`: signals to whole groups
//! - [`moving`]: processes go on elsewhere · `children`: children that are elsewhere · `starters`: what goes with its `bpsh`
//! - [`model`]: the state

mod children;
#[cfg(test)]
mod group_tests;
mod groups;
mod model;
pub mod moving;
#[cfg(test)]
mod moving_tests;
pub mod nodes;
#[cfg(test)]
mod orphan_tests;
mod signals;
#[cfg(test)]
mod starter_tests;
mod starters;
#[cfg(test)]
mod tests;

pub use groups::GroupCall;
pub use model::{Action, Ask, Child, GhostCommand, Node, Order, Refusal, SpawnFacts, View};
use model::{Phase, Process};
pub use starters::Starter;

use crate::group::Copies;
use crate::lease::Leases;
use bproc_common::id::{NodeId, Pid};
use bproc_common::wait::Status;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

const SIGKILL: i32 = 9;
/// Status of a process of which nobody knows how it ended.
const LOST: i32 = SIGKILL;
const ESRCH: i32 = 3;
const EAGAIN: i32 = 11;

/// State of the master.
#[derive(Debug)]
pub struct Master {
    nodes: BTreeMap<i32, Node>,
    processes: HashMap<Pid, Process>,
    /// Processes of the master's own that have skeletons, and where.
    relatives: HashMap<Pid, BTreeSet<NodeId>>,
    leases: Leases,
    recovering: bool,
    /// Nodes that a former master had, and that have not said what runs there; `None` when that is not known.
    awaited: Option<BTreeSet<NodeId>>,
    moves: HashMap<Pid, moving::Move>,
    /// Moves whose targets may let the process run any moment, as they said when they greeted.
    arriving: HashMap<(Pid, moving::MoveId), NodeId>,
    last_move: u64,
    /// Children on the master of processes that have gone, and their parents.
    left_behind: HashMap<Pid, Pid>,
    /// Ghosts that are being made by their parents', which are told beside.
    cloning: HashMap<Pid, Pid>,
    /// Children that are stopped, as their parents' ghosts tell, and by which signal.
    halted: BTreeMap<Pid, i32>,
    /// Every `bpsh` that lives.
    starters: HashMap<Pid, Starter>,
    /// Those that were killed last.
    condemned: VecDeque<Starter>,
    /// Signals to groups that nodes told of.
    repeated: VecDeque<groups::Repeated>,
    /// Signals to groups here.
    calls: VecDeque<groups::Call>,
    /// What ghosts got of them, and of which of them it is a copy; `None`: of one that nodes told of, which goes nowhere.
    copies: Copies<Option<u64>>,
}

type Out = Vec<Action>;

impl Master {
    /// A master with these nodes, all down. After a restart it is `recovering`: until [`Master::recovered`], ghosts
    /// without a node and processes without a ghost are kept, for their other halves may still be on the way.
    pub fn new(nodes: impl IntoIterator<Item = (i32, Node)>, leases: Leases, recovering: bool) -> Master {
        Master {
            nodes: nodes.into_iter().collect(),
            processes: HashMap::new(),
            relatives: HashMap::new(),
            leases,
            recovering,
            awaited: None,
            moves: HashMap::new(),
            arriving: HashMap::new(),
            last_move: 0,
            left_behind: HashMap::new(),
            cloning: HashMap::new(),
            halted: BTreeMap::new(),
            starters: HashMap::new(),
            condemned: VecDeque::new(),
            repeated: VecDeque::new(),
            calls: VecDeque::new(),
            copies: Copies::default(),
        }
    }

    /// A process asks to go on as a program on a node. Unless refused at once, the keeper holds the caller while the
    /// node starts the program; both answers lead to one [`Action::Answer`].
    pub fn spawn(&mut self, ask: Ask, facts: SpawnFacts, out: &mut Out) {
        let taken = self.processes.contains_key(&facts.pid) || self.moves.contains_key(&facts.pid);
        let refusal =
            self.refused_by(facts.node, facts.uid, &facts.gids).or_else(|| taken.then_some(Refusal::Busy(facts.pid)));
        if let Some(refusal) = refusal {
            out.push(Action::Answer(ask, Err(refusal)));
            return;
        }
        self.settle_calls(true, out);
        let mut process = Process::new(Some(facts.node), facts.parent);
        process.phase = Phase::Starting { ask, held: None, started: None };
        process.starter = facts.starter;
        self.starters.extend(facts.parent.zip(facts.starter));
        self.processes.insert(facts.pid, process);
        for relative in facts.relatives {
            self.speak_for(relative, facts.node, out);
        }
        out.push(Action::Hold(facts.pid));
        self.order(facts.node, Order::Spawn(facts.pid), out);
    }

    /// The node has, or will have, a skeleton of this one.
    fn speak_for(&mut self, relative: Pid, node: NodeId, out: &mut Out) {
        // A relative that is a ghost of the same node is there in person, unless its start has failed.
        let in_person = self.processes.get(&relative).is_some_and(|p| p.node == Some(node) && !p.has_not_started());
        if !in_person && self.relatives.entry(relative).or_default().insert(node) {
            self.watch(relative, out);
        }
    }

    /// Why a node takes nothing from this user.
    fn refused_by(&self, node: NodeId, uid: u32, gids: &BTreeSet<u32>) -> Option<Refusal> {
        match self.nodes.get(&node.0) {
            None => Some(Refusal::NoSuchNode(node)),
            Some(n) if !n.is_reachable() => Some(Refusal::NodeDown(node, n.state.clone())),
            Some(n) if !n.admits(uid, gids) => Some(Refusal::NotAllowed(node)),
            Some(_) => None,
        }
    }

    /// The keeper's answer to [`Action::Hold`].
    pub fn held(&mut self, pid: Pid, result: Result<(), i32>, out: &mut Out) {
        match self.processes.get_mut(&pid) {
            Some(Process { phase: Phase::Starting { held, .. }, .. }) => {
                *held = Some(result);
                self.start_decided(pid, out);
            }
            // One that has moved, or failed to: its ghost was nobody's for a moment.
            Some(process) if result.is_ok() => {
                process.unheld = false;
                process.tell_queue(pid, out);
                self.is_made(pid, out);
            }
            Some(_) => self.ghost_gone(pid, out),
            None => {}
        }
    }

    /// The node's answer to [`Order::Spawn`].
    pub fn spawned(&mut self, pid: Pid, result: Result<(), Refusal>, out: &mut Out) {
        let failed = result.is_err();
        match self.processes.get_mut(&pid) {
            // Begun by a former master: its caller was told when the connection broke, and waits at the gate perhaps.
            Some(Process { phase: Phase::Running, inherited: true, .. }) if failed => {
                self.exited(pid, LOST, out);
                self.reaped(pid, out);
            }
            Some(Process { phase: Phase::Starting { started, .. }, .. }) => {
                // The first word counts: what else is found when a node attaches anew is no other answer.
                started.get_or_insert(result);
                self.start_decided(pid, out);
            }
            // A master that began anew meets an answer whose question it does not know. What runs was in the inventory.
            _ => {}
        }
    }

    fn start_decided(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Phase::Starting { ask, held: Some(held), started: Some(started) } = &process.phase else { return };
        let (ask, held, started) = (*ask, *held, started.clone());
        match (held, started) {
            (Ok(()), Ok(())) => {
                process.phase = Phase::Running;
                process.made = true;
                let (at_gate, early) = (process.at_gate, std::mem::take(&mut process.early_signals));
                out.push(Action::TrackSignals(pid));
                out.push(Action::Answer(ask, Ok(())));
                if let Some(node) = self.node_of(pid) {
                    for (number, siginfo) in early {
                        self.order(node, Order::Signal { pid, number, siginfo }, out);
                    }
                }
                self.is_made(pid, out);
                if at_gate {
                    // The caller was killed while it waited.
                    self.kill_remote(pid, out);
                }
            }
            (held, Err(refusal)) => {
                let at_gate = process.at_gate;
                let early = std::mem::take(&mut process.early_signals);
                self.processes.remove(&pid);
                if held.is_ok() {
                    out.push(if at_gate { Action::Release(pid) } else { Action::LetGo(pid) });
                }
                out.push(Action::Answer(ask, Err(refusal)));
                out.extend(early.into_iter().map(|(_, siginfo)| Action::SignalLocal(pid, siginfo)));
            }
            (Err(errno), Ok(())) => {
                out.push(Action::Answer(ask, Err(Refusal::CannotHold(pid, errno))));
                process.phase = Phase::Running;
                process.ghost_gone = true;
                self.leave_orphans(pid, out);
                self.kill_remote(pid, out);
            }
        }
    }

    /// A process on a node forked. Its ghost's clone becomes the child's ghost.
    pub fn forked(&mut self, node: NodeId, parent: Option<Pid>, child: Child, out: &mut Out) {
        let is_body = self.moves.contains_key(&child.pid) || self.arriving.keys().any(|(pid, _)| *pid == child.pid);
        if self.processes.contains_key(&child.pid) || is_body {
            // Told again after a restart; the ghost made before is the right one. A body only looks like a process already.
            return;
        }
        let mut process = Process::new(Some(node), parent);
        process.orphan = Some(child.clone());
        process.unborn = true;
        process.starter = parent.and_then(|parent| self.processes.get(&parent)?.starter);
        let pid = child.pid;
        self.processes.insert(pid, process);
        out.push(Action::TrackSignals(pid));
        match parent.and_then(|p| self.processes.get_mut(&p).filter(|p| p.can_act()).map(|q| (p, q))) {
            Some((p, q)) => {
                if q.ghost_stopped.is_some() {
                    out.push(Action::Thaw(p));
                }
                q.tell(p, GhostCommand::Clone(child.pid), out);
                self.cloning.insert(child.pid, p);
            }
            None => out.push(Action::NurseryClone(child)),
        }
        self.kill_condemned(pid, out);
    }

    /// A ghost answered the command to clone. One that ended without an answer may have carried it out: `Err(ESRCH)` is
    /// to be told after all that the keeper has seen until then.
    pub fn cloned(&mut self, child: Pid, result: Result<(), i32>, out: &mut Out) {
        if let Some(parent) = self.cloning.remove(&child) {
            self.ghost_ready(parent, out);
        }
        let Some(process) = self.processes.get_mut(&child) else { return };
        let orphan = process.orphan.take();
        let Err(errno) = result else { return };
        if process.made {
            // Whoever made it ended before it could say so.
            return;
        }
        if process.end.is_some() {
            // Over before it was shown.
            process.ghost_gone = true;
            self.leave_orphans(child, out);
            self.forget(child, out);
            return;
        }
        if let (ESRCH | EAGAIN, Some(child)) = (errno, orphan) {
            // The parent's ghost died before it could: the child is an orphan, no more. Or its user has as many processes
            // on the master as he may: what runs on a node counts there.
            out.push(Action::NurseryClone(child));
            return;
        }
        process.ghost_gone = true;
        out.push(Action::Trouble(format!(
            "no ghost for process {child}: clone failed with errno {errno} (is the pid taken on the master?); it is killed on its node"
        )));
        self.kill_remote(child, out);
        // It makes no ghosts of its own children.
        self.leave_orphans(child, out);
    }

    /// Its ghost has yet to make others.
    fn is_cloning(&self, pid: Pid) -> bool {
        self.cloning.values().any(|parent| *parent == pid)
    }

    /// A process on a node exec'ed or was renamed.
    pub fn execed(&mut self, pid: Pid, comm: Vec<u8>, command_line: Vec<u8>, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid) {
            if !command_line.is_empty() {
                process.tell(pid, GhostCommand::CommandLine(command_line), out);
            }
            process.tell(pid, GhostCommand::Name(comm), out);
        }
    }

    /// Process group and session of a process on a node.
    pub fn grouped(&mut self, pid: Pid, pgid: i32, sid: i32, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid) {
            let leads = sid == pid.get();
            process.tell(pid, if leads { GhostCommand::Session } else { GhostCommand::Group(pgid) }, out);
        }
    }

    /// A process on a node has another owner.
    pub fn owned(&mut self, pid: Pid, uid: u32, gid: u32, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.tell(pid, GhostCommand::Owner(uid, gid), out);
        }
    }

    /// A process is gone from its node (or will never be seen again): its ghost ends the same way, and the gate opens.
    pub fn exited(&mut self, pid: Pid, status: i32, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.end.is_some() {
            return;
        }
        process.end = Some(status);
        self.halted.remove(&pid);
        self.leave_zombies(pid, out);
        self.cancel_homecoming(pid, out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.ghost_gone {
            self.forget(pid, out);
            return;
        }
        out.push(Action::Release(pid));
        if process.at_gate {
            return;
        }
        match Status::from_raw(status) {
            Status::Killed { signal, .. } if i32::from(signal) == SIGKILL => {
                out.push(Action::KillGhost(pid));
                if !process.connected {
                    // Perhaps it is yet to be made.
                    process.tell(pid, GhostCommand::Die(SIGKILL), out);
                }
            }
            Status::Killed { signal, .. } => {
                process.wake(pid, out);
                process.tell(pid, GhostCommand::Die(signal.into()), out);
            }
            Status::Exited(code) => {
                process.wake(pid, out);
                process.tell(pid, GhostCommand::Exit(code.into()), out);
            }
            // Not an end: a node that says so is wrong, but its process is gone.
            Status::Stopped(_) | Status::Continued => out.push(Action::KillGhost(pid)),
        }
    }

    /// The parent on the node reaped the process: the parent's ghost reaps the ghost.
    pub fn reaped(&mut self, pid: Pid, out: &mut Out) {
        self.reaped_on_arrival(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return self.left_behind_reaped(pid, out) };
        process.reap = true;
        if process.ghost_gone && process.end.is_some() {
            self.forget(pid, out);
        }
    }

    /// Keeper: the ghost waits at the gate though its process has not ended: it was killed.
    pub fn at_gate(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else {
            if !self.recovering {
                out.push(Action::Release(pid));
            }
            return;
        };
        process.at_gate = true;
        self.leave_orphans(pid, out);
        self.leave_zombies(pid, out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.end.is_some() {
            out.push(Action::Release(pid));
        } else if matches!(process.phase, Phase::Running) {
            self.kill_remote(pid, out);
        }
        self.let_strangers_go(out);
    }

    /// Keeper: the ghost is gone.
    pub fn ghost_gone(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.ghost_gone = true;
        process.connected = false;
        self.leave_orphans(pid, out);
        self.leave_zombies(pid, out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.end.is_some() {
            self.forget(pid, out);
        } else if matches!(process.phase, Phase::Running) {
            self.kill_remote(pid, out);
        }
    }

    /// Keeper: a child of a ghost is held (it was held before it ran its first instruction).
    pub fn adopted(&mut self, pid: Pid, parent: Option<Pid>, out: &mut Out) {
        if self.recovering {
            self.processes.entry(pid).or_insert_with(|| Process::inherited(parent));
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.held = true;
        }
        self.is_made(pid, out);
        self.look_at_target(pid, out);
    }

    /// A ghost connected and told its parent.
    pub fn ghost_connected(&mut self, pid: Pid, parent: Option<Pid>, out: &mut Out) {
        if !self.processes.contains_key(&pid) {
            if !self.recovering {
                // Nothing is known of its process: it cannot be one of ours.
                out.push(Action::KillGhost(pid));
                out.push(Action::Release(pid));
                return;
            }
            self.processes.insert(pid, Process::inherited(parent));
        }
        let taken = self.is_being_taken(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.connected = true;
        process.parent = parent;
        if process.ghost_stopped == Some(model::Stopped::Before) {
            // Continued before the keeper held it.
            (process.ghost_stopped, process.continue_due) = (None, true);
        }
        if self.recovering && process.inherited && !taken {
            // It may have been on its way home, or away, and nobody's when the former agent ended.
            out.push(Action::Hold(pid));
        }
        process.tell_queue(pid, out);
        if process.ghost_stopped.is_some() {
            process.tell(pid, GhostCommand::Report, out);
        }
        self.is_made(pid, out);
        self.look_at_target(pid, out);
    }

    /// The connection of a ghost broke; it will come again if it lives.
    pub fn ghost_disconnected(&mut self, pid: Pid) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.connected = false;
        }
    }

    /// A process that has skeletons has ended with this wait status (0 when nobody knows).
    pub fn relative_gone(&mut self, pid: Pid, status: i32, out: &mut Out) {
        self.halted.remove(&pid);
        self.starter_gone(pid, out);
        // Its ghost may have been reaped before anybody could look.
        let known = self.processes.get(&pid).and_then(|p| p.end).filter(|_| status == 0);
        let status = known.unwrap_or(status);
        for node in self.relatives.remove(&pid).unwrap_or_default() {
            self.order(node, Order::RelativeGone(pid, status), out);
        }
    }

    /// All processes that run on nodes, with their node (none while that is not known again).
    pub fn processes(&self) -> Vec<(Pid, Option<NodeId>)> {
        let mut all: Vec<_> =
            self.processes.iter().filter(|(_, p)| p.end.is_none()).map(|(pid, p)| (*pid, p.node)).collect();
        all.sort_unstable();
        all
    }

    /// The terminal of a process gets another size, told by its parent. False when that has no such child on a node.
    pub fn resize(&mut self, pid: Pid, parent: Pid, winsize: Vec<u8>, out: &mut Out) -> bool {
        let process = self.processes.get(&pid).filter(|p| p.parent == Some(parent) && p.end.is_none());
        let Some(node) = process.and_then(|p| p.node) else { return false };
        self.order(node, Order::Resize(pid, winsize), out);
        true
    }

    /// Somebody has changed how its ghost is scheduled or limited. False while it is not known where it is and stays.
    pub fn tune(&mut self, pid: Pid, change: Vec<u8>, out: &mut Out) -> bool {
        let Some(node) = self.whereabouts(pid).filter(|_| self.is_settled(pid)) else { return false };
        self.order(node, Order::Tune(pid, change), out);
        true
    }

    /// Processes that have ended and are kept until their parent, which is told beside, has reaped them there and here.
    pub fn zombies(&self) -> Vec<(Pid, Option<Pid>)> {
        self.processes.iter().filter(|(_, p)| p.end.is_some()).map(|(pid, p)| (*pid, p.parent)).collect()
    }

    /// Node of a process of the space; `None` for an unknown one.
    pub fn node_of(&self, pid: Pid) -> Option<NodeId> {
        self.processes.get(&pid).and_then(|p| p.node)
    }

    /// Ghosts that a dead one was still to make are made by the nursery.
    fn leave_orphans(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        for command in std::mem::take(&mut process.queue) {
            if let GhostCommand::Clone(child) = command {
                self.cloned(child, Err(ESRCH), out);
            }
        }
    }

    /// Ends the process on its node; idempotent.
    fn kill_remote(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.killed || process.end.is_some() {
            return;
        }
        if let Some(node) = process.node {
            process.killed = true;
            self.kill_on_arrival(pid);
            self.order(node, Order::Kill(pid), out);
        }
    }

    /// A process that reaps no more: its children that have ended are over, here and there.
    fn leave_zombies(&mut self, pid: Pid, out: &mut Out) {
        let unreaped = self.processes.get_mut(&pid).map(|p| std::mem::take(&mut p.unreaped)).unwrap_or_default();
        for child in unreaped {
            if self.processes.get(&child).is_some_and(|p| p.ghost_gone && p.end.is_some()) {
                self.forget(child, out);
            }
        }
    }

    fn forget(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get(&pid) else { return };
        let parent = process.parent.and_then(|p| self.processes.get(&p).filter(|q| q.can_act()).map(|_| p));
        match parent {
            // A child of a ghost stays a zombie until its process was reaped on the node.
            Some(parent) if process.reap => {
                if let Some(p) = self.processes.get_mut(&parent) {
                    p.tell(parent, GhostCommand::Reap(pid), out);
                }
            }
            Some(parent) => {
                if let Some(p) = self.processes.get_mut(&parent) {
                    p.unreaped.push(pid);
                }
                return;
            }
            None => {}
        }
        if let Some(node) = process_node(&self.processes, pid) {
            self.order(node, Order::Forget(pid), out);
        }
        let over = self.processes.remove(&pid);
        let parent = over.as_ref().and_then(|p| p.parent);
        if let Some(status) = over.filter(|p| p.unborn).and_then(|p| p.end) {
            // It never had a ghost whose end could be seen.
            self.relative_gone(pid, status, out);
        }
        self.copies.forget(pid.get());
        self.left_behind.retain(|_, parent| *parent != pid);
        out.push(Action::UntrackSignals(pid));
        if let Some(parent) = parent {
            self.take_ghost(parent, out);
        }
    }
}

fn process_node(processes: &HashMap<Pid, Process>, pid: Pid) -> Option<NodeId> {
    processes.get(&pid).and_then(|p| p.node)
}
