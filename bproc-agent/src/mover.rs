//! The agent's side of a mover: starts one for each half of a move, tells it, passes on what it says.

use crate::watched::{sent, watched};
use anyhow::{Context, Result};
use bproc_mover::SOCKET;
use bproc_mover::wire::{FromMover, MAX_PACKET, Program, Report, Task, ToMover};
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use bproc_sys::seqpacket::Conn;
use prost::Message;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::sync::mpsc;

/// What a mover tells.
#[derive(Debug)]
pub enum Said {
    /// Its words.
    Report(Report),
    /// It is gone without a last word.
    Lost,
}

type Word = (Task, Vec<OwnedFd>);

/// To talk to a mover. Dropping it tells the mover that nobody wants the move any more: before its point of no return
/// it gives up.
#[derive(Clone, Debug)]
pub struct Mover {
    words: mpsc::UnboundedSender<Word>,
}

impl Mover {
    /// Starts a mover, and tells it its task. What it says goes to `out`.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start<T: Send + 'static>(
        program: PathBuf,
        first: Word,
        out: mpsc::Sender<T>,
        wrap: impl Fn(Said) -> T + Send + Sync + 'static,
    ) -> Result<Mover> {
        let (ours, theirs) = Conn::pair().context("a connection to a mover")?;
        let started = tokio::task::spawn_blocking(move || start(&program, &theirs));
        started.await.context("starting a mover")??;
        ours.set_nonblocking(true).context("a connection to a mover")?;
        let (words, inbox) = mpsc::unbounded_channel();
        let mover = Mover { words };
        mover.tell_with(first.0, first.1);
        tokio::spawn(async move {
            match converse(ours, inbox, &out, &wrap).await {
                Ok(true) => {}
                Ok(false) => drop(out.send(wrap(Said::Lost)).await),
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "connection to a mover");
                    out.send(wrap(Said::Lost)).await.ok();
                }
            }
        });
        Ok(mover)
    }

    /// Tells it. One that is gone has said so.
    pub fn tell(&self, task: Task) {
        self.tell_with(task, Vec::new());
    }

    fn tell_with(&self, task: Task, fds: Vec<OwnedFd>) {
        let _ = self.words.send((task, fds));
    }
}

fn start(program: &Path, theirs: &Conn) -> Result<()> {
    let argv = ["bproc-mover".as_ref()];
    let fds = [(theirs.as_fd(), SOCKET)];
    spawn_detached(&Helper { path: program, argv: &argv, env: &[], fds: &fds, life: Life::Detached })
        .with_context(|| format!("starting {}", program.display()))
        .map(drop)
}

/// True when the mover has said its last word.
async fn converse<T>(
    conn: Conn,
    mut inbox: mpsc::UnboundedReceiver<Word>,
    out: &mpsc::Sender<T>,
    wrap: &(impl Fn(Said) -> T + Sync),
) -> Result<bool> {
    let fd = watched(conn, Interest::READABLE)?;
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        tokio::select! {
            word = inbox.recv() => {
                // Nobody talks to it any more: closing tells it.
                let Some((task, fds)) = word else { return Ok(true) };
                let packet = ToMover { task: Some(task) }.encode_to_vec();
                let fds: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
                sent(fd.get_ref(), |c| c.send(&packet, &fds)).await?;
            }
            got = fd.async_io(Interest::READABLE, |c| c.recv(&mut buffer)) => {
                let got = got?;
                if got.len == 0 {
                    return Ok(false);
                }
                let Some(report) = FromMover::decode(&buffer[..got.len])?.report else { continue };
                let last = matches!(report, Report::Done(_));
                out.send(wrap(Said::Report(report))).await.ok();
                if last {
                    return Ok(true);
                }
            }
        }
    }
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

/// Can this process be moved? Tells why not without touching it.
///
/// # Errors
/// The reason, in words.
pub async fn survey(host_pid: i32, flags: u32, files: u32) -> Result<(), bproc_proto::Failure> {
    let fds = match files {
        0 => vmadump::capture::FdPolicy::Carry,
        1 => vmadump::capture::FdPolicy::DropOthers,
        _ => vmadump::capture::FdPolicy::StdioOnly,
    };
    let options = vmadump::capture::Options { flags, fds };
    let checked = tokio::task::spawn_blocking(move || vmadump::capture::check(host_pid, &options)).await;
    match checked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(bproc_proto::Failure { number: error.errno(), message: error.to_string() }),
        Err(error) => Err(bproc_proto::Failure { number: libc::EIO, message: error.to_string() }),
    }
}

/// A socket with a good answer in it, for a process that asked for its own move and finds it at the other end.
pub fn good_answer() -> Option<OwnedFd> {
    use bproc_proto::client::{Moved, Reply, reply};
    let (ours, theirs) = Conn::pair().ok()?;
    let reply = Reply { body: Some(reply::Body::Moved(Moved::default())) };
    let packet = bproc::frame::Packet::new(&reply.encode_to_vec()).ok()?;
    ours.send(packet.bytes(), &[]).ok()?;
    Some(theirs.into())
}
