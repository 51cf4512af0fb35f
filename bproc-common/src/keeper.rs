//! What the keeper and the agent say to each other: SEQPACKET, one [`KeeperMsg`] a packet.
//!
//! The keeper holds ghosts by ptrace and outlives agents. Whoever connects last is its agent; the former
//! connection is closed. After connecting, an agent asks LIST and so learns what it missed.

use crate::record;

record! {
    /// A packet, both ways.
    pub struct KeeperMsg : 32 {
        /// An [`op`] or an [`ev`].
        pub op: u32,
        /// Returned in the answer.
        pub tag: u32,
        /// Pid, in the keeper's pid namespace.
        pub pid: i32,
        /// See each number.
        pub value: i32,
        /// See each number.
        pub extra: u64,
        /// Always 0.
        pub zero: u64,
    }
}

/// What the agent asks.
pub mod op {
    /// Seize `pid` and gate its exit. Answer: DONE, value 0 or -errno.
    pub const SEIZE: u32 = 1;
    /// Open the gate of `pid`: its exit, now or later, goes through at once. Answer: DONE, value 0 or -ESRCH.
    pub const RELEASE: u32 = 2;
    /// One STATE for each process held, then DONE.
    pub const LIST: u32 = 3;
    /// Nothing; DONE follows when all that was seen before has been told.
    pub const PING: u32 = 4;
    /// Let everything go that is held, and exit.
    pub const QUIT: u32 = 5;
    /// Let go of `pid` without end of its life: PTRACE_DETACH. Answer: DONE.
    pub const DETACH: u32 = 6;
    /// Have `pid`, if it is group-stopped, run until FREEZE: to its parent and to everybody who asks how it stands it stays
    /// stopped. SIGCONT ends that, and so does LIST. Answer: DONE, value 0 or -ESRCH.
    pub const THAW: u32 = 7;
    /// No more. Answer: DONE, value 0 or -ESRCH.
    pub const FREEZE: u32 = 8;
}

/// What the keeper tells.
pub mod ev {
    /// Answer to the command with this tag; value 0 or -errno.
    pub const DONE: u32 = 101;
    /// A child of a held ghost came to life and is held too: `pid`, value = its parent.
    pub const ADOPTED: u32 = 102;
    /// The ghost stopped (group stop): value = signal, extra = 1 when it sent that signal to itself (as the agent
    /// told it to), 0 when someone else stopped it.
    pub const STOPPED: u32 = 103;
    /// The ghost goes on after a stop.
    pub const CONTINUED: u32 = 104;
    /// The ghost waits at the gate: value = wait status it will have. Not sent for a released one.
    pub const EXITING: u32 = 105;
    /// The ghost is gone (it left through an open gate, or vanished).
    pub const GONE: u32 = 106;
    /// Answer to LIST: `pid`, value = [`super::state`], extra = stop signal or exit status.
    pub const STATE: u32 = 107;
    /// The ghost exec'ed (an ordinary process became a ghost).
    pub const EXECED: u32 = 108;
}

/// Where a held process stands.
pub mod state {
    /// Runs.
    pub const RUNNING: i32 = 0;
    /// Group-stopped.
    pub const STOPPED: i32 = 1;
    /// Waits at the gate.
    pub const EXITING: i32 = 2;
}
