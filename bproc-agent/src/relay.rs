//! A node's place among those that get the same image: connections from the one that gives it, and to the next.

use crate::mover::{Mover, dial_target, parts, peer};
use bproc_config::handoff;
use bproc_config::net::Gate;
use bproc_mover::wire::{Relay, Seal, Task};
use bproc_proto::link;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Those who have not joined after this time get the image elsewhere.
const JOINING: Duration = Duration::from_secs(3);

/// Where whoever gives the image is waited for; its port.
///
/// # Errors
/// What bind says.
pub fn listener(listen: IpAddr) -> io::Result<(TcpListener, u16)> {
    let listener = std::net::TcpListener::bind((listen, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((TcpListener::from_std(listener)?, port))
}

/// Joins with the others, and tells the mover.
pub async fn join(mover: Mover, listener: Option<TcpListener>, gate: Gate, order: link::Relay) {
    let giver = async {
        let listener = listener.filter(|_| !order.token.is_empty())?;
        let came = handoff::await_peer(listener, &gate, peer(order.from), &order.token);
        match tokio::time::timeout(JOINING, came).await {
            Ok(Ok(handed)) => Some(parts(handed)),
            Ok(Err(error)) => {
                tracing::warn!(node = order.from, %error, "it gives no image; the source does");
                None
            }
            Err(_) => {
                tracing::warn!(node = order.from, "it does not come to give an image; the source does");
                None
            }
        }
    };
    let mut dialled = JoinSet::new();
    for next in order.to {
        let gate = gate.clone();
        dialled.spawn(async move {
            let made = dial_target(&gate, &next.address, peer(next.node), &next.token);
            match tokio::time::timeout(JOINING, made).await {
                Ok(Ok(line)) => Some(line),
                Ok(Err(failure)) => {
                    tracing::warn!(node = next.node, message = failure.message, "the image does not go on to it");
                    None
                }
                Err(_) => None,
            }
        });
    }
    let (giver, next) = tokio::join!(giver, dialled.join_all());
    let fed = giver.is_some();
    let (fds, lines) =
        giver.into_iter().chain(next.into_iter().flatten()).map(|(fd, keys)| (fd, Seal { keys })).unzip();
    mover.tell_with(Task::Relay(Relay { fed, lines }), fds);
}
