//! Children that stop and go on, or become orphans, while their parents are elsewhere. The parent's ghost sees it, be the child a ghost or a
//! process of the master's own, and the node of the parent is told. (Of a child that is there, too, the kernel there tells.)

use super::model::{Action, GhostCommand, Order, Process};
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

    /// One that has ended has left its children to the ghost of this one above it, as it would have natively: so that has asked
    /// to get orphans (a subreaper). `children` are all of the latter's; `between`: who is between the two, from the dead one up.
    /// Where it runs their stand-ins must be there before that of the dead one ends.
    pub fn adopts(&mut self, parent: Pid, dead: Pid, children: &[Pid], between: &[Pid], out: &mut Out) {
        // One that is about to be itself again here may have children of its own, which it has just forked.
        let Some(node) = self.whereabouts(parent).filter(|_| !self.is_being_taken(parent)) else { return };
        // Those that it has had before: where they have ended, their stand-ins have, too, and it may have reaped these.
        let own: Vec<Pid> = children.iter().copied().filter(|child| self.is_known_child(parent, *child)).collect();
        for child in children {
            if let Some(process) = self.processes.get_mut(child).filter(|p| p.parent == Some(dead)) {
                process.parent = Some(parent);
            }
        }
        if !self.has_stand_in(dead, node) && between.is_empty() {
            // The parent has been told of its end.
            return;
        }
        let orphans = children.iter().copied().filter(|pid| *pid != dead && !own.contains(pid)).collect();
        for orphan in self.send_orphans(dead, orphans, between, node, out) {
            if !self.processes.contains_key(&orphan) {
                self.left_behind.insert(orphan, parent);
            }
        }
    }

    /// One that has ended has left children, whose ghosts are nobody's now. A process of this node that is above it may have
    /// become a subreaper there, which only the kernel there knows.
    pub fn leaves(&mut self, dead: Pid, node: NodeId, between: &[Pid], out: &mut Out) {
        let orphans = self.children_of(dead);
        if self.has_stand_in(dead, node) || !between.is_empty() {
            self.send_orphans(dead, orphans, between, node, out);
        }
    }

    /// Who is known as the child of a process, and has a ghost.
    pub fn children_of(&self, parent: Pid) -> Vec<Pid> {
        let mut all: Vec<Pid> =
            self.processes.iter().filter(|(_, p)| p.parent == Some(parent)).map(|(pid, _)| *pid).collect();
        all.sort_unstable();
        all
    }

    /// One that has ended is nobody's parent any more: another process may get its number.
    pub fn leaves_nobody(&mut self, dead: Pid) {
        for process in self.processes.values_mut().filter(|p| p.parent == Some(dead)) {
            process.parent = None;
        }
    }

    fn has_stand_in(&self, pid: Pid, node: NodeId) -> bool {
        self.relatives.get(&pid).is_some_and(|nodes| nodes.contains(&node))
    }

    /// Has a node make stand-ins of orphans, except of those that are there. Returns of whom.
    fn send_orphans(
        &mut self,
        dead: Pid,
        mut orphans: Vec<Pid>,
        between: &[Pid],
        node: NodeId,
        out: &mut Out,
    ) -> Vec<Pid> {
        orphans.retain(|pid| self.node_of(*pid) != Some(node) && !self.has_stand_in(*pid, node));
        if orphans.is_empty() {
            return orphans;
        }
        for pid in orphans.iter().chain(between) {
            self.speak_for(*pid, node, out);
        }
        let line = if self.relatives.entry(dead).or_default().insert(node) { between.to_vec() } else { Vec::new() };
        self.order(node, Order::Orphans { dead, orphans: orphans.clone(), line }, out);
        orphans
    }

    /// A process has gone, and these children of its stay. Its ghost is their parent, and reaps those that it has reaped since.
    pub(super) fn has_children(&mut self, pid: Pid, children: &[Pid], reaped: &[Pid], out: &mut Out) {
        self.are_children_of(pid, children);
        for child in children.iter().filter(|child| !self.processes.contains_key(child)).copied().collect::<Vec<_>>() {
            self.left_behind.insert(child, pid);
            if reaped.contains(&child) {
                self.left_behind_reaped(child, out);
            }
        }
    }

    /// Orphans, too, are from now on whose ghosts the kernel says they are.
    pub(super) fn are_children_of(&mut self, pid: Pid, children: &[Pid]) {
        for child in children {
            if let Some(process) = self.processes.get_mut(child) {
                process.parent = Some(pid);
            }
        }
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

    /// One that has skeletons: its end is to be told. One whose ghost is yet to be made is not taken for one that is gone.
    pub(super) fn watch(&self, pid: Pid, out: &mut Out) {
        if self.processes.get(&pid).is_none_or(|p| !p.unborn) {
            out.push(Action::Watch(pid));
        }
    }

    /// Its ghost is there.
    pub(super) fn is_made(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.made = true;
        if std::mem::take(&mut process.unborn) && self.relatives.contains_key(&pid) {
            out.push(Action::Watch(pid));
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

    /// The parent of one that has a ghost, as far as is known.
    pub fn parent_of(&self, pid: Pid) -> Option<Pid> {
        self.processes.get(&pid).and_then(|p| p.parent)
    }

    /// A node says that one of its processes gets orphans: so does its ghost.
    pub fn is_subreaper(&mut self, node: NodeId, pid: Pid, out: &mut Out) {
        if let Some(process) = self.processes.get_mut(&pid).filter(|p| p.node == Some(node)) {
            process.tell(pid, GhostCommand::Subreaper, out);
        }
    }

    /// The node that a process is on; none on the master, and for one that nobody knows.
    pub fn whereabouts(&self, pid: Pid) -> Option<NodeId> {
        self.processes.get(&pid).filter(|p| p.end.is_none()).and_then(|p| p.node)
    }
}
