//! A node's part in moves: bodies for those who come, stand-ins for those who go, and what must not be told of either
//! while they change places.

use super::names::Naming;
use super::spawn::Member;
use super::{Actor, Fact};
use crate::checked;
use crate::mover::{self, Mover, Said};
use crate::stdio::FLUSH;
use crate::survey::{self, Wishes};
use bproc_common::ghost::{Role, op};
use bproc_common::id::Pid;
use bproc_mover::wire::{Done, Line, Report, Send, Task};
use bproc_proto::Failure;
use bproc_proto::link::{self as wire, event};
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use bproc_sys::signal::SigInfo;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::TcpListener;

/// Looks for the record of a fork that was made just before the process stood still, a millisecond apart.
const LOOKS: u32 = 200;

/// One half of a move, on this node.
#[derive(Debug)]
pub struct Half {
    pub(super) r#move: wire::Move,
    pub(super) host_pid: i32,
    /// The process, its body or its stand-in.
    pub(super) handle: Option<PidFd>,
    pub(super) mover: Option<Mover>,
    /// Source: its streams.
    pub(super) streams: Vec<wire::ForwardedStream>,
    /// Source: what was sent ahead to its input is to come back.
    pub(super) recall: bool,
    /// Source: under which name its streams go on, if they wait there for what it wrote here.
    pub(super) successor: Vec<u8>,
    /// Source: where it goes, -1 for the master.
    pub(super) to: i32,
    /// Target: who it is.
    pub(super) spec: Option<Box<bproc_proto::SpawnSpec>>,
    /// Target: built, and told to go on. Source: allowed to go.
    pub(super) committed: bool,
    /// Source: the process dies with its mover.
    pub(super) leaving: bool,
    /// Source: it may not go, for what it wrote is not out.
    pub(super) unread: bool,
    /// Source: it waits for Decide.
    pub(super) in_doubt: bool,
    /// Source: its image is that of the process that is held by this number; 0: its own.
    pub(super) spread: u64,
    /// Target: where a node that gives the image is waited for, and its port.
    pub(super) giver: Option<(TcpListener, u16)>,
}

impl Half {
    /// Tokens and numbers of the inputs that the process takes along.
    fn inputs(&self) -> Vec<(Vec<u8>, i32)> {
        inputs(&self.streams, self.recall)
    }
}

fn inputs(streams: &[wire::ForwardedStream], recall: bool) -> Vec<(Vec<u8>, i32)> {
    let input = |s: &&wire::ForwardedStream| recall && s.input;
    let mut inputs: Vec<_> = streams.iter().filter(input).map(|s| (s.token.clone(), s.stream)).collect();
    inputs.dedup();
    inputs
}

pub(super) fn failed(number: i32, message: impl Into<String>) -> Failure {
    Failure { number, message: message.into() }
}

impl Actor {
    /// A process is going to go: what it writes to and reads. Whether it can go is looked at meanwhile.
    pub(super) fn survey(&mut self, order: wire::Survey) {
        let Some(r#move) = order.r#move else { return };
        let groups = self.look_before_move(r#move.pid);
        let host_pid = self.table.running(r#move.pid);
        if let Some(host) = host_pid {
            let (flags, files, target) = (order.flags, order.files, order.target);
            let rights = Some(order.rights.unwrap_or_default());
            let (init, kin) = (Some(self.space.record.init_pid), self.kernel.kin(self.ghost_exe));
            let survey = survey::begin(host, Wishes { flags, files, target, rights, ghost: None, init, kin });
            self.surveys.insert(r#move.pid, survey);
        }
        // Its ghost may get orphans when this one has gone.
        let subreaper = host_pid.and_then(|host| self.subreaper_above(host)).unwrap_or(0);
        let (facts, spawner, strict) = (self.facts.clone(), self.spawner.clone(), order.files == 0);
        tokio::spawn(async move {
            let result = match host_pid {
                None => Err(failed(libc::ESRCH, format!("process {} has ended", r#move.pid))),
                Some(host) => spawner.streams_of(host, strict, order.listed).await,
            };
            let (failure, (streams, stdio)) = match result {
                Ok(found) => (None, found),
                Err(failure) => (Some(failure), Default::default()),
            };
            let said = wire::Surveyed { r#move: Some(r#move), failure, streams, groups, subreaper };
            facts.send(Fact::Surveyed(said, stdio)).await.ok();
        });
    }

    pub(super) fn surveyed(&mut self, said: wire::Surveyed, stdio: Vec<Vec<u8>>) {
        match (said.r#move, &said.failure) {
            (Some(r#move), None) => {
                self.streams_of_moves.insert(r#move.pid, (said.streams.clone(), stdio));
            }
            (r#move, _) => drop(r#move.and_then(|m| self.surveys.remove(&m.pid))),
        }
        self.tell(event::Body::Surveyed(said));
    }

    pub(super) fn stand_in(&self) -> bproc_mover::wire::Program {
        mover::stand_in(&self.ghost, &super::space::socket_in(&self.dir), Role::Skeleton)
    }

    pub(super) fn start_half(
        &mut self,
        half: Half,
        first: Option<Task>,
        task: impl Future<Output = Result<(Task, Vec<OwnedFd>), Failure>> + std::marker::Send + 'static,
    ) {
        let r#move = half.r#move;
        let mover = Mover::start(&self.movers, first, task, self.facts.clone(), move |said| Fact::Mover(r#move, said));
        self.halves.insert(r#move.pid, Half { mover: Some(mover), ..half });
    }

    /// A process is to go.
    pub(super) fn depart(&mut self, order: wire::Depart) {
        let Some(r#move) = order.r#move else { return };
        let Some(host_pid) = self.table.running(r#move.pid) else {
            let failure = Some(failed(libc::ESRCH, format!("process {} has ended", r#move.pid)));
            let departed = wire::Departed { r#move: Some(r#move), failure, ..Default::default() };
            return self.tell(event::Body::Departed(departed));
        };
        let (streams, stdio) = self.streams_of_moves.remove(&r#move.pid).unwrap_or_default();
        let survey = self.surveys.remove(&r#move.pid);
        let task = Send {
            pid: host_pid,
            files: order.files,
            flags: order.flags,
            stand_in: Some(self.stand_in()),
            children: order.children.into_iter().map(|pid| self.host_of(pid)).collect(),
            // Only the process itself knows.
            ended: Vec::new(),
            halted: Vec::new(),
            stdio,
            spread: order.spread != 0,
            doubt: Some(self.doubt(r#move, order.to, inputs(&streams, order.recall))),
        };
        let (gate, address) = (self.gate.clone(), super::link::reachable(&order.address, &self.stdio_address));
        let leading = self.leading_back(host_pid, &streams);
        let going = async move {
            survey::passed(survey, r#move.pid).await?;
            leading.await?;
            let (conn, keys) = mover::dial_target(&gate, &address, mover::peer(order.to), &order.token).await?;
            Ok((Task::Line(Line { keys }), vec![conn]))
        };
        let handle = checked::member(host_pid, r#move.pid);
        let half = Half {
            r#move,
            host_pid,
            handle,
            mover: None,
            streams,
            recall: order.recall,
            successor: order.successor,
            to: order.to,
            spec: None,
            committed: false,
            leaving: false,
            unread: false,
            in_doubt: false,
            spread: order.spread,
            giver: None,
        };
        self.start_half(half, Some(Task::Send(task)), going);
    }

    /// From whom the image comes, which others get too, and to whom it goes on.
    pub(super) fn relay(&mut self, mut order: wire::Relay) {
        let Some(half) = order.r#move.and_then(|m| self.halves.get_mut(&m.pid).filter(|h| h.r#move == m)) else {
            return;
        };
        let Some(mover) = half.mover.clone() else { return };
        for next in &mut order.to {
            next.address = super::link::reachable(&next.address, &self.stdio_address);
        }
        let listener = half.giver.take().map(|(listener, _)| listener);
        tokio::spawn(crate::relay::join(mover, listener, self.gate.clone(), order));
    }

    /// Tells the mover of a move, if it is here.
    pub(super) fn tell_mover(&self, r#move: Option<wire::Move>, task: Task) {
        let half = r#move.and_then(|m| self.halves.get(&m.pid).filter(|h| h.r#move == m));
        if let Some(mover) = half.and_then(|h| h.mover.as_ref()) {
            mover.tell(task);
        }
    }

    pub(super) fn mover(&mut self, r#move: wire::Move, said: Said) {
        let pid = r#move.pid;
        let Some(half) = self.halves.get_mut(&pid).filter(|h| h.r#move == r#move) else { return };
        match said {
            // Of the master's own.
            Said::Listening(_) => {}
            Said::Report(Report::Frozen(changed)) => self.is_frozen(r#move, changed, 0),
            // Without a link the master would not know; what it does not know has not been.
            Said::Report(Report::Ready(_)) if self.to_master.is_none() => {
                self.tell_mover(Some(r#move), Task::Proceed(false));
            }
            Said::Report(Report::Ready(_)) => {
                half.committed = true;
                // From its first instruction on what it does is told as a process's, not as a skeleton's.
                if let Some(spec) = half.spec.take() {
                    self.table.arrive(&spec, half.host_pid);
                }
                self.family.left(pid);
                self.tell_mover(Some(r#move), Task::Proceed(true));
            }
            Said::Report(Report::Wanted(offset)) => self.feed(r#move, offset),
            // Holders are asked for by numbers of their own.
            Said::Report(Report::Held(_)) => {}
            Said::Report(Report::Committing(_)) => self.flush_before_going(r#move),
            Said::Report(Report::Leaving(_)) => half.leaving = true,
            Said::Report(Report::InDoubt(_)) => {
                half.in_doubt = true;
                let departed = wire::Departed { r#move: Some(r#move), in_doubt: true, ..Default::default() };
                self.tell(event::Body::Departed(departed));
            }
            // On a socket of its own.
            Said::Report(Report::Doubt(_)) => {}
            Said::Report(Report::Done(done)) => {
                // Who got no body leaves none.
                let no_stand_in = done.no_stand_in || half.host_pid == 0;
                mover::tell_of_loss(pid, &done);
                self.half_done(r#move, Done { no_stand_in, ..done });
            }
            Said::Lost => {
                let target = half.spec.is_some() || self.table.is_arriving(pid);
                let runs =
                    half.handle.as_ref().is_some_and(|handle| checked::runs(handle, half.host_pid, self.ghost_exe));
                let number = match target {
                    // It had let it go.
                    true if half.committed && runs => 0,
                    true => libc::ECANCELED,
                    // What was bound to it was killed with it.
                    false if half.leaving => 0,
                    false => libc::ECANCELED,
                };
                let message = "the mover was killed".into();
                self.half_done(r#move, Done { number, message, no_stand_in: true, ..Done::default() });
            }
        }
    }

    /// What it did before it stood still has been told once its children are known, and the ends of those that it has
    /// reaped. `changed`: the mover waits, since they are not those that the target knows of.
    pub(super) fn is_frozen(&mut self, r#move: wire::Move, changed: bool, looks: u32) {
        let Some(half) = self.halves.get(&r#move.pid).filter(|h| h.r#move == r#move) else { return };
        let children = Pid::new(half.host_pid).and_then(|p| Process::open(p).ok()).and_then(|p| p.children().ok());
        let look = |host: Pid| super::space::look_at(host, None, self.ghost_exe);
        let children: Vec<_> = children.unwrap_or_default().into_iter().filter_map(look).collect();
        let known = |pid: i32| self.table.is_here(pid) || self.family.get(pid).is_some();
        let all = children.iter().all(|c| known(c.pid)) && self.table.knows_ends_of_children(r#move.pid);
        if all || looks >= LOOKS {
            for reaped in self.table.sweep() {
                self.tell(reaped);
            }
            let children = children.into_iter().filter(|_| changed).map(super::children::relative);
            let frozen = wire::Frozen { r#move: Some(r#move), changed, children: children.collect() };
            return self.tell(event::Body::Frozen(frozen));
        }
        let facts = self.facts.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            facts.send(Fact::LookForChildren(r#move, changed, looks + 1)).await.ok();
        });
    }

    /// Pid on this machine of a process or skeleton; 0: nobody has the number.
    fn host_of(&self, pid: i32) -> i32 {
        let member = || self.family.get(pid).map(|m| m.host_pid);
        self.table.host_pid(pid).map(Pid::get).or_else(member).unwrap_or(0)
    }

    /// What it writes on from elsewhere must come after what it wrote here; what it has not read here it reads there.
    fn flush_before_going(&mut self, r#move: wire::Move) {
        let Some(half) = self.halves.get(&r#move.pid) else { return };
        // Since it was surveyed.
        if let Some(why) = survey::landlock(half.host_pid, &self.kernel.kin(self.ghost_exe)) {
            return self.tell_mover(Some(r#move), mover::stay(r#move.pid, &why));
        }
        let tokens: BTreeSet<Vec<u8>> = half.streams.iter().map(|s| s.token.clone()).collect();
        let (inputs, spawner, facts) = (half.inputs(), self.spawner.clone(), self.facts.clone());
        let (successor, home) = (half.successor.clone(), half.to < 0);
        tokio::spawn(async move {
            let all = spawner.iod.let_go(inputs, tokens, &successor, home);
            let flushed = tokio::time::timeout(2 * FLUSH, all).await.unwrap_or(false);
            facts.send(Fact::MayGo(r#move, flushed)).await.ok();
        });
    }

    pub(super) fn may_go(&mut self, r#move: wire::Move, flushed: bool) {
        let goes = flushed && self.to_master.is_some();
        let Some(half) = self.halves.get_mut(&r#move.pid).filter(|h| h.r#move == r#move) else { return };
        if goes {
            half.committed = true;
            // Its exec, and its end as this process, are nobody's business.
            self.table.leave(r#move.pid);
        }
        half.unread = !flushed;
        self.tell_mover(Some(r#move), Task::Proceed(goes));
    }

    fn half_done(&mut self, r#move: wire::Move, done: Done) {
        let Some(half) = self.halves.remove(&r#move.pid) else { return };
        let pid = r#move.pid;
        let target = half.spec.is_some() || self.table.is_arriving(pid);
        let failure = (done.number != 0).then(|| match half.unread {
            true => {
                let text =
                    format!("node {}: what process {pid} has written is not taken in time; try again", self.node);
                failed(libc::EAGAIN, text)
            }
            false => failed(done.number, done.message),
        });
        let runs_here = target == failure.is_none();
        let mut end = None;
        if runs_here {
            end = self.table.goes_on(pid);
            self.looks.born(pid);
        } else {
            let there = self.table.is_elsewhere(pid);
            if let Some(by) = there.held_by.and_then(|by| self.family.get(by)) {
                by.ghost.tell(op::REAP, pid.into(), 0, vec![]);
            }
            if !target && !done.no_stand_in && failure.is_none() {
                self.young.insert(pid);
                if let Some(status) = there.ended {
                    self.stand_in_ended(pid, status);
                }
            }
        }
        if let (false, None, Some(handle)) = (target, &failure, &half.handle) {
            // A process that was stopped leaves a stand-in that is; on a node nobody looks at that, and it must hear.
            let _ = handle.sigqueue(libc::SIGCONT, crate::ghosts::WAKE);
        }
        let stands = !done.no_stand_in || self.family.get(pid).is_some();
        let ended = self.ended_early.remove(&pid).filter(|_| !runs_here && stands);
        if !runs_here && !done.no_stand_in && self.family.get(pid).is_none() {
            self.unconnected.insert(pid);
        }
        // Until now nobody would have reaped its children.
        self.no_longer_named(Naming::room(Some(r#move)));
        if let Some(status) = ended {
            self.relative_ended(pid, status);
        }
        if !target {
            let (inputs, spawner, gone) = (half.inputs(), self.spawner.clone(), failure.is_none());
            tokio::spawn(async move {
                for (token, stream) in inputs {
                    spawner.iod.settle(&token, stream, gone).await;
                }
            });
        }
        if done.signal != 0 {
            // Somebody here sent it to what was the process no more.
            let siginfo = SigInfo::with(done.signal, libc::SI_KERNEL, 0, 0).0.to_vec();
            self.tell(event::Body::Signal(wire::Signal { pid, siginfo, ..Default::default() }));
        }
        let r#move = Some(r#move);
        let (frozen_ns, bytes) = (done.frozen_ns, done.bytes);
        self.tell(match target {
            true => event::Body::Arrived(wire::Arrived { r#move, failure }),
            false => event::Body::Departed(wire::Departed { r#move, failure, frozen_ns, bytes, ..Default::default() }),
        });
        match target && runs_here {
            true => {
                self.table.hand_over_zombies(pid);
                self.hand_over_kept(pid, half.host_pid);
                for told in self.table.untold_ends(pid) {
                    self.tell(told);
                }
            }
            false => self.reap_kept(pid),
        }
        if target && !runs_here {
            self.stand_in_takes_signals(pid);
        }
        if let Some((status, raw)) = end {
            self.end_after_output(pid, status, raw);
        }
        self.end_dead_leaders();
    }

    /// A process that has a skeleton here has ended: the skeleton ends the same way, for a parent that waits here.
    pub(super) fn relative_ended(&mut self, pid: i32, status: i32) {
        if pid <= 1 {
            return;
        }
        if self.is_named(pid) {
            // What is under way needs it in its place: as parent, or as leader of a group to be joined.
            self.ended_when_named.insert(pid, status);
            return;
        }
        let is_built = self.named.keys().any(|what| matches!(what, Naming::Room(body, _) if *body == pid));
        let half = self.halves.contains_key(&pid);
        // One for which room is made has yet to make its children: they would be init's.
        let skeleton = self.family.get(pid).filter(|_| !half && !is_built);
        if half || is_built || skeleton.is_some() || self.unconnected.contains(&pid) {
            // A mover may have it in hand, or about to connect: what it is told then is lost with its connection.
            self.ended_early.insert(pid, status);
        }
        let Some(skeleton) = skeleton else { return };
        if self.still_leads(pid, &skeleton) {
            self.ended_early.remove(&pid);
            self.dead_leaders.insert(pid, status);
            return;
        }
        self.end_skeleton(pid, &skeleton, status);
    }

    pub(super) fn end_skeleton(&mut self, pid: i32, skeleton: &Member, status: i32) {
        let host = Pid::new(skeleton.host_pid);
        let found = host.and_then(|h| super::space::look_at(h, None, self.ghost_exe));
        let is_stopped = found.as_ref().is_some_and(|f| f.state == b'T');
        if let Some(found) = found.filter(|f| self.table.runs(f.ppid)) {
            self.table.await_reaping(pid, &found);
        }
        super::children::end_like(skeleton, pid, status);
        self.end_halt(pid, skeleton, is_stopped);
    }
}
