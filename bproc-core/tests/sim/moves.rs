//! Moves: who asks for them, what the agents do of them, and what happens to those who take part.

use super::movers::{Pair, Place, Source, Target};
use super::*;

impl World {
    /// One thing that somebody does to a process that moves, or may.
    pub(super) fn act_on_moves(&mut self) {
        let at_home: Vec<i32> =
            self.home.iter().filter(|(_, process)| process.ended.is_none()).map(|(p, _)| *p).collect();
        let under_way: Vec<usize> = (0..self.pairs.len()).filter(|i| self.pairs[*i].source != Source::Over).collect();
        match self.dice.below(8) {
            0 => {
                self.home.insert(self.next_pid, Process::default());
                self.runs.insert(self.next_pid, 1);
                self.came_home.insert(self.next_pid);
                self.next_pid += 1;
            }
            1 if !at_home.is_empty() => {
                let p = at_home[self.dice.below(at_home.len())];
                let signal = 34 + self.dice.below(10) as i32;
                self.sent.entry(p).or_default().push(signal);
                let process = self.home.get_mut(&p).unwrap();
                let to = if process.frozen { &mut process.late } else { &mut process.got };
                to.push(signal);
            }
            2 if !under_way.is_empty() && self.dice.below(2) == 0 => {
                let i = under_way[self.dice.below(under_way.len())];
                match self.dice.below(3) {
                    0 => self.pairs[i].cut = true,
                    1 => self.kill_mover(i, true),
                    _ => self.kill_mover(i, false),
                }
            }
            3 if !at_home.is_empty() && self.dice.below(3) == 0 => {
                let p = at_home[self.dice.below(at_home.len())];
                self.home.get_mut(&p).unwrap().ended = Some(9);
            }
            _ => self.ask_for_move(&at_home),
        }
    }

    fn ask_for_move(&mut self, at_home: &[i32]) {
        let ghosts = self.ghosts.iter().filter(|(_, g)| g.made && g.at_gate.is_none() && !g.taken);
        let all: Vec<i32> = ghosts.map(|(p, _)| *p).chain(at_home.iter().copied()).collect();
        if all.is_empty() {
            return;
        }
        let p = all[self.dice.below(all.len())];
        // The agent waits for that, mostly.
        if !self.master.is_settled(pid(p)) && self.dice.below(8) > 0 {
            return;
        }
        let to = self.dice.below(self.machines.len() + 1);
        let children = self.ghosts.iter().filter(|(_, g)| g.parent == p && g.gone.is_none());
        let facts = MoveFacts {
            pid: pid(p),
            parent: Some(pid(PARENT)),
            to: (to < self.machines.len()).then_some(NodeId(to as i32)),
            uid: 0,
            speaker: None,
            gids: [0].into(),
            owner: 0,
            comm: Vec::new(),
            relatives: vec![],
            children: children.map(|(child, _)| pid(*child)).collect(),
        };
        self.movers.insert(self.next_ask);
        self.next_ask += 1;
        let mut out = vec![];
        self.master.move_asked(Ask(self.next_ask - 1), facts, &mut out);
        self.perform(out);
    }

    fn begin(&mut self, p: i32, id: MoveId, to: Place) {
        let from = self.master.whereabouts(pid(p)).map(|node| node.0 as usize);
        let pair = Pair {
            p,
            id,
            from,
            to,
            source: Source::Awaited,
            target: Target::Listening,
            source_agent: true,
            target_agent: true,
            cut: false,
            begin_source: false,
            begin_target: false,
            proceed: None,
            decide: None,
            source_gives_up: false,
            target_gives_up: false,
            former: false,
        };
        self.pairs.push(pair);
        self.say_move(to, p, id, Said::Receiving(true));
    }

    fn pair(&mut self, p: i32, id: MoveId) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.p == p && pair.id == id && !pair.former)
    }

    /// Told what became of it, a source in doubt need not care who says so.
    fn decide(&mut self, p: i32, id: MoveId, moved: bool) {
        if let Some(pair) = self.pairs.iter_mut().find(|pair| pair.p == p && pair.id == id) {
            pair.decide = Some(moved);
        }
    }

    /// Those who wait to be told.
    pub(super) fn in_doubt(&self, at: Place) -> Vec<Leaving> {
        let waits = |pair: &&Pair| pair.from == at && pair.source == Source::InDoubt;
        let leaving = self.pairs.iter().filter(waits).map(|pair| Leaving {
            pid: pid(pair.p),
            id: pair.id,
            to: pair.to.map(|node| NodeId(node as i32)),
            in_doubt: true,
            home: self.ghosts.get(&pair.p).is_none_or(|ghost| ghost.gone.is_some()),
        });
        leaving.collect()
    }

    pub(super) fn perform_move(&mut self, action: Action) {
        match action {
            Action::ReceiveHere(p, id) => self.begin(p.get(), id, None),
            Action::SendFromHere(p, id) => match self.pair(p.get(), id) {
                Some(pair) => pair.source = Source::Begun,
                None => self.say_move(None, p.get(), id, Said::Departed(Departed::Failed(Refusal::Busy(p)))),
            },
            Action::TakeGhost(p, id) => self.taking.push((p.get(), id)),
            Action::GoOnHere(p, id) => drop(self.pair(p.get(), id).map(|pair| pair.begin_source = true)),
            Action::ProceedHere(p, id, go) => {
                if let Some(pair) = self.pair(p.get(), id) {
                    pair.proceed = Some(go);
                    pair.source_gives_up |= !go;
                }
            }
            Action::DecideHere(p, id, moved) => self.decide(p.get(), id, moved),
            Action::CancelHere(p, id) => drop(self.pair(p.get(), id).map(|pair| pair.target_gives_up = true)),
            Action::SignalHome(p, siginfo) => {
                if let Some(process) = self.home.get_mut(&p.get()) {
                    let signal = i32::from_ne_bytes(*siginfo.first_chunk().unwrap());
                    process.stopped &= signal != 18;
                    match signal {
                        0 => {}
                        9 => process.ended = process.ended.or(Some(9)),
                        signal => process.got.push(signal),
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn obey_move(&mut self, node: usize, order: Order) {
        let at = Some(node);
        match order {
            Order::Survey(p, id) => {
                let lives = self.machines[node].processes.get(&p.get()).is_some_and(|q| q.ended.is_none());
                self.say_move(at, p.get(), id, Said::Surveyed(lives));
            }
            Order::Receive(p, id) if self.dice.below(8) == 0 => {
                self.say_move(at, p.get(), id, Said::Receiving(false));
            }
            Order::Receive(p, id) => {
                self.machines[node].skeletons.insert(p.get());
                self.begin(p.get(), id, at);
            }
            Order::Depart(p, id) => {
                let lives = self.machines[node].processes.get(&p.get()).is_some_and(|q| q.ended.is_none());
                match self.pair(p.get(), id) {
                    Some(pair) => {
                        pair.source = if lives { Source::Begun } else { Source::Over };
                    }
                    None => return self.say_move(at, p.get(), id, Said::Departed(Departed::Failed(Refusal::Busy(p)))),
                }
                if !lives {
                    self.say_move(at, p.get(), id, Said::Departed(Departed::Failed(Refusal::Busy(p))));
                }
            }
            Order::Children(p, id) => {
                let good = self.dice.below(4) > 0;
                self.say_move(at, p.get(), id, Said::Adopted(good));
            }
            Order::GoOn(p, id) => drop(self.pair(p.get(), id).map(|pair| pair.begin_source = true)),
            Order::Decide(p, id, moved) => self.decide(p.get(), id, moved),
            Order::Cancel(p, id) => {
                if let Some(pair) = self.pair(p.get(), id) {
                    pair.source_gives_up |= pair.from == at;
                    pair.target_gives_up |= pair.to == at;
                }
            }
            _ => {}
        }
    }

    /// A ghost that has obeyed all that it was told and told all that it has to.
    pub(super) fn ghost_to_take(&self) -> Option<usize> {
        self.taking.iter().position(|(p, _)| {
            let quiet = self.reports.get(p).is_none_or(VecDeque::is_empty);
            self.ghosts
                .get(p)
                .is_none_or(|g| g.at_gate.is_some() || (g.commands.is_empty() && quiet && (!g.stopped || g.thawed)))
        })
    }

    pub(super) fn take_ghost(&mut self, at: usize) {
        let (p, id) = self.taking.remove(at);
        // A mover that is gone takes nothing.
        let takes = self.pair(p, id).is_some_and(|pair| {
            pair.begin_target = true;
            pair.target == Target::Listening
        });
        if let Some(ghost) = self.ghosts.get_mut(&p).filter(|g| g.at_gate.is_none()) {
            ghost.open = true;
            if takes {
                (ghost.taken, ghost.connected) = (true, false);
                self.master.ghost_disconnected(pid(p));
            }
        }
    }

    /// The skeleton of one that has ended elsewhere ends; its parent here reaps it or not.
    pub(super) fn stand_in_ended(&mut self, node: usize, p: i32) {
        let parent = self.ghosts.get(&p).map(|ghost| ghost.parent);
        let here =
            |parent: &i32| self.machines[node].processes.get(parent).is_some_and(|process| process.ended.is_none());
        if parent.filter(here).is_some() && self.dice.below(2) == 0 {
            self.tell(node, Event::Reaped(p));
        }
    }

    /// One of those who have skeletons, and who has ended.
    pub(super) fn watched_that_are_gone(&self) -> Option<i32> {
        let gone = |p: &&i32| match (self.ghosts.get(p), self.home.get(p)) {
            (Some(ghost), _) => ghost.gone.is_some(),
            (_, Some(process)) => process.ended.is_some(),
            (None, None) => **p != PARENT,
        };
        self.watched.iter().find(gone).copied()
    }

    pub(super) fn tell_end_of_watched(&mut self, p: i32, out: &mut Vec<Action>) {
        self.watched.remove(&p);
        let status = self.ghosts.get(&p).and_then(|ghost| ghost.gone).unwrap_or(0);
        self.master.relative_gone(pid(p), status, out);
    }

    /// Before a node greets a master: nothing is in its last step, and what a former master began ends.
    pub(super) fn greet(&mut self, node: usize) {
        self.await_last_steps(node);
        for pair in self.pairs.iter_mut().filter(|pair| pair.former) {
            pair.source_gives_up |= pair.from == Some(node) && pair.proceed.is_none();
            pair.target_gives_up |= pair.to == Some(node) && pair.target == Target::Listening;
        }
    }

    /// An agent is gone; the next one waits for the movers that it began. One in doubt speaks to it.
    pub(super) fn orphan_movers(&mut self, at: Place) {
        for pair in &mut self.pairs {
            pair.source_agent &= pair.from != at;
            pair.target_agent &= pair.to != at;
            if pair.from == at && pair.source == Source::Awaited {
                pair.source = Source::Over;
            }
        }
        let open = |pair: &Pair| !matches!(pair.source, Source::InDoubt | Source::Over);
        let source = move |pair: &Pair| pair.from == at && !pair.source_agent && open(pair);
        let target = move |pair: &Pair| {
            pair.to == at && !pair.target_agent && matches!(pair.target, Target::Listening | Target::Built)
        };
        self.step_while(|pair| source(pair) || target(pair));
        for pair in self.pairs.iter_mut().filter(|pair| pair.from == at && pair.source == Source::InDoubt) {
            pair.source_agent = true;
        }
    }
}
