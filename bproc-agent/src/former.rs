//! Movers that a former agent began. Without an agent a mover gives up, or takes its last step at once; one that does not
//! know what became of its process calls here, and is this agent's from then on.

use crate::watched::watched;
use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_mover::wire::{Doubt, FromMover, MAX_PACKET, Report};
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::{Conn, Listener};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::sync::mpsc;

/// How long the last step of a move may take a mover whose agent has gone: less than the lease of a space.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// One that calls says at once why.
const SPEECH: Duration = Duration::from_secs(5);

/// Name of the socket in an agent's directory.
pub const SOCKET: &str = "movers.sock";

/// A mover that waits to be told what became of its process.
#[derive(Debug)]
pub struct Caller {
    /// Which move.
    pub doubt: Doubt,
    /// To it.
    pub conn: Conn,
    /// It.
    pub process: PidFd,
}

/// Those that a former agent began.
#[derive(Debug)]
pub struct Former {
    calls: mpsc::UnboundedReceiver<Caller>,
    /// Not gone, and not heard of.
    at_work: Vec<PidFd>,
}

impl Former {
    /// Waits for their ends, so that what they move is here or is not, and for the calls of those in doubt. One that hears
    /// nothing from its other half takes longer than can be waited for, and calls later.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub async fn find(program: &Path, of: &Path, socket: &Path) -> Result<(Former, Vec<Caller>)> {
        let mut calls = serve(program.to_owned(), socket)?;
        let mut at_work = former(program, of);
        let mut callers: Vec<Caller> = Vec::new();
        if !at_work.is_empty() {
            tracing::info!(movers = at_work.len(), "waiting for movers of a former agent");
        }
        let limit = Instant::now() + PATIENCE;
        while !at_work.is_empty() && Instant::now() < limit {
            callers.extend(std::iter::from_fn(|| calls.try_recv().ok()));
            at_work.retain(|mover| is_open(mover) && !callers.iter().any(|c| c.process.pid() == mover.pid()));
            tokio::time::sleep(PAUSE).await;
        }
        if !at_work.is_empty() {
            tracing::warn!("a mover of a former agent is still at work");
        }
        Ok((Former { calls, at_work }, callers))
    }

    /// Is one still at work, so that it is not known what it will come to?
    pub fn is_at_work(&mut self) -> bool {
        self.at_work.retain(is_open);
        !self.at_work.is_empty()
    }

    /// Passes on those that call later.
    pub fn forward<T: Send + 'static>(&mut self, out: mpsc::Sender<T>, wrap: fn(Caller) -> T) {
        let (_, none) = mpsc::unbounded_channel();
        let mut calls = std::mem::replace(&mut self.calls, none);
        tokio::spawn(async move {
            while let Some(caller) = calls.recv().await {
                if out.send(wrap(caller)).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn is_open(mover: &PidFd) -> bool {
    !mover.has_exited().unwrap_or(true)
}

/// Who they are is read from their executable; the number is held first.
fn former(program: &Path, of: &Path) -> Vec<PidFd> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(Pid::new);
    let ours = |pid: Pid| {
        let end = is_mover(pid, program)?;
        let words = Process::open(pid).ok()?.cmdline().ok()?;
        (words.get(1).map(Vec::as_slice) == Some(of.as_os_str().as_encoded_bytes())).then_some(end)
    };
    pids.filter_map(ours).collect()
}

fn is_mover(pid: Pid, program: &Path) -> Option<PidFd> {
    let end = PidFd::open(pid).ok()?;
    (Process::open(pid).ok()?.exe_path().ok()? == program).then_some(end)
}

fn serve(program: PathBuf, socket: &Path) -> Result<mpsc::UnboundedReceiver<Caller>> {
    let listener = Listener::bind(socket, 0o600);
    let listener = listener.with_context(|| format!("listening for movers on {}", socket.display()))?;
    let listener = watched(listener, Interest::READABLE).context("watching the movers' socket")?;
    let (calls, inbox) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let Ok(conn) = listener.async_io(Interest::READABLE, |l| l.accept()).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (calls, program) = (calls.clone(), program.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(SPEECH, attend(conn, &program)).await {
                    Ok(Ok(caller)) => drop(calls.send(caller)),
                    Ok(Err(error)) => tracing::warn!(error = %format!("{error:#}"), "a call on the movers' socket"),
                    Err(_) => tracing::warn!("a call on the movers' socket without a word"),
                }
            });
        }
    });
    Ok(inbox)
}

/// Who calls, and why.
async fn attend(conn: Conn, program: &Path) -> Result<Caller> {
    let pid = conn.peer().ok().and_then(|peer| Pid::new(peer.pid));
    let process = pid.and_then(|pid| is_mover(pid, program)).context("it is no mover")?;
    conn.set_nonblocking(true)?;
    let fd = watched(conn, Interest::READABLE)?;
    let mut buffer = vec![0; MAX_PACKET];
    let got = fd.async_io(Interest::READABLE, |c| c.recv(&mut buffer)).await?;
    match FromMover::decode(&buffer[..got.len])?.report {
        Some(Report::Doubt(doubt)) => Ok(Caller { doubt, conn: fd.into_inner(), process }),
        other => anyhow::bail!("it says {other:?}"),
    }
}
