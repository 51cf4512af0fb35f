//! The cache of a node: files by their digest, up to a limit, and the trees that views are made from.
//!
//! ```text
//!  DIR/objects/DIGEST      a file, as it travelled; root's alone
//!  DIR/trees/KEY-N/root    links to such files, each where a program shall find it
//!  DIR/trees/KEY-N/mounts  number of the mount namespace that shows them
//!  DIR/incoming/           on their way
//! ```
//! A file that is linked into a tree is in use: its count of links tells. A tree is in use while a process is in its
//! mount namespace, whoever started it: the kernel tells. What is not in use goes when the limit is reached, the least
//! recently used first. Nothing is believed of what a former agent left: a file is hashed before its first use.

use crate::digest::{Digest, Hasher, Identity, Memo};
use crate::open;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

struct Entry {
    size: u64,
    used: u64,
}

#[derive(Default)]
struct Index {
    entries: HashMap<Digest, Entry>,
    total: u64,
    /// Counts uses.
    clock: u64,
    /// Not linked into a tree yet, but wanted.
    pins: HashMap<Digest, u32>,
}

/// The cache.
pub struct Store {
    dir: PathBuf,
    limit: u64,
    /// Files that were hashed in this life of the agent.
    verified: Memo,
    index: Mutex<Index>,
    next: AtomicU64,
}

/// Keeps files from being evicted.
pub struct Pins {
    store: Arc<Store>,
    digests: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut index = self.store.lock();
        for digest in &self.digests {
            if let Some(count) = index.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    index.pins.remove(digest);
                }
            }
        }
    }
}

/// What is in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

impl Store {
    /// Opens the cache in `dir`, which is made where it is missing. What a former agent left half done goes.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Arc<Store>> {
        // A program that cannot be at its own path is executed from its tree: users must get there, but see nothing.
        make_dir(dir, 0o711)?;
        make_dir(&dir.join("objects"), 0o700)?;
        make_dir(&dir.join("trees"), 0o711)?;
        match fs::remove_dir_all(dir.join("incoming")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        make_dir(&dir.join("incoming"), 0o700)?;
        let mut index = Index::default();
        let mut found: Vec<(SystemTime, Digest, u64)> = Vec::new();
        for entry in fs::read_dir(dir.join("objects"))?.flatten() {
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            match (digest, entry.metadata()) {
                (Some(digest), Ok(meta)) if meta.is_file() => {
                    found.push((meta.accessed().unwrap_or(SystemTime::UNIX_EPOCH), digest, meta.size()));
                }
                _ => tracing::warn!(path = %entry.path().display(), "this is no file of the cache"),
            }
        }
        found.sort();
        for (_, digest, size) in found {
            index.clock += 1;
            index.total += size;
            let used = index.clock;
            index.entries.insert(digest, Entry { size, used });
        }
        let store = Store {
            dir: dir.into(),
            limit,
            verified: Memo::default(),
            index: Mutex::new(index),
            next: AtomicU64::new(u64::from(std::process::id()) << 32),
        };
        store.remove_idle_trees(&BTreeSet::new());
        store.evict();
        Ok(Arc::new(store))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        self.dir.join("objects").join(digest.to_string())
    }

    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let index = self.lock();
        Usage { files: index.entries.len(), bytes: index.total }
    }

    /// Keeps these from being evicted until the result is dropped.
    pub fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        let mut index = self.lock();
        for digest in &digests {
            *index.pins.entry(*digest).or_default() += 1;
        }
        Pins { store: self.clone(), digests }
    }

    /// Opens a file, hashing it before its first use in this life of the agent. `None`: it is not there. A damaged one
    /// is removed.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        {
            let mut index = self.lock();
            index.clock += 1;
            let now = index.clock;
            match index.entries.get_mut(digest) {
                Some(entry) => entry.used = now,
                None => return Ok(None),
            }
        }
        let path = self.object(digest);
        let found = open::regular(&path).and_then(|file| {
            let identity = Identity::of(&file.metadata()?);
            // Links come and go with trees, and change the time of change: content is what counts here.
            let identity = Identity { ctime: 0, ..identity };
            let known = self.verified.known(&identity).map_or_else(|| Digest::of_file(&file), Ok)?;
            self.verified.learn(identity, known);
            Ok((known == *digest).then_some((file, identity.size)))
        });
        match found {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => tracing::warn!(path = %path.display(), "damaged in the cache; it is fetched again"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.remove(digest);
        Ok(None)
    }

    fn remove(&self, digest: &Digest) {
        let mut index = self.lock();
        if let Some(entry) = index.entries.remove(digest) {
            index.total -= entry.size;
        }
        let _ = fs::remove_file(self.object(digest));
    }

    /// A place for a file that is on its way.
    ///
    /// # Errors
    /// No room, or no rights.
    pub fn incoming(&self) -> io::Result<Incoming> {
        let path = self.dir.join("incoming").join(self.unique().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Incoming { path, file: Some(file), hasher: Hasher::new(), size: 0 })
    }

    /// Takes in what has arrived.
    ///
    /// # Errors
    /// It is not what it should be (EBADMSG); no room.
    pub fn take(&self, incoming: Incoming, digest: &Digest, mtime_ns: u64) -> io::Result<()> {
        let size = incoming.size;
        let (path, file, got) = incoming.finish();
        let result = (|| {
            let file = file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
            if got != *digest {
                return Err(io::Error::from_raw_os_error(libc::EBADMSG));
            }
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(mtime_ns);
            file.set_times(fs::FileTimes::new().set_modified(modified).set_accessed(SystemTime::now()))?;
            file.set_permissions(fs::Permissions::from_mode(0o555))?;
            self.verified.learn(Identity { ctime: 0, ..Identity::of(&file.metadata()?) }, *digest);
            // Nothing that is open for writing can be executed.
            drop(file);
            fs::rename(&path, self.object(digest))
        })();
        if result.is_err() {
            let _ = fs::remove_file(&path);
            return result;
        }
        let mut index = self.lock();
        index.clock += 1;
        let used = index.clock;
        index.total += size;
        if let Some(old) = index.entries.insert(*digest, Entry { size, used }) {
            index.total -= old.size;
        }
        Ok(())
    }

    /// An empty tree, to be filled with [`Store::link`].
    ///
    /// # Errors
    /// No room, or no rights.
    pub fn tree(&self, key: &Digest) -> io::Result<PathBuf> {
        let dir = self.dir.join("trees").join(format!("{key}-{:x}", self.unique()));
        make_dir(&dir.join("root"), 0o755)?;
        Ok(dir)
    }

    /// Puts a file into a tree.
    ///
    /// # Errors
    /// It is not in the cache, or is somewhere already.
    pub fn link(&self, digest: &Digest, at: &Path) -> io::Result<()> {
        fs::hard_link(self.object(digest), at)
    }

    /// Writes down which mount namespace shows a tree.
    ///
    /// # Errors
    /// No room.
    pub fn note_mounts(&self, tree: &Path, number: u64) -> io::Result<()> {
        fs::write(tree.join("mounts"), number.to_string())
    }

    /// Removes trees that no process uses, but for those named.
    pub fn remove_idle_trees(&self, keep: &BTreeSet<PathBuf>) {
        let used = mount_namespaces_in_use();
        for entry in fs::read_dir(self.dir.join("trees")).into_iter().flatten().flatten() {
            let tree = entry.path();
            let number = fs::read_to_string(tree.join("mounts")).ok().and_then(|text| text.parse::<u64>().ok());
            if keep.contains(&tree) || number.is_some_and(|number| used.contains(&number)) {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&tree) {
                tracing::warn!(path = %tree.display(), %error, "an unused tree of the cache cannot be removed");
            }
        }
    }

    /// Bytes that it may hold, but for what is in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// True when this is there, as far as is known without reading it.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.lock().entries.contains_key(digest)
    }

    /// True when there is more than there should be.
    pub fn is_too_full(&self) -> bool {
        self.lock().total > self.limit
    }

    /// Removes what is not in use, the least recently used first, until the limit is kept.
    pub fn evict(&self) {
        let mut index = self.lock();
        if index.total <= self.limit {
            return;
        }
        let mut all: Vec<(u64, Digest, u64)> = index.entries.iter().map(|(d, e)| (e.used, *d, e.size)).collect();
        all.sort_unstable();
        for (_, digest, size) in all {
            if index.total <= self.limit {
                return;
            }
            let path = self.object(&digest);
            let in_use = index.pins.contains_key(&digest) || fs::metadata(&path).is_ok_and(|meta| meta.nlink() > 1);
            if !in_use && fs::remove_file(&path).is_ok() {
                index.entries.remove(&digest);
                index.total -= size;
                tracing::debug!(?digest, size, "evicted from the cache");
            }
        }
        tracing::debug!(bytes = index.total, limit = self.limit, "all that is in the cache is in use");
    }
}

/// A file on its way.
pub struct Incoming {
    path: PathBuf,
    file: Option<File>,
    hasher: Hasher,
    size: u64,
}

impl Incoming {
    /// What has arrived can be read from this while more arrives.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What follows.
    ///
    /// # Errors
    /// No room.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        file.write_all_at(bytes, self.size)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> (PathBuf, Option<File>, Digest) {
        let hasher = std::mem::take(&mut self.hasher);
        (std::mem::take(&mut self.path), self.file.take(), hasher.finish())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Numbers of the mount namespaces that some process is in.
fn mount_namespaces_in_use() -> BTreeSet<u64> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<i32>().ok()?;
        Some(fs::metadata(entry.path().join("ns/mnt")).ok()?.ino())
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Store, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let mut incoming = store.incoming().unwrap();
        incoming.write(content).unwrap();
        store.take(incoming, &digest, 1_000_000_000).unwrap();
        digest
    }

    #[test]
    fn the_least_recently_used_goes_but_nothing_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 250).unwrap();
        let all: Vec<Digest> = (0..3u8).map(|n| put(&store, &[n; 100])).collect();
        let tree = store.tree(&all[0]).unwrap();
        store.link(&all[0], &tree.join("root/f")).unwrap();
        store.evict();
        assert_eq!(store.usage(), Usage { files: 2, bytes: 200 });
        assert!(store.get(&all[0]).unwrap().is_some() && store.get(&all[1]).unwrap().is_none());
        let pins = store.pin(vec![all[2]]);
        let new = put(&store, &[9; 200]);
        store.evict();
        assert!(store.get(&all[2]).unwrap().is_some(), "pinned");
        assert!(store.get(&new).unwrap().is_none(), "neither pinned nor in a tree");
        drop(pins);
        store.remove_idle_trees(&BTreeSet::new());
        assert!(!tree.exists());
        put(&store, &[8; 150]);
        store.evict();
        assert!(store.usage().bytes <= 250);
    }

    #[test]
    fn what_is_damaged_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let good = put(&store, b"content");
        let mut incoming = store.incoming().unwrap();
        incoming.write(b"something else").unwrap();
        assert_eq!(store.take(incoming, &good, 0).unwrap_err().raw_os_error(), Some(libc::EBADMSG));
        let path = dir.path().join("objects").join(good.to_string());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, b"CONTENT").unwrap();
        // The next agent reads it anew.
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(store.usage().files, 1);
        assert!(store.get(&good).unwrap().is_none());
        assert_eq!(store.usage(), Usage::default());
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    }
}
