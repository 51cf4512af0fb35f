//! The state of a ghost and its loop: wait for the socket and for signals, act.
//!
//! ```text
//!            connected, HELLO, unacknowledged signals again
//!   away ────────────────────────────────────────────────────▶ up
//!     ▲  tries again after 20 ms .. 500 ms                      │
//!     └─────────────────────────────────────────────────────────┘
//!            connection broken: exits will be told again
//! ```
//!
//! While away, signals are still taken from the kernel as long as the ring has room, so
//! that two of the same kind do not become one; further ones wait in the kernel.

use crate::abi::{POLLIN, PollFd, SigInfo, Timespec, cld, errno, si, sig};
use crate::children::{Children, Interest};
use crate::command::Inbox;
use crate::delivered::Delivered;
use crate::lease::Lease;
use crate::link::Link;
use crate::queue::Queue;
use crate::sys::{self, Errno};
use bproc_common::ghost::{Msg, Role, WAKE, ev};

const NOW: Timespec = Timespec::from_millis(0);
/// Milliseconds between looks where it cannot wait.
const PAUSE: u32 = 20;

/// What the environment says.
pub(crate) struct Start {
    pub(crate) socket: &'static [u8],
    pub(crate) role: Role,
    /// Seconds that an init lives without its agent; 0: for ever.
    pub(crate) lease_s: u32,
    /// Signals that were numbered before.
    pub(crate) count: u32,
    /// The `bpsh` that it comes from; 0: none.
    pub(crate) starter: u64,
}

pub(crate) struct Ghost {
    pub(crate) role: Role,
    pub(crate) link: Link,
    pub(crate) queue: Queue,
    pub(crate) children: Children,
    pub(crate) title: crate::title::Title,
    /// Readable while signals are pending. It tells of the process that polls it, so a clone may use its copy.
    pub(crate) signals: i32,
    /// Left before the next attempt to connect.
    retry: Timespec,
    /// Left before the next look at children.
    rest: Timespec,
    /// Init's.
    pub(crate) lease: Lease,
    /// Init's, and of all its clones.
    pub(crate) delivered: Delivered,
    /// Count of the newest wake-up call.
    pub(crate) woken: u32,
    /// The `bpsh` that it comes from, as all its clones do; 0: none, or not known.
    pub(crate) starter: u64,
    /// The set of signals that are left in the kernel.
    left: u64,
}

impl Ghost {
    /// All zero, so that it takes no room in the file and no memory before it is used.
    pub(crate) const fn new() -> Ghost {
        Ghost {
            role: Role::Ghost,
            link: Link::new(),
            queue: Queue::new(),
            children: Children::new(),
            title: crate::title::Title::new(),
            signals: 0,
            retry: NOW,
            rest: NOW,
            lease: Lease::new(),
            delivered: Delivered::new(),
            woken: 0,
            starter: 0,
            left: 0,
        }
    }

    pub(crate) fn start(&mut self, start: &Start) -> Result<(), Errno> {
        self.signals = sys::signalfd(u64::MAX)?;
        self.link.set_path(start.socket);
        self.queue.count_from(start.count);
        self.starter = start.starter;
        if start.role == Role::Init {
            self.delivered.share();
            self.lease.renew(start.lease_s.saturating_mul(1000))?;
        }
        self.take_role(start.role);
        Ok(())
    }

    pub(crate) fn take_role(&mut self, role: Role) {
        self.role = role;
        if role != Role::Ghost {
            self.children.watch(Interest::All);
        }
    }

    /// What differs in a fresh clone: nothing sent, nothing told, no connection.
    pub(crate) fn begin_anew(&mut self, role: Role) {
        self.link.close();
        self.lease.give_up();
        self.queue = Queue::new();
        self.children.reset();
        self.woken = 0;
        self.retry = NOW;
        self.rest = NOW;
        self.take_role(role);
    }

    pub(crate) fn run(&mut self, inbox: &mut Inbox) -> ! {
        loop {
            if !self.link.is_up() && self.retry == NOW {
                self.connect();
            }
            if self.link.is_up() && self.children.is_due() && self.rest == NOW {
                self.rest = self.children.look(&mut self.link);
            }
            self.wait(inbox);
        }
    }

    fn connect(&mut self) {
        let done = self.link.connect();
        self.retry = self.link.pause();
        if done.is_err() {
            return;
        }
        // If it cannot, the agent's next word about it comes again.
        let _ = self.leave(0);
        let hello = Msg {
            op: ev::HELLO,
            a: i64::from(sys::getpid()),
            b: self.role as i64,
            c: i64::from(sys::getppid()),
            d: i64::from(self.queue.newest()),
            ..Msg::default()
        };
        self.link.send(hello, &self.starter.to_ne_bytes());
        for (number, info) in self.queue.unacknowledged() {
            self.link.send(signal_message(number, info), &info.0);
        }
        self.children.tell_all_again();
    }

    fn wait(&mut self, inbox: &mut Inbox) {
        let mut fds = [
            PollFd { fd: self.link.fd(), events: POLLIN, revents: 0 },
            PollFd { fd: if self.takes_signals() { self.signals } else { -1 }, events: POLLIN, revents: 0 },
            PollFd { fd: self.lease.fd(), events: POLLIN, revents: 0 },
        ];
        let until = match (self.link.is_up(), self.children.is_due()) {
            (false, _) => Some(&mut self.retry),
            (true, true) => Some(&mut self.rest),
            (true, false) => None,
        };
        match sys::poll(&mut fds, until) {
            Ok(_) => {}
            Err(Errno(errno::EINTR)) => return,
            // Others have lowered its limit of descriptors below the number of these (prlimit): it looks without waiting for them.
            Err(_) => {
                let _ = sys::poll(&mut [], Some(&mut Timespec::from_millis(PAUSE)));
                (self.retry, self.rest) = (NOW, NOW);
                fds.iter_mut().filter(|entry| entry.fd >= 0).for_each(|entry| entry.revents = POLLIN);
                fds[2].revents = 0;
            }
        }
        if fds[2].revents != 0 && self.lease.beat() {
            sys::exit(0);
        }
        if fds[1].revents != 0 {
            self.take_signals();
        }
        if fds[0].revents != 0 && self.link.is_up() && inbox.receive(self).is_err() {
            self.link.close();
        }
    }

    fn takes_signals(&self) -> bool {
        self.queue.has_room() && self.left != u64::MAX
    }

    /// Leaves this set of signals to whoever comes into its place. What has come is told before.
    pub(crate) fn hold(&mut self, left: u64) -> Result<(), Errno> {
        self.take_signals();
        self.leave(left)
    }

    fn leave(&mut self, left: u64) -> Result<(), Errno> {
        if left != self.left && left != u64::MAX {
            // The former may be that of clones, too.
            let signals = sys::signalfd(!left)?;
            sys::close(self.signals);
            self.signals = signals;
        }
        self.left = left;
        Ok(())
    }

    pub(crate) fn take_signals(&mut self) {
        let mut info = SigInfo::ZERO;
        while self.takes_signals() && sys::take_signal(!self.left, &mut info).is_ok() {
            let (signal, code) = (info.signal(), info.code());
            if signal == sig::CHLD && code > 0 {
                let ended = matches!(code, cld::EXITED | cld::KILLED | cld::DUMPED);
                self.children.changed(ended.then_some(info.pid()), &mut self.link);
            } else if let Some(count) = wake_call(&info) {
                self.woken = self.woken.max(count);
            } else {
                let number = self.queue.push(&info);
                self.link.send(signal_message(number, &info), &info.0);
            }
        }
    }
}

/// The count of a wake-up call.
fn wake_call(info: &SigInfo) -> Option<u32> {
    let is_one = info.signal() == sig::CONT && info.code() == si::QUEUE && info.uid() == 0;
    (is_one && info.value() as u32 == WAKE).then_some((info.value() >> 32) as u32)
}

fn signal_message(number: u32, info: &SigInfo) -> Msg {
    Msg { op: ev::SIGNAL, tag: number, a: i64::from(info.signal()), ..Msg::default() }
}
