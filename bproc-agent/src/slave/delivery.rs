//! Signals go out one after another, whoever sends them: a SIGCONT by the skeleton of its sender must not overtake a
//! SIGSTOP by init. As long as one and the same sends, it is not waited for its answers.

use super::spawn::Family;
use super::{Actor, COUNTS, Fact, space};
use crate::ghosts::Ghost;
use bproc_common::ghost::{Msg, op};
use bproc_common::id::Pid;
use bproc_proto::link::{self as wire, event};
use bproc_sys::queue_room::{QueueRoom, QueueRooms};
use bproc_sys::signal::SigInfo;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Marks keys of signals that have no number of their ghost.
pub(super) const UNCOUNTED: i64 = 1 << 62;

/// A signal that is to be sent.
pub struct Delivery {
    /// The order that it carries out.
    pub order: u64,
    /// Who sends it.
    pub by: Ghost,
    /// To whom; negative: to this whole group.
    pub pid: i32,
    /// `siginfo_t`.
    pub siginfo: Vec<u8>,
    /// How it is noted in the space.
    pub note: Note,
    /// Number of its receiver on the machine, where that is one process.
    pub host: Option<Pid>,
}

/// How a signal is noted in the space, for an agent that takes over from this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// A number that its receiver shares with no other process, also not with a former one of the same pid.
    pub receiver: i64,
    /// Tells the signals of one receiver apart; 0: it is not noted. Negative: a former agent may have sent it.
    pub key: i64,
}

struct Open {
    asked: Delivery,
    answer: oneshot::Receiver<i64>,
    /// Who sent it has been told that it is queued.
    room: Option<Arc<QueueRoom>>,
}

fn ask(what: &Delivery, note: Note) -> oneshot::Receiver<i64> {
    let msg = Msg { op: op::SIGNAL, a: what.pid.into(), c: note.receiver, d: note.key, ..Msg::default() };
    what.by.ask_all(msg, what.siginfo.clone())
}

/// Sends what comes, and tells when each is done. Ends with its senders.
pub async fn serve(mut inbox: mpsc::UnboundedReceiver<Delivery>, family: Arc<Family>, facts: mpsc::Sender<Fact>) {
    let (mut by, mut rooms) = (0, QueueRooms::default());
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            answer = first(&mut open) => {
                if let Some(done) = open.pop_front() {
                    finish(done, answer, &family, &facts).await;
                }
            }
            next = inbox.recv() => {
                let Some(next) = next else { return };
                if next.by.id() != by {
                    by = next.by.id();
                    while let Some(mut before) = open.pop_front() {
                        let answer = (&mut before.answer).await.ok();
                        finish(before, answer, &family, &facts).await;
                    }
                }
                let info = SigInfo(*next.siginfo.first_chunk().unwrap_or(&[0; 128]));
                let room = next.host.and_then(|receiver| rooms.for_signal(&info, receiver, open.len()));
                let answer = ask(&next, next.note);
                open.push_back(Open { asked: next, answer, room });
            }
        }
    }
}

/// The answer to the oldest; never, while there is none.
async fn first(open: &mut VecDeque<Open>) -> Option<i64> {
    match open.front_mut() {
        Some(oldest) => (&mut oldest.answer).await.ok(),
        None => std::future::pending().await,
    }
}

/// What its sender's skeleton did not live to say, init does, if that one did not.
async fn finish(done: Open, mut answer: Option<i64>, family: &Family, facts: &mpsc::Sender<Fact>) {
    let Delivery { order, pid, note, ref by, .. } = done.asked;
    // One that has become another user since does not send to groups.
    let is_undone = answer.is_none_or(|value| value == -i64::from(libc::EXDEV));
    if let (true, Some(init)) = (is_undone, family.get(1).filter(|init| init.ghost.id() != by.id())) {
        let again = Note { key: -note.key.abs(), ..note };
        answer = ask(&Delivery { by: init.ghost, ..done.asked }, again).await.ok();
    }
    match answer {
        Some(value) if value < 0 && value != -i64::from(libc::ESRCH) => {
            tracing::warn!(pid, errno = -value, "a signal could not be delivered");
        }
        Some(_) => {}
        None => tracing::warn!(pid, "who was to send a signal went away in the middle of it"),
    }
    // Its limit is again what it was before it may go elsewhere.
    drop(done.room);
    facts.send(Fact::Done(order)).await.ok();
}

impl Actor {
    pub(super) fn signal(&mut self, number: u64, signal: wire::Signal) {
        if self.table.is_starting(signal.pid) {
            // Nobody is there to get it, or one that passes it on to where it comes from.
            return self.for_starting.entry(signal.pid).or_default().push((number, signal));
        }
        if signal.pid <= 1 || !self.table.is_new_signal(signal.pid, signal.ghost_number) {
            tracing::debug!(pid = signal.pid, number = signal.ghost_number, "a signal told before, or to nobody");
            self.answer_continue(&signal);
            return self.done(number);
        }
        // What its ghost did not count is told apart by the order.
        let key = match signal.ghost_number {
            0 => UNCOUNTED | (((self.space.record.master_epoch << 32) ^ (number & !COUNTS)) as i64 & (UNCOUNTED - 1)),
            counted => i64::from(counted),
        };
        let note = self.table.note(signal.pid, key);
        let siginfo = match self.is_brought(&signal) {
            true => SigInfo::with(0, libc::SI_QUEUE, 0, 0).0.to_vec(),
            false => signal.siginfo,
        };
        self.deliver_soon(number, signal.pid, note, siginfo);
    }

    pub(super) fn deliver_soon(&mut self, number: u64, to: i32, note: Note, siginfo: Vec<u8>) {
        match self.init.clone() {
            Some(init) => {
                let by = self.sender(&siginfo).unwrap_or(init);
                self.deliver(by, number, to, note, siginfo);
            }
            None => self.for_init.push((number, to, note, siginfo)),
        }
    }

    /// The master counts the answers to each SIGCONT, also to one that was told before.
    fn answer_continue(&mut self, signal: &wire::Signal) {
        let is_continue = SigInfo(*signal.siginfo.first_chunk().unwrap_or(&[0; 128])).signo() == libc::SIGCONT;
        let Some(host) = self.table.running(signal.pid).filter(|_| is_continue).and_then(Pid::new) else { return };
        self.tell(event::Body::Continued(signal.pid));
        if space::look_at(host, None, self.ghost_exe).is_some_and(|found| found.state == b'T') {
            self.tell(event::Body::Stopped(wire::Stopped { pid: signal.pid, signal: libc::SIGSTOP }));
        }
    }

    /// The skeleton of whoever sent a signal: what it sends looks as from the sender itself. (A kill that says SI_USER or
    /// SI_TKILL can come from nobody else; init makes a process for a moment where there is no skeleton.)
    fn sender(&self, siginfo: &[u8]) -> Option<Ghost> {
        let info = SigInfo(*siginfo.first_chunk()?);
        let acts = |pid: i32| pid > 1 && !self.halts.has_told(pid);
        self.family.get(info.pid()).filter(|_| info.code() <= 0 && acts(info.pid())).map(|m| m.ghost)
    }

    pub(super) fn deliver(&self, by: Ghost, order: u64, pid: i32, note: Note, siginfo: Vec<u8>) {
        // It ends with the agent only.
        let host = self.table.running(pid).and_then(Pid::new);
        let _ = self.deliveries.send(Delivery { order, by, pid, siginfo, note, host });
    }
}
