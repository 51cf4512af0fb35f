//! Signals to groups: here all are in one, and nodes have it at once, those included that have no ghosts yet.

use super::*;
use bproc_core::group::{Mark, Record};

impl World {
    /// All ghosts are reached by one call, and the kernel tells of each.
    pub(super) fn signal_group(&mut self, signal: i32) {
        self.call += 1;
        eprintln!("group {signal}, call {}", self.call);
        let there = |g: &Ghost| g.made && g.gone.is_none() && g.at_gate.is_none() && (signal != 9 || g.connected);
        let members: BTreeSet<i32> = self.ghosts.iter().filter(|(_, g)| there(g)).map(|(p, _)| *p).collect();
        let mark = Mark { signal, code: 0, sender: SENDER };
        let (group, call) = (GROUP, self.call);
        let record = Record { mark, group, call, queued: true, uid: 0, is_set_uid: false, has_other_rights: false };
        for p in &members {
            if signal == 9 {
                self.ring.push_back((*p, record));
                self.end_ghost(*p, 9);
                continue;
            }
            if !self.ghosts[p].taken {
                self.ring.push_back((*p, record));
            }
            self.grouped.insert(*p);
            self.signal(*p, signal);
        }
        self.members.insert(call, members);
    }

    /// Records come before what ghosts tell.
    pub(super) fn read_ring(&mut self, out: &mut Vec<Action>) {
        for (p, record) in std::mem::take(&mut self.ring) {
            match record.mark.signal {
                9 => self.master.group_killed(record, out),
                _ => self.master.group_signalled(pid(p), record),
            }
        }
    }

    /// The order to a node.
    pub(super) fn reach_group(&mut self, node: usize, signal: i32, call: u64, copied: &[Pid]) {
        // The space knows, whatever becomes of the agent.
        if !self.machines[node].calls.insert(call) {
            return;
        }
        let live = self.machines[node].processes.iter().filter(|(_, p)| p.ended.is_none());
        for p in live.map(|(p, _)| *p).collect::<Vec<_>>() {
            if signal == 9 {
                self.end(node, p, 9);
                continue;
            }
            let m = &mut self.machines[node];
            m.processes.entry(p).and_modify(|p| p.got.push(signal));
            m.brought.extend(copied.contains(&pid(p)).then_some((p, signal)));
            self.grouped.insert(p);
            if !self.members[&call].contains(&p) {
                // It was forked before, and has its ghost since, or will have.
                self.sent.entry(p).or_default().push(signal);
            }
        }
    }

    /// A copy of what came to all: its number counts.
    pub(super) fn note_copy(&mut self, node: usize, p: i32, number: u32, signal: i32) {
        let m = &mut self.machines[node];
        let Some(process) = m.processes.get_mut(&p).filter(|process| number > process.newest) else { return };
        process.newest = number;
        take(&mut m.brought, p, signal);
    }
}

/// True when it was there.
pub(super) fn take(brought: &mut Vec<(i32, i32)>, p: i32, signal: i32) -> bool {
    let at = brought.iter().position(|b| *b == (p, signal));
    at.map(|at| brought.remove(at)).is_some()
}
