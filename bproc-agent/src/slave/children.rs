//! Children of a process that comes: their stand-ins are there before it is, in the state in which it knows them. One that has
//! ended is a zombie, one whose stop it was told of is stopped: what SIGCHLD that makes, the stand-in of the parent takes.

use super::names::Naming;
use super::space::Found;
use super::spawn::{Member, Spawner};
use super::table::Ended;
use super::{Actor, Fact};
use crate::checked;
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_common::wait::Status;
use bproc_proto::link::{self as wire, event};
use bproc_proto::{Failure, Relative, SpawnSpec};
use bproc_sys::process::{Process, Stat};
use std::collections::BTreeSet;
use std::time::Duration;

/// Looks for what is going to happen at once, a millisecond apart.
const LOOKS: u32 = 2000;

/// As others are told of a child.
pub fn relative(found: Found) -> Relative {
    let Found { pid, ppid, pgid, sid, uid, gid, comm, state, status, .. } = found;
    crate::kin::with_state(
        Relative { pid, ppid, pgid, sid, uid, gid, comm, ..Relative::default() },
        state,
        status,
        state == b'T',
    )
}

/// A skeleton ends as its process has.
pub fn end_like(skeleton: &Member, pid: i32, status: i32) {
    match Status::from_raw(status) {
        Status::Killed { signal: 9, .. } => {
            if let Some(handle) = checked::member(skeleton.host_pid, pid) {
                let _ = handle.send_signal(libc::SIGKILL);
            }
        }
        Status::Killed { signal, .. } => skeleton.ghost.tell(op::DIE, signal.into(), 0, vec![]),
        Status::Exited(code) => skeleton.ghost.tell(op::EXIT, code.into(), 0, vec![]),
        _ => skeleton.ghost.tell(op::EXIT, 0, 0, vec![]),
    }
}

fn stat(host: i32) -> Option<Stat> {
    Process::open(Pid::new(host)?).ok()?.stat().ok()
}

/// Waits until a process is so; false when it does not become so.
async fn becomes(host: i32, so: impl Fn(Option<&Stat>) -> bool) -> bool {
    for _ in 0..LOOKS {
        if so(stat(host).as_ref()) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    false
}

/// Children of a process here, by their numbers in the space.
fn children(host: i32) -> Vec<(i32, Pid)> {
    let inner = |host: Pid| Some((*Process::open(host).ok()?.status().ok()?.ns_pids.last()?, host));
    let all = Pid::new(host).and_then(|p| Process::open(p).ok()).and_then(|p| p.children().ok());
    all.unwrap_or_default().into_iter().filter_map(inner).collect()
}

impl Actor {
    /// A process that is going to come has these children now.
    pub(super) fn adopt_children(&mut self, order: wire::Children) {
        let Some(r#move) = order.r#move else { return };
        // As those that it was known to have before.
        let named = self.named.entry(Naming::room(Some(r#move))).or_default();
        named.extend(order.children.iter().map(|c| c.pid));
        self.expect_children(r#move.pid, &order.children);
        let natives = order.children.iter().map(|c| c.pid).filter(|pid| self.table.is_here(*pid)).collect();
        let (spawner, facts) = (self.spawner.clone(), self.facts.clone());
        tokio::spawn(async move {
            let result = spawner.make_children(r#move.pid, &order.children, &natives).await;
            let result = match result {
                Ok(()) => spawner.end_others(r#move.pid, &order.children).await,
                failed => failed,
            };
            facts.send(Fact::Adopted(r#move, result)).await.ok();
        });
    }

    pub(super) fn adopted(&mut self, r#move: wire::Move, result: Result<(), Failure>) {
        self.tell(event::Body::Adopted(wire::Adopted { r#move: Some(r#move), failure: result.err() }));
    }

    /// One of ours tells of a child.
    pub(super) fn child(&mut self, by: Pid, pid: Pid, status: i32, rusage: Vec<u8>) {
        tracing::trace!(%by, %pid, status, "child");
        if !bproc_common::wait::Status::from_raw(status).is_end() {
            // Stops and continues are told by the kernel, for all processes alike.
            return;
        }
        if self.is_kept(pid.get()) {
            return;
        }
        self.stand_in_ended(pid.get(), status);
        match self.table.ended(pid.get(), by.get(), status, &rusage) {
            Ended::Report => self.end_after_output(pid.get(), status, rusage),
            Ended::Known => {}
            Ended::Reap => {
                if let Some(parent) = self.family.get(by.get()) {
                    parent.ghost.tell(op::REAP, pid.get().into(), 0, vec![]);
                }
                self.end_dead_leaders();
            }
        }
    }

    /// The end of a process was replayed at its ghost: the zombie that kept its number may go.
    pub(super) fn reap(&mut self, pid: i32) {
        let Some(by) = self.table.forget(pid) else { return };
        self.groups.forget(pid);
        self.end_dead_leaders();
        match self.kept.get_mut(&by) {
            // It is on its way here, and has not waited for it yet.
            Some(kept) => drop(kept.insert(pid)),
            None => self.have_reaped(by, pid),
        }
    }

    /// Has a zombie reaped by `parent`, or by whoever it was left to, init or a subreaper's stand-in: that has told of it already,
    /// when it was not to be reaped yet. A stand-in that is not connected tells of its zombies when it is.
    fn have_reaped(&self, parent: i32, zombie: i32) {
        let family = self.family.clone();
        let asked = family.get(parent).map(|parent| parent.ghost.ask(op::REAP, zombie.into(), 0, vec![], vec![]));
        tokio::spawn(async move {
            let mut reaped = match asked {
                Some(answer) => answer.await.is_ok_and(|reaped| reaped > 0),
                None => false,
            };
            for heir in family.heirs() {
                if !reaped {
                    let answer = heir.ghost.call(op::REAP, zombie.into(), 0, vec![]).await;
                    reaped = answer.is_ok_and(|reaped| reaped > 0);
                }
            }
        });
    }

    /// One that has ended elsewhere, which is told next, has left children: its stand-in, as long as it is there, makes theirs, and
    /// leaves them to who gets them here. Where only those above it are it is made for that.
    pub(super) fn make_orphans(&mut self, order: wire::Orphans) {
        let children: Vec<Relative> = order.children.into_iter().filter(|c| !self.table.is_here(c.pid)).collect();
        let parent = order.line.first().map(|r| (r.pid, r.pgid, r.sid));
        let stands = self.family.get(order.of).is_some() || self.unconnected.contains(&order.of);
        // The child of one that runs here, without a stand-in: it has ended for that one.
        let over = |(ppid, ..): (i32, i32, i32)| self.table.is_here(ppid);
        if children.is_empty() || self.table.is_here(order.of) || (!stands && parent.is_none_or(over)) {
            return;
        }
        let (ppid, pgid, sid) = parent.unwrap_or_default();
        let spec = SpawnSpec { pid: order.of, ppid, pgid, sid, relatives: order.line, ..SpawnSpec::default() };
        self.name(Naming::Orphans(order.of), &spec, &children);
        self.named.entry(Naming::Orphans(order.of)).or_default().insert(order.of);
        let natives = self.natives(&spec);
        let (spawner, facts) = (self.spawner.clone(), self.facts.clone());
        tokio::spawn(async move {
            let made = match spawner.family.get(spec.pid) {
                Some(_) => Ok(()),
                // Or it is about to connect.
                None => spawner.make(&spec, natives).await.map(drop),
            };
            let result = match made {
                Ok(()) => spawner.make_children(spec.pid, &children, &BTreeSet::new()).await,
                failed => failed,
            };
            if let Err(failure) = result {
                tracing::warn!(pid = spec.pid, why = %failure.message, "orphans of a process without stand-ins");
            }
            facts.send(Fact::Orphaned(spec.pid)).await.ok();
        });
    }

    /// A process that comes has these children: zombies are kept for it, and stopped ones stay so.
    pub(super) fn expect_children(&mut self, parent: i32, children: &[Relative]) {
        let elsewhere = |c: &&Relative| !self.table.is_here(c.pid);
        let before = self.kept.remove(&parent).unwrap_or_default();
        // It may not know yet of those that ended here.
        let over = |c: &&Relative| c.ended.is_some() || before.contains(&c.pid);
        let ended = children.iter().filter(over).filter(elsewhere).map(|c| c.pid).collect();
        let halted: Vec<i32> = children.iter().filter(|c| c.halted).filter(elsewhere).map(|c| c.pid).collect();
        self.kept.insert(parent, ended);
        for child in children {
            match halted.contains(&child.pid) {
                true => self.is_halted(child.pid, libc::SIGSTOP),
                false => self.forget_halt(child.pid),
            }
        }
        // It has waited for these since.
        let now = self.kept.get(&parent);
        let reaped: Vec<i32> = before.into_iter().filter(|pid| now.is_none_or(|now| !now.contains(pid))).collect();
        self.tell_reap(parent, &reaped);
    }

    /// Is it a zombie for a parent that is going to come?
    pub(super) fn is_kept(&self, pid: i32) -> bool {
        self.kept.values().any(|kept| kept.contains(&pid))
    }

    /// The parent has not come: its stand-in reaps them. One that is not connected tells of them when it is.
    pub(super) fn reap_kept(&mut self, parent: i32) {
        let kept: Vec<i32> = self.kept.remove(&parent).unwrap_or_default().into_iter().collect();
        self.tell_reap(parent, &kept);
    }

    fn tell_reap(&self, parent: i32, children: &[i32]) {
        for child in children {
            self.have_reaped(parent, *child);
        }
    }

    /// The parent runs here, and waits for them itself: that is to be told.
    pub(super) fn hand_over_kept(&mut self, parent: i32, host_pid: i32) {
        let kept = self.kept.remove(&parent).unwrap_or_default();
        if kept.is_empty() {
            return;
        }
        let there = children(host_pid);
        for pid in kept {
            let host = there.iter().find(|(child, _)| *child == pid).map(|(_, host)| *host);
            match host.and_then(|host| super::space::look_at(host, None, self.ghost_exe)) {
                Some(found) => self.table.await_reaping(pid, &found),
                None => self.tell(event::Body::Reaped(pid)),
            }
        }
    }
}

impl Spawner {
    /// Skeletons of a process's children that are elsewhere.
    pub(super) async fn make_children(
        &self,
        parent: i32,
        children: &[Relative],
        natives: &BTreeSet<i32>,
    ) -> Result<(), Failure> {
        for child in children.iter().filter(|c| !natives.contains(&c.pid)) {
            let skeleton = match self.family.get(child.pid) {
                Some(skeleton) => skeleton,
                // As it was told before, or it has ended here.
                None if self.is_zombie(parent, child.pid) => continue,
                None => self.make_child(parent, child).await?,
            };
            if let Some(status) = child.ended {
                end_like(&skeleton, child.pid, status);
                let ended = |stat: Option<&Stat>| stat.is_none_or(|s| matches!(s.state, b'Z' | b'X'));
                becomes(skeleton.host_pid, ended).await;
                self.answer_of(parent).await;
                continue;
            }
            let stopped = stat(skeleton.host_pid).is_some_and(|s| s.state == b'T');
            if stopped && !child.halted {
                super::halts::wake(&skeleton, child.pid, 0);
            } else if child.halted && !stopped {
                // Its parent's stand-in looks when it is stopped, and so has been told.
                skeleton.ghost.tell(op::STOP, libc::SIGSTOP.into(), 0, vec![]);
                let told = |stat: Option<&Stat>| stat.is_none_or(|s| s.state == b'T' && s.exit_code == 0);
                becomes(skeleton.host_pid, told).await;
                self.answer_of(parent).await;
            }
        }
        Ok(())
    }

    /// Returns when a stand-in has read what signals it had.
    async fn answer_of(&self, pid: i32) {
        if let Some(stand_in) = self.family.get(pid) {
            // It is no child of itself.
            let _ = stand_in.ghost.call(op::REAP, pid.into(), 0, vec![]).await;
        }
    }

    fn is_zombie(&self, parent: i32, child: i32) -> bool {
        let Some(stand_in) = self.family.get(parent) else { return false };
        let host = children(stand_in.host_pid).into_iter().find(|(pid, _)| *pid == child);
        host.and_then(|(_, host)| stat(host.get())).is_some_and(|stat| stat.state == b'Z')
    }

    async fn make_child(&self, parent: i32, child: &Relative) -> Result<Member, Failure> {
        let _one_at_a_time = self.family.making().await;
        if let Some(skeleton) = self.family.get(child.pid) {
            // It comes here, too, and room was made for it meanwhile.
            return Ok(skeleton);
        }
        let skeleton = self.family.clone_when_free(parent, child.pid, true).await?.member;
        skeleton.ghost.tell(op::CREDS, child.uid.into(), child.gid.into(), vec![]);
        skeleton.ghost.tell(op::NAME, 0, 0, child.comm.clone());
        // A session or group that is not here cannot be joined; the number stays with the others.
        let (op, pgid) = if child.sid == child.pid { (op::SETSID, 0) } else { (op::SETPGID, child.pgid) };
        let _ = self.settle(child.pid, op, pgid).await;
        Ok(skeleton)
    }

    /// Skeletons of children that a process has no more are gone before it comes, and reaped.
    async fn end_others(&self, parent: i32, wanted: &[Relative]) -> Result<(), Failure> {
        let Some(stand_in) = self.family.get(parent) else { return Ok(()) };
        let others =
            || children(stand_in.host_pid).into_iter().filter(|(pid, _)| !wanted.iter().any(|c| c.pid == *pid));
        let gone = async {
            loop {
                let others: Vec<(i32, Pid)> = others().collect();
                if others.is_empty() {
                    return;
                }
                for (pid, skeleton) in others.iter().filter_map(|(pid, _)| Some((*pid, self.family.get(*pid)?))) {
                    skeleton.ghost.tell(op::EXIT, 0, 0, vec![]);
                    if stat(skeleton.host_pid).is_some_and(|s| s.state == b'T') {
                        super::halts::wake(&skeleton, pid, u32::MAX);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), gone).await.map_err(|_| {
            let message = format!("node {}: children that process {parent} has no more do not go", self.node);
            Failure { number: libc::EAGAIN, message }
        })
    }
}
