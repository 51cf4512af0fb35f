//! What a process hands on to its children beside rights and limits: processors, scheduling, and the like.

use super::Process;
use crate::error::{Error, Result, check_long};
use std::ffi::CStr;
use std::str::FromStr;

/// Bytes for a set of processors: as many as any kernel knows.
const SET: usize = 1024;
/// Class of a priority of input and output: the bits from here on. Class 0 is none.
pub(super) const CLASS_SHIFT: u32 = 13;

/// What fork and exec hand on. [`Process::settings`] reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Processors that it may run on, bit by number; empty: all that process 1 may run on.
    pub processors: Vec<u8>,
    /// Scheduling policy, SCHED_RESET_ON_FORK included.
    pub policy: u32,
    /// Real-time priority, 0 for other policies.
    pub priority: u32,
    /// Class and data of ioprio_get(2); 0: none of its own.
    pub io_priority: u32,
    /// personality(2), if it may be read.
    pub personality: Option<u32>,
    /// What a core dump has: bits of `/proc/PID/coredump_filter`, if it may be read.
    pub core_filter: Option<u32>,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Timer slack in nanoseconds; 0 where there is none or it may not be read.
    pub timer_slack_ns: u64,
}

impl Process {
    /// What it hands on to its children. One that is in the middle of a change may be told half before, half after it.
    ///
    /// # Errors
    /// ESRCH when it is gone, EBADMSG when a text is not what is known.
    pub fn settings(&self) -> Result<Settings> {
        let pid = self.pid.get();
        let all = processors(1).or_else(|_| processors(0))?;
        let own = processors(pid)?;
        let mut priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: numbers, and a record that outlives the call.
        let (policy, got, io) = unsafe {
            (
                libc::syscall(libc::SYS_sched_getscheduler, pid),
                libc::syscall(libc::SYS_sched_getparam, pid, &raw mut priority),
                libc::syscall(libc::SYS_ioprio_get, 1, pid),
            )
        };
        let policy = check_long("sched_getscheduler", policy).map_err(|e| e.pid(self.pid))? as u32;
        check_long("sched_getparam", got).map_err(|e| e.pid(self.pid))?;
        let io = check_long("ioprio_get", io).map_err(|e| e.pid(self.pid))? as u32;
        // One that may not be read is the kernel's default, as far as anybody can tell.
        let hex = |name| self.text(name).ok().and_then(|text| u32::from_str_radix(&text, 16).ok());
        Ok(Settings {
            processors: if own == all { Vec::new() } else { own },
            policy,
            priority: priority.sched_priority as u32,
            io_priority: if io >> CLASS_SHIFT == 0 { 0 } else { io },
            personality: hex(c"personality"),
            core_filter: hex(c"coredump_filter"),
            timer_slack_ns: self.number(c"timerslack_ns").unwrap_or(0),
            // Last: what was asked by number before was of this process, for it is still there.
            oom_score_adj: self.number(c"oom_score_adj")?,
        })
    }

    fn text(&self, name: &CStr) -> Result<String> {
        let bytes = self.read(name)?;
        Ok(String::from_utf8_lossy(bytes.trim_ascii()).into_owned())
    }

    fn number<T: FromStr>(&self, name: &CStr) -> Result<T> {
        let malformed = |_| Error::new("read of a number in /proc", libc::EBADMSG).pid(self.pid);
        self.text(name)?.parse().map_err(malformed)
    }
}

/// Processors that a process, 0: the caller, may run on, without zeros at the end.
pub(super) fn processors(pid: i32) -> Result<Vec<u8>> {
    let mut set = [0u8; SET];
    // SAFETY: the set outlives the call, which is told its length.
    let len = unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, set.len(), set.as_mut_ptr()) };
    let len = check_long("sched_getaffinity", len)? as usize;
    let used = set.iter().take(len).rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Ok(set[..used].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bproc_common::id::Pid;
    use std::process::{Command, Stdio};

    #[test]
    fn tells_what_a_child_inherits() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0x7 >/proc/self/coredump_filter; echo 77 >/proc/self/oom_score_adj; echo; read end"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let pid = Pid::new(child.id() as i32).expect("a pid");
        // SAFETY: takes numbers, and a record that outlives the call.
        let set = unsafe {
            let none = libc::sched_param { sched_priority: 0 };
            libc::syscall(libc::SYS_ioprio_set, 1, pid.get(), 2 << CLASS_SHIFT | 6)
                | libc::syscall(libc::SYS_sched_setscheduler, pid.get(), libc::SCHED_BATCH, &raw const none)
                | libc::syscall(libc::SYS_sched_setaffinity, pid.get(), 1, [1u8].as_ptr())
        };
        // The shell has done its part when it has written a line.
        std::io::Read::read(child.stdout.as_mut().expect("its output"), &mut [0; 1]).expect("a line");
        let settings = Process::open(pid).expect("a process").settings();
        drop(child.stdin.take());
        child.wait().expect("its end");
        let settings = settings.expect("its settings");
        assert_eq!(set, 0);
        assert_eq!((settings.policy, settings.priority), (libc::SCHED_BATCH as u32, 0));
        assert_eq!((settings.io_priority, settings.oom_score_adj), (2 << CLASS_SHIFT | 6, 77));
        assert_eq!(settings.core_filter, Some(7));
        let all = processors(1).or_else(|_| processors(0)).expect("processors");
        assert_eq!(settings.processors, if all == [1] { vec![] } else { vec![1] });
    }
}
