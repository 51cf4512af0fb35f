//! The node's end of the link: dials the master, says hello, carries messages both ways, and begins again for ever.

use super::{Fact, clocks};
use anyhow::{Context, Result, bail};
use bproc_config::net::{Gate, dial, endpoint};
use bproc_config::tls::Peer;
use bproc_proto::link::link_client::LinkClient;
use bproc_proto::link::{FromNode, from_node, to_node};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Where the master is and how to get there.
pub struct Dialer {
    /// HOST:PORT, to be tried in turn.
    pub masters: Vec<String>,
    /// Local address to dial from.
    pub from: Option<IpAddr>,
    /// Certificates.
    pub gate: Gate,
    /// To the node's task.
    pub facts: mpsc::Sender<Fact>,
}

/// Why a link ended.
enum End {
    /// It broke.
    Broken,
    /// The master declared this life dead.
    Fenced,
}

impl Dialer {
    /// Keeps the link for ever.
    pub async fn keep(self) {
        let mut pause = Duration::from_millis(50);
        let mut which = 0;
        let mut last_error = String::new();
        loop {
            let master = &self.masters[which % self.masters.len()];
            match self.once(master).await {
                Ok(End::Broken) => {
                    tracing::warn!(%master, "the link broke");
                    pause = Duration::from_millis(50);
                    last_error.clear();
                }
                Ok(End::Fenced) => {
                    self.facts.send(Fact::Fenced).await.ok();
                }
                Err(error) => {
                    which += 1;
                    let error = format!("{error:#}");
                    // Once is enough for the same reason.
                    if error != last_error {
                        tracing::warn!(%master, %error, "no link; trying again");
                        last_error = error;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn once(&self, master: &str) -> Result<End> {
        let from = self.from.map(|ip| SocketAddr::new(ip, 0));
        let channel = dial(&self.gate, endpoint(), master, Peer::Master, from).await?;
        let mut client = LinkClient::new(channel).max_decoding_message_size(crate::MAX_MESSAGE);
        if let Some(measured) = clocks::measure(&mut client).await {
            self.facts.send(Fact::Clocks(measured)).await.context("the agent is ending")?;
        }
        let (to, receiver) = mpsc::unbounded_channel();
        let (answer, hello) = oneshot::channel();
        self.facts.send(Fact::Hello(answer)).await.context("the agent is ending")?;
        let hello = hello.await.context("the agent is ending")?;
        to.send(FromNode { body: Some(from_node::Body::Hello(hello)) })?;
        let mut stream = client.attach(UnboundedReceiverStream::new(receiver)).await?.into_inner();
        let first = stream.next().await.context("the master said nothing")??;
        let welcome = match first.body {
            Some(to_node::Body::Welcome(mut welcome)) => {
                for address in [&mut welcome.stdio_address, &mut welcome.files_address] {
                    *address = reachable(address, master);
                }
                welcome
            }
            Some(to_node::Body::Refused(refused)) => {
                let failure = refused.failure.unwrap_or_default();
                if failure.number == libc::ESTALE {
                    return Ok(End::Fenced);
                }
                bail!("refused: {}", failure.message);
            }
            _ => bail!("the master began with neither welcome nor refusal"),
        };
        let patience = Duration::from_secs(welcome.ping_timeout_s.max(2).into());
        self.facts.send(Fact::Linked(Box::new(welcome), to)).await.ok();
        if super::clients::is_elsewhere(master).await {
            self.facts.send(Fact::Elsewhere).await.ok();
        }
        // The master pings three times in this time: silence means that it cannot be reached.
        while let Ok(Some(Ok(message))) = tokio::time::timeout(patience, stream.next()).await {
            self.facts.send(Fact::Master(Box::new(message))).await.ok();
        }
        self.facts.send(Fact::Unlinked).await.ok();
        Ok(End::Broken)
    }
}

/// A service that listens on all addresses of the master is to be found where the master was.
pub fn reachable(address: &str, master: &str) -> String {
    match (address.parse::<SocketAddr>(), master.rsplit_once(':')) {
        (Ok(at), Some((host, _))) if at.ip().is_unspecified() => format!("{host}:{}", at.port()),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn an_address_of_all_is_the_masters() {
        assert_eq!(reachable("0.0.0.0:7", "head:2223"), "head:7");
        assert_eq!(reachable("10.0.0.1:7", "head:2223"), "10.0.0.1:7");
        assert_eq!(reachable("[::]:7", "[fd00::1]:2223"), "[fd00::1]:7");
        assert_eq!(reachable("", "head:2223"), "");
    }
}
