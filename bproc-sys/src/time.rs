//! Clocks.

use crate::pod::Zeroable;

fn read(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec::zeroed();
    // SAFETY: `t` lives through the call. It cannot fail: the clocks below exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    (t.tv_sec as u64) * 1_000_000_000 + t.tv_nsec as u64
}

/// CLOCK_MONOTONIC in nanoseconds. Stands still while the machine sleeps.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME in nanoseconds: the clock that process start times are told in.
pub fn boottime_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}
