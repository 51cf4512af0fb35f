//! What a former agent was in the middle of. It may have been killed at any point of a start: the skeleton that was to
//! become the program has the order to, or has not, has become it, or has failed and ended. The master decides such a
//! start by what runs here, and lets it be tried again if nothing does. So nothing is said to it before it is known of each
//! skeleton that was found: it connects (then no order is left unread in its former connection), is a program, or is gone.
//! And skeletons that were made for a start, which nobody needs without it, are ended: they may be half made.

use super::space::{Found, inventory, look_at};
use super::{Actor, Fact};
use crate::checked;
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_proto::link as wire;
use bproc_sys::process::Process;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::oneshot;

/// The skeletons of whom no process here is child, parent, or in a group or session; their pids here.
fn idle(found: &[Found]) -> HashMap<i32, i32> {
    let skeletons: HashMap<i32, &Found> =
        found.iter().filter(|f| f.ghost && !f.is_over() && f.pid > 1).map(|f| (f.pid, f)).collect();
    let mut needed = BTreeSet::new();
    let mut named: Vec<i32> = found.iter().filter(|f| !f.ghost).flat_map(|f| [f.ppid, f.pgid, f.sid]).collect();
    let natives: BTreeSet<i32> = found.iter().filter(|f| !f.ghost).map(|f| f.pid).collect();
    named.extend(skeletons.values().filter(|s| natives.contains(&s.ppid)).map(|s| s.pid));
    while let Some(pid) = named.pop() {
        if let Some(skeleton) = skeletons.get(&pid)
            && needed.insert(pid)
        {
            named.extend([skeleton.ppid, skeleton.pgid, skeleton.sid]);
        }
    }
    skeletons.iter().filter(|(pid, _)| !needed.contains(pid)).map(|(pid, f)| (*pid, f.host_pid)).collect()
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Whoever has not connected by then is asked to: it may have been stopped.
const WAKE_AFTER: Duration = Duration::from_secs(1);
/// Whoever has not by then, and has no children, is killed: what it would do later must not be done.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// Whoever has not by then is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(4);

impl Actor {
    /// Whether it is known of each skeleton of a former agent's time what has become of it.
    pub(super) fn all_decided(&mut self) -> bool {
        let waited = self.began.elapsed();
        for (pid, host) in std::mem::take(&mut self.former) {
            if self.family.get(pid).is_some() {
                continue;
            }
            let ns = Some(self.space.record.pid_ns);
            let found = Pid::new(host).and_then(|host| look_at(host, ns, self.ghost_exe)).filter(|f| f.pid == pid);
            match found {
                Some(found) if found.ghost && !found.is_over() => {
                    if waited < GIVE_UP_AFTER {
                        self.hurry(pid, host, waited);
                        self.former.insert(pid, host);
                        continue;
                    }
                    tracing::warn!(pid, "a skeleton of a former agent's time does not connect; going on without it");
                }
                Some(found) if !found.ghost && !self.table.is_here(pid) => {
                    let of_skeleton = !self.table.is_here(found.ppid);
                    for event in self.table.adopt(&found, of_skeleton) {
                        self.tell(event);
                    }
                }
                _ => {}
            }
            self.family.await_no_longer(pid);
        }
        self.family.is_complete() && self.all_dismissed()
    }

    /// Whether those are gone whom nobody needs.
    fn all_dismissed(&mut self) -> bool {
        let ns = Some(self.space.record.pid_ns);
        let Some(dismissed) = &mut self.dismissed else {
            let found = inventory(self.space.record.pid_ns, self.ghost_exe).unwrap_or_default();
            let idle = idle(&found);
            for member in idle.keys().filter_map(|pid| self.family.get(*pid)) {
                member.ghost.tell(op::EXIT, 0, 0, vec![]);
            }
            self.dismissed = Some(idle);
            return false;
        };
        dismissed.retain(|pid, host| {
            let there = Pid::new(*host).and_then(|host| look_at(host, ns, self.ghost_exe));
            there.is_some_and(|found| found.pid == *pid)
        });
        dismissed.is_empty() || self.began.elapsed() >= GIVE_UP_AFTER
    }

    fn hurry(&self, pid: i32, host: i32, waited: Duration) {
        let childless = || {
            let process = Pid::new(host).and_then(|host| Process::open(host).ok());
            process.and_then(|p| p.children().ok()).is_some_and(|children| children.is_empty())
        };
        let Some(handle) = (waited >= WAKE_AFTER).then(|| checked::member(host, pid)).flatten() else { return };
        // One that has gone meanwhile is seen to have the next time.
        if waited >= KILL_AFTER && pid > 1 && childless() {
            let _ = handle.send_signal(libc::SIGKILL);
        } else {
            let _ = handle.sigqueue(libc::SIGCONT, crate::ghosts::WAKE);
        }
    }

    /// Asks again in a moment.
    pub(super) fn hello_later(&self, answer: oneshot::Sender<wire::Hello>) {
        let facts = self.facts.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            facts.send(Fact::Hello(answer)).await.ok();
        });
    }
}
