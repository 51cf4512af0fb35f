//! Signals go out one after another, whoever sends them: a SIGCONT by the skeleton of its sender must not overtake a
//! SIGSTOP by init. As long as one and the same sends, it is not waited for its answers.

use super::Fact;
use super::spawn::Family;
use crate::ghosts::Ghost;
use bproc_common::ghost::{Msg, op};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// A signal that is to be sent.
pub struct Delivery {
    /// The order that it carries out.
    pub order: u64,
    /// Who sends it.
    pub by: Ghost,
    /// To whom.
    pub pid: i32,
    /// `siginfo_t`.
    pub siginfo: Vec<u8>,
    /// How it is noted in the space.
    pub note: Note,
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
}

fn ask(what: &Delivery, note: Note) -> oneshot::Receiver<i64> {
    let msg = Msg { op: op::SIGNAL, a: what.pid.into(), c: note.receiver, d: note.key, ..Msg::default() };
    what.by.ask_all(msg, what.siginfo.clone())
}

/// Sends what comes, and tells when each is done. Ends with its senders.
pub async fn serve(mut inbox: mpsc::UnboundedReceiver<Delivery>, family: Arc<Family>, facts: mpsc::Sender<Fact>) {
    let mut by = 0;
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
                let answer = ask(&next, next.note);
                open.push_back(Open { asked: next, answer });
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
    if let (None, Some(init)) = (answer, family.get(1).filter(|init| init.ghost.id() != by.id())) {
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
    facts.send(Fact::Done(order)).await.ok();
}
