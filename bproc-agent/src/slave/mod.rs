//! The slave role: one task owns what is known of the node's processes; spawns run beside it.
//!
//! - [`space`]: the pid namespace and its record · [`spawn`]: skeletons and exec, of a `block` · [`link`]: to the master
//! - [`moving`]: processes that come and go while they run · [`rooms`]: places for those that come
//! - `orders`: what the master orders · `groups`: signals to whole groups · `clients`: what is asked on this machine
//! - `children`: those of a process that comes · `halts`: children that are stopped elsewhere
//! - `spread`: images that many get
//! - `former`, `handover`: what a former agent was in the middle of · `names`: who is named by what is under way
//! - [`clocks`]: those of its processes · [`shown`]: what they do, for `ps` on the master
//! - [`table`]: processes, and what the kernel tells of them · [`run`]: start-up · [`life`]: lives of the node

mod children;
mod clients;
pub mod clocks;
pub mod delivery;
mod former;
mod groups;
mod halts;
mod handover;
mod leaving;
pub mod life;
pub mod link;
pub mod looks;
pub mod moving;
mod names;
mod orders;
pub mod rooms;
pub mod run;
pub mod shown;
pub mod space;
pub mod spawn;
mod spread;
mod stand_ins;
pub mod table;
mod table_moves;

use crate::former::Caller;
use crate::ghosts::{self, Ghost};
use crate::kernel::Kernel;
use crate::mover::{Mover, Movers, Said};
use crate::owed::Owed;
use bproc_common::event::{Event, kind};
use bproc_common::ghost::{Role, op};
use bproc_common::id::Pid;
use bproc_config::net::Gate;
use bproc_core::session::{Inbox, Outbox};
use bproc_core::slave::Blocks;
use bproc_proto::Failure;
use bproc_proto::link::{self as wire, FromNode, ToNode, event, from_node, to_node};
use bproc_sys::process::FileId;
use bproc_travel::node::Traveller;
use delivery::{Delivery, Note};
use groups::Groups;
use halts::Halts;
use looks::Looks;
use moving::Half;
use names::Naming;
use space::Space;
use spawn::{Family, Member, NotStarted, Spawner};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::Table;
use tokio::sync::{mpsc, oneshot};

/// Everything that can happen to a node's agent.
#[derive(Debug)]
pub enum Fact {
    /// From a skeleton or init.
    Ghost(ghosts::Report),
    /// From the kernel.
    Kernel(Event),
    /// What the master's machine's clocks show.
    Clocks(clocks::Measured),
    /// The link asks what to say first.
    Hello(oneshot::Sender<wire::Hello>),
    /// The link stands.
    Linked(Box<wire::Welcome>, mpsc::UnboundedSender<FromNode>),
    /// The master says.
    Master(Box<ToNode>),
    /// The link broke.
    Unlinked,
    /// The master's machine is another one.
    Elsewhere,
    /// No other agent has the machine's socket now.
    CounterIsFree(std::fs::File),
    /// Somebody on this machine asks.
    Ask(Box<wire::Ask>, Vec<std::os::fd::OwnedFd>, oneshot::Sender<bproc_proto::client::reply::Body>),
    /// The master refuses this life of the node: end it and begin anew.
    Fenced,
    /// A process was made and is about to exec: pid in the space and here.
    Made(i32, i32),
    /// A spawn ended.
    Spawned(u64, i32, Result<(), NotStarted>),
    /// The output of an ended process is out.
    Flushed(wire::Exited),
    /// An order was carried out.
    Done(u64),
    /// What can be said of a process that is to move.
    Surveyed(wire::Surveyed, Vec<Vec<u8>>),
    /// The source of a move is waited for, at this port.
    Listens(wire::Move, u16),
    /// A process that is to come has a body, or cannot have one.
    RoomMade(wire::Move, Result<rooms::Room, Failure>),
    /// From a mover.
    Mover(wire::Move, Said),
    /// From the mover that holds a process still, whose image many get.
    Holder(u64, Said),
    /// A mover of a former agent's is in doubt.
    Doubt(Caller),
    /// Look once more whether all forks of a process that stands still are known.
    LookForChildren(wire::Move, bool, u32),
    /// The number that the last fork in the space got.
    LastPid(i32),
    /// The children of a process that is going to come have their skeletons, or cannot.
    Adopted(wire::Move, Result<(), Failure>),
    /// The children that this one has left have their skeletons.
    Orphaned(i32),
    /// What a process that is about to go wrote is out, or cannot get out.
    MayGo(wire::Move, bool),
    /// What processes do.
    Seen(Box<shown::Seen>),
    /// The space with this inode number has lost its init: it is gone.
    SpaceGone(u64),
    /// End, leaving everything as it is.
    Stop,
}

/// Pauses between looks at processes that ended and are not known to be reaped.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const SLOWEST_LOOK: Duration = Duration::from_secs(1);
/// Bits of an order's number that tell whose it is: each master counts from 1.
const COUNTS: u64 = !0 << 48;
const ONE_COUNT: u64 = 1 << 48;

/// The task that owns the state.
pub struct Actor {
    node: i32,
    dir: PathBuf,
    ghost: PathBuf,
    ghost_exe: FileId,
    movers: Movers,
    title: String,
    keep_on_loss: bool,
    facts: mpsc::Sender<Fact>,
    space: Space,
    kernel: Kernel,
    /// Records lost that have been made up for.
    dropped: u64,
    family: Arc<Family>,
    spawner: Arc<Spawner>,
    traveller: Arc<Traveller>,
    init: Option<Ghost>,
    /// Signals that came before init (re)connected.
    for_init: Vec<(u64, i32, Note, Vec<u8>)>,
    table: Table,
    looks: Looks,
    /// The last one looked at in turn.
    looked_at: i32,
    blocks: Blocks,
    events: Outbox<event::Body>,
    orders: Inbox,
    /// Unbounded: signals are acknowledged when they are delivered, and ghosts keep few that are not.
    deliveries: mpsc::UnboundedSender<Delivery>,
    under_way: BTreeSet<u64>,
    /// Stands in the upper bits of their numbers.
    count: u64,
    /// Signals for those that are being started.
    for_starting: HashMap<i32, Vec<(u64, wire::Signal)>>,
    /// Who is named by what is under way.
    named: HashMap<Naming, BTreeSet<i32>>,
    /// Those among them that have ended elsewhere, with their status.
    ended_when_named: BTreeMap<i32, i32>,
    /// Those that have ended elsewhere and lead others here.
    dead_leaders: BTreeMap<i32, i32>,
    /// Skeletons of a former agent's time of which it is not known what has become of them; their pids here.
    former: HashMap<i32, i32>,
    /// Those that nobody needs and that were told to end; `None` until that was looked at.
    dismissed: Option<HashMap<i32, i32>>,
    began: Instant,
    /// Clock of the kernel's records when the processes of a former agent's time were looked at.
    found_ns: u64,
    newest_order: u64,
    /// Orders carried out of which the master has not been told yet.
    owed: Owed,
    instance: u64,
    /// Unbounded: what it holds is kept by the outbox anyway until the master has it.
    to_master: Option<mpsc::UnboundedSender<FromNode>>,
    stdio_address: String,
    flush_limit: Duration,
    patience: Duration,
    heard: Instant,
    /// Halves of moves under way, by pid.
    halves: HashMap<i32, Half>,
    /// For those that are going to come.
    rooms: Vec<rooms::Making>,
    /// Processes that are held still, whose images many get, by the master's numbers.
    holders: HashMap<u64, Mover>,
    /// The streams of processes that are going to go.
    streams_of_moves: HashMap<i32, leaving::Leaving>,
    /// Whether those can move that are to go.
    surveys: HashMap<i32, crate::survey::Survey>,
    /// Orders to go that wait until signals ordered before are delivered.
    departures: VecDeque<(u64, wire::Depart)>,
    /// Processes that have gone, and whose stand-ins have not connected yet.
    unconnected: BTreeSet<i32>,
    /// Of these those whose processes have just gone: the kernel does not tell yet what they are sent.
    young: BTreeSet<i32>,
    /// Processes that ended while their stand-ins were being made, with their status.
    ended_early: HashMap<i32, i32>,
    /// Zombies that wait for their parent, which is going to come.
    kept: HashMap<i32, BTreeSet<i32>>,
    halts: Halts,
    groups: Groups,
    /// Where processes come in.
    listen: IpAddr,
    /// Certificates.
    gate: Gate,
    asks: clients::Asks,
    watch: shown::Watch,
}

impl Actor {
    async fn serve(mut self, mut facts: mpsc::Receiver<Fact>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut zombies = FIRST_LOOK;
        let mut next_look = tokio::time::Instant::now();
        loop {
            tokio::select! {
                fact = facts.recv() => match fact {
                    None | Some(Fact::Stop) => return,
                    Some(fact) => self.learn(fact).await,
                },
                // Without processes and with the master there, nothing is to be looked at.
                () = tokio::time::sleep_until(self.looks.next().unwrap_or_else(tokio::time::Instant::now)),
                    if self.looks.next().is_some() => {
                    let pids = self.looks.take();
                    self.look_at(pids);
                }
                // The kernel tells of reaped processes late or not at all: zombies are looked after.
                () = tokio::time::sleep_until(next_look), if self.table.has_zombies() => {
                    let events = self.table.sweep();
                    zombies = if events.is_empty() { (zombies * 2).min(SLOWEST_LOOK) } else { FIRST_LOOK };
                    next_look = tokio::time::Instant::now() + zombies;
                    for body in events {
                        self.tell(body);
                    }
                }
                () = tokio::time::sleep_until(self.owed.due()), if self.owed.any() => self.settle_acknowledgement(),
                () = tokio::time::sleep_until(self.watch.due().unwrap_or_else(tokio::time::Instant::now)),
                    if self.watch.due().is_some() && self.to_master.is_some() && !self.table.is_empty() => {
                    self.look_what_they_do();
                }
                _ = tick.tick(), if self.to_master.is_none() || !self.table.is_empty() || !self.dead_leaders.is_empty() => {
                    self.look_around().await;
                }
            }
        }
    }

    async fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Ghost(report) => self.ghost(report),
            Fact::Kernel(event) => self.kernel_event(&event),
            Fact::Clocks(measured) => self.keep_time(measured).await,
            // What is in its last step is here or is not in a moment; a master that is new must be told the truth.
            Fact::Hello(answer) if self.in_between() && self.heard.elapsed() < self.patience / 2 => {
                self.hello_later(answer);
            }
            Fact::Hello(answer) if self.all_decided() => {
                let _ = answer.send(self.hello());
            }
            Fact::Hello(answer) => self.hello_later(answer),
            Fact::Linked(welcome, to) => self.linked(&welcome, to),
            Fact::Master(message) => {
                self.heard = Instant::now();
                self.master(*message);
            }
            Fact::Unlinked => {
                self.to_master = None;
                self.asks_lost();
                // The master that knew of them forgets them.
                self.holders.clear();
            }
            Fact::Elsewhere => self.open_counter(),
            Fact::CounterIsFree(lock) => self.counter_is_free(lock),
            Fact::Ask(ask, fds, answer) => self.ask(*ask, fds, answer),
            Fact::Fenced => {
                tracing::warn!("the master declared this life of the node dead; beginning anew");
                self.begin_anew().await;
            }
            Fact::SpaceGone(pid_ns) if pid_ns == self.space.record.pid_ns => {
                tracing::error!("the space's init has ended and every process with it; beginning anew");
                self.begin_anew().await;
            }
            Fact::SpaceGone(_) => {}
            Fact::Made(pid, host_pid) => self.table.made(pid, host_pid),
            Fact::Spawned(number, pid, result) => {
                self.spawned(pid, result.err());
                self.done(number);
                self.no_longer_named(Naming::Start(number));
                for (number, signal) in self.for_starting.remove(&pid).unwrap_or_default() {
                    self.signal(number, signal);
                }
            }
            Fact::Flushed(exited) => self.tell(event::Body::Exited(exited)),
            Fact::Done(number) => {
                self.done(number);
                self.group_done(number);
            }
            Fact::Surveyed(said, stdio) => self.surveyed(said, stdio),
            Fact::Listens(r#move, port) => self.listens(r#move, port),
            Fact::RoomMade(r#move, result) => self.room_made(r#move, result),
            Fact::Mover(r#move, said) => self.mover(r#move, said),
            Fact::Holder(number, said) => self.holder(number, said),
            Fact::Doubt(caller) => self.take_over(caller, true),
            Fact::LastPid(last) => {
                let cursor = self.blocks.resume(last);
                self.move_cursor(cursor);
            }
            Fact::LookForChildren(r#move, changed, looks) => self.is_frozen(r#move, changed, looks),
            Fact::Adopted(r#move, result) => self.adopted(r#move, result),
            Fact::Orphaned(of) => self.no_longer_named(Naming::Orphans(of)),
            Fact::MayGo(r#move, flushed) => self.may_go(r#move, flushed),
            Fact::Seen(seen) => self.seen(*seen),
            Fact::Stop => {}
        }
    }

    fn hello(&self) -> wire::Hello {
        let over = self.over().into_iter().map(|pid| wire::Process { pid, ..Default::default() });
        wire::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: self.space.record.epoch,
            instance: self.instance,
            orders_seen: self.acknowledgeable(),
            inventory: self.table.inventory().into_iter().chain(over).collect(),
            oldest_event: self.events.oldest(),
            leases: self.blocks.held().iter().map(|b| wire::Lease { start: b.start, length: b.length }).collect(),
            skeletons: self.stand_ins(),
            machine: vmadump::facts::Machine::here().encode(),
            kernel: crate::kernel::release(),
            address: String::new(),
            leaving: self.leaving(),
            arriving: self.arriving(),
        }
    }

    fn linked(&mut self, welcome: &wire::Welcome, to: mpsc::UnboundedSender<FromNode>) {
        self.asks_lost();
        self.heard = Instant::now();
        self.watch.linked(welcome.shows);
        self.stdio_address.clone_from(&welcome.stdio_address);
        self.traveller.master_is_at(&welcome.files_address);
        self.traveller.prefetch(&welcome.keep, welcome.keep_size);
        self.patience = Duration::from_secs(welcome.ping_timeout_s.max(2).into());
        // A master that keeps dying never comes to its first ping.
        self.renew_lease();
        if self.space.record.master_epoch != welcome.master_epoch {
            self.give_up_moves();
            // Another life of the master's agent counts its orders from 1.
            self.orders = Inbox::default();
            self.forget_orders();
            self.groups.begin_anew();
            self.space.note_orders(0);
            self.space.record.master_epoch = welcome.master_epoch;
            self.save();
            self.withdraw_forks();
            for end in self.table.ends() {
                self.tell(end);
            }
        }
        for (number, body) in self.events.resend_after(welcome.events_seen) {
            send(&to, number, body);
        }
        self.to_master = Some(to);
        tracing::info!(node = self.node, "attached to the master");
    }

    fn save(&mut self) {
        self.space.record.blocks = self.blocks.held().iter().map(|b| (b.start, b.length)).collect();
        if let Err(error) = self.space.save() {
            tracing::warn!(error = %format!("{error:#}"), "the record of the space");
        }
    }

    /// An event for the master: kept until it has it.
    fn tell(&mut self, body: event::Body) {
        tracing::trace!(?body, "event");
        self.settle_acknowledgement();
        if let event::Body::Exited(exited) = &body {
            self.table.told_end(exited.pid, exited.status);
            if let Some(token) = self.table.token(exited.pid) {
                let spawner = self.spawner.clone();
                tokio::spawn(async move { spawner.iod.over(&token).await });
            }
        }
        if let event::Body::Reaped(_) = body {
            self.end_dead_leaders();
        }
        let number = self.events.push(body.clone());
        if let Some(to) = &self.to_master {
            send(to, number, body);
        }
    }

    fn master(&mut self, message: ToNode) {
        match message.body {
            Some(to_node::Body::Ack(number)) => self.events.acknowledged(number),
            Some(to_node::Body::Answer(answer)) => self.answered(*answer),
            Some(to_node::Body::Hold(order)) => self.hold(order),
            Some(to_node::Body::Release(number)) => drop(self.holders.remove(&number)),
            Some(to_node::Body::Ping(ping)) => {
                self.renew_lease();
                let pong = wire::Pong { id: ping.id, processes: self.table.len() as u32, ..table::gauges() };
                self.say(from_node::Body::Pong(pong));
            }
            Some(to_node::Body::Order(order)) => {
                if self.orders.accept(order.number) {
                    self.newest_order = order.number;
                    let number = self.count | order.number;
                    self.under_way.insert(number);
                    self.order(number, order.body);
                } else {
                    self.acknowledge();
                }
            }
            _ => {}
        }
    }

    fn say(&self, body: from_node::Body) {
        if let Some(to) = &self.to_master {
            // What is lost with a broken link is said again on the next.
            let _ = to.send(FromNode { body: Some(body) });
        }
    }

    /// Newest order before which all are carried out.
    fn acknowledgeable(&self) -> u64 {
        self.under_way.first().map_or(self.newest_order, |first| (first & !COUNTS) - 1)
    }

    /// Orders are counted anew. What is still under way of the former ones is nobody's any more.
    fn forget_orders(&mut self) {
        self.count = self.count.wrapping_add(ONE_COUNT) & COUNTS;
        self.under_way.clear();
        self.for_starting.clear();
        self.newest_order = 0;
    }

    fn done(&mut self, number: u64) {
        if self.under_way.remove(&number) {
            self.acknowledge();
        }
        self.let_depart();
    }

    /// Signals that were ordered before a process is to go must have reached it here.
    fn let_depart(&mut self) {
        while let Some((number, _)) = self.departures.front()
            && self.under_way.first().is_none_or(|first| first >= number)
            && let Some((number, order)) = self.departures.pop_front()
        {
            self.depart(order);
            if self.under_way.remove(&number) {
                self.acknowledge();
            }
        }
    }

    fn acknowledge(&mut self) {
        self.space.note_orders(self.acknowledgeable());
        if self.owed.one_more() {
            self.settle_acknowledgement();
        }
    }

    /// In front of every event, so that the master learns things in their order.
    fn settle_acknowledgement(&mut self) {
        if self.owed.settle() {
            self.say(from_node::Body::Ack(self.acknowledgeable()));
        }
    }

    fn ghost(&mut self, report: ghosts::Report) {
        match report {
            ghosts::Report::Connected { pid, host_pid, role, ghost, parent, .. } => {
                tracing::trace!(%pid, host_pid, ?role, ?parent, "connected");
                if role == Role::Init {
                    if host_pid != self.space.record.init_pid {
                        tracing::warn!(host_pid, "an init of another space connected; ignored");
                        return;
                    }
                    self.kernel.add_keeper(host_pid);
                    self.init = Some(ghost.clone());
                    self.renew_lease();
                    for (number, pid, note, siginfo) in std::mem::take(&mut self.for_init) {
                        self.deliver(ghost.clone(), number, pid, note, siginfo);
                    }
                    self.ask_for_cursor();
                }
                if let (Role::Skeleton, Some(host)) = (role, Pid::new(host_pid)) {
                    self.kernel.add_ghost(host);
                }
                let member = Member { ghost, host_pid };
                self.family.connected(pid.get(), member.clone());
                self.unconnected.remove(&pid.get());
                self.stand_in_connected(pid.get(), host_pid);
                if let (Role::Skeleton, Some(status)) = (role, self.ended_early.remove(&pid.get())) {
                    self.relative_ended(pid.get(), status);
                }
                self.apply_halts();
            }
            ghosts::Report::Signal { pid, number, siginfo } => {
                // Someone here signals a process that is elsewhere.
                if let Some(member) = self.family.get(pid.get()) {
                    if self.groups.copies.take(pid.get(), &siginfo).is_some() {
                        return member.ghost.tell(op::ACK, number.into(), 0, vec![]);
                    }
                    if siginfo.first_chunk().is_some_and(|raw| i32::from_ne_bytes(*raw) == libc::SIGCONT) {
                        // It goes on by it, as the process will.
                        self.forget_halt(pid.get());
                    }
                    let signal = wire::Signal { pid: pid.get(), ghost_number: number, siginfo, ..Default::default() };
                    self.tell(event::Body::Signal(signal));
                    member.ghost.tell(op::ACK, number.into(), 0, vec![]);
                }
            }
            ghosts::Report::Child { by, pid, status, rusage } => self.child(by, pid, status, rusage),
            ghosts::Report::Closed { pid, id } => {
                tracing::trace!(%pid, id, "connection ended");
                let host = self.family.get(pid.get()).and_then(|m| Pid::new(m.host_pid));
                if self.family.closed(pid.get(), id) {
                    self.groups.copies.forget(pid.get());
                    match (pid.get(), host) {
                        (1, _) => self.init = None,
                        // Dead, or a program now.
                        (_, Some(host)) => {
                            self.kernel.remove_ghost(host);
                            self.stand_in_closed(pid.get(), host);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn kernel_event(&mut self, event: &Event) {
        if u64::from(event.pidns) != self.space.record.pid_ns {
            return;
        }
        tracing::trace!(?event, "kernel");
        if event.kind == kind::SIGNAL {
            return self.stand_in_signalled(event);
        }
        if event.kind == kind::GROUP {
            return self.group_signalled(event);
        }
        if event.kind == kind::FORK && event.time_ns < self.found_ns {
            // Whoever lived then was found by a look at all. What skeletons did for a former agent is nobody's fork.
            return;
        }
        if event.kind == kind::EXIT {
            self.stand_in_ended(event.pid as i32, event.arg as i32);
        }
        let family = self.family.clone();
        let is_ghost = |pid: i32| pid == 1 || family.get(pid).is_some();
        let told = self.table.kernel_event(event, is_ghost, self.ghost_exe);
        if let Some(forked) = told.forked {
            self.looks.born(forked);
            let (cursor, ask) = self.blocks.forked(forked, self.table.len());
            self.move_cursor(cursor);
            if ask {
                self.tell(event::Body::LowLease(wire::LowLease {}));
            }
        }
        for body in told.events {
            self.tell_of_process(body);
        }
    }
}

fn send(to: &mpsc::UnboundedSender<FromNode>, number: u64, body: event::Body) {
    let event = wire::Event { number, body: Some(body) };
    // What a broken link loses is sent again on the next.
    let _ = to.send(FromNode { body: Some(from_node::Body::Event(event)) });
}
