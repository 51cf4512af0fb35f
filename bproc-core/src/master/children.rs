//! Children that stop and go on while their parents are elsewhere. The parent's ghost sees it, be the child a ghost or a
//! process of the master's own, and the node of the parent is told. (Of a child that is there, too, the kernel there tells.)

use super::model::{GhostCommand, Order, Process};
use super::{Master, Out};
use bproc_common::id::{NodeId, Pid};
use bproc_common::wait::Status;

impl Master {
    /// A ghost tells that a child has stopped or goes on.
    pub fn child_changed(&mut self, parent: Pid, child: Pid, status: Status, out: &mut Out) {
        match status {
            Status::Stopped(signal) => drop(self.halted.insert(child, signal.into())),
            Status::Continued => drop(self.halted.remove(&child)),
            Status::Exited(_) | Status::Killed { .. } => return,
        }
        for node in self.places_of(parent) {
            self.tell_of_child(node, child, out);
        }
    }

    /// Where it runs, or will in a moment.
    fn places_of(&self, pid: Pid) -> Vec<NodeId> {
        let here = self.processes.get(&pid).filter(|p| p.end.is_none()).and_then(|p| p.node);
        let there = self.target_of(pid).filter(|there| Some(*there) != here);
        here.into_iter().chain(there).collect()
    }

    fn tell_of_child(&mut self, node: NodeId, child: Pid, out: &mut Out) {
        if self.node_of(child) == Some(node) {
            return;
        }
        let order = match self.halted.get(&child) {
            Some(signal) => Order::RelativeStopped(child, *signal),
            None => Order::RelativeContinued(child),
        };
        self.order(node, order, out);
    }

    /// A process runs on a node: its children elsewhere may be stopped, and it may have been one that its parent, if that is
    /// on another machine, was not told of.
    pub(super) fn watch_family(&mut self, pid: Pid, children: &[Pid], out: &mut Out) {
        let parent = self.processes.get(&pid).and_then(|p| p.parent);
        self.watch_children(pid, out);
        for child in children {
            if let (true, Some(node)) = (self.halted.contains_key(child), self.node_of(pid)) {
                self.tell_of_child(node, *child, out);
            }
        }
        if let Some(parent) = parent {
            self.watch_child(parent, pid, out);
        }
    }

    fn watch_children(&mut self, pid: Pid, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid).filter(|p| p.end.is_none()) {
            process.tell(pid, GhostCommand::WatchChildren, out);
        }
    }

    /// A process has moved, or come home: its parent, if that is on a node, does not see any more how it is.
    pub(super) fn watch_child(&mut self, parent: Pid, pid: Pid, out: &mut Out) {
        self.watch_children(parent, out);
        if let (true, Some(node)) = (self.halted.contains_key(&pid), self.node_of(parent)) {
            self.tell_of_child(node, pid, out);
        }
    }

    /// One that has ended has left its children to its parent's ghost, as it would have natively: so the parent has asked to
    /// get orphans (a subreaper). `children` are all of the parent's. Where it runs their stand-ins must be there before that
    /// of the dead one ends.
    pub fn adopts(&mut self, parent: Pid, dead: Pid, children: &[Pid], out: &mut Out) {
        let Some(node) = self.whereabouts(parent) else { return };
        let known = |m: &Master, pid: &Pid| m.relatives.get(pid).is_some_and(|nodes| nodes.contains(&node));
        // Those that it has had before: where they have ended, their stand-ins have, too, and it may have reaped these.
        let own: Vec<Pid> = children.iter().copied().filter(|child| self.is_known_child(parent, *child)).collect();
        for child in children {
            if let Some(process) = self.processes.get_mut(child).filter(|p| p.parent == Some(dead)) {
                process.parent = Some(parent);
            }
        }
        if !known(self, &dead) {
            return;
        }
        let orphan = |pid: &Pid| *pid != dead && !own.contains(pid) && self.node_of(*pid) != Some(node);
        let orphans: Vec<Pid> = children.iter().copied().filter(|pid| orphan(pid) && !known(self, pid)).collect();
        if orphans.is_empty() {
            return;
        }
        for orphan in &orphans {
            if !self.processes.contains_key(orphan) {
                self.left_behind.insert(*orphan, parent);
            }
            self.speak_for(*orphan, node, out);
        }
        self.order(node, Order::Orphans(dead, orphans), out);
    }

    /// Was it told of this child, which has perhaps ended and was reaped there, but not here yet?
    fn is_known_child(&self, parent: Pid, child: Pid) -> bool {
        let reaps = |p: &Process| p.queue.contains(&GhostCommand::Reap(child));
        self.left_behind.get(&child) == Some(&parent)
            || self.processes.get(&child).is_some_and(|p| p.end.is_some() && p.parent == Some(parent))
            || self.processes.get(&parent).is_some_and(reaps)
    }

    /// A new agent of a node does not know who is stopped elsewhere.
    pub(super) fn tell_halted(&mut self, node: NodeId, out: &mut Out) {
        let has = |child: &&Pid| self.relatives.get(child).is_some_and(|nodes| nodes.contains(&node));
        for child in self.halted.keys().filter(has).copied().collect::<Vec<_>>() {
            self.tell_of_child(node, child, out);
        }
    }

    /// A child that was left on the master was reaped by its parent elsewhere.
    pub(super) fn left_behind_reaped(&mut self, pid: Pid, out: &mut Out) {
        let Some(parent) = self.left_behind.remove(&pid) else { return };
        if let Some(process) = self.processes.get_mut(&parent) {
            process.tell(parent, GhostCommand::Reap(pid), out);
        }
    }

    /// Whether the ghost of a process on a node is stopped; none for others.
    pub fn is_stopped(&self, pid: Pid) -> Option<bool> {
        self.processes.get(&pid).map(|process| process.ghost_stopped.is_some())
    }

    /// The node that a process is on; none on the master, and for one that nobody knows.
    pub fn whereabouts(&self, pid: Pid) -> Option<NodeId> {
        self.processes.get(&pid).filter(|p| p.end.is_none()).and_then(|p| p.node)
    }
}
