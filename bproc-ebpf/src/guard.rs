//! LSM programs: they decide, so there are only two, and each refuses as little as it can.
//!
//! The verifier wants the result in [-4095, 0], and a returned -ESRCH makes the
//! kernel loop for ever; [`verdict`] sees to both.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use bproc_common::event::kind;

use crate::{
    current, is_ghost, is_keeper,
    maps::{LEASES, emit, off},
    task::{self, Ptr},
};

const EPERM: i32 = 1;
const EAGAIN: i32 = 11;
/// `PTRACE_MODE_ATTACH`: to trace, to read memory or to take descriptors, not merely to look.
const PTRACE_MODE_ATTACH: u32 = 2;

/// 0, or minus an errno that the verifier can see the range of.
#[inline(always)]
fn verdict(refuse: Option<i32>) -> i32 {
    match refuse {
        Some(errno) => ((4095 - errno) & 0xfff) - 4095,
        None => 0,
    }
}

/// Nobody but the keeper and the agent may trace a ghost: the gate would be lost.
#[lsm(hook = "ptrace_access_check")]
pub fn guard_ptrace(ctx: LsmContext) -> i32 {
    // SAFETY: arguments of the hook: child, mode, result of the programs before.
    let (child, mode, before): (Ptr, u32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if before != 0 {
        return ((4095 + before) & 0xfff) - 4095;
    }
    // SAFETY: child is a task from the hook.
    verdict(unsafe { refuse_trace(child, mode) })
}

#[inline(always)]
unsafe fn refuse_trace(child: Ptr, mode: u32) -> Option<i32> {
    // SAFETY: pointers from the hook and the helper.
    unsafe {
        let tracer = current();
        if mode & PTRACE_MODE_ATTACH == 0 || !is_ghost(task::host_pid(child)) || is_keeper(task::host_pid(tracer)) {
            return None;
        }
        if let Some(space) = task::space_of_task(child) {
            emit(|event| {
                task::describe(event, kind::REFUSED, child, &space);
                event.arg = mode;
                event.arg2 = task::process_in(tracer, &space);
                event.arg3 = task::real_uid(tracer);
            });
        }
    }
    Some(EPERM)
}

/// A fork that would take a pid outside the namespace's lease fails as if the
/// process limit were reached; ghosts and keepers choose their pids themselves.
#[lsm(hook = "task_alloc")]
pub fn guard_lease(ctx: LsmContext) -> i32 {
    // SAFETY: arguments of the hook: task, flags, result of the programs before.
    let before: i32 = ctx.arg(2);
    if before != 0 {
        return ((4095 + before) & 0xfff) - 4095;
    }
    // SAFETY: reads the running task only.
    verdict(unsafe { refuse_fork() })
}

#[inline(always)]
unsafe fn refuse_fork() -> Option<i32> {
    // SAFETY: the running task is a task.
    unsafe {
        let task = current();
        let nsproxy = task::follow(task, off!(task_nsproxy))?;
        let ns = task::follow(nsproxy, off!(nsproxy_pid_ns))?;
        let inum: u32 = task::load(ns, off!(pidns_inum));
        let lease = *LEASES.get_ptr(inum)?;
        let next: u32 = task::load(ns, off!(pidns_idr_next));
        let (first, last) = (lease as u32, (lease >> 32) as u32);
        let host = task::host_pid(task);
        if (first..=last).contains(&next) || is_ghost(host) || is_keeper(host) {
            return None;
        }
    }
    Some(EAGAIN)
}
