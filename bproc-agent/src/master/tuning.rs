//! What others change of ghosts that the kernel tells nobody of: renice, chrt, taskset, ionice, prlimit. Some ghosts are
//! looked at each second, in turn, and what was changed of them is done to their processes.

use super::Actor;
use bproc_common::id::Pid;
use bproc_core::master::Action;
use bproc_proto::link::{NewLimit, Policy, Tune};
use bproc_sys::process::{Change, Process, Tuning};
use prost::Message;
use std::collections::{HashMap, VecDeque};

/// Ghosts that are looked at in each second.
const LOOKS_A_SECOND: usize = 20;

/// How ghosts were when they were last looked at.
#[derive(Debug, Default)]
pub struct Tunings {
    seen: HashMap<Pid, Tuning>,
    /// Who is next.
    turns: VecDeque<Pid>,
}

impl Tunings {
    /// A ghost has come. What is changed from now on is seen.
    pub fn came(&mut self, pid: Pid) {
        let Some(now) = look_after(pid) else { return };
        if self.seen.insert(pid, now).is_none() {
            self.turns.push_back(pid);
        }
    }
}

fn look(pid: Pid) -> Option<Tuning> {
    Process::open(pid).and_then(|ghost| ghost.tuning()).ok()
}

/// How it is, with limits that it can live with itself: its process has what others wanted.
fn look_after(pid: Pid) -> Option<Tuning> {
    vmadump::limits::keep_alive(pid.get());
    look(pid)
}

impl Actor {
    /// Looks at those whose turn it is.
    pub(super) fn look_at_tunings(&mut self, out: &mut Vec<Action>) {
        for _ in 0..LOOKS_A_SECOND.min(self.tunings.turns.len()) {
            let Some(pid) = self.tunings.turns.pop_front() else { return };
            // It has ended, or become its process.
            let Some(now) = look(pid).filter(|_| self.ghosts.contains_key(&pid)) else {
                self.tunings.seen.remove(&pid);
                continue;
            };
            self.tunings.turns.push_back(pid);
            let Some(seen) = self.tunings.seen.get_mut(&pid) else { continue };
            let told = now.since(seen).is_none_or(|change| {
                tracing::debug!(%pid, ?change, "a ghost is changed");
                self.core.tune(pid, wire(pid, change).encode_to_vec(), out)
            });
            if told {
                *seen = look_after(pid).unwrap_or(now);
            }
        }
    }
}

fn wire(pid: Pid, change: Change) -> Tune {
    let limits = change.limits.iter();
    Tune {
        pid: pid.get(),
        nice: change.nice,
        policy: change.policy.map(|(policy, priority)| Policy { policy, priority }),
        processors: change.processors,
        io_priority: change.io_priority,
        limits: limits.map(|(resource, l)| NewLimit { resource: *resource, soft: l.soft, hard: l.hard }).collect(),
    }
}
