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
        /// The process (thread group id) in its own namespace. FORK: the caller (0 when it is outside).
        pub pid: u32,
        /// Its parent in its own namespace (0 when the parent is outside). FORK: the child's
        /// parent, as group, session, ids, name and start time are the child's.
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
        /// FORK: child in its own namespace. EXIT: wait status. STOP, CONT, SIGNAL, GROUP: signal number.
        pub arg: u32,
        /// FORK: child in the initial namespace. SIGNAL: sender's pid in the namespace of the receiver (0: kernel or outside).
        pub arg2: u32,
        /// SIGNAL: sender's real uid. FORK: clone flags' low half is not kept; 0.
        pub arg3: u32,
        /// SIGNAL: si_code. Else 0.
        pub code: i32,
        /// GROUP: 1 when the signal waits at the receiver, 0 when it has become one with an equal one that waited. Else 0.
        pub queued: u32,
        /// Name of the process (FORK: of the child), first eight bytes.
        pub comm0: u64,
        /// Name, last eight bytes.
        pub comm1: u64,
        /// Start time of the process, nanoseconds of boot time (`task->start_boottime`).
        pub start_ns: u64,
        /// CPU time used by the process, user, nanoseconds (EXIT; 0 where unknown). GROUP and SIGNAL, about the sender: bit 0, its
        /// effective user is another than its real one; bit 1, it has CAP_KILL and is not root, or is root without.
        pub utime_ns: u64,
        /// CPU time used by the process, system, nanoseconds (EXIT only; 0 where unknown).
        pub stime_ns: u64,
        /// GROUP, and SIGNAL that came by a group: the same for all whom one system call reached. STARTER: its name. Else 0.
        pub call: u64,
    }
}

/// `struct rusage` of 64-bit kernels: user and system time in seconds and microseconds, then [`USAGE_MAX_RSS`], then counts.
pub type Usage = [u64; 18];

/// Where a [`Usage`] has the most memory that was resident, in KiB.
pub const USAGE_MAX_RSS: usize = 4;

record! {
    /// Where the running kernel keeps what the eBPF programs read: byte offsets
    /// (of single bits: in bits) that user space takes from the kernel's BTF and sets before the load.
    pub struct Offsets : 168 {
        /// `task_struct.pid`: the thread's number in the initial namespace.
        pub task_pid: u32,
        /// `task_struct.tgid`.
        pub task_tgid: u32,
        /// `task_struct.signal`.
        pub task_signal: u32,
        /// `task_struct.real_parent`.
        pub task_real_parent: u32,
        /// `task_struct.group_leader`.
        pub task_group_leader: u32,
        /// `task_struct.thread_pid`.
        pub task_thread_pid: u32,
        /// `task_struct.pid_links`, an array of list nodes by `enum pid_type`.
        pub task_pid_links: u32,
        /// `task_struct.cred`.
        pub task_cred: u32,
        /// `task_struct.comm`.
        pub task_comm: u32,
        /// `task_struct.start_boottime`.
        pub task_start_boottime: u32,
        /// `task_struct.utime`.
        pub task_utime: u32,
        /// `task_struct.stime`.
        pub task_stime: u32,
        /// `task_struct.exit_code`.
        pub task_exit_code: u32,
        /// `task_struct.nsproxy`.
        pub task_nsproxy: u32,
        /// `task_struct.nvcsw`: how often it gave its processor away.
        pub task_nvcsw: u32,
        /// `task_struct.nivcsw`: how often that was taken away.
        pub task_nivcsw: u32,
        /// `signal_struct.live`.
        pub signal_live: u32,
        /// `signal_struct.flags`.
        pub signal_flags: u32,
        /// `signal_struct.group_exit_code`.
        pub signal_group_exit_code: u32,
        /// `signal_struct.pids`, an array of pointers by `enum pid_type`.
        pub signal_pids: u32,
        /// `signal_struct.is_child_subreaper`, in bits.
        pub signal_subreaper: u32,
        /// `signal_struct.utime`: threads already reaped.
        pub signal_utime: u32,
        /// `signal_struct.stime`.
        pub signal_stime: u32,
        /// `pid.level`.
        pub pid_level: u32,
        /// `pid.tasks`, an array of list heads by `enum pid_type`.
        pub pid_tasks: u32,
        /// `pid.numbers`.
        pub pid_numbers: u32,
        /// `upid.nr`.
        pub upid_nr: u32,
        /// `upid.ns`.
        pub upid_ns: u32,
        /// Bytes of one `struct upid`.
        pub upid_size: u32,
        /// `pid_namespace.ns.inum`.
        pub pidns_inum: u32,
        /// `pid_namespace.idr.idr_next`: where the search for a free pid starts.
        pub pidns_idr_next: u32,
        /// `cred.uid`.
        pub cred_uid: u32,
        /// `cred.euid`.
        pub cred_euid: u32,
        /// `cred.egid`.
        pub cred_egid: u32,
        /// `cred.cap_effective`, whose first word is the lowest capabilities'.
        pub cred_cap_effective: u32,
        /// `cred.security`: what the security modules keep with it; 0 where there are none.
        pub cred_security: u32,
        /// `nsproxy.pid_ns_for_children`.
        pub nsproxy_pid_ns: u32,
        /// `k_sigaction.sa.sa_handler`.
        pub sa_handler: u32,
        /// `kernel_siginfo.si_code`.
        pub siginfo_code: u32,
        /// `kernel_siginfo._sifields._kill._pid`.
        pub siginfo_pid: u32,
        /// `kernel_siginfo._sifields._kill._uid`.
        pub siginfo_uid: u32,
        /// `file.private_data`: of files in `/proc` the `seq_file`.
        pub file_private_data: u32,
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
    /// A stop signal is being taken with its default action. The kernel drops SIGTSTP, SIGTTIN
    /// and SIGTTOU of an orphaned process group after this: the state in `/proc` tells.
    pub const STOP: u32 = 5;
    /// SIGCONT was generated for a process.
    pub const CONT: u32 = 6;
    /// A process was reaped: its pid is free, and has been for up to some milliseconds:
    /// the number may live again already, so match `start_ns` too. It is told late, at
    /// the worst when its kernel memory is used anew. Only `pidns`, `pid`, `host_pid`
    /// and `start_ns` are set.
    pub const FREE: u32 = 7;
    /// SIGKILL, SIGSTOP or SIGCONT was sent to a ghost.
    pub const SIGNAL: u32 = 8;
    /// A stop signal (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU) was sent to a ghost that is stopped. It waits there until a
    /// SIGCONT takes it away, so the ghost never reads it: nobody else tells of it. Fields as of [`SIGNAL`].
    pub const UNREAD: u32 = 11;
    /// A signal was sent to a whole group (`kill` of 0 or of a negative number, or keys of a terminal) of which this ghost is a
    /// member. Not told of SIGKILL (see [`SIGNAL`]), of stop signals and of SIGCONT. Fields as of [`SIGNAL`].
    pub const GROUP: u32 = 12;
    /// A process of the master's own was given a pid beyond the boundary of local pids.
    pub const BEYOND: u32 = 9;
    /// SIGKILL was sent to a process of the master's own that was registered with a name: `call`.
    pub const STARTER: u32 = 13;
    /// Someone asked to trace a ghost and was refused (LSM): `arg` is the access mode,
    /// `arg2` and `arg3` who asked (pid in the ghost's namespace, real uid).
    pub const REFUSED: u32 = 10;
}
