//! Signals to whole groups: copies of them that stand-ins got, and that are not to be passed on, since their processes get
//! them otherwise.
//!
//! A stand-in cannot tell such a copy from a signal of its own. The kernel can, and writes a record while it holds the lock
//! under which the stand-in reads: who takes records before reports has the record first. A record that was lost makes the
//! copy an ordinary signal.

use bproc_common::event::Event;
use std::collections::HashMap;

const SI_USER: i32 = 0;
const SIGCHLD: i32 = 17;
const SIGTTOU: i32 = 22;
/// Far more than can wait in one process.
const MOST: usize = 128;

/// What tells a signal from others of its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Its number.
    pub signal: i32,
    /// si_code.
    pub code: i32,
    /// si_pid.
    pub sender: i32,
}

impl Mark {
    /// That of a `siginfo_t`.
    pub fn of(siginfo: &[u8]) -> Mark {
        let word =
            |at: usize| siginfo.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| i32::from_ne_bytes(*b));
        Mark { signal: word(0), code: word(8), sender: word(16) }
    }

    /// That of the kernel's record of one.
    pub fn of_record(event: &Event) -> Mark {
        Mark { signal: event.arg as i32, code: event.code, sender: event.arg2 as i32 }
    }

    /// As `siginfo_t`, sent by a user.
    pub fn siginfo(&self, uid: u32) -> Vec<u8> {
        let mut raw = vec![0; 128];
        for (at, word) in [(0, self.signal), (8, self.code), (16, self.sender), (20, uid as i32)] {
            raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        raw
    }

    /// One of which the kernel kept the number only: it had no memory, or a fork was under way.
    fn bare(signal: i32) -> Mark {
        Mark { signal, code: SI_USER, sender: 0 }
    }
}

/// The kernel's record of a signal that a stand-in got with all of its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is told by.
    pub mark: Mark,
    /// Which group.
    pub group: i32,
    /// The same for all whom one system call reached.
    pub call: u64,
    /// It waits; else it has become one with an equal one that did.
    pub queued: bool,
    /// The sender's real uid.
    pub uid: u32,
    /// Its sender acts as another user, too.
    pub is_set_uid: bool,
    /// Its sender may signal more, or fewer, than this user.
    pub has_other_rights: bool,
}

impl Record {
    /// That of an event.
    pub fn of(event: &Event) -> Record {
        Record {
            mark: Mark::of_record(event),
            group: event.pgid as i32,
            call: event.call,
            queued: event.queued != 0,
            uid: event.arg3,
            is_set_uid: event.utime_ns & 1 != 0,
            has_other_rights: event.utime_ns & 2 != 0,
        }
    }
}

/// True for signals that stop and continue nobody: these have rules of their own, by which each goes its way alone.
pub fn is_whole(signal: i32) -> bool {
    // SIGCONT, SIGSTOP and the terminal's stops stand between these.
    signal > 0 && !(SIGCHLD..=SIGTTOU).contains(&signal)
}

/// Copies that wait in stand-ins, in the order in which they came, and what is known of each.
#[derive(Debug)]
pub struct Copies<T = ()> {
    due: HashMap<i32, Vec<(Mark, T)>>,
}

impl<T> Default for Copies<T> {
    fn default() -> Self {
        Copies { due: HashMap::new() }
    }
}

impl<T> Copies<T> {
    /// The kernel has put one into a stand-in.
    pub fn expect(&mut self, pid: i32, mark: Mark, what: T) {
        let due = self.due.entry(pid).or_default();
        if due.len() == MOST {
            due.remove(0);
        }
        due.push((mark, what));
    }

    /// A stand-in that was being forked when its parent got one may have it, too, without any word of its sender.
    pub fn expect_bare(&mut self, pid: i32, signal: i32, what: T) {
        self.expect(pid, Mark::bare(signal), what);
    }

    /// A stand-in tells of a signal: what is known of it when it is such a copy. Each is one once.
    pub fn take(&mut self, pid: i32, siginfo: &[u8]) -> Option<T> {
        let due = self.due.get_mut(&pid)?;
        let mark = Mark::of(siginfo);
        let exact = due.iter().position(|(d, _)| *d == mark);
        let at = exact.or_else(|| due.iter().position(|(d, _)| mark == Mark::bare(d.signal)))?;
        let (_, what) = due.remove(at);
        if due.is_empty() {
            self.due.remove(&pid);
        }
        Some(what)
    }

    /// These came after.
    pub fn append(&mut self, others: Copies<T>) {
        for (pid, due) in others.due {
            due.into_iter().for_each(|(mark, what)| self.expect(pid, mark, what));
        }
    }

    /// It is no stand-in any more.
    pub fn forget(&mut self, pid: i32) {
        self.due.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siginfo(signal: i32, code: i32, sender: i32) -> Vec<u8> {
        let mut raw = vec![0; 128];
        for (at, word) in [(0, signal), (8, code), (16, sender)] {
            raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        raw
    }

    #[test]
    fn a_copy_is_one_once() {
        let mut copies = Copies::<()>::default();
        copies.expect(7, Mark { signal: 15, code: 0, sender: 3 }, ());
        assert!(copies.take(8, &siginfo(15, 0, 3)).is_none());
        assert!(copies.take(7, &siginfo(2, 0, 3)).is_none());
        assert!(copies.take(7, &siginfo(15, 0, 4)).is_none(), "another's");
        assert!(copies.take(7, &siginfo(15, -1, 3)).is_none(), "by sigqueue");
        assert!(copies.take(7, &siginfo(15, 0, 3)).is_some());
        assert!(copies.take(7, &siginfo(15, 0, 3)).is_none());
    }

    #[test]
    fn a_copy_may_have_lost_its_sender() {
        let mut copies = Copies::<()>::default();
        copies.expect(7, Mark { signal: 15, code: 0, sender: 3 }, ());
        assert!(copies.take(7, &siginfo(15, 0, 0)).is_some());
        copies.expect_bare(7, 15, ());
        assert!(copies.take(7, &siginfo(15, 0, 3)).is_none(), "a bare one is no other");
        assert!(copies.take(7, &siginfo(15, 0, 0)).is_some());
    }

    #[test]
    fn stops_go_alone() {
        assert!([1, 2, 3, 9, 15, 28, 34].into_iter().all(is_whole));
        assert!(![0, 17, 18, 19, 20, 21, 22].into_iter().any(is_whole));
    }
}
