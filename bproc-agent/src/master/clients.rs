//! The local socket: users' processes ask, one request at a time. Converts; the master decides.

use super::Fact;
use super::caller::{self, Caller};
use super::travel::Travel;
use crate::stdio::Iod;
use crate::watched::{sent, watched};
use anyhow::{Context, Result};
use bproc::frame;
use bproc_common::id::{NodeId, Pid};
use bproc_proto::client::{self as wire, Reply, Request, reply, request};
use bproc_proto::stream::Kind;
use bproc_proto::{Failure, Luggage, SpawnSpec};
use bproc_stdio::wire::Token;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::{Conn, Listener, PeerCred};
use prost::Message;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

/// What clients ask the master.
#[derive(Debug)]
pub enum ClientFact {
    /// Run a program on a node in the place of the caller.
    Spawn {
        /// Where.
        node: NodeId,
        /// Complete.
        spec: Box<SpawnSpec>,
        /// Who asks.
        caller: Caller,
        /// Answered once.
        answer: oneshot::Sender<Result<(), Failure>>,
    },
    /// A new size of a terminal, asked for by the process's parent.
    Resize {
        /// What.
        resize: wire::Resize,
        /// Who asks.
        caller: i32,
        /// False: he has no such child.
        answer: oneshot::Sender<bool>,
    },
    /// On which node a process is; none: on the master.
    Where(Pid, oneshot::Sender<Option<NodeId>>),
    /// Move a running process.
    Move(Box<super::moving::Asked>),
    /// The nodes.
    Nodes(oneshot::Sender<wire::NodeList>),
    /// The processes on nodes.
    Processes(oneshot::Sender<wire::ProcessList>),
    /// A named value of a node.
    Attribute(wire::GetAttribute, oneshot::Sender<Result<Vec<u8>, Failure>>),
    /// Change a named value of a node.
    SetAttribute(wire::SetAttribute, oneshot::Sender<Result<(), Failure>>),
    /// Change a node.
    SetNode {
        /// How.
        change: wire::SetNode,
        /// Who asks.
        uid: u32,
        /// The groups of who asks.
        gids: Vec<u32>,
        /// Answered once.
        answer: oneshot::Sender<Result<(), Failure>>,
    },
}

/// What every client's task needs.
#[derive(Clone)]
pub struct Desk {
    /// To the master.
    pub facts: mpsc::Sender<Fact>,
    /// The stdio service.
    pub iod: Arc<Iod>,
    /// Counts changes of the machine.
    pub changes: watch::Receiver<u64>,
    /// The ghost binary.
    pub ghost: PathBuf,
    /// The ghosts' socket.
    pub ghost_socket: PathBuf,
    /// Packs programs.
    pub travel: Arc<Travel>,
}

/// Accepts clients for ever.
pub async fn serve(path: &Path, desk: Desk) -> Result<()> {
    let listener = Listener::bind(path, 0o666).with_context(|| format!("listening on {}", path.display()))?;
    let listener = watched(listener, Interest::READABLE)?;
    tokio::spawn(async move {
        loop {
            match listener.async_io(Interest::READABLE, |l| l.accept()).await {
                Ok(conn) => {
                    let desk = desk.clone();
                    tokio::spawn(async move {
                        if let Err(error) = attend(conn, desk).await {
                            tracing::debug!(error = %format!("{error:#}"), "a client's connection");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a client");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn attend(conn: Conn, desk: Desk) -> Result<()> {
    let peer = conn.peer()?;
    let fd = watched(conn, Interest::READABLE)?;
    loop {
        let got = fd.async_io(Interest::READABLE, receive).await?;
        if matches!(got, Err(frame::FrameError::Closed)) {
            return Ok(());
        }
        let decoded = got.map_err(anyhow::Error::from).and_then(|(bytes, fds)| Ok((Request::decode(&bytes[..])?, fds)));
        let (request, fds) = match decoded {
            Ok((Request { body: Some(body) }, fds)) => (body, fds),
            Ok((Request { body: None }, _)) => {
                return send(
                    &fd,
                    fail(libc::EINVAL, "the agent does not know this request; is it older than the program?"),
                )
                .await;
            }
            Err(error) => {
                return send(&fd, fail(libc::EPROTO, &format!("the request cannot be read: {error:#}"))).await;
            }
        };
        if let request::Body::Watch(_) = request {
            return watch_changes(&fd, desk.changes).await;
        }
        let body = answer(request, peer, fds, &desk).await;
        send(&fd, body).await?;
    }
}

/// A request and its descriptors.
type Received = (Vec<u8>, Vec<OwnedFd>);

/// One packet, by way of a buffer that all clients of a thread share: most have little to say.
fn receive(conn: &Conn) -> std::io::Result<Result<Received, frame::FrameError>> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; frame::PACKET_MAX]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let got = conn.recv(buffer)?;
        Ok(frame::decode(&buffer[..got.len], got.fds))
    })
}

fn fail(number: i32, message: &str) -> reply::Body {
    reply::Body::Failure(Failure { number, message: message.into() })
}

async fn send(fd: &AsyncFd<Conn>, body: reply::Body) -> Result<()> {
    let bytes = Reply { body: Some(body) }.encode_to_vec();
    let packet = frame::Packet::new(&bytes)?;
    let fds: Vec<_> = packet.memfd().into_iter().collect();
    sent(fd.get_ref(), |c| c.send(packet.bytes(), &fds)).await?;
    Ok(())
}

async fn watch_changes(fd: &AsyncFd<Conn>, mut changes: watch::Receiver<u64>) -> Result<()> {
    changes.mark_unchanged();
    send(fd, reply::Body::Done(wire::Done {})).await?;
    let mut byte = [0; 16];
    loop {
        tokio::select! {
            changed = changes.changed() => {
                changed?;
                send(fd, reply::Body::Changed(wire::Changed {})).await?;
            }
            got = fd.async_io(Interest::READABLE, |c| c.recv(&mut byte)) => {
                if got?.len == 0 {
                    return Ok(());
                }
            }
        }
    }
}

async fn answer(request: request::Body, peer: PeerCred, fds: Vec<OwnedFd>, desk: &Desk) -> reply::Body {
    let ending = || fail(libc::EAGAIN, "the agent is ending; try again");
    match request {
        request::Body::Nodes(_) => {
            let (answer, receiver) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::Nodes(answer))).await.ok();
            receiver.await.map_or_else(|_| ending(), reply::Body::Nodes)
        }
        request::Body::Processes(_) => {
            let (answer, receiver) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::Processes(answer))).await.ok();
            receiver.await.map_or_else(|_| ending(), reply::Body::Processes)
        }
        request::Body::SetNode(change) => {
            let (answer, receiver) = oneshot::channel();
            let gids = Pid::new(peer.pid).and_then(|p| Process::open(p).ok()).and_then(|p| p.status().ok());
            let mut gids = gids.map(|s| s.groups).unwrap_or_default();
            gids.push(peer.gid);
            desk.facts.send(Fact::Client(ClientFact::SetNode { change, uid: peer.uid, gids, answer })).await.ok();
            match receiver.await {
                Ok(Ok(())) => reply::Body::Done(wire::Done {}),
                Ok(Err(failure)) => reply::Body::Failure(failure),
                Err(_) => ending(),
            }
        }
        request::Body::Resize(resize) => {
            let (pid, (answer, receiver)) = (resize.pid, oneshot::channel());
            let fact = ClientFact::Resize { resize, caller: peer.pid, answer };
            desk.facts.send(Fact::Client(fact)).await.ok();
            match receiver.await {
                Ok(true) => reply::Body::Done(wire::Done {}),
                Ok(false) => fail(libc::ESRCH, &format!("process {pid} is no child of yours that runs on a node")),
                Err(_) => ending(),
            }
        }
        request::Body::Whoami(_) => {
            let (answer, receiver) = oneshot::channel();
            let asker = super::moving::in_space(peer.pid).unwrap_or(peer.pid);
            match Pid::new(asker) {
                Some(pid) => desk.facts.send(Fact::Client(ClientFact::Where(pid, answer))).await.is_ok(),
                None => false,
            };
            let node = receiver.await.ok().flatten().map_or(-1, |n| n.0);
            reply::Body::Self_(wire::Self_ { node, version: env!("CARGO_PKG_VERSION").into(), master_address: vec![] })
        }
        request::Body::Move(request) => match super::moving::ask(request, peer, fds, desk).await {
            Ok(moved) => reply::Body::Moved(moved),
            Err(failure) => reply::Body::Failure(failure),
        },
        request::Body::Spawn(spawn) => match start(spawn, peer, fds, desk).await {
            Ok(spawned) => reply::Body::Spawned(spawned),
            Err(failure) => reply::Body::Failure(failure),
        },
        request::Body::GetAttribute(get) => {
            let (answer, receiver) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::Attribute(get, answer))).await.ok();
            match receiver.await {
                Ok(Ok(value)) => reply::Body::Attribute(wire::Attribute { value }),
                Ok(Err(failure)) => reply::Body::Failure(failure),
                Err(_) => ending(),
            }
        }
        request::Body::SetAttribute(_) if peer.uid != 0 => fail(libc::EPERM, "only root may set attributes of nodes"),
        request::Body::SetAttribute(set) => {
            let (answer, receiver) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::SetAttribute(set, answer))).await.ok();
            match receiver.await {
                Ok(Ok(())) => reply::Body::Done(wire::Done {}),
                Ok(Err(failure)) => reply::Body::Failure(failure),
                Err(_) => ending(),
            }
        }
        request::Body::Libraries(_) => {
            let travel = desk.travel.clone();
            let paths = tokio::task::spawn_blocking(move || travel.libraries()).await.unwrap_or_default();
            let paths = paths.into_iter().map(|path| path.into_os_string().into_encoded_bytes()).collect();
            reply::Body::Libraries(wire::LibraryList { paths })
        }
        request::Body::ChangeLibraries(_) if !is_admin(peer) => {
            fail(libc::EPERM, "only root (CAP_SYS_ADMIN) may change what nodes keep at hand")
        }
        request::Body::ChangeLibraries(change) => {
            let travel = desk.travel.clone();
            match tokio::task::spawn_blocking(move || travel.change(change.how(), &change.path)).await {
                Ok(Ok(())) => reply::Body::Done(wire::Done {}),
                Ok(Err(failure)) => reply::Body::Failure(failure),
                Err(_) => ending(),
            }
        }
        _ => fail(libc::ENOSYS, "not served here"),
    }
}

/// Most programs were packed before, and nothing has changed; to find that out is quick. The rest reads files.
async fn pack(desk: &Desk, spec: &SpawnSpec) -> Result<Luggage, Failure> {
    if let Some(luggage) = desk.travel.packed(spec) {
        return Ok(luggage);
    }
    let (travel, spec) = (desk.travel.clone(), spec.clone());
    let packed = tokio::task::spawn_blocking(move || travel.pack(&spec)).await;
    packed.unwrap_or_else(|error| Err(Failure { number: libc::EIO, message: format!("packing the program: {error}") }))
}

/// Root, or whoever else may administrate the machine.
fn is_admin(peer: PeerCred) -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = Pid::new(peer.pid).and_then(|pid| Process::open(pid).ok()).and_then(|process| process.status().ok());
    peer.uid == 0 || status.is_some_and(|status| status.caps.effective >> CAP_SYS_ADMIN & 1 != 0)
}

async fn start(spawn: wire::Spawn, peer: PeerCred, fds: Vec<OwnedFd>, desk: &Desk) -> Result<wire::Spawned, Failure> {
    let invalid = |message: String| Failure { number: libc::EINVAL, message };
    let pid =
        Pid::new(peer.pid).ok_or_else(|| invalid("the caller is in another pid namespace than the agent".into()))?;
    let mut spec = spawn.spec.ok_or_else(|| invalid("a spawn without a program".into()))?;
    if spec.argv.is_empty() {
        return Err(invalid("a spawn needs at least the zeroth argument".into()));
    }
    let caller = caller::complete(pid, &mut spec).map_err(|error| Failure {
        number: error.errno(),
        message: format!("process {pid} cannot be read: {error}"),
    })?;
    let forwarded: Vec<(i32, bool)> =
        spec.streams.iter().filter(|s| s.kind() == Kind::Forward).map(|s| (s.fd, s.input)).collect();
    if forwarded.len() != fds.len() {
        return Err(invalid(format!("{} streams to forward, but {} descriptors came", forwarded.len(), fds.len())));
    }
    let token = match forwarded.is_empty() {
        true => Vec::new(),
        false => Token::random().map(|t| t.as_bytes().to_vec()).map_err(|error| Failure {
            number: libc::EIO,
            message: format!("no random numbers for a token: {error}"),
        })?,
    };
    if spawn.travel {
        spec.luggage = Some(pack(desk, &spec).await?);
    }
    spec.stdio_token = token.clone();
    let pty = spec.pty;
    let mut environment =
        vec![format!("{}={}", bproc_common::ghost::ENV_SOCKET, desk.ghost_socket.display()).into_bytes()];
    if spawn.die_with_parent {
        environment.push(format!("{}={}", bproc_common::ghost::ENV_PDEATH, spec.ppid).into_bytes());
    }
    let (answer, receiver) = oneshot::channel();
    let fact = ClientFact::Spawn { node: NodeId(spawn.node), spec: Box::new(spec), caller, answer };
    desk.facts.send(Fact::Client(fact)).await.ok();
    // Beside each other: the service waits for a node's call as the node's call waits for it.
    let expected = async {
        if token.is_empty() {
            return Ok(());
        }
        desk.iod.expect(&token, &forwarded, fds, pty).await.map_err(|error| Failure {
            number: libc::EIO,
            message: format!("the stdio service of the master does not answer: {error:#}"),
        })
    };
    let (expected, result) = tokio::join!(expected, receiver);
    let ending = Failure { number: libc::EAGAIN, message: "the agent is ending; try again".into() };
    if let Err(failure) = result.unwrap_or(Err(ending)).and(expected) {
        if !token.is_empty() {
            desk.iod.forget(&token).await;
        }
        return Err(failure);
    }
    use std::os::unix::ffi::OsStrExt;
    Ok(wire::Spawned { ghost_path: desk.ghost.as_os_str().as_bytes().to_vec(), ghost_environment: environment })
}
