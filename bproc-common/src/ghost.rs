//! What a ghost and its agent say to each other.
//!
//! One SEQPACKET connection a ghost, made by the ghost to the path in its
//! environment ([`ENV_SOCKET`]); it is made again whenever it breaks. Each packet
//! is a [`Msg`], then `len` bytes of payload; some carry descriptors
//! (`SCM_RIGHTS`).
//!
//! The same binary plays three roles ([`Role`]): on the master it stands for a
//! process on a node; on a node it is a *skeleton* standing for a process that is
//! elsewhere, or the first process (*init*) of the space's pid namespace.

use crate::record;

/// Environment entry `BPROC_GHOST=/path/of/ghost.sock` that a ghost is started with.
pub const ENV_SOCKET: &str = "BPROC_GHOST";
/// Environment entry `BPROC_ROLE=N` with a [`Role`] number; absent means ghost.
pub const ENV_ROLE: &str = "BPROC_ROLE";
/// Environment entry `BPROC_PDEATH=PPID`: die (SIGKILL, gated like any other) when
/// the parent, which must still be PPID, dies.
pub const ENV_PDEATH: &str = "BPROC_PDEATH";
/// Environment entry `BPROC_LEASE=SECONDS` of an init: without [`op::LEASE`] for this long it ends, and its space with
/// it. Soon after, the master declares the node dead.
pub const ENV_LEASE: &str = "BPROC_LEASE";
/// Environment entry `BPROC_COUNT=N`: signals are numbered from N + 1 on, for one that was a ghost before and is one again.
pub const ENV_COUNT: &str = "BPROC_COUNT";
/// Environment entry `BPROC_STARTER=N`: names the `bpsh` that the process comes from. Clones inherit it.
pub const ENV_STARTER: &str = "BPROC_STARTER";
/// Environment entry `BPROC_NAME=NAME`: it is called so from the start, by as much as fits in 15 bytes.
pub const ENV_NAME: &str = "BPROC_NAME";
/// Lower half of the value of a SIGCONT by which root wakes a stopped ghost, which does not forward it: "bprc". The upper
/// half counts as `b` of [`op::STOP`] does.
pub const WAKE: u32 = 0x6270_7263;
/// Longest packet in bytes: header and payload. Longer payloads travel as memfd.
pub const MAX_PACKET: usize = 8192;

/// Which part the binary plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum Role {
    /// On the master, in the place of a process that runs on a node.
    Ghost = 0,
    /// On a node, in the place of a process that is elsewhere.
    Skeleton = 1,
    /// First process of the space on a node.
    Init = 2,
}

record! {
    /// Head of every packet, both ways. `op` is an [`op`] or an [`ev`] number.
    pub struct Msg : 48 {
        /// Which command or report.
        pub op: u32,
        /// Commands: returned in the result. Signals: number counted up from 1.
        pub tag: u32,
        /// First argument; see each number.
        pub a: i64,
        /// Second argument.
        pub b: i64,
        /// Third argument.
        pub c: i64,
        /// Fourth argument.
        pub d: i64,
        /// Bytes of payload after the head.
        pub len: u32,
        /// Always 0.
        pub zero: u32,
    }
}

/// Commands of the agent. All but [`op::ACK`], [`op::EXIT`] and [`op::DIE`] are answered with
/// [`ev::RESULT`] of the same tag, `a` = value or -errno; with tag 0 only failures are answered.
pub mod op {
    /// `_exit(a)`.
    pub const EXIT: u32 = 1;
    /// Die by signal `a` (default action, no core).
    pub const DIE: u32 = 2;
    /// Stop by signal `a` (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU), as if its default action was taken.
    /// The result comes before the stop. `b`, if not 0, counts this among stops and wake-up calls: nothing is done after a
    /// [`super::WAKE`] of a higher count.
    pub const STOP: u32 = 3;
    /// clone3 with set_tid: child gets pid `a` (0: the kernel's choice). `b` bit 0: CLONE_PARENT. Payload, if any: the child's
    /// role as one decimal digit. The child connects by itself and says HELLO.
    pub const CLONE: u32 = 4;
    /// Reap child `a` (wait4, WNOHANG). Result: the pid, 0 when it has not exited, or -errno.
    pub const REAP: u32 = 5;
    /// setpgid(`a`, `b`).
    pub const SETPGID: u32 = 6;
    /// setsid().
    pub const SETSID: u32 = 7;
    /// PR_SET_NAME: payload is the name (15 bytes at most).
    pub const NAME: u32 = 8;
    /// New command line: payload (or one memfd, then `a` is its size) is the NUL-separated arguments.
    pub const CMDLINE: u32 = 9;
    /// Send signal to process `a` with the siginfo that is the payload (128 bytes). A si_code of SI_USER or
    /// SI_TKILL with a si_pid other than the sender's own is sent by a short-lived process that has that pid and
    /// the uid si_uid, so that the receiver sees the native siginfo; where the pid is taken, by SI_QUEUE.
    /// `a` below -1 means all of the group -`a`: it is sent with the rights of the user si_uid, where the pid is taken in the name of
    /// the sender of this itself, and with EXDEV not at all by one that is another user.
    /// `b` = thread to send to, or 0 for the process. `d` = a key of this signal among all of its receiver, or 0; `c` = a
    /// number that the receiver shares with no other process, also not with a former one of the same pid. A signal with
    /// a key is noted in the space; with a negative one it may have been sent before, and is not if it was.
    pub const SIGNAL: u32 = 10;
    /// Become a program: first descriptor is a memfd with an exec block ([`crate::exec`]), the others are its
    /// open files. On failure RESULT with -errno, then the process exits; on success the connection just ends.
    /// `a` not 0: a child tries it first, and if that fails RESULT comes likewise, and the process stays what it is. With 2 that is
    /// all: RESULT is 0 if it can be done, or if that cannot be known.
    pub const EXEC: u32 = 11;
    /// Set ns_last_pid to `a`; with 0 tell it (init only).
    pub const LAST_PID: u32 = 12;
    /// setgroups() to none, setresgid(`b`), setresuid(`a`), capabilities kept.
    pub const CREDS: u32 = 13;
    /// Signals numbered up to `a` have arrived: forget them.
    pub const ACK: u32 = 14;
    /// nice value `a` for itself.
    pub const NICE: u32 = 15;
    /// PR_SET_CHILD_SUBREAPER: `a`.
    pub const SUBREAPER: u32 = 18;
    /// Send signal `b` to the whole process group `a`, as its process has done on a node (ghosts only).
    pub const SIGNAL_GROUP: u32 = 17;
    /// Leave signals in the kernel from now on, for the process that comes into the ghost's place; those that were taken have
    /// been told when this is answered. `a`: their set, signal N as bit N - 1; 0 takes all again, and so does a new connection.
    pub const HOLD: u32 = 19;
    /// Lives `a` milliseconds more unless told again; 0: for ever (init only).
    pub const LEASE: u32 = 20;
    /// It comes from the `bpsh` `a` (ghosts only).
    pub const STARTER: u32 = 21;
    /// Nothing.
    pub const NOTHING: u32 = 23;
    /// Children: from now on report changes of child state (CHILD), with `a` = 1 stops and continues only. Skeletons and init
    /// do from the start.
    pub const WATCH_CHILDREN: u32 = 16;
}

/// Sets of signals that a ghost leaves in the kernel ([`op::HOLD`]).
pub mod left {
    /// None.
    pub const NONE: i64 = 0;
    /// Those of which each one sent comes, in the order in which they were sent: from 32 on.
    pub const QUEUED: i64 = -1 << 31;
    /// All.
    pub const ALL: i64 = -1;
}

/// Reports of the ghost.
pub mod ev {
    /// First packet of a connection: `a` = own pid in its namespace, `b` = [`super::Role`], `c` = parent pid,
    /// `d` = number of the newest signal forwarded so far (0: none). Payload of 8 bytes: the `bpsh` that its process comes from, 0
    /// for none.
    pub const HELLO: u32 = 101;
    /// A signal that was sent to the ghost: tag = its number, `a` = signal, payload = siginfo (128 bytes).
    /// Sent again after a reconnect until acknowledged.
    pub const SIGNAL: u32 = 102;
    /// Answer to a command.
    pub const RESULT: u32 = 103;
    /// A child changed state (skeleton and init only): `a` = pid, `b` = si_code (CLD_EXITED, CLD_KILLED, CLD_DUMPED,
    /// CLD_STOPPED, CLD_CONTINUED), `c` = wait status as wait4 gives it, payload = `struct rusage` (144 bytes) for exits.
    /// An exited child stays a zombie until REAP; it is told again after a reconnect.
    pub const CHILD: u32 = 104;
}
