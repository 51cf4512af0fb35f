//! Connections of ghosts (and of skeletons and init on a node): who is at the other end, commands and their answers,
//! reports. One task a connection.

use crate::kernel::First;
use crate::watched::{sent, watched};
use anyhow::{Context, Result, bail};
use bproc_common::ghost::{MAX_PACKET, Msg, Role, ev, left, op};
use bproc_common::id::Pid;
use bproc_common::wire::Record;
use bproc_core::master::Starter;
use bproc_sys::process::{FileId, Process};
use bproc_sys::seqpacket::{Conn, Listener};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

const SIGCONT: i64 = 18;
/// After so long a ghost that does not answer may have been stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Value of the SIGCONT by which the agent wakes a ghost; the ghost does not forward it.
pub const WAKE: u64 = bproc_common::ghost::WAKE as u64;

/// What a connection tells.
#[derive(Debug)]
pub enum Report {
    /// A ghost said hello.
    Connected {
        /// Its pid in the space.
        pid: Pid,
        /// Its pid here.
        host_pid: i32,
        /// Its parent's pid in the space; none when that is outside.
        parent: Option<Pid>,
        /// What it plays.
        role: Role,
        /// Number of the newest signal that it forwarded; 0 in a fresh one.
        newest: u32,
        /// The `bpsh` that its process comes from, as far as it knows.
        starter: Option<Starter>,
        /// To talk to it.
        ghost: Ghost,
    },
    /// A signal was sent to it.
    Signal {
        /// Whose ghost.
        pid: Pid,
        /// Number at the ghost.
        number: u32,
        /// siginfo_t.
        siginfo: Vec<u8>,
    },
    /// A child changed state (skeletons and init).
    Child {
        /// The parent.
        by: Pid,
        /// The child.
        pid: Pid,
        /// Wait status.
        status: i32,
        /// `struct rusage`, for exits.
        rusage: Vec<u8>,
    },
    /// The connection ended.
    Closed {
        /// Whose.
        pid: Pid,
        /// Which ([`Ghost::id`]).
        id: u64,
    },
}

/// A command and who waits for its answer.
#[derive(Debug)]
struct Command {
    msg: Msg,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
    answer: Option<oneshot::Sender<i64>>,
}

/// To talk to one ghost. Cloning is cheap; the connection lives on its own.
#[derive(Clone, Debug)]
pub struct Ghost {
    id: u64,
    // Unbounded: a ghost always reads, and what is sent to it is bounded by what its one process does.
    commands: mpsc::UnboundedSender<Command>,
}

/// The ghost's connection ended before it answered.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("its connection ended")]
pub struct Gone;

impl Ghost {
    /// Tells connections of the same pid apart.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sends a command without waiting for its answer.
    pub fn tell(&self, op: u32, a: i64, b: i64, payload: Vec<u8>) {
        // An ended connection is reported as Closed; nobody else needs to know.
        let _ = self.send(Msg { op, a, b, ..Msg::default() }, payload, Vec::new(), None);
    }

    /// Sends a command at once; the answer comes later.
    pub fn ask(&self, op: u32, a: i64, b: i64, payload: Vec<u8>, fds: Vec<OwnedFd>) -> oneshot::Receiver<i64> {
        let (answer, receiver) = oneshot::channel();
        let _ = self.send(Msg { op, a, b, ..Msg::default() }, payload, fds, Some(answer));
        receiver
    }

    /// The same for a command with all its arguments.
    pub fn ask_all(&self, msg: Msg, payload: Vec<u8>) -> oneshot::Receiver<i64> {
        let (answer, receiver) = oneshot::channel();
        let _ = self.send(msg, payload, Vec::new(), Some(answer));
        receiver
    }

    /// From now on it leaves queued signals to the process that comes into its place, whom those that it has told must not overtake:
    /// they have been told when this returns. One that is stopped takes none, answers nobody, and is not waited for.
    pub async fn holds_queued(&self, host: Pid) {
        let answer = self.call(op::HOLD, left::QUEUED, 0, vec![]);
        let is_stopped =
            || Process::open(host).and_then(|p| p.stat()).is_ok_and(|stat| matches!(stat.state, b'T' | b't'));
        tokio::pin!(answer);
        while !is_stopped() && tokio::time::timeout(LOOK_AGAIN, &mut answer).await.is_err() {}
    }

    /// The same for callers that wait: value, or the errno as `Err`.
    pub async fn call(&self, op: u32, a: i64, b: i64, payload: Vec<u8>) -> Result<i64, CallError> {
        match self.ask(op, a, b, payload, Vec::new()).await {
            Ok(value) if value < 0 => Err(CallError::Errno(-value as i32)),
            Ok(value) => Ok(value),
            Err(_) => Err(CallError::Gone),
        }
    }

    fn send(
        &self,
        msg: Msg,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
        answer: Option<oneshot::Sender<i64>>,
    ) -> Result<(), Gone> {
        let msg = Msg { len: payload.len() as u32, ..msg };
        self.commands.send(Command { msg, payload, fds, answer }).map_err(|_| Gone)
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum CallError {
    /// The ghost's own answer.
    #[error("errno {0}")]
    Errno(i32),
    /// No answer will come.
    #[error("its connection ended")]
    Gone,
}

impl CallError {
    /// As an errno number; ESRCH for an ended connection.
    pub fn errno(self) -> i32 {
        match self {
            CallError::Errno(n) => n,
            CallError::Gone => libc::ESRCH,
        }
    }
}

/// Waits until what happened before the call has been reported by somebody else; see the master's use.
pub type Barrier = Arc<dyn Fn() -> oneshot::Receiver<i32> + Send + Sync>;

/// Accepts ghosts for ever. Reports go to `wrap` and then to `out`; those of signals and children, and answers, after the kernel's
/// records of what was before them.
pub async fn serve<T: Send + 'static>(
    path: &Path,
    ghost_exe: FileId,
    barrier: Option<Barrier>,
    first: First,
    out: mpsc::Sender<T>,
    wrap: fn(Report) -> T,
) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // A user's process becomes a ghost with the user's rights: everyone may connect; who it is, is checked.
    let listener =
        Listener::bind(path, 0o666).with_context(|| format!("listening for ghosts on {}", path.display()))?;
    let listener = watched(listener, Interest::READABLE).context("watching the ghosts' socket")?;
    tokio::spawn(async move {
        loop {
            let conn = match listener.async_io(Interest::READABLE, |l| l.accept()).await {
                Ok(conn) => conn,
                Err(error) => {
                    tracing::warn!(%error, "accepting a ghost");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            let (out, before) = (out.clone(), (barrier.clone(), first.clone()));
            tokio::spawn(async move {
                if let Err(error) = attend(conn, id, ghost_exe, before, out, wrap).await {
                    tracing::debug!(error = %format!("{error:#}"), "connection of a ghost");
                }
            });
        }
    });
    Ok(())
}

struct Packet {
    msg: Msg,
    payload: Vec<u8>,
}

async fn send(fd: &AsyncFd<Conn>, packet: Option<&(Vec<u8>, Vec<OwnedFd>)>) -> std::io::Result<()> {
    let Some((bytes, fds)) = packet else { return Ok(()) };
    let fds: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
    sent(fd.get_ref(), |c| c.send(bytes, &fds)).await
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset)
}

async fn receive(fd: &AsyncFd<Conn>, buffer: &mut [u8]) -> Result<Option<Packet>> {
    let mut got = fd.async_io(Interest::READABLE, |c| c.recv(buffer)).await;
    if got.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset) {
        // It ended with commands unread. The kernel says so first, and only then gives what the ghost had said before.
        got = fd.async_io(Interest::READABLE, |c| c.recv(buffer)).await;
    }
    let got = got?;
    if got.len == 0 {
        return Ok(None);
    }
    let bytes = &buffer[..got.len];
    let msg = Msg::get(bytes).context("packet shorter than its head")?;
    let payload = bytes[Msg::SIZE..].to_vec();
    if payload.len() != msg.len as usize {
        bail!("packet of {} bytes says it has {} of payload", got.len, msg.len);
    }
    Ok(Some(Packet { msg, payload }))
}

async fn attend<T: Send + 'static>(
    conn: Conn,
    id: u64,
    ghost_exe: FileId,
    before: (Option<Barrier>, First),
    out: mpsc::Sender<T>,
    wrap: fn(Report) -> T,
) -> Result<()> {
    let host_pid = conn.peer()?.pid;
    let peer = Pid::new(host_pid).context("a ghost of another pid namespace")?;
    let exe = Process::open(peer).and_then(|p| p.exe()).with_context(|| format!("who is process {host_pid}"))?;
    if exe != ghost_exe {
        bail!("process {host_pid} is no ghost: it runs another program");
    }
    let fd = watched(conn, Interest::READABLE)?;
    let mut buffer = vec![0; MAX_PACKET];
    let Some(hello) = receive(&fd, &mut buffer).await? else { return Ok(()) };
    if hello.msg.op != ev::HELLO {
        bail!("process {host_pid} begins with {} instead of a hello", hello.msg.op);
    }
    let pid = i32::try_from(hello.msg.a).ok().and_then(Pid::new).context("hello without a pid")?;
    let role = match hello.msg.b {
        0 => Role::Ghost,
        1 => Role::Skeleton,
        2 => Role::Init,
        other => bail!("hello of process {pid} with role {other}"),
    };
    let parent = i32::try_from(hello.msg.c).ok().and_then(Pid::new);
    let (commands, mut inbox) = mpsc::unbounded_channel();
    let ghost = Ghost { id, commands };
    let newest = hello.msg.d as u32;
    let starter = hello.payload.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).filter(|n| *n != 0).map(Starter);
    out.send(wrap(Report::Connected { pid, host_pid, parent, role, newest, starter, ghost })).await.ok();
    let result = converse(&fd, &mut buffer, pid, &mut inbox, before, &out, wrap).await;
    out.send(wrap(Report::Closed { pid, id })).await.ok();
    result
}

async fn converse<T>(
    fd: &AsyncFd<Conn>,
    buffer: &mut [u8],
    pid: Pid,
    inbox: &mut mpsc::UnboundedReceiver<Command>,
    (barrier, first): (Option<Barrier>, First),
    out: &mpsc::Sender<T>,
    wrap: fn(Report) -> T,
) -> Result<()> {
    let mut waiting: HashMap<u32, oneshot::Sender<i64>> = HashMap::new();
    let mut tag = 0u32;
    // Sent beside reading: a ghost whose own reports nobody reads does not read commands either.
    let mut outgoing: Option<(Vec<u8>, Vec<OwnedFd>)> = None;
    // It takes no more. What it said before is read to the end: a child that it made must not be lost with the answer.
    let mut deaf = false;
    loop {
        let waits = outgoing.is_some();
        tokio::select! {
            command = inbox.recv(), if !waits && !deaf => {
                let Some(mut command) = command else { return Ok(()) };
                if command.answer.is_some() {
                    // 0: no answer is wanted.
                    tag = tag.wrapping_add(1).max(1);
                    command.msg.tag = tag;
                }
                let mut packet = vec![0; Msg::SIZE];
                command.msg.put(&mut packet);
                packet.extend(&command.payload);
                if packet.len() > MAX_PACKET {
                    bail!("command {} to {pid} is too long: {} bytes", command.msg.op, packet.len());
                }
                if let Some(answer) = command.answer {
                    waiting.insert(tag, answer);
                }
                outgoing = Some((packet, command.fds));
            }
            sent = send(fd, outgoing.as_ref()), if waits => {
                outgoing = None;
                match sent {
                    Err(error) if is_end(&error) => deaf = true,
                    other => other?,
                }
            }
            packet = receive(fd, buffer) => {
                let Some(Packet { msg, payload }) = packet? else { return Ok(()) };
                let report = match msg.op {
                    ev::RESULT => {
                        first().await;
                        if let Some(answer) = waiting.remove(&msg.tag) {
                            // Whoever asked may have given up.
                            let _ = answer.send(msg.a);
                        }
                        continue;
                    }
                    ev::SIGNAL => {
                        if let (Some(barrier), SIGCONT) = (&barrier, msg.a) {
                            let _ = barrier().await;
                        }
                        first().await;
                        Report::Signal { pid, number: msg.tag, siginfo: payload }
                    }
                    ev::CHILD => {
                        let child = i32::try_from(msg.a).ok().and_then(Pid::new).context("child without a pid")?;
                        tracing::trace!(%pid, %child, "tells of a child");
                        // It may have been forked, and left to who tells of it, a moment ago.
                        first().await;
                        Report::Child { by: pid, pid: child, status: msg.c as i32, rusage: payload }
                    }
                    other => bail!("process {pid} reports {other}, which means nothing"),
                };
                if out.send(wrap(report)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// A new command line as a command: the payload, or nothing when it would not fit (then the old one stays).
pub fn command_line(bytes: &[u8]) -> Option<(u32, Vec<u8>)> {
    (bytes.len() + Msg::SIZE <= MAX_PACKET).then(|| (op::CMDLINE, bytes.to_vec()))
}
