//! Nodes: attaching, lives, loss, and coming back after a restart of either side.

use super::model::{Action, Node, Order, Phase, Process, Refusal, View};
use super::moving::{Leaving, MoveId};
use super::{LOST, Master, Out};
use crate::lease::Block;
use bproc_common::id::{Epoch, NodeId, Pid};
use std::collections::{BTreeSet, HashSet};

/// What a node says of itself when it attaches.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The life of its space.
    pub epoch: Epoch,
    /// The life of its agent; events are numbered anew in each.
    pub instance: u64,
    /// Newest order that it has.
    pub orders_seen: u64,
    /// Processes there, and their parents.
    pub inventory: Vec<(Pid, Option<Pid>)>,
    /// Skeletons there.
    pub skeletons: Vec<Pid>,
    /// Blocks of pids that it holds.
    pub leases: Vec<Block>,
    /// Processes that stand still there in the last step of a move. They are in the inventory, too.
    pub leaving: Vec<Leaving>,
    /// Moves to the node that are in their last step there.
    pub arriving: Vec<(Pid, MoveId)>,
}

/// Why a node may not attach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// No such node is configured.
    Unknown,
    /// Another agent holds the node.
    Taken,
    /// This life was declared dead: its processes must end before a new one begins.
    Fenced,
}

impl Master {
    /// A node's agent attaches. On success returns the newest event that is known of this life.
    pub fn attach(&mut self, node: NodeId, hello: Attach, state: &str, out: &mut Out) -> Result<u64, Rejected> {
        let Some(n) = self.nodes.get_mut(&node.0) else { return Err(Rejected::Unknown) };
        if n.linked {
            return Err(Rejected::Taken);
        }
        let resumed = n.epoch == Some(hello.epoch);
        if resumed {
            // Acknowledgements may have been lost with the former link.
            self.orders_acknowledged(node, hello.orders_seen, out);
            let Some(n) = self.nodes.get_mut(&node.0) else { return Err(Rejected::Unknown) };
            if n.instance != hello.instance {
                n.instance = hello.instance;
                n.events = Default::default();
                n.orders.acknowledged(hello.orders_seen);
                // What the former agent had begun cannot be begun again: the streams may have been used. Its answers may
                // have been lost with it: what runs tells.
                n.orders.withdraw(|order| {
                    matches!(
                        order,
                        Order::Spawn(_)
                            | Order::Survey(..)
                            | Order::Receive(..)
                            | Order::Depart(..)
                            | Order::Children(..)
                    )
                });
                let there: HashSet<Pid> = hello.inventory.into_iter().map(|(pid, _)| pid).collect();
                let open = self.processes.iter().filter(|(_, p)| p.node == Some(node) && p.is_unanswered());
                let mut open: Vec<Pid> = open.map(|(pid, _)| *pid).collect();
                open.sort_unstable();
                for pid in open {
                    let runs = there.contains(&pid);
                    self.spawned(pid, if runs { Ok(()) } else { Err(Refusal::Interrupted(node)) }, out);
                }
                self.moves_of_new_agent(node, &there, &hello.leaving, out);
                for leaving in &hello.leaving {
                    self.leaving(Some(node), leaving, out);
                }
                self.reconcile(node, &there, out);
                self.count_continues(node);
                // That some of them have ended was perhaps told to the former agent only.
                for relative in hello.skeletons {
                    self.speak_for(relative, node, out);
                }
                self.tell_halted(node, out);
            }
            // Linked only now: what was ordered meanwhile must not overtake what is sent again.
            let Some(n) = self.nodes.get_mut(&node.0) else { return Err(Rejected::Unknown) };
            n.linked = true;
            let again = n.orders.resend_after(hello.orders_seen);
            out.extend(again.into_iter().map(|(number, order)| Action::Send(node, number, order)));
            return Ok(n.events.seen());
        }
        if n.epoch.is_none() && !self.recovering && !hello.inventory.is_empty() {
            return Err(Rejected::Fenced);
        }
        if n.epoch.is_some() {
            // The agent began a new life without a word: the old one is over.
            self.lose(node, out);
        }
        let Some(n) = self.nodes.get_mut(&node.0) else { return Err(Rejected::Unknown) };
        n.epoch = Some(hello.epoch);
        n.instance = hello.instance;
        n.linked = true;
        n.state = state.into();
        n.orders.reset();
        n.events = Default::default();
        let leaves = |pid: Pid| hello.leaving.iter().any(|leaving| leaving.pid == pid);
        for (pid, parent) in hello.inventory.into_iter().filter(|(pid, _)| !leaves(*pid)) {
            let process = self.processes.entry(pid).or_insert_with(|| Process::inherited(None));
            process.node = Some(node);
            process.parent = process.parent.or(parent);
            self.node_known(pid, node, out);
        }
        // Also those of a former master's time: whoever they speak for may have gone meanwhile.
        for relative in hello.skeletons {
            self.speak_for(relative, node, out);
        }
        let mut blocks: Vec<_> = hello.leases.into_iter().filter(|b| self.leases.claim(node, *b)).collect();
        if blocks.is_empty() {
            blocks.extend(self.leases.grant(node));
        }
        for block in blocks {
            self.order(node, Order::Lease(block), out);
        }
        self.arriving_at(node, &hello.arriving);
        for leaving in &hello.leaving {
            self.leaving(Some(node), leaving, out);
        }
        self.look_at_targets(out);
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(&node);
        }
        self.let_strangers_go(out);
        out.push(Action::NodesChanged);
        Ok(0)
    }

    /// A former master had these nodes: when each of them has said what runs there, nothing else does.
    pub fn await_nodes(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.awaited = Some(nodes.into_iter().collect()).filter(|nodes: &BTreeSet<_>| !nodes.is_empty());
    }

    /// Has this node yet to say what runs there?
    pub fn is_awaited(&self, node: NodeId) -> bool {
        self.awaited.as_ref().is_some_and(|nodes| nodes.contains(&node))
    }

    /// Those at the gate whom no node knows: they were to become programs, and were told why not.
    pub(super) fn let_strangers_go(&mut self, out: &mut Out) {
        if !self.recovering || self.awaited.as_ref().is_none_or(|nodes| !nodes.is_empty()) {
            return;
        }
        let unknown = |p: &Process| p.inherited && p.node.is_none() && p.at_gate && p.end.is_none();
        let strangers = self.processes.iter().filter(|(pid, p)| unknown(p) && !self.is_taken_over(**pid));
        let mut pids: Vec<Pid> = strangers.map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        for pid in pids {
            self.exited(pid, LOST, out);
            self.reaped(pid, out);
        }
    }

    /// Answers to SIGCONTs that were carried out may have been lost with a former agent; its successor tells how all stand.
    fn count_continues(&mut self, node: NodeId) {
        let orders = self.nodes.get(&node.0).into_iter().flat_map(|n| n.orders.iter());
        let continued: Vec<Pid> = orders.filter_map(super::signals::continues).collect();
        for (pid, process) in self.processes.iter_mut().filter(|(_, p)| p.node == Some(node)) {
            process.continues = continued.iter().filter(|p| *p == pid).count() as u32;
        }
    }

    /// The link broke; the node has until its time-out to come again.
    pub fn link_broken(&mut self, node: NodeId) {
        if let Some(n) = self.nodes.get_mut(&node.0) {
            n.linked = false;
        }
    }

    /// The node did not come back in time, or its life is known to be over.
    pub fn lost(&mut self, node: NodeId, out: &mut Out) {
        if self.nodes.get(&node.0).is_some_and(|n| n.epoch.is_some()) {
            self.lose(node, out);
            out.push(Action::NodesChanged);
        }
    }

    fn lose(&mut self, node: NodeId, out: &mut Out) {
        if let Some(n) = self.nodes.get_mut(&node.0) {
            n.epoch = None;
            n.linked = false;
            n.state = "down".into();
            n.orders.reset();
        }
        self.leases.release_all(node);
        self.moves_of_lost(node, out);
        for nodes in self.relatives.values_mut() {
            nodes.remove(&node);
        }
        self.reconcile(node, &HashSet::new(), out);
    }

    /// Whatever is not `there` any more is over.
    fn reconcile(&mut self, node: NodeId, there: &HashSet<Pid>, out: &mut Out) {
        let is_theirs = |p: &Process| p.node == Some(node);
        let theirs =
            self.processes.iter().filter(|(pid, p)| is_theirs(p) && !there.contains(pid) && !self.on_its_way(**pid));
        for pid in theirs.map(|(pid, _)| *pid).collect::<Vec<_>>() {
            if matches!(self.processes.get(&pid).map(|p| &p.phase), Some(Phase::Starting { .. })) {
                self.spawned(pid, Err(Refusal::NodeDied(node)), out);
            } else {
                self.exited(pid, LOST, out);
                self.reaped(pid, out);
            }
        }
    }

    /// Notes an event's number; false when it was seen before.
    pub fn accept_event(&mut self, node: NodeId, number: u64) -> bool {
        self.nodes.get_mut(&node.0).is_some_and(|n| n.events.accept(number))
    }

    /// The node wants another block of pids.
    pub fn low_lease(&mut self, node: NodeId, out: &mut Out) {
        match self.leases.grant(node) {
            Some(block) => self.order(node, Order::Lease(block), out),
            None => out.push(Action::Trouble(format!(
                "no block of pids left for node {node}: raise pid_max or make lease blocks smaller"
            ))),
        }
    }

    /// Time for halves to find each other after a restart is over: a ghost without a process ends, a process without
    /// a ghost is killed. What was started meanwhile is not concerned: its ghost may be about to connect.
    pub fn recovered(&mut self, ghosts: &HashSet<Pid>, out: &mut Out) {
        self.recovering = false;
        self.awaited = None;
        self.decide_left_over(ghosts, out);
        let mut pids: Vec<_> = self.processes.keys().copied().filter(|pid| !self.is_taken_over(*pid)).collect();
        pids.sort_unstable();
        for pid in pids {
            let Some(process) = self.processes.get_mut(&pid).filter(|p| p.inherited) else { continue };
            if process.node.is_none() {
                self.exited(pid, LOST, out);
            } else if !process.connected && !process.held && !ghosts.contains(&pid) {
                self.ghost_gone(pid, out);
            }
        }
    }

    pub(super) fn node_known(&mut self, pid: Pid, node: NodeId, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.made = true;
        out.push(Action::TrackSignals(pid));
        let early = std::mem::take(&mut process.early_signals);
        let (at_gate, from_here) = (process.at_gate, process.ghost_stopped.is_some());
        for (number, siginfo) in early {
            self.order(node, Order::Signal { pid, number, siginfo }, out);
        }
        if at_gate {
            self.kill_remote(pid, out);
        } else if from_here {
            self.order(node, Order::Stop(pid), out);
        }
    }

    pub(super) fn order(&mut self, node: NodeId, order: Order, out: &mut Out) {
        if let Some(n) = self.nodes.get_mut(&node.0).filter(|n| n.epoch.is_some()) {
            let number = n.orders.push(order.clone());
            if n.linked {
                out.push(Action::Send(node, number, order));
            }
        }
    }

    /// Reboot, halt or power off a node, or restart its agent.
    pub fn power(&mut self, node: NodeId, what: &str, out: &mut Out) -> Result<(), Refusal> {
        match self.nodes.get(&node.0) {
            None => Err(Refusal::NoSuchNode(node)),
            Some(n) if n.epoch.is_none() => Err(Refusal::NodeDown(node, n.state.clone())),
            Some(_) => {
                self.order(node, Order::Power(what.into()), out);
                Ok(())
            }
        }
    }

    /// What is shown of a node.
    pub fn view(&self, node: NodeId) -> Option<View> {
        let n = self.nodes.get(&node.0)?;
        let processes = self.processes.values().filter(|p| p.node == Some(node) && p.end.is_none()).count();
        Some(View { state: n.state.clone(), mode: n.mode, user: n.user, group: n.group, processes })
    }

    /// A node, to change its state, owner or mode.
    pub fn node_mut(&mut self, node: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&node.0)
    }

    /// A configuration that was read again: new nodes are there from now on, as given; nodes that it lacks go, unless
    /// one is attached, which is told and stays.
    pub fn configure(&mut self, nodes: impl IntoIterator<Item = (i32, Node)>, out: &mut Out) {
        let mut fresh: std::collections::BTreeMap<i32, Node> = nodes.into_iter().collect();
        let numbers: Vec<i32> = self.nodes.keys().copied().collect();
        for number in numbers {
            let attached = self.nodes.get(&number).is_some_and(|n| n.epoch.is_some());
            if fresh.remove(&number).is_some() {
                continue;
            }
            if attached {
                let node = NodeId(number);
                out.push(Action::Trouble(format!("node {node} is attached and stays, though no longer configured")));
            } else {
                self.nodes.remove(&number);
            }
        }
        self.nodes.append(&mut fresh);
        out.push(Action::NodesChanged);
    }

    /// Numbers of all nodes, ascending.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().map(NodeId).collect()
    }
}
