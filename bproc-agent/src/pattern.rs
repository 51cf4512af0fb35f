//! Processes whose image many get, and which a mover holds still: what master and nodes look at alike.

use crate::mover::Said;
use bproc_common::id::Pid;
use bproc_mover::wire::Report;
use bproc_proto::Failure;
use bproc_sys::process::Process;
use std::os::unix::fs::MetadataExt;

/// May a user have such a process held, by its number and its parent's, as the caller sees them? What the kernel hides from
/// its own user is root's in /proc; its memory is not for him to send to others of his.
pub fn may_hold(pid: i32, parent: i32, uid: u32) -> Result<(), Failure> {
    let stat = Pid::new(pid).and_then(|pid| Process::open(pid).ok()?.stat().ok());
    let owner = std::fs::metadata(format!("/proc/{pid}")).map(|m| m.uid());
    if stat.is_some_and(|stat| stat.ppid == parent) && owner.is_ok_and(|owner| uid == 0 || owner == uid) {
        return Ok(());
    }
    Err(Failure { number: libc::EPERM, message: "the process is no child of yours, or not for you to read".into() })
}

/// What a mover that is to hold one says of that.
pub fn held(said: Said) -> Option<Result<(), Failure>> {
    let (number, message) = match said {
        Said::Report(Report::Held(_)) => return Some(Ok(())),
        Said::Report(Report::Done(done)) => (done.number, done.message),
        Said::Lost => (libc::ECANCELED, "the mover was killed".into()),
        _ => return None,
    };
    Some(Err(Failure { number, message }))
}
