//! How a program's files come to stand at their paths on a node: which of them the node has already, and what is to be
//! laid over what for the others. Looks at the node's files, changes nothing.

use crate::digest::{Digest, Memo};
use crate::open;
use crate::pack::parts;
use bproc_proto::{Failure, Item};
use bproc_sys::view::{Root, Step};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Directories that hold nothing but what was installed: laid over, they are read-only to a program that may not write
/// there anyway.
const SYSTEM: [&str; 10] = ["usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "opt", "etc", "nix"];

/// An entry of the tree of files to lay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// More below.
    Dir(BTreeMap<OsString, Node>),
    /// A file, by content.
    File(Digest),
    /// A symbolic link.
    Link(PathBuf),
}

/// The files to lay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<OsString, Node>);

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The node's own root directory lacks something: the view gets one of its own.
    pub own_root: bool,
    /// In this order.
    pub steps: Vec<Step>,
    /// Files that cannot stand at their paths without changing directories that are the users': they are used from
    /// the tree.
    pub strays: Vec<PathBuf>,
    /// Directories without files, only passed through by names with `..`, that cannot be made either.
    pub lost: Vec<PathBuf>,
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn refuse(number: i32, path: &Path, why: &str) -> Failure {
    Failure { number, message: format!("{}: {why}", path.display()) }
}

fn told(error: bproc_sys::Error) -> Failure {
    Failure { number: error.errno(), message: error.to_string() }
}

/// Names of a path from the root; `None` when it is relative or has `..`.
fn names(path: &Path) -> Option<Vec<OsString>> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    parts.map(|part| if let Component::Normal(name) = part { Some(name.into()) } else { None }).collect()
}

/// True when the node has this very file at the path.
pub fn has(root: &Root, item: &Item, same_machine: bool, memo: &Memo) -> Result<bool, Failure> {
    let path = path_of(&item.path);
    let Some(meta) = root.find(&path).map_err(told)? else { return Ok(false) };
    if !meta.is_file() || meta.len() != item.size {
        return Ok(false);
    }
    let identity = crate::digest::Identity::of(&meta);
    if same_machine && identity.is_wire(&item.identity, item.size) {
        return Ok(true);
    }
    if let Some(known) = memo.known(&identity) {
        return Ok(known.0[..] == item.digest[..]);
    }
    // What cannot be read is another's: the program's own is laid over it.
    let digest =
        root.read(&path).ok().and_then(|file| open::checked(file).ok()).and_then(|file| memo.digest(&file).ok());
    Ok(digest.is_some_and(|(_, digest)| digest.0[..] == item.digest[..]))
}

impl Tree {
    /// Adds a file that the node does not have, with the links that lead to it, and directories that its name leaves by
    /// `..`. Where it is then.
    ///
    /// # Errors
    /// Its path is no path; something else of the program stands there.
    pub fn add(&mut self, item: &Item, root: &Root) -> Result<PathBuf, Failure> {
        let path = path_of(&item.path);
        let digest = Digest::from_slice(&item.digest)
            .ok_or_else(|| refuse(libc::EPROTO, &path, "it travels without a digest"))?;
        if !path.is_absolute() {
            return Err(refuse(libc::EPROTO, &path, "this is no absolute path"));
        }
        let mut done = PathBuf::from("/");
        let mut rest = parts(&path);
        let mut followed = 0;
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"." => continue,
                b".." => {
                    self.pass_through(&done);
                    done.pop();
                    continue;
                }
                _ => {}
            }
            let next = done.join(OsStr::from_bytes(&part));
            let link = item.links.iter().find(|link| link.path == next.as_os_str().as_bytes());
            let Some(target) = link.map(|link| path_of(&link.target)) else {
                done = next;
                continue;
            };
            match root.find_link(&next).map_err(told)? {
                None => self.put(&next, Node::Link(target.clone()))?,
                Some(Some(there)) if there == target => {}
                // The node has something else in the place of the link: the file is needed behind that.
                Some(_) => {
                    done = next;
                    continue;
                }
            }
            followed += 1;
            if followed > item.links.len() {
                return Err(refuse(libc::ELOOP, &path, "its links lead in a circle"));
            }
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            rest.extend(parts(&target));
        }
        self.put(&done, Node::File(digest)).map(|()| done)
    }

    /// A directory that must be there, whatever is in it. If something else stands there, exec will say so.
    fn pass_through(&mut self, dir: &Path) {
        let mut at = &mut self.0;
        for name in names(dir).unwrap_or_default() {
            match at.entry(name).or_insert_with(|| Node::Dir(BTreeMap::new())) {
                Node::Dir(below) => at = below,
                _ => return,
            }
        }
    }

    fn put(&mut self, path: &Path, node: Node) -> Result<(), Failure> {
        let names = names(path).ok_or_else(|| refuse(libc::EPROTO, path, "this is no absolute path"))?;
        let Some((last, dirs)) = names.split_last() else {
            return Err(refuse(libc::EPROTO, path, "this is no file"));
        };
        let mut at = &mut self.0;
        for name in dirs {
            match at.entry(name.clone()).or_insert_with(|| Node::Dir(BTreeMap::new())) {
                Node::Dir(below) => at = below,
                _ => return Err(refuse(libc::ENOTDIR, path, "another file of the program stands in the way")),
            }
        }
        match at.get(last) {
            Some(Node::Dir(_)) => Err(refuse(libc::EISDIR, path, "a directory of the program stands in the way")),
            // What came first is the program's own; hints come after.
            Some(_) => Ok(()),
            None => {
                at.insert(last.clone(), node);
                Ok(())
            }
        }
    }

    /// Paths of all files, with their content.
    pub fn files(&self) -> Vec<(PathBuf, Digest)> {
        let mut out = Vec::new();
        walk(&self.0, Path::new("/"), &mut |path, node| {
            if let Node::File(digest) = node {
                out.push((path.to_path_buf(), *digest));
            }
        });
        out
    }

    /// Everything, directories before what is in them.
    pub fn each(&self, mut use_it: impl FnMut(&Path, &Node)) {
        walk(&self.0, Path::new("/"), &mut use_it);
    }

    /// What is to be done on a node with this root.
    ///
    /// # Errors
    /// A directory of the node is in the way of a file, or the other way round; it cannot be looked at.
    pub fn layout(&self, root: &Root, other_root: bool) -> Result<Layout, Failure> {
        let mut layout = Layout { own_root: other_root, ..Layout::default() };
        graft(root, Path::new("/"), &self.0, &mut layout)?;
        Ok(layout)
    }
}

fn walk(dir: &BTreeMap<OsString, Node>, at: &Path, use_it: &mut impl FnMut(&Path, &Node)) {
    for (name, node) in dir {
        let path = at.join(name);
        use_it(&path, node);
        if let Node::Dir(below) = node {
            walk(below, &path, use_it);
        }
    }
}

fn graft(root: &Root, at: &Path, dir: &BTreeMap<OsString, Node>, layout: &mut Layout) -> Result<(), Failure> {
    let mut missing = Vec::new();
    let mut there = Vec::new();
    for (name, node) in dir {
        let path = at.join(name);
        match (node, root.find(&path).map_err(told)?) {
            (_, None) => missing.push(name),
            (Node::Dir(below), Some(meta)) if meta.is_dir() => there.push((path, Some(below))),
            (Node::Dir(_), Some(_)) => return Err(refuse(libc::ENOTDIR, &path, "the node has a file there")),
            (_, Some(meta)) if meta.is_dir() => {
                return Err(refuse(libc::EISDIR, &path, "the node has a directory there"));
            }
            (Node::File(_), Some(_)) => there.push((path, None)),
            // Links are laid only where nothing is; something is there by now.
            (Node::Link(_), Some(_)) => {}
        }
    }
    if !missing.is_empty() {
        if at == Path::new("/") {
            layout.own_root = true;
            layout.steps.extend(missing.iter().map(|name| Step::Top((*name).clone())));
        } else {
            let empty = root.is_empty(at).map_err(told)?;
            let first = at.components().nth(1).map(|part| part.as_os_str());
            let system = first.is_some_and(|first| SYSTEM.iter().any(|name| first == OsStr::new(name)));
            let only_dirs = missing.iter().all(|name| matches!(dir.get(*name), Some(Node::Dir(_))));
            if empty && (system || only_dirs) {
                layout.steps.push(Step::Bind(at.into()));
                return Ok(());
            }
            if system {
                layout.steps.push(Step::Overlay(at.into()));
                return Ok(());
            }
            for name in missing {
                match dir.get(name) {
                    Some(Node::Dir(below)) => {
                        if below.is_empty() {
                            layout.lost.push(at.join(name));
                        }
                        walk(below, &at.join(name), &mut |path, node| match node {
                            Node::Dir(below) if below.is_empty() => layout.lost.push(path.to_path_buf()),
                            Node::Dir(_) => {}
                            _ => layout.strays.push(path.to_path_buf()),
                        });
                    }
                    _ => layout.strays.push(at.join(name)),
                }
            }
        }
    }
    for (path, below) in there {
        match below {
            Some(below) => graft(root, &path, below, layout)?,
            None => layout.steps.push(Step::Bind(path)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bproc_proto::Link;

    fn item(path: &str, content: &[u8]) -> Item {
        Item {
            path: path.into(),
            digest: Digest::of(content).0.to_vec(),
            size: content.len() as u64,
            ..Item::default()
        }
    }

    fn linked(path: &str, links: &[(&str, &str)], content: &[u8]) -> Item {
        let links = links.iter().map(|(path, target)| Link { path: (*path).into(), target: (*target).into() });
        Item { links: links.collect(), ..item(path, content) }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(files: &[(&str, &str)], dirs: &[&str]) -> Place {
            let dir = tempfile::tempdir().unwrap();
            for path in dirs {
                std::fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            for (path, content) in files {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            Place(dir)
        }

        fn lay(&self, items: &[Item]) -> Layout {
            let root = Root::open(self.0.path()).unwrap();
            let mut tree = Tree::default();
            for item in items {
                if !has(&root, item, false, &Memo::default()).unwrap() {
                    tree.add(item, &root).unwrap();
                }
            }
            tree.layout(&root, false).unwrap()
        }
    }

    fn bind(path: &str) -> Step {
        Step::Bind(path.into())
    }

    #[test]
    fn a_node_that_has_all_needs_nothing() {
        let place = Place::new(&[("bin/sh", "shell")], &[]);
        assert_eq!(place.lay(&[item("/bin/sh", b"shell")]), Layout::default());
    }

    #[test]
    fn another_version_is_laid_over() {
        let place = Place::new(&[("bin/sh", "older")], &[]);
        let layout = place.lay(&[item("/bin/sh", b"shell")]);
        assert_eq!(layout, Layout { steps: vec![bind("/bin/sh")], ..Layout::default() });
    }

    #[test]
    fn an_empty_root_gets_everything() {
        let place = Place::new(&[], &["tmp"]);
        let links = [("/bin", "usr/bin"), ("/usr/bin/sh", "dash")];
        let layout = place.lay(&[linked("/bin/sh", &links, b"shell"), item("/lib64/ld.so", b"ld")]);
        assert!(layout.own_root && layout.strays.is_empty());
        let top = |name: &str| Step::Top(name.into());
        assert_eq!(layout.steps, [top("bin"), top("lib64"), top("usr")]);
    }

    #[test]
    fn empty_directories_are_filled_and_full_ones_laid_over() {
        let place = Place::new(&[("usr/lib/own.so", "own")], &["bin"]);
        let links = [("/bin", "usr/bin")];
        let layout = place.lay(&[linked("/bin/sh", &links, b"shell"), item("/usr/lib/libx.so", b"x")]);
        // /bin is a directory here: the shell is needed there.
        assert_eq!(layout.steps, [bind("/bin"), Step::Overlay("/usr/lib".into())]);
        assert!(!layout.own_root && layout.strays.is_empty());
    }

    #[test]
    fn links_end_where_the_node_has_something_else() {
        let place = Place::new(&[], &["lib", "usr/lib"]);
        let links = [("/lib64", "usr/lib64"), ("/usr/lib64/ld.so", "/lib/ld.so"), ("/lib", "usr/lib")];
        let root = Root::open(place.0.path()).unwrap();
        let mut tree = Tree::default();
        tree.add(&linked("/lib64/ld.so", &links, b"ld"), &root).unwrap();
        assert_eq!(tree.files(), [(PathBuf::from("/lib/ld.so"), Digest::of(b"ld"))]);
        let mut circle = linked("/a/x", &[("/a", "b"), ("/b", "a")], b"");
        assert_eq!(tree.add(&circle, &root).unwrap_err().number, libc::ELOOP);
        circle.links.clear();
        assert!(tree.add(&circle, &root).is_err(), "a link stands there");
    }

    #[test]
    fn directories_of_users_stay_as_they_are() {
        let place = Place::new(&[("tmp/other", "")], &["home", "srv/x"]);
        let layout = place.lay(&[item("/tmp/hello", b"hello"), item("/home/me/prog", b"prog"), item("/srv/x/p", b"p")]);
        assert_eq!(layout.strays, [PathBuf::from("/srv/x/p"), "/tmp/hello".into()]);
        assert_eq!(layout.steps, [bind("/home")]);
    }

    #[test]
    fn names_may_pass_through_directories() {
        let place = Place::new(&[("srv/x/other", "")], &["tmp"]);
        let root = Root::open(place.0.path()).unwrap();
        let mut tree = Tree::default();
        assert_eq!(tree.add(&item("/home/a/../prog", b"p"), &root).unwrap(), PathBuf::from("/home/prog"));
        assert_eq!(tree.0[OsStr::new("home")], {
            let there = [("a", Node::Dir(BTreeMap::new())), ("prog", Node::File(Digest::of(b"p")))];
            Node::Dir(there.into_iter().map(|(name, node)| (name.into(), node)).collect())
        });
        let layout = place.lay(&[item("/srv/x/a/../prog", b"p")]);
        assert_eq!((layout.strays, layout.lost), (vec!["/srv/x/prog".into()], vec!["/srv/x/a".into()]));
    }

    #[test]
    fn what_stands_in_the_way_is_told() {
        let place = Place::new(&[("lib", "a file")], &["bin/sh"]);
        let root = Root::open(place.0.path()).unwrap();
        for (path, number) in [("/lib/x.so", libc::ENOTDIR), ("/bin/sh", libc::EISDIR)] {
            let mut tree = Tree::default();
            let error = tree.add(&item(path, b"x"), &root).and_then(|_| tree.layout(&root, false)).unwrap_err();
            assert_eq!(error.number, number, "{}", error.message);
        }
        let mut tree = Tree::default();
        assert!(tree.add(&item("relative", b"x"), &root).is_err() && tree.add(&item("/..", b"x"), &root).is_err());
    }
}
