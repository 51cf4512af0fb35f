//! Signals to whole groups: which are, and which members one system call reaches.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
};

use crate::{
    SI_USER, current,
    maps::{CALLS, off},
    task::{self, Ptr},
};

const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGWINCH: i32 = 28;
/// `__NR_kill` of x86_64.
const KILL: u64 = 62;
/// Offsets in `struct pt_regs`: what the program asked for, and its first argument.
const REGS_ORIG_AX: u64 = 120;
const REGS_DI: u64 = 112;
/// `enum pid_type`.
const PIDTYPE_PGID: usize = 2;
/// Bytes of a list node, and where in it stands who comes before.
const NODE: usize = 16;
const BEFORE: u64 = 8;
/// Members that one looks over, at most, for the one that was reached before.
const LOOKS: u32 = 128;
/// What may pass between two members that one system call reaches, nanoseconds: the caller keeps its processor, which a
/// machine below may take away.
const MOST_NS: u64 = 1_000_000_000;
/// Where it does not keep it (PREEMPT_RT).
const MOST_PREEMPTED_NS: u64 = 5_000_000;

/// The name of the system call by which `task` is sent this signal with the rest of its group; `None` when it is not.
///
/// # Safety
/// `task` is a task that is being signalled.
#[inline(always)]
pub(crate) unsafe fn call(sig: i32, info: u64, task: Ptr) -> Option<u64> {
    if !is_to_group(sig, info)? {
        return None;
    }
    // SAFETY: the caller's promise; what is read is the kernel's, which holds the lock of all groups meanwhile.
    unsafe {
        let thread = current();
        let sender: u32 = task::load(thread, off!(task_pid));
        let left = task::load::<u64>(thread, off!(task_nvcsw)).wrapping_add(task::load(thread, off!(task_nivcsw)));
        let node = task as u64 + (off!(task_pid_links) + PIDTYPE_PGID * NODE) as u64;
        let signal = task::follow(task, off!(task_signal))?;
        let group = task::follow(signal, off!(signal_pids) + PIDTYPE_PGID * size_of::<Ptr>())?;
        let head = group as u64 + (off!(pid_tasks) + PIDTYPE_PGID * size_of::<Ptr>()) as u64;
        let now = bpf_ktime_get_ns();
        let call = match CALLS.get_ptr(sender) {
            Some(former) => {
                let [before, call, then, left_then] = *former;
                // The memory of one that was reached long ago may be another member's by now.
                let most = if left == left_then { MOST_NS } else { MOST_PREEMPTED_NS };
                let may_be = now.wrapping_sub(then) < most;
                if may_be && comes_before(before, node, head).unwrap_or(true) { call } else { now }
            }
            None => now,
        };
        CALLS.insert(sender, [node, call, now, left], u64::from(BPF_ANY)).ok()?;
        Some(call)
    }
}

/// Only a terminal's keys and sizes come from the kernel itself, and always to a group.
#[inline(always)]
fn is_to_group(sig: i32, info: u64) -> Option<bool> {
    if info <= 1 {
        return Some(info == 1 && (sig == SIGINT || sig == SIGQUIT || sig == SIGWINCH));
    }
    if task::probe::<i32>(info + off!(siginfo_code) as u64)? != SI_USER {
        return Some(false);
    }
    // SAFETY: the running task has registers; they are read with a helper that cannot fault.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    let whom = task::probe::<u64>(regs + REGS_DI)? as i32;
    Some(task::probe::<u64>(regs + REGS_ORIG_AX)? == KILL && whom <= 0 && whom != -1)
}

/// Whether `former` is found going back from `node`: the kernel reaches a group's members in the order of their list, each
/// once. So whoever was reached before and does not come before was reached by another system call. `None`: too far to tell.
#[inline(always)]
fn comes_before(former: u64, node: u64, head: u64) -> Option<bool> {
    let mut at = node;
    for _ in 0..LOOKS {
        // The place that leads to a node is the first word of the one before it, or the head.
        let Some(before) = task::probe::<u64>(at + BEFORE) else { return Some(false) };
        if before == former {
            return Some(true);
        }
        if before == head {
            return Some(false);
        }
        at = before;
    }
    None
}
