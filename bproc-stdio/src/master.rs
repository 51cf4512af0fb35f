//! On the master: the master-side ends of the processes' streams, handed to the node that calls for them.

mod handing;
mod input;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bproc_config::net::PeerInfo;
use bproc_config::tls::Peer;
use bproc_proto::stdio::Chunk;
use bproc_proto::stdio::stdio_server::Stdio;
use tokio::io::Interest;
use tokio::sync::{self, Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use handing::HandedOn;
use handing::Kept;

use crate::end::{Held, Sink};
use crate::pump::{Counters, Ended, QUEUE, count};
use crate::through::{Asked, Leading, answer, outlast};
use crate::turn::{Behind, Gone, MyTurn, Turn};
use crate::watched::{pidfd, watch};
use crate::wire::{Kind, StreamSpec, Token};

/// How long a call waits for its token: the node may be quicker than the agent.
const WAIT_FOR_TOKEN: Duration = Duration::from_secs(10);
/// How long descriptors wait for a node's call. An agent that dies between the request and the spawn says no FORGET.
const UNCLAIMED: Duration = Duration::from_secs(120);
/// How long after the end of whom they are for: a node's call may be on its way.
const AFTER_OWNER: Duration = Duration::from_secs(2);
/// How long what a node still sends is thrown away after the reader has closed.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the word of a lost stream waits for its reader.
const REPORT: Duration = Duration::from_secs(2);

type Answer = Result<Chunk, Status>;

struct Process {
    /// Only this node may call.
    node: Option<i32>,
    unclaimed: HashMap<i32, End>,
    /// Duplicates for a move, as long as the streams live.
    kept: HashMap<i32, Kept>,
    /// Inputs that the process still reads on the master.
    held: Vec<MyTurn>,
    /// Streams under way.
    running: Vec<AbortHandle>,
    winsize: sync::watch::Sender<Option<[u8; 8]>>,
    expires: Instant,
    /// Something has passed, or may have been read.
    used: Arc<AtomicBool>,
    /// Who is told of streams that are lost.
    report: Option<Arc<Report>>,
    /// Dropped when all streams are called for: then nobody need watch for the end of whom they are for.
    unattended: Option<oneshot::Sender<()>>,
    /// Streams neither claimed nor ended; the last one removes the process.
    left: usize,
}

/// What a stream leads to.
pub(crate) struct End {
    pub(crate) spec: StreamSpec,
    pub(crate) fd: OwnedFd,
    /// Whose turn it is to read it.
    pub(crate) turn: Turn,
    /// An output: what is to be written before.
    pub(crate) behind: Option<Behind>,
    /// An input that leads back to a node: what it is asked.
    pub(crate) asked: Option<Asked>,
    pub(crate) past: Past,
    /// An input: it is read only when somebody on the node reads it.
    pub(crate) on_demand: bool,
}

impl End {
    /// The end of a fresh stream.
    pub(crate) fn new(spec: StreamSpec, fd: OwnedFd) -> End {
        let (turn, past) = (Turn::default(), Past::default());
        End { spec, fd, turn, behind: None, asked: None, past, on_demand: false }
    }
}

/// How far an output is.
#[derive(Clone, Default)]
pub(crate) struct Past {
    gone: Arc<Gone>,
    /// A write is under way.
    writing: Arc<AtomicBool>,
}

/// All processes with streams.
pub(crate) struct Master {
    processes: Mutex<HashMap<Token, Process>>,
    /// A process was added.
    added: Notify,
    counters: Arc<Counters>,
    /// Pipes to nodes that processes have left.
    pub(crate) leading: Leading,
}

/// Takes one stream out of its process when its task ends, however it ends.
struct Leave(Arc<Master>, Token, i32);

impl Drop for Leave {
    fn drop(&mut self) {
        let mut processes = self.0.lock();
        let mut last = None;
        if let Some(process) = processes.get_mut(&self.1) {
            last = process.kept.remove(&self.2);
            process.left -= 1;
            if process.left == 0 {
                processes.remove(&self.1);
            }
        }
        drop(processes);
        // Closed here and not under the lock.
        drop(last);
    }
}

impl Master {
    pub(crate) fn new(counters: Arc<Counters>) -> Arc<Master> {
        let (processes, leading) = (Mutex::default(), Leading::default());
        let master = Arc::new(Master { processes, added: Notify::new(), counters, leading });
        let weak = Arc::downgrade(&master);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UNCLAIMED / 8).await;
                match weak.upgrade() {
                    Some(master) => master.expire(),
                    None => return,
                }
            }
        });
        master
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Process>> {
        self.processes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Processes, and streams that no node has called for yet.
    pub(crate) fn count(&self) -> (usize, usize) {
        let processes = self.lock();
        (processes.len(), processes.values().map(|p| p.unclaimed.len()).sum())
    }

    /// Keeps descriptors for a node's calls. False: the token is in use.
    /// `owner`: the process here that they are for, or 0. `held`: it still reads its inputs here.
    pub(crate) fn expect(
        self: &Arc<Self>,
        token: Token,
        streams: Vec<End>,
        node: Option<i32>,
        owner: i32,
        held: bool,
        report: Option<Arc<Report>>,
    ) -> bool {
        let processes = self.lock();
        if processes.contains_key(&token) {
            return false;
        }
        // Without a duplicate a process cannot move with the stream; it works all the same.
        let keep = |end: &End| {
            let fd = end.fd.try_clone().ok()?;
            Some((end.spec.fd, Kept { fd, turn: end.turn.clone(), past: end.past.clone(), once: false }))
        };
        let kept = streams.iter().filter_map(keep).collect();
        self.expect_kept(processes, token, streams, kept, (node, owner, held), report)
    }

    fn expect_kept(
        self: &Arc<Self>,
        mut processes: std::sync::MutexGuard<'_, HashMap<Token, Process>>,
        token: Token,
        streams: Vec<End>,
        kept: HashMap<i32, Kept>,
        (node, owner, held): (Option<i32>, i32, bool),
        report: Option<Arc<Report>>,
    ) -> bool {
        let left = streams.len();
        let inputs = streams.iter().filter(|end| held && end.spec.kind() == Kind::Input);
        let held = inputs.filter_map(|end| end.turn.clone().try_lock_owned().ok()).collect();
        let unclaimed = streams.into_iter().map(|end| (end.spec.fd, end)).collect();
        let process = Process {
            node,
            unclaimed,
            kept,
            held,
            running: Vec::new(),
            winsize: sync::watch::channel(None).0,
            expires: Instant::now() + UNCLAIMED,
            used: Arc::default(),
            report,
            unattended: (owner > 0 && left > 0).then(|| self.watch_owner(token, owner)),
            left,
        };
        if left > 0 {
            processes.insert(token, process);
        }
        drop(processes);
        self.added.notify_waiters();
        true
    }

    /// The process of this token, or of any, runs on its node.
    pub(crate) fn open(&self, token: Option<Token>) {
        match (token, &mut *self.lock()) {
            (Some(token), processes) => drop(processes.get_mut(&token).map(|p| p.held.clear())),
            (None, processes) => processes.values_mut().for_each(|p| p.held.clear()),
        }
    }

    /// Looks after streams that nobody has called for: when the process that they are for is gone, they go soon after.
    fn watch_owner(self: &Arc<Self>, token: Token, owner: i32) -> oneshot::Sender<()> {
        let (unattended, attended) = oneshot::channel();
        let master = Arc::downgrade(self);
        tokio::spawn(async move {
            let gone = async {
                match pidfd(owner).and_then(|fd| Ok(watch(fd, Interest::READABLE)?)) {
                    Ok(fd) => drop(fd.readable().await),
                    Err(error) => tracing::debug!("{token:?}: process {owner}: {error}"),
                }
            };
            tokio::select! {
                // Only its end is told by it.
                _ = attended => return,
                () = gone => {}
            }
            tokio::time::sleep(AFTER_OWNER).await;
            if let Some(master) = master.upgrade() {
                if let Some(process) = master.lock().get_mut(&token) {
                    process.expires = Instant::now();
                }
                master.expire();
            }
        });
        unattended
    }

    /// Closes the streams of a process. True: something has passed by them, or may have been read.
    pub(crate) fn forget(&self, token: Token) -> bool {
        let process = self.lock().remove(&token);
        let used = process.as_ref().is_some_and(|process| process.used.load(Ordering::Relaxed));
        end(process);
        used
    }

    /// Closes the streams of all processes of a node.
    pub(crate) fn sever(&self, node: i32) {
        let gone: Vec<Process> =
            self.lock().extract_if(|_, process| process.node == Some(node)).map(|(_, process)| process).collect();
        tracing::info!("node {node}: streams of {} processes ended", gone.len());
        end(gone);
    }

    /// Passes a terminal's size on. False: unknown token.
    pub(crate) fn winsize(&self, token: Token, size: [u8; 8]) -> bool {
        match self.lock().get(&token) {
            Some(process) => {
                process.winsize.send_replace(Some(size));
                true
            }
            None => false,
        }
    }

    fn expire(&self) {
        let now = Instant::now();
        let mut stale = Vec::new();
        self.lock().retain(|token, process| {
            if process.expires <= now && !process.unclaimed.is_empty() {
                tracing::warn!("{token:?}: no node called for {} of its streams", process.unclaimed.len());
                process.left -= process.unclaimed.len();
                let kept = &mut process.kept;
                stale.extend(process.unclaimed.drain().map(|(fd, end)| (end, kept.remove(&fd))));
            }
            process.left > 0
        });
        // Closed here and not under the lock: closing a terminal or a socket may take its time.
        drop(stale);
    }

    async fn claim(&self, token: Token, fd: i32, peer: Option<Peer>) -> Result<Claim, Status> {
        let deadline = Instant::now() + WAIT_FOR_TOKEN;
        loop {
            let added = self.added.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            if let Some(process) = self.lock().get_mut(&token) {
                if let (Some(node), Some(peer)) = (process.node, peer)
                    && peer != Peer::Node(node)
                {
                    tracing::warn!("{peer} called for a stream of node {node}: refused");
                    return Err(Status::permission_denied("these streams are another node's"));
                }
                let Some(end) = process.unclaimed.remove(&fd) else {
                    return Err(Status::already_exists(format!("descriptor {fd} is not there, or taken already")));
                };
                if process.unclaimed.is_empty() {
                    process.unattended = None;
                }
                let used = process.used.clone();
                let winsize = process.winsize.subscribe();
                let report = process.report.clone();
                return Ok(Claim { token, fd, end, used, report, winsize });
            }
            if tokio::time::timeout_at(deadline, added).await.is_err() {
                return Err(Status::not_found("no process here waits for streams with this token"));
            }
        }
    }

    fn start(self: &Arc<Self>, claim: Claim, requests: Streaming<Chunk>) -> mpsc::Receiver<Answer> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (token, fd, report) = (claim.token, claim.fd, claim.report.clone());
        let leave = Leave(self.clone(), token, fd);
        let master = self.clone();
        let task = tokio::spawn(async move {
            let _leave = leave;
            let ended = match claim.end.spec.kind() {
                Kind::Output | Kind::PtyOutput | Kind::Report => master.output(claim, requests, sender).await,
                Kind::Input | Kind::PtyInput => master.input(claim, requests, sender).await,
            };
            match ended {
                Ended::Lost => {
                    tracing::warn!("{token:?} fd {fd}: connection to the node lost");
                    // Before its reader sees the end: of what is kept, the last duplicate goes after this.
                    if let Some(report) = report {
                        report.lost(fd).await;
                    }
                }
                ended => tracing::debug!("{token:?} fd {fd}: ended, {ended:?}"),
            }
        });
        match self.lock().get_mut(&token) {
            Some(process) => process.running.push(task.abort_handle()),
            // Forgotten, or already over.
            None => task.abort(),
        }
        receiver
    }

    /// From the process: what comes is written.
    async fn output(&self, claim: Claim, mut requests: Streaming<Chunk>, sender: mpsc::Sender<Answer>) -> Ended {
        let fd = claim.fd;
        let End { fd: end, behind, past, .. } = claim.end;
        let through = self.leading.of(&end);
        let sink = Sink::new(end, Held::Shared);
        if let Err(e) = &sink {
            tracing::debug!("{:?} fd {fd}: cannot be written: {e}", claim.token);
        }
        if let Ok(sink) = sink {
            let reader_is_there = match behind {
                None => true,
                Some(mut behind) => tokio::select! {
                    () = behind.wait() => true,
                    () = sink.broken() => false,
                },
            };
            if reader_is_there {
                loop {
                    let chunk = tokio::select! {
                        request = requests.message() => match request {
                            Ok(Some(chunk)) => chunk,
                            other => return gone(&other),
                        },
                        () = sink.broken() => break,
                    };
                    if !chunk.data.is_empty() {
                        claim.used.store(true, Ordering::Relaxed);
                        count(&self.counters.output, chunk.data.len());
                        past.writing.store(true, Ordering::Relaxed);
                        let written = sink.write_all(chunk.data).await;
                        past.writing.store(false, Ordering::Relaxed);
                        if let Err(e) = written {
                            tracing::debug!("{:?} fd {fd}: cannot be written: {e}", claim.token);
                            break;
                        }
                    }
                    if let Some(successor) = Token::from_bytes(&chunk.left) {
                        past.gone.send_if_modified(|gone| gone.insert(successor));
                    }
                    if chunk.mark != 0 {
                        let told = Chunk { fd, mark: chunk.mark, ..Chunk::default() };
                        answer(through.as_ref(), &sender, told).await;
                    }
                    if chunk.end {
                        outlast(through.as_ref(), sender);
                        return Ended::Whole;
                    }
                }
            }
        }
        let _ = sender.send(Ok(Chunk { fd, broken: true, ..Chunk::default() })).await;
        // The node stops when it hears that; until then what it has under way must not hold it up.
        let drained = async { while let Ok(Some(_)) = requests.message().await {} };
        let _ = tokio::time::timeout(DRAIN, drained).await;
        Ended::Broken
    }
}

/// Ends the tasks; descriptors that nobody called for close with the processes.
fn end(processes: impl IntoIterator<Item = Process>) {
    for process in processes {
        process.running.iter().for_each(AbortHandle::abort);
    }
}

/// A node's call that ended without a word: the node has taken it back, or the connection is lost.
fn gone(request: &Result<Option<Chunk>, Status>) -> Ended {
    match request {
        Err(status) if status.code() == tonic::Code::Cancelled => Ended::Broken,
        _ => Ended::Lost,
    }
}

/// Who is told of streams that are lost.
pub(crate) struct Report {
    fd: OwnedFd,
    /// The process here that they are for.
    owner: i32,
}

impl Report {
    /// One who wants to be.
    pub(crate) fn new(fd: OwnedFd, owner: i32) -> Arc<Report> {
        Arc::new(Report { fd, owner })
    }

    async fn lost(&self, fd: i32) {
        let record = [self.owner.to_ne_bytes(), fd.to_ne_bytes()].concat();
        let told = async {
            let sink = Sink::new(self.fd.try_clone()?, Held::Shared)?;
            sink.write_all(record.into()).await
        };
        // Whoever does not read, does not want to know.
        if let Ok(Err(error)) = tokio::time::timeout(REPORT, told).await {
            tracing::debug!("a lost stream of process {} cannot be told: {error}", self.owner);
        }
    }
}

/// A stream that a node has called for.
struct Claim {
    token: Token,
    fd: i32,
    end: End,
    used: Arc<AtomicBool>,
    report: Option<Arc<Report>>,
    winsize: sync::watch::Receiver<Option<[u8; 8]>>,
}

/// The gRPC face of [`Master`].
pub(crate) struct Face(pub(crate) Arc<Master>);

#[tonic::async_trait]
impl Stdio for Face {
    type ForwardStream = ReceiverStream<Answer>;

    async fn forward(&self, request: Request<Streaming<Chunk>>) -> Result<Response<Self::ForwardStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().and_then(|info| info.peer);
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(WAIT_FOR_TOKEN, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first chunk"))??
            .ok_or_else(|| Status::invalid_argument("the call has no chunk"))?;
        let token = Token::from_bytes(&first.token)
            .ok_or_else(|| Status::invalid_argument("the first chunk must carry a token of 16 bytes"))?;
        let claim = self.0.claim(token, first.fd, peer).await?;
        Ok(Response::new(ReceiverStream::new(self.0.start(claim, requests))))
    }
}
