//! Signals go out one after another, whoever sends them: a SIGCONT by the skeleton of its sender must not overtake a
//! SIGSTOP by init. As long as one and the same sends, it is not waited for its answers.

use super::Fact;
use crate::ghosts::Ghost;
use bproc_common::ghost::op;
use std::collections::VecDeque;
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
    pid: i32,
    answer: oneshot::Receiver<i64>,
}

/// Sends what comes, and tells when each is done. Ends with its senders.
pub async fn serve(mut inbox: mpsc::UnboundedReceiver<Delivery>, facts: mpsc::Sender<Fact>) {
    let mut by = 0;
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            answer = first(&mut open) => {
                if let Some(done) = open.pop_front() {
                    finish(&done, answer, &facts).await;
                }
            }
            next = inbox.recv() => {
                let Some(next) = next else { return };
                if next.by.id() != by {
                    by = next.by.id();
                    while let Some(mut before) = open.pop_front() {
                        let answer = (&mut before.answer).await.ok();
                        finish(&before, answer, &facts).await;
                    }
                }
                let answer = next.by.ask(op::SIGNAL, next.pid.into(), 0, next.siginfo, vec![]);
                open.push_back(Open { order: next.order, pid: next.pid, answer });
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

async fn finish(done: &Open, answer: Option<i64>, facts: &mpsc::Sender<Fact>) {
    match answer {
        Some(value) if value < 0 && value != -i64::from(libc::ESRCH) => {
            tracing::warn!(pid = done.pid, errno = -value, "a signal could not be delivered");
        }
        Some(_) => {}
        None => tracing::warn!(pid = done.pid, "who was to send a signal went away in the middle of it"),
    }
    facts.send(Fact::Done(done.order)).await.ok();
}
