//! What is asked on this machine, where the master's is another one: the node's agent passes it on by its link, with
//! what the kernel says of who asks. Several nodes on one machine take turns: one has the socket, the others wait for
//! its end.

use super::{Actor, Fact};
use crate::awake::Awake;
use crate::local::{self, Counter, fail};
use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_proto::Failure;
use bproc_proto::client::{Count, Request, reply, request};
use bproc_proto::link::{Answer, Ask, FromNode, from_node};
use bproc_proto::stream::Kind;
use bproc_stdio::Token;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::PeerCred;
use std::collections::HashMap;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};

struct Open {
    answer: oneshot::Sender<reply::Body>,
    /// The name of the descriptors that were handed over; empty: there are none.
    back: Vec<u8>,
}

/// Questions that the master has not answered yet.
#[derive(Default)]
pub struct Asks {
    last: u64,
    open: HashMap<u64, Open>,
    /// Whoever has this lock has the machine's socket.
    lock: Option<File>,
    waiting: bool,
}

/// Passes on what is asked.
#[derive(Clone)]
struct Relay {
    awake: Awake,
    /// Since somebody has watched.
    changes: Arc<OnceCell<watch::Receiver<u64>>>,
    facts: mpsc::Sender<Fact>,
}

impl Counter for Relay {
    async fn answer(&self, request: request::Body, peer: PeerCred, fds: Vec<OwnedFd>) -> reply::Body {
        let status = Pid::new(peer.pid).and_then(|p| Process::open(p).ok()).and_then(|p| p.status().ok());
        let acts = matches!(request, request::Body::Move(_) | request::Body::Spawn(_));
        let ask = Ask {
            number: 0,
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
            groups: status.map(|s| s.groups).unwrap_or_default(),
            request: Some(Request { body: Some(request) }),
            back: Vec::new(),
        };
        let answered = self.pass_on(ask, fds);
        if acts { self.awake.during(answered).await } else { answered.await }
    }

    async fn changes(&self) -> Result<watch::Receiver<u64>, Failure> {
        let changes = self.changes.get_or_try_init(|| async {
            let (counts, changes) = watch::channel(self.count(None).await?);
            tokio::spawn(self.clone().follow(counts));
            Ok(changes)
        });
        let mut changes = changes.await?.clone();
        changes.mark_unchanged();
        Ok(changes)
    }
}

impl Relay {
    async fn pass_on(&self, ask: Ask, fds: Vec<OwnedFd>) -> reply::Body {
        let (answer, receiver) = oneshot::channel();
        self.facts.send(Fact::Ask(Box::new(ask), fds, answer)).await.ok();
        receiver.await.unwrap_or_else(|_| fail(libc::EAGAIN, "the agent is ending; try again"))
    }

    /// How often the cluster has changed: when that is another number than the one that is known, if one is.
    async fn count(&self, known: Option<u64>) -> Result<u64, Failure> {
        let request = Some(Request { body: Some(request::Body::Count(Count { known })) });
        match self.pass_on(Ask { request, ..Ask::default() }, Vec::new()).await {
            reply::Body::Changed(changed) => Ok(changed.count),
            reply::Body::Failure(failure) => Err(failure),
            _ => Err(Failure { number: libc::EPROTO, message: "the master's answer is no count of changes".into() }),
        }
    }

    /// Tells of changes. One question is open at a time, however many watch.
    async fn follow(self, counts: watch::Sender<u64>) {
        /// Between questions while the node is cut off.
        const PAUSE: Duration = Duration::from_secs(1);
        loop {
            // What happens after a break is not known: the first word after it is told as a change.
            let mut known = Some(*counts.borrow());
            let count = loop {
                match self.count(known.take()).await {
                    Ok(count) => break count,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            };
            counts.send_replace(count);
        }
    }
}

/// True when a master's address (HOST:PORT) is none of this machine's.
pub async fn is_elsewhere(master: &str) -> bool {
    let Ok(addresses) = tokio::net::lookup_host(master).await else { return false };
    addresses.into_iter().all(|address| UdpSocket::bind((address.ip(), 0)).is_err())
}

impl Actor {
    /// The master's machine is another one: this one needs somebody who can be asked.
    pub(super) fn open_counter(&mut self) {
        if std::mem::replace(&mut self.asks.waiting, true) {
            return;
        }
        let (path, facts) = (self.counter().with_extension("lock"), self.facts.clone());
        let waiting = move || match locked(&path) {
            Ok(lock) => drop(facts.blocking_send(Fact::CounterIsFree(lock))),
            Err(error) => tracing::error!(error = %format!("{error:#}"), "nothing can be asked on this machine"),
        };
        if let Err(error) = std::thread::Builder::new().name("counter".into()).spawn(waiting) {
            tracing::error!(%error, "nothing can be asked on this machine");
        }
    }

    fn counter(&self) -> PathBuf {
        bproc_config::paths::agent_socket_in(self.dir.parent().unwrap_or(&self.dir))
    }

    pub(super) fn counter_is_free(&mut self, lock: File) {
        self.asks.lock = Some(lock);
        let relay = Relay { awake: self.spawner.awake.clone(), changes: Arc::default(), facts: self.facts.clone() };
        match local::serve(&self.counter(), relay) {
            Ok(()) => tracing::debug!("serves programs of this machine"),
            Err(error) => tracing::error!(error = %format!("{error:#}"), "nothing can be asked on this machine"),
        }
    }

    pub(super) fn ask(&mut self, ask: Ask, fds: Vec<OwnedFd>, answer: oneshot::Sender<reply::Body>) {
        let Some(to) = self.to_master.clone() else {
            let _ = answer.send(fail(libc::EAGAIN, "the node is cut off from its master at the moment; try again"));
            return;
        };
        self.asks.last += 1;
        let number = self.asks.last;
        let pid = in_space(ask.pid, self.space.record.pid_ns).unwrap_or(0);
        // What it may do depends on who it is now.
        self.look_at([pid]);
        let streams = forwarded(&ask);
        // Nobody else can go.
        let handed = pid > 0 && !fds.is_empty() && streams.len() == fds.len();
        let token = if handed { Token::random().ok() } else { None };
        let back = token.map_or_else(Vec::new, |token| token.as_bytes().to_vec());
        self.asks.open.insert(number, Open { answer, back: back.clone() });
        let mut ask = Ask { number, pid, ..ask };
        let send = move |ask| drop(to.send(FromNode { body: Some(from_node::Body::Ask(Box::new(ask))) }));
        if back.is_empty() {
            return send(ask);
        }
        let (spawner, master) = (self.spawner.clone(), self.stdio_address.clone());
        tokio::spawn(async move {
            match spawner.lead_back(&back, &streams, &fds, &master).await {
                Ok(()) => ask.back = back,
                // The master says that it cannot have them.
                Err(failure) => {
                    tracing::warn!(error = failure.message, "descriptors of a process that asks to move");
                }
            }
            send(ask);
        });
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        let Some(Open { answer: asker, back }) = self.asks.open.remove(&answer.number) else { return };
        let body = answer.reply.and_then(|reply| reply.body);
        if let (Some(reply::Body::Failure(_)), false) = (&body, back.is_empty()) {
            let iod = self.spawner.iod.clone();
            tokio::spawn(async move { iod.forget(&back).await });
        }
        let _ = asker.send(body.unwrap_or_else(|| fail(libc::EPROTO, "the master's answer cannot be read")));
    }

    /// The link is lost, and with it what was asked over it.
    pub(super) fn asks_lost(&mut self) {
        for (_, asker) in self.asks.open.drain() {
            let _ =
                asker.answer.send(fail(libc::EIO, "the link to the master broke; whether it was done is not known"));
        }
    }
}

/// Descriptors that a request to move hands over: number in the process, whether it reads from it.
fn forwarded(ask: &Ask) -> Vec<(i32, bool)> {
    let request = ask.request.as_ref().and_then(|request| request.body.as_ref());
    let Some(request::Body::Move(request)) = request else { return Vec::new() };
    request.streams.iter().filter(|s| s.kind() == Kind::Forward).map(|s| (s.fd, s.input)).collect()
}

fn locked(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Number of a process in this space and no other: anybody can make a namespace with the numbers that he wants.
fn in_space(host_pid: i32, pid_ns: u64) -> Option<i32> {
    let process = Process::open(Pid::new(host_pid)?).ok()?;
    let space = std::fs::metadata(format!("/proc/{host_pid}/ns/pid")).ok()?;
    if space.ino() != pid_ns {
        return None;
    }
    process.status().ok()?.ns_pids.last().copied()
}
