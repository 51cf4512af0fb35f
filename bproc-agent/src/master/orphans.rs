//! Children of a process that has ended, and those above it who run on nodes and get them.

use super::Actor;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Action;
use bproc_sys::process::Process;

/// Ancestors at most that are looked at.
const LONGEST: usize = 64;

/// The parent of one that lives, or has not been reaped.
pub(super) fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = Process::open(pid).and_then(|p| p.stat()).ok()?;
    Pid::new(stat.ppid).filter(|parent| parent.get() > 1)
}

/// The parent of a ghost that has told it a moment ago, and may have become an orphan since.
pub(super) fn parent_now(pid: Pid, told: Option<Pid>) -> Option<Pid> {
    let stat = Process::open(pid).and_then(|p| p.stat());
    stat.map_or(told, |stat| Pid::new(stat.ppid).filter(|parent| parent.get() > 1))
}

impl Actor {
    /// One that has ended may have left its children to one above it.
    pub(super) fn adopts(&mut self, dead: Pid, out: &mut Vec<Action>) {
        self.look_for_heirs(dead, out);
        self.core.leaves_nobody(dead);
    }

    fn look_for_heirs(&mut self, dead: Pid, out: &mut Vec<Action>) {
        // Its zombie may have been reaped.
        let known = self.parents.remove(&dead);
        let mut next = parent_of(dead).or_else(|| self.core.parent_of(dead)).or(known);
        let (mut between, mut nodes): (Vec<Pid>, Vec<(NodeId, Vec<Pid>)>) = (Vec::new(), Vec::new());
        while let Some(above) = next.filter(|above| between.len() < LONGEST && !between.contains(above)) {
            if let Some(node) = self.core.whereabouts(above) {
                // Whom the kernel here gives them is who gets them there.
                let mut children = Process::open(above).and_then(|p| p.children()).unwrap_or_default();
                // Those that it has reaped where it is are none of its any more.
                let reaps = self.reaps.get(&above).map(Vec::as_slice).unwrap_or_default();
                children.retain(|child| !reaps.iter().any(|(reaped, r)| reaped == child && !r.is_finished()));
                self.core.adopts(above, dead, &children, &between, out);
                if nodes.iter().all(|(other, _)| *other != node) {
                    nodes.push((node, between.clone()));
                }
            }
            between.push(above);
            next = parent_of(above);
        }
        for (node, between) in nodes {
            self.core.leaves(dead, node, &between, out);
        }
    }
}
