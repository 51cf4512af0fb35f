//! Blocks of pids. The master's own processes stay below a boundary; above it each node holds blocks from which its
//! forks take their numbers, so that a fork need not ask anyone.

use bproc_common::id::NodeId;
use std::collections::BTreeMap;

/// A run of pids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// First pid.
    pub start: i32,
    /// Number of pids.
    pub length: i32,
}

impl Block {
    /// One after the last pid.
    pub const fn end(self) -> i32 {
        self.start + self.length
    }

    /// True when the pid belongs to the block.
    pub const fn contains(self, pid: i32) -> bool {
        pid >= self.start && pid < self.end()
    }
}

/// Who holds which block.
#[derive(Debug)]
pub struct Leases {
    boundary: i32,
    limit: i32,
    length: i32,
    held: BTreeMap<i32, NodeId>,
    next: i32,
}

impl Leases {
    /// Blocks of `length` pids from `boundary` up to but not including `limit` (the kernel's pid_max).
    pub fn new(boundary: i32, limit: i32, length: i32) -> Leases {
        Leases { boundary, limit, length, held: BTreeMap::new(), next: boundary }
    }

    /// Blocks are given from this one on: masters that share a machine begin at different places.
    pub fn begin_at(&mut self, place: u64) {
        let blocks = ((self.limit - self.boundary) / self.length).max(1) as u64;
        self.next = self.boundary + (place % blocks) as i32 * self.length;
    }

    /// The pid is taken by somebody who is not ours: its block is given to nobody, unless a node says that it holds it.
    pub fn avoid(&mut self, pid: i32) {
        if pid >= self.boundary && pid < self.limit {
            let start = pid - (pid - self.boundary) % self.length;
            self.held.entry(start).or_insert(NodeId::NONE);
        }
    }

    /// Gives a free block to the node; `None` when all are held. Blocks are given in turn, so that one just
    /// returned is used again as late as possible.
    pub fn grant(&mut self, node: NodeId) -> Option<Block> {
        let blocks = (self.limit - self.boundary) / self.length;
        for _ in 0..blocks {
            let start = if self.next + self.length > self.limit { self.boundary } else { self.next };
            self.next = start + self.length;
            if let std::collections::btree_map::Entry::Vacant(free) = self.held.entry(start) {
                free.insert(node);
                return Some(Block { start, length: self.length });
            }
        }
        None
    }

    /// Notes a block that a node says it holds (after a restart of the master). False when another node holds it or
    /// it is no block of ours.
    pub fn claim(&mut self, node: NodeId, block: Block) -> bool {
        let ours = block.length == self.length
            && block.start >= self.boundary
            && block.end() <= self.limit
            && (block.start - self.boundary) % self.length == 0;
        if !ours {
            return false;
        }
        let holder = self.held.entry(block.start).or_insert(node);
        if *holder == NodeId::NONE {
            *holder = node;
        }
        *holder == node
    }

    /// The node's life is over: its blocks are free.
    pub fn release_all(&mut self, node: NodeId) {
        self.held.retain(|_, holder| *holder != node);
    }

    /// Blocks of a node.
    pub fn of(&self, node: NodeId) -> Vec<Block> {
        let mine = self.held.iter().filter(|(_, holder)| **holder == node);
        mine.map(|(start, _)| Block { start: *start, length: self.length }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pid_is_leased_twice() {
        let mut leases = Leases::new(1000, 1000 + 10 * 64, 64);
        let blocks: Vec<_> = (0..10).map(|i| leases.grant(NodeId(i % 3)).unwrap()).collect();
        for (i, a) in blocks.iter().enumerate() {
            assert!(blocks[i + 1..].iter().all(|b| !a.contains(b.start) && !b.contains(a.start)));
        }
        assert_eq!(leases.grant(NodeId(0)), None);
        leases.release_all(NodeId(1));
        assert_eq!(leases.grant(NodeId(5)), Some(blocks[1]));
        assert!(!leases.claim(NodeId(9), blocks[0]));
        assert!(leases.claim(NodeId(0), blocks[0]));
        assert!(!leases.claim(NodeId(0), Block { start: 1001, length: 64 }));
        let mut shared = Leases::new(1000, 1000 + 3 * 64, 64);
        shared.begin_at(1);
        shared.avoid(1000 + 64 + 5);
        assert_eq!(shared.grant(NodeId(0)).map(|b| b.start), Some(1000 + 2 * 64));
        assert!(shared.claim(NodeId(1), Block { start: 1064, length: 64 }));
    }
}
