//! A master with nodes, ghosts and a keeper on no time at all: every channel delivers in its order, but which channel
//! speaks next, what users do, when links break and when agents are killed is drawn from a seed. When all is quiet the
//! promises are checked.

mod check;
mod crash;
mod ghosts;
mod groups;
mod movers;
mod moves;
mod nodes;
mod play;
mod starters;

use bproc_common::id::{Epoch, NodeId, Pid};
use bproc_common::wait::Status;
use bproc_core::group::Record;
use bproc_core::lease::Leases;
use bproc_core::master::moving::{Departed, Leaving, MoveFacts, MoveId};
use bproc_core::master::nodes::Attach;
use bproc_core::master::{Action, Ask, Child, GhostCommand, Master, Node, Order, Refusal, SpawnFacts, Starter};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

const PARENT: i32 = 2;
const SENDER: i32 = 3;
const GROUP: i32 = 40;

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
    /// The keeper has let it go, so that it becomes the process.
    taken: bool,
    /// Signals that came to it then.
    late: Vec<i32>,
    /// The process was, when it became one.
    was_stopped: bool,
    starter: Option<Starter>,
}

#[derive(Debug, Default, Clone)]
struct Process {
    parent: Option<i32>,
    /// It stands still in the hands of a mover.
    frozen: bool,
    /// Signals that came to it then, on the master.
    late: Vec<i32>,
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
    /// By somebody there, when it was this process no more.
    Killed(i32),
    /// Of a move.
    Move(i32, MoveId, Said),
}

/// What a node says of a move.
#[derive(Debug, Clone)]
enum Said {
    Surveyed(bool),
    Receiving(bool),
    /// With its children, if they are others.
    Frozen(Option<Vec<i32>>),
    Adopted(bool),
    Arrived(bool),
    Departed(Departed),
}

#[derive(Debug)]
enum Word {
    Held(i32, bool),
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
    Ready,
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
    /// Signals to the group that have reached it.
    calls: BTreeSet<u64>,
    /// Who got one of them, and has not been told of his ghost's copy; and those of a former master.
    brought: Vec<(i32, i32)>,
    brought_before: Vec<(i32, i32)>,
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
    /// Masters that were killed.
    lives: u64,
    moves: bool,
    /// Processes of the master's own that may move.
    home: BTreeMap<i32, Process>,
    /// Moves that the agents have begun.
    pairs: Vec<movers::Pair>,
    /// Who asked for a move.
    movers: BTreeSet<u64>,
    /// Ghosts that are to become processes.
    taking: Vec<(i32, MoveId)>,
    /// Those whose end the nodes are to be told.
    watched: BTreeSet<i32>,
    /// Killed by the death of a mover, or of a machine that held them.
    perished: BTreeSet<i32>,
    /// Those that have been on the master.
    came_home: BTreeSet<i32>,
    /// Signals to them may be lost or come twice: the master's agent was killed in the middle of their homecoming, or before
    /// one that has moved since was told that they had arrived.
    may_differ: BTreeSet<i32>,
    /// The kernel's records of signals to the group, and how many there were.
    ring: VecDeque<(i32, Record)>,
    call: u64,
    /// Whose ghosts each reached.
    members: BTreeMap<u64, BTreeSet<i32>>,
    /// Each start has a starter of its own, which may be killed.
    kills: bool,
    /// By whom processes were started, whatever the master knows.
    started_by: BTreeMap<i32, Starter>,
    /// Who was killed.
    killed: BTreeSet<u64>,
    /// Who got one: it may come before one that waits in a ghost that is stopped or not connected.
    grouped: BTreeSet<i32>,
}

fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn siginfo(signal: i32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes[16..20].copy_from_slice(&SENDER.to_ne_bytes());
    bytes
}

impl World {
    fn new(seed: u64, nodes: i32, moves: bool) -> World {
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
            lives: 0,
            moves,
            home: BTreeMap::new(),
            pairs: Vec::new(),
            movers: BTreeSet::new(),
            taking: Vec::new(),
            watched: BTreeSet::new(),
            perished: BTreeSet::new(),
            came_home: BTreeSet::new(),
            may_differ: BTreeSet::new(),
            ring: VecDeque::new(),
            call: 0,
            members: BTreeMap::new(),
            grouped: BTreeSet::new(),
            kills: false,
            started_by: BTreeMap::new(),
            killed: BTreeSet::new(),
        };
        (0..nodes).for_each(|n| world.link(n));
        world
    }

    fn link(&mut self, node: i32) {
        self.greet(node as usize);
        let leaving = self.in_doubt(Some(node as usize));
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
            leaving,
            arriving: vec![],
        };
        eprintln!("link {node} {hello:?}");
        m.linked = true;
        let mut out = vec![];
        let seen = self.master.attach(NodeId(node), hello, "up", &mut out).unwrap();
        let m = &mut self.machines[node as usize];
        let told = std::mem::take(&mut m.told);
        // Who was forked there and has gone elsewhere is known from there.
        let gone = |event: &Event| matches!(event, Event::Forked(_, p) if !m.processes.contains_key(p));
        let all = told.into_iter().chain(std::mem::take(&mut m.events));
        m.events = all.filter(|(n, event)| *n > seen && !gone(event)).collect();
        self.perform(out);
    }

    fn unlink(&mut self, node: i32) {
        eprintln!("unlink {node}");
        let m = &mut self.machines[node as usize];
        m.linked = false;
        m.orders.clear();
        m.acks.clear();
        self.master.link_broken(NodeId(node));
    }

    fn tell(&mut self, node: usize, event: Event) {
        eprintln!("    node {node} tells {event:?}");
        let m = &mut self.machines[node];
        m.events.push_back((m.next_event, event));
        m.next_event += 1;
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            eprintln!("    > {action:?}");
            match action {
                Action::Answer(ask, _) if self.movers.remove(&ask.0) => {}
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
                    self.taking.retain(|(taken, _)| *taken != p.get());
                    let ghost = self.ghosts.get_mut(&p.get()).filter(|g| g.gone.is_none() || !g.made);
                    let there = ghost.map(|g| g.open = false).is_some();
                    self.keeper.push_back(Word::Held(p.get(), there));
                    let stopped = |g: &mut Ghost| std::mem::take(&mut g.was_stopped) && g.stopped;
                    if self.ghosts.get_mut(&p.get()).is_some_and(stopped) {
                        self.keeper.push_back(Word::Stopped(p.get(), false));
                    }
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
                        // Stops of children are nobody's here, and no ghost that is to become a process leaves signals alone.
                        GhostCommand::WatchChildren | GhostCommand::TakeSignals | GhostCommand::Subreaper => {}
                        _ => g.commands.push_back(command),
                    }
                }
                Action::KillGhost(p) | Action::KillHome(p) => self.end_ghost(p.get(), 9),
                Action::WakeGhost(p) => self.continue_ghost(p.get()),
                Action::Thaw(p) => drop(self.ghosts.entry(p.get()).and_modify(|g| g.thawed = g.stopped)),
                Action::Freeze(p) => drop(self.ghosts.entry(p.get()).and_modify(|g| g.thawed = false)),
                Action::NurseryClone(child) => self.clone(1, child.pid.get()),
                // Adopting may fail, and a master that is new may not know of a move; anything else must not happen.
                Action::Trouble(text) => {
                    assert!(text.starts_with("the children") || text.contains("no skeleton of"), "{text}");
                }
                Action::Watch(p) => drop(self.watched.insert(p.get())),
                action => self.perform_move(action),
            }
        }
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
        if self.kills && self.dice.below(12) == 0 {
            return self.kill_starter();
        }
        if self.moves && self.dice.below(3) == 0 {
            return self.act_on_moves();
        }
        match self.dice.below(11) {
            10 => {
                let signal = if self.dice.below(20) == 0 { 9 } else { 34 + self.dice.below(10) as i32 };
                self.signal_group(signal);
            }
            0 | 1 => {
                let p = self.next_pid;
                self.next_pid += 1;
                // Nobody holds it yet.
                let starter = self.starter(p);
                self.ghosts.insert(p, Ghost { parent: PARENT, open: true, starter, ..Ghost::default() });
                self.spawn(node, p);
            }
            2 => {
                if let Some(p) = pick(&mut self.dice, &running).filter(|p| !self.machines[node].processes[p].frozen) {
                    let m = &mut self.machines[node];
                    let child = m.next_pid;
                    m.next_pid += 1;
                    m.processes.insert(child, Process { parent: Some(p), ..Process::default() });
                    self.hand_on_starter(p, child);
                    self.tell(node, Event::Forked(p, child));
                }
            }
            3 => {
                if let Some(p) = pick(&mut self.dice, &running) {
                    let code = self.dice.below(256) as u8;
                    let status = Status::Exited(code).to_raw();
                    let killed = self.dice.below(4) == 0 || self.machines[node].processes[&p].frozen;
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
            // Acknowledgements go before any event.
            let event = !m.events.is_empty() && m.acks.is_empty();
            for (kind, some) in [(3, !m.orders.is_empty()), (4, event), (5, !m.acks.is_empty())] {
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
        let steps = self.mover_steps();
        if !steps.is_empty() {
            ready.push((8, 0));
        }
        let take = self.ghost_to_take();
        if take.is_some() {
            ready.push((9, 0));
        }
        let gone = self.watched_that_are_gone();
        if gone.is_some() {
            ready.push((10, 0));
        }
        if !self.ring.is_empty() {
            ready.push((11, 0));
        }
        if ready.is_empty() {
            return false;
        }
        let (kind, who) = ready[self.dice.below(ready.len())];
        let mut out = vec![];
        eprintln!("deliver {kind} {who}");
        match kind {
            0 => self.word(&mut out),
            1 => {
                self.read_ring(&mut out);
                self.say(who, &mut out);
            }
            11 => self.read_ring(&mut out),
            2 => self.obey(who),
            3 => self.carry_out(who as usize),
            4 => self.event(who as usize, &mut out),
            6 => self.finish_start(who as usize),
            8 => {
                let (pair, source) = steps[self.dice.below(steps.len())];
                self.step_mover(pair, source);
            }
            9 => self.take_ghost(take.unwrap()),
            10 => self.tell_end_of_watched(gone.unwrap(), &mut out),
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
        self.master.settle_calls(false, &mut out);
        self.perform(out);
        true
    }
}
