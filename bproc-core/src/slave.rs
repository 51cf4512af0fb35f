//! Decisions of a node's agent: the order in which skeletons are made, and which block of pids forks take from.

use crate::lease::Block;
use std::collections::BTreeSet;

/// Someone whom a new process refers to by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relative {
    /// Pid in the space.
    pub pid: i32,
    /// Its parent. A skeleton has it only where it is there, and in the same session or the parent of one that leads its own.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
}

/// One step of putting a process and its relatives into the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The process `by` (1: the space's init) clones `pid`.
    Clone {
        /// Who clones: a skeleton or init.
        by: i32,
        /// The new one.
        pid: i32,
    },
    /// `pid` makes a session of its own.
    Session {
        /// Who.
        pid: i32,
    },
    /// `pid` joins a group, or leads one where `pgid == pid`.
    Group {
        /// Who.
        pid: i32,
        /// Which group.
        pgid: i32,
    },
}

/// Steps that must be done in order so that `new` can be cloned by its parent with the right numbers, the last being
/// its own cloning. `here` holds the pids in the namespace already; `relatives` tells what is known of the others. A
/// number of which nothing is known is not made: `new` then has init as parent, or leads its own group or session.
pub fn plan(new: Relative, relatives: &[Relative], here: &BTreeSet<i32>) -> Vec<Step> {
    let mut plan = Plan { relatives, there: here.clone(), begun: BTreeSet::from([new.pid]), steps: Vec::new() };
    let parent = plan.known(new.ppid);
    if new.sid != new.pid {
        plan.lead(new.sid);
    }
    if let Some(parent) = parent {
        plan.make(parent);
    }
    if new.pgid != new.pid {
        plan.join(new.pgid, new.sid);
    }
    // A parent in another session cannot give it to the child: a member of the right one clones it then.
    let by = match parent {
        _ if here.contains(&new.ppid) && new.ppid > 1 => new.ppid,
        Some(p) if p.sid == new.sid || new.sid == new.pid => p.pid,
        _ if plan.there.contains(&new.sid) => new.sid,
        Some(p) => p.pid,
        None => 1,
    };
    let mut steps = plan.steps;
    steps.push(Step::Clone { by, pid: new.pid });
    if new.sid == new.pid {
        steps.push(Step::Session { pid: new.pid });
    } else {
        steps.push(Step::Group { pid: new.pid, pgid: new.pgid });
    }
    steps
}

/// What is planned so far.
struct Plan<'a> {
    relatives: &'a [Relative],
    there: BTreeSet<i32>,
    /// Those who wait for others, or are there.
    begun: BTreeSet<i32>,
    steps: Vec<Step>,
}

impl Plan<'_> {
    fn known(&self, pid: i32) -> Option<Relative> {
        self.relatives.iter().copied().find(|r| r.pid == pid)
    }

    /// The leader of a session. Its parent in another one is made first, who may come here, too, and wait for it.
    fn lead(&mut self, sid: i32) {
        let leader = Relative { pid: sid, ppid: 1, pgid: sid, sid };
        let known = self.known(sid).filter(|r| r.sid == sid).map_or(leader, |r| Relative { pgid: sid, ..r });
        self.make(known);
    }

    /// The leader of a group in this session, which others have.
    fn join(&mut self, pgid: i32, sid: i32) {
        if pgid != sid {
            let r = self.known(pgid).unwrap_or(Relative { pid: pgid, ppid: 1, pgid, sid });
            self.make(Relative { pgid, sid, ..r });
        }
    }

    /// One after its ancestors, as far as they are told, and its leaders.
    fn make(&mut self, r: Relative) {
        if r.pid <= 1 || self.there.contains(&r.pid) || !self.begun.insert(r.pid) {
            return;
        }
        if r.sid != r.pid {
            self.lead(r.sid);
        }
        if let Some(parent) = self.known(r.ppid) {
            self.make(parent);
        }
        if r.sid != r.pid && r.pgid != r.pid {
            self.join(r.pgid, r.sid);
        }
        let in_session =
            r.ppid == r.sid || r.sid == r.pid || self.known(r.ppid).is_some_and(|parent| parent.sid == r.sid);
        let by = match r.ppid {
            // Its own parent, so that it has the right one should it ever become more than a skeleton.
            ppid if ppid > 1 && self.there.contains(&ppid) && in_session => ppid,
            _ if r.sid != r.pid && self.there.contains(&r.sid) => r.sid,
            _ => 1,
        };
        self.steps.push(Step::Clone { by, pid: r.pid });
        self.there.insert(r.pid);
        if r.sid == r.pid {
            self.steps.push(Step::Session { pid: r.pid });
        } else if r.pgid == r.pid || self.there.contains(&r.pgid) {
            self.steps.push(Step::Group { pid: r.pid, pgid: r.pgid });
        }
    }
}

/// The node's blocks of pids and the one in use.
#[derive(Debug, Default)]
pub struct Blocks {
    held: Vec<Block>,
    current: usize,
    asked: bool,
}

/// What the pid of a fresh fork calls for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cursor {
    /// Nothing.
    Stay,
    /// Forks are to go on from the block's start.
    MoveTo(Block),
}

impl Blocks {
    /// A block was leased. Returns where the cursor goes when it is the first.
    pub fn add(&mut self, block: Block) -> Cursor {
        self.asked = false;
        if !self.held.contains(&block) {
            self.held.push(block);
        }
        if self.held.len() == 1 { Cursor::MoveTo(block) } else { Cursor::Stay }
    }

    /// The space was found as a former agent left it: its last fork got this number. Forks go on from there, if it is in a
    /// block: the numbers before it may still be those of ghosts.
    pub fn resume(&mut self, last: i32) -> Cursor {
        let next = last.saturating_add(1);
        let at = |pid| self.held.iter().position(|block| block.contains(pid));
        match (at(next).or_else(|| at(last)), self.held.first()) {
            (Some(index), _) => {
                self.current = index;
                Cursor::Stay
            }
            (None, Some(first)) => Cursor::MoveTo(*first),
            (None, None) => Cursor::Stay,
        }
    }

    /// All blocks.
    pub fn held(&self) -> &[Block] {
        &self.held
    }

    /// A fork got `pid`; `alive` processes live in the space. Near the end of a block the next one is taken in turn.
    /// The second value is true when the master is to be asked for one more block.
    pub fn forked(&mut self, pid: i32, alive: usize) -> (Cursor, bool) {
        let Some(block) = self.held.get(self.current).copied() else { return (Cursor::Stay, false) };
        let capacity: i64 = self.held.iter().map(|b| i64::from(b.length)).sum();
        // With one block there is no next; with half of all pids alive, going round finds mostly taken ones.
        let short = self.held.len() < 2 || alive as i64 * 2 > capacity;
        let ask = short && !self.asked;
        self.asked |= ask;
        let low_water = block.end() - block.length / 4;
        // Forks that were under way when the cursor moved still come from the former block: they call for nothing.
        let astray = !self.held.iter().any(|b| b.contains(pid));
        if (block.contains(pid) && pid >= low_water) || astray {
            self.current = (self.current + 1) % self.held.len();
            return (Cursor::MoveTo(self.held[self.current]), ask);
        }
        (Cursor::Stay, ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpsh_under_a_shell() {
        // bash 40000 leads the session, bpsh 50001 its group and is the parent of 54321.
        let bpsh = Relative { pid: 50001, ppid: 40000, pgid: 50001, sid: 40000 };
        let new = Relative { pid: 54321, ppid: 50001, pgid: 50001, sid: 40000 };
        let steps = plan(new, &[bpsh], &BTreeSet::from([1]));
        assert_eq!(
            steps,
            [
                Step::Clone { by: 1, pid: 40000 },
                Step::Session { pid: 40000 },
                Step::Clone { by: 40000, pid: 50001 },
                Step::Group { pid: 50001, pgid: 50001 },
                Step::Clone { by: 50001, pid: 54321 },
                Step::Group { pid: 54321, pgid: 50001 },
            ]
        );
        let again = plan(Relative { pid: 54322, ..new }, &[bpsh], &BTreeSet::from([1, 40000, 50001]));
        assert_eq!(again.len(), 2);
    }

    #[test]
    fn a_session_leader_of_its_own() {
        let new = Relative { pid: 10, ppid: 5, pgid: 10, sid: 10 };
        let parent = Relative { pid: 5, ppid: 1, pgid: 5, sid: 5 };
        let steps = plan(new, &[parent], &BTreeSet::from([1]));
        assert_eq!(steps[2..], [Step::Clone { by: 5, pid: 10 }, Step::Session { pid: 10 }]);
    }

    #[test]
    fn a_leader_below_a_parent_in_another_session() {
        // 5 and its child 6 are in one session, 6's child 10 leads another, and 11 is in it.
        let parent = Relative { pid: 6, ppid: 5, pgid: 5, sid: 5 };
        let leader = Relative { pid: 10, ppid: 6, pgid: 10, sid: 10 };
        let new = Relative { pid: 11, ppid: 10, pgid: 10, sid: 10 };
        let steps = plan(new, &[leader, parent], &BTreeSet::from([1]));
        let expected = [
            Step::Clone { by: 1, pid: 5 },
            Step::Session { pid: 5 },
            Step::Clone { by: 5, pid: 6 },
            Step::Group { pid: 6, pgid: 5 },
            Step::Clone { by: 6, pid: 10 },
            Step::Session { pid: 10 },
            Step::Clone { by: 10, pid: 11 },
            Step::Group { pid: 11, pgid: 10 },
        ];
        assert_eq!(steps, expected);
        // A number that came again: nobody is his own ancestor.
        let parent = Relative { ppid: 11, ..parent };
        assert_eq!(plan(new, &[leader, parent], &BTreeSet::from([1])).len(), expected.len());
        let parent = Relative { ppid: 10, ..parent };
        assert_eq!(plan(new, &[leader, parent], &BTreeSet::from([1])).len(), expected.len());
    }

    #[test]
    fn forks_stay_in_leased_blocks() {
        let mut blocks = Blocks::default();
        let (a, b) = (Block { start: 1000, length: 100 }, Block { start: 5000, length: 100 });
        assert_eq!(blocks.add(a), Cursor::MoveTo(a));
        assert_eq!(blocks.forked(1000, 1), (Cursor::Stay, true));
        assert_eq!(blocks.add(b), Cursor::Stay);
        assert_eq!(blocks.forked(1074, 1), (Cursor::Stay, false));
        assert_eq!(blocks.forked(1075, 1), (Cursor::MoveTo(b), false));
        assert_eq!(blocks.forked(1080, 1), (Cursor::Stay, false));
        assert_eq!(blocks.forked(5080, 1), (Cursor::MoveTo(a), false));
        assert_eq!(blocks.forked(1001, 150), (Cursor::Stay, true));
        // Another agent, which does not know where the forks are.
        let mut blocks = Blocks::default();
        assert_eq!(blocks.resume(5010), Cursor::Stay);
        assert_eq!((blocks.add(a), blocks.add(b)), (Cursor::MoveTo(a), Cursor::Stay));
        assert_eq!(blocks.resume(300), Cursor::MoveTo(a));
        assert_eq!(blocks.resume(999), Cursor::Stay);
        assert_eq!(blocks.resume(5010), Cursor::Stay);
        assert_eq!(blocks.forked(5011, 1), (Cursor::Stay, false));
        assert_eq!(blocks.forked(5080, 1), (Cursor::MoveTo(a), false));
    }
}
