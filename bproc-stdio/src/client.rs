//! Clients of the service, for its agent: [`IodClient`] blocks, [`AsyncIodClient`] does not and may be cloned.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::packet;
use crate::watched::{sent, watch};
use crate::wire::{
    Attach, Back, Body, Empty, Expect, Kind, Leave, MAX_PACKET, Reply, Request, Settle, Share, Status, StreamName,
    StreamSpec, Take, Token, Winsize,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum IodError {
    /// The service cannot be reached, or was lost on the way: start it again.
    #[error("stdio service: {0}")]
    Lost(#[from] io::Error),
    /// The service refused.
    #[error("stdio service refused: {message}")]
    Refused {
        /// errno.
        errno: i32,
        /// In words.
        message: String,
    },
}

/// A stream and its descriptor.
pub type Stream<'a> = (StreamSpec, BorrowedFd<'a>);

fn expect(token: Token, streams: &[Stream<'_>], node: Option<i32>, owner: i32, held: bool) -> Body {
    let streams = streams.iter().map(|(spec, _)| *spec).collect();
    Body::Expect(Expect { token: token.as_bytes().to_vec(), streams, node, owner, held })
}

fn attach(token: Token, streams: &[Stream<'_>], master: &str) -> Body {
    let streams = streams.iter().map(|(spec, _)| *spec).collect();
    Body::Attach(Attach { token: token.as_bytes().to_vec(), streams, master: master.into(), back: false })
}

/// What is an input of a process is an output of the node to which it leads back.
fn other_way(spec: &StreamSpec) -> StreamSpec {
    let kind = if spec.kind() == Kind::Input { Kind::Output } else { Kind::Input };
    StreamSpec::new(spec.fd, kind)
}

fn raw(streams: &[Stream<'_>]) -> Vec<RawFd> {
    streams.iter().map(|(_, fd)| fd.as_raw_fd()).collect()
}

fn outcome(reply: Reply) -> Result<Reply, IodError> {
    match reply.errno {
        0 => Ok(reply),
        errno => Err(IodError::Refused { errno, message: reply.message }),
    }
}

fn lost(why: &str) -> IodError {
    IodError::Lost(io::Error::new(io::ErrorKind::ConnectionReset, why.to_owned()))
}

/// What the streams of a process lead to that comes home.
#[derive(Debug, Default)]
pub struct Taken {
    /// The descriptors, in the order of the streams.
    pub fds: Vec<OwnedFd>,
    /// Some output waits for Leave.
    pub waits: bool,
    /// Inode numbers of pipes among them that lead back to a node.
    pub leading: Vec<u64>,
}

/// Blocking client. Descriptors may be closed once a call has returned.
pub struct IodClient {
    fd: OwnedFd,
    tag: u64,
}

impl IodClient {
    /// Connects to the service at `path`.
    ///
    /// # Errors
    /// As `connect(2)` has them.
    pub fn connect(path: &Path) -> Result<IodClient, IodError> {
        Ok(IodClient { fd: packet::dial(path)?, tag: 0 })
    }

    fn call(&mut self, body: Body, fds: &[RawFd]) -> Result<Reply, IodError> {
        self.tag += 1;
        packet::send(&self.fd, &Request { tag: self.tag, body: Some(body) }.encode_to_vec(), fds)?;
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let Some((len, _)) = packet::receive(&self.fd, &mut buffer)? else {
                return Err(lost("it has ended"));
            };
            let reply = Reply::decode(&buffer[..len]).map_err(|e| lost(&e.to_string()))?;
            if reply.tag == self.tag {
                return outcome(reply);
            }
        }
    }

    /// Master: `node` (`None`: any) is going to call for these streams.
    ///
    /// # Errors
    /// The service is lost, or the streams make no sense.
    pub fn expect(&mut self, token: Token, streams: &[Stream<'_>], node: Option<i32>) -> Result<(), IodError> {
        self.call(expect(token, streams, node, 0, false), &raw(streams)).map(drop)
    }

    /// Master: the same for a process of this machine (`owner`). When that is gone, what was not called for is closed.
    ///
    /// # Errors
    /// As there.
    pub fn expect_for(&mut self, token: Token, streams: &[Stream<'_>], owner: i32) -> Result<(), IodError> {
        self.call(expect(token, streams, None, owner, false), &raw(streams)).map(drop)
    }

    /// Slave: forward these streams from and to the service at `master` (`HOST:PORT`).
    ///
    /// # Errors
    /// The service is lost, or the streams make no sense. A master that cannot be reached shows as closed streams.
    pub fn attach(&mut self, token: Token, streams: &[Stream<'_>], master: &str) -> Result<(), IodError> {
        self.call(attach(token, streams, master), &raw(streams)).map(drop)
    }

    /// Closes what belongs to the token. True: something has passed by these streams, or may have been read.
    ///
    /// # Errors
    /// The service is lost.
    pub fn forget(&mut self, token: Token) -> Result<bool, IodError> {
        Ok(self.call(Body::Forget(token.as_bytes().to_vec()), &[])?.used)
    }

    /// Slave: waits until all that the process has written is written on the master's side. False: some of it cannot
    /// be, since the connection was lost.
    ///
    /// # Errors
    /// The service is lost.
    pub fn flush(&mut self, token: Token) -> Result<bool, IodError> {
        Ok(self.call(Body::Flush(token.as_bytes().to_vec()), &[])?.complete)
    }

    /// Master: passes a new terminal size (`struct winsize`) on.
    ///
    /// # Errors
    /// The service is lost.
    pub fn winsize(&mut self, token: Token, winsize: [u8; 8]) -> Result<(), IodError> {
        let body = Winsize { token: token.as_bytes().to_vec(), winsize: winsize.to_vec() };
        self.call(Body::Winsize(body), &[]).map(drop)
    }

    /// Master: ends the streams of a node that is down.
    ///
    /// # Errors
    /// The service is lost.
    pub fn sever(&mut self, node: i32) -> Result<(), IodError> {
        self.call(Body::Sever(node), &[]).map(drop)
    }

    /// How the service is.
    ///
    /// # Errors
    /// The service is lost.
    pub fn status(&mut self) -> Result<Status, IodError> {
        self.call(Body::Status(Empty {}), &[])?.status.ok_or_else(|| lost("it answered without a status"))
    }

    /// Ends all streams and the service.
    ///
    /// # Errors
    /// The service is lost.
    pub fn quit(&mut self) -> Result<(), IodError> {
        self.call(Body::Quit(Empty {}), &[]).map(drop)
    }
}

/// What an answer comes by.
type Answer = oneshot::Receiver<(Reply, Vec<OwnedFd>)>;

/// Answers awaited, by tag. `None` when the service is lost.
type Waiting = Option<HashMap<u64, oneshot::Sender<(Reply, Vec<OwnedFd>)>>>;

struct Shared {
    fd: AsyncFd<OwnedFd>,
    waiting: Mutex<(u64, Waiting)>,
}

/// Client for tokio; clones share one connection, calls run beside each other.
#[derive(Clone)]
pub struct AsyncIodClient {
    shared: Arc<Shared>,
    /// Ends the receiver with the last clone.
    _receiver: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn receive_replies(shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let got = shared.fd.async_io(Interest::READABLE, |fd| packet::receive(fd, &mut buffer)).await;
        let reply = match got {
            Ok(Some((len, fds))) => Reply::decode(&buffer[..len]).ok().map(|reply| (reply, fds)),
            Ok(None) | Err(_) => None,
        };
        let mut waiting = shared.waiting.lock().unwrap_or_else(|e| e.into_inner());
        match (reply, &mut waiting.1) {
            (Some(reply), Some(map)) => {
                if let Some(sender) = map.remove(&reply.0.tag) {
                    // Whoever asked may have stopped waiting.
                    let _ = sender.send(reply);
                }
            }
            _ => {
                waiting.1 = None;
                return;
            }
        }
    }
}

impl AsyncIodClient {
    /// Connects to the service at `path`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// As `connect(2)` has them.
    pub fn connect(path: &Path) -> Result<AsyncIodClient, IodError> {
        let fd = packet::dial(path)?;
        // Ours alone, so that the flag disturbs nobody.
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            fd: watch(fd, Interest::READABLE).map_err(io::Error::from)?,
            waiting: Mutex::new((0, Some(HashMap::new()))),
        });
        let task = tokio::spawn(receive_replies(shared.clone()));
        Ok(AsyncIodClient { shared, _receiver: Arc::new(AbortOnDrop(task.abort_handle())) })
    }

    /// True when the service is gone; connect or launch anew.
    pub fn is_lost(&self) -> bool {
        self.shared.waiting.lock().unwrap_or_else(|e| e.into_inner()).1.is_none()
    }

    async fn call(&self, body: Body, fds: &[RawFd]) -> Result<Reply, IodError> {
        Ok(self.call_for_fds(body, fds).await?.0)
    }

    async fn call_for_fds(&self, body: Body, fds: &[RawFd]) -> Result<(Reply, Vec<OwnedFd>), IodError> {
        let (reply, fds) = self.begin(body, fds).await?.await.map_err(|_| lost("it has ended"))?;
        outcome(reply).map(|reply| (reply, fds))
    }

    /// Comes back when the request is in the service's hands; the answer comes later.
    async fn begin(&self, body: Body, fds: &[RawFd]) -> Result<Answer, IodError> {
        let (tag, answer) = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(|e| e.into_inner());
            waiting.0 += 1;
            let tag = waiting.0;
            let Some(map) = &mut waiting.1 else {
                return Err(lost("it has ended"));
            };
            let (sender, answer) = oneshot::channel();
            map.insert(tag, sender);
            (tag, answer)
        };
        let bytes = Request { tag, body: Some(body) }.encode_to_vec();
        let sent = sent(self.shared.fd.get_ref(), |fd| packet::send(fd, &bytes, fds)).await;
        if let Err(error) = sent {
            // The receiver may not have seen it yet.
            self.shared.waiting.lock().unwrap_or_else(|e| e.into_inner()).1 = None;
            return Err(error.into());
        }
        Ok(answer)
    }

    /// Master: these streams go on under another name, for a process that moves. See [`Body::Share`].
    ///
    /// # Errors
    /// The service is lost, or the streams make no sense.
    pub async fn share(&self, from: Vec<StreamName>, token: Token, fds: Vec<i32>) -> Result<(), IodError> {
        self.call(Body::Share(Share { from, token: token.as_bytes().to_vec(), fds }), &[]).await.map(drop)
    }

    /// Master: what these streams lead to. See [`Body::Take`].
    ///
    /// # Errors
    /// The service is lost, or the streams make no sense.
    pub async fn take(&self, streams: Vec<StreamName>, token: Token) -> Result<Taken, IodError> {
        let take = Take { streams, token: token.as_bytes().to_vec() };
        let (reply, fds) = self.call_for_fds(Body::Take(take), &[]).await?;
        Ok(Taken { fds, waits: reply.waits, leading: reply.leading })
    }

    /// Slave: a process goes on under another name. See [`Body::Leave`].
    ///
    /// # Errors
    /// The service is lost.
    pub async fn leave(&self, token: Token, successor: Token) -> Result<(), IodError> {
        let (token, successor) = (token.as_bytes().to_vec(), successor.as_bytes().to_vec());
        self.call(Body::Leave(Leave { token, successor }), &[]).await.map(drop)
    }

    /// See [`IodClient::expect`]. The descriptors must stay open until it returns.
    ///
    /// # Errors
    /// As there.
    pub async fn expect(&self, token: Token, streams: &[Stream<'_>], node: Option<i32>) -> Result<(), IodError> {
        self.call(expect(token, streams, node, 0, false), &raw(streams)).await.map(drop)
    }

    /// As [`AsyncIodClient::expect_for`], for a process that still reads its input here: it is not read before
    /// [`AsyncIodClient::open`].
    ///
    /// # Errors
    /// As there.
    pub async fn expect_held(&self, token: Token, streams: &[Stream<'_>], owner: i32) -> Result<(), IodError> {
        self.call(expect(token, streams, None, owner, true), &raw(streams)).await.map(drop)
    }

    /// Master: inputs that were held for the process of this token, or for any, are read. See [`Body::Open`].
    ///
    /// # Errors
    /// The service is lost.
    pub async fn open(&self, token: Option<Token>) -> Result<(), IodError> {
        let token = token.map(|t| t.as_bytes().to_vec()).unwrap_or_default();
        self.call(Body::Open(token), &[]).await.map(drop)
    }

    /// Slave: what was sent ahead to an input comes back. See [`Body::Recall`].
    ///
    /// # Errors
    /// The service is lost, or the stream.
    pub async fn recall(&self, stream: StreamName) -> Result<(), IodError> {
        self.call(Body::Recall(stream), &[]).await.map(drop)
    }

    /// Slave: what became of it. See [`Body::Settle`].
    ///
    /// # Errors
    /// The service is lost.
    pub async fn settle(&self, stream: StreamName, gone: bool) -> Result<(), IodError> {
        self.call(Body::Settle(Settle { stream: Some(stream), gone }), &[]).await.map(drop)
    }

    /// Slave: the stream of a pipe with this inode number; `None`: of no stream. See [`Body::Pipe`].
    ///
    /// # Errors
    /// The service is lost.
    pub async fn stream_of(&self, inode: u64) -> Result<Option<StreamName>, IodError> {
        Ok(self.call(Body::Pipe(inode), &[]).await?.stream)
    }

    /// Slave: the process has ended. See [`Body::Over`].
    ///
    /// # Errors
    /// The service is lost.
    pub async fn over(&self, token: Token) -> Result<(), IodError> {
        self.call(Body::Over(token.as_bytes().to_vec()), &[]).await.map(drop)
    }

    /// See [`IodClient::expect_for`]. The descriptors must stay open until it returns.
    ///
    /// # Errors
    /// As there.
    pub async fn expect_for(&self, token: Token, streams: &[Stream<'_>], owner: i32) -> Result<(), IodError> {
        self.call(expect(token, streams, None, owner, false), &raw(streams)).await.map(drop)
    }

    /// See [`IodClient::attach`]. Comes back when the service has the descriptors, whatever becomes of the caller; what
    /// it says to them is awaited by the second `await`.
    ///
    /// # Errors
    /// As there.
    pub async fn attach(
        &self,
        token: Token,
        streams: &[Stream<'_>],
        master: &str,
    ) -> Result<impl Future<Output = Result<(), IodError>> + Send + use<>, IodError> {
        let answer = self.begin(attach(token, streams, master), &raw(streams)).await?;
        Ok(async { answer.await.map_err(|_| lost("it has ended")).and_then(|(reply, _)| outcome(reply)).map(drop) })
    }

    /// Slave: descriptors of a process that is about to leave, as it has them ([`Body::Back`]).
    ///
    /// # Errors
    /// As for [`IodClient::attach`].
    pub async fn attach_back(&self, token: Token, streams: &[Stream<'_>], master: &str) -> Result<(), IodError> {
        let Body::Attach(ask) = attach(token, streams, master) else { return Ok(()) };
        let other = ask.streams.iter().map(other_way).collect();
        self.call(Body::Attach(Attach { streams: other, back: true, ..ask }), &raw(streams)).await.map(drop)
    }

    /// Master: see [`Body::There`]. Give it a time limit of your own; dropping it is harmless.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn is_there(&self, inode: u64) -> Result<(), IodError> {
        self.call(Body::There(inode), &[]).await.map(drop)
    }

    /// Master: these streams of a process lead back to the node that it leaves ([`Body::Back`]).
    ///
    /// # Errors
    /// The service is lost, or the streams make no sense.
    pub async fn back(&self, token: Token, streams: Vec<StreamSpec>) -> Result<(), IodError> {
        self.call(Body::Back(Back { token: token.as_bytes().to_vec(), streams }), &[]).await.map(drop)
    }

    /// See [`IodClient::forget`].
    ///
    /// # Errors
    /// As there.
    pub async fn forget(&self, token: Token) -> Result<bool, IodError> {
        Ok(self.call(Body::Forget(token.as_bytes().to_vec()), &[]).await?.used)
    }

    /// See [`IodClient::flush`]. Give it a time limit of your own; dropping it is harmless.
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&self, token: Token) -> Result<bool, IodError> {
        Ok(self.call(Body::Flush(token.as_bytes().to_vec()), &[]).await?.complete)
    }

    /// See [`IodClient::winsize`].
    ///
    /// # Errors
    /// As there.
    pub async fn winsize(&self, token: Token, winsize: [u8; 8]) -> Result<(), IodError> {
        let body = Winsize { token: token.as_bytes().to_vec(), winsize: winsize.to_vec() };
        self.call(Body::Winsize(body), &[]).await.map(drop)
    }

    /// See [`IodClient::sever`].
    ///
    /// # Errors
    /// As there.
    pub async fn sever(&self, node: i32) -> Result<(), IodError> {
        self.call(Body::Sever(node), &[]).await.map(drop)
    }

    /// See [`IodClient::status`].
    ///
    /// # Errors
    /// As there.
    pub async fn status(&self) -> Result<Status, IodError> {
        let reply = self.call(Body::Status(Empty {}), &[]).await?;
        reply.status.ok_or_else(|| lost("it answered without a status"))
    }

    /// See [`IodClient::quit`].
    ///
    /// # Errors
    /// As there.
    pub async fn quit(&self) -> Result<(), IodError> {
        self.call(Body::Quit(Empty {}), &[]).await.map(drop)
    }
}
