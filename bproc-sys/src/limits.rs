//! Limits of the calling process, and its rank when memory runs out.

use bproc_common::id::Pid;

use crate::error::{Error, Result, check};
use crate::pod::Zeroable;

/// A resource that agents want much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Open descriptors.
    OpenFiles,
    /// Processes of the user.
    Processes,
    /// Queued signals of the user.
    PendingSignals,
    /// Locked memory.
    LockedMemory,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
            Resource::Processes => libc::RLIMIT_NPROC,
            Resource::PendingSignals => libc::RLIMIT_SIGPENDING,
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        }
    }

    /// What to ask for when the hard limit may be raised.
    fn most(self) -> u64 {
        match self {
            Resource::OpenFiles => std::fs::read_to_string("/proc/sys/fs/nr_open")
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .unwrap_or(1 << 20),
            _ => libc::RLIM_INFINITY,
        }
    }
}

/// Raises both limits as far as the kernel lets the caller; returns the soft limit then in force (`u64::MAX` is
/// infinity). Without CAP_SYS_RESOURCE that is the hard limit as it was.
///
/// # Errors
/// What getrlimit(2) says.
pub fn raise(resource: Resource) -> Result<u64> {
    let mut now = libc::rlimit::zeroed();
    // SAFETY: `now` lives through the call.
    check("getrlimit", unsafe { libc::getrlimit(resource.number(), &raw mut now) })?;
    let most = resource.most().max(now.rlim_max);
    for wanted in [most, now.rlim_max] {
        let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted.max(now.rlim_max) };
        // SAFETY: `limit` lives through the call.
        if unsafe { libc::setrlimit(resource.number(), &raw const limit) } == 0 {
            return Ok(wanted);
        }
    }
    Ok(now.rlim_cur)
}

/// Raises the soft limit to the hard one, which is left alone: whoever is started from here may not have more than before.
/// Returns the limit then in force.
///
/// # Errors
/// What getrlimit(2) and setrlimit(2) say.
pub fn raise_soft(resource: Resource) -> Result<u64> {
    let mut now = libc::rlimit::zeroed();
    // SAFETY: `now` lives through the call.
    check("getrlimit", unsafe { libc::getrlimit(resource.number(), &raw mut now) })?;
    now.rlim_cur = now.rlim_max;
    // SAFETY: `now` lives through the call.
    check("setrlimit", unsafe { libc::setrlimit(resource.number(), &raw const now) })?;
    Ok(now.rlim_cur)
}

/// Writes `oom_score_adj` (-1000: never chosen, 1000: first) of a process, or of the caller.
///
/// # Errors
/// EACCES when lowering it without CAP_SYS_RESOURCE, EINVAL out of range, ENOENT when the process is gone.
pub fn set_oom_score_adj(pid: Option<Pid>, score: i16) -> Result<()> {
    let path = match pid {
        Some(pid) => format!("/proc/{pid}/oom_score_adj"),
        None => "/proc/self/oom_score_adj".to_owned(),
    };
    std::fs::write(&path, score.to_string()).map_err(|e| {
        let error = Error::io("write of oom_score_adj", &e);
        match pid {
            Some(pid) => error.pid(pid),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> libc::rlimit {
        let mut now = libc::rlimit::zeroed();
        // SAFETY: `now` lives through the call.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) };
        now
    }

    #[test]
    fn soft_limit_reaches_the_hard_one() {
        let before = now();
        let low = libc::rlimit { rlim_cur: before.rlim_cur.min(256), ..before };
        // SAFETY: `low` lives through the call.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low) };
        let soft = raise_soft(Resource::OpenFiles).unwrap();
        assert_eq!((now().rlim_cur, now().rlim_max), (soft, before.rlim_max));
        assert_eq!(soft, before.rlim_max);
        let soft = raise(Resource::OpenFiles).unwrap();
        assert_eq!((now().rlim_cur, now().rlim_max), (soft, soft));
    }
}
