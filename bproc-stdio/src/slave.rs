//! On a node: the node-side ends of the processes' pipes, a call to the master for each.

mod input;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bproc_proto::stdio::Chunk;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::closed::Closed;
use crate::end::{Held, Source};
use crate::links::{Link, Links};
use crate::pipes::Pipes;
use crate::pump::{Counters, Ended, Place, QUEUE, count, is_hangup};
use crate::wire::{Kind, StreamSpec, Token};

/// Most that is read from a terminal or a socket for one flush, where the kernel does not tell how much is waiting.
const FLUSH_MORE: u64 = 64 * 1024;

/// What an output stream is asked about what is in the pipe now.
enum Flush {
    /// To tell when that is written at the far end; true: it is.
    Tell(oneshot::Sender<bool>),
    /// To say there that this is all of a process that goes on under this token.
    Leave(Token),
}

/// What an input is asked to do when its process moves.
enum Ask {
    /// Send back what was not read; true: it is there.
    Recall(oneshot::Sender<bool>),
    /// The process has gone.
    Gone,
    /// It stays.
    Stays,
    /// It has ended.
    Over,
    /// A process has ended, perhaps the last that read it: to be dropped when what was not read is back.
    Returned(oneshot::Sender<()>),
}

/// Dropped, and with it the ways to its streams: they end.
struct Process {
    flushes: Vec<mpsc::UnboundedSender<Flush>>,
    /// By number.
    inputs: Vec<(i32, mpsc::UnboundedSender<Ask>)>,
}

/// All processes with streams.
pub(crate) struct Slave {
    links: Links,
    processes: Mutex<HashMap<Token, Process>>,
    /// Which pipes they are.
    pub(crate) pipes: Pipes,
    counters: Arc<Counters>,
}

impl Slave {
    pub(crate) fn new(links: Links, counters: Arc<Counters>) -> Arc<Slave> {
        Arc::new(Slave { links, processes: Mutex::default(), pipes: Pipes::default(), counters })
    }

    /// Number of processes with streams.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Process>> {
        self.processes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Begins to forward. False: the token is in use.
    pub(crate) fn attach(
        self: &Arc<Self>,
        token: Token,
        streams: Vec<(StreamSpec, OwnedFd)>,
        master: Arc<str>,
        held: Held,
    ) -> bool {
        let mut processes = self.lock();
        if processes.contains_key(&token) {
            return false;
        }
        // Held back until the entry is in the table: else a very short life could end before it began.
        let (go, started) = oneshot::channel::<()>();
        let (hangup, hung_up) = watch::channel(false);
        let hangup = Arc::new(hangup);
        let (mut flushes, mut inputs) = (Vec::new(), Vec::new());
        let mut calls = JoinSet::new();
        for (spec, fd) in streams {
            if held == Held::Ours {
                self.pipes.note(token, spec, &fd);
            }
            let told = if matches!(spec.kind(), Kind::Output | Kind::PtyOutput) {
                // Unbounded: asked as often as processes end or move.
                let (sender, receiver) = mpsc::unbounded_channel();
                flushes.push(sender);
                Told::Output(receiver)
            } else {
                // Unbounded: a move asks twice, an end once.
                let (sender, receiver) = mpsc::unbounded_channel();
                inputs.push((spec.fd, sender));
                Told::Input(receiver)
            };
            let call = Call {
                slave: self.clone(),
                token,
                spec,
                master: master.clone(),
                held,
                hangup: hangup.clone(),
                hung_up: hung_up.clone(),
            };
            calls.spawn(call.run(fd, told));
        }
        let slave = self.clone();
        tokio::spawn(async move {
            let _ = started.await;
            while calls.join_next().await.is_some() {}
            slave.lock().remove(&token);
        });
        processes.insert(token, Process { flushes, inputs });
        let _ = go.send(());
        true
    }

    /// Ends the streams of a process, each with its last word: a call that broke off would be taken for lost.
    pub(crate) fn forget(&self, token: Token) {
        self.lock().remove(&token);
    }

    /// Comes back when all that the process has written is written at the far end (true) or cannot be (false), and what nobody
    /// is left to read is back there.
    pub(crate) async fn flush(&self, token: Token) -> bool {
        let all = self.lock().get(&token).map(|p| (p.flushes.clone(), p.inputs.clone()));
        let (senders, inputs) = all.unwrap_or_default();
        let mut whole = true;
        let mut answers = Vec::new();
        let mut returned = Vec::new();
        for (_, input) in inputs {
            let (done, answer) = oneshot::channel();
            let _ = input.send(Ask::Returned(done));
            returned.push(answer);
        }
        for sender in senders {
            let (done, answer) = oneshot::channel();
            // A stream that has ended already takes no request: it is through.
            if sender.send(Flush::Tell(done)).is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            // Dropped unanswered: the stream ended before it saw the request.
            whole &= answer.await.unwrap_or(true);
        }
        for answer in returned {
            let _ = answer.await;
        }
        whole
    }

    /// A process that stands still goes on elsewhere as `successor`.
    pub(crate) fn leave(&self, token: Token, successor: Token) {
        if let Some(process) = self.lock().get(&token) {
            // One that has ended is through.
            process.flushes.iter().for_each(|sender| drop(sender.send(Flush::Leave(successor))));
        }
    }
}

impl Slave {
    fn ask(&self, token: Token, fd: i32, ask: Ask) {
        let processes = self.lock();
        let input = processes.get(&token).and_then(|p| p.inputs.iter().find(|(number, _)| *number == fd));
        if let Some((_, input)) = input {
            // One that has ended hears nothing.
            let _ = input.send(ask);
        }
    }

    /// Calls back what was sent ahead to an input. Comes back when it is with the master (true), or lost (false).
    pub(crate) fn recall(&self, token: Token, fd: i32) -> impl Future<Output = bool> + use<> {
        let (done, answer) = oneshot::channel();
        self.ask(token, fd, Ask::Recall(done));
        // Dropped unanswered: there is no such stream any more, and nothing of it.
        async move { answer.await.unwrap_or(true) }
    }

    /// What became of a process whose input was called back.
    pub(crate) fn settle(&self, token: Token, fd: i32, gone: bool) {
        self.ask(token, fd, if gone { Ask::Gone } else { Ask::Stays });
    }

    /// A process has ended.
    pub(crate) fn over(&self, token: Token) {
        let inputs = self.lock().get(&token).map(|p| p.inputs.clone()).unwrap_or_default();
        for (fd, _) in inputs {
            self.ask(token, fd, Ask::Over);
        }
    }
}

/// By which a stream is told.
enum Told {
    Output(mpsc::UnboundedReceiver<Flush>),
    Input(mpsc::UnboundedReceiver<Ask>),
}

/// One stream on its way.
struct Call {
    slave: Arc<Slave>,
    token: Token,
    spec: StreamSpec,
    master: Arc<str>,
    /// Whether others have its descriptor, too.
    held: Held,
    /// Told by the output of a terminal to its input: nobody has it open any more.
    hangup: Arc<watch::Sender<bool>>,
    hung_up: watch::Receiver<bool>,
}

type Sender = mpsc::Sender<Chunk>;

impl Call {
    async fn run(self, fd: OwnedFd, told: Told) {
        let (token, spec) = (self.token, self.spec);
        let ended = match self.open().await {
            Ok((link, sender, answers)) => {
                let ended = match told {
                    Told::Output(flush) => self.output(fd, flush, sender, answers).await,
                    Told::Input(asks) => self.input(fd, asks, sender, answers).await,
                };
                if ended == Ended::Lost {
                    link.is_lost();
                }
                ended
            }
            Err(why) => {
                tracing::warn!("{token:?} fd {}: the master's stdio service at {}: {why}", spec.fd, self.master);
                return;
            }
        };
        match ended {
            Ended::Lost => tracing::warn!("{token:?} fd {}: connection to {} lost", spec.fd, self.master),
            ended => tracing::debug!("{token:?} fd {}: ended, {ended:?}", spec.fd),
        }
    }

    /// Opens the call; a kept connection that proves dead is replaced once.
    async fn open(&self) -> Result<(Arc<Link>, Sender, Streaming<Chunk>), String> {
        let mut again = true;
        loop {
            let link = self.slave.links.get(&self.master).await.map_err(|e| e.to_string())?;
            let (sender, receiver) = mpsc::channel(QUEUE);
            let token = Bytes::copy_from_slice(self.token.as_bytes());
            let first = Chunk { token, fd: self.spec.fd, ..Chunk::default() };
            // There is room: nothing has been sent before.
            let _ = sender.try_send(first);
            match link.client().forward(ReceiverStream::new(receiver)).await {
                Ok(answers) => return Ok((link, sender, answers.into_inner())),
                Err(e) if again && is_transport(&e) => {
                    link.is_lost();
                    again = false;
                }
                Err(e) => return Err(e.message().to_owned()),
            }
        }
    }

    /// From the process to the master.
    async fn output(
        &self,
        fd: OwnedFd,
        mut flushes: mpsc::UnboundedReceiver<Flush>,
        sender: Sender,
        mut answers: Streaming<Chunk>,
    ) -> Ended {
        let number = self.spec.fd;
        let mut source = match Source::new(fd, self.held) {
            Ok(source) => Some(source),
            Err(e) => {
                tracing::warn!("{:?} fd {number}: cannot be read: {e}", self.token);
                None
            }
        };
        let mut sender = Some(sender);
        let mut place = None;
        let mut marks = Marks::default();
        let mut forgotten = false;
        let mut closed = Closed::default();
        let ended = loop {
            // Everything read and nobody left to write: the far end closes the call when all is written.
            if source.is_none()
                && let Some(sender) = sender.take()
            {
                place = None::<mpsc::OwnedPermit<Chunk>>;
                let _ = sender.send(Chunk { fd: number, end: true, ..Chunk::default() }).await;
            }
            // A mark waits for a place like anything else: meanwhile others may ask, and the reader may go.
            if sender.is_some()
                && marks.is_due()
                && let Some(place) = place.take()
            {
                place.put(marks.next(number));
                continue;
            }
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(chunk)) if chunk.broken => break Ended::Broken,
                    Ok(Some(chunk)) => marks.done(chunk.mark),
                    Ok(None) if sender.is_none() => break Ended::Whole,
                    Ok(None) | Err(_) => break Ended::Lost,
                },
                asked = flushes.recv(), if !forgotten => {
                    let more = match &source {
                        Some(source) if self.spec.kind() == Kind::Output => source.waiting(),
                        Some(source) => source.waiting().min(FLUSH_MORE),
                        None => 0,
                    };
                    match asked {
                        Some(done) => marks.ask(done, more),
                        None => (forgotten, source) = (true, None),
                    }
                }
                got = reserve(&sender), if place.is_none() && sender.is_some() && (source.is_some() || marks.is_due()) => {
                    place = got;
                }
                () = closed.rested(), if closed.is_resting() => {}
                data = read(&mut source), if place.is_some() && source.is_some() && !closed.is_resting() => match data {
                    // Nobody has the terminal open, but it is somebody's: he may open it again.
                    Err(e) if is_hangup(&e) && source.as_ref().is_some_and(Source::has_session) => closed.rest(),
                    Ok(data) if !data.is_empty() => {
                        closed = Closed::default();
                        marks.read += data.len() as u64;
                        count(&self.slave.counters.output, data.len());
                        if let Some(place) = place.take() {
                            place.put(Chunk { fd: number, data, ..Chunk::default() });
                        }
                    }
                    end => {
                        if let Err(e) = end && !is_hangup(&e) {
                            tracing::warn!("{:?} fd {number}: cannot be read: {e}", self.token);
                        }
                        source = None;
                        if self.spec.kind() == Kind::PtyOutput {
                            self.hangup.send_replace(true);
                        }
                    }
                },
            }
        };
        // Closed before anyone is told: a writer gets SIGPIPE from now on.
        drop(source);
        flushes.close();
        while let Ok(done) = flushes.try_recv() {
            marks.ask(done, 0);
        }
        marks.finish(ended != Ended::Lost);
        if self.spec.kind() == Kind::PtyOutput {
            self.hangup.send_replace(true);
        }
        ended
    }
}

/// True when a call failed because of the connection, before the far end had a say.
fn is_transport(e: &Status) -> bool {
    matches!(e.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

async fn reserve(sender: &Option<Sender>) -> Option<mpsc::OwnedPermit<Chunk>> {
    match sender {
        Some(sender) => sender.clone().reserve_owned().await.ok(),
        None => None,
    }
}

async fn read(source: &mut Option<Source>) -> std::io::Result<Bytes> {
    match source {
        Some(source) => source.read().await,
        None => Ok(Bytes::new()),
    }
}

/// Flushes under way in one output stream.
#[derive(Default)]
struct Marks {
    /// Bytes read so far.
    read: u64,
    /// Marks to be sent: number, bytes that must be read before, what for; by number.
    asked: VecDeque<(u64, u64, Flush)>,
    /// Marks sent: number, whom to tell.
    sent: Vec<(u64, oneshot::Sender<bool>)>,
    last: u64,
}

impl Marks {
    /// `more` bytes wait in the pipe.
    fn ask(&mut self, done: Flush, more: u64) {
        self.last += 1;
        self.asked.push_back((self.last, self.read + more, done));
    }

    /// Is a mark to be sent now?
    fn is_due(&self) -> bool {
        self.asked.front().is_some_and(|(_, bytes, _)| self.read >= *bytes)
    }

    /// The mark that is due.
    fn next(&mut self, fd: i32) -> Chunk {
        match self.asked.pop_front() {
            Some((mark, _, Flush::Tell(done))) => {
                self.sent.push((mark, done));
                Chunk { fd, mark, ..Chunk::default() }
            }
            Some((_, _, Flush::Leave(successor))) => {
                Chunk { fd, left: Bytes::copy_from_slice(successor.as_bytes()), ..Chunk::default() }
            }
            None => Chunk { fd, ..Chunk::default() },
        }
    }

    /// The far end has written all before this mark.
    fn done(&mut self, mark: u64) {
        for (_, done) in self.sent.extract_if(.., |(number, _)| *number <= mark) {
            let _ = done.send(true);
        }
    }

    fn finish(self, whole: bool) {
        let asked = self.asked.into_iter().filter_map(|(_, _, what)| match what {
            Flush::Tell(done) => Some(done),
            // The end of the stream says it too.
            Flush::Leave(_) => None,
        });
        for done in self.sent.into_iter().map(|(_, done)| done).chain(asked) {
            let _ = done.send(whole);
        }
    }
}
