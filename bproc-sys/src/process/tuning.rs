//! What others may change of a process while it runs, and no event tells of: renice(1), chrt(1), taskset(1), ionice(1), prlimit(1).

use super::settings::{CLASS_SHIFT, processors};
use super::{LIMITS, Limit, Process};
use crate::error::{Result, check_long};
use bproc_common::id::Pid;

/// All that [`Process::tuning`] reads and [`Tuning::change`] sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// -20 to 19.
    pub nice: i32,
    /// Scheduling policy with SCHED_RESET_ON_FORK, and real-time priority.
    pub policy: (u32, u32),
    /// Processors that it may run on, bit by number.
    pub processors: Vec<u8>,
    /// Class and data of ioprio_get(2); 0: none of its own.
    pub io_priority: u32,
    /// By their numbers in setrlimit(2).
    pub limits: [Limit; LIMITS],
}

/// What of a [`Tuning`] has become another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// See [`Tuning::nice`], and so on.
    pub nice: Option<i32>,
    /// Policy and priority.
    pub policy: Option<(u32, u32)>,
    /// Processors.
    pub processors: Option<Vec<u8>>,
    /// Of input and output.
    pub io_priority: Option<u32>,
    /// By their numbers.
    pub limits: Vec<(u32, Limit)>,
}

impl Process {
    /// How it is scheduled and limited.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub fn tuning(&self) -> Result<Tuning> {
        let pid = self.pid.get();
        let mut priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: numbers, and a record that outlives the call.
        let (nice, policy, got, io) = unsafe {
            (
                libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, pid),
                libc::syscall(libc::SYS_sched_getscheduler, pid),
                libc::syscall(libc::SYS_sched_getparam, pid, &raw mut priority),
                libc::syscall(libc::SYS_ioprio_get, 1, pid),
            )
        };
        let mut limits = [Limit::default(); LIMITS];
        for (resource, limit) in limits.iter_mut().enumerate() {
            *limit = limit_of(self.pid, resource as u32, None)?;
        }
        check_long("sched_getparam", got).map_err(|e| e.pid(self.pid))?;
        let io = check_long("ioprio_get", io).map_err(|e| e.pid(self.pid))? as u32;
        Ok(Tuning {
            // The kernel counts from 40 down to 1.
            nice: 20 - check_long("getpriority", nice).map_err(|e| e.pid(self.pid))? as i32,
            policy: (
                check_long("sched_getscheduler", policy).map_err(|e| e.pid(self.pid))? as u32,
                priority.sched_priority as u32,
            ),
            processors: processors(pid)?,
            io_priority: if io >> CLASS_SHIFT == 0 { 0 } else { io },
            limits,
        })
    }
}

impl Tuning {
    /// What is to be changed to come from `before` to this; none if nothing.
    pub fn since(&self, before: &Tuning) -> Option<Change> {
        let limits = (0..).zip(self.limits).zip(before.limits).filter(|((_, now), then)| now != then);
        let change = Change {
            nice: (self.nice != before.nice).then_some(self.nice),
            policy: (self.policy != before.policy).then_some(self.policy),
            processors: (self.processors != before.processors).then(|| self.processors.clone()),
            io_priority: (self.io_priority != before.io_priority).then_some(self.io_priority),
            limits: limits.map(|(now, _)| now).collect(),
        };
        (change != Change::default()).then_some(change)
    }
}

impl Change {
    /// Does the same to another process. What the kernel refuses, or has not, is left, and the rest is done.
    ///
    /// # Errors
    /// The first thing that was refused.
    pub fn apply(&self, to: Pid) -> Result<()> {
        let pid = to.get();
        let mut all = Vec::new();
        // SAFETY: numbers, and records that outlive the calls, which are told their lengths.
        unsafe {
            if let Some((policy, priority)) = self.policy {
                let priority = libc::sched_param { sched_priority: priority as i32 };
                let done = libc::syscall(libc::SYS_sched_setscheduler, pid, policy, &raw const priority);
                all.push(check_long("sched_setscheduler", done).map(drop));
            }
            if let Some(nice) = self.nice {
                let done = libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, pid, nice);
                all.push(check_long("setpriority", done).map(drop));
            }
            if let Some(set) = &self.processors {
                let done = libc::syscall(libc::SYS_sched_setaffinity, pid, set.len(), set.as_ptr());
                all.push(check_long("sched_setaffinity", done).map(drop));
            }
            if let Some(priority) = self.io_priority {
                let done = libc::syscall(libc::SYS_ioprio_set, 1, pid, priority);
                all.push(check_long("ioprio_set", done).map(drop));
            }
        }
        all.extend(self.limits.iter().map(|(resource, limit)| limit_of(to, *resource, Some(*limit)).map(drop)));
        all.into_iter().collect::<Result<()>>().map_err(|e| e.pid(to))
    }
}

/// A limit as it was; sets it if there is a new one.
pub(crate) fn limit_of(pid: Pid, resource: u32, new: Option<Limit>) -> Result<Limit> {
    let new = new.map(|limit| [limit.soft, limit.hard]);
    let mut old = [0u64; 2];
    let at = new.as_ref().map_or(std::ptr::null(), |new| new.as_ptr());
    // SAFETY: struct rlimit64 is two numbers; null or one that outlives the call, and room for one.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, pid.get(), resource, at, old.as_mut_ptr()) };
    check_long("prlimit", done).map_err(|e| e.pid(pid))?;
    Ok(Limit { soft: old[0], hard: old[1] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn what_was_done_to_one_is_done_to_another() {
        let mut cats = [0, 1].map(|_| Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process"));
        let [one, other] = cats.each_ref().map(|cat| Pid::new(cat.id() as i32).expect("a pid"));
        let look = |pid| Process::open(pid).and_then(|process| process.tuning());
        let looked = look(one).and_then(|before| {
            let limits = vec![(7, Limit { soft: 99, hard: 100 })];
            let change = Change {
                nice: Some(7),
                policy: Some((3, 0)),
                io_priority: Some(2 << 13 | 6),
                limits,
                ..Change::default()
            };
            change.apply(one)?;
            let told = look(one)?.since(&before);
            told.iter().try_for_each(|told| told.apply(other))?;
            Ok((told, change, look(one)?.since(&look(other)?), look(other)?.nice))
        });
        for cat in &mut cats {
            drop(cat.stdin.take());
            cat.wait().expect("its end");
        }
        let (told, change, left, nice) = looked.expect("both live");
        assert_eq!((told, left, nice), (Some(change), None, 7));
    }
}
