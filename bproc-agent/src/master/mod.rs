//! The master role: one task owns the state ([`bproc_core::master`]) and performs its actions; everyone else sends it
//! facts.
//!
//! - this file: facts of ghosts, keeper and kernel, and the clocks · [`run`]: start-up
//! - [`clients`]: the local socket · [`caller`]: who asks · `office`: what clients ask
//! - [`link`]: the gRPC service for nodes · `nodes`: what they say · `address`: where they reach it
//! - `shown`: what `/proc` shows of ghosts
//! - [`travel`]: programs that travel · `effects`: performs what the core decided · `moving`: its part in moves · `streams`: of processes that move

mod address;
mod api;
mod attributes;
pub mod caller;
pub mod clients;
mod effects;
mod following;
mod going;
mod handover;
pub mod link;
mod machines;
mod moving;
mod nodes;
mod office;
mod orphans;
mod places;
pub mod run;
mod shown;
mod spread;
mod streams;
pub mod travel;
mod tuning;

use crate::former::{Caller, Former};
use crate::ghosts::{self, Ghost};
use crate::keeper::{self, Keeper};
use crate::kernel::Kernel;
use crate::mover::{Movers, Said};
use crate::owed::Owed;
use crate::stdio::Iod;
use bproc_common::event::{self, Event};
use bproc_common::ghost::{Role, op};
use bproc_common::id::{NodeId, Pid};
use bproc_common::wait::Status;
use bproc_config::MachineConfig;
use bproc_config::net::Gate;
use bproc_core::group::Record;
use bproc_core::master::moving::MoveId;
use bproc_core::master::{Action, Ask, Child, Master, Starter};
use bproc_proto::client::Moved;
use bproc_proto::link::{ToNode, to_node};
use bproc_proto::{Failure, SpawnSpec};
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::FileId;
use bproc_sys::queue_room::QueueRooms;
use bproc_sys::signal::SigInfo;
use clients::ClientFact;
use link::LinkFact;
use machines::Machines;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Everything that can happen to the master.
#[derive(Debug)]
pub enum Fact {
    /// From a ghost.
    Ghost(ghosts::Report),
    /// From the keeper.
    Keeper(keeper::Report),
    /// From a node.
    Link(LinkFact),
    /// From a client.
    Client(ClientFact),
    /// From the kernel.
    Kernel(Event),
    /// A ghost answered the command to make a child.
    Cloned(Pid, Result<(), i32>),
    /// A ghost has done all that it was told.
    Ready(Pid),
    /// A process that nodes have skeletons of has ended with this wait status.
    RelativeGone(Pid, i32),
    /// A mover of a former agent's does not know what became of a process that was to go.
    Doubt(Caller),
    /// From a mover of the master's own.
    Mover(Pid, MoveId, Said),
    /// What was prepared for a move beside the task: the streams.
    Prepared(Pid, MoveId, Result<streams::Streams, Failure>),
    /// From the mover that holds a process whose image many get.
    Holder(u64, Said),
    /// No more of those come that this many were waited for.
    Late(u64, usize),
    /// Nobody waits any more for those that get an image.
    SpreadOver(u64),
    /// The start script of a node ended.
    NodeReady(NodeId, bool),
    /// Read the configuration again.
    Reload,
    /// End, leaving everything as it is.
    Stop,
}

struct Attached {
    id: u64,
    /// Unbounded: orders are kept by the outbox anyway until the node has them.
    to: mpsc::UnboundedSender<Result<ToNode, tonic::Status>>,
    heard: Instant,
    /// Newest event that came, and whether the node has been told.
    newest: u64,
    owed: Owed,
}

impl Attached {
    fn settle_acknowledgement(&mut self) {
        if self.owed.settle() {
            // What is lost with a broken link is told by the welcome of the next.
            let _ = self.to.send(Ok(ToNode { body: Some(to_node::Body::Ack(self.newest)) }));
        }
    }
}

struct Waiting {
    pid: Pid,
    answer: Waits,
}

/// Who waits for what.
enum Waits {
    Spawn(oneshot::Sender<Result<(), Failure>>),
    Move(oneshot::Sender<Result<Moved, Failure>>),
}

/// What is known of a node besides the core's state.
#[derive(Default, Clone)]
struct Gauges {
    kernel: String,
    pong: bproc_proto::link::Pong,
}

/// The task that owns the state.
pub struct Actor {
    core: Master,
    config: MachineConfig,
    stdio_address: String,
    master_epoch: u64,
    facts: mpsc::Sender<Fact>,
    ghosts: HashMap<Pid, Ghost>,
    /// Makes ghosts of processes whose parent has none.
    nursery: Option<Ghost>,
    nursery_pid: Option<Pid>,
    nurslings: HashMap<Pid, Child>,
    /// Those that wait until it has connected.
    for_nursery: Vec<Child>,
    keeper: Keeper,
    keeper_settings: keeper::Settings,
    iod: Arc<Iod>,
    /// Certificates.
    gate: Gate,
    /// For what is asked on nodes.
    desk: clients::Desk,
    kernel: Kernel,
    travel: Arc<travel::Travel>,
    attributes: attributes::Attributes,
    asks: HashMap<Ask, Waiting>,
    next_ask: u64,
    specs: HashMap<Pid, SpawnSpec>,
    tunings: tuning::Tunings,
    rooms: QueueRooms,
    pipes: streams::HomePipes,
    moving: HashMap<Pid, going::Going>,
    vouched: crate::rights::Vouched,
    /// Movers of a former agent.
    former: Former,
    /// Ghosts that are about to become processes.
    taking: HashMap<Pid, tokio::task::AbortHandle>,
    /// Images that many get.
    spreads: HashMap<u64, spread::Spread>,
    last_spread: u64,
    /// Those whose end is waited for.
    watched: HashMap<Pid, Arc<PidFd>>,
    /// The parents that they had: that may reap them before it is looked who they were.
    parents: HashMap<Pid, Pid>,
    /// Ghosts that are about to reap, and whom.
    reaps: HashMap<Pid, Vec<(Pid, JoinHandle<()>)>>,
    /// Who waits for a process to be settled, and whether it is known to be on a node.
    settling: Vec<(Pid, bool, oneshot::Sender<Option<NodeId>>)>,
    ghost: PathBuf,
    ghost_exe: FileId,
    ghost_socket: PathBuf,
    movers: Movers,
    links: HashMap<NodeId, Attached>,
    /// When acknowledgements to any node are due.
    owed: Owed,
    away: HashMap<NodeId, Instant>,
    gauges: HashMap<NodeId, Gauges>,
    machines: Machines,
    /// CPU time of processes.
    used: HashMap<Pid, shown::Used>,
    changes: watch::Sender<u64>,
    state_files: Vec<PathBuf>,
    addresses: run::Addresses,
    config_path: PathBuf,
    started: Instant,
    recovering: bool,
}

impl Actor {
    /// Serves facts until told to stop. Every second the clocks of nodes are looked at while any is known.
    async fn serve(mut self, mut facts: mpsc::Receiver<Fact>) {
        let mut tick = tokio::time::interval(self.patience() / 3);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.write_state();
        loop {
            let mut out = Vec::new();
            tokio::select! {
                fact = facts.recv() => match fact {
                    None | Some(Fact::Stop) => return,
                    Some(fact) => {
                        tracing::trace!(?fact);
                        self.learn(fact, &mut out).await;
                        self.core.settle_calls(false, &mut out);
                    }
                },
                () = tokio::time::sleep_until(self.owed.due()), if self.owed.any() => {
                    self.owed.settle();
                    self.links.values_mut().for_each(Attached::settle_acknowledgement);
                }
                _ = tick.tick() => self.look_at_clocks(&mut out).await,
            }
            self.perform(out).await;
            self.forget_taken_over();
            self.answer_settled();
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.config.ping_timeout_s.into())
    }

    async fn look_at_clocks(&mut self, out: &mut Vec<Action>) {
        let now = Instant::now();
        let patience = self.patience();
        self.core.settle_calls(true, out);
        self.look_at_tunings(out);
        for (node, link) in &self.links {
            let ping = ToNode { body: Some(to_node::Body::Ping(bproc_proto::link::Ping { id: 0 })) };
            if link.to.send(Ok(ping)).is_err() {
                tracing::debug!(%node, "the link is going; no ping");
            }
        }
        let silent: Vec<_> = self.links.iter().filter(|(_, l)| now - l.heard > patience).map(|(n, _)| *n).collect();
        for node in silent {
            tracing::warn!(%node, seconds = patience.as_secs(), "no word from the node");
            self.links.remove(&node);
            self.core.link_broken(node);
            self.away.entry(node).or_insert(now - patience);
        }
        let lost: Vec<_> = self.away.iter().filter(|(_, since)| now - **since >= patience).map(|(n, _)| *n).collect();
        for node in lost {
            self.away.remove(&node);
            tracing::warn!(%node, "the node is down; its processes end as if killed");
            self.core.lost(node, out);
            self.iod.sever(node.0).await;
        }
        if self.recovering && now - self.started > patience {
            self.recovering = false;
            let connected: HashSet<Pid> = self.ghosts.keys().copied().collect();
            self.core.recovered(&connected, out);
            // Moves that a former agent began are over, well or not.
            self.iod.open(None).await;
        }
    }

    async fn learn(&mut self, fact: Fact, out: &mut Vec<Action>) {
        match fact {
            Fact::Ghost(report) => self.ghost(report, out),
            Fact::Keeper(report) => self.keeper(report, out).await,
            Fact::Link(fact) => self.link(fact, out).await,
            Fact::Client(fact) => self.client(fact, out),
            Fact::Kernel(event) => self.kernel_event(event, out),
            Fact::Cloned(child, result) => self.core.cloned(child, result, out),
            Fact::Ready(pid) => self.core.ghost_ready(pid, out),
            Fact::RelativeGone(pid, status) => {
                self.no_longer_watched(pid);
                self.pipes.went(pid);
                self.kernel.remove_starter(pid);
                self.adopts(pid, out);
                self.core.relative_gone(pid, status, out);
            }
            Fact::Doubt(caller) => self.take_over(caller, out),
            Fact::Mover(pid, id, said) => self.mover(pid, id, said, out),
            Fact::Prepared(pid, id, result) => self.prepared(pid, id, result, out),
            Fact::Holder(spread, said) => self.holder(spread, said),
            Fact::Late(spread, ready) => self.late(spread, ready, out),
            Fact::SpreadOver(spread) => self.spread_is_over(spread),
            Fact::NodeReady(node, ok) => {
                if let Some(n) = self.core.node_mut(node).filter(|n| n.state == "boot") {
                    n.state = if ok { "up" } else { "error" }.into();
                    out.push(Action::NodesChanged);
                }
            }
            Fact::Reload => self.reload(out),
            Fact::Stop => {}
        }
    }

    /// Nodes, time-out and start script are taken over; the rest needs a restart, which disturbs no process. A
    /// configuration with mistakes changes nothing.
    fn reload(&mut self, out: &mut Vec<Action>) {
        match MachineConfig::load(&self.config_path) {
            Ok((fresh, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                self.core.configure(run::nodes(&fresh), out);
                self.addresses.set(&fresh);
                self.config.nodes = fresh.nodes;
                self.config.ping_timeout_s = fresh.ping_timeout_s;
                self.config.node_up = fresh.node_up;
                let (travel, libraries) = (self.travel.clone(), fresh.libraries.clone());
                tokio::task::spawn_blocking(move || travel.configure(&libraries));
                self.config.libraries = fresh.libraries;
                tracing::info!(nodes = self.config.nodes.len(), "read the configuration again");
            }
            Err(mistakes) => tracing::error!("the configuration stays as it was: {mistakes}"),
        }
    }

    fn ghost(&mut self, report: ghosts::Report, out: &mut Vec<Action>) {
        match report {
            ghosts::Report::Connected { pid, role: Role::Ghost, newest, ghost, parent, starter, .. } => {
                if self.nursery_pid == Some(pid) {
                    ghost.tell(op::WATCH_CHILDREN, 0, 0, vec![]);
                    self.nursery = Some(ghost);
                    for child in std::mem::take(&mut self.for_nursery) {
                        self.nursery_clone(child);
                    }
                    return;
                }
                if let Some(child) = self.nurslings.remove(&pid) {
                    ghost.tell(op::CREDS, child.uid.into(), child.gid.into(), vec![]);
                }
                self.ghosts.insert(pid, ghost);
                self.tunings.came(pid);
                self.core.ghost_connected(pid, orphans::parent_now(pid, parent), out);
                self.core.ghost_counts(pid, newest);
                self.core.ghost_started_by(pid, starter, out);
            }
            ghosts::Report::Connected { pid, .. } => {
                tracing::warn!(%pid, "a skeleton connected to the master; ignored")
            }
            ghosts::Report::Signal { pid, number, siginfo } => self.core.ghost_signal(pid, number, siginfo, out),
            ghosts::Report::Child { by, pid, status, .. } => match &self.nursery {
                Some(nursery) if self.nursery_pid == Some(by) => nursery.tell(op::REAP, pid.get().into(), 0, vec![]),
                _ => self.core.child_changed(by, pid, Status::from_raw(status), out),
            },
            ghosts::Report::Closed { pid, id } => {
                if self.nursery.as_ref().is_some_and(|nursery| nursery.id() == id) {
                    self.nursery = None;
                }
                if self.ghosts.get(&pid).is_some_and(|g| g.id() == id) {
                    self.ghosts.remove(&pid);
                    self.reaps.remove(&pid);
                    self.core.ghost_disconnected(pid);
                }
            }
        }
    }

    async fn keeper(&mut self, report: keeper::Report, out: &mut Vec<Action>) {
        use keeper::Report;
        if let Some(pid) = report.pid().filter(|pid| self.nursery_pid == Some(*pid)) {
            return self.of_nursery(report, pid);
        }
        match report {
            Report::Held(pid, result) => self.core.held(pid, result, out),
            Report::Adopted(pid, parent) => self.core.adopted(pid, parent, out),
            Report::Stopped(pid, own) => self.core.ghost_stopped(pid, own, out),
            Report::Continued(pid) => self.core.ghost_continued(pid),
            Report::AtGate(pid) => self.core.at_gate(pid, out),
            Report::Gone(pid) => self.core.ghost_gone(pid, out),
            Report::Lost => self.replace_keeper().await,
        }
    }

    /// The nursery is a ghost of nobody. If it is killed, another takes its place.
    fn of_nursery(&mut self, report: keeper::Report, pid: Pid) {
        match report {
            keeper::Report::AtGate(_) => self.keeper.release(pid),
            keeper::Report::Gone(_) => {
                tracing::warn!(%pid, "the nursery was killed; starting another");
                self.nursery = None;
                let (dir, socket) = (&self.config.run_dir, &self.ghost_socket);
                match run::nursery(dir, &self.ghost, socket, self.ghost_exe, &self.config.name) {
                    Ok(fresh) => {
                        self.keeper.hold(fresh);
                        self.nursery_pid = Some(fresh);
                    }
                    Err(error) => {
                        tracing::error!(error = %format!("{error:#}"), "no nursery: some ghosts wait for one")
                    }
                }
            }
            _ => {}
        }
    }

    /// The keeper died: ghosts run free. A new one takes them up again; those that died meanwhile are told as gone.
    async fn replace_keeper(&mut self) {
        tracing::error!("the keeper is gone; starting a new one and seizing the ghosts again");
        match Keeper::start(&self.keeper_settings, self.facts.clone(), Fact::Keeper).await {
            Ok(keeper) => {
                self.kernel.add_keeper(keeper.pid);
                self.keeper = keeper;
                if let Some(nursery) = self.nursery_pid {
                    self.keeper.hold(nursery);
                }
                for (pid, _) in self.core.processes() {
                    if bproc_sys::signal::probe(pid).is_ok() {
                        self.keeper.hold(pid);
                    } else {
                        self.facts.try_send(Fact::Keeper(keeper::Report::Gone(pid))).ok();
                    }
                }
            }
            Err(error) => tracing::error!(error = %format!("{error:#}"), "no keeper: deaths of ghosts are not gated"),
        }
    }

    fn kernel_event(&mut self, event: Event, out: &mut Vec<Action>) {
        match event.kind {
            event::kind::SIGNAL => {
                let Some(pid) = i32::try_from(event.pid).ok().and_then(Pid::new) else { return };
                tracing::debug!(%pid, signal = event.arg, from = event.arg2, uid = event.arg3, "signal to a ghost");
                // The earliest word of it; the keeper tells it again when the ghost stands at the gate.
                if event.arg == libc::SIGKILL as u32 && event.call != 0 {
                    self.core.group_killed(Record::of(&event), out);
                }
                if event.arg == libc::SIGKILL as u32 && self.ghosts.contains_key(&pid) {
                    self.core.at_gate(pid, out);
                }
            }
            event::kind::UNREAD => {
                let Some(pid) = i32::try_from(event.pid).ok().and_then(Pid::new) else { return };
                let siginfo = SigInfo::with(event.arg as i32, event.code, event.arg2 as i32, event.arg3);
                self.core.unread_stop(pid, siginfo.0.to_vec(), out);
            }
            event::kind::GROUP => {
                let Some(pid) = i32::try_from(event.pid).ok().and_then(Pid::new) else { return };
                self.core.group_signalled(pid, Record::of(&event));
            }
            event::kind::STARTER => self.core.starter_killed(Starter(event.call), out),
            event::kind::BEYOND => run::turn_cursor_back(self.config.pids.boundary),
            _ => {}
        }
    }
}
