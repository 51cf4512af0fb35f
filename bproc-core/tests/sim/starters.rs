//! Those who start programs, and take all that comes from these along when they are killed.

use super::*;

impl World {
    /// Who starts this one.
    pub(super) fn starter(&self, p: i32) -> Option<Starter> {
        self.kills.then_some(Starter(p as u64))
    }

    pub(super) fn hand_on_starter(&mut self, parent: i32, child: i32) {
        if let Some(starter) = self.started_by.get(&parent).filter(|_| !self.came_home.contains(&parent)) {
            self.started_by.insert(child, *starter);
        }
    }

    /// One who has started something is killed: the kernel kills the ghost of what it started itself, and tells the master.
    pub(super) fn kill_starter(&mut self) {
        let all: BTreeSet<u64> = self.started_by.values().map(|starter| starter.0).collect();
        let all: Vec<u64> = all.difference(&self.killed).copied().collect();
        if all.is_empty() {
            return;
        }
        let starter = all[self.dice.below(all.len())];
        eprintln!("kill starter {starter}");
        self.killed.insert(starter);
        self.end_ghost(starter as i32, 9);
        let mut out = vec![];
        self.master.starter_killed(Starter(starter), &mut out);
        self.perform(out);
    }

    /// Who has been at home is the master's own. A new master knows nothing of those whose ghosts do not, or are stopped and cannot
    /// say it; and of whom a killed agent of a node has told nothing nobody knows the children.
    pub(super) fn check_starters(&self, seed: u64) {
        let crashed = self.lives > 0 || self.machines.iter().any(|m| m.instance > 1);
        let tells = |p: &i32| self.ghosts.get(p).is_some_and(|ghost| ghost.starter.is_some() && ghost.connected);
        let unknown = |p: &i32| crashed && !tells(p);
        for (n, m) in self.machines.iter().enumerate() {
            let running = m.processes.iter().filter(|(_, process)| process.ended.is_none()).map(|(p, _)| p);
            for p in running.filter(|p| !self.came_home.contains(p) && !unknown(p)) {
                let starter = self.started_by.get(p).map_or(0, |starter| starter.0);
                assert!(!self.killed.contains(&starter), "seed {seed}: {p} on {n} outlives who started it");
            }
        }
    }
}
