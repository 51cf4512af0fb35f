//! When to look at which process: the kernel tells of no setpgid, setsid or setuid, so a process is looked at shortly
//! after it was forked or started, once more a little later, and then now and then.

use super::{Actor, space};
use bproc_common::id::Pid;
use bproc_proto::link::{Groups, event};
use bproc_sys::process::Process;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses after the birth of a process: a shell sets the groups of its children at once, daemons soon.
const PAUSES: [Duration; 3] = [Duration::from_millis(2), Duration::from_millis(30), Duration::from_millis(300)];

/// Processes that are looked at again in each second, in turn.
const LOOKS_A_SECOND: usize = 20;

/// Looks that are due. Each pause has a queue of its own, so that these stay in order of time.
#[derive(Debug, Default)]
pub struct Looks {
    due: [VecDeque<(Instant, i32)>; PAUSES.len()],
}

impl Looks {
    /// A process was born.
    pub fn born(&mut self, pid: i32) {
        let now = Instant::now();
        for (queue, pause) in self.due.iter_mut().zip(PAUSES) {
            queue.push_back((now + pause, pid));
        }
    }

    /// When the next look is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.iter().filter_map(|q| q.front()).map(|(at, _)| *at).min()
    }

    /// Who is to be looked at now.
    pub fn take(&mut self) -> Vec<i32> {
        let now = Instant::now();
        let mut pids = Vec::new();
        for queue in &mut self.due {
            while let Some((_, pid)) = queue.pop_front_if(|(at, _)| *at <= now) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Actor {
    pub(super) async fn look_around(&mut self) {
        self.end_dead_leaders();
        let some = self.table.some_after(self.looked_at, LOOKS_A_SECOND);
        self.looked_at = some.last().copied().unwrap_or(0);
        self.look_at(some);
        let dropped = self.kernel.dropped();
        if dropped != self.dropped {
            tracing::warn!(lost = dropped - self.dropped, "records of the kernel were lost; looking at the processes");
            self.dropped = dropped;
            self.reconcile();
        }
        if self.to_master.is_none() {
            self.look_at_clock().await;
            self.renew_lease();
        }
    }

    /// Tells what has changed.
    pub(super) fn look_at(&mut self, pids: impl IntoIterator<Item = i32>) {
        for pid in pids {
            if let Some(body) = self.table.look(pid) {
                self.tell_of_process(body);
            }
        }
    }

    /// Tells what became of a process. Whose group it joined has made it: that is told before.
    pub(super) fn tell_of_process(&mut self, body: event::Body) {
        if let event::Body::Groups(groups) = &body
            && groups.pgid != groups.pid
            && let Some(made) = self.table.look(groups.pgid)
        {
            self.tell(made);
        }
        self.tell(body);
    }

    /// Looks at one that is to move, who leads its group, and its children. What they are, those of them that are processes.
    pub(super) fn look_before_move(&mut self, pid: i32) -> Vec<Groups> {
        let Some(host) = self.table.running(pid).and_then(Pid::new) else { return Vec::new() };
        let look = |host: Pid| space::look_at(host, None, self.ghost_exe);
        let (Some(found), Ok(process)) = (look(host), Process::open(host)) else { return Vec::new() };
        let children = process.children().unwrap_or_default().into_iter().filter_map(look);
        let pids: Vec<i32> = [found.pgid, pid].into_iter().chain(children.map(|child| child.pid)).collect();
        self.look_at(pids.iter().copied());
        pids.into_iter().filter_map(|pid| self.table.groups(pid)).collect()
    }

    /// The nearest process of the space that runs here, above one on this machine, and gets orphans.
    pub(super) fn subreaper_above(&self, host: i32) -> Option<i32> {
        let found = self.kernel.kin(self.ghost_exe).subreaper(Pid::new(host)?)?;
        self.table.running(found).map(|_| found)
    }

    pub(super) fn reconcile(&mut self) {
        match space::inventory(self.space.record.pid_ns, self.ghost_exe) {
            Ok(found) => {
                let ghosts = found.iter().filter(|f| f.ghost).map(|f| f.pid).collect();
                for body in self.table.reconcile(&found, &ghosts) {
                    self.tell(body);
                }
            }
            Err(error) => tracing::error!(error = %format!("{error:#}"), "looking at the processes"),
        }
    }
}
