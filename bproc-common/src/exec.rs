//! The exec block: all that a fresh process needs to become the program, laid out so that the ghost binary (no
//! heap) can use it in place after mapping the memfd privately.
//!
//! The block is a [`Head`], then strings and tables; every `*_at` is an offset from the start of the block.
//! `argv_at` and `envp_at` point to arrays of u64 offsets ended by 0; the ghost adds its base address to each. Before the
//! arguments is room for one more, the name of a shell.

use crate::record;

/// First word of a block.
pub const MAGIC: u32 = 0x4250_5845;
/// Largest block in bytes.
pub const MAX_BLOCK: u64 = 256 << 20;

/// Bits of [`Head::flags`].
pub mod flag {
    /// setsid() first.
    pub const SETSID: u32 = 1;
    /// setpgid(0, pgid) first.
    pub const SETPGID: u32 = 2;
    /// Descriptor 0 is a terminal: make it the controlling one.
    pub const CTTY: u32 = 4;
    /// A directory that does not exist is no error: `/` is taken.
    pub const CWD_OPTIONAL: u32 = 8;
    /// no_new_privs.
    pub const NO_NEW_PRIVS: u32 = 16;
    /// The descriptor after the block is a mount namespace to enter first; it has no number in the process.
    pub const MOUNTS: u32 = 32;
    /// The settings beyond those that a process always has are told: processors, scheduling and the like.
    pub const SETTINGS: u32 = 64;
    /// What the kernel takes for no program is given to a shell, as execvp(3) does.
    pub const SHELL: u32 = 128;
    /// The path is below the working directory. Where that can be entered, exec gets what follows it.
    pub const BELOW_CWD: u32 = 256;
}

record! {
    /// Head of an exec block.
    pub struct Head : 224 {
        /// [`MAGIC`].
        pub magic: u32,
        /// [`flag`] bits.
        pub flags: u32,
        /// Bytes of the whole block.
        pub size: u64,
        /// Offset of the program's path, NUL-terminated.
        pub path_at: u64,
        /// Offset of the working directory, NUL-terminated.
        pub cwd_at: u64,
        /// Offset of the argument table.
        pub argv_at: u64,
        /// Offset of the environment table.
        pub envp_at: u64,
        /// Offset of the supplementary groups (u32 each).
        pub groups_at: u64,
        /// Offset of the table of descriptor numbers (i32 each): descriptor i of the message becomes number table[i].
        pub fds_at: u64,
        /// Offset of the resource limits: pairs of u64 (soft, hard) by RLIMIT number; u64::MAX is infinity. A hard
        /// limit that may not be raised is left where it is.
        pub rlimits_at: u64,
        /// Offset of the processors that it may run on: bit by number. No bytes, or none of this machine's: all.
        pub processors_at: u64,
        /// Number of groups.
        pub ngroups: u32,
        /// Number of descriptors.
        pub nfds: u32,
        /// Entries in the argument table without the final 0.
        pub argc: u32,
        /// Entries in the environment table without the final 0.
        pub envc: u32,
        /// Real uid.
        pub ruid: u32,
        /// Effective uid.
        pub euid: u32,
        /// Saved uid.
        pub suid: u32,
        /// Real gid.
        pub rgid: u32,
        /// Effective gid.
        pub egid: u32,
        /// Saved gid.
        pub sgid: u32,
        /// umask.
        pub umask: u32,
        /// Process group to join with SETPGID (0: own).
        pub pgid: i32,
        /// nice value.
        pub nice: i32,
        /// Parent-death signal, 0: none.
        pub pdeathsig: i32,
        /// Signals that are blocked, bit 0 = signal 1.
        pub blocked: u64,
        /// Signals that are ignored, bit 0 = signal 1.
        pub ignored: u64,
        /// Capability bounding set.
        pub cap_bounding: u64,
        /// Inheritable capabilities.
        pub cap_inheritable: u64,
        /// Ambient capabilities.
        pub cap_ambient: u64,
        /// Entries in the limit table.
        pub nrlimits: u32,
        /// Bytes of the set of processors.
        pub nprocessors: u32,
        /// Scheduling policy with SCHED_RESET_ON_FORK; like all below only with [`flag::SETTINGS`]. What the machine does not
        /// allow is left as it is.
        pub policy: u32,
        /// Real-time priority.
        pub priority: u32,
        /// Class and data of ioprio_set(2), 0: none.
        pub io_priority: u32,
        /// personality(2); u32::MAX: as it is.
        pub personality: u32,
        /// What a core dump has, bits of /proc/PID/coredump_filter; u32::MAX: as it is.
        pub core_filter: u32,
        /// oom_score_adj.
        pub oom_score_adj: i32,
        /// Timer slack in nanoseconds, 0: as it is.
        pub timer_slack: u64,
        /// Secure bits of capabilities(7).
        pub securebits: u32,
        /// Always 0.
        pub zero: u32,
    }
}

/// What a block is made from. See [`Head`] for the meaning of the fields.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, Default)]
pub struct Builder<'a> {
    /// Everything but sizes, offsets and counts, which are filled in.
    pub head: Head,
    /// Path of the program.
    pub path: &'a [u8],
    /// Working directory.
    pub cwd: &'a [u8],
    /// Arguments, the zeroth included.
    pub argv: &'a [alloc::vec::Vec<u8>],
    /// Environment entries.
    pub envp: &'a [alloc::vec::Vec<u8>],
    /// Supplementary groups.
    pub groups: &'a [u32],
    /// Numbers that the descriptors get.
    pub fds: &'a [i32],
    /// Resource limits, soft and hard.
    pub rlimits: &'a [(u64, u64)],
    /// Processors, bit by number.
    pub processors: &'a [u8],
}

#[cfg(feature = "alloc")]
impl Builder<'_> {
    /// The bytes of the block. `None` when a string contains NUL or the block would exceed [`MAX_BLOCK`].
    pub fn build(&self) -> Option<alloc::vec::Vec<u8>> {
        use crate::wire::Record;
        use alloc::vec::Vec;
        let texts = || [self.path, self.cwd].into_iter().chain(self.argv.iter().chain(self.envp).map(Vec::as_slice));
        if texts().any(|t| t.contains(&0)) {
            return None;
        }
        let tables = 8 * (1 + self.argv.len() + self.envp.len() + 2)
            + 4 * (self.groups.len() + self.fds.len())
            + 16 * self.rlimits.len()
            + self.processors.len();
        let size = Head::SIZE + tables + 8 + texts().map(|t| t.len() + 1).sum::<usize>();
        if size as u64 > MAX_BLOCK {
            return None;
        }
        let mut head = self.head;
        head.magic = MAGIC;
        head.size = size as u64;
        head.ngroups = self.groups.len() as u32;
        head.nfds = self.fds.len() as u32;
        head.argc = self.argv.len() as u32;
        head.envc = self.envp.len() as u32;
        head.nrlimits = self.rlimits.len() as u32;
        head.nprocessors = self.processors.len() as u32;
        head.argv_at = Head::SIZE as u64 + 8;
        head.envp_at = head.argv_at + 8 * (self.argv.len() as u64 + 1);
        head.rlimits_at = head.envp_at + 8 * (self.envp.len() as u64 + 1);
        head.groups_at = head.rlimits_at + 16 * self.rlimits.len() as u64;
        head.fds_at = head.groups_at + 4 * self.groups.len() as u64;
        head.processors_at = head.fds_at + 4 * self.fds.len() as u64;
        let mut at = head.processors_at + self.processors.len() as u64;
        let mut out = Vec::with_capacity(size);
        out.resize(head.argv_at as usize, 0);
        let mut text_at = |len: usize| {
            let here = at;
            at += len as u64 + 1;
            here
        };
        head.path_at = text_at(self.path.len());
        head.cwd_at = text_at(self.cwd.len());
        for table in [self.argv, self.envp] {
            for t in table {
                out.extend(text_at(t.len()).to_ne_bytes());
            }
            out.extend(0u64.to_ne_bytes());
        }
        for (soft, hard) in self.rlimits {
            out.extend(soft.to_ne_bytes());
            out.extend(hard.to_ne_bytes());
        }
        for g in self.groups {
            out.extend(g.to_ne_bytes());
        }
        for fd in self.fds {
            out.extend(fd.to_ne_bytes());
        }
        out.extend(self.processors);
        for t in texts() {
            out.extend(t);
            out.push(0);
        }
        out.resize(size, 0);
        head.put(&mut out);
        Some(out)
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use crate::wire::Record;
    use alloc::vec;
    use alloc::vec::Vec;

    fn text(block: &[u8], at: u64) -> Vec<u8> {
        block[at as usize..].iter().copied().take_while(|b| *b != 0).collect()
    }

    #[test]
    fn every_offset_points_at_what_it_names() {
        let argv = vec![b"sort".to_vec(), b"".to_vec(), b"-n".to_vec()];
        let envp = vec![b"A=b".to_vec()];
        let block = Builder {
            path: b"/usr/bin/sort",
            cwd: b"/tmp",
            argv: &argv,
            envp: &envp,
            groups: &[4, 5],
            fds: &[0, 1, 2],
            rlimits: &[(1, 2)],
            processors: &[5, 6, 7],
            ..Builder::default()
        }
        .build()
        .unwrap();
        let head = Head::get(&block).unwrap();
        assert_eq!(head.size as usize, block.len());
        assert_eq!(text(&block, head.path_at), b"/usr/bin/sort");
        assert_eq!(text(&block, head.cwd_at), b"/tmp");
        let word = |at: u64| u64::from_ne_bytes(block[at as usize..at as usize + 8].try_into().unwrap());
        let args: Vec<_> = (0..3).map(|i| text(&block, word(head.argv_at + 8 * i))).collect();
        assert_eq!(args, argv);
        assert_eq!(word(head.argv_at + 24), 0);
        assert_eq!(text(&block, word(head.envp_at)), b"A=b");
        assert_eq!(word(head.rlimits_at + 8), 2);
        assert_eq!(block[head.groups_at as usize], 4);
        assert_eq!(block[head.fds_at as usize + 8], 2);
        assert_eq!(block[head.processors_at as usize..][..head.nprocessors as usize], [5, 6, 7]);
    }

    #[test]
    fn nul_inside_an_argument_is_refused() {
        let argv = vec![b"a\0b".to_vec()];
        assert!(Builder { path: b"x", argv: &argv, ..Builder::default() }.build().is_none());
    }
}
