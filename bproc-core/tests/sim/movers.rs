//! The two halves of a move, and the connection between them. They outlive the agents that began them.

use super::*;

/// One move under way between two machines; none: the master's.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) p: i32,
    pub(super) id: MoveId,
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) source: Source,
    pub(super) target: Target,
    /// The agents that began the halves live, and their words reach them.
    pub(super) source_agent: bool,
    pub(super) target_agent: bool,
    /// The connection between them is broken.
    pub(super) cut: bool,
    /// What the agents have said.
    pub(super) begin_source: bool,
    pub(super) begin_target: bool,
    pub(super) proceed: Option<bool>,
    pub(super) decide: Option<bool>,
    pub(super) source_gives_up: bool,
    pub(super) target_gives_up: bool,
    /// A former master's.
    pub(super) former: bool,
}

pub(super) type Place = Option<usize>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Its agent has not been told to send yet.
    Awaited,
    Begun,
    /// The target learns of other children.
    Waiting,
    Sending,
    Committing,
    /// From here on the process dies with the mover.
    Bound,
    Gone,
    InDoubt,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Listening,
    Built,
    /// It runs there, and the source has been told if that could be.
    Ran,
    Failed,
}

impl Pair {
    /// A node whose half is in its last step does not greet a master.
    fn in_last_step(&self, place: Place) -> bool {
        let source = self.from == place && matches!(self.source, Source::Committing | Source::Bound | Source::Gone);
        source && self.source_agent && self.proceed == Some(true)
            || self.to == place && self.target_agent && self.target == Target::Built
    }

    fn source_can_step(&self) -> bool {
        let heard = !self.source_agent || self.source_gives_up;
        match self.source {
            Source::Awaited | Source::Over => false,
            Source::Begun | Source::Bound => true,
            Source::Waiting => self.begin_source || heard,
            Source::Sending => self.cut || self.target != Target::Listening,
            Source::Committing => self.proceed.is_some() || heard,
            Source::Gone => self.cut || self.target != Target::Built,
            Source::InDoubt => self.decide.is_some(),
        }
    }

    fn target_can_step(&self) -> bool {
        let lost = self.cut || self.source == Source::Over;
        match self.target {
            // An agent that has gone before the source came leaves nobody who listens.
            Target::Listening if !self.target_agent && matches!(self.source, Source::Awaited | Source::Begun) => true,
            Target::Listening if self.to.is_none() && !self.begin_target => {
                !self.target_agent || self.target_gives_up || (lost && !self.begin_target)
            }
            Target::Listening if self.source == Source::Awaited => lost || self.target_gives_up,
            Target::Listening => lost || self.source == Source::Sending,
            Target::Built => lost || self.source == Source::Gone || self.source == Source::InDoubt,
            Target::Ran | Target::Failed => false,
        }
    }
}

impl World {
    /// Steps that movers can take: which, and whether it is the source's.
    pub(super) fn mover_steps(&self) -> Vec<(usize, bool)> {
        let all = self.pairs.iter().enumerate();
        let steps = all.flat_map(|(i, pair)| [(i, true, pair.source_can_step()), (i, false, pair.target_can_step())]);
        steps.filter(|(.., can)| *can).map(|(i, source, _)| (i, source)).collect()
    }

    /// Lets movers go on until none of them is `wanted` or none can.
    pub(super) fn step_while(&mut self, wanted: impl Fn(&Pair) -> bool) {
        loop {
            let steps = self.mover_steps().into_iter().filter(|(i, _)| wanted(&self.pairs[*i])).collect::<Vec<_>>();
            if steps.is_empty() {
                return;
            }
            let (i, source) = steps[self.dice.below(steps.len())];
            self.step_mover(i, source);
        }
    }

    /// A node greets its master when nothing on it is in its last step.
    pub(super) fn await_last_steps(&mut self, node: usize) {
        self.step_while(|pair| pair.in_last_step(Some(node)));
    }

    pub(super) fn step_mover(&mut self, i: usize, source: bool) {
        eprintln!("mover source {source} {:?}", self.pairs[i]);
        if source {
            self.step_source(i);
        } else {
            self.step_target(i);
        }
    }

    fn process_at(&mut self, place: Place, p: i32) -> Option<&mut Process> {
        match place {
            None => self.home.get_mut(&p),
            Some(node) => self.machines[node].processes.get_mut(&p),
        }
    }

    fn step_source(&mut self, i: usize) {
        let (p, id, from, target) = (self.pairs[i].p, self.pairs[i].id, self.pairs[i].from, self.pairs[i].target);
        let pair = &self.pairs[i];
        let (agent, cut) = (pair.source_agent, pair.cut);
        let lives = self.process_at(from, p).is_some_and(|process| process.ended.is_none());
        if !lives && self.pairs[i].source < Source::Bound {
            return self.source_over(i, false, true);
        }
        let is_held = self.process_at(from, p).is_some_and(|process| process.frozen);
        match self.pairs[i].source {
            Source::Begun if target == Target::Failed || cut => self.source_over(i, false, true),
            // A mover of a former master's time has it still: a process has one tracer.
            Source::Begun if is_held => {
                self.pairs[i].source = Source::Over;
                if agent {
                    self.say_source(i, Said::Departed(Departed::Failed(Refusal::Busy(pid(p)))));
                }
            }
            Source::Begun => {
                self.process_at(from, p).unwrap().frozen = true;
                let changed = self.dice.below(4) == 0;
                self.pairs[i].source = if changed { Source::Waiting } else { Source::Sending };
                if agent {
                    let children = changed.then(Vec::new);
                    self.say_source(i, Said::Frozen(children));
                }
            }
            Source::Waiting => match self.pairs[i].begin_source && agent && !self.pairs[i].source_gives_up {
                true => self.pairs[i].source = Source::Sending,
                false => self.source_over(i, false, true),
            },
            Source::Sending if cut || target == Target::Failed => self.source_over(i, false, true),
            Source::Sending => {
                self.pairs[i].source = Source::Committing;
                if !agent {
                    return;
                }
                match from {
                    None => {
                        let mut out = vec![];
                        self.master.committing(pid(p), id, &mut out);
                        self.perform(out);
                    }
                    // Without a link it does not go.
                    Some(node) => self.pairs[i].proceed = Some(self.machines[node].linked),
                }
            }
            Source::Committing => {
                match self.pairs[i].proceed == Some(true) && agent && !self.pairs[i].source_gives_up {
                    true => self.pairs[i].source = Source::Bound,
                    false => self.source_over(i, false, true),
                }
            }
            // What cannot be said has not been heard; what was said may be lost.
            Source::Bound if (cut || target == Target::Failed) && self.dice.below(2) == 0 => {
                self.source_over(i, false, true)
            }
            Source::Bound => self.pairs[i].source = Source::Gone,
            Source::Gone if !cut && target == Target::Ran => self.source_over(i, true, true),
            Source::Gone => {
                self.pairs[i].source = Source::InDoubt;
                if agent {
                    self.say_source(i, Said::Departed(Departed::InDoubt));
                }
            }
            Source::InDoubt => {
                let moved = self.pairs[i].decide.unwrap_or(true);
                self.source_over(i, moved, true);
            }
            Source::Awaited | Source::Over => {}
        }
    }

    /// The source's last step: the process has gone, or runs on. `by_hand`: if it has died, somebody has killed it.
    fn source_over(&mut self, i: usize, moved: bool, by_hand: bool) {
        let (p, from) = (self.pairs[i].p, self.pairs[i].from);
        self.pairs[i].source = Source::Over;
        let lived = self.process_at(from, p).is_some_and(|process| process.ended.is_none());
        let stopped = from.is_none() && self.process_at(from, p).is_some_and(|process| process.stopped);
        if moved && lived {
            self.becomes_stand_in(i);
        } else if lived {
            let process = self.process_at(from, p).unwrap();
            process.frozen = false;
            let late = std::mem::take(&mut process.late);
            process.got.extend(late);
        }
        let ended = self.process_at(from, p).and_then(|process| process.ended);
        if moved && !lived {
            if self.pairs[i].target != Target::Ran {
                self.perished.insert(p);
            }
            match from {
                Some(node) => drop(self.machines[node].processes.remove(&p)),
                None => drop(self.home.remove(&p)),
            }
            if let (Some(node), true, true) = (from, self.pairs[i].source_agent, by_hand) {
                self.tell(node, Event::Killed(p));
            }
        }
        let departed = match moved {
            // A node's stand-in is the node's business.
            true => Departed::Gone { stand_in: lived || from.is_some(), stopped },
            false => Departed::Failed(Refusal::Busy(pid(p))),
        };
        if self.pairs[i].source_agent {
            self.say_source(i, Said::Departed(departed));
            if let (Some(node), Some(status), false) = (from, ended, moved) {
                self.tell(node, Event::Exited(p, status));
            }
        }
        self.check_copies(p);
    }

    /// Its mover may let it go any moment.
    pub(super) fn is_leaving(&self, node: usize, p: i32) -> bool {
        self.pairs.iter().any(|pair| {
            let open = pair.source != Source::Over && pair.proceed == Some(true) && pair.source_agent;
            pair.p == p && pair.from == Some(node) && open
        })
    }

    fn becomes_stand_in(&mut self, i: usize) {
        let (p, from, ran) = (self.pairs[i].p, self.pairs[i].from, self.pairs[i].target == Target::Ran);
        if !ran {
            self.perished.insert(p);
        }
        match from {
            Some(node) => {
                self.machines[node].processes.remove(&p);
                self.machines[node].skeletons.insert(p);
            }
            None => {
                let Process { late, stopped, .. } = self.home.remove(&p).unwrap_or_default();
                let fresh = Ghost { made: true, parent: PARENT, open: true, stopped, ..Ghost::default() };
                self.ghosts.insert(p, Ghost { was_stopped: stopped, ..fresh });
                self.report(p, Report::Hello(PARENT));
                late.into_iter().for_each(|signal| self.forward(p, signal));
            }
        }
    }

    fn step_target(&mut self, i: usize) {
        let pair = &self.pairs[i];
        let (p, to, agent) = (pair.p, pair.to, pair.target_agent);
        let lost = pair.cut || pair.source == Source::Over;
        match pair.target {
            Target::Listening if lost || pair.target_gives_up || !agent => self.target_over(i, false),
            Target::Listening => {
                let linked = to.is_none_or(|node| self.machines[node].linked);
                let body = to.is_some() || self.ghosts.get(&p).is_some_and(|g| g.at_gate.is_none());
                match linked && body && self.dice.below(6) > 0 {
                    true => self.pairs[i].target = Target::Built,
                    false => self.target_over(i, false),
                }
            }
            Target::Built if pair.cut || pair.source == Source::Over => self.target_over(i, false),
            Target::Built if to.is_none() && self.ghosts.get(&p).is_none_or(|g| g.at_gate.is_some()) => {
                self.target_over(i, false);
            }
            Target::Built => {
                let copy = self.process_at(self.pairs[i].from, p).cloned().unwrap_or_default();
                let mut fresh =
                    Process { frozen: false, late: Vec::new(), newest: 0, ended: None, gone: false, ..copy };
                match to {
                    Some(node) => {
                        self.machines[node].skeletons.remove(&p);
                        self.machines[node].processes.insert(p, fresh);
                    }
                    None => {
                        let Ghost { late, stopped, .. } = self.ghosts.remove(&p).unwrap_or_default();
                        fresh.got.extend(late);
                        fresh.stopped |= stopped;
                        self.home.insert(p, fresh);
                        self.came_home.insert(p);
                    }
                }
                self.target_over(i, true);
            }
            Target::Ran | Target::Failed => {}
        }
    }

    fn target_over(&mut self, i: usize, ran: bool) {
        let (p, to) = (self.pairs[i].p, self.pairs[i].to);
        self.pairs[i].target = if ran { Target::Ran } else { Target::Failed };
        if !ran && to.is_none() {
            self.is_ghost_again(p);
        }
        if self.pairs[i].target_agent {
            self.say_target(i, Said::Arrived(ran));
        }
        self.check_copies(p);
    }

    /// A body of which nothing came.
    fn is_ghost_again(&mut self, p: i32) {
        let Some(ghost) = self.ghosts.get_mut(&p).filter(|g| g.taken && g.at_gate.is_none()) else { return };
        (ghost.taken, ghost.sent) = (false, ghost.sent + (1 << 16));
        // What was not acknowledged is held by the master, or was read by a former one.
        ghost.unacknowledged.clear();
        let (parent, late) = (ghost.parent, std::mem::take(&mut ghost.late));
        self.report(p, Report::Hello(parent));
        late.into_iter().for_each(|signal| self.forward(p, signal));
    }

    /// A mover is killed.
    pub(super) fn kill_mover(&mut self, i: usize, source: bool) {
        eprintln!("kill mover source {source} {:?}", self.pairs[i]);
        let pair = &self.pairs[i];
        let (p, from, to) = (pair.p, pair.from, pair.to);
        if source && matches!(pair.source, Source::Bound | Source::Gone | Source::InDoubt) {
            // The kernel kills what is bound to it.
            let at_once = self.process_at(from, p).filter(|process| process.ended.is_none());
            let by_hand = at_once.map(|process| process.ended = Some(9)).is_none();
            self.source_over(i, true, by_hand);
        } else if source && !matches!(pair.source, Source::Over | Source::Awaited) {
            self.source_over(i, false, true);
        } else if !source && matches!(pair.target, Target::Listening | Target::Built) {
            if to.is_none() && self.ghosts.get(&p).is_some_and(|g| g.taken) {
                let ghost = self.ghosts.get_mut(&p).unwrap();
                ghost.open = true;
                self.perished.insert(p);
                self.end_ghost(p, 9);
            } else if let Some(node) = to {
                self.machines[node].skeletons.remove(&p);
            }
            self.target_over(i, false);
        }
    }

    fn say_source(&mut self, i: usize, said: Said) {
        let (p, id, from) = (self.pairs[i].p, self.pairs[i].id, self.pairs[i].from);
        self.say_move(from, p, id, said);
    }

    fn say_target(&mut self, i: usize, said: Said) {
        let (p, id, to) = (self.pairs[i].p, self.pairs[i].id, self.pairs[i].to);
        self.say_move(to, p, id, said);
    }

    /// By a node's events, or at once.
    pub(super) fn say_move(&mut self, at: Place, p: i32, id: MoveId, said: Said) {
        match at {
            Some(node) => self.tell(node, Event::Move(p, id, said)),
            None => {
                let mut out = vec![];
                self.hear_of_move(p, id, said, &mut out);
                self.perform(out);
            }
        }
    }

    pub(super) fn hear_of_move(&mut self, p: i32, id: MoveId, said: Said, out: &mut Vec<Action>) {
        let result = |good: bool| if good { Ok(()) } else { Err(Refusal::Busy(pid(p))) };
        match said {
            Said::Surveyed(good) => self.master.surveyed(pid(p), id, result(good), out),
            Said::Receiving(good) => self.master.receiving(pid(p), id, result(good), out),
            Said::Frozen(children) => {
                let children = children.map(|all| all.into_iter().map(pid).collect());
                self.master.frozen(pid(p), id, children, out);
            }
            Said::Adopted(good) => self.master.adopted_children(pid(p), id, result(good), out),
            Said::Arrived(good) => self.master.arrived(pid(p), id, result(good), out),
            Said::Departed(departed) => self.master.departed(pid(p), id, departed, out),
        }
    }

    /// Never two copies run.
    fn check_copies(&self, p: i32) {
        let runs = |process: &Process| process.ended.is_none() && !process.frozen;
        let nodes = self.machines.iter().filter(|m| m.processes.get(&p).is_some_and(runs)).count();
        let home = usize::from(self.home.get(&p).is_some_and(runs));
        assert!(nodes + home < 2, "{p} runs twice");
    }
}
