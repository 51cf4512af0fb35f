//! The caller goes on on a node, or a child of its own does.
//!
//! The agent stops the process from outside while it waits for the answer, and builds it anew at the target with a
//! socket on the same number, in which the good answer lies: so the call returns there as it would have here. Between
//! the question and the answer nothing takes memory, for a child that was cloned must not.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use bproc_proto::client::{Move, Request, r#move, request};
use bproc_sys::seqpacket::Conn;
use bproc_sys::signal::AllBlocked;
use libc::c_int;
use prost::Message;

use super::abi::Io;
use super::io::Setup;
use super::{Number, Result, answer, done, export, nodes};
use crate::client::socket_path;
use crate::error::Error;
use crate::frame::{HEAD, PACKET_MAX, Packet};
use crate::{reply, sys};

/// Flags of the calls that have none: program and others travel as data.
const FLAGS: c_int = 6;
const ALL_FLAGS: c_int = 7;

/// A request ready to go.
struct Going {
    packet: Packet,
    path: PathBuf,
    /// Where the connection is to be, here and there.
    place: OwnedFd,
    buffer: Vec<u8>,
}

impl Going {
    fn new(node: c_int, flags: c_int) -> Result<Going> {
        if flags & !ALL_FLAGS != 0 {
            return Err(libc::EINVAL);
        }
        let node = nodes::target(node)?;
        let place = sys::reserve().map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))?;
        let body = Move {
            pid: 0,
            node,
            flags: flags as u32,
            files: r#move::Files::StdioOnly.into(),
            socket: place.as_raw_fd(),
            ..Move::default()
        };
        let request = Request { body: Some(request::Body::Move(body)) };
        let packet = Packet::new(&request.encode_to_vec()).map_err(|e| e.errno())?;
        Ok(Going { packet, path: socket_path(), place, buffer: vec![0; PACKET_MAX] })
    }

    /// Goes. Takes no memory. The caller has blocked all signals: an interrupted wait could not be told from an answer.
    fn go(&mut self) -> std::result::Result<(), Number> {
        let conn = connect(&self.path, &self.place)?;
        self.packet.send(&conn, &[]).map_err(|_| libc::EPROTO)?;
        let got = conn.recv(&mut self.buffer).map_err(|e| e.raw_os_error().unwrap_or(libc::EPROTO))?;
        let reply = self.buffer.get(HEAD..got.len).filter(|_| !got.truncated).ok_or(libc::EPROTO)?;
        reply::parse_moved(reply)
    }
}

/// Connects, on the number of `place`.
fn connect(path: &Path, place: &OwnedFd) -> std::result::Result<ManuallyDrop<Conn>, Number> {
    let conn = Conn::connect(path).map_err(|e| Error::unreachable_number(&e))?;
    sys::replace(&conn, place).map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))?;
    drop(conn);
    Ok(sys::conn_at(place))
}

fn go(node: c_int, flags: c_int) -> Result<()> {
    let mut going = Going::new(node, flags)?;
    let blocked = AllBlocked::new();
    let result = going.go();
    drop(blocked);
    result
}

/// Lists of descriptors are not carried by moves of running processes.
fn unlisted(setup: Result<Setup>) -> Result<()> {
    setup.and(Err(libc::ENOSYS))
}

/// What a child that failed tells its parent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Failed {
    rank: c_int,
    number: c_int,
}

/// What a fork returns.
enum Side {
    /// In the child of this number.
    Child(usize),
    Parent,
}

/// A child for each node. `pids` gets a pid or a negative number for each.
fn fork(nodes: &[c_int], pids: &mut [c_int], flags: c_int) -> Result<Side> {
    let (hear, tell) = std::io::pipe().map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))?;
    let (hear, tell) = (OwnedFd::from(hear), OwnedFd::from(tell));
    for (rank, (node, pid)) in nodes.iter().zip(pids.iter_mut()).enumerate() {
        let mut going = match Going::new(*node, flags) {
            Ok(going) => going,
            Err(number) => {
                *pid = -number;
                continue;
            }
        };
        let blocked = AllBlocked::new();
        match sys::fork_without_signal() {
            Ok(0) => {
                if let Err(number) = going.go() {
                    sys::tell_and_exit(&tell, &Failed { rank: rank as c_int, number });
                }
                // These were left behind.
                std::mem::forget((hear, tell));
                drop(blocked);
                return Ok(Side::Child(rank));
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
    for pid in pids.iter_mut().filter(|pid| **pid > 0) {
        // Killed on the way: nobody would ever hear of it.
        if sys::reap_if_signalless(*pid) {
            *pid = -libc::EINTR;
        }
    }
    Ok(Side::Parent)
}

fn rfork(node: c_int, flags: c_int) -> Result<c_int> {
    let mut pids = [0];
    match fork(&[node], &mut pids, flags)? {
        Side::Child(_) => Ok(0),
        Side::Parent if pids[0] < 0 => Err(-pids[0]),
        Side::Parent => Ok(pids[0]),
    }
}

/// # Safety
/// `nodes` and `pids` have `n` numbers.
unsafe fn vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int, flags: c_int) -> Result<c_int> {
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
    match fork(&nodes, pids, flags)? {
        Side::Child(rank) => Ok(rank as c_int),
        Side::Parent => Ok(n),
    }
}

unsafe extern "C" fn bproc_move(node: c_int) -> c_int {
    done(go(node, FLAGS))
}

unsafe extern "C" fn _bproc_move(node: c_int, flags: c_int) -> c_int {
    done(go(node, flags))
}

unsafe extern "C" fn bproc_move_io(_node: c_int, io: *const Io, iolen: c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
}

unsafe extern "C" fn _bproc_move_io(_node: c_int, io: *const Io, iolen: c_int, _flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
}

unsafe extern "C" fn bproc_rfork(node: c_int) -> c_int {
    answer(rfork(node, FLAGS))
}

unsafe extern "C" fn _bproc_rfork(node: c_int, flags: c_int) -> c_int {
    answer(rfork(node, flags))
}

unsafe extern "C" fn bproc_rfork_io(_node: c_int, io: *const Io, iolen: c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
}

unsafe extern "C" fn _bproc_rfork_io(_node: c_int, io: *const Io, iolen: c_int, _flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
}

unsafe extern "C" fn bproc_vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(unsafe { vrfork(n, nodes, pids, FLAGS) })
}

unsafe extern "C" fn _bproc_vrfork(n: c_int, nodes: *const c_int, pids: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    answer(unsafe { vrfork(n, nodes, pids, flags) })
}

unsafe extern "C" fn bproc_vrfork_io(
    _n: c_int,
    _nodes: *const c_int,
    _pids: *mut c_int,
    io: *const Io,
    iolen: c_int,
) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
}

unsafe extern "C" fn _bproc_vrfork_io(
    _n: c_int,
    _nodes: *const c_int,
    _pids: *mut c_int,
    io: *const Io,
    iolen: c_int,
    _flags: c_int,
) -> c_int {
    // SAFETY: as the caller promises.
    done(unlisted(unsafe { Setup::listed(io, iolen) }))
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
