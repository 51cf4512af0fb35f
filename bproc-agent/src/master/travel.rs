//! Programs that travel, seen from the master: packs them for spawns, gives their files to nodes, and keeps the list of
//! files that nodes are to have at hand.

use anyhow::{Context, Result};
use bproc_config::net::Gate;
use bproc_config::{Libraries, MachineConfig};
use bproc_proto::client::change_libraries::How;
use bproc_proto::{Failure, Luggage, SpawnSpec};
use bproc_travel::broker::Broker;
use bproc_travel::digest::{Digest, Identity};
use bproc_travel::glob;
use bproc_travel::offers::Offers;
use bproc_travel::pack::{Caller, Packer, want};
use bproc_travel::serve::{self, Held, Identify, Shelf, Spreading};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The files to keep at hand are looked at again after this time, when somebody starts a program.
const FRESH: Duration = Duration::from_secs(5);

/// What nodes are to have at hand: the digest of the list, and its size.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Empty: nothing.
    pub digest: Vec<u8>,
    /// Bytes of the encoded list.
    pub size: u64,
    /// Bytes of the files.
    bytes: u64,
}

struct Wishes {
    configured: Libraries,
    /// By `bplib`.
    added: BTreeSet<PathBuf>,
    /// Of the configuration, taken out by `bplib`.
    cleared: bool,
    looked: Instant,
    paths: Vec<PathBuf>,
}

/// The master's part in programs that travel.
pub struct Travel {
    packer: Packer,
    offers: Arc<Offers>,
    broker: Arc<Mutex<Broker>>,
    /// Held while files are read.
    wishes: Mutex<Wishes>,
    keep: Mutex<Keep>,
    dir: PathBuf,
    /// Of the nodes' caches, when they are configured as this machine is.
    limit: u64,
    /// Where nodes ask for files.
    pub address: String,
}

struct OnOffer(Arc<Offers>);

impl Shelf for OnOffer {
    fn find(&self, digest: &Digest) -> std::io::Result<Option<Held>> {
        Ok(self.0.open(digest)?.map(|(file, size)| Held::Whole(file, size)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Travel {
    /// Starts the file service.
    ///
    /// # Errors
    /// Its address cannot be used.
    pub async fn start(config: &MachineConfig, gate: Gate, identify: Arc<Identify>) -> Result<Arc<Travel>> {
        let offers: Arc<Offers> = Arc::default();
        let broker = Arc::new(Mutex::new(Broker::new(config.cache.fan_out)));
        let files = serve::thread().context("starting the thread of the file service")?;
        let address = SocketAddr::new(config.bind.ip(), 0);
        let spreading = Spreading { broker: broker.clone(), identify };
        let shelf = Arc::new(OnOffer(offers.clone()));
        let bound = serve::serve(&files, address, gate, shelf, Some(spreading))
            .await
            .with_context(|| format!("listening for nodes that want files on {address}"))?;
        let dir = config.run_dir.clone();
        let added = std::fs::read(dir.join("libraries")).unwrap_or_default();
        let added = added.split(|b| *b == 0).filter(|path| !path.is_empty());
        let wishes = Wishes {
            configured: config.libraries.clone(),
            added: added.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect(),
            cleared: dir.join("libraries.cleared").exists(),
            looked: Instant::now(),
            paths: Vec::new(),
        };
        let packer = Packer::new(offers.clone());
        let travel = Arc::new(Travel {
            packer,
            offers,
            broker,
            wishes: Mutex::new(wishes),
            keep: Mutex::default(),
            dir,
            limit: config.cache.limit,
            address: bound.to_string(),
        });
        let this = travel.clone();
        tokio::task::spawn_blocking(move || this.look(true)).await?;
        Ok(travel)
    }

    /// Packs the program of a spawn. Blocks.
    ///
    /// # Errors
    /// What exec would say to the caller.
    pub fn pack(&self, spec: &SpawnSpec) -> Result<Luggage, Failure> {
        let credentials = spec.credentials.clone().unwrap_or_default();
        let caller = Caller { uid: credentials.euid, gid: credentials.egid, groups: credentials.groups };
        let mut luggage = self.packer.pack(want(&spec.path, &spec.cwd, &spec.envp), &caller)?;
        self.look(false);
        self.with_keep(&mut luggage);
        Ok(luggage)
    }

    /// A program that was packed before and is as it was, for anybody, on a disk of this machine. Does not block.
    pub fn packed(&self, spec: &SpawnSpec) -> Option<Luggage> {
        if !self.is_fresh() {
            return None;
        }
        let mut luggage = self.packer.packed(&want(&spec.path, &spec.cwd, &spec.envp))?;
        self.with_keep(&mut luggage);
        Some(luggage)
    }

    fn with_keep(&self, luggage: &mut Luggage) {
        let keep = self.keep();
        (luggage.keep, luggage.keep_size) = (keep.digest, keep.size);
    }

    fn is_fresh(&self) -> bool {
        self.wishes.try_lock().is_ok_and(|wishes| wishes.is_empty() || wishes.looked.elapsed() < FRESH)
    }

    /// What nodes are to have at hand now.
    pub fn keep(&self) -> Keep {
        lock(&self.keep).clone()
    }

    /// The paths of that.
    pub fn libraries(&self) -> Vec<PathBuf> {
        self.look(true);
        lock(&self.wishes).paths.clone()
    }

    /// Changes the list, as `bplib` asks. What it should say all the same.
    ///
    /// # Errors
    /// ENOENT: what is to go is not in it. EINVAL: no absolute path.
    pub fn change(&self, how: How, path: &[u8]) -> Result<String, Failure> {
        let path = PathBuf::from(OsStr::from_bytes(path));
        let refuse = |number, why: &str| Err(Failure { number, message: format!("{}: {why}", path.display()) });
        let mut wishes = lock(&self.wishes);
        match how {
            How::Clear => {
                wishes.added.clear();
                wishes.cleared = true;
            }
            How::Add if !path.is_absolute() => return refuse(libc::EINVAL, "an absolute path is wanted"),
            How::Add => {
                match std::fs::metadata(&path) {
                    Ok(meta) if meta.is_file() || meta.is_dir() => {}
                    Ok(_) => return refuse(libc::EINVAL, "it is neither a file nor a directory"),
                    Err(error) => return refuse(error.raw_os_error().unwrap_or(libc::EIO), "it is not there"),
                }
                wishes.added.insert(path);
            }
            How::Delete => {
                let known = wishes.paths.contains(&path) || wishes.added.contains(&path);
                if !known {
                    return refuse(libc::ENOENT, "it is not in the list");
                }
                if !wishes.added.remove(&path) {
                    // Of the configuration, or of a directory: all others stay.
                    wishes.added = wishes.paths.iter().filter(|p| **p != path).cloned().collect();
                    wishes.cleared = true;
                }
            }
        }
        let text: Vec<u8> =
            wishes.added.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
        let noted = std::fs::write(self.dir.join("libraries"), text).and_then(|()| match wishes.cleared {
            true => std::fs::write(self.dir.join("libraries.cleared"), ""),
            false => Ok(()),
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "the list of libraries is lost when the agent is restarted");
        }
        drop(wishes);
        self.look(true);
        Ok(self.remark())
    }

    fn remark(&self) -> String {
        let (bytes, limit) = (self.keep().bytes, self.limit);
        if bytes <= limit {
            return String::new();
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        format!(
            "the list has {} MB, the cache of a node {} MB (cache.megabytes): of what a node lacks it keeps no more at hand",
            megabytes(bytes),
            megabytes(limit)
        )
    }

    /// The configuration has changed. Blocks.
    pub fn configure(&self, libraries: &Libraries) {
        let mut wishes = lock(&self.wishes);
        wishes.configured.clone_from(libraries);
        drop(wishes);
        self.look(true);
    }

    /// A node is gone.
    pub fn lost(&self, node: i32) {
        lock(&self.broker).lost(node);
    }

    /// Finds the files to keep at hand, as they are now.
    fn look(&self, now: bool) {
        let mut wishes = match self.wishes.try_lock() {
            Ok(wishes) if now || (wishes.looked.elapsed() >= FRESH && !wishes.is_empty()) => wishes,
            // Somebody looks already.
            Err(TryLockError::WouldBlock) if now => lock(&self.wishes),
            _ => return,
        };
        wishes.looked = Instant::now();
        let paths = wishes.expand(&self.packer);
        wishes.paths = paths.iter().cloned().collect();
        if paths.is_empty() {
            *lock(&self.keep) = Keep::default();
            return;
        }
        let files = self.packer.pack_files(&paths);
        // What several have in common is kept once.
        let contents: BTreeMap<_, _> = files.items.iter().map(|item| (&item.digest, item.size)).collect();
        let (list, bytes) = (files.encode_to_vec(), contents.values().sum());
        let digest = Digest::of(&list);
        if lock(&self.keep).digest == digest.0 {
            return;
        }
        match self.offer_list(&list, digest) {
            Ok(()) => *lock(&self.keep) = Keep { digest: digest.0.to_vec(), size: list.len() as u64, bytes },
            Err(error) => tracing::warn!(%error, "nodes are not told which files to keep at hand"),
        }
    }

    fn offer_list(&self, list: &[u8], digest: Digest) -> std::io::Result<()> {
        // A new file each time: a node may still be reading the old one.
        let (path, fresh) = (self.dir.join("keep"), self.dir.join("keep.new"));
        std::fs::write(&fresh, list)?;
        std::fs::rename(&fresh, &path)?;
        let file = File::open(&path)?;
        let identity = Identity::of(&file.metadata()?);
        self.offers.offer(digest, path, identity, file);
        Ok(())
    }
}

impl Wishes {
    fn is_empty(&self) -> bool {
        let configured =
            self.cleared || (self.configured.patterns.is_empty() && self.configured.of_binaries.is_empty());
        configured && self.added.is_empty()
    }

    fn expand(&self, packer: &Packer) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        if !self.cleared {
            for pattern in &self.configured.patterns {
                let found = glob::files(pattern);
                if found.is_empty() {
                    tracing::warn!(%pattern, "no library is there that fits");
                }
                paths.extend(found);
            }
            for program in &self.configured.of_binaries {
                match packer.libraries_of(program) {
                    Ok(libraries) => paths.extend(libraries),
                    Err(failure) => tracing::warn!(reason = %failure.message, "its libraries are not kept at hand"),
                }
            }
        }
        for path in &self.added {
            paths.extend(below(path));
        }
        paths
    }
}

/// A directory stands for all files below it.
fn below(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { glob::below(path) } else { vec![path.into()] }
}
