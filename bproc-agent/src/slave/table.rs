//! The node's processes as its agent knows them, and what the kernel's records make of them.
//!
//! Ends come from two sides, so that each is told once and with an exact status: a child of a skeleton or of init is
//! told by that one, which holds it as a zombie until the master has replayed the end; a child of a real process is
//! told by the kernel's record, and its parent reaps it.

use super::delivery::Note;
use super::space::{Found, look_at};
use bproc_common::event::{Event, kind};
use bproc_common::id::Pid;
use bproc_proto::link::{self as wire, event};
use bproc_sys::process::{FileId, Process};
use std::collections::{BTreeSet, HashMap};

/// Pids are below 2 to this power.
const PID_BITS: u32 = 22;

/// The processes of the space, skeletons left out.
#[derive(Debug, Default)]
pub struct Table {
    pub(super) entries: HashMap<i32, Entry>,
    /// Those that their own parents have yet to reap, or a few more.
    pub(super) zombies: usize,
}

#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) host_pid: i32,
    pub(super) ppid: i32,
    pub(super) pgid: i32,
    pub(super) sid: i32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) comm: Vec<u8>,
    pub(super) cmdline: Vec<u8>,
    /// Newest signal of its ghost that was delivered.
    pub(super) signals: u32,
    pub(super) state: State,
    /// The kernel told its exec, which the agent learns of a little later than what the program does then.
    pub(super) execed: bool,
    /// How it ended, once the master was told.
    pub(super) told_end: Option<i32>,
    /// How it ended, by the kernel's record: its parent's stand-in tells of it, unless the parent comes into that one's place.
    pub(super) untold_end: Option<i32>,
    /// It was reaped since.
    pub(super) freed: bool,
    /// Who holds its zombie, if that is one of ours.
    pub(super) held_by: Option<i32>,
    /// Start in clock ticks after boot, once that was asked for.
    pub(super) started: u64,
    /// Found at start: a former agent may have delivered signals that the master sends again.
    pub(super) adopted: bool,
    /// Its streams at the stdio service; empty for none.
    pub(super) token: Vec<u8>,
    /// The master has replayed its end, before anyone here held its zombie.
    pub(super) forgotten: bool,
    /// No process of this node: the skeleton of one that has ended elsewhere, which its parent here is to reap.
    pub(super) stand_in: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Made, and about to exec. An end that is told before the exec's success is kept.
    Starting(Option<(i32, Vec<u8>)>),
    #[default]
    Running,
    /// The exec failed.
    Failed,
    /// Built here by a move, and about to run or not. An end that is told before is kept.
    Arriving(Option<(i32, Vec<u8>)>),
    /// About to go on elsewhere, or to stay. An end is kept: perhaps it is its stand-in's.
    Leaving(Option<(i32, Vec<u8>)>),
    /// The end was told to the master.
    Ended,
}

/// What the end of a child calls for.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Tell the master; reap when it has replayed the end.
    Report,
    /// Nothing: told before, or to be told later.
    Known,
    /// Reap it: nobody waits for it.
    Reap,
}

/// What a record of the kernel calls for.
#[derive(Debug, Default)]
pub struct Told {
    /// For the master.
    pub events: Vec<event::Body>,
    /// Pid of a fresh fork.
    pub forked: Option<i32>,
}

impl Table {
    /// Number of processes, zombies included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing runs.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a process lives or lies here.
    pub fn is_here(&self, pid: i32) -> bool {
        self.entries.contains_key(&pid)
    }

    /// A process is going to be made.
    pub fn expect(&mut self, spec: &bproc_proto::SpawnSpec) {
        let entry = Entry {
            ppid: spec.ppid,
            pgid: spec.pgid,
            sid: spec.sid,
            cmdline: joined(&spec.argv),
            token: spec.stdio_token.clone(),
            uid: spec.credentials.as_ref().map_or(0, |c| c.ruid),
            gid: spec.credentials.as_ref().map_or(0, |c| c.rgid),
            state: State::Starting(None),
            ..Entry::default()
        };
        self.entries.insert(spec.pid, entry);
    }

    /// It is being made, or about to exec.
    pub fn is_starting(&self, pid: i32) -> bool {
        self.entries.get(&pid).is_some_and(|e| matches!(e.state, State::Starting(_)))
    }

    /// Others are here of a session or group with this number.
    pub fn is_led_by(&self, leader: i32) -> bool {
        self.entries.iter().any(|(pid, e)| *pid != leader && (e.pgid == leader || e.sid == leader))
    }

    /// Its pid here.
    pub fn host_pid(&self, pid: i32) -> Option<Pid> {
        self.entries.get(&pid).and_then(|e| Pid::new(e.host_pid))
    }

    /// It was made.
    pub fn made(&mut self, pid: i32, host_pid: i32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.host_pid = host_pid;
        }
    }

    /// Its exec succeeded. If its end was seen already, that is returned: it is to be told now.
    pub fn started(&mut self, pid: i32) -> Option<(i32, Vec<u8>)> {
        let entry = self.entries.get_mut(&pid)?;
        let State::Starting(end) = std::mem::take(&mut entry.state) else { return None };
        if end.is_some() {
            entry.state = State::Ended;
            if entry.held_by.is_none() {
                // Its parent is here in person, and waits for it.
                entry.started = start_of(entry.host_pid).unwrap_or(0);
                self.zombies += 1;
            }
        }
        end
    }

    /// It could not be started. Returns who holds its zombie, if it has ended already. `stands`: what was to become it stands for it,
    /// as before.
    pub fn failed(&mut self, pid: i32, stands: bool) -> Option<i32> {
        let entry = self.entries.get_mut(&pid)?;
        let made = entry.host_pid != 0;
        let ended = matches!(entry.state, State::Starting(Some(_)));
        entry.state = State::Failed;
        let held_by = entry.held_by;
        if ended || !made || stands {
            self.entries.remove(&pid);
        }
        held_by.filter(|_| ended)
    }

    /// True unless this signal of its ghost was delivered before.
    pub fn is_new_signal(&mut self, pid: i32, number: u32) -> bool {
        match self.entries.get_mut(&pid) {
            None => false,
            Some(entry) if number == 0 => entry.state != State::Ended,
            Some(entry) if number <= entry.signals => false,
            Some(entry) => {
                entry.signals = number;
                true
            }
        }
    }

    /// How a signal is noted in the space. `key` tells the signals of one process apart.
    pub fn note(&mut self, pid: i32, key: i64) -> Note {
        let Some(entry) = self.entries.get_mut(&pid) else { return Note::default() };
        if entry.started == 0 {
            entry.started = start_of(entry.host_pid).unwrap_or(0);
        }
        if entry.started == 0 {
            return Note::default();
        }
        Note {
            receiver: (entry.started << PID_BITS) as i64 | i64::from(pid),
            key: if entry.adopted { -key } else { key },
        }
    }

    /// One of ours (`by`) tells the end of a child.
    pub fn ended(&mut self, pid: i32, by: i32, status: i32, rusage: &[u8]) -> Ended {
        let Some(entry) = self.entries.get_mut(&pid) else { return Ended::Reap };
        let told_before = entry.held_by.replace(by).is_some();
        match &mut entry.state {
            State::Running => {
                entry.state = State::Ended;
                Ended::Report
            }
            State::Starting(end) => {
                *end = Some((status, rusage.to_vec()));
                Ended::Known
            }
            State::Failed => {
                self.entries.remove(&pid);
                Ended::Reap
            }
            State::Arriving(end) | State::Leaving(end) => {
                *end = Some((status, rusage.to_vec()));
                Ended::Known
            }
            State::Ended if entry.stand_in || entry.forgotten => {
                self.entries.remove(&pid);
                Ended::Reap
            }
            // Told again after a reconnect.
            State::Ended if told_before => Ended::Known,
            // Its parent went on elsewhere without reaping it, and will do so there.
            State::Ended if entry.ppid == by => Ended::Known,
            // Its own parent died without reaping it.
            State::Ended => Ended::Reap,
        }
    }

    /// The master is told the end of a process.
    pub fn told_end(&mut self, pid: i32, status: i32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.told_end = Some(status);
        }
    }

    /// The ends that a master was told and has not replayed: its successor does not know them.
    pub fn ends(&self) -> Vec<event::Body> {
        let told = self.entries.iter().filter_map(|(pid, entry)| Some((*pid, entry.told_end?)));
        told.map(|(pid, status)| event::Body::Exited(wire::Exited { pid, status, rusage: None })).collect()
    }

    /// The streams of a process at the stdio service.
    pub fn token(&self, pid: i32) -> Option<Vec<u8>> {
        self.entries.get(&pid).map(|e| e.token.clone()).filter(|t| !t.is_empty())
    }

    /// The master has replayed the end. Returns who holds the zombie.
    pub fn forget(&mut self, pid: i32) -> Option<i32> {
        let entry = self.entries.get_mut(&pid).filter(|e| e.state == State::Ended)?;
        // Its parent went on elsewhere, and the stand-in of that one has not told of it yet.
        entry.forgotten = entry.held_by.is_none();
        let held_by = entry.held_by?;
        self.entries.remove(&pid);
        Some(held_by)
    }

    /// Takes up a process that was found at start. Returns what the master is told of it.
    pub fn adopt(&mut self, found: &Found, parent_is_ghost: bool) -> Vec<event::Body> {
        let zombie = matches!(found.state, b'Z' | b'X');
        let natural_end = zombie && !parent_is_ghost;
        let cmdline = Pid::new(found.host_pid).map(cmdline_of).unwrap_or_default();
        let entry = Entry {
            host_pid: found.host_pid,
            ppid: found.ppid,
            pgid: found.pgid,
            sid: found.sid,
            uid: found.uid,
            gid: found.gid,
            comm: found.comm.clone(),
            cmdline,
            state: if natural_end { State::Ended } else { State::Running },
            started: start_of(found.host_pid).unwrap_or(0),
            adopted: true,
            ..Entry::default()
        };
        self.zombies += usize::from(natural_end);
        let mut events = Vec::new();
        // Init's are its own, or orphans whose parent is not known to anybody any more. One whose parent went elsewhere in the
        // moment after its fork may not have been told; the master passes over those that it knows.
        if !parent_is_ghost || found.ppid == 1 || !zombie {
            events
                .push(event::Body::Forked(wire::Forked { parent: found.ppid, child: Some(entry.to_wire(found.pid)) }));
        }
        if parent_is_ghost && !zombie {
            // A former agent may have ended before it could tell.
            let (comm, cmdline) = (entry.comm.clone(), entry.cmdline.clone());
            events.push(event::Body::Execed(wire::Execed { pid: found.pid, comm, cmdline }));
        }
        match found.state {
            b'T' => events.push(event::Body::Stopped(wire::Stopped { pid: found.pid, signal: libc::SIGSTOP })),
            _ if zombie => {}
            // That it goes on was perhaps told to a former agent only.
            _ => events.push(event::Body::Continued(found.pid)),
        }
        if natural_end {
            events.push(event::Body::Exited(wire::Exited { pid: found.pid, status: found.status, rusage: None }));
        }
        self.entries.insert(found.pid, entry);
        events
    }

    /// Sets the table right by what is found in the namespace, when records of the kernel were lost. `ghosts` are the
    /// pids of skeletons and init. Returns what the master is told.
    pub fn reconcile(&mut self, found: &[Found], ghosts: &BTreeSet<i32>) -> Vec<event::Body> {
        let mut events = Vec::new();
        for process in found.iter().filter(|f| !f.ghost) {
            let parent_is_ghost = ghosts.contains(&process.ppid);
            let zombie = matches!(process.state, b'Z' | b'X');
            match self.entries.get_mut(&process.pid) {
                None if !parent_is_ghost => events.extend(self.adopt(process, false)),
                Some(entry) if zombie && !parent_is_ghost && entry.state == State::Running => {
                    entry.state = State::Ended;
                    entry.started = start_of(entry.host_pid).unwrap_or(0);
                    self.zombies += 1;
                    let (pid, status) = (process.pid, process.status);
                    events.push(event::Body::Exited(wire::Exited { pid, status, rusage: None }));
                }
                _ => {}
            }
        }
        let there: BTreeSet<i32> = found.iter().map(|f| f.pid).collect();
        let natural = |e: &Entry| e.held_by.is_none() && matches!(e.state, State::Running | State::Ended);
        let gone: Vec<i32> =
            self.entries.iter().filter(|(pid, e)| natural(e) && !there.contains(pid)).map(|(pid, _)| *pid).collect();
        for pid in gone {
            // Nobody saw how it ended.
            if self.entries.remove(&pid).is_some_and(|e| e.state == State::Running) {
                events.push(event::Body::Exited(wire::Exited { pid, status: libc::SIGKILL, rusage: None }));
            }
            events.push(event::Body::Reaped(pid));
        }
        events
    }

    /// True while some have ended that their own parents have yet to reap.
    pub fn has_zombies(&self) -> bool {
        self.zombies > 0
    }

    /// Finds those that were reaped meanwhile.
    pub fn sweep(&mut self) -> Vec<event::Body> {
        let is_zombie = |e: &Entry| e.state == State::Ended && e.held_by.is_none();
        let there = |e: &Entry| start_of(e.host_pid).is_some_and(|start| start == e.started);
        let zombies = self.entries.iter().filter(|(_, e)| is_zombie(e));
        self.zombies = zombies.clone().count();
        let reaped: Vec<i32> = zombies.filter(|(_, e)| !there(e)).map(|(pid, _)| *pid).collect();
        for pid in &reaped {
            self.entries.remove(pid);
        }
        reaped.into_iter().map(event::Body::Reaped).collect()
    }

    /// Looks whether a process has changed its group, session or owner: the kernel tells of none of these.
    pub fn look(&mut self, pid: i32) -> Option<event::Body> {
        let entry = self.entries.get_mut(&pid).filter(|e| e.state == State::Running)?;
        let status = Process::open(Pid::new(entry.host_pid)?).ok()?.status().ok()?;
        let (pgid, sid) = (*status.ns_pgids.last()?, *status.ns_sids.last()?);
        let (uid, gid) = (status.uids.real, status.gids.real);
        let owner_changed = (uid, gid) != (entry.uid, entry.gid);
        if (pgid, sid) == (entry.pgid, entry.sid) && !owner_changed {
            return None;
        }
        (entry.pgid, entry.sid, entry.uid, entry.gid) = (pgid, sid, uid, gid);
        let (uid, gid) = (owner_changed.then_some(uid), owner_changed.then_some(gid));
        Some(event::Body::Groups(wire::Groups { pid, pgid, sid, uid, gid }))
    }

    /// Group, session and owner of one that runs here, as last seen.
    pub fn groups(&self, pid: i32) -> Option<wire::Groups> {
        let entry = self.entries.get(&pid).filter(|e| e.state == State::Running)?;
        let (uid, gid) = (Some(entry.uid), Some(entry.gid));
        Some(wire::Groups { pid, pgid: entry.pgid, sid: entry.sid, uid, gid })
    }

    /// The next few processes after `pid` in the order of pids, from the start again after the last.
    pub fn some_after(&self, pid: i32, most: usize) -> Vec<i32> {
        let mut pids: Vec<i32> = self.entries.keys().copied().filter(|p| *p > pid).collect();
        pids.sort_unstable();
        pids.truncate(most);
        pids
    }

    /// Those that run, and their numbers on this machine.
    pub fn all_running(&self) -> Vec<(i32, Pid)> {
        let running = self.entries.iter().filter(|(_, e)| e.state == State::Running && !e.stand_in);
        running.filter_map(|(pid, e)| Some((*pid, Pid::new(e.host_pid)?))).collect()
    }

    /// What lives here, as a hello tells it.
    pub fn inventory(&self) -> Vec<wire::Process> {
        let told = |e: &Entry| !matches!(e.state, State::Failed | State::Arriving(_)) && !e.stand_in;
        self.entries.iter().filter(|(_, e)| told(e)).map(|(pid, e)| e.to_wire(*pid)).collect()
    }

    /// A record of the kernel.
    pub fn kernel_event(&mut self, event: &Event, is_ghost: impl Fn(i32) -> bool, ghost_exe: FileId) -> Told {
        let pid = event.pid as i32;
        let mut told = Told::default();
        if event.kind == kind::FORK {
            if !self.is_skeleton(pid, is_ghost) {
                self.fork(event, &mut told);
            }
            return told;
        }
        let of_skeleton = event.kind == kind::EXIT && self.is_skeleton(event.ppid as i32, is_ghost);
        let Some(entry) = self.entries.get_mut(&pid) else { return told };
        if let State::Starting(end) | State::Arriving(end) | State::Leaving(end) = &mut entry.state {
            if event.kind == kind::EXIT && !of_skeleton {
                *end = Some((event.arg as i32, Vec::new()));
            }
            if matches!(entry.state, State::Leaving(_)) {
                return told;
            }
        }
        if matches!(event.kind, kind::EXEC | kind::STOP | kind::RENAME) {
            entry.regroup(pid, event, &mut told);
        }
        match event.kind {
            kind::EXEC | kind::RENAME => {
                entry.execed |= event.kind == kind::EXEC;
                entry.rename(pid, event, &mut told);
            }
            kind::EXIT if !of_skeleton && entry.state == State::Running => {
                entry.state = State::Ended;
                entry.started = start_of(entry.host_pid).unwrap_or(0);
                self.zombies += 1;
                let exited = wire::Exited { pid, status: event.arg as i32, rusage: None };
                told.events.push(event::Body::Exited(exited));
            }
            kind::EXIT if of_skeleton => entry.untold_end = Some(event.arg as i32),
            kind::FREE if entry.untold_end.is_some() && entry.state == State::Running => entry.freed = true,
            kind::FREE if entry.state == State::Ended && entry.host_pid == event.host_pid as i32 => {
                self.entries.remove(&pid);
                told.events.push(event::Body::Reaped(pid));
            }
            kind::STOP if Pid::new(event.host_pid as i32).is_some_and(|host| has_stopped(host, ghost_exe)) => {
                told.events.push(event::Body::Stopped(wire::Stopped { pid, signal: event.arg as i32 }));
            }
            kind::CONT => told.events.push(event::Body::Continued(pid)),
            _ => {}
        }
        told
    }

    /// Whether a pid is a skeleton's, not yet or never a program's. `is_ghost`: it has a connection like one, which a
    /// program has too for a moment after its exec.
    fn is_skeleton(&self, pid: i32, is_ghost: impl Fn(i32) -> bool) -> bool {
        let program = |e: &Entry| e.execed || !matches!(e.state, State::Starting(_) | State::Failed);
        !self.entries.get(&pid).is_some_and(program) && is_ghost(pid)
    }

    fn fork(&mut self, event: &Event, told: &mut Told) {
        let (parent, child) = (event.pid as i32, event.arg as i32);
        if self.entries.get(&child).is_some_and(|e| e.host_pid == event.arg2 as i32) {
            // Found by a look at the processes before its record was read.
            return;
        }
        let mut entry = Entry {
            host_pid: event.arg2 as i32,
            ppid: parent,
            pgid: event.pgid as i32,
            sid: event.sid as i32,
            uid: event.uid,
            gid: event.gid,
            comm: comm_of(event),
            ..Entry::default()
        };
        if let Some(p) = self.entries.get_mut(&parent) {
            p.regroup(parent, event, told);
            entry.cmdline.clone_from(&p.cmdline);
        }
        told.events.push(event::Body::Forked(wire::Forked { parent, child: Some(entry.to_wire(child)) }));
        told.forked = Some(child);
        self.entries.insert(child, entry);
    }
}

impl Entry {
    fn regroup(&mut self, pid: i32, event: &Event, told: &mut Told) {
        let (pgid, sid) = (event.pgid as i32, event.sid as i32);
        if pgid > 0 && sid > 0 && (pgid, sid) != (self.pgid, self.sid) {
            (self.pgid, self.sid) = (pgid, sid);
            told.events.push(event::Body::Groups(wire::Groups { pid, pgid, sid, ..Default::default() }));
        }
    }

    fn rename(&mut self, pid: i32, event: &Event, told: &mut Told) {
        let comm = comm_of(event);
        let renamed = comm != self.comm;
        self.comm = comm;
        // A program that changes its title writes over its arguments before, or names itself only. Before its exec they are
        // those of who makes it.
        let its_own = event.kind == kind::EXEC || self.execed || self.state == State::Running;
        let now = Pid::new(event.host_pid as i32).filter(|_| its_own).map(cmdline_of).unwrap_or_default();
        let changed = !now.is_empty() && now != self.cmdline;
        if changed {
            self.cmdline.clone_from(&now);
        }
        if !changed && !renamed {
            return;
        }
        let cmdline = if changed { now } else { Vec::new() };
        told.events.push(event::Body::Execed(wire::Execed { pid, comm: self.comm.clone(), cmdline }));
    }

    fn to_wire(&self, pid: i32) -> wire::Process {
        wire::Process {
            pid,
            ppid: self.ppid,
            pgid: self.pgid,
            sid: self.sid,
            uid: self.uid,
            gid: self.gid,
            comm: self.comm.clone(),
            cmdline: self.cmdline.clone(),
            ..wire::Process::default()
        }
    }
}

pub(super) fn start_of(host_pid: i32) -> Option<u64> {
    Pid::new(host_pid).and_then(|pid| Process::open(pid).ok()).and_then(|p| p.stat().ok()).map(|s| s.starttime)
}

fn joined(words: &[Vec<u8>]) -> Vec<u8> {
    words.iter().flat_map(|w| w.iter().copied().chain([0])).collect()
}

fn comm_of(event: &Event) -> Vec<u8> {
    let (bytes, len) = event.comm();
    bytes[..len].to_vec()
}

fn cmdline_of(host: Pid) -> Vec<u8> {
    Process::open(host).and_then(|p| p.cmdline()).map(|words| joined(&words)).unwrap_or_default()
}

/// The kernel tells a stop at the moment it is taken, a little before it shows; an orphaned group is not stopped at
/// all by the terminal's signals.
fn has_stopped(host: Pid, ghost_exe: FileId) -> bool {
    for _ in 0..200 {
        match look_at(host, None, ghost_exe).map(|f| f.state) {
            Some(b'T') => return true,
            None | Some(b'Z' | b'X') => return false,
            Some(_) => std::thread::sleep(std::time::Duration::from_micros(20)),
        }
    }
    false
}

/// Load, memory of this machine for the master's list.
pub fn gauges() -> wire::Pong {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let load = text("/proc/loadavg").split(' ').next().and_then(|w| w.parse::<f64>().ok()).unwrap_or(0.0);
    let meminfo = text("/proc/meminfo");
    let kib = |key: &str| {
        let line = meminfo.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let total = kib("MemTotal:").unwrap_or(0) << 10;
    let free = kib("MemAvailable:").unwrap_or(0) << 10;
    wire::Pong {
        load_centi: (load * 100.0) as u32,
        mem_total: total,
        mem_used: total.saturating_sub(free),
        ..Default::default()
    }
}
