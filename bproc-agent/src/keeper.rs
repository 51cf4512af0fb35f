//! The agent's side of the keeper: starts it where none runs, asks it, passes on what it tells.

use crate::watched::{sent, watched};
use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_common::keeper::{KeeperMsg, ev, op};
use bproc_common::wire::Record;
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use bproc_sys::seqpacket::Conn;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// What the keeper tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// Answer to [`Keeper::hold`]; the errno on failure.
    Held(Pid, Result<(), i32>),
    /// A child of a ghost is held.
    Adopted(Pid, Option<Pid>),
    /// The ghost stopped; the flag is true when it was told to.
    Stopped(Pid, bool),
    /// The ghost goes on.
    Continued(Pid),
    /// The ghost waits at the gate.
    AtGate(Pid),
    /// The ghost is gone.
    Gone(Pid),
    /// The keeper itself is gone; what it held is free.
    Lost,
}

impl Report {
    /// Whom it is about.
    pub fn pid(&self) -> Option<Pid> {
        match self {
            Report::Held(pid, _)
            | Report::Adopted(pid, _)
            | Report::Stopped(pid, _)
            | Report::Continued(pid)
            | Report::AtGate(pid)
            | Report::Gone(pid) => Some(*pid),
            Report::Lost => None,
        }
    }
}

struct Question {
    msg: KeeperMsg,
    answer: Option<oneshot::Sender<i32>>,
}

/// To ask the keeper.
#[derive(Clone)]
pub struct Keeper {
    /// Its pid.
    pub pid: i32,
    // Unbounded: the keeper always reads.
    questions: mpsc::UnboundedSender<Question>,
}

/// Where the keeper is found and how it is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its program.
    pub program: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// Name of the cluster, shown in its command line.
    pub name: String,
    /// Its log.
    pub log: PathBuf,
}

impl Keeper {
    /// Connects to the running keeper or starts one. Everything that it holds is told first (`Adopted`, then its
    /// state), then the call returns.
    pub async fn start<T: Send + 'static>(
        settings: &Settings,
        out: mpsc::Sender<T>,
        wrap: fn(Report) -> T,
    ) -> Result<Keeper> {
        let conn = match Conn::connect(&settings.socket) {
            Ok(conn) => conn,
            Err(_) => start_anew(settings).await?,
        };
        let pid = conn.peer().context("the keeper's socket")?.pid;
        conn.set_nonblocking(true).context("the keeper's socket")?;
        let fd = Arc::new(watched(conn, Interest::READABLE).context("watching the keeper's socket")?);
        let (questions, inbox) = mpsc::unbounded_channel();
        let keeper = Keeper { pid, questions };
        tokio::spawn(async move {
            if let Err(error) = converse(&fd, inbox, &out, wrap).await {
                tracing::warn!(%error, "connection to the keeper");
            }
            out.send(wrap(Report::Lost)).await.ok();
        });
        keeper.ask(op::LIST, 0).await.map_err(|_| anyhow::anyhow!("the keeper did not answer"))?;
        Ok(keeper)
    }

    /// Seize the process and gate its exit; answered by [`Report::Held`].
    pub fn hold(&self, pid: Pid) {
        self.tell(op::SEIZE, pid);
    }

    /// Open the gate.
    pub fn release(&self, pid: Pid) {
        self.tell(op::RELEASE, pid);
    }

    /// Let go of a process that goes on living.
    pub fn let_go(&self, pid: Pid) {
        self.tell(op::DETACH, pid);
    }

    /// The same; answered when it has happened.
    pub fn hand_over(&self, pid: Pid) -> oneshot::Receiver<i32> {
        self.ask(op::DETACH, pid.get())
    }

    /// Has a stopped ghost run for a moment, or no longer.
    pub fn thaw(&self, pid: Pid, on: bool) {
        self.tell(if on { op::THAW } else { op::FREEZE }, pid);
    }

    /// Answered when all that the keeper saw before has been passed on.
    pub fn barrier(&self) -> oneshot::Receiver<i32> {
        self.ask(op::PING, 0)
    }

    fn ask(&self, op: u32, pid: i32) -> oneshot::Receiver<i32> {
        let (answer, receiver) = oneshot::channel();
        let msg = KeeperMsg { op, pid, ..KeeperMsg::default() };
        let _ = self.questions.send(Question { msg, answer: Some(answer) });
        receiver
    }

    fn tell(&self, op: u32, pid: Pid) {
        let msg = KeeperMsg { op, pid: pid.get(), ..KeeperMsg::default() };
        // A lost keeper is told by itself.
        let _ = self.questions.send(Question { msg, answer: None });
    }
}

async fn start_anew(settings: &Settings) -> Result<Conn> {
    let program = &settings.program;
    let log = File::options().create(true).append(true).open(&settings.log);
    let log = log.with_context(|| format!("opening {}", settings.log.display()))?;
    let argv = [
        "bproc-keeper".as_ref(),
        "--socket".as_ref(),
        settings.socket.as_os_str(),
        "--name".as_ref(),
        settings.name.as_ref(),
    ];
    let fds = [(log.as_fd(), 1), (log.as_fd(), 2)];
    spawn_detached(&Helper { path: program, argv: &argv, env: &[], fds: &fds, life: Life::Detached })
        .with_context(|| format!("starting the keeper {}", program.display()))?;
    connect_soon(&settings.socket).await.context("the keeper was started but does not listen")
}

/// Connects to a socket that is about to appear: tries for five seconds.
pub async fn connect_soon(path: &Path) -> Result<Conn> {
    let mut last = None;
    for _ in 0..500 {
        match Conn::connect(path) {
            Ok(conn) => return Ok(conn),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(anyhow::anyhow!("{}: {}", path.display(), last.map_or_else(String::new, |e| e.to_string())))
}

async fn converse<T>(
    fd: &AsyncFd<Conn>,
    mut inbox: mpsc::UnboundedReceiver<Question>,
    out: &mpsc::Sender<T>,
    wrap: fn(Report) -> T,
) -> Result<()> {
    let mut waiting: HashMap<u32, oneshot::Sender<i32>> = HashMap::new();
    let mut seizing: HashMap<u32, Pid> = HashMap::new();
    let mut tag = 0u32;
    let mut buffer = [0; KeeperMsg::SIZE];
    loop {
        tokio::select! {
            question = inbox.recv() => {
                let Some(mut question) = question else { return Ok(()) };
                tag = tag.wrapping_add(1);
                question.msg.tag = tag;
                if let Some(answer) = question.answer {
                    waiting.insert(tag, answer);
                } else if let (op::SEIZE, Some(pid)) = (question.msg.op, Pid::new(question.msg.pid)) {
                    seizing.insert(tag, pid);
                }
                let mut packet = [0; KeeperMsg::SIZE];
                question.msg.put(&mut packet);
                sent(fd.get_ref(), |c| c.send(&packet, &[])).await?;
            }
            got = fd.async_io(Interest::READABLE, |c| c.recv(&mut buffer)) => {
                let got = got?;
                if got.len == 0 {
                    return Ok(());
                }
                let Some(msg) = KeeperMsg::get(&buffer[..got.len]) else { continue };
                if msg.op == ev::DONE {
                    if let Some(pid) = seizing.remove(&msg.tag) {
                        let result = if msg.value < 0 { Err(-msg.value) } else { Ok(()) };
                        out.send(wrap(Report::Held(pid, result))).await.ok();
                    } else if let Some(answer) = waiting.remove(&msg.tag) {
                        let _ = answer.send(msg.value);
                    }
                    continue;
                }
                for report in reports(&msg) {
                    out.send(wrap(report)).await.ok();
                }
            }
        }
    }
}

fn reports(msg: &KeeperMsg) -> Vec<Report> {
    use bproc_common::keeper::state;
    let Some(pid) = Pid::new(msg.pid) else { return Vec::new() };
    match msg.op {
        ev::ADOPTED => vec![Report::Adopted(pid, Pid::new(msg.value))],
        ev::STOPPED => vec![Report::Stopped(pid, msg.extra == 1)],
        ev::CONTINUED => vec![Report::Continued(pid)],
        ev::EXITING => vec![Report::AtGate(pid)],
        ev::GONE => vec![Report::Gone(pid)],
        ev::STATE => {
            let mut all = vec![Report::Adopted(pid, None)];
            match msg.value {
                state::STOPPED => all.push(Report::Stopped(pid, false)),
                state::EXITING => all.push(Report::AtGate(pid)),
                _ => {}
            }
            all
        }
        _ => Vec::new(),
    }
}
