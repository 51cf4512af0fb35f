//! What the machine that restores has and may do. Collected once, then only read.

use crate::image::{Cpu, Vdso};
use crate::sys::own;

/// Capability numbers that matter here.
pub mod cap {
    /// CAP_SETUID.
    pub const SETUID: u32 = 7;
    /// CAP_SYS_ADMIN.
    pub const SYS_ADMIN: u32 = 21;
    /// CAP_SYS_NICE.
    pub const SYS_NICE: u32 = 23;
    /// CAP_SYS_RESOURCE.
    pub const SYS_RESOURCE: u32 = 24;
    /// CAP_CHECKPOINT_RESTORE.
    pub const CHECKPOINT_RESTORE: u32 = 40;
}

/// Facts about the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The CPU.
    pub cpu: Cpu,
    /// The kernel's vdso; its addresses do not matter.
    pub vdso: Option<Vdso>,
    /// Kernel release, for people.
    pub kernel: String,
    /// Effective capabilities of the restorer.
    pub caps: u64,
    /// Timers can be made with chosen ids.
    pub timer_ids: bool,
    /// Bytes of restartable sequences' data that the kernel takes.
    pub rseq: u32,
    /// Limits of the restorer, soft and hard.
    pub limits: [[u64; 2]; 16],
}

impl Facts {
    /// The machine and the process that this runs in.
    pub fn here() -> Self {
        Facts {
            cpu: crate::cpu::here(),
            vdso: own::vdso(),
            kernel: own::kernel(),
            caps: own::effective_caps(),
            timer_ids: own::timer_ids(),
            rseq: own::rseq_size(),
            limits: crate::sys::process::limits(0).unwrap_or([[u64::MAX; 2]; 16]),
        }
    }

    /// Has the restorer the capability?
    pub fn can(&self, cap: u32) -> bool {
        self.caps >> cap & 1 == 1
    }

    /// May the restorer choose pids?
    pub fn can_choose_pids(&self) -> bool {
        self.can(cap::CHECKPOINT_RESTORE) || self.can(cap::SYS_ADMIN)
    }
}
