//! A master with nodes, ghosts and a keeper on no time at all: every channel delivers in its order, but which channel
//! speaks next, what users do, when links break and when agents are killed is drawn from a seed. When all is quiet the
//! promises are checked.

use bproc_common::id::{Epoch, NodeId, Pid};
use bproc_common::wait::Status;
use bproc_core::lease::Leases;
use bproc_core::master::nodes::Attach;
use bproc_core::master::{Action, Ask, Child, GhostCommand, Master, Node, Order, Refusal, SpawnFacts};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

const PARENT: i32 = 2;

/// A small generator: runs are the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[derive(Debug, Default)]
struct Ghost {
    /// Else it is a caller that waits for its answer.
    made: bool,
    parent: i32,
    connected: bool,
    stopped: bool,
    /// The keeper has it obey all the same.
    thawed: bool,
    at_gate: Option<i32>,
    open: bool,
    gone: Option<i32>,
    sent: u32,
    unacknowledged: VecDeque<(u32, i32)>,
    commands: VecDeque<GhostCommand>,
}

#[derive(Debug, Default)]
struct Process {
    parent: Option<i32>,
    stopped: bool,
    ended: Option<i32>,
    got: Vec<i32>,
    newest: u32,
    /// Reaped.
    gone: bool,
}

#[derive(Debug, Clone)]
enum Event {
    Spawned(i32, bool),
    Forked(i32, i32),
    Exited(i32, i32),
    Stopped(i32, i32),
    Continued(i32),
    Reaped(i32),
}

#[derive(Debug)]
enum Word {
    Held(i32),
    Adopted(i32),
    Stopped(i32, bool),
    Continued(i32),
    AtGate(i32),
    Gone(i32),
    /// The connection of a ghost ended before it answered; whether it has made this child, the keeper has told before.
    NoAnswer(i32),
}

#[derive(Debug)]
enum Report {
    Hello(i32),
    Signal(i32, u32, i32),
    Cloned(i32, Result<(), i32>),
}

#[derive(Default)]
struct Machine {
    linked: bool,
    processes: BTreeMap<i32, Process>,
    orders: VecDeque<(u64, Order)>,
    orders_seen: u64,
    /// Carried out, which the space knows, whatever becomes of the agent.
    done: BTreeSet<u64>,
    /// Numbers of orders to start, by process.
    starting: BTreeMap<i32, u64>,
    /// Orders for those that are being started.
    held: VecDeque<(u64, i32, Order)>,
    skeletons: BTreeSet<i32>,
    instance: u64,
    events: VecDeque<(u64, Event)>,
    /// Those that the master has taken over without having said so.
    told: VecDeque<(u64, Event)>,
    next_event: u64,
    acks: VecDeque<u64>,
    next_pid: i32,
}

struct World {
    dice: Dice,
    master: Master,
    machines: Vec<Machine>,
    ghosts: BTreeMap<i32, Ghost>,
    keeper: VecDeque<Word>,
    reports: BTreeMap<i32, VecDeque<Report>>,
    next_pid: i32,
    sent: BTreeMap<i32, Vec<i32>>,
    asked: BTreeMap<u64, i32>,
    next_ask: u64,
    /// Who is about to ask again, and for which node.
    again: VecDeque<(usize, i32)>,
    /// How often each program was run.
    runs: BTreeMap<i32, u32>,
    recovering: bool,
}

fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn siginfo(signal: i32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes
}

impl World {
    fn new(seed: u64, nodes: i32) -> World {
        let leases = Leases::new(10_000, 50_000, 1000);
        let master = Master::new((0..nodes).map(|n| (n, Node::new(0o111, 0, 0))), leases, false);
        let machines = (0..nodes).map(|n| Machine {
            next_pid: 10_000 * (n + 1),
            next_event: 1,
            instance: 1,
            ..Machine::default()
        });
        let mut world = World {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            master,
            machines: machines.collect(),
            ghosts: BTreeMap::new(),
            keeper: VecDeque::new(),
            reports: BTreeMap::new(),
            next_pid: 100,
            sent: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_ask: 1,
            again: VecDeque::new(),
            runs: BTreeMap::new(),
            recovering: false,
        };
        (0..nodes).for_each(|n| world.link(n));
        world
    }

    fn link(&mut self, node: i32) {
        let m = &mut self.machines[node as usize];
        m.orders.clear();
        let ended = |event: &Event| if let Event::Exited(p, _) = event { Some(*p) } else { None };
        let untold: BTreeSet<i32> = m.told.iter().chain(&m.events).filter_map(|(_, e)| ended(e)).collect();
        let hello = Attach {
            epoch: Epoch(1 + node as u64),
            instance: m.instance,
            orders_seen: m.orders_seen,
            inventory: m
                .processes
                .iter()
                .filter(|(p, process)| !process.gone || untold.contains(p))
                .map(|(p, process)| (pid(*p), process.parent.and_then(Pid::new)))
                .chain(m.starting.keys().map(|p| (pid(*p), Pid::new(PARENT))))
                .collect(),
            skeletons: m.skeletons.iter().map(|p| pid(*p)).collect(),
            leases: vec![],
        };
        m.linked = true;
        let mut out = vec![];
        let seen = self.master.attach(NodeId(node), hello, "up", &mut out).unwrap();
        let m = &mut self.machines[node as usize];
        let told = std::mem::take(&mut m.told);
        m.events = told.into_iter().chain(std::mem::take(&mut m.events)).filter(|(n, _)| *n > seen).collect();
        self.perform(out);
    }

    /// The agent of a node is killed, and the next one looks at what is there.
    fn crash_node(&mut self, node: usize) {
        self.unlink(node as i32);
        let m = &mut self.machines[node];
        let open = m.starting.values().chain(m.held.iter().map(|(number, _, _)| number)).filter(|n| **n > 0).min();
        m.orders_seen = open.map_or(m.orders_seen, |first| m.orders_seen.min(first - 1));
        m.held.clear();
        m.instance += 1;
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
        let there = self.machines[node].processes.iter().filter(|(_, p)| !p.gone);
        let mut again = Vec::new();
        for (p, process) in there {
            again.extend(process.parent.map(|parent| Event::Forked(parent, *p)));
            again.extend((process.stopped && process.ended.is_none()).then_some(Event::Stopped(*p, 19)));
            again.extend(process.ended.map(|status| Event::Exited(*p, status)));
        }
        again.into_iter().for_each(|event| self.tell(node, event));
    }

    /// The master's agent is killed, and the next one finds keeper, ghosts and nodes. Callers get no answer and end.
    fn crash_master(&mut self) {
        (0..self.machines.len()).for_each(|node| self.unlink(node as i32));
        let leases = Leases::new(10_000, 50_000, 1000);
        let nodes = (0..self.machines.len()).map(|n| (n as i32, Node::new(0o111, 0, 0)));
        self.master = Master::new(nodes, leases, true);
        self.recovering = true;
        for node in 0..self.machines.len() {
            let m = &mut self.machines[node];
            m.orders_seen = 0;
            m.done.clear();
            m.held.clear();
            m.starting.values_mut().for_each(|number| *number = 0);
            let told = std::mem::take(&mut m.told);
            m.events = told.into_iter().chain(std::mem::take(&mut m.events)).collect();
            let ends = m.processes.iter().filter(|(_, p)| !p.gone);
            let ends: Vec<_> = ends.filter_map(|(p, q)| Some(Event::Exited(*p, q.ended?))).collect();
            ends.into_iter().for_each(|end| self.tell(node, end));
        }
        self.keeper.clear();
        self.reports.clear();
        self.asked.clear();
        let waiting: Vec<i32> = self.ghosts.iter().filter(|(_, g)| !g.made).map(|(p, _)| *p).collect();
        waiting.into_iter().for_each(|p| self.end_ghost(p, Status::Exited(1).to_raw()));
        self.keeper.clear();
        let mut reports = Vec::new();
        for (p, g) in self.ghosts.iter_mut().filter(|(_, g)| g.gone.is_none()) {
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

    /// A start has come to its exec.
    fn runs_now(&mut self, node: usize, p: i32) {
        *self.runs.entry(p).or_default() += 1;
        self.machines[node].skeletons.remove(&p);
        self.machines[node].processes.insert(p, Process::default());
    }

    fn finish_start(&mut self, node: usize) {
        let m = &mut self.machines[node];
        let at = self.dice.below(m.starting.len());
        let Some((p, number)) = m.starting.iter().nth(at).map(|(p, n)| (*p, *n)) else { return };
        m.starting.remove(&p);
        let good = self.dice.below(5) > 0;
        if good {
            self.runs_now(node, p);
        }
        self.tell(node, Event::Spawned(p, good));
        self.done(node, number);
        let held = std::mem::take(&mut self.machines[node].held);
        for (number, of, order) in held {
            if of == p {
                self.obey_order(node, order);
                self.done(node, number);
            } else {
                self.machines[node].held.push_back((number, of, order));
            }
        }
    }

    /// An order is carried out. Those of a former master count nothing.
    fn done(&mut self, node: usize, number: u64) {
        let m = &mut self.machines[node];
        m.done.insert(number);
        let open = m.starting.values().chain(m.held.iter().map(|(number, _, _)| number)).filter(|n| **n > 0).min();
        m.acks.push_back(open.map_or(m.orders_seen, |first| first - 1));
    }

    fn spawn(&mut self, node: usize, p: i32) {
        let facts = SpawnFacts {
            pid: pid(p),
            parent: Some(pid(PARENT)),
            node: NodeId(node as i32),
            uid: 0,
            gids: [0].into(),
            relatives: vec![],
        };
        self.asked.insert(self.next_ask, p);
        self.next_ask += 1;
        let mut out = vec![];
        self.master.spawn(Ask(self.next_ask - 1), facts, &mut out);
        self.perform(out);
    }

    fn unlink(&mut self, node: i32) {
        let m = &mut self.machines[node as usize];
        m.linked = false;
        m.orders.clear();
        m.acks.clear();
        self.master.link_broken(NodeId(node));
    }

    fn tell(&mut self, node: usize, event: Event) {
        let m = &mut self.machines[node];
        m.events.push_back((m.next_event, event));
        m.next_event += 1;
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Answer(ask, result) => {
                    let p = self.asked.remove(&ask.0).unwrap();
                    match result {
                        Ok(()) => {
                            self.ghosts.entry(p).and_modify(|g| g.made = true);
                            self.report(p, Report::Hello(PARENT));
                        }
                        Err(Refusal::Interrupted(node)) => {
                            // Nothing has run.
                            assert!(!self.runs.contains_key(&p), "{p} ran and may be tried again");
                            self.again.push_back((node.0 as usize, p));
                        }
                        Err(_) => self.end_ghost(p, Status::Exited(1).to_raw()),
                    }
                }
                Action::Hold(p) => {
                    if let Some(g) = self.ghosts.get_mut(&p.get()) {
                        g.open = false;
                    }
                    self.keeper.push_back(Word::Held(p.get()));
                }
                Action::Release(p) | Action::LetGo(p) => self.release(p.get()),
                Action::Send(node, number, order) => self.machines[node.0 as usize].orders.push_back((number, order)),
                Action::Ghost(p, command) => {
                    let Some(g) = self.ghosts.get_mut(&p.get()) else { continue };
                    match command {
                        // Its connection ends with it, and so does the wait for the answer.
                        GhostCommand::Clone(child) if g.at_gate.is_some() => {
                            self.report(p.get(), Report::Cloned(child.get(), Err(3)));
                        }
                        _ => g.commands.push_back(command),
                    }
                }
                Action::KillGhost(p) | Action::KillHome(p) => self.end_ghost(p.get(), 9),
                Action::WakeGhost(p) => self.continue_ghost(p.get()),
                Action::Thaw(p) => drop(self.ghosts.entry(p.get()).and_modify(|g| g.thawed = g.stopped)),
                Action::Freeze(p) => drop(self.ghosts.entry(p.get()).and_modify(|g| g.thawed = false)),
                Action::NurseryClone(child) => self.clone(1, child.pid.get()),
                Action::Trouble(text) => panic!("{text}"),
                _ => {}
            }
        }
    }

    fn report(&mut self, p: i32, report: Report) {
        self.reports.entry(p).or_default().push_back(report);
    }

    fn release(&mut self, p: i32) {
        let Some(g) = self.ghosts.get_mut(&p) else { return };
        g.open = true;
        if let (Some(status), None) = (g.at_gate, g.gone) {
            g.gone = Some(status);
            self.keeper.push_back(Word::Gone(p));
        }
    }

    fn end_ghost(&mut self, p: i32, status: i32) {
        let Some(g) = self.ghosts.get_mut(&p) else { return };
        if g.at_gate.is_some() || g.gone.is_some() {
            return;
        }
        g.at_gate = Some(status);
        let open = g.open;
        let commands = std::mem::take(&mut g.commands);
        for command in commands {
            if let GhostCommand::Clone(child) = command {
                self.report(p, Report::Cloned(child.get(), Err(3)));
            }
        }
        if let Some(reports) = self.reports.get_mut(&p)
            && self.dice.below(2) == 0
        {
            let lost = |r: &Report| if let Report::Cloned(child, Ok(())) = r { Some(*child) } else { None };
            self.keeper.extend(reports.iter().filter_map(lost).map(Word::NoAnswer));
            reports.retain(|r| lost(r).is_none());
        }
        let g = self.ghosts.get_mut(&p).unwrap();
        if open {
            g.gone = Some(status);
            self.keeper.push_back(Word::Gone(p));
        } else {
            self.keeper.push_back(Word::AtGate(p));
        }
    }

    fn continue_ghost(&mut self, p: i32) {
        if let Some(g) = self.ghosts.get_mut(&p)
            && std::mem::take(&mut g.stopped)
        {
            g.thawed = false;
            self.keeper.push_back(Word::Continued(p));
        }
    }

    fn stop_ghost(&mut self, p: i32, own: bool) {
        if let Some(g) = self.ghosts.get_mut(&p)
            && g.at_gate.is_none()
            && !std::mem::replace(&mut g.stopped, true)
        {
            self.keeper.push_back(Word::Stopped(p, own));
        }
    }

    fn clone(&mut self, parent: i32, child: i32) {
        self.ghosts.insert(child, Ghost { made: true, parent, ..Ghost::default() });
        self.keeper.push_back(Word::Adopted(child));
        self.report(parent, Report::Cloned(child, Ok(())));
        self.report(child, Report::Hello(parent));
    }

    /// One thing that a user, a program or a wire does.
    fn act(&mut self, crashes: bool) {
        let ghosts: Vec<i32> =
            self.ghosts.iter().filter(|(_, g)| g.connected && g.at_gate.is_none()).map(|(p, _)| *p).collect();
        let node = self.dice.below(self.machines.len());
        let live = |m: &Machine| -> Vec<i32> {
            m.processes.iter().filter(|(_, p)| p.ended.is_none() && !p.stopped).map(|(p, _)| *p).collect()
        };
        let running = live(&self.machines[node]);
        let pick = |dice: &mut Dice, from: &[i32]| (!from.is_empty()).then(|| from[dice.below(from.len())]);
        if crashes && self.dice.below(20) == 0 {
            return match self.dice.below(3) {
                0 => self.crash_master(),
                _ => self.crash_node(node),
            };
        }
        match self.dice.below(10) {
            0 | 1 => {
                let p = self.next_pid;
                self.next_pid += 1;
                // Nobody holds it yet.
                self.ghosts.insert(p, Ghost { parent: PARENT, open: true, ..Ghost::default() });
                self.spawn(node, p);
            }
            2 => {
                if let Some(p) = pick(&mut self.dice, &running) {
                    let m = &mut self.machines[node];
                    let child = m.next_pid;
                    m.next_pid += 1;
                    m.processes.insert(child, Process { parent: Some(p), ..Process::default() });
                    self.tell(node, Event::Forked(p, child));
                }
            }
            3 => {
                if let Some(p) = pick(&mut self.dice, &running) {
                    let code = self.dice.below(256) as u8;
                    let status = Status::Exited(code).to_raw();
                    let killed = self.dice.below(4) == 0;
                    self.end(node, p, if killed { 9 } else { status });
                }
            }
            4 => {
                if let Some(p) = pick(&mut self.dice, &ghosts) {
                    self.end_ghost(p, 9);
                }
            }
            5 | 6 => {
                if let Some(p) = pick(&mut self.dice, &ghosts) {
                    let signal = 34 + self.dice.below(10) as i32;
                    self.signal(p, signal);
                }
            }
            7 => {
                if let Some(p) = pick(&mut self.dice, &ghosts) {
                    self.stop_ghost(p, false);
                }
            }
            8 => {
                if let Some(p) = pick(&mut self.dice, &ghosts) {
                    self.continue_ghost(p);
                    self.signal(p, 18);
                }
            }
            _ => {
                if self.machines[node].linked {
                    self.unlink(node as i32);
                } else {
                    self.link(node as i32);
                }
            }
        }
    }

    fn signal(&mut self, p: i32, signal: i32) {
        let g = self.ghosts.get_mut(&p).unwrap();
        g.sent += 1;
        g.unacknowledged.push_back((g.sent, signal));
        let number = g.sent;
        self.sent.entry(p).or_default().push(signal);
        self.report(p, Report::Signal(p, number, signal));
    }

    fn end(&mut self, node: usize, p: i32, status: i32) {
        let m = &mut self.machines[node];
        let process = m.processes.get_mut(&p).unwrap();
        if process.ended.is_some() {
            return;
        }
        process.ended = Some(status);
        let natural = process.parent.is_some();
        self.tell(node, Event::Exited(p, status));
        // Parents reap or not; what one leaves behind is held by the node's init, which waits for the order to forget.
        if natural && self.dice.below(2) == 0 {
            self.tell(node, Event::Reaped(p));
            self.machines[node].processes.entry(p).and_modify(|p| p.gone = true);
        }
    }

    /// Delivers one message of one channel. False when all are empty.
    fn deliver(&mut self) -> bool {
        let mut ready: Vec<(u8, i32)> = Vec::new();
        if !self.keeper.is_empty() {
            ready.push((0, 0));
        }
        // The agent asks the keeper before it passes a SIGCONT on: a report never overtakes the keeper's words.
        let may_report = self.keeper.is_empty();
        for (p, reports) in &self.reports {
            let stopped = self.ghosts.get(p).is_some_and(|g| g.stopped && !g.thawed);
            let continues = matches!(reports.front(), Some(Report::Signal(_, _, 18)));
            if !reports.is_empty() && !stopped && (may_report || !continues) {
                ready.push((1, *p));
            }
        }
        for (p, g) in &self.ghosts {
            // A ghost looks at its signals before its commands.
            let quiet = self.reports.get(p).is_none_or(VecDeque::is_empty);
            if g.connected && (!g.stopped || g.thawed) && g.at_gate.is_none() && quiet && !g.commands.is_empty() {
                ready.push((2, *p));
            }
        }
        for (n, m) in self.machines.iter().enumerate().filter(|(_, m)| m.linked) {
            for (kind, some) in [(3, !m.orders.is_empty()), (4, !m.events.is_empty()), (5, !m.acks.is_empty())] {
                if some {
                    ready.push((kind, n as i32));
                }
            }
        }
        for (n, m) in self.machines.iter().enumerate() {
            if !m.starting.is_empty() {
                ready.push((6, n as i32));
            }
        }
        if !self.again.is_empty() {
            ready.push((7, 0));
        }
        if ready.is_empty() {
            return false;
        }
        let (kind, who) = ready[self.dice.below(ready.len())];
        let mut out = vec![];
        match kind {
            0 => self.word(&mut out),
            1 => self.say(who, &mut out),
            2 => self.obey(who),
            3 => self.carry_out(who as usize),
            4 => self.event(who as usize, &mut out),
            6 => self.finish_start(who as usize),
            7 => {
                let (node, p) = self.again.pop_front().unwrap();
                if self.ghosts.get(&p).is_some_and(|g| g.at_gate.is_none()) {
                    self.spawn(node, p);
                }
            }
            _ => {
                let number = self.machines[who as usize].acks.pop_front().unwrap();
                self.master.orders_acknowledged(NodeId(who), number, &mut out);
            }
        }
        self.perform(out);
        true
    }

    fn word(&mut self, out: &mut Vec<Action>) {
        match self.keeper.pop_front().unwrap() {
            Word::Held(p) => self.master.held(pid(p), Ok(()), out),
            Word::Adopted(p) => self.master.adopted(pid(p), None),
            Word::Stopped(p, own) => self.master.ghost_stopped(pid(p), own, out),
            Word::Continued(p) => self.master.ghost_continued(pid(p)),
            Word::AtGate(p) => self.master.at_gate(pid(p), out),
            Word::Gone(p) => self.master.ghost_gone(pid(p), out),
            Word::NoAnswer(child) => self.master.cloned(pid(child), Err(3), out),
        }
    }

    fn say(&mut self, p: i32, out: &mut Vec<Action>) {
        let dead = self.ghosts.get(&p).is_some_and(|g| g.at_gate.is_some());
        match self.reports.get_mut(&p).and_then(VecDeque::pop_front).unwrap() {
            Report::Hello(parent) if !dead => {
                self.ghosts.get_mut(&p).unwrap().connected = true;
                self.master.ghost_connected(pid(p), Pid::new(parent), out);
            }
            Report::Hello(_) => {}
            Report::Signal(p, number, signal) => self.master.ghost_signal(pid(p), number, siginfo(signal), out),
            Report::Cloned(child, result) => self.master.cloned(pid(child), result, out),
        }
    }

    fn obey(&mut self, p: i32) {
        let g = self.ghosts.get_mut(&p).unwrap();
        match g.commands.pop_front().unwrap() {
            GhostCommand::Exit(code) => self.end_ghost(p, Status::Exited(code as u8).to_raw()),
            GhostCommand::Die(signal) => self.end_ghost(p, signal),
            GhostCommand::Stop(_) => self.stop_ghost(p, true),
            GhostCommand::Clone(child) => self.clone(p, child.get()),
            GhostCommand::Ack(number) => {
                while g.unacknowledged.front().is_some_and(|(n, _)| *n <= number) {
                    g.unacknowledged.pop_front();
                }
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, node: usize) {
        let (number, order) = self.machines[node].orders.pop_front().unwrap();
        let m = &mut self.machines[node];
        if number <= m.orders_seen {
            return;
        }
        m.orders_seen = number;
        if let Order::Spawn(p) = order {
            m.starting.insert(p.get(), number);
            return;
        }
        let about = match &order {
            Order::Kill(p) | Order::Stop(p) | Order::Continue(p) | Order::Signal { pid: p, .. } => p.get(),
            _ => 0,
        };
        if m.starting.contains_key(&about) {
            m.held.push_back((number, about, order));
            return;
        }
        if !m.done.contains(&number) {
            self.obey_order(node, order);
        }
        self.done(node, number);
    }

    fn obey_order(&mut self, node: usize, order: Order) {
        match order {
            Order::Kill(p) if self.machines[node].processes.contains_key(&p.get()) => self.end(node, p.get(), 9),
            Order::Stop(p) => self.stop_process(node, p.get()),
            Order::Continue(p) => {
                if let Some(process) = self.machines[node].processes.get_mut(&p.get()) {
                    process.stopped = false;
                    self.tell(node, Event::Continued(p.get()));
                }
            }
            Order::Signal { pid: p, number, siginfo } => {
                let signal = i32::from_ne_bytes(*siginfo.first_chunk().unwrap());
                let Some(process) = self.machines[node].processes.get_mut(&p.get()) else { return };
                if number <= process.newest && signal == 18 && process.ended.is_none() {
                    // Told before: the master counts its answers.
                    let stopped = process.stopped;
                    self.tell(node, Event::Continued(p.get()));
                    if stopped {
                        self.tell(node, Event::Stopped(p.get(), 19));
                    }
                } else if number > process.newest && process.ended.is_none() {
                    process.newest = number;
                    process.got.push(signal);
                    if signal == 18 {
                        process.stopped = false;
                        self.tell(node, Event::Continued(p.get()));
                    }
                }
            }
            Order::Forget(p) => {
                self.machines[node].processes.entry(p.get()).and_modify(|p| p.gone |= p.ended.is_some());
            }
            Order::RelativeGone(p, _) => {
                self.machines[node].skeletons.remove(&p.get());
            }
            _ => {}
        }
    }

    fn stop_process(&mut self, node: usize, p: i32) {
        if let Some(process) = self.machines[node].processes.get_mut(&p)
            && process.ended.is_none()
            && !std::mem::replace(&mut process.stopped, true)
        {
            self.tell(node, Event::Stopped(p, 19));
        }
    }

    fn event(&mut self, node: usize, out: &mut Vec<Action>) {
        let id = NodeId(node as i32);
        let (number, event) = self.machines[node].events.pop_front().unwrap();
        assert!(self.master.accept_event(id, number));
        let m = &mut self.machines[node];
        m.told.push_back((number, event.clone()));
        if self.dice.below(2) == 0 {
            self.machines[node].told.clear();
        }
        match event {
            Event::Spawned(p, good) => {
                let result = if good { Ok(()) } else { Err(Refusal::Failed(id, 8, String::new())) };
                self.master.spawned(pid(p), result, out);
            }
            Event::Forked(parent, child) => {
                let child = Child { pid: pid(child), uid: 0, gid: 0 };
                self.master.forked(id, Pid::new(parent), child, out);
            }
            Event::Exited(p, status) => self.master.exited(pid(p), status, out),
            Event::Stopped(p, signal) => self.master.stopped(pid(p), signal, out),
            Event::Continued(p) => self.master.continued(pid(p), out),
            Event::Reaped(p) => self.master.reaped(pid(p), out),
        }
    }

    fn check(&self, seed: u64) {
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

/// Lets things happen until nothing more does.
fn settle(world: &mut World, seed: u64) {
    for node in 0..3 {
        if !world.machines[node].linked {
            world.link(node as i32);
        }
    }
    let mut steps = 0;
    while world.deliver() {
        steps += 1;
        assert!(steps < 100_000, "seed {seed}: no rest");
    }
}

fn play(crashes: bool) {
    let runs = std::env::var("BPROC_SIM_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let first = std::env::var("BPROC_SIM_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + runs {
        let mut world = World::new(seed, 3);
        for _ in 0..60 {
            world.act(crashes);
            for _ in 0..world.dice.below(12) {
                world.deliver();
            }
        }
        settle(&mut world, seed);
        if world.recovering {
            let connected = world.ghosts.iter().filter(|(_, g)| g.connected && g.at_gate.is_none());
            let connected = connected.map(|(p, _)| pid(*p)).collect();
            let mut out = vec![];
            world.master.recovered(&connected, &mut out);
            world.perform(out);
            settle(&mut world, seed);
        }
        world.check(seed);
    }
}

#[test]
fn promises_hold_in_every_order() {
    play(false);
}

#[test]
fn promises_hold_when_agents_are_killed() {
    play(true);
}
