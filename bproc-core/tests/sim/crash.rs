//! Agents are killed, and others find what is left.

use super::*;

impl World {
    /// The agent of a node is killed, and the next one looks at what is there.
    pub(super) fn crash_node(&mut self, node: usize) {
        eprintln!("crash node {node}");
        self.unlink(node as i32);
        self.orphan_movers(Some(node));
        let m = &mut self.machines[node];
        let open = m.starting.values().chain(m.held.iter().map(|(number, _, _)| number)).filter(|n| **n > 0).min();
        m.orders_seen = open.map_or(m.orders_seen, |first| m.orders_seen.min(first - 1));
        m.held.clear();
        m.instance += 1;
        // Should the master's be killed as well now, its next one would tell them again.
        let brought = std::mem::take(&mut m.brought).into_iter().chain(std::mem::take(&mut m.brought_before));
        self.may_differ.extend(brought.map(|(p, _)| p));
        (m.events, m.told, m.next_event) = (VecDeque::new(), VecDeque::new(), 1);
        for p in std::mem::take(&mut m.starting).into_keys() {
            match self.dice.below(3) {
                0 => self.runs_now(node, p),
                // Not told to go.
                1 => drop(self.machines[node].skeletons.insert(p)),
                // The exec failed.
                _ => {}
            }
        }
        // Of one that may run elsewhere nothing is told.
        let doubtful: Vec<i32> = self.in_doubt(Some(node)).iter().map(|leaving| leaving.pid.get()).collect();
        let here = |p: &i32, process: &Process| !process.gone && !doubtful.contains(p);
        let there = self.machines[node].processes.iter().filter(|(p, process)| here(p, process));
        let mut again = Vec::new();
        for (p, process) in there {
            let tells = |parent: &i32| self.machines[node].processes.contains_key(parent) || process.ended.is_none();
            let parent = process.parent.filter(tells);
            again.extend(parent.map(|parent| Event::Forked(parent, *p)));
            let stands = if process.stopped { Event::Stopped(*p, 19) } else { Event::Continued(*p) };
            again.extend(process.ended.is_none().then_some(stands));
            again.extend(process.ended.map(|status| Event::Exited(*p, status)));
        }
        again.into_iter().for_each(|event| self.tell(node, event));
    }

    /// The master's agent is killed, and the next one finds keeper, ghosts and nodes. Callers get no answer and end.
    pub(super) fn crash_master(&mut self) {
        eprintln!("crash master");
        (0..self.machines.len()).for_each(|node| self.unlink(node as i32));
        // What a ghost has told is held by nobody else from the moment on in which it is taken.
        let taken = self.pairs.iter().filter(|pair| !pair.former && pair.begin_target).map(|pair| pair.p);
        self.may_differ.extend(taken);
        // What it tells again, another machine than the one that had it before may get.
        let again = self.ghosts.iter().filter(|(_, g)| self.moves && !g.unacknowledged.is_empty());
        self.may_differ.extend(again.map(|(p, _)| *p));
        self.taking.clear();
        self.movers.clear();
        self.watched.clear();
        self.orphan_movers(None);
        self.pairs.iter_mut().for_each(|pair| pair.former = true);
        let leases = Leases::new(10_000, 50_000, 1000);
        let nodes = (0..self.machines.len()).map(|n| (n as i32, Node::new(0o111, 0, 0)));
        self.master = Master::new(nodes, leases, true);
        self.lives += 1;
        self.master.name_moves_from(self.lives << 32);
        self.master.await_nodes((0..self.machines.len()).map(|n| NodeId(n as i32)));
        self.recovering = true;
        for leaving in self.in_doubt(None) {
            let mut out = vec![];
            self.master.leaving(None, &leaving, &mut out);
            self.perform(out);
        }
        for node in 0..self.machines.len() {
            let m = &mut self.machines[node];
            m.orders_seen = 0;
            m.done.clear();
            m.held.clear();
            m.brought_before.append(&mut m.brought);
            m.starting.values_mut().for_each(|number| *number = 0);
            let told = std::mem::take(&mut m.told);
            m.events = told.into_iter().chain(std::mem::take(&mut m.events)).collect();
            let ends = m.processes.iter().filter(|(_, p)| !p.gone);
            let ends: Vec<_> = ends.filter_map(|(p, q)| Some((*p, q.ended?))).collect();
            let ends = ends.into_iter().filter(|(p, _)| !self.is_leaving(node, *p)).collect::<Vec<_>>();
            ends.into_iter().map(|(p, status)| Event::Exited(p, status)).for_each(|end| self.tell(node, end));
        }
        self.keeper.clear();
        self.reports.clear();
        self.asked.clear();
        let waiting: Vec<i32> = self.ghosts.iter().filter(|(_, g)| !g.made).map(|(p, _)| *p).collect();
        waiting.into_iter().for_each(|p| self.end_ghost(p, Status::Exited(1).to_raw()));
        self.keeper.clear();
        let mut reports = Vec::new();
        for (p, g) in self.ghosts.iter_mut().filter(|(_, g)| g.gone.is_none() && !g.taken) {
            (g.connected, g.thawed) = (false, false);
            g.commands.clear();
            self.keeper.push_back(Word::Adopted(*p));
            if g.at_gate.is_some() {
                self.keeper.push_back(Word::AtGate(*p));
                continue;
            }
            if g.stopped {
                self.keeper.push_back(Word::Stopped(*p, false));
            }
            reports.push((*p, Report::Hello(g.parent)));
            reports.extend(g.unacknowledged.iter().map(|(n, signal)| (*p, Report::Signal(*p, *n, *signal))));
        }
        reports.into_iter().for_each(|(p, report)| self.report(p, report));
    }
}
