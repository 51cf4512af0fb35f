//! The gRPC service for schedulers: the requests of the local socket, in another dress. Who asks is told by the socket.

use super::Fact;
use super::clients::{self, Asker, ClientFact, Desk};
use anyhow::{Context, Result};
use bproc_common::errno;
use bproc_common::id::Pid;
use bproc_proto::api::space_server::{Space, SpaceServer};
use bproc_proto::api::{MoveRequest, SignalRequest};
use bproc_proto::client::{self as wire, reply, request};
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::PeerCred;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status};

/// Lists that a slow watcher is behind before it misses some; the newest it always gets.
const BEHIND: usize = 4;
/// Which read-only mappings travel as data: those that travel with bpmove.
const FLAGS: u32 = bproc::MoveRequest::FLAGS;

/// Serves for ever.
pub fn serve(path: &Path, desk: Desk) -> Result<()> {
    let named = || format!("listening for schedulers on {}", path.display());
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(named),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(named)?;
    let server = tonic::transport::Server::builder().add_service(SpaceServer::new(Api { desk }));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    Ok(())
}

struct Api {
    desk: Desk,
}

/// A failure in gRPC's words.
fn status(number: i32, message: impl Into<String>) -> Status {
    let code = match number {
        libc::EPERM | libc::EACCES => Code::PermissionDenied,
        libc::ESRCH | libc::ENOENT | errno::BE_INVALIDNODE => Code::NotFound,
        libc::EINVAL => Code::InvalidArgument,
        libc::EAGAIN | libc::ERESTART | errno::BE_NODEDOWN | errno::BE_SLAVEDIED => Code::Unavailable,
        libc::EBUSY => Code::Aborted,
        libc::ENOSYS => Code::Unimplemented,
        libc::EIO | libc::EPROTO => Code::Internal,
        _ => Code::FailedPrecondition,
    };
    let mut status = Status::new(code, message);
    status.metadata_mut().insert("bproc-errno", number.into());
    status
}

fn asker<T>(request: &Request<T>) -> Result<Asker, Status> {
    let cred = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let cred = cred.ok_or_else(|| Status::unauthenticated("the socket does not tell who calls"))?;
    Ok(Asker::here(PeerCred { pid: cred.pid().unwrap_or(0), uid: cred.uid(), gid: cred.gid() }))
}

impl Api {
    async fn ask(&self, asker: &Asker, body: request::Body) -> Result<reply::Body, Status> {
        match clients::answer(body, asker, Vec::new(), &self.desk).await {
            reply::Body::Failure(failure) => Err(status(failure.number, failure.message)),
            body => Ok(body),
        }
    }

    async fn nodes(&self, asker: &Asker) -> Result<wire::NodeList, Status> {
        match self.ask(asker, request::Body::Nodes(wire::Nodes {})).await? {
            reply::Body::Nodes(list) => Ok(list),
            _ => Err(unexpected()),
        }
    }
}

/// With names and states, which the ghosts have; who has ended meanwhile goes without.
fn named(mut list: wire::ProcessList) -> wire::ProcessList {
    for process in &mut list.processes {
        let stat = Pid::new(process.pid).and_then(|pid| Process::open(pid).ok()).and_then(|p| p.stat().ok());
        if let Some(stat) = stat {
            process.comm = String::from_utf8_lossy(&stat.comm).into_owned();
            process.state = char::from(stat.state).to_string();
        }
    }
    list
}

fn unexpected() -> Status {
    Status::internal("the agent answered something else; this is a fault of its own")
}

fn not_signalled(number: i32, pid: Pid, error: &bproc_sys::Error) -> Status {
    status(error.errno(), format!("signal {number} to process {pid}: {error}"))
}

/// kill(2) with the rights of `uid`, of a process that is on a node.
fn signal(handle: &PidFd, pid: Pid, number: i32, uid: u32) -> Result<(), Status> {
    let failed = |error: bproc_sys::Error| not_signalled(number, pid, &error);
    // Its ghost has its user's ids. As in kill(2): the sender's is its real or its saved one.
    let owners = Process::open(pid).and_then(|p| p.status()).map_err(failed)?.uids;
    if uid != 0 && uid != owners.real && uid != owners.saved {
        return Err(status(libc::EPERM, format!("process {pid} belongs to user {}, not to you", owners.real)));
    }
    if number == 0 {
        return Ok(());
    }
    handle.send_signal(number).map_err(failed)
}

#[tonic::async_trait]
impl Space for Api {
    async fn list_nodes(&self, request: Request<wire::Nodes>) -> Result<Response<wire::NodeList>, Status> {
        self.nodes(&asker(&request)?).await.map(Response::new)
    }

    type WatchNodesStream = Pin<Box<dyn Stream<Item = Result<wire::NodeList, Status>> + Send>>;

    async fn watch_nodes(&self, request: Request<wire::Watch>) -> Result<Response<Self::WatchNodesStream>, Status> {
        let asker = asker(&request)?;
        let (api, mut changes) = (Api { desk: self.desk.clone() }, self.desk.changes.clone());
        let (out, lists) = mpsc::channel(BEHIND);
        changes.mark_changed();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = out.closed() => return,
                }
                if out.send(api.nodes(&asker).await).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(lists))))
    }

    async fn set_node(&self, request: Request<wire::SetNode>) -> Result<Response<wire::Done>, Status> {
        let asker = asker(&request)?;
        match self.ask(&asker, request::Body::SetNode(request.into_inner())).await? {
            reply::Body::Done(done) => Ok(Response::new(done)),
            _ => Err(unexpected()),
        }
    }

    async fn list_processes(&self, request: Request<wire::Processes>) -> Result<Response<wire::ProcessList>, Status> {
        match self.ask(&asker(&request)?, request::Body::Processes(wire::Processes {})).await? {
            reply::Body::Processes(list) => {
                let named = tokio::task::spawn_blocking(move || named(list)).await;
                named.map(Response::new).map_err(|error| Status::internal(format!("reading names: {error}")))
            }
            _ => Err(unexpected()),
        }
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<wire::Moved>, Status> {
        let asker = asker(&request)?;
        let asked = request.into_inner();
        if asked.pid <= 1 {
            return Err(status(libc::EINVAL, format!("{} is no process that can move", asked.pid)));
        }
        let files = if asked.drop_files { wire::r#move::Files::DropOthers } else { wire::r#move::Files::Carry };
        let body =
            wire::Move { pid: asked.pid, node: asked.node, flags: FLAGS, files: files.into(), ..wire::Move::default() };
        match self.ask(&asker, request::Body::Move(body)).await? {
            reply::Body::Moved(moved) => Ok(Response::new(moved)),
            _ => Err(unexpected()),
        }
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<wire::Done>, Status> {
        let asker = asker(&request)?;
        let asked = request.into_inner();
        let pid = Pid::new(asked.pid).filter(|pid| pid.get() > 1);
        let pid = pid.ok_or_else(|| status(libc::EINVAL, format!("{} is no process of the space", asked.pid)))?;
        if !(0..=64).contains(&asked.signal) {
            return Err(status(libc::EINVAL, format!("{} is no signal: 0 to 64", asked.signal)));
        }
        let nowhere = || status(libc::ESRCH, format!("process {pid} is on no node; bpstat -p lists those that are"));
        // Before it is asked where it is: a number that is used again in between is somebody else's.
        let handle = match PidFd::open(pid) {
            Err(error) if error.errno() == libc::ESRCH => return Err(nowhere()),
            handle => handle.map_err(|error| not_signalled(asked.signal, pid, &error))?,
        };
        let (answer, place) = oneshot::channel();
        self.desk.facts.send(Fact::Client(ClientFact::Where(pid, answer))).await.ok();
        match place.await {
            Err(_) => Err(status(libc::EAGAIN, "the agent is ending; try again")),
            Ok(None) => Err(nowhere()),
            Ok(Some(_)) => signal(&handle, pid, asked.signal, asker.uid).map(|()| Response::new(wire::Done::default())),
        }
    }
}
