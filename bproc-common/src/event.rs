//! Records that the eBPF programs emit, and what user space tells them at load.

use crate::record;

record! {
    /// One thing that happened, as the ring buffer carries it.
    pub struct Event : 112 {
        /// An [`kind`] number.
        pub kind: u32,
        /// Inode number of the pid namespace that the process lives in (`ns.inum`).
        pub pidns: u32,
        /// Monotonic clock, nanoseconds (`bpf_ktime_get_ns`).
        pub time_ns: u64,
        /// The process (thread group id) in its own namespace.
        pub pid: u32,
        /// Its parent in its own namespace (0 when the parent is outside).
        pub ppid: u32,
        /// Its process group there.
        pub pgid: u32,
        /// Its session there.
        pub sid: u32,
        /// The process in the initial pid namespace.
        pub host_pid: u32,
        /// Effective uid.
        pub uid: u32,
        /// Effective gid.
        pub gid: u32,
        /// FORK: child in its own namespace. EXIT: wait status. STOP, CONT, SIGNAL: signal number.
        pub arg: u32,
        /// FORK: child in the initial namespace. SIGNAL: sender's pid in the namespace of the receiver (0: kernel or outside).
        pub arg2: u32,
        /// SIGNAL: sender's real uid. FORK: clone flags' low half is not kept; 0.
        pub arg3: u32,
        /// SIGNAL: si_code. Else 0.
        pub code: i32,
        /// Always 0.
        pub zero: u32,
        /// Name of the process (FORK: of the child), first eight bytes.
        pub comm0: u64,
        /// Name, last eight bytes.
        pub comm1: u64,
        /// Start time of the process, nanoseconds of boot time (`task->start_boottime`).
        pub start_ns: u64,
        /// CPU time used by the process, user, nanoseconds (EXIT only; 0 where unknown).
        pub utime_ns: u64,
        /// CPU time used by the process, system, nanoseconds (EXIT only; 0 where unknown).
        pub stime_ns: u64,
        /// Always 0.
        pub zero2: u64,
    }
}

impl Event {
    /// Name of the process without trailing zeros.
    pub fn comm(&self) -> ([u8; 16], usize) {
        let mut out = [0u8; 16];
        out[..8].copy_from_slice(&self.comm0.to_ne_bytes());
        out[8..].copy_from_slice(&self.comm1.to_ne_bytes());
        let len = out.iter().position(|b| *b == 0).unwrap_or(16);
        (out, len)
    }
}

/// What an [`Event`] tells.
pub mod kind {
    /// A process (not a thread) forked.
    pub const FORK: u32 = 1;
    /// A process exec'ed.
    pub const EXEC: u32 = 2;
    /// The last thread of a process exits.
    pub const EXIT: u32 = 3;
    /// A process was renamed.
    pub const RENAME: u32 = 4;
    /// A stop signal is being taken with its default action.
    pub const STOP: u32 = 5;
    /// SIGCONT was generated for a process.
    pub const CONT: u32 = 6;
    /// A process was reaped: its pid is free.
    pub const FREE: u32 = 7;
    /// SIGKILL, SIGSTOP or SIGCONT was sent to a ghost.
    pub const SIGNAL: u32 = 8;
    /// A process of the master's own was given a pid beyond the boundary of local pids.
    pub const BEYOND: u32 = 9;
    /// Someone asked to trace or read a ghost and was refused (LSM).
    pub const REFUSED: u32 = 10;
}
