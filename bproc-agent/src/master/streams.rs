//! The standard streams of processes that move: from the master's own descriptors, from a list, or from node to node.

use super::Fact;
use super::clients::Desk;
use super::moving::failure;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::moving::MoveId;
use bproc_core::master::{Action, Refusal};
use bproc_proto::client as wire;
use bproc_proto::link;
use bproc_proto::stream::Kind;
use bproc_proto::{Failure, SpawnSpec, Stream};
use bproc_stdio::Taken;
use bproc_stdio::wire::Token;
use bproc_sys::files::same_open_file;
use bproc_sys::pidfd::PidFd;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Streams of a process for its new place.
#[derive(Debug, Default)]
pub struct Streams {
    /// For a node: as a spawn has them, and their name.
    pub streams: Vec<Stream>,
    /// The name.
    pub token: Vec<u8>,
    /// By which the node is to say that all that it wrote there is under way. Empty: it waits until it is out.
    pub successor: Vec<u8>,
    /// For the master: the descriptors themselves.
    pub fds: Vec<(i32, OwnedFd)>,
    /// Inode numbers of pipes among them that lead back to a node.
    pub leading: Vec<u64>,
    /// What 0 to 2 of the process lead to, for one of the master's own.
    pub stdio: Vec<Vec<u8>>,
}

/// Pipes by which processes that have come home write to nodes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct HomePipes(Arc<Mutex<HashMap<Pid, Vec<u64>>>>);

impl HomePipes {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, Vec<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process has come with these ([`Streams::leading`]).
    pub fn came(&self, pid: Pid, pipes: Vec<u64>) {
        if !pipes.is_empty() {
            self.lock().insert(pid, pipes);
        }
    }

    /// Those that one has.
    pub fn of(&self, pid: Pid) -> Vec<u64> {
        self.lock().get(&pid).cloned().unwrap_or_default()
    }

    /// One has left, or ended.
    pub fn went(&self, pid: Pid) {
        self.lock().remove(&pid);
    }
}

/// The standard streams of a process of the master's own, handed to the stdio service for its node. What is no more
/// than /dev/null here is so there; outputs to the same open file are one stream.
pub async fn own_streams(pid: Pid, cooperative: bool, desk: &Desk) -> Result<Streams, Failure> {
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pid} cannot be read: {e}"));
    let pidfd = PidFd::open(pid).map_err(unreadable)?;
    let mut all = Streams::default();
    let mut ends: Vec<(i32, OwnedFd)> = Vec::new();
    for number in 0..3 {
        let Ok(end) = pidfd.get_fd(number) else {
            all.stdio.push(Vec::new());
            continue;
        };
        all.stdio.push(link_of(&end));
        let input = number == 0;
        let mut stream = Stream { fd: number, input, ..Stream::default() };
        if (input && cooperative) || is_null(&end) {
            stream.set_kind(Kind::Null);
        } else if let Some((like, _)) = ends.iter().find(|(n, other)| *n > 0 && same_open_file(other, &end)) {
            stream = same(number, *like);
        } else {
            stream.set_kind(Kind::Forward);
            ends.push((number, end));
        }
        all.streams.push(stream);
    }
    if !ends.is_empty() {
        let broken = |e: String| failure(libc::EIO, format!("the stdio service of the master: {e}"));
        let token = Token::random().map_err(|e| broken(e.to_string()))?;
        let forwarded: Vec<(i32, bool)> = forwarded(&all.streams);
        let ends = ends.into_iter().map(|(_, end)| end).collect();
        let expected = desk.iod.expect_held(token.as_bytes(), &forwarded, ends, pid).await;
        expected.map_err(|e| broken(format!("{e:#}")))?;
        all.token = token.as_bytes().to_vec();
    }
    Ok(all)
}

/// The descriptors that a process asked to have where it goes.
pub async fn listed_streams(
    pid: Pid,
    request: &wire::Move,
    (fds, back): (&[OwnedFd], &[u8]),
    spec: &SpawnSpec,
    desk: &Desk,
) -> Result<Streams, Failure> {
    let broken = |e: String| failure(libc::EIO, format!("the stdio service of the master: {e}"));
    let mut numbers = BTreeSet::new();
    let odd = |s: &Stream| s.fd < 0 || s.fd == request.socket || s.kind() == Kind::Same;
    if request.streams.iter().any(|s| odd(s) || !numbers.insert(s.fd)) {
        return Err(failure(libc::EINVAL, "a list of descriptors that makes no sense"));
    }
    let wanted = forwarded(&request.streams);
    let mut all = Streams { streams: request.streams.clone(), ..Streams::default() };
    let home = request.node < 0;
    let copies = if !back.is_empty() {
        let from: Vec<_> = wanted.iter().map(|(fd, input)| (back.to_vec(), *fd, *input)).collect();
        let handed = hand_on(&desk.iod, &from, wanted.iter().map(|(fd, _)| *fd).collect(), back, home).await?;
        all.token = handed.token;
        all.leading = handed.taken.leading;
        handed.taken.fds
    } else {
        if wanted.len() != fds.len() {
            let text = format!("{} streams to forward, but {} descriptors came", wanted.len(), fds.len());
            return Err(failure(libc::EINVAL, text));
        }
        let copies: Result<Vec<OwnedFd>, _> = fds.iter().map(OwnedFd::try_clone).collect();
        let copies = copies.map_err(|e| failure(e.raw_os_error().unwrap_or(libc::EMFILE), e.to_string()))?;
        if home || copies.is_empty() {
            copies
        } else {
            let token = Token::random().map_err(|e| broken(e.to_string()))?;
            let expected = desk.iod.expect_held(token.as_bytes(), &wanted, copies, pid).await;
            expected.map_err(|e| broken(format!("{e:#}")))?;
            all.token = token.as_bytes().to_vec();
            Vec::new()
        }
    };
    if !home {
        return Ok(all);
    }
    let mut copies = copies.into_iter();
    for stream in &request.streams {
        let fd = match stream.kind() {
            Kind::Forward => copies.next(),
            Kind::Null => {
                let null = std::fs::File::options().read(true).write(true).open("/dev/null");
                Some(
                    null.map_err(|e| failure(e.raw_os_error().unwrap_or(libc::EIO), format!("/dev/null: {e}")))?.into(),
                )
            }
            Kind::File => Some(crate::stdio::open_file(stream, spec).await?),
            Kind::Closed | Kind::Same => None,
        };
        all.fds.extend(fd.map(|fd| (stream.fd, fd)));
    }
    Ok(all)
}

fn forwarded(streams: &[Stream]) -> Vec<(i32, bool)> {
    streams.iter().filter(|s| s.kind() == Kind::Forward).map(|s| (s.fd, s.input)).collect()
}

/// As descriptor `like`, which stands before it.
fn same(fd: i32, like: i32) -> Stream {
    let mut stream = Stream { fd, like, ..Stream::default() };
    stream.set_kind(Kind::Same);
    stream
}

/// The streams among what descriptors lead to, and the others, each with the first that leads to the same.
fn apart(told: Vec<link::ForwardedStream>) -> (Vec<link::ForwardedStream>, Vec<(i32, i32)>) {
    let (mut streams, mut others): (Vec<link::ForwardedStream>, _) = (Vec::new(), Vec::new());
    for one in told {
        match streams.iter().find(|s| (&s.token, s.stream, s.input) == (&one.token, one.stream, one.input)) {
            Some(first) => others.push((one.fd, first.fd)),
            None => streams.push(one),
        }
    }
    (streams, others)
}

fn is_null(fd: &OwnedFd) -> bool {
    link_of(fd) == b"/dev/null"
}

/// What a descriptor leads to, as /proc tells.
fn link_of(fd: &OwnedFd) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map(|l| l.into_os_string().into_encoded_bytes()).unwrap_or_default()
}

/// The streams of a process that leaves a node, as the stdio service hands them on to where it goes.
pub async fn carry_streams(
    iod: &crate::stdio::Iod,
    told: Vec<link::ForwardedStream>,
    home: bool,
    cooperative: bool,
) -> Result<Streams, Failure> {
    let mut all = Streams::default();
    let told: Vec<_> = told.into_iter().filter(|s| !(cooperative && s.input)).collect();
    if cooperative && home {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        all.fds.push((0, null.map_err(|e| failure(libc::EIO, format!("/dev/null: {e}")))?.into()));
    } else if cooperative {
        let mut null = Stream { input: true, ..Stream::default() };
        null.set_kind(Kind::Null);
        all.streams.push(null);
    }
    if told.is_empty() {
        return Ok(all);
    }
    let (told, others) = apart(told);
    let from: Vec<_> = told.iter().map(|s| (s.token.clone(), s.stream, s.input)).collect();
    let back = told.iter().find(|s| s.back).map_or(&[][..], |s| &s.token);
    let handed = hand_on(iod, &from, told.iter().map(|s| s.fd).collect(), back, home).await?;
    if home {
        let Taken { fds, waits, leading } = handed.taken;
        all.leading = leading;
        all.fds.extend(told.iter().map(|s| s.fd).zip(fds));
        for (number, like) in others {
            let first = all.fds.iter().find(|(n, _)| *n == like).map(|(_, fd)| fd.try_clone());
            let copy = first.transpose().map_err(|e| failure(libc::EMFILE, format!("a copy of a descriptor: {e}")))?;
            all.fds.extend(copy.map(|copy| (number, copy)));
        }
        if waits {
            all.successor = handed.token;
        }
        return Ok(all);
    }
    all.token.clone_from(&handed.token);
    all.successor = handed.token;
    all.streams.extend(told.iter().map(|s| Stream { fd: s.fd, input: s.input, ..Stream::default() }));
    all.streams.extend(others.into_iter().map(|(fd, like)| same(fd, like)));
    Ok(all)
}

/// Streams of a process that goes elsewhere.
struct HandedOn {
    /// Their name there.
    token: Vec<u8>,
    /// At home, what they lead to. Some may wait for that name.
    taken: Taken,
}

/// Hands these streams (name, number, whether they are read) on, with these numbers where they go. Those of the name `back`
/// lead to what the process has on the node that it leaves.
async fn hand_on(
    iod: &crate::stdio::Iod,
    from: &[(Vec<u8>, i32, bool)],
    numbers: Vec<i32>,
    back: &[u8],
    home: bool,
) -> Result<HandedOn, Failure> {
    let broken = |e: String| failure(libc::EIO, format!("the stdio service of the master: {e}"));
    let token = Token::random().map_err(|e| broken(e.to_string()))?;
    let leading: Vec<_> =
        from.iter().filter(|(name, ..)| name == back).map(|(_, number, input)| (*number, *input)).collect();
    if !leading.is_empty() {
        iod.back(back, &leading).await.map_err(|e| broken(format!("{e:#}")))?;
    }
    let handed = match home {
        true => iod.take(from, token.as_bytes()).await,
        false => iod.share(from, token.as_bytes(), numbers).await.map(|()| Taken::default()),
    };
    if handed.is_err() && !leading.is_empty() {
        iod.forget(back).await;
    }
    let taken = handed.map_err(|e| broken(format!("{e:#}")))?;
    Ok(HandedOn { token: token.as_bytes().to_vec(), taken })
}

impl super::Actor {
    /// The streams of a process that leaves a node, for where it goes.
    pub(super) fn prepare_streams(
        &mut self,
        pid: Pid,
        id: MoveId,
        told: Vec<link::ForwardedStream>,
        out: &mut Vec<Action>,
    ) {
        let Some(going) = self.moving.get(&pid) else { return };
        if going.request.listed {
            // It has told them itself.
            return self.core.surveyed(pid, id, Ok(()), out);
        }
        let (facts, iod, home) = (self.facts.clone(), self.iod.clone(), going.to.is_none());
        let cooperative = going.request.socket != 0;
        tokio::spawn(async move {
            let result = carry_streams(&iod, told, home, cooperative).await;
            facts.send(Fact::Prepared(pid, id, result)).await.ok();
        });
    }

    pub(super) fn prepared(&mut self, pid: Pid, id: MoveId, result: Result<Streams, Failure>, out: &mut Vec<Action>) {
        let result = match (result, self.moving.get_mut(&pid)) {
            (Ok(streams), Some(going)) => {
                (going.spec.streams, going.spec.stdio_token) = (streams.streams, streams.token);
                going.successor = streams.successor;
                going.fds = streams.fds;
                if going.to.is_none() {
                    // Before it runs: it may end at once.
                    self.pipes.came(pid, streams.leading);
                }
                Ok(())
            }
            (Err(f), _) => Err(Refusal::Failed(NodeId::MASTER, f.number, f.message)),
            (Ok(_), None) => return,
        };
        self.core.surveyed(pid, id, result, out);
    }

    /// The streams that were prepared for a process are its own from now on, or nobody's.
    pub(super) fn settle_streams(&self, token: Vec<u8>, well: bool) {
        let iod = self.iod.clone();
        if token.is_empty() {
            return;
        }
        tokio::spawn(async move {
            match well {
                true => iod.open(Some(&token)).await,
                false => drop(iod.forget(&token).await),
            }
        });
    }
}
