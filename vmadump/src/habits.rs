//! Few processes have anything of [`crate::image::Habits`]: how it is set again.

use crate::compile::Compiler;
use crate::image::{FdKind, Policy};

/// Bits of a mask of nodes, as the kernel counts them.
const NODES: u64 = 65;
/// F_SETOWN_EX, F_SETSIG.
const SET_OWNER: u64 = 15;
const SET_SIGNAL: u64 = 10;
/// PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_DEFAULT.
const MCE_KILL: u64 = 33;
const MCE_SET: u64 = 1;
const MCE_DEFAULT: u32 = 2;

impl Compiler<'_> {
    /// An area's memory comes from there.
    pub(crate) fn place(&mut self, start: u64, len: u64, policy: &Policy) {
        let nodes = self.batch.words(&[policy.nodes]);
        let args = [start, len, policy.mode.into(), nodes, NODES, 0];
        self.batch.may(libc::SYS_mbind, &args, "bind an area to nodes of memory");
    }

    /// Of the process, while it has one thread and root's rights.
    pub(crate) fn habits(&mut self) {
        let Some(habits) = &self.image.habits else { return };
        for command in (0..32).map(|bit| 1u32 << bit).filter(|bit| habits.barriers & bit != 0) {
            // Whoever counts on one must not go on without it.
            self.batch.must(libc::SYS_membarrier, &[command.into(), 0, 0], "register memory barriers (membarrier)");
        }
        if habits.locks != 0 {
            self.batch.may(libc::SYS_mlockall, &[habits.locks.into()], "lock what will be mapped");
        }
    }

    /// Of a thread, by its place in the list: run in that thread.
    pub(crate) fn thread_habits(&mut self, thread: usize) {
        let Some(habits) = &self.image.habits else { return };
        if let Some(how) = habits.memory_faults.get(thread).filter(|how| **how != MCE_DEFAULT) {
            let args = [MCE_KILL, MCE_SET, (*how).into(), 0, 0];
            self.batch.may(libc::SYS_prctl, &args, "choose what becomes of it when memory fails");
        }
        if let Some(policy) = habits.policies.get(thread).filter(|policy| policy.mode != 0) {
            let nodes = self.batch.words(&[policy.nodes]);
            let args = [policy.mode.into(), nodes, NODES];
            self.batch.may(libc::SYS_set_mempolicy, &args, "choose nodes of memory");
        }
    }

    /// Who is told of descriptors, with the rights that the process has in the end: the kernel remembers whose signal it is.
    /// `pid` is the one that it has now.
    pub(crate) fn told(&mut self, pid: i32) {
        let image = self.image;
        for told in image.habits.iter().flat_map(|habits| &habits.told) {
            let is = |fd: &crate::image::Fd| {
                fd.fd == told.fd && matches!(fd.kind, FdKind::Pipe { .. } | FdKind::Socket { .. })
            };
            if !image.fds.iter().any(is) {
                continue;
            }
            if told.id != 0 {
                let id = if told.id == image.meta.pid { pid } else { told.id };
                let owner = self.batch.words(&[u64::from(told.kind as u32) | u64::from(id as u32) << 32]);
                self.batch.may(libc::SYS_fcntl, &[told.fd as u64, SET_OWNER, owner], "choose who is told");
            }
            if told.signal != 0 {
                self.batch.may(libc::SYS_fcntl, &[told.fd as u64, SET_SIGNAL, told.signal.into()], "choose the signal");
            }
        }
    }
}
