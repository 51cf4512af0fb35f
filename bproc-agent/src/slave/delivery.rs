//! Signals go out one after another, whoever sends them: a SIGCONT by the skeleton of its sender must not overtake a
//! SIGSTOP by init. As long as one and the same sends, it is not waited for its answers.

use super::Fact;
use super::spawn::Family;
use crate::ghosts::Ghost;
use bproc_common::ghost::op;
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
}

struct Open {
    order: u64,
    by: u64,
    pid: i32,
    siginfo: Vec<u8>,
    answer: oneshot::Receiver<i64>,
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
                    finish(&done, answer, &family, &facts).await;
                }
            }
            next = inbox.recv() => {
                let Some(next) = next else { return };
                if next.by.id() != by {
                    by = next.by.id();
                    while let Some(mut before) = open.pop_front() {
                        let answer = (&mut before.answer).await.ok();
                        finish(&before, answer, &family, &facts).await;
                    }
                }
                let Delivery { order, by, pid, siginfo } = next;
                let answer = by.ask(op::SIGNAL, pid.into(), 0, siginfo.clone(), vec![]);
                open.push_back(Open { order, by: by.id(), pid, siginfo, answer });
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

/// What its sender's skeleton did not live to say, init does. (A skeleton that is told to go answers first all that it
/// was told before: without an answer it has not sent the signal, but where it was killed in that very moment.)
async fn finish(done: &Open, mut answer: Option<i64>, family: &Family, facts: &mpsc::Sender<Fact>) {
    if let (None, Some(init)) = (answer, family.get(1).filter(|init| init.ghost.id() != done.by)) {
        answer = init.ghost.ask(op::SIGNAL, done.pid.into(), 0, done.siginfo.clone(), vec![]).await.ok();
    }
    match answer {
        Some(value) if value < 0 && value != -i64::from(libc::ESRCH) => {
            tracing::warn!(pid = done.pid, errno = -value, "a signal could not be delivered");
        }
        Some(_) => {}
        None => tracing::warn!(pid = done.pid, "who was to send a signal went away in the middle of it"),
    }
    facts.send(Fact::Done(done.order)).await.ok();
}
