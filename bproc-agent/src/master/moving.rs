//! The master's part in moves: what is asked, what the core knows nothing of (streams, addresses, tokens), and the
//! movers of processes that leave the master or come home.

use super::clients::{Asker, ClientFact, Desk};
use super::effects;
use super::link::named;
use super::{Actor, Fact, Waiting, Waits, caller};
use crate::checked;
use crate::mover::{self, Mover, Said};
use bproc_common::ghost::{Role, op};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::moving::{Departed, MoveFacts, MoveId};
use bproc_core::master::{Action, Ask, Order, Refusal};
use bproc_mover::wire::{Empty, Owner, Receive, Report, Send, Task};
use bproc_proto::client::{self as wire, Moved};
use bproc_proto::link::{self, ToNode, event, order, to_node};
use bproc_proto::stream::Kind;
use bproc_proto::{Failure, SpawnSpec, Stream};
use bproc_stdio::wire::Token;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;

/// Looks for the ghost of a process that asks, and the pause between them.
const GHOST_LOOKS: u32 = 1000;
const GHOST_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// A move that is asked for.
#[derive(Debug)]
pub struct Asked {
    facts: MoveFacts,
    spec: SpawnSpec,
    children: Vec<bproc_proto::Relative>,
    request: wire::Move,
    handle: PidFd,
    answer: oneshot::Sender<Result<Moved, Failure>>,
}

/// Streams of a process for its new place.
#[derive(Debug, Default)]
pub struct Streams {
    /// For a node: as a spawn has them, and their name.
    streams: Vec<Stream>,
    token: Vec<u8>,
    /// For the master: the descriptors themselves.
    fds: Vec<(i32, OwnedFd)>,
}

/// What the agent keeps of a move.
pub struct Going {
    spec: SpawnSpec,
    children: Vec<bproc_proto::Relative>,
    request: wire::Move,
    /// The process, or its ghost: it keeps its number, and this it, wherever it goes.
    handle: PidFd,
    from: Option<NodeId>,
    to: Option<NodeId>,
    /// Where the target listens.
    address: String,
    /// The first bytes on the connection.
    token: Vec<u8>,
    mover: Option<Mover>,
    fds: Vec<(i32, OwnedFd)>,
    /// The process dies with the mover of the master's own that sends it.
    leaving: bool,
    /// It is built into its ghost, and may go on as soon as the source says so.
    ready: bool,
    moved: Moved,
}

impl Going {
    /// An order of a move in the wire's words.
    pub fn order(&self, number: u64, order: &Order, pid: Pid, id: MoveId) -> Option<ToNode> {
        let (files, flags) = (self.request.files as u32, self.request.flags);
        let r#move = Some(named(pid, id));
        let body = match order {
            Order::Survey(..) => order::Body::Survey(link::Survey { r#move, files, flags }),
            Order::Receive(..) => order::Body::Receive(link::Receive {
                r#move,
                spec: Some(self.spec.clone()),
                children: self.children.clone(),
                token: self.token.clone(),
                socket: self.request.socket,
                drop_files: self.request.files != 0,
                from: self.from.map_or(-1, |node| node.0),
            }),
            Order::Depart(..) => order::Body::Depart(link::Depart {
                r#move,
                address: self.address.clone(),
                token: self.token.clone(),
                files,
                flags,
                to: self.to.map_or(-1, |node| node.0),
            }),
            _ => return None,
        };
        Some(ToNode { body: Some(to_node::Body::Order(link::Order { number, body: Some(body) })) })
    }
}

/// Pid in the space of a process of a node that runs on this machine; none for one of the machine's own.
pub fn in_space(host_pid: i32) -> Option<i32> {
    let status = Process::open(Pid::new(host_pid)?).ok()?.status().ok()?;
    if status.ns_pids.len() < 2 { None } else { status.ns_pids.last().copied() }
}

fn failure(number: i32, message: impl Into<String>) -> Failure {
    Failure { number, message: message.into() }
}

/// A client asks. Returns when the process has moved, or not.
pub async fn ask(request: wire::Move, asker: &Asker, fds: Vec<OwnedFd>, desk: &Desk) -> Result<Moved, Failure> {
    drop(fds);
    let remote = asker.number();
    let number = if request.pid == 0 { remote.unwrap_or(asker.pid) } else { request.pid };
    let pid = Pid::new(number).filter(|p| p.get() > 1);
    let pid = pid.ok_or_else(|| failure(libc::EINVAL, format!("{number} is no process that can move")))?;
    if remote == Some(number) {
        await_ghost(pid, asker.node(), desk).await?;
    }
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pid} cannot be read: {e}"));
    let handle = PidFd::open(pid).map_err(unreadable)?;
    let mut spec = SpawnSpec::default();
    let caller = caller::complete(pid, &mut spec).map_err(unreadable)?;
    let process = Process::open(pid).map_err(unreadable)?;
    if process.stat().map_err(unreadable)?.state == b'Z' {
        return Err(failure(libc::ESRCH, format!("process {pid} has ended")));
    }
    let children: Vec<_> =
        process.children().map_err(unreadable)?.into_iter().filter_map(|c| caller::relative(c.get())).collect();
    let to = (request.node >= 0).then_some(NodeId(request.node));
    let facts = MoveFacts {
        pid,
        parent: caller.parent,
        to,
        uid: asker.uid,
        gids: asker.gids(),
        owner: caller.owner,
        comm: caller.comm,
        relatives: caller.relatives,
        children: children.iter().filter_map(|r| Pid::new(r.pid)).collect(),
    };
    let ending = |_| failure(libc::EAGAIN, "the agent is ending; try again");
    let (answer, place) = oneshot::channel();
    desk.facts.send(Fact::Client(ClientFact::Where(pid, answer))).await.ok();
    let local = place.await.map_err(ending)?.is_none();
    if local && to.is_some() && (asker.uid == 0 || asker.uid == caller.owner) {
        mover::survey(pid.get(), request.flags, request.files as u32).await.map_err(|f| refused(pid, f))?;
        let streams = own_streams(pid, request.socket != 0, desk).await?;
        (spec.streams, spec.stdio_token) = (streams.streams, streams.token);
    }
    let token = spec.stdio_token.clone();
    let (answer, receiver) = oneshot::channel();
    let asked = Asked { facts, spec, children, request, handle, answer };
    desk.facts.send(Fact::Client(ClientFact::Move(Box::new(asked)))).await.ok();
    let result = receiver.await.map_err(ending).and_then(|r| r);
    if result.is_err() && !token.is_empty() {
        desk.iod.forget(&token).await;
    }
    result
}

/// A process that was forked on its node a moment ago may be quicker than its ghost. A node speaks for its own
/// processes only.
async fn await_ghost(pid: Pid, speaks: Option<NodeId>, desk: &Desk) -> Result<(), Failure> {
    for _ in 0..GHOST_LOOKS {
        let (answer, place) = oneshot::channel();
        desk.facts.send(Fact::Client(ClientFact::Where(pid, answer))).await.ok();
        let place = place.await.ok().flatten();
        let known = place.is_some_and(|node| speaks.is_none_or(|speaks| speaks == node));
        if known && Process::open(pid).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(GHOST_PAUSE).await;
    }
    Err(failure(libc::ESRCH, format!("process {pid} of a node has no ghost here")))
}

fn refused(pid: Pid, f: Failure) -> Failure {
    let why = f.message.strip_prefix("refused: ").unwrap_or(&f.message);
    failure(f.number, format!("process {pid} cannot move: {why}"))
}

/// The standard streams of a process of the master's own, handed to the stdio service for its node. What is no more
/// than /dev/null here is so there.
async fn own_streams(pid: Pid, cooperative: bool, desk: &Desk) -> Result<Streams, Failure> {
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pid} cannot be read: {e}"));
    let pidfd = PidFd::open(pid).map_err(unreadable)?;
    let mut all = Streams::default();
    let mut ends = Vec::new();
    for number in 0..3 {
        let Ok(end) = pidfd.get_fd(number) else { continue };
        let input = number == 0;
        let mut stream = Stream { fd: number, input, ..Stream::default() };
        if (input && cooperative) || is_null(&end) {
            stream.set_kind(Kind::Null);
        } else {
            stream.set_kind(Kind::Forward);
            ends.push(end);
        }
        all.streams.push(stream);
    }
    if !ends.is_empty() {
        let broken = |e: String| failure(libc::EIO, format!("the stdio service of the master: {e}"));
        let token = Token::random().map_err(|e| broken(e.to_string()))?;
        let forwarded: Vec<(i32, bool)> = forwarded(&all.streams);
        let expected = desk.iod.expect(token.as_bytes(), &forwarded, ends, false, pid).await;
        expected.map_err(|e| broken(format!("{e:#}")))?;
        all.token = token.as_bytes().to_vec();
    }
    Ok(all)
}

fn forwarded(streams: &[Stream]) -> Vec<(i32, bool)> {
    streams.iter().filter(|s| s.kind() == Kind::Forward).map(|s| (s.fd, s.input)).collect()
}

fn is_null(fd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|path| path.as_os_str() == "/dev/null")
}

impl Actor {
    pub(super) fn move_asked(&mut self, asked: Asked, out: &mut Vec<Action>) {
        let pid = asked.facts.pid;
        if self.moving.contains_key(&pid) {
            let _ = asked.answer.send(Err(effects::failure(Refusal::Busy(pid))));
            return;
        }
        let Ok(token) = Token::random() else {
            let _ = asked.answer.send(Err(failure(libc::EIO, "no random numbers for a token")));
            return;
        };
        let ask = Ask(self.next_ask);
        self.next_ask += 1;
        self.asks.insert(ask, Waiting { pid, answer: Waits::Move(asked.answer) });
        let going = Going {
            spec: asked.spec,
            children: asked.children,
            request: asked.request,
            handle: asked.handle,
            from: self.core.whereabouts(pid),
            to: asked.facts.to,
            address: String::new(),
            token: token.as_bytes().to_vec(),
            mover: None,
            fds: Vec::new(),
            leaving: false,
            ready: false,
            moved: Moved::default(),
        };
        self.moving.insert(pid, going);
        self.core.move_asked(ask, asked.facts, out);
    }

    /// The end of a move. What it took.
    pub(super) fn move_ended(&mut self, pid: Pid) -> Moved {
        self.moving.remove(&pid).map(|g| g.moved).unwrap_or_default()
    }

    /// What a node says of a move.
    pub(super) fn move_event(&mut self, node: NodeId, body: event::Body, out: &mut Vec<Action>) {
        use event::Body;
        let r#move = match &body {
            Body::Surveyed(m) => m.r#move,
            Body::Receiving(m) => m.r#move,
            Body::Frozen(m) => Some(*m),
            Body::Arrived(m) => m.r#move,
            Body::Departed(m) => m.r#move,
            _ => None,
        };
        let Some((pid, id)) = r#move.and_then(|m| Some((Pid::new(m.pid)?, MoveId(m.id)))) else { return };
        let result = |f: Option<Failure>| match f {
            None => Ok(()),
            Some(f) => Err(Refusal::Failed(node, f.number, f.message)),
        };
        match body {
            Body::Surveyed(said) => match said.failure {
                Some(f) => {
                    let f = refused(pid, f);
                    self.core.surveyed(pid, id, Err(Refusal::Failed(node, f.number, f.message)), out);
                }
                None => self.prepare_streams(pid, id, said.streams),
            },
            Body::Receiving(said) => {
                let address = self.config.nodes.iter().find(|n| n.number == node.0).map(|n| n.addr);
                if let (Some(going), Some(address)) = (self.moving.get_mut(&pid), address) {
                    going.address = std::net::SocketAddr::new(address, said.port as u16).to_string();
                }
                self.core.receiving(pid, id, result(said.failure), out);
            }
            Body::Frozen(_) => self.core.frozen(pid, id, out),
            Body::Arrived(said) => self.core.arrived(pid, id, result(said.failure), out),
            Body::Departed(said) => {
                if let Some(going) = self.moving.get_mut(&pid) {
                    going.moved = Moved { frozen_ns: said.frozen_ns, bytes: said.bytes };
                }
                let departed = match said.failure {
                    _ if said.in_doubt => Departed::InDoubt,
                    None => Departed::Gone { stand_in: true },
                    Some(f) => Departed::Failed(Refusal::Failed(node, f.number, f.message)),
                };
                self.core.departed(pid, id, departed, out);
            }
            _ => {}
        }
    }

    /// The streams of a process that leaves a node, for where it goes.
    fn prepare_streams(&self, pid: Pid, id: MoveId, told: Vec<link::ForwardedStream>) {
        let Some(going) = self.moving.get(&pid) else { return };
        let (facts, iod, home) = (self.facts.clone(), self.iod.clone(), going.to.is_none());
        let cooperative = going.request.socket != 0;
        tokio::spawn(async move {
            let result = carry_streams(&iod, told, home, cooperative).await;
            facts.send(Fact::Prepared(pid, id, result)).await.ok();
        });
    }

    pub(super) fn prepared(&mut self, pid: Pid, id: MoveId, result: Result<Streams, Failure>, out: &mut Vec<Action>) {
        let result = match (result, self.moving.get_mut(&pid)) {
            (Ok(streams), Some(going)) => {
                (going.spec.streams, going.spec.stdio_token) = (streams.streams, streams.token);
                going.fds = streams.fds;
                Ok(())
            }
            (Err(f), _) => Err(Refusal::Failed(NodeId::MASTER, f.number, f.message)),
            (Ok(_), None) => return,
        };
        self.core.surveyed(pid, id, result, out);
    }

    fn start_mover(
        &mut self,
        pid: Pid,
        id: MoveId,
        task: impl Future<Output = Result<(Task, Vec<OwnedFd>), Failure>> + std::marker::Send + 'static,
    ) {
        let program = (self.ghost.with_file_name("bproc-mover"), self.config.run_dir.join("master"));
        let mover = Mover::start(program, task, self.facts.clone(), move |said| Fact::Mover(pid, id, said));
        if let Some(going) = self.moving.get_mut(&pid) {
            going.mover = Some(mover);
        }
    }

    /// The process is going to be built into its ghost.
    pub(super) fn receive_here(&mut self, pid: Pid, id: MoveId) {
        let socket_given = self.answer_socket(pid);
        let Some(going) = self.moving.get_mut(&pid) else { return };
        let c = going.spec.credentials.clone().unwrap_or_default();
        let owner = (c.ruid != 0).then_some(Owner { uid: c.ruid, gid: c.rgid, groups: c.groups });
        let (mut fds, mut numbers) = (Vec::new(), Vec::new());
        for (number, fd) in going.fds.drain(..).chain(socket_given) {
            numbers.push(number);
            fds.push(fd);
        }
        let task = Receive {
            body: pid.get(),
            pid: pid.get(),
            keys: None,
            fds: numbers,
            owner,
            elevate: Some(mover::body(&self.ghost)),
            fallback: Some(mover::stand_in(&self.ghost, &self.ghost_socket, Role::Ghost)),
            wait: true,
            drop_files: going.request.files != 0,
        };
        let (facts, gate) = (self.facts.clone(), self.gate.clone());
        let (from, token) = (mover::peer(going.from.map_or(-1, |node| node.0)), going.token.clone());
        let host = master_host(&self.stdio_address);
        self.start_mover(pid, id, async move {
            let told = |port| async move {
                facts.send(Fact::Mover(pid, id, Said::Listening(port))).await.ok();
            };
            let listen = host.parse().map_err(|e| failure(libc::EINVAL, format!("listening on {host}: {e}")))?;
            let (conn, keys) = mover::await_source(listen, &gate, from, &token, told).await?;
            let all = [conn].into_iter().chain(fds).collect();
            Ok((Task::Receive(Receive { keys, ..task }), all))
        });
    }

    /// The end of a socket on which a process that moves itself finds the good answer.
    fn answer_socket(&self, pid: Pid) -> Option<(i32, OwnedFd)> {
        let number = self.moving.get(&pid).map(|g| g.request.socket).filter(|n| *n > 0)?;
        mover::good_answer().map(|fd| (number, fd))
    }

    pub(super) fn send_from_here(&mut self, pid: Pid, id: MoveId) {
        let Some(going) = self.moving.get(&pid) else { return };
        let task = Send {
            pid: pid.get(),
            keys: None,
            files: going.request.files as u32,
            flags: going.request.flags,
            stand_in: Some(mover::stand_in(&self.ghost, &self.ghost_socket, Role::Ghost)),
        };
        let (gate, address, token) = (self.gate.clone(), going.address.clone(), going.token.clone());
        let to = mover::peer(going.to.map_or(-1, |node| node.0));
        self.start_mover(pid, id, async move {
            let (conn, keys) = mover::dial_target(&gate, &address, to, &token).await?;
            Ok((Task::Send(Send { keys, ..task }), vec![conn]))
        });
    }

    pub(super) fn tell_mover(&mut self, pid: Pid, task: Task) {
        if let Some(mover) = self.moving.get(&pid).and_then(|going| going.mover.as_ref()) {
            mover.tell(task);
        }
    }

    pub(super) fn cancel_here(&mut self, pid: Pid) {
        self.tell_mover(pid, Task::Proceed(false));
    }

    /// The ghost does what it was told before, the keeper lets it go, and the mover may have it.
    pub(super) fn take_ghost(&mut self, pid: Pid) {
        let Some(mover) = self.moving.get(&pid).and_then(|g| g.mover.clone()) else { return };
        let (ghost, keeper) = (self.ghosts.get(&pid).cloned(), self.keeper.clone());
        self.kernel.remove_ghost(pid);
        tokio::spawn(async move {
            if let Some(ghost) = ghost {
                // It is no child of itself: the answer only tells that all commands before were carried out.
                let _ = ghost.call(op::REAP, pid.get().into(), 0, vec![]).await;
            }
            let _ = keeper.hand_over(pid).await;
            mover.tell(Task::Begin(Empty {}));
        });
    }

    /// Ends a process whose move is known here, whoever it is by now: process, stand-in or ghost. It may be gone.
    pub(super) fn kill_mover(&self, pid: Pid) {
        if let Some(going) = self.moving.get(&pid) {
            let _ = going.handle.send_signal(libc::SIGKILL);
        }
    }

    /// What was sent to a process on its way home. The sender is not the agent: the nursery sends it in his name.
    pub(super) fn signal_home(&self, pid: Pid, siginfo: Vec<u8>) {
        let there = self.moving.get(&pid).is_some_and(|g| g.handle.has_exited().is_ok_and(|gone| !gone));
        if let (true, Some(nursery)) = (there, &self.nursery) {
            nursery.tell(op::SIGNAL, pid.get().into(), 0, siginfo);
        }
    }

    /// A mover of the master's own tells.
    pub(super) fn mover(&mut self, pid: Pid, id: MoveId, said: Said, out: &mut Vec<Action>) {
        let Some(going) = self.moving.get_mut(&pid) else { return };
        let home = going.to.is_none();
        match said {
            Said::Listening(port) => {
                going.address = host_port(&master_host(&self.stdio_address), port);
                self.core.receiving(pid, id, Ok(()), out);
            }
            Said::Report(Report::Frozen(_)) => self.core.frozen(pid, id, out),
            Said::Report(Report::Ready(_)) => {
                going.ready = true;
                self.tell_mover(pid, Task::Proceed(true));
            }
            Said::Report(Report::Committing(_)) => self.core.committing(pid, id, out),
            Said::Report(Report::Leaving(_)) => going.leaving = true,
            Said::Report(Report::InDoubt(_)) => self.core.departed(pid, id, Departed::InDoubt, out),
            Said::Report(Report::Done(done)) => {
                let refusal = Refusal::Failed(NodeId::MASTER, done.number, done.message);
                match (home, done.number) {
                    (true, 0) => self.core.arrived(pid, id, Ok(()), out),
                    (true, _) => self.core.arrived(pid, id, Err(refusal), out),
                    (false, 0) => {
                        going.moved = Moved { frozen_ns: done.frozen_ns, bytes: done.bytes };
                        self.core.departed(pid, id, Departed::Gone { stand_in: !done.no_stand_in }, out);
                    }
                    (false, _) => self.core.departed(pid, id, Departed::Failed(refusal), out),
                }
            }
            Said::Lost => {
                let refusal = Refusal::Failed(NodeId::MASTER, libc::ECANCELED, "the mover was killed".into());
                let lives = checked::lives(&going.handle, pid.get());
                match (home, going.leaving) {
                    // It had let it go.
                    (true, _) if going.ready && checked::runs(&going.handle, pid.get(), self.ghost_exe) => {
                        self.core.arrived(pid, id, Ok(()), out)
                    }
                    (true, _) => self.core.arrived(pid, id, Err(refusal), out),
                    (false, false) => self.core.departed(pid, id, Departed::Failed(refusal), out),
                    // What was bound to it was killed with it; what lives is the ghost.
                    (false, true) => self.core.departed(pid, id, Departed::Gone { stand_in: lives }, out),
                }
            }
        }
    }
}

async fn carry_streams(
    iod: &crate::stdio::Iod,
    told: Vec<link::ForwardedStream>,
    home: bool,
    cooperative: bool,
) -> Result<Streams, Failure> {
    let broken = |e: String| failure(libc::EIO, format!("the stdio service of the master: {e}"));
    let mut all = Streams::default();
    let told: Vec<_> = told.into_iter().filter(|s| !(cooperative && s.input)).collect();
    let from: Vec<_> = told.iter().map(|s| (s.token.clone(), s.stream, s.input)).collect();
    if cooperative && home {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        all.fds.push((0, null.map_err(|e| broken(e.to_string()))?.into()));
    } else if cooperative {
        let mut null = Stream { input: true, ..Stream::default() };
        null.set_kind(Kind::Null);
        all.streams.push(null);
    }
    if from.is_empty() {
        return Ok(all);
    }
    if home {
        let fds = iod.take(&from).await.map_err(|e| broken(format!("{e:#}")))?;
        all.fds.extend(told.iter().map(|s| s.fd).zip(fds));
        return Ok(all);
    }
    let token = Token::random().map_err(|e| broken(e.to_string()))?;
    let fds = told.iter().map(|s| s.fd).collect();
    iod.share(&from, token.as_bytes(), fds).await.map_err(|e| broken(format!("{e:#}")))?;
    all.token = token.as_bytes().to_vec();
    all.streams.extend(told.iter().map(|s| Stream { fd: s.fd, input: s.input, ..Stream::default() }));
    Ok(all)
}

/// The address under which nodes reach this machine.
fn master_host(stdio_address: &str) -> String {
    let host = stdio_address.rsplit_once(':').map_or(stdio_address, |(host, _)| host);
    host.trim_matches(['[', ']']).to_owned()
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
