//! The master's part in moves: what is asked, what the core knows nothing of (streams, addresses, tokens), and the
//! movers of processes that leave the master or come home.

use super::clients::{Asker, ClientFact, Desk};
use super::effects;
use super::going::Going;
use super::places::{self, settled, speaker};
use super::spread::Joining;
use super::streams::{listed_streams, own_streams};
use super::{Actor, Fact, Waiting, Waits, caller};
use crate::checked;
use crate::mover::{self, Mover, Said};
use crate::rights;
use crate::survey::{self, Survey, Wishes};
use crate::trial;
use bproc_common::ghost::{ENV_COUNT, Role, left, op};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::moving::{Departed, MoveFacts, MoveId};
use bproc_core::master::{Action, Ask, Refusal};
use bproc_mover::wire::{Empty, Line, Receive, Report, Send, Task};
use bproc_proto::client::{self as wire, Moved};
use bproc_proto::link::{self, event};
use bproc_proto::{Failure, SpawnSpec};
use bproc_stdio::wire::Token;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often a move is tried of a process that changes its files or groups meanwhile.
const TRIES: u32 = 12;

/// A move that is asked for.
#[derive(Debug)]
pub struct Asked {
    facts: MoveFacts,
    spec: SpawnSpec,
    stdio: Vec<Vec<u8>>,
    /// The descriptors of one that asks for its own, and comes home.
    home: Vec<(i32, OwnedFd)>,
    /// See [`Streams::leading`].
    leading: Vec<u64>,
    children: Vec<bproc_proto::Relative>,
    survey: Option<Survey>,
    request: wire::Move,
    handle: PidFd,
    again: bool,
    answer: oneshot::Sender<Result<Moved, Failure>>,
}

/// All its children, as far as they can be seen. What it knows of how they are is told by where it is, `here` or elsewhere.
fn children_of(process: &Process, here: bool) -> bproc_sys::Result<Vec<bproc_proto::Relative>> {
    let child = if here { caller::child } else { caller::relative };
    Ok(process.children()?.into_iter().filter_map(|c| child(c.get())).collect())
}

/// Those of them whom `how` fits.
fn numbers_of(children: &[bproc_proto::Relative], how: impl Fn(&bproc_proto::Relative) -> bool) -> Vec<i32> {
    children.iter().filter(|c| how(c)).map(|c| c.pid).collect()
}

pub fn failure(number: i32, message: impl Into<String>) -> Failure {
    Failure { number, message: message.into() }
}

/// A client asks. Returns when the process has moved, or not.
pub async fn ask(request: wire::Move, asker: &Asker, fds: Vec<OwnedFd>, desk: &Desk) -> Result<Moved, Failure> {
    let spread = request.spread;
    let result = ask_until(request, asker, fds, desk).await;
    if spread != 0 {
        desk.facts.send(Fact::Client(ClientFact::CameOrFailed(spread))).await.ok();
    }
    result
}

/// How long the word of a new process on a node may take longer than a question about it from there.
const OVERTAKEN: Duration = Duration::from_millis(500);

async fn ask_until(request: wire::Move, asker: &Asker, fds: Vec<OwnedFd>, desk: &Desk) -> Result<Moved, Failure> {
    // What leads back to a node is called for once.
    let mut left = if asker.back().is_empty() { TRIES } else { 1 };
    loop {
        match ask_once(request.clone(), asker, &fds, left > 1, desk).await {
            // It opened or closed files, or changed its group, while it was asked what it has.
            Err(failure) if failure.number == libc::EAGAIN && left > 1 => {
                left -= 1;
                if let Some(pid) = moving(&request, asker) {
                    places::settled_around(pid, desk).await;
                }
            }
            done => return done,
        }
    }
}

fn moving(request: &wire::Move, asker: &Asker) -> Option<Pid> {
    let number = if request.pid == 0 { asker.number().unwrap_or(asker.pid) } else { request.pid };
    Pid::new(number).filter(|pid| pid.get() > 1)
}

/// `again`: it is, when something has changed meanwhile.
async fn ask_once(
    mut request: wire::Move,
    asker: &Asker,
    fds: &[OwnedFd],
    again: bool,
    desk: &Desk,
) -> Result<Moved, Failure> {
    let remote = asker.number();
    let pid = moving(&request, asker);
    let pid = pid.ok_or_else(|| failure(libc::EINVAL, format!("{} is no process that can move", request.pid)))?;
    let number = pid.get();
    let mut place = settled(pid, remote == Some(number), desk).await;
    let is_far = remote.is_some() || asker.node().is_some();
    if place.is_none() && is_far && PidFd::open(pid).is_err() {
        // Forked there a moment ago: the question has overtaken the word of it.
        place = tokio::time::timeout(OVERTAKEN, settled(pid, true, desk)).await.ok().flatten();
    }
    desk.following.settle(pid).await;
    let local = place.is_none();
    // A node speaks for its own processes only.
    let its_own = asker.node().is_none_or(|node| place == Some(node));
    if remote == Some(number) && (local || !its_own) {
        return Err(failure(libc::ESRCH, format!("process {pid} of a node has no ghost here")));
    }
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pid} cannot be read: {e}"));
    let handle = PidFd::open(pid).map_err(unreadable)?;
    let to = (request.node >= 0).then_some(NodeId(request.node));
    let leaves = local && to.is_some();
    // While its new place is made; what comes of it is known before it would be stopped.
    let mut survey = leaves.then(|| {
        let (target, ghost) = (desk.machines.of(to), Some(desk.ghost.clone()));
        let kin = desk.kin.clone();
        let wishes =
            Wishes { flags: request.flags, files: request.files as u32, target, rights: None, ghost, init: None, kin };
        survey::begin(pid.get(), wishes)
    });
    let wire::Program { path, argv, envp } = request.program.take().unwrap_or_default();
    // Of one on a node the ghost does not know them.
    let cwd = std::mem::take(&mut request.cwd);
    let mut spec = SpawnSpec { path, argv, envp, cwd, ..SpawnSpec::default() };
    let asking = caller::Asking::look(pid).map_err(unreadable)?;
    let caller = caller::complete(&asking, &mut spec, &desk.kin).map_err(unreadable)?;
    spec.umask = request.umask.unwrap_or(spec.umask);
    let process = Process::open(pid).map_err(unreadable)?;
    if process.stat().map_err(unreadable)?.state == b'Z' {
        return Err(survey::ended(pid.get(), pid.get()));
    }
    let children = children_of(&process, local).map_err(unreadable)?;
    let speaker = speaker(asker, desk).await;
    let itself = (remote == Some(number) && speaker.is_none()).then_some(asker.pid);
    let facts = MoveFacts {
        pid,
        parent: caller.parent,
        to,
        uid: asker.uid,
        gids: if speaker.is_some() { caller.gids } else { asker.gids() },
        speaker,
        // Its ghost follows it into another owner later.
        owner: itself.and_then(caller::owner).unwrap_or(caller.owner),
        comm: caller.comm,
        relatives: caller.relatives,
        children: children.iter().filter_map(|r| Pid::new(r.pid)).collect(),
    };
    let ending = |_| failure(libc::ECONNRESET, "the agent is ending; try again");
    let mut stdio = Vec::new();
    let mine = facts.rights(place).is_ok();
    if leaves && mine {
        spec.rights = rights::of(pid.get());
    } else {
        survey = None;
    }
    let (mut home, mut leading) = (Vec::new(), Vec::new());
    if request.listed {
        let streams = listed_streams(pid, &request, (fds, asker.back()), &spec, desk).await?;
        (spec.streams, spec.stdio_token) = (streams.streams, streams.token);
        (home, leading) = (streams.fds, streams.leading);
        stdio = bproc_mover::send::stdio(pid.get());
    } else if leaves && mine {
        let streams = own_streams(pid, request.socket != 0, desk).await?;
        (spec.streams, spec.stdio_token, stdio) = (streams.streams, streams.token, streams.stdio);
    }
    let (answer, receiver) = oneshot::channel();
    let asked = Asked { facts, spec, stdio, home, leading, children, survey, request, handle, again, answer };
    desk.facts.send(Fact::Client(ClientFact::Move(Box::new(asked)))).await.ok();
    receiver.await.map_err(ending).and_then(|r| r)
}

impl Actor {
    /// Ghosts stand still for the keeper now and then.
    fn only_stopped(&self, mut children: Vec<bproc_proto::Relative>) -> Vec<bproc_proto::Relative> {
        for child in children.iter_mut().filter(|child| child.halted) {
            child.halted = Pid::new(child.pid).is_some_and(|pid| self.core.is_stopped(pid).unwrap_or(true));
        }
        children
    }

    pub(super) fn move_asked(&mut self, asked: Asked, out: &mut Vec<Action>) {
        let pid = asked.facts.pid;
        let token = match Token::random() {
            _ if self.moving.contains_key(&pid) => Err(effects::failure(Refusal::Busy(pid))),
            // While it was looked at: a ghost that has ended is nobody's any more, and would be taken for a process from here.
            _ if asked.handle.has_exited().unwrap_or(true) => Err(effects::failure(Refusal::Ended(pid))),
            _ if asked.request.spread != 0 && !self.may_follow(&asked.request, asked.facts.parent) => {
                Err(failure(libc::EINVAL, format!("no process is held whose image process {pid} may get")))
            }
            token => token.map_err(|error| failure(libc::EIO, format!("no random numbers for a token: {error}"))),
        };
        let token = match token {
            Ok(token) => token,
            Err(failure) => {
                let _ = asked.answer.send(Err(failure));
                return self.settle_streams(asked.spec.stdio_token, false);
            }
        };
        let image = self.spreads.get(&asked.request.spread).map(|spread| spread.pattern);
        let ask = Ask(self.next_ask);
        self.next_ask += 1;
        self.asks.insert(ask, Waiting { pid, answer: Waits::Move(asked.answer) });
        let from = self.core.whereabouts(pid);
        if asked.facts.to.is_none() {
            // Before it runs: it may end at once.
            self.pipes.came(pid, asked.leading);
        }
        let mut spec = asked.spec;
        if from.is_some() {
            spec.rights = self.vouched.of(pid);
        }
        let going = Going {
            spec,
            stdio: asked.stdio,
            children: self.only_stopped(asked.children),
            survey: asked.survey,
            request: asked.request,
            handle: asked.handle,
            from,
            to: asked.facts.to,
            address: String::new(),
            token: token.as_bytes().to_vec(),
            successor: Vec::new(),
            mover: None,
            fds: asked.home,
            image,
            relay: link::Relay::default(),
            leaving: false,
            ready: false,
            moved: Moved::default(),
            taken_over: false,
            again: asked.again,
        };
        let stays = from == asked.facts.to;
        self.moving.insert(pid, going);
        if stays && let Some(going) = self.moving.get_mut(&pid) {
            // Nothing of what was prepared is used.
            let token = std::mem::take(&mut going.spec.stdio_token);
            self.settle_streams(token, false);
        }
        self.core.move_asked(ask, asked.facts, out);
    }

    /// The end of a move. What it took.
    pub(super) fn move_ended(&mut self, pid: Pid, well: bool) -> Moved {
        let Some(going) = self.moving.remove(&pid) else { return Moved::default() };
        match (going.from, going.to, going.spec.rights) {
            (None, Some(_), Some(rights)) if well => self.vouched.left(pid, rights),
            (Some(_), None, _) if well => self.vouched.home(pid),
            _ => {}
        }
        // One that stays at home keeps them, and one that has come may have ended by now.
        if well == going.to.is_some() {
            self.pipes.went(pid);
        }
        self.settle_streams(going.spec.stdio_token, well);
        going.moved
    }

    /// What a node says of a move.
    pub(super) fn move_event(&mut self, node: NodeId, body: event::Body, out: &mut Vec<Action>) {
        use event::Body;
        let r#move = match &body {
            Body::Surveyed(m) => m.r#move,
            Body::Receiving(m) => m.r#move,
            Body::Frozen(m) => m.r#move,
            Body::Adopted(m) => m.r#move,
            Body::Arrived(m) => m.r#move,
            Body::Departed(m) => m.r#move,
            _ => None,
        };
        let Some((pid, id)) = r#move.and_then(|m| Some((Pid::new(m.pid)?, MoveId(m.id)))) else { return };
        let result = |f: Option<Failure>| match f {
            None => Ok(()),
            Some(f) => Err(Refusal::Failed(node, f.number, f.message)),
        };
        if let Body::Surveyed(said) = &body
            && let Some(subreaper) = Pid::new(said.subreaper)
        {
            self.core.is_subreaper(node, subreaper, out);
        }
        match body {
            Body::Surveyed(said) => match said.failure {
                Some(f) => {
                    self.core.surveyed(pid, id, Err(Refusal::Failed(node, f.number, f.message)), out);
                }
                None if self.moving.get(&pid).is_some_and(|going| going.again && !going.agrees(&said.groups)) => {
                    let message = format!("process {pid} has just changed its group, session or owner; try again");
                    self.core.surveyed(pid, id, Err(Refusal::Failed(node, libc::EAGAIN, message)), out);
                }
                None => self.prepare_streams(pid, id, said.streams, out),
            },
            Body::Receiving(said) => {
                let address = self.config.nodes.iter().find(|n| n.number == node.0).map(|n| n.addr);
                let gives = address.map(|a| std::net::SocketAddr::new(a, said.relay_port as u16).to_string());
                if let (Some(going), Some(address)) = (self.moving.get_mut(&pid), address) {
                    going.address = std::net::SocketAddr::new(address, said.port as u16).to_string();
                }
                let listens = said.failure.is_none();
                self.core.receiving(pid, id, result(said.failure), out);
                let spread = self.moving.get(&pid).map_or(0, |going| going.request.spread);
                if let (true, Some(gives)) = (listens && spread != 0, gives) {
                    self.may_join(spread, Joining { pid, id, node, gives }, out);
                }
            }
            Body::Frozen(said) => {
                let children = said.changed.then(|| self.other_children(pid, said.children));
                self.core.frozen(pid, id, children, out);
            }
            Body::Adopted(said) => self.core.adopted_children(pid, id, result(said.failure), out),
            Body::Arrived(said) => self.core.arrived(pid, id, result(said.failure), out),
            Body::Departed(said) => {
                if let Some(going) = self.moving.get_mut(&pid) {
                    going.moved = Moved { frozen_ns: said.frozen_ns, bytes: said.bytes, ..Moved::default() };
                }
                if said.in_doubt && said.former {
                    let told = link::Leaving { r#move, to: said.to, in_doubt: true };
                    return self.leaving(node, &told, out);
                }
                let departed = match said.failure {
                    _ if said.in_doubt => Departed::InDoubt,
                    None => Departed::Gone { stand_in: true, stopped: false },
                    Some(f) => Departed::Failed(Refusal::Failed(node, f.number, f.message)),
                };
                self.core.departed(pid, id, departed, out);
            }
            _ => {}
        }
    }

    /// It has these children now.
    fn other_children(&mut self, pid: Pid, children: Vec<bproc_proto::Relative>) -> Vec<Pid> {
        let pids = children.iter().filter_map(|c| Pid::new(c.pid)).collect();
        if let Some(going) = self.moving.get_mut(&pid) {
            going.children = children;
        }
        pids
    }

    fn start_mover(
        &mut self,
        pid: Pid,
        id: MoveId,
        first: Option<Task>,
        task: impl Future<Output = Result<(Task, Vec<OwnedFd>), Failure>> + std::marker::Send + 'static,
    ) {
        let mover = Mover::start(&self.movers, first, task, self.facts.clone(), move |said| Fact::Mover(pid, id, said));
        if let Some(going) = self.moving.get_mut(&pid) {
            going.mover = Some(mover);
        }
    }

    /// The process is going to be built into its ghost.
    pub(super) fn receive_here(&mut self, pid: Pid, id: MoveId) {
        let socket_given = self.answer_socket(pid);
        let Some(going) = self.moving.get_mut(&pid) else { return };
        let mut ghost_again = mover::stand_in(&self.ghost, &self.ghost_socket, Role::Ghost);
        ghost_again.envp.push(format!("{ENV_COUNT}={}", self.core.counts_from(pid)).into_bytes());
        let owner = rights::owner(&going.spec);
        let (mut fds, mut numbers) = (Vec::new(), Vec::new());
        for (number, fd) in going.fds.drain(..).chain(socket_given) {
            numbers.push(number);
            fds.push(fd);
        }
        let task = Receive {
            body: pid.get(),
            pid: pid.get(),
            fds: numbers,
            owner,
            elevate: Some(mover::body(&self.ghost)),
            fallback: Some(ghost_again),
            wait: true,
            drop_files: going.request.files != 0,
            only_given: going.request.listed,
            ..Receive::default()
        };
        let (facts, gate) = (self.facts.clone(), self.gate.clone());
        let (from, token) = (mover::peer(going.from.map_or(-1, |node| node.0)), going.token.clone());
        let host = master_host(&self.stdio_address);
        let ghost = self.ghosts.get(&pid).cloned();
        let program = Some(going.spec.clone()).filter(|spec| !spec.path.is_empty());
        self.start_mover(pid, id, None, async move {
            if let (Some(ghost), Some(program)) = (&ghost, &program) {
                trial::can_execute(ghost, program, None, NodeId::MASTER.0).await?;
            }
            let told = |port| async move {
                // What it tells before goes to the process where that is, and what comes later is not overtaken by that.
                if let Some(ghost) = ghost {
                    ghost.holds_queued(pid).await;
                }
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
        mover::good_answer(0).map(|fd| (number, fd))
    }

    pub(super) fn send_from_here(&mut self, pid: Pid, id: MoveId) {
        let survey = self.moving.get_mut(&pid).and_then(|going| going.survey.take());
        let Some(going) = self.moving.get(&pid) else { return };
        let task = Send {
            pid: pid.get(),
            files: going.request.files as u32,
            flags: going.request.flags,
            stand_in: Some(mover::stand_in(&self.ghost, &self.ghost_socket, Role::Ghost)),
            children: numbers_of(&going.children, |_| true),
            ended: numbers_of(&going.children, |c| c.ended.is_some()),
            halted: numbers_of(&going.children, |c| c.halted),
            stdio: going.stdio.clone(),
            spread: going.image.is_some(),
            doubt: Some(self.doubt(pid, id, going.to)),
        };
        let (gate, address, token) = (self.gate.clone(), going.address.clone(), going.token.clone());
        let to = mover::peer(going.to.map_or(-1, |node| node.0));
        self.start_mover(pid, id, Some(Task::Send(task)), async move {
            survey::passed(survey, pid.get()).await?;
            let (conn, keys) = mover::dial_target(&gate, &address, to, &token).await?;
            Ok((Task::Line(Line { keys }), vec![conn]))
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
        let reaps = self.reaps.remove(&pid).unwrap_or_default();
        self.kernel.remove_ghost(pid);
        let taking = tokio::spawn(async move {
            for (_, reap) in reaps {
                let _ = reap.await;
            }
            if let Some(ghost) = ghost {
                // All commands before have been carried out then, and what it has read it has told.
                let _ = ghost.call(op::HOLD, left::ALL, 0, vec![]).await;
            }
            let _ = keeper.hand_over(pid).await;
            mover.tell(Task::Begin(Empty {}));
        });
        self.taking.retain(|_, taking| !taking.is_finished());
        self.taking.insert(pid, taking.abort_handle());
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
            Said::Report(Report::Frozen(changed)) => {
                let now = changed.then(|| Process::open(pid).and_then(|p| children_of(&p, true)).unwrap_or_default());
                let children = now.map(|now| self.other_children(pid, self.only_stopped(now)));
                self.core.frozen(pid, id, children, out);
            }
            Said::Report(Report::Ready(_)) => {
                going.ready = true;
                self.tell_mover(pid, Task::Proceed(true));
            }
            Said::Report(Report::Wanted(offset)) => self.feed(pid, offset),
            Said::Report(Report::Held(_) | Report::Doubt(_)) => {}
            Said::Report(Report::Committing(_)) => {
                match survey::landlock(pid.get(), &self.kernel.kin(self.ghost_exe)) {
                    // Since it was surveyed.
                    Some(why) => self.tell_mover(pid, mover::stay(pid.get(), &why)),
                    None => self.core.committing(pid, id, out),
                }
            }
            Said::Report(Report::Leaving(_)) => going.leaving = true,
            Said::Report(Report::InDoubt(_)) => self.core.departed(pid, id, Departed::InDoubt, out),
            Said::Report(Report::Done(done)) => {
                let refusal = Refusal::Failed(NodeId::MASTER, done.number, done.message.clone());
                match (home, done.number) {
                    (true, 0) => self.core.arrived(pid, id, Ok(()), out),
                    (true, _) => self.core.arrived(pid, id, Err(refusal), out),
                    (false, 0) => {
                        mover::tell_of_loss(pid.get(), &done);
                        going.moved = Moved { frozen_ns: done.frozen_ns, bytes: done.bytes, ..Moved::default() };
                        self.core.departed(
                            pid,
                            id,
                            Departed::Gone { stand_in: !done.no_stand_in, stopped: done.stopped },
                            out,
                        );
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
                    (false, true) => {
                        self.core.departed(pid, id, Departed::Gone { stand_in: lives, stopped: false }, out)
                    }
                }
            }
        }
    }
}

/// The address under which nodes reach this machine.
fn master_host(stdio_address: &str) -> String {
    let host = stdio_address.rsplit_once(':').map_or(stdio_address, |(host, _)| host);
    host.trim_matches(['[', ']']).to_owned()
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
