//! Files on their way between a master and nodes, on loop-back connections: who gives to whom, and what becomes of a
//! transfer whose source dies.

use bproc_config::Security;
use bproc_config::net::{Gate, PeerInfo};
use bproc_travel::broker::Broker;
use bproc_travel::digest::{Digest, Identity};
use bproc_travel::fetch::{Fetcher, Wanted};
use bproc_travel::offers::Offers;
use bproc_travel::serve::{Held, Shelf, Spreading, serve, thread};
use bproc_travel::store::Store;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;

/// The master's files, and how often they were given.
struct Counted(Arc<Offers>, AtomicU32);

impl Shelf for Counted {
    fn find(&self, digest: &Digest) -> io::Result<Option<Held>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.open(digest)?.map(|(file, size)| Held::Whole(file, size)))
    }
}

/// A node that never has more of a file than its half, and never ends.
struct Stuck(Arc<File>, tokio::sync::watch::Receiver<bproc_travel::serve::Progress>);

impl Shelf for Stuck {
    fn find(&self, _: &Digest) -> io::Result<Option<Held>> {
        Ok(Some(Held::Growing(self.0.clone(), self.1.clone())))
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    gate: Gate,
    offers: Arc<Offers>,
    broker: Arc<Mutex<Broker>>,
    master: SocketAddr,
    files: Handle,
}

impl Cluster {
    async fn new(fan_out: u32) -> Cluster {
        let gate = Gate::new(&Security::Plaintext, "test").unwrap();
        let (offers, broker): (Arc<Offers>, _) = (Arc::default(), Arc::new(Mutex::new(Broker::new(fan_out))));
        let number = |peer: &PeerInfo| match peer.address.ip() {
            IpAddr::V4(ip) => Some(i32::from(ip.octets()[3]) - 10),
            IpAddr::V6(_) => None,
        };
        let spreading = Spreading { broker: broker.clone(), identify: Arc::new(number) };
        let shelf = Arc::new(Counted(offers.clone(), AtomicU32::new(0)));
        let files = thread().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let master = serve(&files, address, gate.clone(), shelf, Some(spreading)).await.unwrap();
        Cluster { dir: tempfile::tempdir().unwrap(), gate, offers, broker, master, files }
    }

    fn offer(&self, content: &[u8]) -> Wanted {
        let digest = Digest::of(content);
        let path = self.dir.path().join(digest.to_string());
        std::fs::write(&path, content).unwrap();
        let file = File::open(&path).unwrap();
        let identity = Identity::of(&file.metadata().unwrap());
        self.offers.offer(digest, path, identity, file);
        Wanted { digest, size: content.len() as u64, mtime: 0 }
    }

    async fn node(&self, number: u8) -> (Arc<Fetcher>, Arc<Store>) {
        let store = Store::open(&self.dir.path().join(format!("node-{number}")), 1 << 30).unwrap();
        let address: SocketAddr = format!("127.0.0.{}:0", number + 10).parse().unwrap();
        let fetcher = Fetcher::new(store.clone(), self.gate.clone(), Some(address.ip()), number.into());
        fetcher.master_is_at(&self.master.to_string());
        let bound = serve(&self.files, address, self.gate.clone(), fetcher.clone(), None).await.unwrap();
        fetcher.serves_at(bound);
        (fetcher, store)
    }

    async fn get(&self, fetcher: &Arc<Fetcher>, wanted: Wanted) -> Result<(), bproc_proto::Failure> {
        let fetcher = fetcher.clone();
        let got = self.files.spawn(async move { fetcher.get(wanted).await });
        tokio::time::timeout(Duration::from_secs(60), got).await.expect("in time").expect("no panic")
    }
}

fn content(bytes: usize) -> Vec<u8> {
    let mut state = 7u64;
    let word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u8
    };
    std::iter::repeat_with(word).take(bytes).collect()
}

#[tokio::test]
async fn all_sizes_arrive() {
    let cluster = Cluster::new(2).await;
    let (fetcher, store) = cluster.node(0).await;
    for bytes in [0, 1, 1 << 17, (1 << 17) + 1, 5 << 20] {
        let wanted = cluster.offer(&content(bytes));
        cluster.get(&fetcher, wanted).await.unwrap();
        assert_eq!(store.get(&wanted.digest).unwrap().unwrap().1, bytes as u64);
    }
    let unknown = Wanted { digest: Digest([3; 32]), size: 5, mtime: 0 };
    let error = cluster.get(&fetcher, unknown).await.unwrap_err();
    assert!(error.message.contains("this file is not here"), "{}", error.message);
}

#[tokio::test]
async fn many_get_it_from_each_other() {
    let cluster = Cluster::new(1).await;
    let wanted = cluster.offer(&content(6 << 20));
    let mut nodes = Vec::new();
    for number in 0..8 {
        nodes.push(cluster.node(number).await);
    }
    let gets: Vec<_> = nodes
        .iter()
        .map(|(fetcher, _)| {
            let fetcher = fetcher.clone();
            // Twice: the second waits for the first.
            cluster.files.spawn(async move { tokio::join!(fetcher.get(wanted), fetcher.get(wanted)) })
        })
        .collect();
    for get in gets {
        let (one, other) = tokio::time::timeout(Duration::from_secs(60), get).await.expect("in time").unwrap();
        one.unwrap();
        other.unwrap();
    }
    for (_, store) in &nodes {
        assert!(store.get(&wanted.digest).unwrap().is_some());
    }
}

#[tokio::test]
async fn a_source_that_dies_costs_only_itself() {
    let cluster = Cluster::new(1).await;
    let bytes = content(3 << 20);
    let wanted = cluster.offer(&bytes);
    // A node with half of it, to which the next asker is sent.
    let (to, progress) = tokio::sync::watch::channel(bproc_travel::serve::Progress { bytes: 1 << 20, end: None });
    let half = cluster.dir.path().join("half");
    std::fs::write(&half, &bytes[..1 << 20]).unwrap();
    let stuck = Arc::new(Stuck(Arc::new(File::open(&half).unwrap()), progress));
    let address =
        serve(&cluster.files, "127.0.0.10:0".parse().unwrap(), cluster.gate.clone(), stuck, None).await.unwrap();
    let now = std::time::Instant::now();
    cluster.broker.lock().unwrap().assign(wanted.digest, 0, &address.to_string(), &[], now);
    let (fetcher, store) = cluster.node(1).await;
    let get = {
        let fetcher = fetcher.clone();
        cluster.files.spawn(async move { fetcher.get(wanted).await })
    };
    // When the half has arrived, the node gives up.
    while std::fs::read_dir(cluster.dir.path().join("node-1/incoming"))
        .unwrap()
        .flatten()
        .all(|entry| entry.metadata().map_or(0, |meta| meta.len()) < 1 << 20)
    {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(to);
    tokio::time::timeout(Duration::from_secs(60), get).await.expect("in time").unwrap().unwrap();
    assert!(store.get(&wanted.digest).unwrap().is_some());
}

#[tokio::test]
async fn what_changes_meanwhile_is_told() {
    let cluster = Cluster::new(2).await;
    let (fetcher, _) = cluster.node(0).await;
    let bytes = content(1 << 20);
    let wanted = cluster.offer(&bytes);
    // In place, the same size: only the hash can tell.
    let path = cluster.dir.path().join(wanted.digest.to_string());
    std::fs::write(&path, vec![1; bytes.len()]).unwrap();
    let error = cluster.get(&fetcher, wanted).await.unwrap_err();
    assert!(error.message.contains("it changed on the master while it travelled"), "{}", error.message);
    // Replaced by another file: the one that was packed still travels.
    let wanted = cluster.offer(&content(2 << 20));
    let path = cluster.dir.path().join(wanted.digest.to_string());
    std::fs::write(path.with_extension("new"), b"new").unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    cluster.get(&fetcher, wanted).await.unwrap();
}

/// However many files are wanted at once, few descriptors are open for them.
#[tokio::test]
async fn thousands_at_once_need_few_descriptors() {
    let cluster = Cluster::new(2).await;
    let (fetcher, store) = cluster.node(0).await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let wanted: Vec<Wanted> = (0..2000u32).map(|number| cluster.offer(&number.to_ne_bytes())).collect();
    let before = open();
    let all = cluster.files.spawn(async move {
        let get = |wanted: Wanted| {
            let fetcher = fetcher.clone();
            tokio::spawn(async move { fetcher.get(wanted).await })
        };
        let gets: Vec<_> = wanted.into_iter().map(get).collect();
        for get in gets {
            get.await.unwrap().unwrap();
        }
    });
    let mut most = 0;
    while !all.is_finished() {
        most = most.max(open());
        tokio::task::yield_now().await;
    }
    all.await.unwrap();
    assert_eq!(store.usage().files, 2000);
    assert!(most < before + 500, "{most} descriptors, {before} before");
}
