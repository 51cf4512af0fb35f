//! What an image says about a process, section by section.

use crate::wire::{Bytes, wire_enum, wire_struct};

/// Bits of [`Area::advice`]: what `madvise`, `mlock` and `mmap` flags left on an area.
pub mod advice {
    /// Locked into memory.
    pub const LOCKED: u32 = 1;
    /// MADV_DONTFORK.
    pub const DONT_FORK: u32 = 2;
    /// MADV_DONTDUMP.
    pub const DONT_DUMP: u32 = 4;
    /// MADV_HUGEPAGE.
    pub const HUGE: u32 = 8;
    /// MADV_NOHUGEPAGE.
    pub const NO_HUGE: u32 = 16;
    /// MADV_WIPEONFORK.
    pub const WIPE_ON_FORK: u32 = 32;
    /// MADV_MERGEABLE.
    pub const MERGEABLE: u32 = 64;
    /// MAP_NORESERVE.
    pub const NO_RESERVE: u32 = 128;
    /// MADV_SEQUENTIAL.
    pub const SEQUENTIAL: u32 = 256;
    /// MADV_RANDOM.
    pub const RANDOM: u32 = 512;
    /// MAP_GROWSDOWN.
    pub const GROWS_DOWN: u32 = 1024;
    /// Locked page by page, as each is touched (MLOCK_ONFAULT).
    pub const LOCKED_LATE: u32 = 2048;
}

wire_struct! {
    /// Who the process is and where the image was made.
    pub struct Meta {
        /// Process id, in the innermost pid namespace of the process.
        pub pid: i32,
        /// Parent's pid, 0 when it is outside the namespace.
        pub ppid: i32,
        /// Process group.
        pub pgid: i32,
        /// Session.
        pub sid: i32,
        /// Name of the main thread.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub comm: Bytes,
        /// Arguments, NUL-separated.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub cmdline: Bytes,
        /// Host name of the machine.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub host: Bytes,
        /// Kernel release of the machine.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub kernel: Bytes,
        /// When the image was made: nanoseconds since 1970.
        pub time_ns: u64,
        /// CLOCK_MONOTONIC as the process saw it at that moment, in nanoseconds.
        pub monotonic_ns: u64,
        /// CLOCK_BOOTTIME as the process saw it at that moment, in nanoseconds.
        pub boottime_ns: u64,
        /// Start time of the process: clock ticks since boot.
        pub start_ticks: u64,
        /// User CPU time so far, clock ticks.
        pub utime_ticks: u64,
        /// System CPU time so far, clock ticks.
        pub stime_ticks: u64,
        /// Dump flags (LIBS 1, EXEC 2, OTHER 4).
        pub flags: u32,
        /// The process was stopped by a job control signal.
        pub stopped: bool,
        /// The process dumped itself: credentials and descriptors are those of whoever restores it.
        pub from_inside: bool,
    }
}

wire_struct! {
    /// One register set of the extended state.
    pub struct XComponent {
        /// Bit in XCR0.
        pub bit: u8,
        /// Offset in the standard layout.
        pub offset: u32,
        /// Bytes.
        pub size: u32,
    }
}

wire_struct! {
    /// What the program may have come to rely on in the CPU.
    pub struct Cpu {
        /// Brand, for people.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub brand: Bytes,
        /// Feature words in the order of [`crate::cpu::LEAVES`].
        pub features: Vec<u32>,
        /// Extended state enabled by the kernel.
        pub xcr0: u64,
        /// Bytes of the standard layout.
        pub xsize: u32,
        /// Layout of the extended state.
        pub components: Vec<XComponent>,
    }
}

wire_struct! {
    /// A file that is mapped or open, and how to know that another one is the same.
    pub struct FileRef {
        /// Absolute path as the process sees it.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub path: Bytes,
        /// Size in bytes.
        pub size: u64,
        /// Time of last change: seconds.
        pub mtime_s: i64,
        /// Time of last change: nanoseconds.
        pub mtime_ns: u32,
        /// Build id of an ELF file, else empty.
        pub build_id: Bytes,
    }
}

wire_struct! {
    /// Addresses that the kernel keeps about the memory as a whole.
    pub struct Mm {
        /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
        pub marks: [u64; 11],
        /// Auxiliary vector.
        pub auxv: Bytes,
        /// The program: index into the file table.
        pub exe: Option<u32>,
        /// PR_GET_DUMPABLE.
        pub dumpable: u32,
        /// PR_GET_THP_DISABLE.
        pub thp_disabled: bool,
    }
}

wire_enum! {
    /// Where the bytes of an area come from; pages of the image lie over it.
    pub enum AreaKind {
        /// Private memory, zero where the image has no page.
        Anon = 0,
        /// Private memory that was a file: every byte travels.
        Data = 1,
        /// The file of this number in the file table, private or (read-only) shared.
        File = 2 {
            /// Index into the file table.
            file: u32,
            /// Offset in the file, bytes.
            offset: u64,
        },
        /// Shared memory, alone in the hands of this process: zero where the image has no page.
        Shared = 3 {
            /// Areas with the same number are the same memory.
            object: u32,
            /// Offset in the object, bytes.
            offset: u64,
        },
        /// No memory of the process: what a memory file holds, from its first byte on, at addresses that nothing else
        /// has. Mapped only while the pages come.
        Contents = 4 {
            /// Index into the table of memory files.
            file: u32,
        },
    }
}

wire_struct! {
    /// A file that is nothing but memory (memfd_create), and that no other process has.
    pub struct MemoryFile {
        /// Its name, which only /proc tells.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub name: Bytes,
        /// Bytes.
        pub size: u64,
        /// Permission bits.
        pub mode: u32,
        /// F_SEAL_*.
        pub seals: u32,
        /// Shared areas of this number show it.
        pub object: Option<u32>,
    }
}

wire_struct! {
    /// One mapping.
    pub struct Area {
        /// First address.
        pub start: u64,
        /// Address after the last.
        pub end: u64,
        /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
        pub prot: u32,
        /// MAP_SHARED.
        pub shared: bool,
        /// [`advice`] bits.
        pub advice: u32,
        /// Contents.
        pub kind: AreaKind,
        /// Pages that the image has for it at most.
        pub pages: u64,
        /// What /proc called it: a path, `[heap]`, `[stack]`, `[anon:..]` or nothing.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub name: Bytes,
    }
}

wire_struct! {
    /// The kernel's code in the process, which differs from kernel to kernel.
    pub struct Vdso {
        /// First address of the data pages before the code.
        pub data_start: u64,
        /// First address of the code.
        pub start: u64,
        /// The code.
        pub code: Bytes,
    }
}

wire_struct! {
    /// Alternate signal stack.
    pub struct AltStack {
        /// Lowest address.
        pub sp: u64,
        /// SS_DISABLE, SS_AUTODISARM.
        pub flags: u32,
        /// Bytes.
        pub size: u64,
    }
}

wire_struct! {
    /// Restartable sequences registration.
    pub struct Rseq {
        /// Address of the area, 0 when not registered.
        pub address: u64,
        /// Its bytes.
        pub size: u32,
        /// Signature before abort handlers.
        pub signature: u32,
        /// Flags.
        pub flags: u32,
    }
}

wire_struct! {
    /// One thread; the first in the list is the main one.
    pub struct Thread {
        /// Thread id in the innermost pid namespace.
        pub tid: i32,
        /// Name.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub comm: Bytes,
        /// `user_regs_struct`: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs.
        pub regs: [u64; 27],
        /// Extended state, standard XSAVE layout of the source CPU.
        pub xstate: Bytes,
        /// Blocked signals.
        pub blocked: u64,
        /// Signals pending for this thread: raw siginfo each.
        pub pending: Vec<Bytes>,
        /// Alternate signal stack.
        pub altstack: AltStack,
        /// Robust futex list: head and length.
        pub robust: [u64; 2],
        /// Address that is cleared when the thread ends.
        pub tid_address: u64,
        /// Restartable sequences.
        pub rseq: Rseq,
        /// Index into the table of credentials.
        pub creds: u32,
        /// Scheduling policy (SCHED_OTHER 0, ..).
        pub policy: u32,
        /// Real-time priority.
        pub priority: u32,
        /// nice value.
        pub nice: i32,
        /// Timer slack in nanoseconds, 0: unknown.
        pub timer_slack: u64,
        /// Parent-death signal.
        pub pdeathsig: u32,
        /// Seccomp filters of the thread, oldest first: raw `sock_filter` arrays.
        pub filters: Vec<Bytes>,
    }
}

wire_struct! {
    /// Disposition of one signal.
    pub struct Action {
        /// Number of the signal.
        pub signal: u32,
        /// Handler address, 0 default, 1 ignored.
        pub handler: u64,
        /// SA_* flags.
        pub flags: u64,
        /// Trampoline.
        pub restorer: u64,
        /// Signals blocked during the handler.
        pub mask: u64,
    }
}

wire_struct! {
    /// Signals of the process as a whole.
    pub struct Signals {
        /// Dispositions other than the default.
        pub actions: Vec<Action>,
        /// Signals pending for the process: raw siginfo each.
        pub pending: Vec<Bytes>,
    }
}

wire_struct! {
    /// One timer made by timer_create.
    pub struct PosixTimer {
        /// Kernel's id.
        pub id: u32,
        /// Clock.
        pub clock: i32,
        /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD_ID 4.
        pub notify: u32,
        /// Signal.
        pub signal: u32,
        /// Value for the handler.
        pub value: u64,
        /// Thread for SIGEV_THREAD_ID, in the namespace.
        pub tid: i32,
        /// Period, nanoseconds.
        pub interval_ns: u64,
        /// Time to the next expiry, nanoseconds; 0 when disarmed.
        pub left_ns: u64,
    }
}

wire_struct! {
    /// Timers.
    pub struct Timers {
        /// ITIMER_REAL, _VIRTUAL, _PROF: interval s, us, left s, us.
        pub itimers: [[u64; 4]; 3],
        /// POSIX timers.
        pub posix: Vec<PosixTimer>,
    }
}

wire_struct! {
    /// Credentials of a thread.
    pub struct Creds {
        /// Real, effective, saved, file system uid.
        pub uids: [u32; 4],
        /// Real, effective, saved, file system gid.
        pub gids: [u32; 4],
        /// Supplementary groups.
        pub groups: Vec<u32>,
        /// Inheritable, permitted, effective, bounding, ambient capabilities.
        pub caps: [u64; 5],
        /// PR_GET_SECUREBITS.
        pub securebits: u32,
        /// no_new_privs.
        pub no_new_privs: bool,
    }
}

wire_struct! {
    /// What the kernel keeps about the process beside memory and signals.
    pub struct Process {
        /// Soft and hard limit by RLIMIT number; u64::MAX is infinity.
        pub limits: [[u64; 2]; 16],
        /// umask.
        pub umask: u32,
        /// Working directory.
        #[serde(serialize_with = "crate::wire::as_text")]
        pub cwd: Bytes,
        /// PR_GET_CHILD_SUBREAPER.
        pub subreaper: bool,
        /// oom_score_adj.
        pub oom_score_adj: i32,
    }
}

wire_struct! {
    /// What else can be set of a process and its threads.
    pub struct Settings {
        /// personality(2).
        pub personality: u32,
        /// What a core dump has: bits of /proc/PID/coredump_filter.
        pub core_filter: u32,
        /// PR_GET_MEMORY_MERGE.
        pub merges_memory: bool,
        /// Of each thread: class and data of ioprio_get(2).
        pub io_priorities: Vec<u32>,
    }
}

wire_struct! {
    /// On which nodes of a machine memory is taken: set_mempolicy(2).
    #[derive(Default)]
    pub struct Policy {
        /// MPOL_* and its flags, 0: as all.
        pub mode: u32,
        /// Nodes of memory, a bit each.
        pub nodes: u64,
    }
}

wire_struct! {
    /// An area that has a policy of its own: mbind(2).
    pub struct Placed {
        /// First address.
        pub start: u64,
        /// Address after the last.
        pub end: u64,
        /// The policy.
        pub policy: Policy,
    }
}

wire_struct! {
    /// Who is told by a signal that a pipe or socket is ready: F_SETOWN_EX, F_SETSIG.
    pub struct Told {
        /// The descriptor.
        pub fd: i32,
        /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
        pub kind: i32,
        /// Who, in the innermost pid namespace; 0: nobody.
        pub id: i32,
        /// By which signal, 0: SIGIO.
        pub signal: u32,
    }
}

wire_struct! {
    /// What few processes have set.
    #[derive(Default)]
    pub struct Habits {
        /// Memory barriers that are registered: commands of membarrier(2).
        pub barriers: u32,
        /// What becomes of memory that is mapped from now on: MCL_FUTURE, MCL_ONFAULT of mlockall(2).
        pub locks: u32,
        /// Of each thread: PR_MCE_KILL_GET.
        pub memory_faults: Vec<u32>,
        /// Of each thread.
        pub policies: Vec<Policy>,
        /// Areas with policies of their own.
        pub placed: Vec<Placed>,
        /// Who is told of descriptors.
        pub told: Vec<Told>,
    }
}

wire_enum! {
    /// What a descriptor leads to.
    pub enum FdKind {
        /// A regular file.
        Regular = 0 {
            /// Index into the file table.
            file: u32,
            /// Position in bytes.
            offset: u64,
        },
        /// A directory.
        Directory = 1 {
            /// Absolute path.
            #[serde(serialize_with = "crate::wire::as_text")]
            path: Bytes,
        },
        /// A device without state: null, zero, full, random, urandom.
        Device = 2 {
            /// Absolute path.
            #[serde(serialize_with = "crate::wire::as_text")]
            path: Bytes,
        },
        /// A terminal: whoever restores gives one.
        Terminal = 3 {
            /// Absolute path.
            #[serde(serialize_with = "crate::wire::as_text")]
            path: Bytes,
        },
        /// eventfd.
        Eventfd = 4 {
            /// Counter.
            count: u64,
            /// EFD_SEMAPHORE.
            semaphore: bool,
        },
        /// The same open file as a lower descriptor (dup).
        SameAs = 5 {
            /// That descriptor.
            fd: i32,
        },
        /// timerfd.
        Timerfd = 6 {
            /// Clock.
            clock: i32,
            /// Interval and time left in nanoseconds.
            interval_ns: u64,
            /// 0: disarmed.
            left_ns: u64,
            /// Expirations that were not read yet.
            ticks: u64,
        },
        /// signalfd.
        Signalfd = 7 {
            /// Signals it reads.
            mask: u64,
        },
        /// epoll.
        Epoll = 8 {
            /// fd, events, data.
            watches: Vec<[u64; 3]>,
        },
        /// Stays behind.
        NotCarried = 9 {
            /// What it is, for people.
            #[serde(serialize_with = "crate::wire::as_text")]
            what: Bytes,
        },
        /// An end of a pipe whose other end the process has, too.
        Pipe = 10 {
            /// Both ends have the same number; counted from 0, with those of sockets.
            pair: u32,
            /// It is the end to write to.
            writes: bool,
            /// Bytes that the pipe can hold.
            size: u32,
            /// End to read from: what waits there.
            data: Bytes,
        },
        /// One of a pair of sockets of which the process has both.
        Socket = 11 {
            /// Both have the same number; counted from 0, with those of pipes.
            pair: u32,
            /// The one with the greater inode.
            second: bool,
            /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
            kind: u32,
            /// What waits to be read from it.
            data: Bytes,
        },
        /// A memory file.
        Memory = 12 {
            /// Index into the table of memory files.
            file: u32,
            /// Position in bytes.
            offset: u64,
        },
    }
}

wire_struct! {
    /// One descriptor.
    pub struct Fd {
        /// Its number.
        pub fd: i32,
        /// File status flags (O_*), O_CLOEXEC if set.
        pub flags: u32,
        /// What it leads to.
        pub kind: FdKind,
    }
}
