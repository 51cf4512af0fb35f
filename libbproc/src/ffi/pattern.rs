//! A child that many others come as: its image goes from node to node, and each finds its rank in the answer.
//!
//! The pattern waits for the answer as a child that is sent away by itself does, but asks nobody: the agent holds it there.
//! Where it comes to run it goes on as one of the others, with that one's pid. Here it never does, and ends.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};

use bproc_sys::seqpacket::Conn;
use bproc_sys::signal::AllBlocked;
use libc::c_int;

use super::io::Setup;
use super::map::Real;
use super::{Result, moving};
use crate::frame::{HEAD, PACKET_MAX};
use crate::reply::Where;
use crate::{Client, reply, sys};

/// Fewer have nobody to give to.
const FEWEST: usize = 3;
/// A process with less memory of its own is there sooner by itself (docs/performance.md).
const SMALLEST: u64 = 1 << 20;

/// A child that is held still.
pub(super) struct Pattern {
    /// Its name at the agent.
    pub(super) number: u64,
    /// Where all of them find their answer.
    pub(super) place: OwnedFd,
    pid: c_int,
    /// While this is open it does not end by itself.
    ours: Conn,
    client: Client,
}

/// What comes of it.
pub(super) enum Made {
    /// Here.
    Pattern(Pattern),
    /// There, as number.
    Rank(usize),
}

/// Makes one, if it is worth it; if it fails, each tries by itself, and tells why.
pub(super) fn make(here: Real, targets: &[Result<Real>], flags: c_int, setup: Option<&Setup>) -> Option<Made> {
    let away = targets.iter().filter(|target| target.is_ok_and(|node| node != here && node != Real::MASTER)).count();
    if away < FEWEST || sys::own_memory() < SMALLEST {
        return None;
    }
    let mut client = Client::connect().ok()?;
    let place = moving::reserve(setup).ok()?;
    let (ours, theirs) = Conn::pair().ok()?;
    sys::replace(&theirs, place.as_raw_fd()).ok()?;
    drop(theirs);
    let ours = Conn::from(sys::raised(ours.into()).ok()?);
    let mut buffer = vec![0; PACKET_MAX];
    let blocked = AllBlocked::new();
    let pid = match sys::fork_without_signal() {
        Ok(0) => {
            // Numbers of here mean nothing there: after the word nothing but the place is touched.
            sys::close(ours.as_raw_fd());
            std::mem::forget((ours, client));
            let conn = sys::conn_at(place.as_raw_fd());
            let rank = conn.send(b"!", &[]).ok().and_then(|()| rank(&conn, &mut buffer));
            let Some(rank) = rank else { sys::exit_with(1) };
            drop((buffer, place, blocked));
            return Some(Made::Rank(rank));
        }
        pid => pid.ok()?,
    };
    drop(blocked);
    // It waits, or is about to.
    let waits = ours.recv(&mut buffer).is_ok_and(|got| got.len > 0);
    let number = if waits { client.hold(pid, away as u32, flags as u32).ok() } else { None };
    match number {
        Some(number) => Some(Made::Pattern(Pattern { number, place, pid, ours, client })),
        None => {
            sys::end(pid);
            None
        }
    }
}

/// Waits for the answer, and returns where it comes.
fn rank(conn: &Conn, buffer: &mut [u8]) -> Option<usize> {
    let got = conn.recv(buffer).ok()?;
    let reply = buffer.get(HEAD..got.len).filter(|_| !got.truncated)?;
    match reply::parse_moved(reply) {
        Ok((Where::There, rank)) => Some(rank),
        _ => None,
    }
}

impl Pattern {
    /// In a child that stays: it is the parent's.
    pub(super) fn leave(self) {
        let mut left = ManuallyDrop::new(self);
        // SAFETY: each once, and nobody uses them any more.
        unsafe {
            std::ptr::drop_in_place(&raw mut left.place);
            std::ptr::drop_in_place(&raw mut left.ours);
            std::ptr::drop_in_place(&raw mut left.client);
        }
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // An agent that is gone holds nobody.
        let _ = self.client.release(self.number);
        sys::end(self.pid);
    }
}
