//! Descriptors: what each leads to, and which can go along.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::FdPolicy;
use super::areas::Layout;
use super::contents;
use super::positions::Position;
use super::survey::file_ref;
use crate::ahead::OpenFile;
use crate::error::{Error, Refusal, Uncarried};
use crate::image::{Fd, FdKind};
use crate::procfs::{fdinfo, maps, timer_ns, watched};
use crate::sys::SysError;
use crate::sys::channel::{self, peek_pipe, peek_stream, pipe_size, unix_peer};
use crate::sys::files;
use crate::sys::process::{get_fd, same_file};

/// More bytes than any pipe or pair of sockets of a sane program holds unread.
const MOST_WAITING: usize = 4 << 20;

/// A descriptor as /proc shows it.
pub(super) struct Seen {
    pub(super) fd: i32,
    pub(super) link: Vec<u8>,
    pub(super) info: String,
}

impl Seen {
    pub(super) fn flags(&self) -> u32 {
        fdinfo(&self.info, "flags").and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0)
    }

    /// Pipe or socket: its inode.
    fn inode(&self, kind: &[u8]) -> Option<u32> {
        let number = self.link.strip_prefix(kind)?.strip_prefix(b":[")?.strip_suffix(b"]")?;
        std::str::from_utf8(number).ok()?.parse().ok()
    }
}

fn all(pid: i32) -> Result<Vec<Seen>, Error> {
    let dir = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone(pid),
        _ => SysError::from_io("read the descriptors of", pid, &e).into(),
    })?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut seen: Vec<Seen> = dir.flatten().filter_map(|entry| one(pid, number(entry)?)).collect();
    seen.sort_by_key(|s| s.fd);
    Ok(seen)
}

/// One descriptor, if it is open.
pub(super) fn one(pid: i32, fd: i32) -> Option<Seen> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?.into_os_string().into_encoded_bytes();
    let info = String::from_utf8(files::read_record(&format!("/proc/{pid}/fdinfo/{fd}")).ok()?).ok()?;
    Some(Seen { fd, link, info })
}

/// Descriptors that no policy lets go.
pub(super) fn refused_kinds(pid: i32) -> Result<Vec<Refusal>, Error> {
    let kind = |seen: Seen| match seen.link.as_slice() {
        b"anon_inode:[io_uring]" => Some(Refusal::IoUring),
        b"anon_inode:[userfaultfd]" => Some(Refusal::Userfaultfd),
        _ => None,
    };
    Ok(all(pid)?.into_iter().filter_map(kind).collect())
}

/// Open files that cannot go along, unless they may be dropped, and those that must be where it goes.
pub(super) fn look(pid: i32, policy: FdPolicy, own: &Channels) -> Result<(Option<Refusal>, Vec<OpenFile>), Error> {
    if policy != FdPolicy::Carry {
        return Ok((None, Vec::new()));
    }
    let mut layout = Layout::default();
    let (mut lost, mut open) = (Vec::new(), Vec::new());
    for Fd { fd, flags, kind } in read(pid, policy, &mut layout, own)?.into_iter().filter(|f| f.fd > 2) {
        match kind {
            FdKind::NotCarried { what } => lost.push(Uncarried { fd, what: what.text() }),
            FdKind::Terminal { path } => lost.push(Uncarried { fd, what: format!("terminal {}", path.text()) }),
            FdKind::Regular { file, .. } => {
                open.extend(layout.files.get(file as usize).map(|f| OpenFile { fd, flags, path: f.path.clone() }));
            }
            FdKind::Directory { path } | FdKind::Device { path } => open.push(OpenFile { fd, flags, path }),
            _ => {}
        }
    }
    Ok(((!lost.is_empty()).then_some(Refusal::OpenFiles(lost)), open))
}

/// Pipes and pairs of sockets that nobody else has a part of, and memory files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Channels {
    /// Inode, and its partner's (its own for a pipe).
    all: HashMap<(bool, u32), u32>,
    /// Memory files by device and inode: who else has it.
    pub(super) memory: HashMap<(u64, u64), Option<i32>>,
    /// Files that are written at a position.
    positions: Vec<Position>,
}

impl Channels {
    /// Those of a process, standard streams left out. Slow where there are any: everybody's descriptors are looked at.
    /// `positions`: with the files that it writes at a position.
    pub(super) fn of(pid: i32, positions: bool) -> Result<Channels, Error> {
        let seen = all(pid)?;
        let at = |kind: &'static [u8]| seen.iter().filter(move |s| s.fd > 2).filter_map(move |s| s.inode(kind));
        let streams: HashSet<&[u8]> = seen.iter().filter(|s| s.fd <= 2).map(|s| s.link.as_slice()).collect();
        let sockets: HashSet<u32> = at(b"socket").collect();
        let mut all: HashMap<(bool, u32), u32> = HashMap::new();
        all.extend(at(b"pipe").map(|inode| ((false, inode), inode)));
        let peer = |inode: &u32| unix_peer(*inode).filter(|peer| sockets.contains(peer));
        all.extend(sockets.iter().filter_map(|inode| Some(((true, *inode), peer(inode)?))));
        let name = |(socket, inode): (bool, u32)| format!("{}:[{inode}]", if socket { "socket" } else { "pipe" });
        all.retain(|key, _| !streams.contains(name(*key).as_bytes()));
        let memory = seen.iter().filter(|s| s.fd > 2 && contents::name(&s.link).is_some());
        let memory: HashMap<_, _> = memory.filter_map(|s| Some((contents::identity(pid, s.fd)?, None))).collect();
        let positions = if positions { written(pid, &seen) } else { Vec::new() };
        let mut channels = Channels { all, memory, positions };
        if !channels.memory.is_empty() || !channels.positions.is_empty() {
            // It may have been sent to anybody.
            channels.leave_shared(pid, &numbers());
        } else if !channels.all.is_empty() {
            channels.leave_shared(pid, &others_of(pid));
        }
        Ok(channels)
    }

    /// Without those that one of these others has, too.
    fn leave_shared(&mut self, pid: i32, others: &[i32]) {
        for other in others.iter().filter(|other| **other != pid) {
            for link in fs::read_dir(format!("/proc/{other}/fd")).into_iter().flatten().flatten() {
                let at = link.path();
                let Ok(link) = fs::read_link(&at) else { continue };
                let seen = Seen { fd: 0, link: link.into_os_string().into_encoded_bytes(), info: String::new() };
                self.positions.iter_mut().for_each(|position| position.compare(pid, &seen.link, (*other, &at)));
                if contents::name(&seen.link).is_some() {
                    let Ok(meta) = fs::metadata(at) else { continue };
                    self.memory.entry((meta.dev(), meta.ino())).and_modify(|with| *with = Some(*other));
                    continue;
                }
                let key = seen.inode(b"pipe").map(|i| (false, i)).or(seen.inode(b"socket").map(|i| (true, i)));
                if let Some(partner) = key.and_then(|key| self.all.remove(&key)) {
                    self.all.remove(&(true, partner));
                }
            }
            if !self.memory.is_empty() {
                self.leave_mapped(*other);
            }
        }
    }

    /// Memory files that this other process maps.
    fn leave_mapped(&mut self, other: i32) {
        let text = fs::read(format!("/proc/{other}/maps")).unwrap_or_default();
        for map in maps(&text).iter().filter(|map| map.deleted && map.name.starts_with(b"/memfd:")) {
            let key = (libc::makedev(map.dev.0, map.dev.1), map.inode);
            self.memory.entry(key).and_modify(|with| *with = Some(other));
        }
    }

    /// In the stopped process: without those that a child got since.
    pub(super) fn again(&self, pid: i32) -> Channels {
        let mut now = self.clone();
        if !now.all.is_empty() || !now.memory.is_empty() || !now.positions.is_empty() {
            now.leave_shared(pid, &super::survey::children(pid));
        }
        now
    }
}

/// Descriptors by which a process writes at a position, without copies of standard streams, which go along with these.
fn written(pid: i32, seen: &[Seen]) -> Vec<Position> {
    let (streams, others): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|s| s.fd <= 2);
    let is_copy = |s: &Seen| streams.iter().any(|of| of.link == s.link && same_file((pid, of.fd), (pid, s.fd)));
    others.into_iter().filter(|s| !is_copy(s)).filter_map(|s| Position::of(pid, s)).collect()
}

/// Processes of the same user: whoever has a descriptor of another got it by fork, or from one of these.
fn others_of(pid: i32) -> Vec<i32> {
    let owner = |pid: i32| fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).ok();
    let mine = owner(pid);
    let mut all = numbers();
    all.retain(|other| owner(*other) == mine);
    all
}

/// All processes.
pub(super) fn numbers() -> Vec<i32> {
    let dir = fs::read_dir("/proc").into_iter().flatten().flatten();
    dir.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The descriptors for the image.
pub(super) fn read(pid: i32, policy: FdPolicy, layout: &mut Layout, own: &Channels) -> Result<Vec<Fd>, Error> {
    let mut out: Vec<Fd> = Vec::new();
    let mut regular: Vec<(i32, Vec<u8>)> = Vec::new();
    let seen = all(pid)?;
    for seen in &seen {
        if policy == FdPolicy::StdioOnly && seen.fd > 2 {
            break;
        }
        let twin = regular.iter().find(|(fd, link)| *link == seen.link && same_file((pid, *fd), (pid, seen.fd)));
        let kind = match twin {
            Some((fd, _)) => FdKind::SameAs { fd: *fd },
            None => kind(pid, seen, layout, own),
        };
        // A copy of a standard stream goes along with that, whatever it is.
        let stays = matches!(kind, FdKind::NotCarried { .. } | FdKind::Terminal { .. } | FdKind::Directory { .. });
        if seen.fd <= 2 || !stays {
            regular.push((seen.fd, seen.link.clone()));
        }
        out.push(Fd { fd: seen.fd, flags: seen.flags(), kind });
    }
    number_pairs(&mut out, &seen, own);
    Ok(out)
}

/// Which event counters are semaphores, where the kernel does not tell (before 6.5). The process stands still.
pub(super) fn ask_counters(pid: i32, fds: &mut [Fd]) -> Result<(), Error> {
    for fd in fds {
        let FdKind::Eventfd { count, semaphore } = &mut fd.kind else { continue };
        let info = files::read(&format!("/proc/{pid}/fdinfo/{}", fd.fd)).unwrap_or_default();
        if fdinfo(&String::from_utf8_lossy(&info), "eventfd-semaphore").is_none() {
            *semaphore = channel::takes_one(get_fd(pid, fd.fd)?.as_fd(), *count)?;
        }
    }
    Ok(())
}

pub(super) fn lost(what: &str) -> FdKind {
    FdKind::NotCarried { what: what.as_bytes().to_vec().into() }
}

fn kind(pid: i32, seen: &Seen, layout: &mut Layout, own: &Channels) -> FdKind {
    let link = String::from_utf8_lossy(&seen.link).into_owned();
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return anonymous(pid, seen, name);
    }
    if let Some(inode) = seen.inode(b"pipe").filter(|i| own.all.contains_key(&(false, *i)) && seen.fd > 2) {
        return pipe(pid, seen, inode).unwrap_or_else(|| lost("pipe"));
    }
    if let Some(inode) = seen.inode(b"socket").filter(|i| own.all.contains_key(&(true, *i)) && seen.fd > 2) {
        return socket(pid, seen, inode).unwrap_or_else(|| lost("socket"));
    }
    if let Some(name) = contents::name(&seen.link).filter(|_| seen.fd > 2) {
        return contents::descriptor(pid, seen, name, layout, own);
    }
    let Ok(meta) = fs::metadata(format!("/proc/{pid}/fd/{}", seen.fd)) else { return lost(&link) };
    let kind = meta.file_type();
    if link.ends_with(" (deleted)") {
        return lost(&format!("deleted file {}", link.trim_end_matches(" (deleted)")));
    }
    if kind.is_file() && seen.link.first() == Some(&b'/') {
        if fdinfo(&seen.info, "lock").is_some() {
            return lost(&format!("locked file {link}"));
        }
        if link.starts_with("/proc/") || link.starts_with("/sys/") {
            return lost(&link);
        }
        if let Some(shared) = own.positions.iter().find(|p| p.is(seen)).and_then(Position::shared) {
            return lost(&shared);
        }
        let offset = fdinfo(&seen.info, "pos").and_then(|p| p.parse().ok()).unwrap_or(0);
        return match file_ref(pid, &seen.link, meta.ino()) {
            Some(file) => FdKind::Regular { file: layout.file(&file), offset },
            None => lost(&format!("file {link}, which is not at its path any more")),
        };
    }
    let path = || seen.link.clone().into();
    if kind.is_dir() {
        return FdKind::Directory { path: path() };
    }
    if kind.is_char_device() {
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        return match (major, minor) {
            (1, 3 | 5 | 7 | 8 | 9) => FdKind::Device { path: path() },
            (4 | 5 | 136..=143, _) => FdKind::Terminal { path: path() },
            _ => lost(&format!("device {link}")),
        };
    }
    lost(link.split(':').next().unwrap_or("unknown"))
}

fn anonymous(pid: i32, seen: &Seen, name: &str) -> FdKind {
    let text = &seen.info;
    match name {
        "[eventfd]" => {
            let count = fdinfo(text, "eventfd-count").and_then(|c| u64::from_str_radix(c, 16).ok()).unwrap_or(0);
            FdKind::Eventfd { count, semaphore: fdinfo(text, "eventfd-semaphore") == Some("1") }
        }
        "[timerfd]" => {
            let number = |key| fdinfo(text, key).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
            let (interval_ns, mut left_ns) = (timer_ns(text, "it_interval"), timer_ns(text, "it_value"));
            let mut ticks = number("ticks");
            if left_ns == 0 && interval_ns > 0 && ticks > 0 {
                // It has gone off, and goes on when it is read.
                (left_ns, ticks) = (1, ticks - 1);
            }
            FdKind::Timerfd { clock: number("clockid") as i32, interval_ns, left_ns, ticks }
        }
        "[signalfd]" => {
            let mask = fdinfo(text, "sigmask").and_then(|m| u64::from_str_radix(m, 16).ok()).unwrap_or(0);
            FdKind::Signalfd { mask }
        }
        "[eventpoll]" => {
            let watches = watched(text);
            // Where the number leads elsewhere by now the watch cannot be made again.
            match watches.iter().find(|w| !channel::watches(pid, seen.fd, w[0] as i32, w[0] as i32)) {
                None => FdKind::Epoll { watches },
                Some(gone) => lost(&format!("eventpoll, which watches what was descriptor {}", gone[0])),
            }
        }
        _ => lost(name.trim_matches(['[', ']'])),
    }
}

/// An end of a pipe that is the process's own.
fn pipe(pid: i32, seen: &Seen, inode: u32) -> Option<FdKind> {
    let flags = seen.flags() as i32;
    let writes = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => false,
        libc::O_WRONLY => true,
        _ => return None,
    };
    // Packets would become one.
    if flags & libc::O_DIRECT != 0 {
        return None;
    }
    let end = get_fd(pid, seen.fd).ok()?;
    let size = pipe_size(end.as_fd()).ok()?;
    let data = if writes { Vec::new() } else { peek_pipe(end.as_fd(), size).ok()? };
    (data.len() <= MOST_WAITING).then(|| FdKind::Pipe { pair: inode, writes, size, data: data.into() })
}

/// One of a pair of sockets that are the process's own.
fn socket(pid: i32, seen: &Seen, inode: u32) -> Option<FdKind> {
    let end = get_fd(pid, seen.fd).ok()?;
    let kind = channel::option(end.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)?;
    let data = peek_stream(end.as_fd()).ok()??;
    // Where one packet ends and the next begins is not seen.
    let carried = data.is_empty() || (kind == libc::SOCK_STREAM && data.len() <= MOST_WAITING);
    carried.then(|| FdKind::Socket { pair: inode, second: false, kind: kind as u32, data: data.into() })
}

/// Gives pairs their numbers; what is only one end, or one end twice, stays behind.
fn number_pairs(out: &mut [Fd], seen: &[Seen], own: &Channels) {
    let mut ends: Vec<(u32, bool, usize)> = Vec::new();
    for (at, fd) in out.iter().enumerate() {
        match &fd.kind {
            FdKind::Pipe { pair, writes, .. } => ends.push((*pair, *writes, at)),
            FdKind::Socket { pair, .. } => {
                let peer = own.all.get(&(true, *pair)).copied().unwrap_or(*pair);
                ends.push((peer.min(*pair), *pair > peer, at));
            }
            _ => {}
        }
    }
    ends.sort_unstable();
    let mut next = 0;
    for group in ends.chunk_by(|a, b| a.0 == b.0) {
        let whole = matches!(group, [(_, false, _), (_, true, _)]);
        for (_, is_second, at) in group {
            match &mut out[*at].kind {
                FdKind::Pipe { pair, .. } if whole => *pair = next,
                FdKind::Socket { pair, second, .. } if whole => (*pair, *second) = (next, *is_second),
                kind => {
                    let link = seen.get(*at).map(|s| s.link.as_slice()).unwrap_or_default();
                    *kind = lost(String::from_utf8_lossy(link).split(':').next().unwrap_or("pipe"));
                }
            }
        }
        next += u32::from(whole);
    }
}
