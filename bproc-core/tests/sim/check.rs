//! What holds when all is quiet.

use super::*;

impl World {
    pub(super) fn check(&self, seed: u64) {
        for (p, runs) in &self.runs {
            assert_eq!(*runs, 1, "seed {seed}: {p} ran more than once");
        }
        for (p, ghost) in &self.ghosts {
            let gone = ghost.gone.is_some();
            assert!(gone || ghost.at_gate.is_none(), "seed {seed}: {p} waits at the gate for ever: {ghost:?}");
            assert!(gone || ghost.made, "seed {seed}: {p} is not answered");
            let runs = self.machines.iter().any(|m| m.processes.get(p).is_some_and(|p| p.ended.is_none()));
            assert!(gone || runs, "seed {seed}: {p} is the ghost of nobody");
        }
        self.check_starters(seed);
        for p in self.runs.keys() {
            let copies: Vec<&Process> =
                self.machines.iter().filter_map(|m| m.processes.get(p)).chain(self.home.get(p)).collect();
            assert!(!copies.is_empty() || self.perished.contains(p), "seed {seed}: {p} is lost");
            assert!(copies.iter().all(|q| !q.frozen || q.ended.is_some()), "seed {seed}: {p} is held");
        }
        for (p, process) in self.home.iter().filter(|(_, process)| process.ended.is_none()) {
            assert!(!self.ghosts.contains_key(p), "seed {seed}: {p} is at home and has a ghost");
            let sent = self.sent.get(p).cloned().unwrap_or_default();
            if !self.may_differ.contains(p) {
                assert_eq!(sorted(&process.got), sorted(&sent), "seed {seed}: {p}: signals at home");
            }
        }
        for (n, m) in self.machines.iter().enumerate() {
            for p in &m.skeletons {
                let ended = match (self.ghosts.get(p), self.home.get(p)) {
                    (Some(ghost), _) => ghost.gone.is_some(),
                    (None, Some(process)) => process.ended.is_some(),
                    (None, None) => true,
                };
                assert!(!ended, "seed {seed}: the skeleton of {p} on {n} is never told of its end");
            }
        }
        assert!(self.movers.is_empty(), "seed {seed}: moves are not answered");
        for m in &self.machines {
            for (p, process) in &m.processes {
                let Some(ghost) = self.ghosts.get(p) else {
                    if process.ended.is_some() {
                        continue;
                    }
                    panic!("seed {seed}: process {p} has no ghost");
                };
                match (process.ended, ghost.gone) {
                    (None, None) => {
                        assert_eq!(ghost.at_gate, None, "seed {seed}: {p} runs, its ghost was killed");
                        // A SIGCONT may be among the signals that were lost.
                        assert!(
                            process.stopped == ghost.stopped || self.may_differ.contains(p),
                            "seed {seed}: {p} is stopped on one side"
                        );
                    }
                    (Some(status), Some(shown)) => {
                        // Whose agent was killed before it could answer has ended by itself.
                        assert!(
                            shown == status || shown == 9 || !ghost.made,
                            "seed {seed}: {p} ended {status}, shown {shown}"
                        );
                    }
                    other => panic!("seed {seed}: {p} lives on one side only: {other:?} {ghost:?}"),
                }
                let sent = self.sent.get(p).cloned().unwrap_or_default();
                // On the master each sender is quicker than what was on its way.
                let (got, sent) = match self.came_home.contains(p) || self.grouped.contains(p) {
                    true => (sorted(&process.got), sorted(&sent)),
                    false => (process.got.clone(), sent),
                };
                let free = self.came_home.contains(p) || self.grouped.contains(p) || self.may_differ.contains(p);
                let in_order = free || sent.starts_with(&got);
                assert!(in_order, "seed {seed}: {p} got {got:?} of {sent:?}");
                // A stopped ghost passes nothing on, as a stopped process takes nothing.
                if process.ended.is_none() && !ghost.stopped {
                    assert!(
                        got == sent || self.may_differ.contains(p),
                        "seed {seed}: {p}: signals lost: {got:?} of {sent:?}"
                    );
                    assert!(ghost.unacknowledged.is_empty(), "seed {seed}: {p}: signals not acknowledged");
                }
            }
        }
        let known: HashSet<i32> = self.master.processes().iter().map(|(p, _)| p.get()).collect();
        let alive: HashSet<i32> = self
            .machines
            .iter()
            .flat_map(|m| &m.processes)
            .filter(|(_, p)| p.ended.is_none())
            .map(|(p, _)| *p)
            .collect();
        assert_eq!(known, alive, "seed {seed}");
        for (zombie, parent) in self.master.zombies() {
            let reaps = parent.is_some_and(|p| alive.contains(&p.get()));
            assert!(reaps, "seed {seed}: {zombie} is never forgotten");
        }
    }
}

fn sorted(signals: &[i32]) -> Vec<i32> {
    let mut signals = signals.to_vec();
    signals.sort_unstable();
    signals
}

/// Tells which one failed, to be tried alone: `BPROC_SIM_FIRST=seed BPROC_SIM_RUNS=1`.
pub(super) struct Seed(pub(super) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.0);
        }
    }
}
