//! What users' processes ask, here and on nodes. Converts; the master decides.

use super::Fact;
use super::address::Address;
use super::caller::{self, Caller};
use super::following::Following;
use super::machines::Machines;
use super::travel::Travel;
use crate::awake::Awake;
use crate::kernel::Kin;
use crate::local::{self, Counter, fail};
use crate::stdio::Iod;
use anyhow::Result;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Starter;
use bproc_proto::client::{self as wire, Reply, reply, request};
use bproc_proto::link::{Answer, Ask};
use bproc_proto::stream::Kind;
use bproc_proto::{Failure, Luggage, SpawnSpec};
use bproc_stdio::wire::Token;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::PeerCred;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
        /// Its parent, if that is a `bpsh`.
        starter: Option<Starter>,
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
    /// Answered when nothing about where a process is, or its ghost, is under way, with its node as by `Where`.
    Settled {
        /// Which.
        pid: Pid,
        /// It is on a node, whether that is known here already or not.
        on_node: bool,
        /// Answered once.
        answer: oneshot::Sender<Option<NodeId>>,
    },
    /// Move a running process.
    Move(Box<super::moving::Asked>),
    /// Hold a process still, whose image many get.
    Hold(Box<super::spread::Asked>),
    /// The move of one of these is over, well or not.
    CameOrFailed(u64),
    /// Its parent wants no more of them.
    Release(u64, Option<Pid>),
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
    /// Keeps this machine awake.
    pub awake: Awake,
    /// Packs programs.
    pub travel: Arc<Travel>,
    /// What the machines of nodes have.
    pub machines: Machines,
    /// Of the master.
    pub address: Address,
    /// Knows parents and children.
    pub kin: Kin,
    /// Whose numbers in /proc are not true yet.
    pub following: Following,
}

/// Serves clients for ever.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(path: &Path, desk: Desk) -> Result<()> {
    local::serve(path, desk)
}

impl Counter for Desk {
    async fn answer(&self, request: request::Body, peer: PeerCred, fds: Vec<OwnedFd>) -> reply::Body {
        answer(request, &Asker::here(peer), fds, self).await
    }

    async fn changes(&self) -> Result<watch::Receiver<u64>, Failure> {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Ok(changes)
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// On this machine: its pid. From a node: 0.
    pub pid: i32,
    /// Effective uid.
    pub uid: u32,
    gid: u32,
    far: Option<Far>,
}

/// Someone on a node's machine.
#[derive(Clone, Debug)]
struct Far {
    node: NodeId,
    number: Option<i32>,
    groups: Vec<u32>,
    /// The name under which its node calls for descriptors that it hands over.
    back: Vec<u8>,
}

impl Asker {
    /// Someone on the master's machine.
    pub fn here(peer: PeerCred) -> Asker {
        Asker { pid: peer.pid, uid: peer.uid, gid: peer.gid, far: None }
    }

    /// The node that speaks for it; none on this machine.
    pub fn node(&self) -> Option<NodeId> {
        self.far.as_ref().map(|far| far.node)
    }

    /// The name under which a node calls for the descriptors that it hands over; empty: they are here, or there are none.
    pub fn back(&self) -> &[u8] {
        self.far.as_ref().map_or(&[], |far| &far.back)
    }

    /// Its number in the cluster, if it is a process of a node's space.
    pub fn number(&self) -> Option<i32> {
        self.far.as_ref().map_or_else(|| super::places::in_space(self.pid), |far| far.number)
    }

    /// Effective gid and supplementary groups.
    pub fn gids(&self) -> BTreeSet<u32> {
        let read = || Process::open(Pid::new(self.pid)?).ok()?.status().ok().map(|status| status.groups);
        let groups = self.far.as_ref().map_or_else(|| read().unwrap_or_default(), |far| far.groups.clone());
        groups.into_iter().chain([self.gid]).collect()
    }
}

/// What someone on a node's machine asks, for whom the node's agent speaks. What changes the machine is asked
/// on the master.
pub async fn answer_node(node: NodeId, ask: Ask, desk: Desk) -> Answer {
    let number = (ask.pid > 0).then_some(ask.pid);
    let asker = Asker {
        pid: 0,
        uid: ask.uid,
        gid: ask.gid,
        far: Some(Far { node, number, groups: ask.groups, back: ask.back }),
    };
    use request::Body;
    let body = match ask.request.and_then(|request| request.body) {
        Some(Body::Move(request)) if request.pid == 0 && number.is_none() => {
            fail(libc::EINVAL, "the caller is no process of the node's space, and cannot move")
        }
        Some(Body::Move(request))
            if asker.back().is_empty() && request.streams.iter().any(|s| s.kind() == Kind::Forward) =>
        {
            fail(libc::EIO, "the node's stdio service has not got the descriptors; the node's log tells why")
        }
        Some(
            body @ (Body::Nodes(_)
            | Body::Processes(_)
            | Body::Whoami(_)
            | Body::Move(_)
            | Body::Hold(_)
            | Body::Release(_)
            | Body::GetAttribute(_)
            | Body::Libraries(_)),
        ) => answer(body, &asker, Vec::new(), &desk).await,
        Some(Body::Count(wire::Count { known })) => {
            let mut changes = desk.changes.clone();
            let count = changes.wait_for(|count| known != Some(*count)).await.map(|count| *count);
            count.map_or_else(|_| ending(), |count| reply::Body::Changed(wire::Changed { count }))
        }
        Some(Body::Spawn(_)) if number.is_some() => {
            fail(libc::EREMOTE, "a process on a node moves, and executes the program where it has come to")
        }
        Some(_) => fail(libc::EOPNOTSUPP, "this is asked on the master's machine, not on a node's"),
        None => fail(libc::EINVAL, "the master's agent does not know this request; is it older than the program?"),
    };
    Answer { number: ask.number, reply: Some(Reply { body: Some(body) }) }
}

fn ending() -> reply::Body {
    fail(libc::EAGAIN, "the agent is ending; try again")
}

/// What is asked once and answered once.
pub(super) async fn answer(request: request::Body, asker: &Asker, fds: Vec<OwnedFd>, desk: &Desk) -> reply::Body {
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
            let gids = asker.gids().into_iter().collect();
            desk.facts.send(Fact::Client(ClientFact::SetNode { change, uid: asker.uid, gids, answer })).await.ok();
            match receiver.await {
                Ok(Ok(())) => reply::Body::Done(wire::Done::default()),
                Ok(Err(failure)) => reply::Body::Failure(failure),
                Err(_) => ending(),
            }
        }
        request::Body::Resize(resize) => {
            let (pid, (answer, receiver)) = (resize.pid, oneshot::channel());
            let fact = ClientFact::Resize { resize, caller: asker.pid, answer };
            desk.facts.send(Fact::Client(fact)).await.ok();
            match receiver.await {
                Ok(true) => reply::Body::Done(wire::Done::default()),
                Ok(false) => fail(libc::ESRCH, &format!("process {pid} is no child of yours that runs on a node")),
                Err(_) => ending(),
            }
        }
        request::Body::Whoami(who) => {
            let node = match asker.node() {
                Some(node) if who.pid == 0 => node.0,
                _ => super::places::whereabouts(who.pid, asker, desk).await.map_or(-1, |n| n.0),
            };
            let master_address = desk.address.tell(asker.node()).into_bytes();
            reply::Body::Self_(wire::Self_ { node, version: env!("CARGO_PKG_VERSION").into(), master_address })
        }
        request::Body::Move(request) => match desk.awake.during(super::moving::ask(request, asker, fds, desk)).await {
            Ok(moved) => reply::Body::Moved(moved),
            Err(failure) => reply::Body::Failure(failure),
        },
        request::Body::Hold(hold) => match super::spread::ask(hold, asker, desk).await {
            Ok(spread) => reply::Body::Held(wire::Held { spread }),
            Err(failure) => reply::Body::Failure(failure),
        },
        request::Body::Release(spread) => {
            let by = Pid::new(asker.number().unwrap_or(asker.pid));
            desk.facts.send(Fact::Client(ClientFact::Release(spread, by))).await.ok();
            reply::Body::Done(wire::Done::default())
        }
        request::Body::Spawn(spawn) => match desk.awake.during(start(spawn, asker, fds, desk)).await {
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
        request::Body::SetAttribute(_) if asker.uid != 0 => fail(libc::EPERM, "only root may set attributes of nodes"),
        request::Body::SetAttribute(set) => {
            let (answer, receiver) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::SetAttribute(set, answer))).await.ok();
            match receiver.await {
                Ok(Ok(())) => reply::Body::Done(wire::Done::default()),
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
        request::Body::ChangeLibraries(_) if !is_admin(asker) => {
            fail(libc::EPERM, "only root (CAP_SYS_ADMIN) may change what nodes keep at hand")
        }
        request::Body::ChangeLibraries(change) => {
            let travel = desk.travel.clone();
            match tokio::task::spawn_blocking(move || travel.change(change.how(), &change.path)).await {
                Ok(Ok(remark)) => reply::Body::Done(wire::Done { remark }),
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
fn is_admin(asker: &Asker) -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = Pid::new(asker.pid).and_then(|pid| Process::open(pid).ok()).and_then(|process| process.status().ok());
    asker.uid == 0 || status.is_some_and(|status| status.caps.effective >> CAP_SYS_ADMIN & 1 != 0)
}

async fn start(
    spawn: wire::Spawn,
    asker: &Asker,
    mut fds: Vec<OwnedFd>,
    desk: &Desk,
) -> Result<wire::Spawned, Failure> {
    let invalid = |message: String| Failure { number: libc::EINVAL, message };
    let pid =
        Pid::new(asker.pid).ok_or_else(|| invalid("the caller is in another pid namespace than the agent".into()))?;
    let mut spec = spawn.spec.ok_or_else(|| invalid("a spawn without a program".into()))?;
    if spec.argv.is_empty() {
        return Err(invalid("a spawn needs at least the zeroth argument".into()));
    }
    if let Some(number) = asker.number().filter(|_| super::places::is_of_a_node(asker.pid, desk))
        && super::places::whereabouts(number, asker, desk).await.is_some()
    {
        let message = format!("process {number} is on a node: it moves, and executes the program where it has come to");
        return Err(Failure { number: libc::EREMOTE, message });
    }
    // One that has just come home: both ends of its move have yet to say so.
    super::places::settled(pid, false, desk).await;
    let unreadable = |error: bproc_sys::Error| Failure {
        number: error.errno(),
        message: format!("process {pid} cannot be read: {error}"),
    };
    let asking = caller::Asking::look(pid).map_err(unreadable)?;
    if let Some(message) = caller::refusal(&asking, spec.securebits, &desk.kin).map_err(unreadable)? {
        return Err(Failure { number: libc::EPERM, message });
    }
    let caller = caller::complete(&asking, &mut spec, &desk.kin).map_err(unreadable)?;
    spec.settings = Some(caller::settings(&asking).map_err(unreadable)?);
    let forwarded: Vec<(i32, bool)> =
        spec.streams.iter().filter(|s| s.kind() == Kind::Forward).map(|s| (s.fd, s.input)).collect();
    let report = if spawn.report { fds.pop() } else { None };
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
    let name = spec.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    environment.push([bproc_common::ghost::ENV_NAME.as_bytes(), b"=", name].concat());
    let starter = if spawn.die_with_parent { caller::starter(spec.ppid) } else { None };
    if spawn.die_with_parent {
        environment.push(format!("{}={}", bproc_common::ghost::ENV_PDEATH, spec.ppid).into_bytes());
    }
    if let Some(Starter(number)) = starter {
        environment.push(format!("{}={number}", bproc_common::ghost::ENV_STARTER).into_bytes());
    }
    let (answer, receiver) = oneshot::channel();
    let fact = ClientFact::Spawn { node: NodeId(spawn.node), spec: Box::new(spec), caller, starter, answer };
    desk.facts.send(Fact::Client(fact)).await.ok();
    // Beside each other: the service waits for a node's call as the node's call waits for it.
    let expected = async {
        if token.is_empty() {
            return Ok(());
        }
        desk.iod.expect(&token, &forwarded, fds, report, pty, pid).await.map_err(|error| Failure {
            number: libc::EIO,
            message: format!("the stdio service of the master does not answer: {error:#}"),
        })
    };
    let (expected, result) = tokio::join!(expected, receiver);
    let ending = Failure { number: libc::EAGAIN, message: "the agent is ending; try again".into() };
    if let Err(mut failure) = result.unwrap_or(Err(ending)).and(expected) {
        let used = !token.is_empty() && desk.iod.forget(&token).await;
        if failure.number == libc::ERESTART && used {
            // What it has read of its input would be missing the second time.
            failure.number = libc::ECONNABORTED;
            failure.message = format!("{}; it is not tried again, since its streams were in use", failure.message);
        }
        return Err(failure);
    }
    use std::os::unix::ffi::OsStrExt;
    Ok(wire::Spawned { ghost_path: desk.ghost.as_os_str().as_bytes().to_vec(), ghost_environment: environment })
}
