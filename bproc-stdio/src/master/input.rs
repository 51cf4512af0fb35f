//! Inputs: what can be read on the master goes to the node, when it is the stream's turn, and wanted there.

use std::sync::atomic::Ordering;

use bproc_proto::stdio::Chunk;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Streaming;

use super::{Answer, Claim, Master, gone};
use crate::pump::{Ended, Place, count, is_hangup};
use crate::through::Asks;
use crate::turn::{NOT_YET, Reader};
use crate::wire::Kind;

/// How much may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// All that the way to the node takes.
    All,
    /// Nothing before the node is asked.
    Unknown,
    /// The node is asked.
    Asked,
    /// Chunks until so many bytes are sent.
    More(u64),
    /// Another one has read it, or may read now.
    Later(Instant),
}

impl Demand {
    fn is_there(self) -> bool {
        matches!(self, Demand::All | Demand::More(_))
    }

    /// So much was read.
    fn read(&mut self, bytes: usize) {
        match self {
            Demand::More(left) if *left > bytes as u64 => *left -= bytes as u64,
            _ => self.is_met(),
        }
    }

    /// The node is asked for the next.
    fn is_met(&mut self) {
        if *self != Demand::All {
            *self = Demand::Unknown;
        }
    }

    /// Comes back when the node may be asked again.
    async fn later(self) {
        match self {
            Demand::Later(when) => tokio::time::sleep_until(when).await,
            _ => std::future::pending().await,
        }
    }
}

impl Master {
    /// To the process: what can be read is sent, when it is its turn.
    pub(super) async fn input(
        &self,
        claim: Claim,
        mut requests: Streaming<Chunk>,
        sender: mpsc::Sender<Answer>,
    ) -> Ended {
        let (fd, pty) = (claim.fd, claim.end.spec.kind() == Kind::PtyInput);
        let mut winsize = claim.winsize;
        winsize.mark_changed();
        let turn = claim.end.turn.lock_owned();
        tokio::pin!(turn);
        let (mut end, mut reader) = (Some(claim.end.fd), None::<Reader>);
        let mut place = None;
        let (mut told_end, mut at_end) = (false, false);
        let mut asks = Asks::new(claim.end.asked);
        let mut demand = if claim.end.on_demand { Demand::Unknown } else { Demand::All };
        // What comes back, while it does and until it is known what becomes of the process.
        let mut recalled = None::<Vec<Bytes>>;
        loop {
            if at_end && !told_end && recalled.is_none() {
                told_end = true;
                place = None::<mpsc::OwnedPermit<Answer>>;
                let _ = sender.send(Ok(Chunk { fd, end: true, ..Chunk::default() })).await;
            }
            let open = reader.is_some() && !at_end && recalled.is_none();
            let (reads, waits) = (open && demand.is_there(), open && demand == Demand::Unknown);
            if recalled.is_none()
                && asks.is_due()
                && let Some(place) = place.take()
            {
                place.put(Chunk { fd, mark: asks.send(), ..Chunk::default() });
                continue;
            }
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(chunk)) if chunk.broken => return Ended::Broken,
                    Ok(Some(chunk)) if chunk.end => return Ended::Whole,
                    Ok(Some(chunk)) if chunk.recall => {
                        recalled = Some(Vec::new());
                        place = None;
                        demand.is_met();
                        let _ = sender.send(Ok(Chunk { fd, recall: true, ..Chunk::default() })).await;
                    }
                    Ok(Some(chunk)) if chunk.resume => {
                        recalled = None;
                        (told_end, at_end) = (false, false);
                    }
                    Ok(Some(chunk)) if chunk.wanted != 0 => match (&reader, demand) {
                        (Some(reader), Demand::Asked) if recalled.is_none() => {
                            let now = reader.is_ready() && reader.is_for(chunk.group);
                            demand = if now { Demand::More(chunk.wanted) } else { Demand::Later(Instant::now() + NOT_YET) };
                        }
                        _ => {}
                    },
                    Ok(Some(chunk)) => {
                        if let Some(recalled) = &mut recalled {
                            recalled.push(chunk.data);
                        }
                        if recalled.is_none() {
                            asks.answered(chunk.mark);
                        } else if chunk.mark != 0 {
                            if let (Some(reader), Some(recalled)) = (&mut reader, &mut recalled) {
                                reader.take_back(std::mem::take(recalled)).await;
                            }
                            let _ = sender.send(Ok(Chunk { fd, mark: chunk.mark, ..Chunk::default() })).await;
                        }
                    }
                    Ok(None) if told_end => return Ended::Whole,
                    other => return gone(&other),
                },
                turn = &mut turn, if end.is_some() => match end.take().map(|end| Reader::new(turn, end)) {
                    Some(Ok(fresh)) => {
                        // What a thread has read cannot be told to have been.
                        if fresh.reads_in_threads() {
                            claim.used.store(true, Ordering::Relaxed);
                        }
                        reader = Some(fresh);
                    }
                    Some(Err(e)) => {
                        tracing::debug!("{:?} fd {fd}: cannot be read: {e}", claim.token);
                        at_end = true;
                    }
                    None => {}
                },
                changed = winsize.changed(), if pty => {
                    let size = *winsize.borrow_and_update();
                    if changed.is_err() {
                        return Ended::Lost;
                    }
                    if let Some(size) = size {
                        place = None;
                        let winsize = Bytes::copy_from_slice(&size);
                        let _ = sender.send(Ok(Chunk { fd, winsize, ..Chunk::default() })).await;
                    }
                },
                Some(ask) = asks.next(), if reader.is_some() || at_end => asks.note(ask, reader.as_ref().map_or(0, Reader::waiting)),
                got = sender.clone().reserve_owned(), if place.is_none() && (reads || asks.is_due()) => match got {
                    Ok(got) => place = Some(got),
                    Err(_) => return Ended::Lost,
                },
                () = demand.later() => demand.is_met(),
                data = read(&mut reader, waits), if waits || (place.is_some() && reads) => match data {
                    None => {
                        demand = Demand::Asked;
                        place = None;
                        let _ = sender.send(Ok(Chunk { fd, wanted: 1, ..Chunk::default() })).await;
                    }
                    Some(Ok(data)) if !data.is_empty() => {
                        demand.read(data.len());
                        claim.used.store(true, Ordering::Relaxed);
                        count(&self.counters.input, data.len());
                        asks.read += data.len() as u64;
                        if let Some(place) = place.take() {
                            place.put(Chunk { fd, data, ..Chunk::default() });
                        }
                    }
                    Some(end) => {
                        if let Err(e) = end && !is_hangup(&e) {
                            tracing::debug!("{:?} fd {fd}: cannot be read: {e}", claim.token);
                        }
                        at_end = true;
                    }
                },
            }
        }
    }
}

/// `waits`: comes back with nothing when there is something to read.
async fn read(reader: &mut Option<Reader>, waits: bool) -> Option<std::io::Result<Bytes>> {
    let Some(reader) = reader else { return Some(Ok(Bytes::new())) };
    if waits {
        reader.ready().await;
        return None;
    }
    Some(reader.read().await)
}
