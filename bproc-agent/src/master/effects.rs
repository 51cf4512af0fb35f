//! Performs what the core decided.

use super::{Actor, Fact, Waits, link};
use crate::ghosts::{self, Ghost};
use bproc_common::errno;
use bproc_common::ghost::{left, op};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::{Action, Ask, Child, GhostCommand, Order, Refusal};
use bproc_mover::wire::{Empty, Task};
use bproc_proto::Failure;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use bproc_sys::signal::SigInfo;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

impl Actor {
    pub(super) async fn perform(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            tracing::trace!(?action);
            match action {
                Action::Answer(ask, result) => self.answer(ask, result),
                Action::Hold(pid) => {
                    // It was to be let go, and may not have been yet.
                    if let Some(taking) = self.taking.remove(&pid) {
                        taking.abort();
                    }
                    self.keeper.hold(pid);
                }
                Action::Release(pid) => self.keeper.release(pid),
                Action::LetGo(pid) => self.keeper.let_go(pid),
                Action::Send(node, number, order) => self.send(node, number, &order),
                Action::Ghost(pid, command) => self.tell_ghost(pid, command),
                Action::KillGhost(pid) => {
                    // An open gate may have let it go already.
                    if let Some(ghost) = self.checked_ghost(pid) {
                        let _ = ghost.send_signal(libc::SIGKILL);
                    }
                }
                Action::WakeGhost(pid) => {
                    if let Some(ghost) = self.checked_ghost(pid) {
                        let _ = ghost.sigqueue(libc::SIGCONT, ghosts::WAKE);
                    }
                }
                Action::Thaw(pid) => self.keeper.thaw(pid, true),
                Action::Freeze(pid) => self.keeper.thaw(pid, false),
                Action::Watch(pid) => self.watch(pid),
                Action::SignalLocal(pid, siginfo) => self.signal_local(pid, siginfo),
                Action::TrackSignals(pid) => self.kernel.add_ghost(pid),
                Action::UntrackSignals(pid) => {
                    self.kernel.remove_ghost(pid);
                    self.used.remove(&pid);
                }
                Action::NurseryClone(child) => self.nursery_clone(child),
                Action::ReceiveHere(pid, id) => self.receive_here(pid, id),
                Action::SendFromHere(pid, id) => self.send_from_here(pid, id),
                Action::TakeGhost(pid, _) => self.take_ghost(pid),
                Action::GoOnHere(pid, _) => self.tell_mover(pid, Task::Begin(Empty {})),
                Action::ProceedHere(pid, _, go) => self.tell_mover(pid, Task::Proceed(go)),
                Action::DecideHere(pid, _, moved) => self.tell_mover(pid, Task::Decide(moved)),
                Action::CancelHere(pid, _) => self.cancel_here(pid),
                Action::SignalHome(pid, siginfo) => self.signal_home(pid, siginfo),
                Action::KillHome(pid) => self.kill_mover(pid),
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

    fn checked_ghost(&self, pid: Pid) -> Option<PidFd> {
        crate::checked::ghost(pid, self.keeper.pid, self.ghost_exe)
    }

    fn answer(&mut self, ask: Ask, result: Result<(), Refusal>) {
        let Some(waiting) = self.asks.remove(&ask) else { return };
        match waiting.answer {
            Waits::Spawn(answer) => {
                if result.is_err() {
                    self.specs.remove(&waiting.pid);
                }
                let _ = answer.send(result.map_err(failure));
            }
            Waits::Move(answer) => {
                let moved = self.move_ended(waiting.pid, result.is_ok());
                let _ = answer.send(result.map(|()| moved).map_err(failure));
            }
        }
    }

    fn send(&mut self, node: NodeId, number: u64, order: &Order) {
        let Some(link) = self.links.get_mut(&node) else { return };
        let specs = &self.specs;
        let message = match order {
            Order::Survey(pid, id)
            | Order::Receive(pid, id)
            | Order::Depart(pid, id)
            | Order::Children(pid, id)
            | Order::Relay(pid, id) => {
                self.moving.get(pid).and_then(|going| going.order(number, order, *pid, *id, &self.machines))
            }
            order => link::order(number, order, |pid| specs.get(&pid).cloned()),
        };
        let Some(message) = message else { return };
        link.settle_acknowledgement();
        // What a broken link loses is kept by the core and goes out again when the node attaches anew.
        let _ = link.to.send(Ok(message));
    }

    fn tell_ghost(&mut self, pid: Pid, command: GhostCommand) {
        let Some(ghost) = self.ghosts.get(&pid) else { return };
        match command {
            GhostCommand::Exit(code) => ghost.tell(op::EXIT, code.into(), 0, vec![]),
            GhostCommand::Die(signal) => ghost.tell(op::DIE, signal.into(), 0, vec![]),
            GhostCommand::Stop(signal) => ghost.tell(op::STOP, signal.into(), 0, vec![]),
            GhostCommand::Group(pgid) => self.desk.following.join(pid, ghost, pgid),
            GhostCommand::Session => self.desk.following.follow(pid, ghost, op::SETSID, 0, 0),
            GhostCommand::Owner(uid, gid) => self.desk.following.follow(pid, ghost, op::CREDS, uid.into(), gid.into()),
            GhostCommand::Starter(starter) => ghost.tell(op::STARTER, starter.0 as i64, 0, vec![]),
            GhostCommand::Name(name) => ghost.tell(op::NAME, 0, 0, name),
            GhostCommand::CommandLine(bytes) => {
                if let Some((op, payload)) = ghosts::command_line(&bytes) {
                    ghost.tell(op, 0, 0, payload);
                }
            }
            GhostCommand::TakeSignals => ghost.tell(op::HOLD, left::NONE, 0, vec![]),
            GhostCommand::WatchChildren => ghost.tell(op::WATCH_CHILDREN, 1, 0, vec![]),
            GhostCommand::Subreaper => ghost.tell(op::SUBREAPER, 1, 0, vec![]),
            GhostCommand::Ack(number) => ghost.tell(op::ACK, number.into(), 0, vec![]),
            GhostCommand::SignalGroup(group, signal) => {
                ghost.tell(op::SIGNAL_GROUP, group.into(), signal.into(), vec![]);
            }
            GhostCommand::Report => {
                let (facts, answer) = (self.facts.clone(), ghost.ask(op::NOTHING, 0, 0, vec![], vec![]));
                tokio::spawn(async move {
                    if answer.await.is_ok() {
                        facts.send(Fact::Ready(pid)).await.ok();
                    }
                });
            }
            GhostCommand::Clone(child) => self.clone_ghost(ghost.clone(), child),
            GhostCommand::Reap(child) => {
                let ghost = ghost.clone();
                let reaped = tokio::spawn(async move {
                    // The child went through its gate a moment ago; until it is a zombie the answer is 0.
                    for _ in 0..1000 {
                        match ghost.call(op::REAP, child.get().into(), 0, vec![]).await {
                            Ok(0) => tokio::time::sleep(Duration::from_millis(1)).await,
                            _ => return,
                        }
                    }
                });
                let reaps = self.reaps.entry(pid).or_default();
                reaps.retain(|(_, r)| !r.is_finished());
                reaps.push((child, reaped));
            }
        }
    }

    fn clone_ghost(&self, ghost: Ghost, child: Pid) {
        let (facts, keeper) = (self.facts.clone(), self.keeper.clone());
        // Sent here and now: commands that follow must find the child made.
        let answer = ghost.ask(op::CLONE, child.get().into(), 0, vec![], vec![]);
        tokio::spawn(async move {
            let result = match answer.await {
                Ok(value) if value < 0 => Err(-value as i32),
                Ok(_) => Ok(()),
                Err(_) => {
                    // A new keeper looks for itself.
                    let _ = keeper.barrier().await;
                    Err(libc::ESRCH)
                }
            };
            facts.send(Fact::Cloned(child, result)).await.ok();
        });
    }

    pub(super) fn nursery_clone(&mut self, child: Child) {
        match &self.nursery {
            Some(nursery) => {
                let nursery = nursery.clone();
                self.clone_ghost(nursery, child.pid);
                self.nurslings.insert(child.pid, child);
            }
            None => self.for_nursery.push(child),
        }
    }

    /// A process on a node signals one of the master's own: its ghost does, with its pid and its user's rights.
    fn signal_local(&mut self, target: Pid, siginfo: Vec<u8>) {
        let Some(info) = siginfo.first_chunk().map(|raw| SigInfo(*raw)) else { return };
        let sender = Pid::new(info.pid()).and_then(|sender| self.ghosts.get(&sender));
        // One that has ended, or was none of the space: the kernel there has let it.
        match sender.or(self.nursery.as_ref()) {
            Some(ghost) => match self.rooms.for_signal(&info, target, 0) {
                None => ghost.tell(op::SIGNAL, target.get().into(), 0, siginfo),
                Some(room) => {
                    let answer = ghost.ask(op::SIGNAL, target.get().into(), 0, siginfo, Vec::new());
                    tokio::spawn(async move {
                        let _ = answer.await;
                        drop(room);
                    });
                }
            },
            None => tracing::warn!(%target, sender = info.pid(), "nobody is there to pass a signal on"),
        }
    }

    /// Has its end told. One who is watched already, and has not ended, is the same.
    fn watch(&mut self, pid: Pid) {
        if self.watched.get(&pid).is_some_and(|handle| handle.has_exited().is_ok_and(|gone| !gone)) {
            return;
        }
        let handle = PidFd::open(pid).ok().map(Arc::new);
        if let Some(handle) = &handle {
            self.watched.insert(pid, handle.clone());
            self.parents.extend(super::orphans::parent_of(pid).map(|parent| (pid, parent)));
        }
        let (facts, iod, pipes) = (self.facts.clone(), self.iod.clone(), self.pipes.clone());
        tokio::spawn(async move {
            let mut status = 0;
            if let Some(handle) = handle {
                if let Ok(fd) = crate::watched::watched(handle, tokio::io::Interest::READABLE) {
                    let _ = fd.readable().await;
                }
                // Its zombie tells how it ended, until its parent reaps it.
                let stat = Process::open(pid).and_then(|p| p.stat()).ok();
                status = stat.filter(|s| s.state == b'Z').map_or(0, |s| s.exit_code);
            }
            // Another one may watch, too, who was told to when it had ended.
            let wrote = pipes.of(pid);
            if !wrote.is_empty() {
                iod.are_there(&wrote).await;
            }
            facts.send(Fact::RelativeGone(pid, status)).await.ok();
        });
    }

    /// Who was watched has ended; another one may have its number by now.
    pub(super) fn no_longer_watched(&mut self, pid: Pid) {
        if self.watched.get(&pid).is_some_and(|handle| handle.has_exited().unwrap_or(true)) {
            self.watched.remove(&pid);
        }
    }

    pub(super) fn write_state(&self) {
        let nodes: Vec<_> = self
            .config
            .nodes
            .iter()
            .map(|n| (NodeId(n.number), n.addr))
            // Those that a former agent had are about to come again.
            .map(|(id, addr)| (self.core.is_awaited(id) || self.core.view(id).is_some_and(|v| v.state != "down"), addr))
            .collect();
        for path in &self.state_files {
            if let Err(error) = bproc_config::state_file::write(path, &nodes) {
                tracing::warn!(path = %path.display(), %error, "writing the state of the machine");
            }
        }
    }
}

pub(super) fn failure(refusal: Refusal) -> Failure {
    let (number, message) = match refusal {
        Refusal::NoSuchNode(node) => (errno::BE_INVALIDNODE, format!("there is no node {node}; bpstat lists them")),
        Refusal::NodeDown(node, state) => (errno::BE_NODEDOWN, format!("node {node} is {state}")),
        Refusal::NotAllowed(node) => (
            libc::EPERM,
            format!("owner, group and mode of node {node} do not let you run there (see bpstat), or it is not up"),
        ),
        Refusal::Busy(pid) => (libc::EBUSY, format!("process {pid} is being moved already")),
        Refusal::NotYours(pid) => (libc::EPERM, format!("process {pid} belongs to another user")),
        Refusal::Unvouched(pid, node) => (
            libc::EPERM,
            format!("process {pid} is not on node {node}, which speaks for its own only; ask on the master"),
        ),
        Refusal::Ended(pid) => (libc::ESRCH, format!("process {pid} has ended")),
        Refusal::CannotHold(pid, number) => {
            (number, format!("the keeper cannot hold process {pid} (errno {number}); is a debugger attached to it?"))
        }
        Refusal::Failed(_, number, message) => (number, message),
        Refusal::Interrupted(node) => {
            (libc::ERESTART, format!("the agent of node {node} was restarted while it started the program"))
        }
        Refusal::NodeDied(node) => (errno::BE_SLAVEDIED, format!("node {node} went down in the middle of it")),
    };
    Failure { number, message }
}
