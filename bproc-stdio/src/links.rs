//! Connections of a node's service to the masters' ones: dialled when needed, kept, shared by many calls.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bproc_config::net::{self, Gate};
use bproc_config::tls::Peer;
use bproc_proto::stdio::stdio_client::StdioClient;
use tonic::transport::Channel;

use crate::pump::{CALLS_PER_CONNECTION, CONNECTION_WINDOW, FRAME, STREAM_WINDOW, keep_alive};

/// A connection; one reference for each call on it, and one of [`Links`].
pub(crate) struct Link {
    channel: Channel,
    dead: AtomicBool,
}

impl Link {
    pub(crate) fn client(&self) -> StdioClient<Channel> {
        StdioClient::new(self.channel.clone())
    }

    /// Not to be used for further calls.
    pub(crate) fn is_lost(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

type ToMaster = Arc<tokio::sync::Mutex<Vec<Arc<Link>>>>;

/// All connections.
pub(crate) struct Links {
    gate: Gate,
    timeout: Duration,
    by_address: Mutex<HashMap<String, ToMaster>>,
}

impl Links {
    pub(crate) fn new(gate: Gate, timeout: Duration) -> Links {
        Links { gate, timeout, by_address: Mutex::default() }
    }

    /// A connection to the master's service at `address` with room for a call.
    pub(crate) async fn get(&self, address: &str) -> io::Result<Arc<Link>> {
        let to_master = {
            let mut all = self.by_address.lock().unwrap_or_else(|e| e.into_inner());
            all.entry(address.to_owned()).or_default().clone()
        };
        // Held while dialling: many calls that begin at once share the connection that the first one makes.
        let mut links = to_master.lock().await;
        links.retain(|l| !l.dead.load(Ordering::Relaxed));
        if let Some(link) = links.iter().find(|l| Arc::strong_count(l) <= CALLS_PER_CONNECTION) {
            return Ok(link.clone());
        }
        let (silence, patience) = keep_alive(self.timeout);
        let endpoint = net::endpoint()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .http2_keep_alive_interval(silence)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true);
        let channel = net::dial(&self.gate, endpoint, address, Peer::Master, None).await?;
        let link = Arc::new(Link { channel, dead: AtomicBool::new(false) });
        links.push(link.clone());
        Ok(link)
    }
}
