//! The file service: content by digest, on connections of its own. The master's answers with content or sends on to a
//! node that has it (or is getting it); a node's answers with content only.

use crate::broker::{Broker, Source};
use crate::digest::Digest;
use bproc_config::net::{Gate, PeerInfo, incoming};
use bproc_proto::files::files_server::{Files, FilesServer};
use bproc_proto::files::{Elsewhere, Noted, Outcome, Piece, Want};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Bytes of a piece.
const PIECE: usize = 1 << 17;
/// Pieces under way in each call: bounds memory, whatever the file's size.
const QUEUE: usize = 4;
/// Files up to this size are not worth another connection.
const SMALL: u64 = 1 << 17;

/// How much of a file has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that can be read.
    pub bytes: u64,
    /// No more will come: all is there, or what comes is given up.
    pub end: Option<bool>,
}

/// A file that can be given.
pub enum Held {
    /// All of it, with its size.
    Whole(Arc<File>, u64),
    /// Still arriving.
    Growing(Arc<File>, watch::Receiver<Progress>),
}

/// Where the service finds files.
pub trait Shelf: Send + Sync + 'static {
    /// Looks for a file. `None`: not here.
    ///
    /// # Errors
    /// It is here, but cannot be given.
    fn find(&self, digest: &Digest) -> io::Result<Option<Held>>;
}

/// Which node is at the other end.
pub type Identify = dyn Fn(&PeerInfo) -> Option<i32> + Send + Sync;

/// The master's part: sends askers to each other.
#[derive(Clone)]
pub struct Spreading {
    /// Who gets it from whom.
    pub broker: Arc<Mutex<Broker>>,
    /// Who asks.
    pub identify: Arc<Identify>,
}

struct Service {
    shelf: Arc<dyn Shelf>,
    spreading: Option<Spreading>,
}

/// Starts the thread that file services and transfers run on, apart from what must answer quickly.
///
/// # Errors
/// No more threads.
pub fn thread() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("files".into()).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// Serves files on the given thread; the address at which it listens.
///
/// # Errors
/// The address cannot be used.
pub async fn serve(
    on: &Handle,
    address: SocketAddr,
    gate: Gate,
    shelf: Arc<dyn Shelf>,
    spreading: Option<Spreading>,
) -> io::Result<SocketAddr> {
    let served = on.spawn(async move {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let service = FilesServer::new(Service { shelf, spreading });
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 22)
            .add_service(service)
            .serve_with_incoming(incoming(listener, gate));
        tokio::spawn(server);
        Ok(bound)
    });
    served.await.map_err(io::Error::other)?
}

fn status(error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::ESTALE) => Status::failed_precondition("it changed on the master while it travelled"),
        _ => Status::internal(error.to_string()),
    }
}

#[tonic::async_trait]
impl Files for Service {
    type GetStream = ReceiverStream<Result<Piece, Status>>;

    async fn get(&self, request: Request<Want>) -> Result<Response<Self::GetStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let want = request.into_inner();
        let digest = Digest::from_slice(&want.digest).ok_or_else(|| Status::invalid_argument("no digest"))?;
        let held = self.shelf.find(&digest).map_err(|error| status(&error))?;
        let held = held.ok_or_else(|| Status::not_found("this file is not here"))?;
        let (to, stream) = mpsc::channel(QUEUE);
        if let (Some(spreading), Some(peer), Held::Whole(_, size)) = (&self.spreading, &peer, &held)
            && *size > SMALL
            && let Some(elsewhere) = spreading.elsewhere(digest, &want, peer)
        {
            let _ = to.try_send(Ok(Piece { elsewhere: Some(elsewhere), ..Piece::default() }));
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        tokio::spawn(give(held, want.offset, to));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn tell(&self, request: Request<Outcome>) -> Result<Response<Noted>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let outcome = request.into_inner();
        let digest = Digest::from_slice(&outcome.digest).ok_or_else(|| Status::invalid_argument("no digest"))?;
        if let (Some(spreading), Some(peer)) = (&self.spreading, &peer)
            && let Some(node) = (spreading.identify)(peer)
        {
            let mut broker = spreading.broker.lock().unwrap_or_else(PoisonError::into_inner);
            broker.told(digest, node, outcome.from, outcome.whole);
        }
        Ok(Response::new(Noted {}))
    }
}

impl Spreading {
    fn elsewhere(&self, digest: Digest, want: &Want, peer: &PeerInfo) -> Option<Elsewhere> {
        let node = (self.identify)(peer)?;
        let address = match want.serves_at.parse::<SocketAddr>() {
            // It listens on all its addresses: the one that it calls from will do.
            Ok(at) if at.ip().is_unspecified() => SocketAddr::new(peer.address.ip(), at.port()).to_string(),
            Ok(at) => at.to_string(),
            Err(_) => String::new(),
        };
        let mut broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        match broker.assign(digest, node, &address, &want.failed, Instant::now()) {
            Source::Master => None,
            Source::Node(node, address) => Some(Elsewhere { node, address }),
        }
    }
}

async fn give(held: Held, from: u64, to: mpsc::Sender<Result<Piece, Status>>) {
    // Whoever does not listen any more needs no answer.
    let _ = match held {
        Held::Whole(file, size) => pieces(&file, from, size, &to).await.map(drop),
        Held::Growing(file, progress) => growing(&file, from, progress, &to).await,
    };
}

/// The asker is gone, or the file cannot be read.
struct Over;

async fn pieces(file: &File, from: u64, end: u64, to: &mpsc::Sender<Result<Piece, Status>>) -> Result<u64, Over> {
    let mut at = from;
    while at < end {
        let mut data = vec![0; PIECE.min((end - at) as usize)];
        match file.read_at(&mut data, at) {
            Ok(0) => {
                let _ = to.send(Err(Status::failed_precondition("it has become shorter"))).await;
                return Err(Over);
            }
            Ok(got) => data.truncate(got),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let _ = to.send(Err(status(&error))).await;
                return Err(Over);
            }
        }
        at += data.len() as u64;
        to.send(Ok(Piece { data: Bytes::from(data), elsewhere: None })).await.map_err(|_| Over)?;
    }
    Ok(at)
}

async fn growing(
    file: &File,
    from: u64,
    mut progress: watch::Receiver<Progress>,
    to: &mpsc::Sender<Result<Piece, Status>>,
) -> Result<(), Over> {
    let mut at = from;
    loop {
        let now = *progress.borrow_and_update();
        at = pieces(file, at, now.bytes.max(at), to).await?;
        match now.end {
            Some(true) => return Ok(()),
            Some(false) => {
                let _ = to.send(Err(Status::aborted("it did not arrive here"))).await;
                return Err(Over);
            }
            None => {
                let ended = progress.changed().await.is_err();
                if ended && progress.borrow().end.is_none() {
                    let _ = to.send(Err(Status::aborted("it did not arrive here"))).await;
                    return Err(Over);
                }
            }
        }
    }
}
