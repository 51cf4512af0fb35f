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

/// [`lives`], and as something else than a stand-in.
pub fn runs(handle: &PidFd, host: i32, stand_in: FileId) -> bool {
    let exe = Pid::new(host).and_then(|pid| Process::open(pid).ok()).and_then(|process| process.exe().ok());
    exe.is_some_and(|exe| exe != stand_in) && lives(handle, host)
}

/// Does the process live on, neither dead nor about to be? What the kernel kills because its tracer was, is marked so at the
/// tracer's end.
pub fn lives(handle: &PidFd, host: i32) -> bool {
    /// PF_EXITING, PF_SIGNALED.
    const DYING: u64 = 0x4 | 0x400;
    let kill = 1 << (libc::SIGKILL - 1);
    let status = Pid::new(host).and_then(|pid| Process::open(pid).ok()).and_then(|process| process.status().ok());
    // In this order: the mark goes when the end begins.
    if status.is_none_or(|status| (status.sig_pending | status.sig_shared_pending) & kill != 0) {
        return false;
    }
    let dying = |stat: String| {
        let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
        flags.is_none_or(|flags| flags & DYING != 0)
    };
    !std::fs::read_to_string(format!("/proc/{host}/stat")).map_or(true, dying) && !handle.has_exited().unwrap_or(true)
}
