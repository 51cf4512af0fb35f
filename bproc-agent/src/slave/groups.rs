//! Signals to whole groups.
//!
//! The master's order reaches all of a group here by one system call, those forked a moment before included. What waits behind it
//! sees nobody who has not got it. The skeletons in the group have got copies, which go nowhere: the master's order reaches
//! those that they stand for as well. Then the master sends the ghosts' own copies, to be noted.
//!
//! A process here that signals a group reaches who is here; the master is told, and has the others reached.

use super::Actor;
use super::delivery::{Note, UNCOUNTED};
use super::space::look_at;
use bproc_common::event::Event;
use bproc_common::id::Pid;
use bproc_core::group::{Copies, Mark};
use bproc_proto::link::{self as wire, event, order};
use bproc_sys::signal::SigInfo;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// In which ghosts tell a new master of what they told the one before.
const TELLING_AGAIN: Duration = Duration::from_secs(30);
/// Marks a group among those who get signals.
const GROUPS: i64 = 1 << 62;

/// What is known of them.
#[derive(Debug, Default)]
pub struct Groups {
    /// Orders that are being carried out, and those that came after them.
    pub under_way: BTreeSet<u64>,
    /// See there.
    pub after: VecDeque<(u64, Option<order::Body>)>,
    /// What skeletons got, which are told of without them.
    pub copies: Copies,
    /// What ghosts of processes here have copies of, by the master's orders.
    brought: Copies,
    /// The same, by those of the master before it.
    brought_before: Option<(Instant, Copies)>,
}

impl Groups {
    /// The master is another.
    pub fn begin_anew(&mut self) {
        let (_, mut brought) = self.brought_before.take().unwrap_or_else(|| (Instant::now(), Copies::default()));
        brought.append(std::mem::take(&mut self.brought));
        let copies = std::mem::take(&mut self.copies);
        *self = Groups { copies, brought_before: Some((Instant::now(), brought)), ..Groups::default() };
    }

    /// It is over.
    pub fn forget(&mut self, pid: i32) {
        self.brought.forget(pid);
        if let Some((_, brought)) = &mut self.brought_before {
            brought.forget(pid);
        }
    }
}

impl Actor {
    /// All of a group here, at once for the kernel.
    pub(super) fn signal_group(&mut self, number: u64, signal: wire::SignalGroup) {
        if signal.group <= 1 {
            return self.done(number);
        }
        for pid in signal.copied.iter().filter(|pid| self.table.is_here(**pid)) {
            self.groups.brought.expect(*pid, Mark::of(&signal.siginfo), ());
        }
        let receiver = GROUPS | i64::from(signal.group);
        let note = Note { receiver, key: -(signal.call as i64 & (UNCOUNTED - 1)).max(1) };
        self.groups.under_way.insert(number);
        self.deliver_soon(number, -signal.group, note, signal.siginfo);
    }

    /// It is delivered: what waited for it goes on.
    pub(super) fn group_done(&mut self, number: u64) {
        if self.groups.under_way.remove(&number) && self.groups.under_way.is_empty() {
            for (number, body) in std::mem::take(&mut self.groups.after) {
                self.order(number, body);
            }
        }
    }

    /// Has it come by an order to its group, so that it is to be noted only? A master that is new does not know of the orders of
    /// the one before.
    pub(super) fn is_brought(&mut self, signal: &wire::Signal) -> bool {
        if signal.call != 0 {
            self.groups.brought.take(signal.pid, &signal.siginfo);
            // One that stands in another group than its ghost has not got it.
            let found = self.table.running(signal.pid).and_then(Pid::new);
            let found = found.and_then(|host| look_at(host, None, self.ghost_exe));
            return found.is_none_or(|found| found.pgid == signal.group || found.state == b'Z');
        }
        match &mut self.groups.brought_before {
            Some((since, _)) if since.elapsed() > TELLING_AGAIN => {
                self.groups.brought_before = None;
                false
            }
            Some((_, brought)) if signal.ghost_number > 0 => brought.take(signal.pid, &signal.siginfo).is_some(),
            _ => false,
        }
    }

    /// A process here has signalled a whole group, of which a skeleton is a member. The master is told at once, before the end
    /// that the sender may come to by it.
    pub(super) fn group_signalled(&mut self, event: &Event) {
        let (pid, mark) = (event.pid as i32, Mark::of_record(event));
        if self.family.get(pid).is_none() {
            return;
        }
        if event.queued != 0 {
            self.groups.copies.expect(pid, mark, ());
        }
        if !self.table.runs(mark.sender) {
            // The master's order, which reaches the one that it stands for as well.
            return;
        }
        let siginfo = SigInfo::with(mark.signal, mark.code, mark.sender, event.arg3).0.to_vec();
        let signal = wire::Signal { pid, ghost_number: 0, siginfo, group: event.pgid as i32, call: event.call };
        self.tell(event::Body::Signal(signal));
    }
}
