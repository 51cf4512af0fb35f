//! On a node: makes the place in which a program that travelled runs as on the master. Where the node has all files as
//! the master has them, that is the node itself, and nothing is done.

use crate::digest::{Digest, Hasher, Memo};
use crate::fetch::{AT_ONCE, Fetcher, Wanted};
use crate::plan::{Layout, Node, Tree, has};
use crate::store::Store;
use bproc_proto::{Failure, Item, Luggage};
use bproc_sys::view::{self, Root, TREE_IN_ROOT};
use prost::Message;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Views that are kept though nobody uses them.
const IDLE_VIEWS: usize = 64;
/// Longest list of files to keep at hand, in bytes.
const MAX_KEEP: u64 = 64 << 20;
/// Of files to keep at hand so many may fail to arrive before no more are asked for.
const PATIENCE: usize = 8;

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
    lost: Vec<PathBuf>,
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

/// What a node lacks of a program.
#[derive(Default)]
struct Lacking {
    tree: Tree,
    wants: Vec<Wanted>,
    /// The program's own name, and where it is laid if it is.
    name: PathBuf,
    laid: Option<PathBuf>,
}

/// Files that a few tasks get one after the other.
struct Queue {
    left: Mutex<std::vec::IntoIter<Wanted>>,
    failures: Mutex<Vec<Failure>>,
    /// So many failures end it.
    patience: usize,
}

impl Queue {
    fn next(&self) -> Option<Wanted> {
        if self.failures.lock().unwrap_or_else(PoisonError::into_inner).len() >= self.patience {
            return None;
        }
        self.left.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    async fn get(self: Arc<Self>, fetcher: Arc<Fetcher>) {
        while let Some(wanted) = self.next() {
            if let Err(failure) = fetcher.get(wanted).await {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        }
    }
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
        let lacking = looked.map_err(|error| self.broken(&error))??;
        if lacking.tree.0.is_empty() && !self.has_own_root() {
            return Ok(None);
        }
        let lacking = Arc::new(lacking);
        let space = mounts.metadata().map_err(|error| failed(&self.root, &error))?.ino();
        let keep = self.keep(luggage).await;
        let (tree, at_hand) = self.extend(&lacking, keep.as_ref(), false).await?;
        let mut key = key_of(&tree, space);
        if let Some(place) = self.known(&key, &lacking) {
            return Ok(Some(place));
        }
        let both = lacking.wants.iter().chain(&at_hand);
        let pins = self.store.pin(both.map(|wanted| wanted.digest).collect());
        self.fetch(lacking.wants.clone()).await?;
        let mut tree = tree;
        if !self.fetch_at_hand(at_hand).await {
            // The program does without the rest.
            (tree, _) = self.extend(&lacking, keep.as_ref(), true).await?;
            key = key_of(&tree, space);
        }
        let _one = self.making.lock().await;
        if let Some(place) = self.known(&key, &lacking) {
            return Ok(Some(place));
        }
        let (this, program) = (self.clone(), lacking.clone());
        let made = tokio::task::spawn_blocking(move || {
            let made = match this.make(&tree, key, &mounts) {
                Err(failure) if tree != program.tree => {
                    tracing::warn!(reason = %failure.message, "a program goes without the files to keep at hand");
                    let key = key_of(&program.tree, space);
                    this.make(&program.tree, key, &mounts).map(|()| key)
                }
                made => made.map(|()| key),
            };
            drop(pins);
            this.make_room(made.as_ref().ok().copied());
            made
        });
        let key = made.await.map_err(|error| self.broken(&error))??;
        Ok(self.known(&key, &lacking))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure { number: libc::EIO, message: format!("making the place of a program: {error}") }
    }

    /// What the node does not have as the master has it. Parts that go along come only when something else does.
    fn lacking(&self, luggage: &Luggage) -> Result<Lacking, Failure> {
        let root = Root::open(&self.root).map_err(told)?;
        let same = luggage.machine == self.machine;
        let mut items = Vec::new();
        for companions in [false, true] {
            for (number, item) in luggage.items.iter().enumerate().filter(|(_, item)| item.companion == companions) {
                if !has(&root, item, same, &self.memo)? {
                    items.push((number, item));
                }
            }
            if items.is_empty() {
                break;
            }
        }
        let name = luggage.items.first().map(|item| item.path.as_slice()).unwrap_or_default();
        let mut lacking = Lacking { name: PathBuf::from(OsStr::from_bytes(name)), ..Lacking::default() };
        for (number, item) in items {
            let laid = lacking.tree.add(item, &root)?;
            if number == 0 {
                lacking.laid = Some(laid);
            }
            lacking.wants.push(wanted(item)?);
        }
        Ok(lacking)
    }

    /// The tree with those files to keep at hand that the node lacks and that the cache has room for beside the program,
    /// or with those of them that have arrived. One that cannot be laid is left out.
    async fn extend(
        self: &Arc<Self>,
        lacking: &Arc<Lacking>,
        keep: Option<&Arc<Luggage>>,
        arrived: bool,
    ) -> Result<(Tree, Vec<Wanted>), Failure> {
        let Some(keep) = keep.cloned() else { return Ok((lacking.tree.clone(), Vec::new())) };
        let (this, lacking) = (self.clone(), lacking.clone());
        let extended = tokio::task::spawn_blocking(move || {
            let (mut tree, mut wants) = (lacking.tree.clone(), Vec::new());
            let used: u64 = lacking.wants.iter().map(|wanted| wanted.size).sum();
            let mut counted: HashSet<Digest> = lacking.wants.iter().map(|wanted| wanted.digest).collect();
            let mut room = this.store.limit().saturating_sub(used);
            let root = Root::open(&this.root).map_err(told)?;
            let same = keep.machine == this.machine;
            let mut left_out = 0;
            for item in &keep.items {
                let Ok(wanted) = wanted(item) else { continue };
                if has(&root, item, same, &this.memo).unwrap_or(true) {
                    continue;
                }
                let fits = counted.contains(&wanted.digest) || wanted.size <= room;
                if !fits || (arrived && !this.store.holds(&wanted.digest)) || tree.add(item, &root).is_err() {
                    left_out += 1;
                    continue;
                }
                if counted.insert(wanted.digest) {
                    room -= wanted.size;
                    wants.push(wanted);
                }
            }
            if left_out > 0 {
                tracing::debug!(files = left_out, "files to keep at hand are left out");
            }
            Ok((tree, wants))
        });
        extended.await.unwrap_or_else(|error| Err(self.broken(&error)))
    }

    async fn fetch(&self, wants: Vec<Wanted>) -> Result<(), Failure> {
        self.fetch_some(wants, 1).await.map_or(Ok(()), Err)
    }

    /// Gets files, a few at a time, until so many have failed; why the first of these did.
    async fn fetch_some(&self, wants: Vec<Wanted>, patience: usize) -> Option<Failure> {
        let fetcher = self.fetcher.clone();
        let getters = wants.len().min(AT_ONCE);
        let queue = Arc::new(Queue { left: Mutex::new(wants.into_iter()), failures: Mutex::default(), patience });
        let some = queue.clone();
        let all = self.files.spawn(async move {
            let gets: Vec<_> = (0..getters).map(|_| tokio::spawn(some.clone().get(fetcher.clone()))).collect();
            for get in gets {
                get.await?;
            }
            Ok::<_, tokio::task::JoinError>(())
        });
        let whole = all.await.and_then(|whole| whole);
        let failed = queue.failures.lock().unwrap_or_else(PoisonError::into_inner).drain(..).next();
        failed.or_else(|| whole.err().map(|error| self.broken(&error)))
    }

    /// Gets files to keep at hand, and makes room for them meanwhile. False: some did not arrive.
    async fn fetch_at_hand(self: &Arc<Self>, wants: Vec<Wanted>) -> bool {
        let mut part = Vec::new();
        let mut bytes = 0;
        let mut left = wants.into_iter().peekable();
        while let Some(wanted) = left.next() {
            part.push(wanted);
            bytes += wanted.size;
            if bytes < self.store.limit() / 8 && left.peek().is_some() {
                continue;
            }
            bytes = 0;
            if let Some(failure) = self.fetch_some(std::mem::take(&mut part), PATIENCE).await {
                tracing::warn!(reason = %failure.message, "files to keep at hand did not arrive");
                return false;
            }
            let this = self.clone();
            // If it cannot be done now, it is done when the next view is made.
            let _ = tokio::task::spawn_blocking(move || this.store.evict()).await;
        }
        true
    }

    /// The files to keep at hand, as this luggage says. Without the list a program starts all the same.
    async fn keep(&self, luggage: &Luggage) -> Option<Arc<Luggage>> {
        let digest = Digest::from_slice(&luggage.keep)?;
        if let Some((known, keep)) = &self.lock().keep
            && *known == digest
        {
            return Some(keep.clone());
        }
        match self.fetch_list(digest, luggage.keep_size).await {
            Ok(keep) => {
                let keep = Arc::new(keep);
                self.lock().keep = Some((digest, keep.clone()));
                Some(keep)
            }
            Err(failure) => {
                tracing::warn!(reason = %failure.message, "which files to keep at hand is not known");
                None
            }
        }
    }

    async fn fetch_list(&self, digest: Digest, size: u64) -> Result<Luggage, Failure> {
        let told = |error: io::Error| failed(Path::new("the list of files to keep at hand"), &error);
        if size > MAX_KEEP {
            return Err(told(io::Error::from_raw_os_error(libc::EFBIG)));
        }
        let _pins = self.store.pin(vec![digest]);
        self.fetch(vec![Wanted { digest, size, mtime: 0 }]).await?;
        let Some((file, size)) = self.store.get(&digest).map_err(told)? else {
            return Err(told(io::Error::from_raw_os_error(libc::ENOENT)));
        };
        let mut bytes = vec![0; size as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(told)?;
        Luggage::decode(&bytes[..]).map_err(|_| told(io::Error::from_raw_os_error(libc::EBADMSG)))
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
            let Some(keep) = this.keep(&luggage).await else { return };
            let nothing = Arc::new(Lacking::default());
            match this.extend(&nothing, Some(&keep), false).await {
                Ok((_, wants)) => drop(this.fetch_at_hand(wants).await),
                Err(failure) => {
                    tracing::warn!(reason = %failure.message, "files to keep at hand are not looked for");
                }
            }
            tokio::task::spawn_blocking(move || this.make_room(None));
        });
    }

    fn known(&self, key: &Key, program: &Lacking) -> Option<Place> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let view = state.views.get_mut(key)?;
        view.used = now;
        let inside =
            |path: &Path| view.seen_at.join(path.strip_prefix("/").unwrap_or(path)).into_os_string().into_vec();
        // By its name, or by what that leads to.
        let own = [Some(&program.name), program.laid.as_ref()];
        let stray = own.into_iter().flatten().find(|path| view.strays.contains(*path));
        let leaves = program.name.components().any(|part| part == Component::ParentDir)
            && view.lost.iter().any(|dir| program.name.starts_with(dir));
        let laid = program.laid.as_ref().filter(|_| leaves).map(|path| path.as_os_str().as_bytes().to_vec());
        let moved: BTreeSet<&Path> = view
            .strays
            .iter()
            .filter(|path| **path != program.name && Some(*path) != program.laid.as_ref())
            .filter_map(|p| p.parent())
            .collect();
        Some(Place {
            mounts: view.mounts.clone(),
            path: stray.map(|path| inside(path)).or(laid),
            moved: moved.into_iter().map(|dir| (dir.as_os_str().as_bytes().to_vec(), inside(dir))).collect(),
        })
    }

    /// Makes a view. Blocks.
    fn make(&self, tree: &Tree, key: Key, from: &fs::File) -> Result<(), Failure> {
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
            lost: layout.lost,
            used: state.clock,
        };
        state.views.insert(key, view);
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
    fn make_room(&self, but: Option<Key>) {
        let full = self.store.is_too_full();
        let mut state = self.lock();
        if !full && state.views.len() <= IDLE_VIEWS {
            return;
        }
        let mut ages: Vec<(u64, Key)> = state.views.iter().map(|(key, view)| (view.used, *key)).collect();
        ages.sort_unstable_by_key(|(used, _)| *used);
        let go = if full { ages.len() } else { ages.len().saturating_sub(IDLE_VIEWS / 2) };
        for (_, key) in ages.into_iter().take(go).filter(|(_, key)| Some(*key) != but) {
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
fn key_of(tree: &Tree, space: u64) -> Key {
    let mut hasher = Hasher::new();
    tree.each(|path, node| {
        let (kind, content): (u8, Vec<u8>) = match node {
            Node::Dir(below) if below.is_empty() => (b'd', Vec::new()),
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
