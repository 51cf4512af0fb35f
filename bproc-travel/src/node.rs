//! On a node: makes the place in which a program that travelled runs as on the master. Where the node has all files as
//! the master has them, that is the node itself, and nothing is done.

use crate::digest::{Digest, Hasher, Memo};
use crate::fetch::{Fetcher, Wanted};
use crate::plan::{Layout, Node, Tree, has};
use crate::store::{Pins, Store};
use bproc_proto::{Failure, Item, Luggage};
use bproc_sys::view::{self, Root, TREE_IN_ROOT};
use prost::Message;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Views that are kept though nobody uses them.
const IDLE_VIEWS: usize = 64;
/// Longest list of files to keep at hand, in bytes.
const MAX_KEEP: u64 = 64 << 20;

/// What a view shows: the files laid, and on which mount namespace (one life of the node has one).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    files: Digest,
    space: u64,
}

struct View {
    mounts: Arc<OwnedFd>,
    tree: PathBuf,
    /// Where the tree is, seen from inside.
    seen_at: PathBuf,
    strays: BTreeSet<PathBuf>,
    used: u64,
}

#[derive(Default)]
struct State {
    views: HashMap<Key, View>,
    clock: u64,
    keep: Option<(Digest, Arc<Luggage>)>,
}

/// Where a program is to run.
#[derive(Clone, Debug)]
pub struct Place {
    /// Mount namespace to enter.
    pub mounts: Arc<OwnedFd>,
    /// The program is there instead of at its own path.
    pub path: Option<Vec<u8>>,
    /// Directories with libraries that are elsewhere than the master has them: theirs, ours.
    pub moved: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Makes places for programs.
pub struct Traveller {
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    files: Handle,
    root: PathBuf,
    staging: PathBuf,
    machine: Vec<u8>,
    memo: Memo,
    state: Mutex<State>,
    /// Views are made one at a time: the second program of a kind finds the first one's.
    making: tokio::sync::Mutex<()>,
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    Failure { number: error.raw_os_error().unwrap_or(libc::EIO), message: format!("{}: {words}", path.display()) }
}

fn told(error: bproc_sys::Error) -> Failure {
    Failure { number: error.errno(), message: error.to_string() }
}

fn wanted(item: &Item) -> Result<Wanted, Failure> {
    let digest = Digest::from_slice(&item.digest).ok_or_else(|| Failure {
        number: libc::EPROTO,
        message: format!("{}: it travels without a digest", String::from_utf8_lossy(&item.path)),
    })?;
    Ok(Wanted { digest, size: item.size, mtime: item.identity.get(2).copied().unwrap_or(0) })
}

impl Traveller {
    /// For processes whose root is the directory `root`; `staging` is where views are built, an empty directory.
    ///
    /// # Errors
    /// `staging` cannot be made.
    pub fn new(
        store: Arc<Store>,
        fetcher: Arc<Fetcher>,
        files: Handle,
        root: PathBuf,
        staging: PathBuf,
    ) -> io::Result<Arc<Traveller>> {
        fs::create_dir_all(&staging)?;
        Ok(Arc::new(Traveller {
            store,
            fetcher,
            files,
            root,
            staging,
            machine: crate::pack::machine(),
            memo: Memo::default(),
            state: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes have another root directory than the node itself.
    pub fn has_own_root(&self) -> bool {
        self.root != Path::new("/")
    }

    /// The place for a program in the space with this init (a pid as seen from here); `None` is the node as it is.
    ///
    /// # Errors
    /// A file does not arrive, or cannot be put where it belongs.
    pub async fn place(self: &Arc<Self>, luggage: &Luggage, init: i32) -> Result<Option<Place>, Failure> {
        let mounts = PathBuf::from(format!("/proc/{init}/ns/mnt"));
        let mounts = fs::File::open(&mounts).map_err(|error| failed(&mounts, &error))?;
        let (this, items) = (self.clone(), luggage.clone());
        let looked = tokio::task::spawn_blocking(move || this.lacking(&items)).await;
        let (mut tree, mut wants) = looked.map_err(|error| self.broken(&error))??;
        if tree.0.is_empty() && !self.has_own_root() {
            return Ok(None);
        }
        if let Some(keep) = self.keep(luggage).await? {
            let root = Root::open(&self.root).map_err(told)?;
            let same = keep.machine == self.machine;
            for item in &keep.items {
                if !has(&root, item, same, &self.memo)? {
                    tree.add(item, &root)?;
                    wants.push(wanted(item)?);
                }
            }
        }
        let program = luggage.items.first().map(|item| item.path.clone()).unwrap_or_default();
        let space = mounts.metadata().map_err(|error| failed(&self.root, &error))?.ino();
        let key = key(&tree, space);
        if let Some(place) = self.known(&key, &program) {
            return Ok(Some(place));
        }
        let pins = self.store.pin(wants.iter().map(|wanted| wanted.digest).collect());
        self.fetch(wants).await?;
        let _one = self.making.lock().await;
        if let Some(place) = self.known(&key, &program) {
            return Ok(Some(place));
        }
        let this = self.clone();
        let made = tokio::task::spawn_blocking(move || this.make(&tree, key, &mounts, pins)).await;
        made.map_err(|error| self.broken(&error))??;
        Ok(self.known(&key, &program))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure { number: libc::EIO, message: format!("making the place of a program: {error}") }
    }

    /// What the node does not have as the master has it. Parts that go along come only when something else does.
    fn lacking(&self, luggage: &Luggage) -> Result<(Tree, Vec<Wanted>), Failure> {
        let root = Root::open(&self.root).map_err(told)?;
        let same = luggage.machine == self.machine;
        let mut lacking = Vec::new();
        for item in luggage.items.iter().filter(|item| !item.companion) {
            if !has(&root, item, same, &self.memo)? {
                lacking.push(item);
            }
        }
        let mut tree = Tree::default();
        if lacking.is_empty() {
            return Ok((tree, Vec::new()));
        }
        for item in luggage.items.iter().filter(|item| item.companion) {
            if !has(&root, item, same, &self.memo)? {
                lacking.push(item);
            }
        }
        for item in &lacking {
            tree.add(item, &root)?;
        }
        let wants = lacking.iter().map(|item| wanted(item)).collect::<Result<_, _>>()?;
        Ok((tree, wants))
    }

    async fn fetch(&self, wants: Vec<Wanted>) -> Result<(), Failure> {
        let fetcher = self.fetcher.clone();
        let all = self.files.spawn(async move {
            let gets: Vec<_> = wants
                .into_iter()
                .map(|wanted| {
                    let fetcher = fetcher.clone();
                    tokio::spawn(async move { fetcher.get(wanted).await })
                })
                .collect();
            let mut result = Ok(());
            for get in gets {
                let got = get.await.unwrap_or_else(|error| {
                    Err(Failure { number: libc::EIO, message: format!("a transfer broke off: {error}") })
                });
                result = result.and(got);
            }
            result
        });
        all.await.unwrap_or_else(|error| Err(self.broken(&error)))
    }

    /// The files to keep at hand, as this luggage says.
    async fn keep(&self, luggage: &Luggage) -> Result<Option<Arc<Luggage>>, Failure> {
        let Some(digest) = Digest::from_slice(&luggage.keep) else { return Ok(None) };
        if let Some((known, keep)) = &self.lock().keep
            && *known == digest
        {
            return Ok(Some(keep.clone()));
        }
        if luggage.keep_size > MAX_KEEP {
            return Err(Failure {
                number: libc::EFBIG,
                message: "the list of files to keep at hand is too long".into(),
            });
        }
        let pins = self.store.pin(vec![digest]);
        self.fetch(vec![Wanted { digest, size: luggage.keep_size, mtime: 0 }]).await?;
        let told = |error: io::Error| failed(Path::new("the list of files to keep at hand"), &error);
        let bytes = match self.store.get(&digest).map_err(told)? {
            Some((file, size)) => {
                let mut bytes = vec![0; size as usize];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(told)?;
                bytes
            }
            None => return Err(told(io::Error::from_raw_os_error(libc::ENOENT))),
        };
        drop(pins);
        let keep = Luggage::decode(&bytes[..]).map_err(|_| told(io::Error::from_raw_os_error(libc::EBADMSG)))?;
        let keep = Arc::new(keep);
        self.lock().keep = Some((digest, keep.clone()));
        Ok(Some(keep))
    }

    /// The master's file service is there now.
    pub fn master_is_at(&self, address: &str) {
        self.fetcher.master_is_at(address);
    }

    /// Gets the files to keep at hand before anybody asks for them.
    pub fn prefetch(self: &Arc<Self>, digest: &[u8], size: u64) {
        let luggage = Luggage { keep: digest.to_vec(), keep_size: size, ..Luggage::default() };
        let this = self.clone();
        tokio::spawn(async move {
            let got = async {
                let Some(keep) = this.keep(&luggage).await? else { return Ok(()) };
                let looked = this.clone();
                let wants = tokio::task::spawn_blocking(move || looked.lacking(&keep)).await;
                let (_, wants) = wants.map_err(|error| this.broken(&error))??;
                this.fetch(wants).await
            };
            if let Err(failure) = got.await {
                tracing::warn!(reason = %failure.message, "files to keep at hand did not arrive");
            }
            let this = this.clone();
            tokio::task::spawn_blocking(move || this.store.evict());
        });
    }

    fn known(&self, key: &Key, program: &[u8]) -> Option<Place> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let view = state.views.get_mut(key)?;
        view.used = now;
        let inside =
            |path: &Path| view.seen_at.join(path.strip_prefix("/").unwrap_or(path)).into_os_string().into_vec();
        let own = PathBuf::from(OsStr::from_bytes(program));
        let moved: BTreeSet<&Path> =
            view.strays.iter().filter(|path| **path != own).filter_map(|p| p.parent()).collect();
        Some(Place {
            mounts: view.mounts.clone(),
            path: view.strays.contains(&own).then(|| inside(&own)),
            moved: moved.into_iter().map(|dir| (dir.as_os_str().as_bytes().to_vec(), inside(dir))).collect(),
        })
    }

    /// Makes a view. Blocks.
    fn make(&self, tree: &Tree, key: Key, from: &fs::File, pins: Pins) -> Result<(), Failure> {
        let root = Root::open(&self.root).map_err(told)?;
        let layout: Layout = tree.layout(&root, self.has_own_root())?;
        let dir = self.store.tree(&key.files).map_err(|error| failed(&self.staging, &error))?;
        let files = dir.join("root");
        let made = self.fill(tree, &files).and_then(|()| {
            let plan = view::Plan {
                from: from.as_fd(),
                root: &self.root,
                tree: &files,
                staging: layout.own_root.then_some(self.staging.as_path()),
                show_tree: !layout.strays.is_empty(),
                steps: &layout.steps,
            };
            let mounts = view::make(plan).map_err(told)?;
            let number = fs::File::from(mounts.try_clone().map_err(|error| failed(&files, &error))?);
            let number = number.metadata().map_err(|error| failed(&files, &error))?.ino();
            self.store.note_mounts(&dir, number).map_err(|error| failed(&dir, &error))?;
            Ok(mounts)
        });
        drop(pins);
        let mounts = match made {
            Ok(mounts) => mounts,
            Err(failure) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(failure);
            }
        };
        tracing::debug!(tree = %dir.display(), ?layout, "made a view");
        let mut state = self.lock();
        state.clock += 1;
        let view = View {
            mounts: Arc::new(mounts),
            seen_at: if layout.own_root { PathBuf::from(TREE_IN_ROOT) } else { files },
            tree: dir,
            strays: layout.strays.into_iter().collect(),
            used: state.clock,
        };
        state.views.insert(key, view);
        drop(state);
        self.make_room(key);
        Ok(())
    }

    fn fill(&self, tree: &Tree, at: &Path) -> Result<(), Failure> {
        let mut result = Ok(());
        tree.each(|path, node| {
            if result.is_err() {
                return;
            }
            let to = at.join(path.strip_prefix("/").unwrap_or(path));
            let done = match node {
                Node::Dir(_) => fs::create_dir(&to),
                Node::Link(target) => std::os::unix::fs::symlink(target, &to),
                Node::File(digest) => self.store.link(digest, &to),
            };
            result = done.map_err(|error| failed(path, &error));
        });
        result
    }

    /// Lets go of views that nobody uses when there are many, or when the cache is full; then of files.
    fn make_room(&self, but: Key) {
        let full = self.store.is_too_full();
        let mut state = self.lock();
        if !full && state.views.len() <= IDLE_VIEWS {
            return;
        }
        let mut ages: Vec<(u64, Key)> = state.views.iter().map(|(key, view)| (view.used, *key)).collect();
        ages.sort_unstable_by_key(|(used, _)| *used);
        let go = if full { ages.len() } else { ages.len().saturating_sub(IDLE_VIEWS / 2) };
        for (_, key) in ages.into_iter().take(go).filter(|(_, key)| *key != but) {
            // Somebody may be about to enter it.
            if state.views.get(&key).is_some_and(|view| Arc::strong_count(&view.mounts) == 1) {
                state.views.remove(&key);
            }
        }
        let keep = state.views.values().map(|view| view.tree.clone()).collect();
        drop(state);
        // Those that a process is in stay; so do their files.
        self.store.remove_idle_trees(&keep);
        self.store.evict();
    }

    /// The node's life has ended, and with it all that was in its views.
    pub fn forget_views(&self) {
        self.lock().views.clear();
    }
}

/// Two programs with the same files laid share a view.
fn key(tree: &Tree, space: u64) -> Key {
    let mut hasher = Hasher::new();
    tree.each(|path, node| {
        let (kind, content): (u8, Vec<u8>) = match node {
            Node::Dir(_) => return,
            Node::File(digest) => (b'f', digest.0.to_vec()),
            Node::Link(target) => (b'l', target.as_os_str().as_bytes().to_vec()),
        };
        for part in [&[kind], path.as_os_str().as_bytes(), &content] {
            hasher.update(&(part.len() as u64).to_ne_bytes());
            hasher.update(part);
        }
    });
    Key { files: hasher.finish(), space }
}

/// For a program whose libraries are elsewhere: the environment with `LD_LIBRARY_PATH` leading there.
pub fn environment(envp: &[Vec<u8>], moved: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    const NAME: &[u8] = b"LD_LIBRARY_PATH=";
    let old = envp.iter().find_map(|entry| entry.strip_prefix(NAME));
    let mut list: Vec<&[u8]> = moved.iter().map(|(_, ours)| ours.as_slice()).collect();
    if let Some(old) = old {
        list = Vec::new();
        let mut rest: Vec<&[u8]> = moved.iter().map(|(_, ours)| ours.as_slice()).collect();
        for dir in old.split(|b| *b == b':') {
            for (theirs, ours) in moved.iter().filter(|(theirs, _)| theirs.as_slice() == dir) {
                rest.retain(|r| *r != ours.as_slice());
                list.push(ours);
                let _ = theirs;
            }
            list.push(dir);
        }
        // Those that were found by other ways come before all.
        rest.extend(list);
        list = rest;
    }
    let mut out: Vec<Vec<u8>> = envp.iter().filter(|entry| !entry.starts_with(NAME)).cloned().collect();
    let mut entry = NAME.to_vec();
    entry.extend(list.join(&b':'));
    out.push(entry);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_are_elsewhere_are_found_in_their_order() {
        let moved =
            [(b"/home/me/lib".to_vec(), b"/t/home/me/lib".to_vec()), (b"/srv/x".to_vec(), b"/t/srv/x".to_vec())];
        let envp = [b"A=1".to_vec(), b"LD_LIBRARY_PATH=/opt/l:/home/me/lib".to_vec()];
        let told = environment(&envp, &moved);
        assert_eq!(told[0], b"A=1");
        assert_eq!(told[1], b"LD_LIBRARY_PATH=/t/srv/x:/opt/l:/t/home/me/lib:/home/me/lib");
        assert_eq!(environment(&[], &moved)[0], b"LD_LIBRARY_PATH=/t/home/me/lib:/t/srv/x");
    }
}
