//! What became of the children of a skeleton or of init.
//!
//! Nothing may get lost, be a thousand children ended at once and the agent away for
//! an hour, and a told one must stay a zombie until its real parent has waited for it.
//! So the kernel keeps the books, not we: an ended child is looked at with WNOWAIT and
//! nothing else, and a look goes over *all* children, as listed by
//! /proc/thread-self/children, since SIGCHLD coalesces and `waitid(P_ALL, WNOWAIT)`
//! would give the same first zombie for ever. What we remember is only which pids were
//! told on this connection, one bit each: pids are below 2^22, so the full map is
//! 512 KiB, of which pages come into being where children are. Stops and
//! continuations are consumed once they are told.
//!
//! The list is read while children come and go, and is exact all the same: only we take
//! children away, new ones go to its end, and every change causes another look.

use crate::abi::{O_RDONLY, SigInfo, Timespec, cld, wait};
use crate::link::Link;
use crate::sys::{self, Whose};
use bproc_common::ghost::{Msg, ev};
use bproc_common::wait::Status;

/// With more children than this, looks are at least [`REST`] apart; the one that SIGCHLD names is told at once.
const MANY: u32 = 64;
const REST: Timespec = Timespec::from_millis(20);
/// Stops and continuations told in one look.
const STOPS_A_LOOK: u32 = 256;

const PAGE: usize = 4096;
const PIDS_A_PAGE: usize = PAGE * 8;
const PAGES: usize = (1 << 22) / PIDS_A_PAGE;

/// One bit a pid, in pages made when first needed.
struct Told([Option<&'static mut [u8]>; PAGES]);

impl Told {
    fn place(pid: i32) -> (usize, usize, u8) {
        let pid = pid as usize;
        (pid / PIDS_A_PAGE, pid % PIDS_A_PAGE / 8, 1 << (pid % 8))
    }

    fn has(&self, pid: i32) -> bool {
        let (page, byte, bit) = Told::place(pid);
        matches!(self.0.get(page), Some(Some(bits)) if bits[byte] & bit != 0)
    }

    /// Without memory the bit stays clear: the exit is told again, which does no harm.
    fn set(&mut self, pid: i32, told: bool) {
        let (page, byte, bit) = Told::place(pid);
        let Some(slot) = self.0.get_mut(page) else {
            return;
        };
        if slot.is_none() && told {
            *slot = sys::map_zeroed(PAGE).ok();
        }
        if let Some(bits) = slot {
            bits[byte] = if told { bits[byte] | bit } else { bits[byte] & !bit };
        }
    }

    fn clear(&mut self) {
        for slot in &mut self.0 {
            if let Some(page) = slot.take() {
                sys::unmap(page);
            }
        }
    }
}

/// What is told of children.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Nothing,
    /// Stops and continuations.
    Stops,
    All,
}

pub(crate) struct Children {
    watched: Interest,
    due: bool,
    many: bool,
    told: Told,
}

impl Children {
    pub(crate) const fn new() -> Children {
        Children { watched: Interest::Nothing, due: false, many: false, told: Told([const { None }; PAGES]) }
    }

    /// From now on changes are told, those that were before included.
    pub(crate) fn watch(&mut self, what: Interest) {
        if self.watched != Interest::All {
            self.watched = what;
        }
        self.due = true;
    }

    /// A fresh clone has no children.
    pub(crate) fn reset(&mut self) {
        self.told.clear();
        self.watched = Interest::Nothing;
        self.due = false;
        self.many = false;
    }

    /// A new connection: what stands is told again.
    pub(crate) fn tell_all_again(&mut self) {
        self.told.clear();
        self.due = self.watched != Interest::Nothing;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// SIGCHLD came, perhaps for several; `ended` is the one that it names.
    pub(crate) fn changed(&mut self, ended: Option<i32>, link: &mut Link) {
        if self.watched == Interest::Nothing {
            return;
        }
        self.due = true;
        if let Some(pid) = ended
            && self.many
            && self.watched == Interest::All
        {
            self.tell_end(pid, link);
        }
    }

    /// The number may come back as another child.
    pub(crate) fn reaped(&mut self, pid: i32) {
        self.told.set(pid, false);
    }

    /// Tells whatever is new. Gives the time to rest before the next look.
    pub(crate) fn look(&mut self, link: &mut Link) -> Timespec {
        self.due = self.tell_stops(link);
        if self.watched == Interest::All {
            self.tell_ends(link);
        }
        if self.many { REST } else { Timespec::from_millis(0) }
    }

    /// True when some are left for the next look.
    fn tell_stops(&self, link: &mut Link) -> bool {
        const LOOK: i32 = wait::STOPPED | wait::CONTINUED | wait::NOHANG | wait::NOWAIT;
        for _ in 0..STOPS_A_LOOK {
            let mut info = SigInfo::ZERO;
            if sys::waitid(Whose::Anybody, LOOK, &mut info, None).is_err() || info.pid() == 0 {
                return false;
            }
            if !link.send(message(&info), &[]) {
                return true;
            }
            // Only the kind that was told is consumed: a change since then has its own turn.
            let kind = if info.code() == cld::CONTINUED { wait::CONTINUED } else { wait::STOPPED };
            let mut gone = SigInfo::ZERO;
            let _ = sys::waitid(Whose::Pid(info.pid()), kind | wait::NOHANG, &mut gone, None);
        }
        true
    }

    fn tell_ends(&mut self, link: &mut Link) {
        let Ok(list) = sys::open(c"/proc/thread-self/children", O_RDONLY) else {
            return;
        };
        let mut text = [0u8; 1024];
        let mut pid = 0i32;
        let mut count = 0;
        while let Ok(n @ 1..) = sys::read(list, &mut text) {
            for byte in &text[..n] {
                if byte.is_ascii_digit() {
                    pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
                } else if pid > 0 {
                    count += 1;
                    self.tell_end(pid, link);
                    pid = 0;
                }
            }
        }
        sys::close(list);
        self.many = count > MANY;
    }

    fn tell_end(&mut self, pid: i32, link: &mut Link) {
        const LOOK: i32 = wait::EXITED | wait::NOHANG | wait::NOWAIT | wait::ALL_KINDS;
        if self.told.has(pid) {
            return;
        }
        let mut info = SigInfo::ZERO;
        let mut usage = [0; 144];
        let looked = sys::waitid(Whose::Pid(pid), LOOK, &mut info, Some(&mut usage));
        if looked.is_ok() && info.pid() == pid && link.send(message(&info), &usage) {
            self.told.set(pid, true);
        }
    }
}

fn message(info: &SigInfo) -> Msg {
    let status = info.status();
    let raw = match info.code() {
        cld::EXITED => Status::Exited(status as u8),
        cld::CONTINUED => Status::Continued,
        code @ (cld::KILLED | cld::DUMPED) => Status::Killed { signal: status as u8, core: code == cld::DUMPED },
        _ => Status::Stopped(status as u8),
    };
    Msg {
        op: ev::CHILD,
        a: i64::from(info.pid()),
        b: i64::from(info.code()),
        c: i64::from(raw.to_raw()),
        ..Msg::default()
    }
}
