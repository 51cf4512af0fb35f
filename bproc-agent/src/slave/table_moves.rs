//! What moves do to the table: processes come without a spawn, and go without an end.

use super::space::Found;
use super::table::{Entry, State, Table, start_of};
use bproc_common::id::Pid;
use bproc_proto::SpawnSpec;
use bproc_proto::link::{self as wire, event};
use bproc_sys::process::Process;

/// What was in the place of a process that is elsewhere.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// Who holds its zombie.
    pub held_by: Option<i32>,
    /// Wait status, if it has ended.
    pub ended: Option<i32>,
}

impl Table {
    /// Pid here of a process that runs.
    pub fn running(&self, pid: i32) -> Option<i32> {
        self.entries.get(&pid).filter(|e| e.state == State::Running && e.host_pid > 0).map(|e| e.host_pid)
    }

    /// Is all that its children did known? They were forked here; one that is gone or a zombie has its record on the
    /// way.
    pub fn knows_ends_of_children(&self, pid: i32) -> bool {
        let lives = |e: &Entry| {
            let stat = Pid::new(e.host_pid).and_then(|p| Process::open(p).ok()).and_then(|p| p.stat().ok());
            stat.is_some_and(|s| !matches!(s.state, b'Z' | b'X'))
        };
        let natural = |e: &&Entry| e.ppid == pid && e.state == State::Running && e.held_by.is_none() && e.host_pid > 0;
        self.entries.values().filter(natural).all(lives)
    }

    /// A process that runs here in person. One that arrives may have done something before its mover has told of it.
    pub fn runs(&self, pid: i32) -> bool {
        let here = |state: &State| matches!(state, State::Running | State::Leaving(_) | State::Arriving(_));
        self.entries.get(&pid).is_some_and(|e| here(&e.state))
    }

    /// It is built and about to run.
    pub fn arrive(&mut self, spec: &SpawnSpec, host_pid: i32) {
        let entry = Entry {
            host_pid,
            ppid: spec.ppid,
            pgid: spec.pgid,
            sid: spec.sid,
            uid: spec.credentials.as_ref().map_or(0, |c| c.ruid),
            gid: spec.credentials.as_ref().map_or(0, |c| c.rgid),
            token: spec.stdio_token.clone(),
            state: State::Arriving(None),
            ..Entry::default()
        };
        self.entries.insert(spec.pid, entry);
    }

    /// Is it?
    pub fn is_arriving(&self, pid: i32) -> bool {
        self.entries.get(&pid).is_some_and(|e| matches!(e.state, State::Arriving(_)))
    }

    /// A process has come: the zombies that its stand-in held are its own, and that it reaps them is to be told.
    pub fn hand_over_zombies(&mut self, parent: i32) {
        let held = |e: &&mut Entry| e.held_by == Some(parent) && e.state == State::Ended && !e.stand_in;
        for entry in self.entries.values_mut().filter(held) {
            entry.held_by = None;
            entry.started = start_of(entry.host_pid).unwrap_or(0);
            self.zombies += 1;
        }
    }

    /// It stands still and may go any moment: nothing that happens to it is told.
    pub fn leave(&mut self, pid: i32) {
        if let Some(entry) = self.entries.get_mut(&pid).filter(|e| e.state == State::Running) {
            entry.state = State::Leaving(None);
        }
    }

    /// It runs here: it has arrived, or stays. If it has ended since, that is to be told now: wait status and usage.
    pub fn goes_on(&mut self, pid: i32) -> Option<(i32, Vec<u8>)> {
        let entry = self.entries.get_mut(&pid)?;
        let (State::Arriving(end) | State::Leaving(end)) = &mut entry.state else { return None };
        let end = end.take();
        entry.state = if end.is_some() { State::Ended } else { State::Running };
        if end.is_some() && entry.held_by.is_none() {
            entry.started = start_of(entry.host_pid).unwrap_or(0);
            self.zombies += 1;
        }
        end
    }

    /// It has come. Children that ended while its stand-in became its body were told by nobody: what the master is told of them.
    pub fn untold_ends(&mut self, parent: i32) -> Vec<event::Body> {
        let untold = |e: &Entry| e.ppid == parent && e.state == State::Running && e.held_by.is_none();
        let mut events = Vec::new();
        let mut reaped = Vec::new();
        for (pid, entry) in self.entries.iter_mut().filter(|(_, e)| untold(e)) {
            let Some(status) = entry.untold_end else { continue };
            events.push(event::Body::Exited(wire::Exited { pid: *pid, status, rusage: None }));
            entry.state = State::Ended;
            if entry.freed {
                reaped.push(*pid);
            } else {
                entry.started = start_of(entry.host_pid).unwrap_or(0);
                self.zombies += 1;
            }
        }
        for pid in reaped {
            self.entries.remove(&pid);
            events.push(event::Body::Reaped(pid));
        }
        events
    }

    /// It does not run here: it has gone, or did not come. What became of what was in its place.
    pub fn is_elsewhere(&mut self, pid: i32) -> Elsewhere {
        let between = |e: &Entry| matches!(e.state, State::Arriving(_) | State::Leaving(_));
        if !self.entries.get(&pid).is_some_and(between) {
            return Elsewhere::default();
        }
        match self.entries.remove(&pid) {
            Some(Entry { state: State::Arriving(Some(end)) | State::Leaving(Some(end)), held_by, .. }) => {
                Elsewhere { held_by, ended: Some(end.0) }
            }
            _ => Elsewhere::default(),
        }
    }

    /// A skeleton is about to end the way its process did, and its parent here will wait for it: that is to be told.
    pub fn await_reaping(&mut self, pid: i32, found: &Found) {
        let entry = Entry {
            host_pid: found.host_pid,
            ppid: found.ppid,
            state: State::Ended,
            started: start_of(found.host_pid).unwrap_or(0),
            stand_in: true,
            ..Entry::default()
        };
        self.entries.insert(pid, entry);
        self.zombies += 1;
    }
}
