//! Numbers and records of the kernel's interface on x86_64, as far as the ghost uses it.

/// System call numbers.
pub(crate) mod nr {
    pub(crate) const READ: usize = 0;
    pub(crate) const WRITE: usize = 1;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const LSEEK: usize = 8;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const BRK: usize = 12;
    pub(crate) const RT_SIGACTION: usize = 13;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const PTRACE: usize = 101;
    pub(crate) const GETUID: usize = 102;
    pub(crate) const SOCKET: usize = 41;
    pub(crate) const CONNECT: usize = 42;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const KILL: usize = 62;
    pub(crate) const FCNTL: usize = 72;
    pub(crate) const CHDIR: usize = 80;
    pub(crate) const UMASK: usize = 95;
    pub(crate) const SETPGID: usize = 109;
    pub(crate) const GETPPID: usize = 110;
    pub(crate) const SETSID: usize = 112;
    pub(crate) const GETGROUPS: usize = 115;
    pub(crate) const SETGROUPS: usize = 116;
    pub(crate) const SETRESUID: usize = 117;
    pub(crate) const SETRESGID: usize = 119;
    pub(crate) const GETPGID: usize = 121;
    pub(crate) const GETSID: usize = 124;
    pub(crate) const CAPGET: usize = 125;
    pub(crate) const CAPSET: usize = 126;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const RT_SIGQUEUEINFO: usize = 129;
    pub(crate) const SETPRIORITY: usize = 141;
    pub(crate) const PERSONALITY: usize = 135;
    pub(crate) const SCHED_SETSCHEDULER: usize = 144;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const MOUNT: usize = 165;
    pub(crate) const SCHED_SETAFFINITY: usize = 203;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const TGKILL: usize = 234;
    pub(crate) const WAITID: usize = 247;
    pub(crate) const IOPRIO_SET: usize = 251;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const TIMERFD_CREATE: usize = 283;
    pub(crate) const TIMERFD_SETTIME: usize = 286;
    pub(crate) const SIGNALFD4: usize = 289;
    pub(crate) const DUP3: usize = 292;
    pub(crate) const RT_TGSIGQUEUEINFO: usize = 297;
    pub(crate) const PRLIMIT64: usize = 302;
    pub(crate) const SETNS: usize = 308;
    pub(crate) const CLONE3: usize = 435;
    pub(crate) const CLOSE_RANGE: usize = 436;
}

/// Error numbers that are given or told apart.
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EINTR: i32 = 4;
    pub(crate) const ENOEXEC: i32 = 8;
    pub(crate) const EAGAIN: i32 = 11;
    pub(crate) const EEXIST: i32 = 17;
    pub(crate) const EXDEV: i32 = 18;
    pub(crate) const ENOTDIR: i32 = 20;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENOSYS: i32 = 38;
}

/// Signals that are treated by name.
pub(crate) mod sig {
    pub(crate) const KILL: i32 = 9;
    pub(crate) const CHLD: i32 = 17;
    pub(crate) const CONT: i32 = 18;
    pub(crate) const STOP: i32 = 19;
    pub(crate) const TSTP: i32 = 20;
    pub(crate) const TTIN: i32 = 21;
    pub(crate) const TTOU: i32 = 22;
    pub(crate) const URG: i32 = 23;
    pub(crate) const WINCH: i32 = 28;
    /// Highest signal number.
    pub(crate) const MAX: i32 = 64;
}

/// `si_code` values of signals that processes send.
pub(crate) mod si {
    pub(crate) const USER: i32 = 0;
    pub(crate) const QUEUE: i32 = -1;
    pub(crate) const TKILL: i32 = -6;
}

/// `si_code` values of SIGCHLD.
pub(crate) mod cld {
    pub(crate) const EXITED: i32 = 1;
    pub(crate) const KILLED: i32 = 2;
    pub(crate) const DUMPED: i32 = 3;
    pub(crate) const CONTINUED: i32 = 6;
}

/// Options of wait.
pub(crate) mod wait {
    pub(crate) const NOHANG: i32 = 1;
    pub(crate) const STOPPED: i32 = 2;
    pub(crate) const EXITED: i32 = 4;
    pub(crate) const CONTINUED: i32 = 8;
    pub(crate) const NOWAIT: i32 = 0x0100_0000;
    pub(crate) const ALL_KINDS: i32 = 0x4000_0000;
}

/// Options of prctl whose arguments are plain numbers.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Prctl {
    SetParentDeathSignal = 1,
    SetDumpable = 4,
    SetKeepCaps = 8,
    BoundingRead = 23,
    BoundingDrop = 24,
    SetSecurebits = 28,
    SetTimerslack = 29,
    SetChildSubreaper = 36,
    SetNoNewPrivs = 38,
    Ambient = 47,
}

/// First arguments of [`Prctl::Ambient`].
pub(crate) mod ambient {
    pub(crate) const RAISE: usize = 2;
    pub(crate) const CLEAR_ALL: usize = 4;
}

pub(crate) const CLONE_PARENT: u64 = 0x8000;
pub(crate) const RLIMIT_CORE: u32 = 4;
pub(crate) const RLIMIT_NOFILE: u32 = 7;
pub(crate) const POLLIN: i16 = 1;
pub(crate) const O_RDONLY: usize = 0;
pub(crate) const O_WRONLY: usize = 1;

/// An entry of ppoll. A negative descriptor is passed over.
#[repr(C)]
pub(crate) struct PollFd {
    pub(crate) fd: i32,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

/// A duration.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timespec {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: i64,
}

impl Timespec {
    pub(crate) const fn from_millis(ms: u32) -> Timespec {
        Timespec { seconds: (ms / 1000) as i64, nanoseconds: (ms % 1000) as i64 * 1_000_000 }
    }
}

/// `siginfo_t` as the kernel lays it out.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct SigInfo(pub(crate) [u8; 128]);

impl SigInfo {
    pub(crate) const ZERO: SigInfo = SigInfo([0; 128]);

    fn word(&self, at: usize) -> i32 {
        i32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn put(&mut self, at: usize, word: i32) {
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    pub(crate) fn signal(&self) -> i32 {
        self.word(0)
    }

    pub(crate) fn code(&self) -> i32 {
        self.word(8)
    }

    pub(crate) fn set_code(&mut self, code: i32) {
        self.put(8, code);
    }

    /// Sender, or the child that changed.
    pub(crate) fn pid(&self) -> i32 {
        self.word(16)
    }

    /// Real uid of the sender.
    pub(crate) fn uid(&self) -> u32 {
        self.word(20) as u32
    }

    /// Exit code or signal, of SIGCHLD and waitid.
    pub(crate) fn status(&self) -> i32 {
        self.word(24)
    }

    /// Value of sigqueue.
    pub(crate) fn value(&self) -> u64 {
        u64::from(self.word(24) as u32) | u64::from(self.word(28) as u32) << 32
    }

    /// Sets the value of sigqueue.
    pub(crate) fn set_value(&mut self, value: u64) {
        self.0[24..32].copy_from_slice(&value.to_ne_bytes());
    }
}

/// What to do on a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Default,
    Ignore,
    /// A handler; the ghost's own does nothing and is never entered while all is blocked.
    Handler,
}

/// `struct kernel_sigaction`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct KernelAction {
    pub(crate) handler: usize,
    pub(crate) flags: usize,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

/// `struct clone_args` up to what set_tid needs.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
}

/// A soft and a hard limit.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The capability sets of a process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Caps {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

/// `struct prctl_mm_map`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct MmMap {
    pub(crate) start_code: u64,
    pub(crate) end_code: u64,
    pub(crate) start_data: u64,
    pub(crate) end_data: u64,
    pub(crate) start_brk: u64,
    pub(crate) brk: u64,
    pub(crate) start_stack: u64,
    pub(crate) arg_start: u64,
    pub(crate) arg_end: u64,
    pub(crate) env_start: u64,
    pub(crate) env_end: u64,
    pub(crate) auxv: u64,
    pub(crate) auxv_size: u32,
    pub(crate) exe_fd: u32,
}
