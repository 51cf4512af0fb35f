//! Calls that a program missed. Since Linux 7.0 a program at a tracepoint may be preempted; what happens at the same place
//! on this processor until it goes on, the kernel does not show it, but counts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};

use crate::error::chain;
use crate::sys;

/// The program behind a pinned link. Without it its misses are not known.
pub(crate) fn program_of(link: &Path) -> Option<OwnedFd> {
    let program = PinnedLink::from_pin(link).map(FdLink::from).and_then(|link| link.info());
    let id = program.map_err(|error| tracing::debug!(error = chain(&error), "an eBPF program")).ok()?.program_id();
    sys::program(id).map_err(|error| tracing::debug!(%error, id, "an eBPF program")).ok()
}

/// How many calls these programs have missed since they were loaded.
pub(crate) fn count(programs: &[OwnedFd]) -> u64 {
    let of = |program: &OwnedFd| {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
        text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse::<u64>().ok()
    };
    programs.iter().filter_map(of).sum()
}
