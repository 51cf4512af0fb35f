//! What the machine that restores has and may do. Collected once, then only read.

use crate::error::Refusal;
use crate::image::{Cpu, Vdso};
use crate::sys::own;
use crate::wire;

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

/// The part of the facts that one machine tells others, so that a process which could not run there need not even be
/// stopped. Bytes to everybody between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine(Cpu);

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Machine(crate::cpu::here())
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(&self.0)
    }

    /// From bytes of another machine; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        wire::decode(bytes).ok().map(Machine)
    }

    /// Could a process of this machine run there?
    ///
    /// # Errors
    /// What it would miss.
    pub fn takes(&self) -> Result<(), Refusal> {
        let missing = crate::cpu::missing(&crate::cpu::here(), &self.0);
        if missing.is_empty() { Ok(()) } else { Err(Refusal::CpuFeaturesThere(missing)) }
    }
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
    /// Nodes of memory that the restorer may use, a bit each.
    pub nodes: u64,
    /// Limits of the restorer, soft and hard.
    pub limits: [[u64; 2]; 16],
    /// Processors that a program may run on which is bound to none: bit by number.
    pub processors: Vec<u8>,
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
            nodes: own::memory_nodes(),
            limits: crate::sys::process::limits(0).unwrap_or([[u64::MAX; 2]; 16]),
            processors: crate::sys::process::processors(0).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::Machine;
    use crate::error::Refusal;

    #[test]
    fn a_machine_tells_what_it_lacks() {
        let mut there = Machine::decode(&Machine::here().encode()).unwrap();
        assert_eq!(there.takes(), Ok(()));
        // SSE2, which every one has.
        there.0.features[1] &= !(1 << 26);
        let there = Machine::decode(&there.encode()).unwrap();
        assert_eq!(there.takes(), Err(Refusal::CpuFeaturesThere(vec!["sse2"])));
        assert_eq!(Machine::decode(b"something else"), None);
    }
}
