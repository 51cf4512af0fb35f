//! Handles of processes that are known by number: a number may have come to mean another process, so each is opened
//! first and looked at then, and signals go through the handle.

use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::{FileId, Process};

/// The ghost with this number: a process that `keeper` holds, or that runs the ghost's program. `None` when there is
/// none, or another process has the number.
pub fn ghost(pid: Pid, keeper: i32, exe: FileId) -> Option<PidFd> {
    let handle = PidFd::open(pid).ok()?;
    let process = Process::open(pid).ok()?;
    let held = || process.status().is_ok_and(|s| s.tracer == keeper);
    // Asked by number again: it counts only if the handle's process was there all the time.
    let ours = process.exe().is_ok_and(|now| now == exe) || held();
    (ours && !handle.has_exited().unwrap_or(true)).then_some(handle)
}

/// The process of a space with these numbers, on this machine and in its space.
pub fn member(host: i32, pid: i32) -> Option<PidFd> {
    let host = Pid::new(host)?;
    let handle = PidFd::open(host).ok()?;
    let status = Process::open(host).ok()?.status().ok()?;
    let same = status.ns_pids.len() > 1 && status.ns_pids.last() == Some(&pid);
    (same && !handle.has_exited().unwrap_or(true)).then_some(handle)
}
