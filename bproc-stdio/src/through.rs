//! Output that leads back to the node from which its process came: when is it there?

use std::collections::VecDeque;

use bproc_proto::stdio::Chunk;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::turn::Reader;

/// Answered when what is in the pipe now is written on the node; dropped when it never will be.
pub(crate) type Ask = oneshot::Sender<()>;
/// Asks the stream at the pipe's other end.
pub(crate) type Through = mpsc::UnboundedSender<Ask>;
/// What that stream is asked.
pub(crate) type Asked = mpsc::UnboundedReceiver<Ask>;

/// Says that all that came before a mark is written; where that leads back to a node, when it is there.
pub(crate) async fn answer(through: Option<&Through>, sender: &mpsc::Sender<Result<Chunk, Status>>, chunk: Chunk) {
    let (done, told) = oneshot::channel();
    // One that has ended is through.
    if through.is_some_and(|through| through.send(done).is_ok()) {
        let sender = sender.clone();
        tokio::spawn(async move {
            let _ = told.await;
            sender.send(Ok(chunk)).await
        });
    } else {
        let _ = sender.send(Ok(chunk)).await;
    }
}

/// What a stream to a node was asked.
pub(crate) struct Asks {
    asked: Option<Asked>,
    /// Bytes read so far.
    pub(crate) read: u64,
    /// To be passed on when so many are.
    noted: VecDeque<(u64, Ask)>,
    /// Passed on, by number.
    sent: VecDeque<(u64, Ask)>,
    last: u64,
}

impl Asks {
    /// `asked` is absent for a stream that leads to a process.
    pub(crate) fn new(asked: Option<Asked>) -> Asks {
        Asks { asked, read: 0, noted: VecDeque::new(), sent: VecDeque::new(), last: 0 }
    }

    /// The next question; never, where nobody asks.
    pub(crate) async fn next(&mut self) -> Option<Ask> {
        let ask = match &mut self.asked {
            Some(asked) => asked.recv().await,
            None => std::future::pending().await,
        };
        if ask.is_none() {
            self.asked = None;
        }
        ask
    }

    /// It waits for what is in the pipe.
    pub(crate) fn note(&mut self, ask: Ask, pipe: Option<&Reader>) {
        self.noted.push_back((self.read + pipe.map_or(0, Reader::waiting), ask));
    }

    /// Is one to be passed on now?
    pub(crate) fn is_due(&self) -> bool {
        self.noted.front().is_some_and(|(bytes, _)| self.read >= *bytes)
    }

    /// Its number.
    pub(crate) fn send(&mut self) -> u64 {
        if let Some((_, ask)) = self.noted.pop_front() {
            self.last += 1;
            self.sent.push_back((self.last, ask));
        }
        self.last
    }

    /// The node has written all before this one.
    pub(crate) fn answered(&mut self, number: u64) {
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number)
            && let Some((_, ask)) = self.sent.pop_front()
        {
            let _ = ask.send(());
        }
    }
}
