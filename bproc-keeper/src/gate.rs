//! The table of held processes, and what each ptrace stop means for them.
//!
//! ```text
//!            Group(sig)                 Exit, not released
//!  Running ─────────────▶ Stopped      ────────────────────▶ Exiting ──RELEASE──▶ (gone)
//!     ▲                      │         Exit, released ───────────────────────────▶ (gone)
//!     └──────── Trap ────────┘
//! ```
//!
//! A stopped ghost can be asked to do something all the same ([`Gate::thaw`]): sent on instead of being left to listen, it
//! runs, while its group's stop stands as before in the kernel. An interrupt brings it back into that.
//!
//! A process leaves by PTRACE_DETACH in its exit stop: so its parent is told by the kernel as if it had never been
//! traced, and needs nothing of the keeper any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bproc_common::id::Pid;
use bproc_common::keeper::{KeeperMsg, ev, state};
use bproc_sys::Error;
use bproc_sys::process::Process;
use bproc_sys::trace::{self, Event, Stop, Stopped};

use crate::link::Link;

/// Reports found one after the other by asking for any, before all are asked by pid: asking for any costs the kernel
/// a walk over all tracees each time.
const ANY_IN_A_ROW: usize = 4;

/// Where a held process stands.
enum Stand {
    Running,
    /// Group-stopped by this signal.
    Stopped(i32),
    /// At the gate, to end with this wait status.
    Exiting(Stopped, i32),
}

/// Whether a process has threads beside its first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    /// It has just been executed or forked, or was seen to make none since.
    None,
    /// Look before believing that the first one's end is the process's.
    Perhaps,
}

struct Held {
    stand: Stand,
    threads: Threads,
    /// The gate is open.
    released: bool,
    /// Tag of the DETACH that waits for the next stop.
    detach: Option<u32>,
    /// The stop that is coming is one that it sent to itself.
    own_stop: bool,
    /// It runs though its group is stopped.
    thawed: bool,
}

impl Held {
    fn new(threads: Threads) -> Held {
        Held { stand: Stand::Running, threads, released: false, detach: None, own_stop: false, thawed: false }
    }
}

/// Signals that stop a process.
const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// All held processes, and the agent's link to tell it about them.
#[derive(Default)]
pub(crate) struct Gate {
    held: HashMap<Pid, Held>,
    /// To the agent.
    pub(crate) link: Link,
}

impl Gate {
    /// Number of held processes.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Tells the agent.
    pub(crate) fn tell(&mut self, msg: KeeperMsg) {
        self.link.tell(msg, self.held.len());
    }

    fn report(&mut self, op: u32, pid: Pid, value: i32) {
        self.tell(KeeperMsg { op, pid: pid.get(), value, ..KeeperMsg::default() });
    }

    /// Answers a command.
    pub(crate) fn done(&mut self, tag: u32, pid: i32, value: i32) {
        self.tell(KeeperMsg { op: ev::DONE, tag, pid, value, ..KeeperMsg::default() });
    }

    /// Seizes a process. One that is held already stays as it is, also if it was about to be let go of.
    pub(crate) fn seize(&mut self, pid: Pid) -> Result<(), Error> {
        self.settle(pid);
        match self.held.entry(pid) {
            Entry::Vacant(place) => {
                trace::seize(pid)?;
                place.insert(Held::new(Threads::Perhaps));
            }
            Entry::Occupied(mut held) => {
                if let Some(tag) = held.get_mut().detach.take() {
                    self.done(tag, pid.get(), 0);
                }
            }
        }
        Ok(())
    }

    /// Opens the gate of a process; false if it is not held.
    pub(crate) fn release(&mut self, pid: Pid) -> bool {
        self.settle(pid);
        let Some(held) = self.held.get_mut(&pid) else {
            return false;
        };
        held.released = true;
        if let Stand::Exiting(..) = held.stand {
            self.let_out(pid);
        }
        true
    }

    /// Has a stopped process run, or (`on` is false) stand still again. False if it is not held.
    pub(crate) fn thaw(&mut self, pid: Pid, on: bool) -> bool {
        self.settle(pid);
        let Some(held) = self.held.get_mut(&pid) else {
            return false;
        };
        if let Stand::Stopped(_) = held.stand
            && held.thawed != on
        {
            held.thawed = on;
            if trace::interrupt(pid).is_err() {
                // Killed a moment ago.
                self.settle(pid);
            }
        }
        true
    }

    /// Whoever was asked for something by an agent that is gone stands still again.
    pub(crate) fn freeze_all(&mut self) {
        let thawed: Vec<Pid> = self.held.iter().filter(|(_, held)| held.thawed).map(|(pid, _)| *pid).collect();
        for pid in thawed {
            self.thaw(pid, false);
        }
    }

    /// Lets go of a process; it is answered under this tag when that has happened. False if it is not held.
    pub(crate) fn detach(&mut self, pid: Pid, tag: u32) -> bool {
        self.settle(pid);
        let Some(held) = self.held.get_mut(&pid) else {
            return false;
        };
        if let Stand::Exiting(..) = held.stand {
            self.let_out(pid);
            self.done(tag, pid.get(), 0);
        } else if let Some(former) = held.detach.replace(tag) {
            self.done(former, pid.get(), 0);
        } else if trace::interrupt(pid).is_err() {
            // It has just been killed: it lets go of itself.
            self.settle(pid);
        }
        true
    }

    /// Tells where everything stands.
    pub(crate) fn list(&mut self) {
        let count = self.held.len();
        for (pid, held) in &self.held {
            let (value, extra) = match &held.stand {
                Stand::Running => (state::RUNNING, 0),
                Stand::Stopped(signal) => (state::STOPPED, *signal),
                Stand::Exiting(_, status) => (state::EXITING, *status),
            };
            let extra = extra as u32 as u64;
            self.link.tell(KeeperMsg { op: ev::STATE, pid: pid.get(), value, extra, ..KeeperMsg::default() }, count);
        }
    }

    /// Takes in every report that there is. `hint`: a process that probably has one.
    pub(crate) fn reap(&mut self, hint: Option<Pid>) {
        if let Some(pid) = hint {
            self.settle(pid);
        }
        let mut in_a_row = 0;
        while let Ok(Some(event)) = trace::try_wait_any() {
            self.take(event);
            in_a_row += 1;
            if in_a_row > ANY_IN_A_ROW {
                self.sweep();
                in_a_row = 0;
            }
        }
    }

    /// Takes in the reports of each held process, and drops those that have left unseen.
    pub(crate) fn sweep(&mut self) {
        let pids: Vec<Pid> = self.held.keys().copied().collect();
        for pid in pids {
            self.settle(pid);
        }
    }

    /// Takes in the reports of one process.
    fn settle(&mut self, pid: Pid) {
        loop {
            match trace::try_wait(pid) {
                Ok(Some(event)) => self.take(event),
                Ok(None) => return,
                Err(_) => {
                    // No tracee any more: another of its threads has executed a program in its place.
                    self.forget(pid);
                    return;
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::End(pid, _) => self.forget(pid),
            Event::Stop(stopped, stop) => {
                let pid = stopped.pid();
                if self.adopt(pid) {
                    self.stand_still(stopped, stop);
                } else {
                    // A thread: nobody waits for its end. A SIGKILL may have been faster.
                    let _ = stopped.detach(0);
                }
            }
        }
    }

    /// Makes sure that a process is in the table. False for a thread, which does not come in.
    fn adopt(&mut self, pid: Pid) -> bool {
        if self.held.contains_key(&pid) {
            return true;
        }
        let Ok(process) = Process::open(pid) else {
            return false;
        };
        let (Ok(status), Ok(stat)) = (process.status(), process.stat()) else {
            return false;
        };
        if status.tgid != pid.get() {
            return false;
        }
        self.held.insert(pid, Held::new(Threads::None));
        self.report(ev::ADOPTED, pid, stat.ppid);
        true
    }

    /// Deals with a stop of a process in the table.
    fn stand_still(&mut self, stopped: Stopped, stop: Stop) {
        let pid = stopped.pid();
        if let Stop::Child = stop {
            // Told before anything that the child does, even if this is seen first.
            let child = stopped.message().ok().and_then(|m| Pid::new(m as i32));
            if child.is_some_and(|child| !self.adopt(child))
                && let Some(held) = self.held.get_mut(&pid)
            {
                held.threads = Threads::Perhaps;
            }
        }
        let Some(held) = self.held.get_mut(&pid) else {
            return;
        };
        if let Stop::Exit(status) = stop {
            if held.threads == Threads::Perhaps && status & 0x7f == 0 && others_live(pid) {
                // Only its first thread ends, or another one executes a program and waits for that. Holding it here
                // would hold the program.
                let _ = stopped.cont(0);
                return;
            }
            let open = held.released || held.detach.is_some();
            held.stand = Stand::Exiting(stopped, status);
            if open {
                let detach = held.detach;
                self.let_out(pid);
                if let Some(tag) = detach {
                    self.done(tag, pid.get(), 0);
                }
            } else {
                self.report(ev::EXITING, pid, status);
            }
            return;
        }
        if let Some(tag) = held.detach {
            let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
            if stopped.detach(signal).is_ok() {
                self.held.remove(&pid);
                self.done(tag, pid.get(), 0);
            }
            return;
        }
        // Made to run, it makes children and stops without having been continued.
        let continued = !held.thawed || matches!(stop, Stop::Trap);
        // A SIGKILL that comes before the process is sent on makes that fail with ESRCH; its exit stop follows.
        let _ = match stop {
            Stop::Group(signal) => {
                let known = matches!(held.stand, Stand::Stopped(before) if before == signal);
                held.stand = Stand::Stopped(signal);
                let own = u64::from(std::mem::take(&mut held.own_stop));
                let thawed = held.thawed;
                if !known {
                    let value = signal;
                    self.tell(KeeperMsg { op: ev::STOPPED, pid: pid.get(), value, extra: own, ..KeeperMsg::default() });
                }
                if thawed { stopped.cont(0) } else { stopped.listen() }
            }
            Stop::Signal(signal) => {
                held.own_stop = STOPS.contains(&signal)
                    && stopped.siginfo().is_ok_and(|i| i.code() == libc::SI_TKILL && i.pid() == pid.get());
                if continued {
                    self.runs(pid);
                }
                stopped.cont(signal)
            }
            Stop::Exec => {
                held.threads = Threads::None;
                self.report(ev::EXECED, pid, 0);
                stopped.cont(0)
            }
            Stop::Trap | Stop::Child | Stop::Other | Stop::Exit(_) => {
                if continued {
                    self.runs(pid);
                }
                stopped.cont(0)
            }
        };
    }

    /// Notes that a process is not group-stopped (any more); told before it is sent on.
    fn runs(&mut self, pid: Pid) {
        let Some(held) = self.held.get_mut(&pid) else {
            return;
        };
        if let Stand::Stopped(_) = held.stand {
            held.thawed = false;
            held.stand = Stand::Running;
            self.report(ev::CONTINUED, pid, 0);
        }
    }

    /// Lets a process that stands at the gate out.
    fn let_out(&mut self, pid: Pid) {
        let Some(held) = self.held.remove(&pid) else {
            return;
        };
        if let Stand::Exiting(stopped, _) = held.stand {
            // It fails only if the process went by itself.
            let _ = stopped.detach(0);
        }
        self.report(ev::GONE, pid, 0);
    }

    /// Drops a process that is no tracee any more.
    fn forget(&mut self, pid: Pid) {
        if let Some(held) = self.held.remove(&pid) {
            self.report(ev::GONE, pid, 0);
            if let Some(tag) = held.detach {
                self.done(tag, pid.get(), 0);
            }
        }
    }
}

/// Whether threads other than the first one live on, when that ends otherwise than by a signal (which would end all).
///
/// A thread on its way out can look alive for a moment: before the kernel marks it, after it has taken its SIGKILL off
/// the queue. So a living one is looked at again, for some milliseconds; a process that is a ghost never comes here.
fn others_live(pid: Pid) -> bool {
    const LOOKS: usize = 20;
    const PAUSE: std::time::Duration = std::time::Duration::from_micros(500);
    let Ok(process) = Process::open(pid) else {
        return false;
    };
    for _ in 0..LOOKS {
        let threads = process.threads().unwrap_or_default();
        if !threads.into_iter().any(|tid| tid != pid && lives(&process, tid)) {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Whether a thread shows no sign of its end.
fn lives(process: &Process, tid: Pid) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    /// The kernel's PF_EXITING and PF_SIGNALED.
    const LEAVING: u32 = 0x4 | 0x400;
    process.thread(tid).is_ok_and(|(stat, status)| {
        !matches!(stat.state, b'Z' | b'X')
            && stat.flags & LEAVING == 0
            && (status.sig_pending | status.sig_shared_pending) & KILL == 0
    })
}
