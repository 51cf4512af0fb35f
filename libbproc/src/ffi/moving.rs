//! The caller goes on on a node, or a child of its own does.
//!
//! The agent stops the process from outside while it waits for the answer, and builds it anew at the target with a
//! socket on the same number, in which the good answer lies: so the call returns there as it would have here.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use bproc_proto::client::{self as wire, Move, Request, r#move, request};
use bproc_sys::seqpacket::Conn;
use bproc_sys::signal::AllBlocked;
use libc::c_int;
use prost::Message;

use super::abi::Io;
use super::io::Setup;
use super::map::Real;
use super::nodes::{self, Doors};
use super::pattern::{self, Made, Pattern};
use super::{Number, Result, alone, answer, export};
use crate::client::socket_path;
use crate::error::Error;
use crate::frame::{HEAD, PACKET_MAX, Packet};
use crate::reply::Where;
use crate::{Client, reply, spawn, sys};

/// Flags of the calls that have none: program and others travel as data.
pub(super) const FLAGS: c_int = 6;
const ALL_FLAGS: c_int = 7;

/// A request ready to go.
struct Going<'s> {
    /// The list of an `_io` call.
    setup: Option<&'s Setup>,
    fds: Vec<BorrowedFd<'s>>,
    packet: Packet,
    path: PathBuf,
    /// Where the connection is to be, here and there.
    place: RawFd,
    /// Keeps it, if it is no pattern's.
    _place: Option<OwnedFd>,
    buffer: Vec<u8>,
}

/// A place among others that come as the same process.
#[derive(Clone, Copy)]
struct Rank<'p> {
    pattern: &'p Pattern,
    number: usize,
}

impl<'s> Going<'s> {
    /// `program`: what it comes to execute there.
    fn new(
        node: Real,
        flags: c_int,
        setup: Option<&'s Setup>,
        rank: Option<Rank<'_>>,
        program: Option<wire::Program>,
    ) -> Result<Going<'s>> {
        if flags & !ALL_FLAGS != 0 {
            return Err(libc::EINVAL);
        }
        let own = match rank {
            Some(_) => None,
            None => Some(reserve(setup)?),
        };
        let place = rank.map(|rank| &rank.pattern.place).or(own.as_ref()).map_or(-1, AsRawFd::as_raw_fd);
        let tells = setup.is_some() || program.is_some();
        let cwd = std::env::current_dir().ok().filter(|_| tells);
        let body = Move {
            pid: 0,
            node: node.number(),
            flags: flags as u32,
            files: r#move::Files::StdioOnly.into(),
            socket: place,
            streams: setup.iter().flat_map(|s| s.streams()).map(|s| spawn::stream(&s)).collect(),
            listed: setup.is_some(),
            spread: rank.map_or(0, |rank| rank.pattern.number),
            rank: rank.map_or(0, |rank| rank.number as u32),
            program,
            cwd: cwd.map(|cwd| cwd.into_os_string().into_encoded_bytes()).unwrap_or_default(),
            umask: if tells { sys::umask() } else { None },
        };
        let request = Request { body: Some(request::Body::Move(body)) };
        let packet = Packet::new(&request.encode_to_vec()).map_err(|e| e.errno())?;
        let fds = setup.map(Setup::forwarded).unwrap_or_default();
        Ok(Going { setup, fds, packet, path: socket_path(), place, _place: own, buffer: vec![0; PACKET_MAX] })
    }

    /// Goes. The caller has blocked all signals: an interrupted wait could not be told from an answer.
    fn go(&mut self) -> std::result::Result<Where, Number> {
        if let Some(setup) = self.setup {
            setup.connect()?;
        }
        let conn = connect(&self.path, self.place)?;
        self.packet.send(&conn, &self.fds).map_err(|_| libc::EPROTO)?;
        let got = conn.recv(&mut self.buffer).map_err(|e| e.raw_os_error().unwrap_or(libc::EPROTO))?;
        let reply = self.buffer.get(HEAD..got.len).filter(|_| !got.truncated).ok_or(libc::EPROTO)?;
        reply::parse_moved(reply).map(|(place, _)| place)
    }
}

/// A pipe of the library's own, which is not to be taken for a standard stream that is closed.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let made = std::io::pipe().and_then(|(hear, tell)| Ok((sys::raised(hear.into())?, sys::raised(tell.into())?)));
    made.map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))
}

pub(super) fn reserve(setup: Option<&Setup>) -> Result<OwnedFd> {
    sys::reserve(setup.map_or(0, Setup::highest)).map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))
}

/// Connects, on the number of `place`.
fn connect(path: &Path, place: RawFd) -> std::result::Result<ManuallyDrop<Conn>, Number> {
    let conn = Conn::connect(path).map_err(|e| Error::unreachable_number(&e))?;
    sys::replace(&conn, place).map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))?;
    drop(conn);
    Ok(sys::conn_at(place))
}

pub(super) fn go_to(node: Real, flags: c_int, setup: Option<Setup>) -> Result<()> {
    go_for(node, flags, setup, None)
}

/// As [`go_to`], for a program: not if that could not be executed there.
pub(super) fn go_for(node: Real, flags: c_int, setup: Option<Setup>, program: Option<wire::Program>) -> Result<()> {
    let node = Doors::look(setup.as_ref())?.check(node)?;
    let mut going = Going::new(node, flags, setup.as_ref(), None, program)?;
    let blocked = AllBlocked::new();
    let place = going.go();
    drop(going);
    drop(blocked);
    place.map(|place| leave(setup, place))
}

/// What a list holds open is not there where the process has come to: its numbers are others' now.
fn leave(setup: Option<Setup>, place: Where) {
    if place == Where::There {
        std::mem::forget(setup);
    }
}

/// What a child that failed tells its parent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Failed {
    rank: c_int,
    number: c_int,
}

/// What a fork returns.
pub(super) enum Side {
    /// In the child of this number, which heard that here.
    Child(usize, Where),
    Parent,
}

/// A child for each node. `pids` gets a pid or a negative number for each.
pub(super) fn fork(nodes: &[c_int], pids: &mut [c_int], flags: c_int, setup: Option<&Setup>) -> Result<Side> {
    let (here, doors) = (nodes::whoami()?, Doors::look(setup)?);
    let target = |node: &c_int| nodes::target(*node).and_then(|node| doors.check(node));
    let targets: Vec<Result<Real>> = nodes.iter().map(target).collect();
    // Before the pipe, whose end nobody else may hold.
    let pattern = match pattern::make(here, &targets, flags, setup) {
        None => None,
        Some(Made::Rank(rank)) => return Ok(Side::Child(rank, Where::There)),
        Some(Made::Pattern(pattern)) => Some(pattern),
    };
    let (hear, tell) = pipe()?;
    for (number, (target, pid)) in targets.into_iter().zip(pids.iter_mut()).enumerate() {
        // Who comes to the master comes by himself.
        let rank = pattern.as_ref().filter(|_| target != Ok(Real::MASTER)).map(|pattern| Rank { pattern, number });
        let mut going = match target {
            // It stays.
            Ok(node) if node == here => {
                match fork_here(setup) {
                    Ok((0, place)) => {
                        if place == Where::There {
                            std::mem::forget((hear, tell, pattern));
                        } else if let Some(pattern) = pattern {
                            pattern.leave();
                        }
                        return Ok(Side::Child(number, place));
                    }
                    Ok((child, _)) => *pid = child,
                    Err(number) => *pid = -number,
                }
                continue;
            }
            target => match target.and_then(|node| Going::new(node, flags, setup, rank, None)) {
                Ok(going) => going,
                Err(number) => {
                    *pid = -number;
                    continue;
                }
            },
        };
        let blocked = AllBlocked::new();
        match sys::fork_without_signal() {
            Ok(0) => {
                let failed = |error| sys::tell_and_exit(&tell, &Failed { rank: number as c_int, number: error });
                match going.go() {
                    Ok(Where::There) => {}
                    // It was asked to go elsewhere: the parent has gone there meanwhile, as it seems.
                    Ok(Where::Here) => failed(libc::EAGAIN),
                    Err(error) => failed(error),
                }
                // These were left behind.
                std::mem::forget((hear, tell, pattern));
                drop((going, blocked));
                return Ok(Side::Child(number, Where::There));
            }
            Ok(child) => *pid = child,
            Err(error) => *pid = -error.raw_os_error().unwrap_or(libc::EAGAIN),
        }
        drop(blocked);
    }
    drop(tell);
    // The pipe ends when every child has told its failure or is elsewhere.
    while let Some(failed) = sys::hear::<Failed>(hear.as_raw_fd()) {
        let rank = usize::try_from(failed.rank).unwrap_or(usize::MAX);
        if let Some(pid) = pids.get_mut(rank).filter(|pid| **pid > 0) {
            sys::reap(*pid);
            *pid = -failed.number.max(1);
        }
    }
    drop(pattern);
    for pid in pids.iter_mut().filter(|pid| **pid > 0) {
        // Killed on the way: nobody would ever hear of it.
        if sys::reap_signalless(*pid) {
            *pid = -libc::EINTR;
        }
    }
    settle(pids);
    Ok(Side::Parent)
}

/// A child that stays where it is. The second: what holds it of a list is its own now, and not to be closed.
pub(super) fn fork_here(setup: Option<&Setup>) -> Result<(c_int, Where)> {
    let ready = setup.map(Setup::ready).transpose()?;
    let child = sys::fork().map_err(|e| e.raw_os_error().unwrap_or(libc::EAGAIN))?;
    match ready.filter(|_| child == 0) {
        Some(ready) => {
            ready.take();
            Ok((child, Where::There))
        }
        None => Ok((child, Where::Here)),
    }
}

/// Returns when the master knows where they are: its children are quicker than the news of them.
fn settle(pids: &[c_int]) {
    let mut client = Client::connect();
    for pid in pids.iter().filter(|pid| **pid > 0) {
        let asked = client.as_mut().map_err(|e| e.number).and_then(|c| c.settled(*pid).map_err(|e| e.number));
        if asked.is_err() {
            // Without an agent nobody knows, and nobody asks.
            return;
        }
    }
}

fn rfork(node: c_int, flags: c_int, setup: Option<Setup>) -> Result<c_int> {
    let mut pids = [0];
    match fork(&[node], &mut pids, flags, setup.as_ref())? {
        Side::Child(_, place) => {
            leave(setup, place);
            Ok(0)
        }
        Side::Parent if pids[0] < 0 => Err(-pids[0]),
        Side::Parent => Ok(pids[0]),
    }
}

/// # Safety
/// `nodes` and `pids` have `n` numbers.
unsafe fn vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int, flags: c_int, setup: Option<Setup>) -> Result<c_int> {
    let len = usize::try_from(n).map_err(|_| libc::EINVAL)?;
    if len == 0 {
        return Ok(0);
    }
    if nodes.is_null() || pids.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the caller gives `n` numbers in both. They may be one array: so a copy.
    let nodes = unsafe { std::slice::from_raw_parts(nodes, len) }.to_vec();
    // SAFETY: as above.
    let pids = unsafe { std::slice::from_raw_parts_mut(pids, len) };
    match fork(&nodes, pids, flags, setup.as_ref()) {
        Ok(Side::Child(rank, place)) => {
            leave(setup, place);
            Ok(rank as c_int)
        }
        Ok(Side::Parent) => Ok(n),
        // All have failed, each for this reason.
        Err(number) => {
            pids.fill(-number);
            Ok(n)
        }
    }
}

/// # Safety
/// As [`Setup::listed`].
unsafe fn list(io: *const Io, iolen: c_int) -> Result<Option<Setup>> {
    // SAFETY: as the caller promises.
    unsafe { Setup::listed(io, iolen) }.map(Some)
}

unsafe extern "C" fn bproc_move(node: c_int) -> c_int {
    alone(|| go_to(nodes::target(node)?, FLAGS, None))
}

unsafe extern "C" fn _bproc_move(node: c_int, flags: c_int) -> c_int {
    alone(|| go_to(nodes::target(node)?, flags, None))
}

unsafe extern "C" fn bproc_move_io(node: c_int, io: *const Io, iolen: c_int) -> c_int {
    // SAFETY: as the caller promises.
    alone(|| unsafe { list(io, iolen) }.and_then(|setup| go_to(nodes::target(node)?, FLAGS, setup)))
}

unsafe extern "C" fn _bproc_move_io(node: c_int, io: *const Io, iolen: c_int, flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    alone(|| unsafe { list(io, iolen) }.and_then(|setup| go_to(nodes::target(node)?, flags, setup)))
}

unsafe extern "C" fn bproc_rfork(node: c_int) -> c_int {
    answer(|| rfork(node, FLAGS, None))
}

unsafe extern "C" fn _bproc_rfork(node: c_int, flags: c_int) -> c_int {
    answer(|| rfork(node, flags, None))
}

unsafe extern "C" fn bproc_rfork_io(node: c_int, io: *const Io, iolen: c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { list(io, iolen) }.and_then(|setup| rfork(node, FLAGS, setup)))
}

unsafe extern "C" fn _bproc_rfork_io(node: c_int, io: *const Io, iolen: c_int, flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { list(io, iolen) }.and_then(|setup| rfork(node, flags, setup)))
}

unsafe extern "C" fn bproc_vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { vrfork(n, nodes, pids, FLAGS, None) })
}

unsafe extern "C" fn _bproc_vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { vrfork(n, nodes, pids, flags, None) })
}

unsafe extern "C" fn bproc_vrfork_io(
    n: c_int,
    nodes: *const c_int,
    pids: *mut c_int,
    io: *const Io,
    iolen: c_int,
) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { list(io, iolen) }.and_then(|setup| unsafe { vrfork(n, nodes, pids, FLAGS, setup) }))
}

unsafe extern "C" fn _bproc_vrfork_io(
    n: c_int,
    nodes: *const c_int,
    pids: *mut c_int,
    io: *const Io,
    iolen: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { list(io, iolen) }.and_then(|setup| unsafe { vrfork(n, nodes, pids, flags, setup) }))
}

export!(
    bproc_move,
    _bproc_move,
    bproc_move_io,
    _bproc_move_io,
    bproc_rfork,
    _bproc_rfork,
    bproc_rfork_io,
    _bproc_rfork_io,
    bproc_vrfork,
    _bproc_vrfork,
    bproc_vrfork_io,
    _bproc_vrfork_io,
);
