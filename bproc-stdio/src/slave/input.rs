//! Inputs: what comes from the master is written to the process's pipe.

use bproc_proto::stdio::Chunk;
use bytes::Bytes;
use std::os::fd::OwnedFd;
use tokio::sync::{mpsc, watch};
use tonic::Streaming;

use super::{Ask, Call, Sender};
use crate::end::{Held, Sink, WayBack};
use crate::pump::{Ended, count};
use crate::wanted::Demand;
use crate::wire::Kind;

impl Call {
    /// From the master to the process.
    pub(super) async fn input(
        &self,
        fd: OwnedFd,
        mut asks: mpsc::UnboundedReceiver<Ask>,
        sender: Sender,
        answers: Streaming<Chunk>,
    ) -> Ended {
        let number = self.spec.fd;
        let pty = self.spec.kind() == Kind::PtyInput;
        let mut hung_up = self.hung_up.clone();
        let way_back = if pty { None } else { WayBack::to(&fd).ok() };
        let mut demand = Demand::of(&fd);
        let sink = match Sink::new(fd, self.held) {
            Ok(sink) => sink,
            Err(e) => {
                tracing::warn!("{:?} fd {number}: cannot be written: {e}", self.token);
                let _ = sender.send(Chunk { fd: number, broken: true, ..Chunk::default() }).await;
                return Ended::Broken;
            }
        };
        // None: the process has been told the end.
        let mut input = Input { fd: number, sink: Some(sink), way_back, rest: Bytes::new(), sender, answers };
        let mut in_line = false;
        // Whoever waits for what nobody has read hears by its end that it is back.
        let mut returned = None;
        let ended = loop {
            let open = input.sink.is_some();
            let idle = input.rest.is_empty();
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(Ask::Recall(done)) => match input.recall().await {
                        Some(()) => {
                            demand.take_back();
                            let _ = done.send(true);
                            match settled(&mut asks).await {
                                Some(Ask::Gone | Ask::Over) => break Ended::Whole,
                                _ if input.resume().await => {}
                                _ => break Ended::Broken,
                            }
                        }
                        None => {
                            let _ = done.send(false);
                            break Ended::Lost;
                        }
                    },
                    Some(Ask::Gone | Ask::Over) if !open => break Ended::Whole,
                    Some(Ask::Returned(done)) if input.sink.as_ref().is_some_and(Sink::is_broken) => {
                        returned = Some(done);
                        break Ended::Broken;
                    }
                    Some(_) => {}
                    None => break Ended::Broken,
                },
                answer = input.answers.message(), if idle => match answer {
                    Ok(Some(chunk)) => {
                        if let (Ok(size), Some(sink)) = (<[u8; 8]>::try_from(&chunk.winsize[..]), &input.sink)
                            && let Err(e) = sink.set_winsize(size)
                        {
                            tracing::debug!("{:?} fd {number}: size of the terminal: {e}", self.token);
                        }
                        if chunk.wanted != 0 {
                            demand.ask();
                        }
                        if let Some(last) = chunk.data.last() {
                            in_line = *last != b'\n';
                            demand.came(chunk.data.len());
                            count(&self.slave.counters.input, chunk.data.len());
                        }
                        input.rest = chunk.data;
                        // All before it is written.
                        if chunk.mark != 0 {
                            let _ = input.sender.send(Chunk { fd: number, mark: chunk.mark, ..Chunk::default() }).await;
                        }
                        if chunk.end && !pty {
                            input.sink = None;
                            if self.held == Held::Shared {
                                // It leads back here: no process moves on with it.
                                break Ended::Whole;
                            }
                        }
                        if let (true, Some(sink)) = (chunk.end, &input.sink)
                            && let Err(e) = sink.terminal_eof(in_line).await
                        {
                            tracing::debug!("{:?} fd {number}: end of input: {e}", self.token);
                            break Ended::Broken;
                        }
                    }
                    Ok(None) if !open => break Ended::Whole,
                    Ok(None) | Err(_) => return Ended::Lost,
                },
                written = write(&input.sink, &mut input.rest), if !idle => if written.is_err() { break Ended::Broken },
                group = demand.wanted(input.sink.as_ref()), if idle && open && demand.is_asked() => {
                    demand.take_back();
                    let _ = input.sender.send(Chunk { fd: number, wanted: demand.much(), group, ..Chunk::default() }).await;
                }
                () = broken(&input.sink), if open => break Ended::Broken,
                () = is_up(&mut hung_up), if pty => break Ended::Broken,
            }
        };
        if ended == Ended::Broken && demand.ever {
            // For others who read it where it comes from.
            let _ = input.recall().await;
        }
        let Input { sink, sender, mut answers, .. } = input;
        drop(sink);
        let (whole, broken) = (ended == Ended::Whole, ended == Ended::Broken);
        let _ = sender.send(Chunk { fd: number, end: whole, broken, ..Chunk::default() }).await;
        drop(sender);
        // The master closes its end and the call; what it had sent before is of no use.
        while let Ok(Some(_)) = answers.message().await {}
        drop(returned);
        ended
    }
}

/// The stream of an input.
struct Input {
    fd: i32,
    /// None: the process has been told the end.
    sink: Option<Sink>,
    way_back: Option<WayBack>,
    /// Came, and is not written.
    rest: Bytes,
    sender: Sender,
    answers: Streaming<Chunk>,
}

impl Input {
    /// Sends back what has come and was not read, in its order: from the pipe, from here, from the way.
    async fn recall(&mut self) -> Option<()> {
        let fd = self.fd;
        self.sender.send(Chunk { fd, recall: true, ..Chunk::default() }).await.ok()?;
        // One whose readers are gone, or that is no pipe, has nothing to give.
        let read = self.way_back.as_ref().and_then(|way| way.drain().ok()).unwrap_or_default();
        let mut back = vec![read, std::mem::take(&mut self.rest)];
        loop {
            let chunk = self.answers.message().await.ok()??;
            back.push(chunk.data);
            if chunk.end {
                self.sink = None;
            }
            if chunk.recall {
                break;
            }
        }
        for data in back.into_iter().filter(|data| !data.is_empty()) {
            self.sender.send(Chunk { fd, data, ..Chunk::default() }).await.ok()?;
        }
        self.sender.send(Chunk { fd, mark: 1, ..Chunk::default() }).await.ok()?;
        loop {
            if self.answers.message().await.ok()??.mark != 0 {
                return Some(());
            }
        }
    }

    /// The process stays: it gets again what came back. False: nobody reads it.
    async fn resume(&mut self) -> bool {
        if self.sink.is_none() {
            self.sink = self.way_back.as_ref().and_then(|way| way.sink().ok());
        }
        match &self.sink {
            Some(sink) if !sink.is_broken() => {
                self.sender.send(Chunk { fd: self.fd, resume: true, ..Chunk::default() }).await.is_ok()
            }
            _ => false,
        }
    }
}

/// What becomes of a process whose input was called back: nothing of that is left here.
async fn settled(asks: &mut mpsc::UnboundedReceiver<Ask>) -> Option<Ask> {
    loop {
        match asks.recv().await {
            Some(Ask::Returned(_)) => {}
            other => return other,
        }
    }
}

async fn is_up(hung_up: &mut watch::Receiver<bool>) {
    let _ = hung_up.wait_for(|up| *up).await;
}

/// Writes some of it. May be interrupted without loss.
async fn write(sink: &Option<Sink>, rest: &mut Bytes) -> std::io::Result<()> {
    let Some(sink) = sink else { return Err(std::io::ErrorKind::BrokenPipe.into()) };
    let written = sink.write(rest).await?;
    let _ = rest.split_to(written);
    Ok(())
}

async fn broken(sink: &Option<Sink>) {
    match sink {
        Some(sink) => sink.broken().await,
        None => std::future::pending().await,
    }
}
