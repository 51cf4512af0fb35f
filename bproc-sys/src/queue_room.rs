//! Room in a queue of signals that is full, for a moment: who sent them has been told that they are queued.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bproc_common::id::Pid;

use crate::process::{Limit, Process, limit_of};
use crate::signal::SigInfo;

const SIGPENDING: u32 = libc::RLIMIT_SIGPENDING;
/// Signals that a user may have queued beyond the limit of their receiver: kernel memory, some 100 bytes each.
const BEYOND: u64 = 1 << 16;
/// Signals that others may queue before this one's turn.
const SPARE: u64 = 64;

/// A higher limit of queued signals of a process, until this is dropped.
#[derive(Debug)]
pub struct QueueRoom {
    process: Pid,
    was: Limit,
    made: Limit,
}

impl QueueRoom {
    /// `None` where there is room, or none can be made.
    fn make(pid: Pid, under_way: u64) -> Option<QueueRoom> {
        let process = Process::open(pid).ok()?;
        let (queued, most) = process.status().ok()?.queued;
        if queued.saturating_add(under_way + SPARE) < most || queued > most.saturating_add(BEYOND) {
            return None;
        }
        let was = limit_of(pid, SIGPENDING, None).ok()?;
        let soft = queued + under_way + SPARE + BEYOND;
        // Without CAP_SYS_RESOURCE, which a machine may withhold from root, up to the hard one.
        let limits = [Limit { soft, hard: soft.max(was.hard) }, Limit { soft: soft.min(was.hard), hard: was.hard }];
        // What was told by number was the same process's.
        let there = process.is_there();
        let made = limits.into_iter().find(|made| there && limit_of(pid, SIGPENDING, Some(*made)).is_ok())?;
        Some(QueueRoom { process: pid, was, made })
    }
}

impl Drop for QueueRoom {
    fn drop(&mut self) {
        // Unless it, or somebody else, has set another meanwhile, or it has ended.
        if limit_of(self.process, SIGPENDING, None).is_ok_and(|now| now == self.made) {
            let _ = limit_of(self.process, SIGPENDING, Some(self.was));
        }
    }
}

/// Those whose queues have more room at the moment.
#[derive(Debug, Default)]
pub struct QueueRooms(HashMap<Pid, Weak<QueueRoom>>);

impl QueueRooms {
    /// Room for one signal more, to be kept until that is sent; `None` where it needs none, and where there can be no more.
    /// `under_way`: signals that are to be sent before, to whomever.
    pub fn for_signal(&mut self, info: &SigInfo, receiver: Pid, under_way: usize) -> Option<Arc<QueueRoom>> {
        /// `SIGRTMIN` of the kernel. Of others one waits, whatever the limit is, and of these those by kill(2), too.
        const FIRST_QUEUED: i32 = 32;
        if info.signo() < FIRST_QUEUED || info.code() == libc::SI_USER {
            return None;
        }
        if let Some(room) = self.0.get(&receiver).and_then(Weak::upgrade) {
            return Some(room);
        }
        self.0.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(QueueRoom::make(receiver, under_way as u64)?);
        self.0.insert(receiver, Arc::downgrade(&room));
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::{kill, sigqueue};
    use std::process::Command;

    #[test]
    fn a_full_queue_takes_more_and_has_its_limit_again() {
        const SIGNAL: i32 = 40;
        let mut child =
            Command::new("prlimit").args(["--sigpending=3:100", "sleep", "100"]).spawn().expect("a process");
        let pid = Pid::new(child.id() as i32).expect("a pid");
        let process = Process::open(pid).expect("it is there");
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                std::thread::yield_now();
            }
        };
        until(&|| process.status().is_ok_and(|status| status.queued.1 == 3));
        let tried = (|| {
            kill(pid, libc::SIGSTOP)?;
            until(&|| process.stat().is_ok_and(|stat| stat.state == b'T'));
            while sigqueue(pid, SIGNAL, 0).is_ok() {}
            let mut rooms = QueueRooms::default();
            let mut room = || rooms.for_signal(&SigInfo::from_here(SIGNAL, 0), pid, 0);
            let (first, second) = (room(), room());
            drop(first);
            sigqueue(pid, SIGNAL, 0)?;
            drop(second);
            let refused = sigqueue(pid, SIGNAL, 0).err().map(|e| e.errno());
            let third = room();
            sigqueue(pid, SIGNAL, 0)?;
            drop(third);
            limit_of(pid, SIGPENDING, None).map(|limit| (refused, limit.soft, limit.hard))
        })();
        child.kill().expect("it is there");
        child.wait().expect("it ends");
        assert_eq!(tried.expect("signals"), (Some(libc::EAGAIN), 3, 100));
    }
}
