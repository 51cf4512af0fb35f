//! Children that are stopped elsewhere, while their parent runs here: their stand-ins are stopped as well, so that the parent
//! is told (`WUNTRACED`, `WCONTINUED`) and sees them so.
//!
//! A stopped stand-in does nothing for anybody. So only those stop whose parents are here in person, and who is needed to make
//! others is woken first. What a parent does itself (SIGSTOP, SIGCONT) acts on the stand-in at once; the process follows, and
//! tells of it, so that in the end both are the same.

use super::Actor;
use super::space::look_at;
use super::spawn::{Family, Member};
use crate::checked;
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_proto::SpawnSpec;
use bproc_proto::link as wire;
use bproc_sys::process::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Looks whether a stand-in has stopped, a millisecond apart.
const LOOKS: u32 = 200;

/// What a stand-in is to do.
#[derive(Debug)]
pub struct Halt {
    pid: i32,
    /// Stop by it; none: go on.
    signal: Option<i32>,
    /// Among all of them.
    number: u32,
}

/// Who is to be stopped, and who has been told.
#[derive(Debug)]
pub struct Halts {
    wanted: BTreeMap<i32, i32>,
    told: BTreeSet<i32>,
    number: u32,
    queue: mpsc::UnboundedSender<Halt>,
}

impl Halts {
    /// Nobody yet; a task of its own tells the family, one after another: going on must not overtake stopping.
    pub fn new(family: Arc<Family>) -> Halts {
        let (queue, inbox) = mpsc::unbounded_channel();
        tokio::spawn(serve(inbox, family));
        Halts { wanted: BTreeMap::new(), told: BTreeSet::new(), number: 0, queue }
    }

    /// Was it told to stop?
    pub fn has_told(&self, pid: i32) -> bool {
        self.told.contains(&pid)
    }

    /// Counts one more.
    fn next(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1).max(1);
        self.number
    }

    fn tell(&mut self, pid: i32, signal: Option<i32>) {
        let number = self.next();
        // The task ends with this.
        let _ = self.queue.send(Halt { pid, signal, number });
    }
}

async fn serve(mut inbox: mpsc::UnboundedReceiver<Halt>, family: Arc<Family>) {
    while let Some(Halt { pid, signal, number }) = inbox.recv().await {
        let Some(member) = family.get(pid) else { continue };
        match signal {
            Some(signal) => stop(&member, pid, signal, number).await,
            None => wake(&member, pid, number),
        }
    }
}

/// Returns when it has stopped. One that does not read, for it is stopped already, passes over what it reads after it was
/// woken.
async fn stop(member: &Member, pid: i32, signal: i32, number: u32) {
    let mut answer = member.ghost.ask(op::STOP, signal.into(), number.into(), vec![], vec![]);
    for look in 0..LOOKS {
        let state = Pid::new(member.host_pid).and_then(|p| Process::open(p).ok()).and_then(|p| p.stat().ok());
        if state.is_none_or(|s| matches!(s.state, b'T' | b'Z' | b'X')) {
            return;
        }
        // Terminals' signals do not stop those of a group that is an orphan here.
        if look > LOOKS / 2
            && signal != libc::SIGSTOP
            && answer.try_recv().is_ok()
            && let Some(handle) = checked::member(member.host_pid, pid)
        {
            let _ = handle.send_signal(libc::SIGSTOP);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Has a stand-in go on.
pub fn wake(member: &Member, pid: i32, number: u32) {
    if let Some(handle) = checked::member(member.host_pid, pid) {
        let _ = handle.sigqueue(libc::SIGCONT, crate::ghosts::WAKE | u64::from(number) << 32);
    }
}

impl Actor {
    /// The master tells that a child of a process here has stopped elsewhere, or goes on.
    pub(super) fn relative_stopped(&mut self, order: wire::RelativeStopped) {
        match order.signal {
            0 => drop(self.halts.wanted.remove(&order.pid)),
            signal => drop(self.halts.wanted.insert(order.pid, signal)),
        }
        self.apply_halts();
    }

    /// It is stopped as it should be.
    pub(super) fn is_halted(&mut self, pid: i32, signal: i32) {
        self.halts.wanted.insert(pid, signal);
        self.halts.told.insert(pid);
    }

    /// It has been told to end, and is to read that.
    pub(super) fn end_halt(&mut self, pid: i32, skeleton: &Member, is_stopped: bool) {
        if self.halts.told.contains(&pid) || is_stopped {
            wake(skeleton, pid, self.halts.next());
        }
        self.forget_halt(pid);
    }

    /// Everybody is gone.
    pub(super) fn forget_halts(&mut self) {
        self.halts.wanted.clear();
        self.halts.told.clear();
    }

    /// It goes on, or is no stand-in any more.
    pub(super) fn forget_halt(&mut self, pid: i32) {
        self.halts.wanted.remove(&pid);
        self.halts.told.remove(&pid);
    }

    /// Somebody here has sent SIGSTOP to a stand-in. Is that as it should be, since its parent is here to see it?
    pub(super) fn halted_by_kin(&mut self, pid: i32, skeleton: &Member) -> bool {
        let seen = self.has_parent_here(skeleton);
        if seen {
            self.is_halted(pid, libc::SIGSTOP);
        }
        seen
    }

    fn has_parent_here(&self, skeleton: &Member) -> bool {
        let found = Pid::new(skeleton.host_pid).and_then(|host| look_at(host, None, self.ghost_exe));
        found.is_some_and(|found| self.table.runs(found.ppid))
    }

    /// What is going to be made needs these.
    pub(super) fn rouse_named(&mut self, spec: &SpawnSpec) {
        // This one is itself again, stopped or not.
        self.halts.wanted.remove(&spec.pid);
        let named = spec.relatives.iter().map(|r| r.pid).chain([spec.pid]);
        for pid in named.collect::<Vec<_>>() {
            if self.halts.told.remove(&pid)
                && let Some(member) = self.family.get(pid)
            {
                wake(&member, pid, self.halts.next());
            }
        }
    }

    /// Tells those who should stop, or should not any more. Those whom a start or a move names wait for its end.
    pub(super) fn apply_halts(&mut self) {
        if self.halts.wanted.is_empty() && self.halts.told.is_empty() {
            return;
        }
        let all: BTreeSet<i32> = self.halts.wanted.keys().chain(&self.halts.told).copied().collect();
        for pid in all {
            if self.is_named(pid) || self.halves.contains_key(&pid) {
                continue;
            }
            let Some(member) = self.family.get(pid) else {
                self.halts.told.remove(&pid);
                continue;
            };
            let signal = self.halts.wanted.get(&pid).copied().filter(|_| self.has_parent_here(&member));
            match (signal, self.halts.told.contains(&pid)) {
                (Some(signal), false) => {
                    self.halts.told.insert(pid);
                    self.halts.tell(pid, Some(signal));
                }
                (None, true) => {
                    self.halts.told.remove(&pid);
                    self.halts.tell(pid, None);
                }
                _ => {}
            }
        }
    }
}
