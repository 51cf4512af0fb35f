//! On a node: gets files that it does not have, from the master or from whom that names. Whoever wants the same file
//! meanwhile waits for the same transfer, on this node and, piece by piece, on others.

use crate::digest::Digest;
use crate::serve::{Held, Progress, Shelf};
use crate::store::{Incoming, Store};
use bproc_config::net::{Gate, dial, endpoint};
use bproc_config::tls::Peer;
use bproc_proto::Failure;
use bproc_proto::files::files_client::FilesClient;
use bproc_proto::files::{Elsewhere, Outcome, Piece, Want};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tonic::Streaming;
use tonic::transport::Channel;

/// Attempts at the master before a file is given up; peers that fail do not count.
const ATTEMPTS: u32 = 5;
/// Between attempts at the master.
const PAUSE: Duration = Duration::from_millis(200);
/// Silence after which a source is given up.
const SILENCE: Duration = Duration::from_secs(20);
/// Transfers under way at once.
pub(crate) const AT_ONCE: usize = 16;

type Client = FilesClient<Channel>;
/// A node, or the master, and its address.
type Key = (Option<i32>, String);

/// A file that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Modification on the master, nanoseconds of the epoch.
    pub mtime: u64,
}

/// Tells how a transfer ended.
type Landing = watch::Receiver<Option<Result<(), Failure>>>;

struct Flight {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
    result: Landing,
}

/// Gets files.
pub struct Fetcher {
    store: Arc<Store>,
    gate: Gate,
    from: Option<IpAddr>,
    node: i32,
    serves_at: OnceLock<String>,
    /// Address of the master's file service.
    master: Mutex<String>,
    flights: Mutex<HashMap<Digest, Flight>>,
    connections: Mutex<HashMap<Key, Arc<OnceCell<Client>>>>,
    places: Arc<Semaphore>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a source gave nothing.
enum Trouble {
    /// Try again, here or elsewhere.
    Source(String),
    /// This node cannot take it in.
    Here(Failure),
}

impl Fetcher {
    /// For the node with this number, whose calls come from `from`.
    pub fn new(store: Arc<Store>, gate: Gate, from: Option<IpAddr>, node: i32) -> Arc<Fetcher> {
        Arc::new(Fetcher {
            store,
            gate,
            from,
            node,
            serves_at: OnceLock::new(),
            master: Mutex::default(),
            flights: Mutex::default(),
            connections: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Others are served there.
    pub fn serves_at(&self, address: SocketAddr) {
        self.serves_at.get_or_init(|| address.to_string());
    }

    /// The master's file service is there now.
    pub fn master_is_at(&self, address: &str) {
        address.clone_into(&mut lock(&self.master));
    }

    /// Returns when the file is in the cache. To be called on the files' thread.
    ///
    /// # Errors
    /// Nobody gives it; no room.
    pub async fn get(self: &Arc<Self>, wanted: Wanted) -> Result<(), Failure> {
        if self.holds(&wanted)? {
            return Ok(());
        }
        let flying = lock(&self.flights).get(&wanted.digest).map(|flight| flight.result.clone());
        let mut result = match flying {
            Some(result) => result,
            None => {
                // Only who has a place opens files: thousands may be wanted at once.
                let place = self.places.clone().acquire_owned().await;
                let place = place.map_err(|error| self.trouble(&wanted, "no place", &io::Error::other(error)))?;
                if self.holds(&wanted)? {
                    return Ok(());
                }
                self.join(wanted, place)?
            }
        };
        loop {
            if let Some(result) = result.borrow_and_update().clone() {
                return result;
            }
            if result.changed().await.is_err() {
                return Err(self.trouble(&wanted, "its transfer broke off", &io::Error::from_raw_os_error(libc::EIO)));
            }
        }
    }

    fn holds(&self, wanted: &Wanted) -> Result<bool, Failure> {
        let held = self.store.get(&wanted.digest).map_err(|error| self.trouble(wanted, &error.to_string(), &error))?;
        Ok(held.is_some())
    }

    fn join(self: &Arc<Self>, wanted: Wanted, place: OwnedSemaphorePermit) -> Result<Landing, Failure> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&wanted.digest) {
            return Ok(flight.result.clone());
        }
        let incoming = self.store.incoming().map_err(|error| self.trouble(&wanted, "no place in the cache", &error))?;
        let file = incoming.reader().map_err(|error| self.trouble(&wanted, "no place in the cache", &error))?;
        let (progress_to, progress) = watch::channel(Progress::default());
        let (result_to, result) = watch::channel(None);
        flights.insert(wanted.digest, Flight { file: Arc::new(file), progress, result: result.clone() });
        drop(flights);
        let fetcher = self.clone();
        tokio::spawn(async move {
            let _place = place;
            let got = fetcher.fly(wanted, incoming, &progress_to).await;
            lock(&fetcher.flights).remove(&wanted.digest);
            progress_to.send_modify(|progress| progress.end = Some(got.is_ok()));
            result_to.send_replace(Some(got));
        });
        Ok(result)
    }

    fn trouble(&self, wanted: &Wanted, what: &str, error: &io::Error) -> Failure {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        let why = io::Error::from_raw_os_error(number);
        Failure {
            number,
            message: format!("node {}: file {:?} ({} bytes): {what}: {why}", self.node, wanted.digest, wanted.size),
        }
    }

    async fn fly(&self, wanted: Wanted, incoming: Incoming, progress: &watch::Sender<Progress>) -> Result<(), Failure> {
        let mut incoming = Some(incoming);
        let mut failed: Vec<i32> = Vec::new();
        let mut attempts = 0;
        let mut why = String::new();
        while attempts < ATTEMPTS {
            let Some(mut arriving) = incoming.take() else { break };
            let (from, result) = self.attempt(&wanted, &mut arriving, progress, &failed).await;
            match result {
                Ok(()) => match self.store.take(arriving, &wanted.digest, wanted.mtime) {
                    Ok(()) => {
                        let source = from.unwrap_or(-1);
                        tracing::debug!(file = ?wanted.digest, bytes = wanted.size, from = source, "fetched");
                        self.tell(wanted.digest, from, true);
                        return Ok(());
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
                        why = match from {
                            Some(node) => format!("node {node} gave something else"),
                            None => "it changed on the master while it travelled".into(),
                        };
                        // Those who read along must begin anew, too: this transfer is over.
                        self.tell(wanted.digest, from, false);
                        return Err(self.trouble(&wanted, &why, &error));
                    }
                    Err(error) => return Err(self.trouble(&wanted, "it cannot be put into the cache", &error)),
                },
                Err(Trouble::Here(failure)) => return Err(failure),
                Err(Trouble::Source(text)) => {
                    tracing::debug!(file = ?wanted.digest, ?from, %text, "a source failed");
                    why = text;
                    self.tell(wanted.digest, from, false);
                    incoming = Some(arriving);
                    match from {
                        Some(node) => failed.push(node),
                        None => {
                            attempts += 1;
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            }
        }
        Err(self.trouble(&wanted, &why, &io::Error::from_raw_os_error(libc::EIO)))
    }

    /// One attempt, from where the last one ended; and who was the source (`None`: the master).
    async fn attempt(
        &self,
        wanted: &Wanted,
        incoming: &mut Incoming,
        progress: &watch::Sender<Progress>,
        failed: &[i32],
    ) -> (Option<i32>, Result<(), Trouble>) {
        let master = lock(&self.master).clone();
        let want = Want {
            digest: wanted.digest.0.to_vec(),
            offset: incoming.size(),
            serves_at: self.serves_at.get().cloned().unwrap_or_default(),
            failed: failed.to_vec(),
        };
        let (mut stream, first) = match self.ask(None, &master, want.clone()).await {
            Ok(asked) => asked,
            Err(text) => return (None, Err(Trouble::Source(format!("the master: {text}")))),
        };
        let (from, first) = match first {
            Some(Piece { elsewhere: Some(Elsewhere { node, address }), .. }) => {
                match self.ask(Some(node), &address, want).await {
                    Ok((other, first)) => {
                        stream = other;
                        (Some(node), first)
                    }
                    Err(text) => return (Some(node), Err(Trouble::Source(format!("node {node}: {text}")))),
                }
            }
            first => (None, first),
        };
        (from, self.receive(wanted, incoming, progress, first, stream).await)
    }

    /// Opens a stream and takes the first piece; an empty file has none.
    async fn ask(
        &self,
        node: Option<i32>,
        address: &str,
        want: Want,
    ) -> Result<(Streaming<Piece>, Option<Piece>), String> {
        let mut client = self.client(node, address).await?;
        let asked = async {
            let mut stream = client.get(want).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        match tokio::time::timeout(SILENCE, asked).await {
            Ok(Ok(asked)) => Ok(asked),
            Ok(Err(status)) => {
                if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled) {
                    lock(&self.connections).remove(&(node, address.to_owned()));
                }
                Err(status.message().to_owned())
            }
            Err(_) => Err("no answer".into()),
        }
    }

    async fn receive(
        &self,
        wanted: &Wanted,
        incoming: &mut Incoming,
        progress: &watch::Sender<Progress>,
        first: Option<Piece>,
        mut stream: Streaming<Piece>,
    ) -> Result<(), Trouble> {
        let mut next = first;
        while let Some(piece) = next {
            incoming
                .write(&piece.data)
                .map_err(|error| Trouble::Here(self.trouble(wanted, "writing it into the cache", &error)))?;
            progress.send_modify(|progress| progress.bytes = incoming.size());
            if incoming.size() > wanted.size {
                return Err(Trouble::Source("more came than the file has".into()));
            }
            next = match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(Ok(next)) => next,
                Ok(Err(status)) => return Err(Trouble::Source(status.message().to_owned())),
                Err(_) => return Err(Trouble::Source("silence".into())),
            };
        }
        if incoming.size() < wanted.size {
            return Err(Trouble::Source(format!("it ended after {} bytes", incoming.size())));
        }
        Ok(())
    }

    async fn client(&self, node: Option<i32>, address: &str) -> Result<Client, String> {
        let key = (node, address.to_owned());
        // Each connection is made once, and none waits for another.
        let cell = lock(&self.connections).entry(key).or_default().clone();
        let made = cell.get_or_try_init(async || {
            let peer = node.map_or(Peer::Master, Peer::Node);
            let from = self.from.map(|ip| SocketAddr::new(ip, 0));
            let endpoint = endpoint().initial_stream_window_size(1 << 21).initial_connection_window_size(1 << 23);
            let channel = dial(&self.gate, endpoint, address, peer, from).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(Client::new(channel))
        });
        made.await.cloned()
    }

    /// The master learns who has it, and who is free to serve another.
    fn tell(&self, digest: Digest, from: Option<i32>, whole: bool) {
        let (master, key) = (lock(&self.master).clone(), digest.0.to_vec());
        let outcome = Outcome { digest: key, from: from.unwrap_or(-1), whole };
        let cell = lock(&self.connections).get(&(None, master)).cloned();
        if let Some(mut client) = cell.and_then(|cell| cell.get().cloned()) {
            tokio::spawn(async move {
                // It forgets by itself what it is not told.
                let _ = client.tell(outcome).await;
            });
        }
    }
}

impl Shelf for Fetcher {
    fn find(&self, digest: &Digest) -> io::Result<Option<Held>> {
        if let Some((file, size)) = self.store.get(digest)? {
            return Ok(Some(Held::Whole(Arc::new(file), size)));
        }
        let flights = lock(&self.flights);
        Ok(flights.get(digest).map(|flight| Held::Growing(flight.file.clone(), flight.progress.clone())))
    }
}
