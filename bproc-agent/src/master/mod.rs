//! The master role: one task owns the state ([`bproc_core::master`]) and performs its actions; everyone else sends it
//! facts.
//!
//! - [`clients`]: the local socket · [`caller`]: who asks · [`link`]: nodes · [`run`]: start-up

pub mod caller;
pub mod clients;
pub mod link;
pub mod run;

use crate::ghosts::{self, Ghost};
use crate::keeper::{self, Keeper};
use crate::kernel::Kernel;
use crate::stdio::Iod;
use bproc_common::errno;
use bproc_common::event::{self, Event};
use bproc_common::ghost::{Role, op};
use bproc_common::id::{NodeId, Pid};
use bproc_config::MachineConfig;
use bproc_core::master::nodes::Rejected;
use bproc_core::master::{Action, Ask, Child, GhostCommand, Master, Order, Refusal, SpawnFacts};
use bproc_proto::link::{ToNode, Welcome, event as wire_event, from_node, to_node};
use bproc_proto::{Failure, SpawnSpec, client as wire};
use bproc_sys::pidfd::PidFd;
use bproc_sys::signal::SigInfo;
use clients::ClientFact;
use link::LinkFact;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

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
    /// A process of the master's own that nodes have skeletons of is gone.
    RelativeGone(Pid),
    /// The start script of a node ended.
    NodeReady(NodeId, bool),
    /// End, leaving everything as it is.
    Stop,
}

struct Attached {
    id: u64,
    /// Unbounded: orders are kept by the outbox anyway until the node has them.
    to: mpsc::UnboundedSender<Result<ToNode, Status>>,
    heard: Instant,
}

struct Waiting {
    pid: Pid,
    answer: oneshot::Sender<Result<(), Failure>>,
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
    keeper: Keeper,
    keeper_settings: keeper::Settings,
    iod: Arc<Iod>,
    kernel: Kernel,
    asks: HashMap<Ask, Waiting>,
    next_ask: u64,
    specs: HashMap<Pid, SpawnSpec>,
    links: HashMap<NodeId, Attached>,
    away: HashMap<NodeId, Instant>,
    gauges: HashMap<NodeId, Gauges>,
    changes: watch::Sender<u64>,
    state_files: Vec<PathBuf>,
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
                    Some(fact) => self.learn(fact, &mut out).await,
                },
                _ = tick.tick() => self.look_at_clocks(&mut out).await,
            }
            self.perform(out).await;
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.config.ping_timeout_s.into())
    }

    async fn look_at_clocks(&mut self, out: &mut Vec<Action>) {
        let now = Instant::now();
        let patience = self.patience();
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
            Fact::RelativeGone(pid) => self.core.relative_gone(pid, out),
            Fact::NodeReady(node, ok) => {
                if let Some(n) = self.core.node_mut(node).filter(|n| n.state == "boot") {
                    n.state = if ok { "up" } else { "error" }.into();
                    out.push(Action::NodesChanged);
                }
            }
            Fact::Stop => {}
        }
    }

    fn ghost(&mut self, report: ghosts::Report, out: &mut Vec<Action>) {
        match report {
            ghosts::Report::Connected { pid, role: Role::Ghost, ghost, parent, .. } => {
                if self.nursery_pid == Some(pid) {
                    ghost.tell(op::WATCH_CHILDREN, 0, 0, vec![]);
                    self.nursery = Some(ghost);
                    return;
                }
                if let Some(child) = self.nurslings.remove(&pid) {
                    ghost.tell(op::CREDS, child.uid.into(), child.gid.into(), vec![]);
                }
                self.ghosts.insert(pid, ghost);
                self.core.ghost_connected(pid, parent, out);
            }
            ghosts::Report::Connected { pid, .. } => {
                tracing::warn!(%pid, "a skeleton connected to the master; ignored")
            }
            ghosts::Report::Signal { pid, number, siginfo } => self.core.ghost_signal(pid, number, siginfo, out),
            ghosts::Report::Child { by, pid, .. } => {
                if let Some(nursery) = self.nursery.as_ref().filter(|_| self.nursery_pid == Some(by)) {
                    nursery.tell(op::REAP, pid.get().into(), 0, vec![]);
                }
            }
            ghosts::Report::Closed { pid, id } => {
                if self.ghosts.get(&pid).is_some_and(|g| g.id() == id) {
                    self.ghosts.remove(&pid);
                    self.core.ghost_disconnected(pid);
                }
            }
        }
    }

    async fn keeper(&mut self, report: keeper::Report, out: &mut Vec<Action>) {
        use keeper::Report;
        match report {
            Report::Held(pid, result) => self.core.held(pid, result, out),
            Report::Adopted(pid, parent) => self.core.adopted(pid, parent),
            Report::Stopped(pid) => self.core.ghost_stopped(pid, out),
            Report::Continued(pid) => self.core.ghost_continued(pid),
            Report::AtGate(pid) => self.core.at_gate(pid, out),
            Report::Gone(pid) => self.core.ghost_gone(pid, out),
            Report::Lost => self.replace_keeper().await,
        }
    }

    /// The keeper died: ghosts run free. A new one takes them up again; those that died meanwhile are told as gone.
    async fn replace_keeper(&mut self) {
        tracing::error!("the keeper is gone; starting a new one and seizing the ghosts again");
        match Keeper::start(&self.keeper_settings, self.facts.clone(), Fact::Keeper).await {
            Ok(keeper) => {
                self.kernel.add_keeper(keeper.pid);
                self.keeper = keeper;
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
                if event.arg == libc::SIGKILL as u32 && self.ghosts.contains_key(&pid) {
                    self.core.at_gate(pid, out);
                }
            }
            event::kind::BEYOND => run::turn_cursor_back(),
            _ => {}
        }
    }

    async fn link(&mut self, fact: LinkFact, out: &mut Vec<Action>) {
        match fact {
            LinkFact::Attach { node, id, hello, to, answer } => {
                let accepted = self.attach(node, id, &hello, to, out).await;
                let _ = answer.send(accepted);
            }
            LinkFact::Message { node, id, body } => {
                let Some(link) = self.links.get_mut(&node).filter(|l| l.id == id) else { return };
                link.heard = Instant::now();
                self.message(node, body, out);
            }
            LinkFact::Broken { node, id } => {
                if self.links.get(&node).is_some_and(|l| l.id == id) {
                    tracing::warn!(%node, "the link broke; waiting for the node to come again");
                    self.links.remove(&node);
                    self.core.link_broken(node);
                    self.away.insert(node, Instant::now());
                }
            }
        }
    }

    async fn attach(
        &mut self,
        node: NodeId,
        id: u64,
        hello: &bproc_proto::link::Hello,
        to: mpsc::UnboundedSender<Result<ToNode, Status>>,
        out: &mut Vec<Action>,
    ) -> bool {
        let script = self.config.node_up.is_file();
        let state = if script { "boot" } else { "up" };
        let result = self.core.attach(node, link::attach(hello), state, out);
        let (number, message, retry) = match result {
            Ok(events_seen) => {
                let welcome = Welcome {
                    node: node.0,
                    stdio_address: self.stdio_address.clone(),
                    events_seen,
                    ping_timeout_s: self.config.ping_timeout_s,
                    leases: Vec::new(),
                    master_epoch: self.master_epoch,
                };
                to.send(Ok(ToNode { body: Some(to_node::Body::Welcome(welcome)) })).ok();
                self.links.insert(node, Attached { id, to, heard: Instant::now() });
                self.away.remove(&node);
                self.gauges.entry(node).or_default().kernel = hello.kernel.clone();
                tracing::info!(%node, version = %hello.version, kernel = %hello.kernel, resumed = events_seen > 0, "node attached");
                if script && self.core.view(node).is_some_and(|v| v.state == "boot") {
                    run::node_up(node, &self.config, self.facts.clone());
                }
                return true;
            }
            Err(Rejected::Unknown) => {
                (errno::BE_INVALIDNODE, format!("node {node} is not in the master's configuration"), false)
            }
            Err(Rejected::Taken) => (
                libc::EEXIST,
                format!("node {node} is attached already, by another agent; is a second one running there?"),
                true,
            ),
            Err(Rejected::Fenced) => {
                (libc::ESTALE, format!("this life of node {node} was declared dead; its processes must end"), true)
            }
        };
        tracing::warn!(%node, reason = %message, "a node was refused");
        to.send(Ok(link::refused(number, message, retry))).ok();
        false
    }

    fn message(&mut self, node: NodeId, body: from_node::Body, out: &mut Vec<Action>) {
        match body {
            from_node::Body::Ack(number) => self.core.orders_acknowledged(node, number, out),
            from_node::Body::Pong(pong) => self.gauges.entry(node).or_default().pong = pong,
            from_node::Body::Hello(_) => tracing::warn!(%node, "a second hello; ignored"),
            from_node::Body::Event(event) => {
                let number = event.number;
                if self.core.accept_event(node, number) {
                    if let Some(body) = event.body {
                        self.node_event(node, body, out);
                    }
                }
                if let Some(link) = self.links.get(&node) {
                    let ack = ToNode { body: Some(to_node::Body::Ack(number)) };
                    let _ = link.to.send(Ok(ack));
                }
            }
        }
    }

    fn node_event(&mut self, node: NodeId, body: wire_event::Body, out: &mut Vec<Action>) {
        use wire_event::Body;
        // A pid that is none, or of a process elsewhere, tells nothing.
        let pid = |raw: i32| Pid::new(raw);
        match body {
            Body::Spawned(spawned) => {
                let Some(pid) = pid(spawned.pid) else { return };
                self.specs.remove(&pid);
                let result = match spawned.failure {
                    None => Ok(()),
                    Some(failure) => Err(Refusal::Failed(node, failure.number, failure.message)),
                };
                self.core.spawned(pid, result, out);
            }
            Body::Forked(forked) => {
                let Some(child) = forked.child else { return };
                let Some(pid) = pid(child.pid) else { return };
                let child = Child { pid, uid: child.uid, gid: child.gid };
                self.core.forked(node, Pid::new(forked.parent), child, out);
            }
            Body::Execed(execed) => {
                if let Some(pid) = pid(execed.pid) {
                    self.core.execed(pid, execed.comm, execed.cmdline, out);
                }
            }
            Body::Exited(exited) => {
                if let Some(pid) = pid(exited.pid) {
                    self.core.exited(pid, exited.status, out);
                }
            }
            Body::Stopped(stopped) => {
                if let Some(pid) = pid(stopped.pid) {
                    self.core.stopped(pid, stopped.signal, out);
                }
            }
            Body::Continued(raw) => {
                if let Some(pid) = pid(raw) {
                    self.core.continued(pid, out);
                }
            }
            Body::Reaped(raw) => {
                if let Some(pid) = pid(raw) {
                    self.core.reaped(pid, out);
                }
            }
            Body::Groups(groups) => {
                if let Some(pid) = pid(groups.pid) {
                    self.core.grouped(pid, groups.pgid, groups.sid, out);
                }
            }
            Body::Signal(signal) => {
                if let Some(pid) = pid(signal.pid) {
                    self.core.signal_from_node(node, pid, signal.siginfo, out);
                }
            }
            Body::LowLease(_) => self.core.low_lease(node, out),
            Body::Trouble(failure) => tracing::warn!(%node, number = failure.number, "{}", failure.message),
            Body::Reparented(_) => {}
        }
    }

    fn client(&mut self, fact: ClientFact, out: &mut Vec<Action>) {
        match fact {
            ClientFact::Spawn { node, spec, caller, answer } => {
                let Some(pid) = Pid::new(spec.pid) else { return };
                let ask = Ask(self.next_ask);
                self.next_ask += 1;
                self.asks.insert(ask, Waiting { pid, answer });
                self.specs.insert(pid, *spec);
                let relatives = caller.relatives.iter().filter_map(|r| Pid::new(r.pid)).collect();
                let facts =
                    SpawnFacts { pid, parent: caller.parent, node, uid: caller.uid, gids: caller.gids, relatives };
                self.core.spawn(ask, facts, out);
            }
            ClientFact::Nodes(answer) => {
                let _ = answer.send(self.node_list());
            }
            ClientFact::Processes(answer) => {
                let on_node = |(pid, node): (Pid, Option<NodeId>)| wire::ProcessOnNode {
                    pid: pid.get(),
                    node: node.unwrap_or(NodeId::NONE).0,
                    ..Default::default()
                };
                let processes = self.core.processes().into_iter().map(on_node).collect();
                let _ = answer.send(wire::ProcessList { processes });
            }
            ClientFact::SetNode { change, uid, gids, answer } => {
                let result = self.set_node(change, uid, &gids);
                if result.is_ok() {
                    out.push(Action::NodesChanged);
                }
                let _ = answer.send(result);
            }
        }
    }

    fn set_node(&mut self, change: wire::SetNode, uid: u32, gids: &[u32]) -> Result<(), Failure> {
        let id = NodeId(change.number);
        let failure = |number, message: String| Err(Failure { number, message });
        let Some(node) = self.core.node_mut(id) else {
            return failure(errno::BE_INVALIDNODE, format!("there is no node {id}"));
        };
        let owner = uid == 0 || uid == node.user;
        let only_root = change.user.is_some() || change.state.is_some();
        let own_group = change.group.is_none_or(|g| uid == 0 || gids.contains(&g));
        if (only_root && uid != 0) || !owner || !own_group {
            return failure(libc::EPERM, format!("user {uid} may not change node {id} so"));
        }
        if let Some(state) = change.state {
            if state.is_empty() || state.len() > 15 || !state.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return failure(libc::EINVAL, format!("`{state}` is no state: 1 to 15 letters and digits"));
            }
            node.state = state;
        }
        node.mode = change.mode.map_or(node.mode, |m| m & 0o111);
        node.user = change.user.unwrap_or(node.user);
        node.group = change.group.unwrap_or(node.group);
        Ok(())
    }

    fn node_list(&self) -> wire::NodeList {
        let nodes = self.core.node_ids().into_iter().filter_map(|id| {
            let view = self.core.view(id)?;
            let gauges = self.gauges.get(&id).cloned().unwrap_or_default();
            let address = self.config.nodes.iter().find(|n| n.number == id.0).map(|n| n.addr.to_string());
            Some(wire::Node {
                number: id.0,
                state: view.state,
                mode: view.mode,
                user: view.user,
                group: view.group,
                address: address.unwrap_or_default(),
                kernel: gauges.kernel,
                load_centi: gauges.pong.load_centi,
                mem_used: gauges.pong.mem_used,
                mem_total: gauges.pong.mem_total,
                processes: view.processes as u32,
            })
        });
        wire::NodeList { nodes: nodes.collect() }
    }

    async fn perform(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Answer(ask, result) => self.answer(ask, result),
                Action::Hold(pid) => self.keeper.hold(pid),
                Action::Release(pid) => self.keeper.release(pid),
                Action::LetGo(pid) => self.keeper.let_go(pid),
                Action::Send(node, number, order) => self.send(node, number, &order),
                Action::Ghost(pid, command) => self.tell_ghost(pid, command),
                Action::KillGhost(pid) => {
                    // An open gate may have let it go already.
                    let _ = bproc_sys::signal::kill(pid, libc::SIGKILL);
                }
                Action::WakeGhost(pid) => {
                    let _ = bproc_sys::signal::sigqueue(pid, libc::SIGCONT, WAKE);
                }
                Action::Watch(pid) => self.watch(pid),
                Action::SignalLocal(pid, siginfo) => signal_local(pid, &siginfo),
                Action::TrackSignals(pid) => self.kernel.add_ghost(pid),
                Action::UntrackSignals(pid) => self.kernel.remove_ghost(pid),
                Action::NurseryClone(child) => self.nursery_clone(child),
                Action::Unlink(node, why) => {
                    tracing::warn!(%node, %why, "ending the link");
                    self.links.remove(&node);
                }
                Action::NodesChanged => {
                    self.write_state();
                    self.changes.send_modify(|n| *n += 1);
                }
                Action::Trouble(text) => tracing::warn!("{text}"),
            }
        }
    }

    fn answer(&mut self, ask: Ask, result: Result<(), Refusal>) {
        let Some(waiting) = self.asks.remove(&ask) else { return };
        if result.is_err() {
            self.specs.remove(&waiting.pid);
        }
        let _ = waiting.answer.send(result.map_err(failure));
    }

    fn send(&mut self, node: NodeId, number: u64, order: &Order) {
        let Some(link) = self.links.get(&node) else { return };
        let specs = &self.specs;
        let Some(message) = link::order(number, order, |pid| specs.get(&pid).cloned()) else { return };
        // What a broken link loses is kept by the core and goes out again when the node attaches anew.
        let _ = link.to.send(Ok(message));
    }

    fn tell_ghost(&mut self, pid: Pid, command: GhostCommand) {
        let Some(ghost) = self.ghosts.get(&pid) else { return };
        match command {
            GhostCommand::Exit(code) => ghost.tell(op::EXIT, code.into(), 0, vec![]),
            GhostCommand::Die(signal) => ghost.tell(op::DIE, signal.into(), 0, vec![]),
            GhostCommand::Stop(signal) => ghost.tell(op::STOP, signal.into(), 0, vec![]),
            GhostCommand::Group(pgid) => ghost.tell(op::SETPGID, 0, pgid.into(), vec![]),
            GhostCommand::Session => ghost.tell(op::SETSID, 0, 0, vec![]),
            GhostCommand::Name(name) => ghost.tell(op::NAME, 0, 0, name),
            GhostCommand::CommandLine(bytes) => {
                if let Some((op, payload)) = ghosts::command_line(&bytes) {
                    ghost.tell(op, 0, 0, payload);
                }
            }
            GhostCommand::Ack(number) => ghost.tell(op::ACK, number.into(), 0, vec![]),
            GhostCommand::Clone(child) => self.clone_ghost(ghost.clone(), child),
            GhostCommand::Reap(child) => {
                let ghost = ghost.clone();
                tokio::spawn(async move {
                    // The child went through its gate a moment ago; until it is a zombie the answer is 0.
                    for _ in 0..1000 {
                        match ghost.call(op::REAP, child.get().into(), 0, vec![]).await {
                            Ok(0) => tokio::time::sleep(Duration::from_millis(1)).await,
                            _ => return,
                        }
                    }
                });
            }
        }
    }

    fn clone_ghost(&self, ghost: Ghost, child: Pid) {
        let facts = self.facts.clone();
        // Sent here and now: commands that follow must find the child made.
        let answer = ghost.ask(op::CLONE, child.get().into(), 0, vec![], vec![]);
        tokio::spawn(async move {
            let result = match answer.await {
                Ok(value) if value < 0 => Err(-value as i32),
                Ok(_) => Ok(()),
                Err(_) => Err(libc::ESRCH),
            };
            facts.send(Fact::Cloned(child, result)).await.ok();
        });
    }

    fn nursery_clone(&mut self, child: Child) {
        match &self.nursery {
            Some(nursery) => {
                let nursery = nursery.clone();
                self.clone_ghost(nursery, child.pid);
                self.nurslings.insert(child.pid, child);
            }
            None => {
                self.facts.try_send(Fact::Cloned(child.pid, Err(libc::ESRCH))).ok();
            }
        }
    }

    fn watch(&self, pid: Pid) {
        let facts = self.facts.clone();
        let Ok(pidfd) = PidFd::open(pid) else {
            facts.try_send(Fact::RelativeGone(pid)).ok();
            return;
        };
        tokio::spawn(async move {
            if let Ok(fd) = crate::watched::watched(pidfd, tokio::io::Interest::READABLE) {
                let _ = fd.readable().await;
            }
            facts.send(Fact::RelativeGone(pid)).await.ok();
        });
    }

    fn write_state(&self) {
        let nodes: Vec<_> = self
            .config
            .nodes
            .iter()
            .map(|n| (self.core.view(NodeId(n.number)).is_some_and(|v| v.state != "down"), n.addr))
            .collect();
        for path in &self.state_files {
            if let Err(error) = bproc_config::state_file::write(path, &nodes) {
                tracing::warn!(path = %path.display(), %error, "writing the state of the machine");
            }
        }
    }
}

/// Value of the SIGCONT by which the agent wakes a ghost; the ghost does not forward it.
const WAKE: u64 = 0x6270_7263;

fn signal_local(pid: Pid, siginfo: &[u8]) {
    let Some(info) = siginfo.first_chunk().map(|raw| SigInfo(*raw)) else { return };
    // Only codes of queued signals may be passed on with another's pid; the rest is sent plainly.
    let result = if info.code() < 0 && info.code() != libc::SI_TKILL {
        bproc_sys::signal::queue_info(pid, info.signo(), &info)
    } else {
        bproc_sys::signal::kill(pid, info.signo())
    };
    if let Err(error) = result {
        tracing::debug!(%pid, %error, "a signal from a node");
    }
}

fn failure(refusal: Refusal) -> Failure {
    let (number, message) = match refusal {
        Refusal::NoSuchNode(node) => (errno::BE_INVALIDNODE, format!("there is no node {node}; bpstat lists them")),
        Refusal::NodeDown(node, state) => (errno::BE_NODEDOWN, format!("node {node} is {state}")),
        Refusal::NotAllowed(node) => (
            libc::EPERM,
            format!("owner, group and mode of node {node} do not let you run there (see bpstat), or it is not up"),
        ),
        Refusal::Busy(pid) => (libc::EBUSY, format!("process {pid} is being moved already")),
        Refusal::CannotHold(pid, number) => {
            (number, format!("the keeper cannot hold process {pid} (errno {number}); is a debugger attached to it?"))
        }
        Refusal::Failed(_, number, message) => (number, message),
        Refusal::NodeDied(node) => (errno::BE_SLAVEDIED, format!("node {node} went down before the program ran")),
    };
    Failure { number, message }
}
