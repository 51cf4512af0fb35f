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
                        assert_eq!(process.stopped, ghost.stopped, "seed {seed}: {p} is stopped on one side");
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
                assert!(sent.starts_with(&process.got), "seed {seed}: {p} got {:?} of {sent:?}", process.got);
                // A stopped ghost passes nothing on, as a stopped process takes nothing.
                if process.ended.is_none() && !ghost.stopped {
                    assert_eq!(process.got, sent, "seed {seed}: {p}: signals lost");
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
