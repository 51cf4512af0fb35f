//! What `/proc` shows of ghosts here: the numbers that nodes tell of their processes, and what these used before.

use super::Actor;
use bproc_common::id::{NodeId, Pid};
use bproc_common::shown::Numbers;
use bproc_proto::link::Doing;
use bproc_sys::process::Process;

/// CPU time in clock ticks, in user mode and in the kernel.
type Times = [u64; 2];

/// CPU time of a process that is on a node.
pub(super) struct Used {
    node: NodeId,
    /// Before it came there, the ghost's own among it: a process that has left the master has become its ghost.
    before: Times,
    /// There, as was told last.
    there: Times,
}

impl Used {
    fn new(node: NodeId, before: Times) -> Used {
        Used { node, before, there: [0; 2] }
    }

    /// It is on this node and has used so much there. All that it has used.
    fn told(&mut self, node: NodeId, there: Times) -> Times {
        if self.node != node {
            self.before = sum(self.before, self.there);
            self.node = node;
        }
        self.there = there;
        sum(self.before, there)
    }
}

fn sum(a: Times, b: Times) -> Times {
    [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])]
}

impl Actor {
    /// What a node tells counts for the processes that are there.
    pub(super) fn show(&mut self, node: NodeId, doing: &Doing) {
        for told in &doing.processes {
            let Some(pid) = Pid::new(told.pid).filter(|pid| self.core.node_of(*pid) == Some(node)) else { continue };
            let used = self.used.entry(pid).or_insert_with(|| {
                let own = Process::open(pid).and_then(|process| process.stat());
                Used::new(node, own.map(|own| [own.utime, own.stime]).unwrap_or_default())
            });
            let [utime, stime] = used.told(node, [told.utime, told.stime]);
            let (threads, vsize, rss) = (told.threads.into(), told.vsize, told.rss);
            let state = u8::try_from(told.state).unwrap_or_default();
            self.kernel.show(pid, &Numbers { state, utime, stime, threads, vsize, rss });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_elsewhere_is_in_the_sum() {
        let mut used = Used::new(NodeId(1), [3, 1]);
        assert_eq!(used.told(NodeId(1), [10, 2]), [13, 3]);
        assert_eq!(used.told(NodeId(1), [12, 2]), [15, 3]);
        assert_eq!(used.told(NodeId(2), [0, 1]), [15, 4]);
        assert_eq!(used.told(NodeId(2), [5, 1]), [20, 4]);
        assert_eq!(used.told(NodeId(1), [1, 0]), [21, 4]);
    }
}
