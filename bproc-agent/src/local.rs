//! The socket of a machine's agent: users' processes ask, one request at a time.

use crate::watched::{sent, watched};
use anyhow::{Context, Result};
use bproc::frame;
use bproc_proto::Failure;
use bproc_proto::client::{self as wire, Reply, Request, reply, request};
use bproc_sys::seqpacket::{Conn, Listener, PeerCred};
use prost::Message;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Whoever answers.
pub trait Counter: Clone + Send + Sync + 'static {
    /// Answers one request; never a Watch.
    fn answer(
        &self,
        request: request::Body,
        peer: PeerCred,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = reply::Body> + Send;

    /// Counts changes of the cluster, for those who watch; those after this has returned are told.
    fn changes(&self) -> impl Future<Output = Result<watch::Receiver<u64>, Failure>> + Send;
}

/// Serves clients for ever.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(path: &Path, counter: impl Counter) -> Result<()> {
    let listener = Listener::bind(path, 0o666).with_context(|| format!("listening on {}", path.display()))?;
    let listener = watched(listener, Interest::READABLE)?;
    tokio::spawn(async move {
        loop {
            match listener.async_io(Interest::READABLE, |l| l.accept()).await {
                Ok(conn) => {
                    let counter = counter.clone();
                    tokio::spawn(async move {
                        if let Err(error) = attend(conn, &counter).await {
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

async fn attend(conn: Conn, counter: &impl Counter) -> Result<()> {
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
            return match counter.changes().await {
                Ok(changes) => watch_changes(&fd, changes).await,
                Err(failure) => send(&fd, reply::Body::Failure(failure)).await,
            };
        }
        let body = match request {
            request::Body::Count(_) => fail(libc::EINVAL, "this is asked by agents; programs watch"),
            request => counter.answer(request, peer, fds).await,
        };
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

/// A failure as an answer.
pub fn fail(number: i32, message: &str) -> reply::Body {
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
    send(fd, reply::Body::Done(wire::Done::default())).await?;
    let mut byte = [0; 16];
    loop {
        tokio::select! {
            changed = changes.changed() => {
                changed?;
                send(fd, reply::Body::Changed(wire::Changed::default())).await?;
            }
            got = fd.async_io(Interest::READABLE, |c| c.recv(&mut byte)) => {
                if got?.len == 0 {
                    return Ok(());
                }
            }
        }
    }
}
