//! The agent's side of a mover: one for each half of a move, which it tells what to do and whose words it passes on. One
//! that has done its part well stands ready for the next: to start one takes longer than to move a small process.

use crate::awake::Awake;
use crate::former::Caller;
use crate::watched::{sent, watched};
use anyhow::{Context, Result};
use bproc_config::handoff::{self, Handed, Suite, TrafficKey};
use bproc_config::net::Gate;
use bproc_config::tls::Peer;
use bproc_mover::SOCKET;
use bproc_mover::wire::{
    AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, Done, FromMover, Key, Keys, MAX_PACKET, Program, Report, Stay, Task,
    ToMover,
};
use bproc_proto::Failure;
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use bproc_sys::pidfd::PidFd;
use bproc_sys::seqpacket::Conn;
use prost::Message;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What a mover tells.
#[derive(Debug)]
pub enum Said {
    /// Target: the source may come, to this port.
    Listening(u16),
    /// Its words.
    Report(Report),
    /// It is gone without a last word.
    Lost,
}

/// How long a killed mover may take to be gone.
const DYING: Duration = Duration::from_secs(5);

type Word = (Task, Vec<OwnedFd>);

/// The movers of an agent.
#[derive(Clone, Debug)]
pub struct Movers {
    program: PathBuf,
    /// Directory of the agent, so that a later one finds them.
    of: PathBuf,
    awake: Awake,
    ready: Arc<Mutex<Option<Started>>>,
}

/// One without a task.
#[derive(Debug)]
struct Started {
    conn: Conn,
    process: PidFd,
}

impl Movers {
    /// None is started yet.
    pub fn new(program: PathBuf, of: PathBuf, awake: Awake) -> Movers {
        Movers { program, of, awake, ready: Arc::default() }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Started>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self) -> Result<Started> {
        let ready = self.slot().take();
        if let Some(mover) = ready.filter(|m| m.process.has_exited().is_ok_and(|gone| !gone)) {
            return Ok(mover);
        }
        let (conn, theirs) = Conn::pair().context("a connection to a mover")?;
        let (program, of) = (self.program.clone(), self.of.clone());
        let started = tokio::task::spawn_blocking(move || start(&program, &of, &theirs));
        let process = started.await.context("starting a mover").and_then(|s| s)?;
        Ok(Started { conn, process })
    }

    /// It is free. One is kept; another ends, for nobody talks to it any more.
    fn put(&self, mover: Started) {
        *self.slot() = Some(mover);
    }
}

/// To talk to a mover. Dropping it tells the mover that nobody wants the move any more: before its point of no return
/// it gives up.
#[derive(Clone, Debug)]
pub struct Mover {
    words: mpsc::UnboundedSender<Word>,
}

impl Mover {
    /// Takes a mover, and tells it what it can begin with (if anything), and its task as soon as this is known. What it says
    /// goes to `out`; a task that does not come about is told there as the end, too.
    pub fn start<T: Send + 'static>(
        movers: &Movers,
        first: Option<Task>,
        task: impl Future<Output = Result<Word, Failure>> + Send + 'static,
        out: mpsc::Sender<T>,
        wrap: impl Fn(Said) -> T + Send + Sync + 'static,
    ) -> Mover {
        let (words, inbox) = mpsc::unbounded_channel();
        let movers = movers.clone();
        tokio::spawn(async move {
            let last = match movers.awake.during(live(&movers, first, task, inbox, &out, &wrap)).await {
                Ok(true) => return,
                Ok(false) => Said::Lost,
                Err(failure) => Said::Report(Report::Done(Done {
                    number: failure.number.max(1),
                    message: failure.message,
                    ..Done::default()
                })),
            };
            out.send(wrap(last)).await.ok();
        });
        Mover { words }
    }

    /// One of a former agent's, in the middle of its task.
    pub fn take_over<T: Send + 'static>(
        movers: &Movers,
        caller: Caller,
        out: mpsc::Sender<T>,
        wrap: impl Fn(Said) -> T + Send + Sync + 'static,
    ) -> Mover {
        let (words, inbox) = mpsc::unbounded_channel();
        let movers = movers.clone();
        tokio::spawn(async move {
            let started = Started { conn: caller.conn, process: caller.process };
            if !talk(&movers, started, VecDeque::new(), inbox, &out, &wrap).await {
                out.send(wrap(Said::Lost)).await.ok();
            }
        });
        Mover { words }
    }

    /// Tells it. One that is gone has said so.
    pub fn tell(&self, task: Task) {
        self.tell_with(task, Vec::new());
    }

    /// Tells it, with descriptors.
    pub fn tell_with(&self, task: Task, fds: Vec<OwnedFd>) {
        let _ = self.words.send((task, fds));
    }
}

/// A mover from its start to its end. True when it has said its last word, or nobody wants to hear it; an error when
/// there was none.
async fn live<T>(
    movers: &Movers,
    first: Option<Task>,
    task: impl Future<Output = Result<Word, Failure>>,
    mut inbox: mpsc::UnboundedReceiver<Word>,
    out: &mpsc::Sender<T>,
    wrap: &(impl Fn(Said) -> T + Sync),
) -> Result<bool, Failure> {
    let broken = |error: anyhow::Error| Failure { number: libc::EIO, message: format!("{error:#}") };
    let begun = async {
        let begin = async {
            let mover = movers.take().await?;
            if let Some(first) = first {
                // One that has ended has said why.
                let _ = told(&mover.conn, (first, Vec::new())).await;
            }
            Ok(mover)
        };
        let (mover, task) = tokio::join!(begin, task);
        Ok((mover.map_err(broken)?, task?))
    };
    tokio::pin!(begun);
    let mut early = VecDeque::new();
    let (started, task) = loop {
        tokio::select! {
            begun = &mut begun => break begun?,
            word = inbox.recv() => match word {
                None => return Ok(true),
                Some((Task::Proceed(false), _)) => {
                    return Err(Failure { number: libc::ECANCELED, message: "the agent gave the move up".into() });
                }
                Some(word) => early.push_back(word),
            },
        }
    };
    early.push_front(task);
    Ok(talk(movers, started, early, inbox, out, wrap).await)
}

/// The same from the moment on in which it has a task, which is the first of the early words.
async fn talk<T>(
    movers: &Movers,
    Started { conn, process }: Started,
    early: VecDeque<Word>,
    inbox: mpsc::UnboundedReceiver<Word>,
    out: &mpsc::Sender<T>,
    wrap: &(impl Fn(Said) -> T + Sync),
) -> bool {
    // One that passes an image on has work after its last word.
    let relays = matches!(early.front(), Some((Task::Receive(receive), _)) if receive.relay);
    let end = converse(conn, early, inbox, out, wrap).await.unwrap_or_else(|error| {
        tracing::warn!(error = %format!("{error:#}"), "connection to a mover");
        End::Lost
    });
    match end {
        End::Free(conn) if !relays => {
            movers.put(Started { conn, process });
            true
        }
        End::Over | End::Free(_) => true,
        End::Lost => {
            // What it held is killed with it, and what it had let go is not: that can be told only now.
            let _ = tokio::task::spawn_blocking(move || process.wait_exit(DYING)).await;
            false
        }
    }
}

/// Of a conversation with a mover.
enum End {
    /// It is gone without a last word.
    Lost,
    /// It has said its last word, or nobody wants to hear it.
    Over,
    /// It has done its part well, and waits.
    Free(Conn),
}

/// At the target of a move: the connection of the pages, once the source has come. `told` gets the port.
///
/// # Errors
/// It cannot listen; nobody comes.
pub async fn await_source<F: Future<Output = ()>>(
    listen: IpAddr,
    gate: &Gate,
    from: Peer,
    token: &[u8],
    told: impl FnOnce(u16) -> F,
) -> Result<(OwnedFd, Option<Keys>), Failure> {
    let failed = |what: String| move |e: io::Error| connecting(&what, &e);
    let listener = TcpListener::bind((listen, 0)).await.map_err(failed(format!("listening on {listen}")))?;
    let port = listener.local_addr().map_err(failed(format!("listening on {listen}")))?.port();
    told(port).await;
    handoff::await_peer(listener, gate, from, token).await.map(parts).map_err(failed("waiting for the source".into()))
}

/// At the source of a move: the connection of the pages.
///
/// # Errors
/// The target cannot be reached, or is somebody else.
pub async fn dial_target(
    gate: &Gate,
    address: &str,
    to: Peer,
    token: &[u8],
) -> Result<(OwnedFd, Option<Keys>), Failure> {
    let failed = |e: io::Error| connecting(&format!("the target at {address}"), &e);
    let at = tokio::net::lookup_host(address).await.map_err(failed)?.next();
    let at = at.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    handoff::dial(gate, at, to, token).await.map(parts).map_err(failed)
}

fn connecting(what: &str, error: &io::Error) -> Failure {
    Failure { number: bproc_common::errno::BE_SLAVEDIED, message: format!("{what}: {error}") }
}

/// A connection for a mover.
pub fn parts(handed: Handed) -> (OwnedFd, Option<Keys>) {
    let keys = handed.keys.map(|keys| Keys {
        suite: match keys.suite {
            Suite::Aes128Gcm => AES_128_GCM,
            Suite::Aes256Gcm => AES_256_GCM,
            Suite::Chacha20Poly1305 => CHACHA20_POLY1305,
        },
        send: Some(key(keys.send)),
        receive: Some(key(keys.receive)),
    });
    (handed.stream.into(), keys)
}

fn key(key: TrafficKey) -> Key {
    Key { key: key.key, iv: key.iv, sequence: key.sequence }
}

/// The one whose certificate a node's number in an order names; -1 is the master.
pub fn peer(number: i32) -> Peer {
    if number < 0 { Peer::Master } else { Peer::Node(number) }
}

fn start(program: &Path, of: &Path, theirs: &Conn) -> Result<PidFd> {
    let argv = ["bproc-mover".as_ref(), of.as_os_str()];
    let fds = [(theirs.as_fd(), SOCKET)];
    spawn_detached(&Helper { path: program, argv: &argv, env: &[], fds: &fds, life: Life::Detached })
        .with_context(|| format!("starting {}", program.display()))
}

async fn converse<T>(
    conn: Conn,
    mut early: VecDeque<Word>,
    mut inbox: mpsc::UnboundedReceiver<Word>,
    out: &mpsc::Sender<T>,
    wrap: &(impl Fn(Said) -> T + Sync),
) -> Result<End> {
    conn.set_nonblocking(true).context("a connection to a mover")?;
    let fd = watched(conn, Interest::READABLE)?;
    let mut buffer = vec![0; MAX_PACKET];
    while let Some(word) = early.pop_front() {
        match told(fd.get_ref(), word).await {
            // As below.
            Err(error) if has_ended(&error) => {}
            done => done?,
        }
    }
    loop {
        tokio::select! {
            word = inbox.recv() => {
                // Nobody talks to it any more: closing tells it.
                let Some(word) = word else { return Ok(End::Over) };
                match told(fd.get_ref(), word).await {
                    // It has ended; its last words follow.
                    Err(error) if has_ended(&error) => {}
                    done => done?,
                }
            }
            got = fd.async_io(Interest::READABLE, |c| c.recv(&mut buffer)) => {
                let got = match got {
                    // It ended without hearing our last words: its own follow.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                    got => got?,
                };
                if got.len == 0 {
                    return Ok(End::Lost);
                }
                let Some(report) = FromMover::decode(&buffer[..got.len])?.report else { continue };
                let last = if let Report::Done(done) = &report { Some(done.number) } else { None };
                out.send(wrap(Said::Report(report))).await.ok();
                match last {
                    Some(0) => return Ok(End::Free(fd.into_inner())),
                    Some(_) => return Ok(End::Over),
                    None => {}
                }
            }
        }
    }
}

fn has_ended(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
}

async fn told(conn: &Conn, (task, fds): Word) -> Result<()> {
    let packet = ToMover { task: Some(task) }.encode_to_vec();
    let fds: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
    sent(conn, |c| c.send(&packet, &fds)).await?;
    Ok(())
}

/// The ghost binary as a stand-in of this role.
pub fn stand_in(ghost: &Path, socket: &Path, role: bproc_common::ghost::Role) -> Program {
    use bproc_common::ghost::{ENV_ROLE, ENV_SOCKET};
    use std::os::unix::ffi::OsStrExt;
    let envp = vec![
        format!("{ENV_SOCKET}={}", socket.display()).into_bytes(),
        format!("{ENV_ROLE}={}", role as i64).into_bytes(),
    ];
    Program { path: ghost.as_os_str().as_bytes().to_vec(), envp }
}

/// The program that lends its rights to a stand-in that becomes a process. It lies beside the ghost.
pub fn body(ghost: &Path) -> Program {
    use std::os::unix::ffi::OsStrExt;
    Program { path: ghost.with_file_name("bproc-body").as_os_str().as_bytes().to_vec(), envp: Vec::new() }
}

/// A socket with a good answer in it, for a process that asked for its own move and finds it at the other end: 0, or its
/// rank among those that came as the same process.
pub fn good_answer(rank: u32) -> Option<OwnedFd> {
    use bproc_proto::client::{Moved, Reply, reply};
    let (ours, theirs) = Conn::pair().ok()?;
    let reply = Reply { body: Some(reply::Body::Moved(Moved { arrived: true, rank, ..Moved::default() })) };
    let packet = bproc::frame::Packet::new(&reply.encode_to_vec()).ok()?;
    ours.send(packet.bytes(), &[]).ok()?;
    Some(theirs.into())
}

/// To the source's half: a process may not go.
pub fn stay(pid: i32, why: &str) -> Task {
    Task::Stay(Stay { number: libc::EPERM, message: format!("process {pid} cannot move: {why}") })
}

/// Says why a process that has gone has left no stand-in, when it was to leave one.
pub fn tell_of_loss(pid: i32, done: &Done) {
    if done.no_stand_in && done.number == 0 && !done.message.is_empty() {
        tracing::error!(pid, why = %done.message, "a process moved and left nothing behind");
    }
}
