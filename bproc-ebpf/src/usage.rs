//! What processes used on their nodes, in what `wait4`, `waitid`, `getrusage` and `times` tell of children.
//!
//! The agent says what a process used before its ghost ends. When the ghost is reaped its parent is known, and
//! on the way out of the system call what the kernel wrote for the caller is amended. As the kernel, these programs count only
//! children that are waited for. They read registers and write user memory as x86-64 has them.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, bpf_probe_write_user},
    macros::{fentry, fexit, map},
    maps::{HashMap, LruHashMap},
    programs::{FEntryContext, FExitContext},
};
use bproc_common::event::{USAGE_MAX_RSS, Usage};

use crate::{
    current,
    maps::off,
    task::{self, Ptr},
};

/// Ghosts that have ended, or parents of such, at a time.
const FAMILIES: u32 = 1 << 16;
const MICROS: u64 = 1_000_000;
/// Microseconds in what times(2) counts.
const TICK: u64 = 10_000;
/// `who` of getrusage.
const RUSAGE_CHILDREN: i32 = -1;

/// Where `struct pt_regs` has the arguments of a system call.
const ARG0: u64 = 112;
const ARG1: u64 = 104;
const ARG3: u64 = 56;
const ARG4: u64 = 72;

/// What a process used on its nodes, by its ghost's number.
#[map]
pub(crate) static REMOTE: HashMap<u32, Usage> = HashMap::with_max_entries(FAMILIES, BPF_F_NO_PREALLOC);

/// What the children of a process used on nodes that it has waited for, and theirs; by its number.
#[map]
static CHILDREN: HashMap<u32, Usage> = HashMap::with_max_entries(FAMILIES, BPF_F_NO_PREALLOC);

/// What a thread has just reaped.
#[repr(C)]
#[derive(Clone, Copy)]
struct Reaped {
    /// In place of what the kernel says, which is the ghost's; else beside it.
    replaces: u64,
    usage: Usage,
}

/// By thread, until its system call returns.
#[map]
static REAPED: LruHashMap<u32, Reaped> = LruHashMap::with_max_entries(1 << 12, 0);

/// The last that is heard of a process, by whoever reaps it.
#[fentry(function = "release_task")]
pub fn usage_release(ctx: FEntryContext) -> i32 {
    // SAFETY: the argument is a task.
    unsafe { on_release(ctx.arg(0)) };
    0
}

#[inline(always)]
unsafe fn on_release(task: Ptr) {
    // SAFETY: a pointer from the kernel; values of the maps live until a grace period ends.
    unsafe {
        if !task::is_leader(task) {
            return;
        }
        let process = task::host_pid(task);
        if let Some(used) = REMOTE.get_ptr(process) {
            account(task, process, &*used, true);
            let _ = REMOTE.remove(process);
            let _ = CHILDREN.remove(process);
        } else if let Some(used) = CHILDREN.get_ptr(process) {
            account(task, process, &*used, false);
            let _ = CHILDREN.remove(process);
        }
    }
}

/// What a process used that is gone, for the parent that has waited for it.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
unsafe fn account(task: Ptr, process: u32, used: &Usage, replaces: bool) -> Option<()> {
    // SAFETY: task is one; values of the maps live until a grace period ends.
    unsafe {
        let parent = task::host_pid(task::follow(task, off!(task_real_parent))?);
        // Nobody waits where it is another: SIGCHLD is ignored, or a tracer lets it go.
        if parent != task::host_pid(current()) || parent == process {
            return None;
        }
        let reaped = Reaped { replaces: replaces.into(), usage: *used };
        let _ = REAPED.insert(bpf_get_current_pid_tgid() as u32, reaped, 0);
        match CHILDREN.get_ptr_mut(parent) {
            Some(sum) => add(&mut *sum, used),
            None => drop(CHILDREN.insert(parent, used, BPF_NOEXIST.into())),
        }
    }
    Some(())
}

/// As the kernel adds them: times, the largest of the memories, counts.
#[inline(always)]
fn add(sum: &mut Usage, more: &Usage) {
    for time in [0, 2] {
        let micros = sum[time + 1] + more[time + 1];
        let carry = u64::from(micros >= MICROS);
        sum[time] += more[time] + carry;
        sum[time + 1] = micros - carry * MICROS;
    }
    sum[USAGE_MAX_RSS] = sum[USAGE_MAX_RSS].max(more[USAGE_MAX_RSS]);
    for count in USAGE_MAX_RSS + 1..sum.len() {
        sum[count] += more[count];
    }
}

/// An argument of the system call whose registers these are.
#[inline(always)]
fn argument(registers: Ptr, which: u64) -> Option<u64> {
    task::probe(registers as u64 + which)
}

/// Adds to a `struct rusage` of the caller.
#[inline(always)]
fn amend(user: u64, more: &Usage) -> Option<()> {
    let place = user as *mut Usage;
    // SAFETY: the helpers fail on a bad address and never fault.
    unsafe {
        let mut sum = bpf_probe_read_user(place.cast_const()).ok()?;
        add(&mut sum, more);
        bpf_probe_write_user(place, &raw const sum).ok()
    }
}

/// The caller has reaped somebody, and has asked at `which` what he used.
///
/// # Safety
/// `registers` are those of the running task, at the end of its call.
#[inline(always)]
unsafe fn on_wait(registers: Ptr, which: u64, well: bool) -> Option<()> {
    // SAFETY: the helper has no preconditions; a value of the map lives until a grace period ends.
    unsafe {
        let thread = bpf_get_current_pid_tgid() as u32;
        let reaped = &*REAPED.get_ptr(thread)?;
        let user = argument(registers, which)?;
        if user != 0 && well {
            match reaped.replaces {
                0 => drop(amend(user, &reaped.usage)),
                _ => drop(bpf_probe_write_user(user as *mut Usage, &raw const reaped.usage)),
            }
        }
        REAPED.remove(thread).ok()
    }
}

/// wait4(pid, status, options, rusage).
#[fexit(function = "__x64_sys_wait4")]
pub fn usage_wait4(ctx: FExitContext) -> i32 {
    // SAFETY: the argument, and what is returned.
    unsafe { on_wait(ctx.arg(0), ARG3, ctx.arg::<i64>(1) > 0) };
    0
}

/// waitid(which, pid, info, options, rusage).
#[fexit(function = "__x64_sys_waitid")]
pub fn usage_waitid(ctx: FExitContext) -> i32 {
    // SAFETY: the argument, and what is returned.
    unsafe { on_wait(ctx.arg(0), ARG4, ctx.arg::<i64>(1) == 0) };
    0
}

/// getrusage(who, rusage).
#[fexit(function = "__x64_sys_getrusage")]
pub fn usage_getrusage(ctx: FExitContext) -> i32 {
    // SAFETY: the argument, and what is returned.
    unsafe { on_getrusage(ctx.arg(0), ctx.arg(1)) };
    0
}

#[inline(always)]
unsafe fn on_getrusage(registers: Ptr, result: i64) -> Option<()> {
    if result != 0 || argument(registers, ARG0)? as i32 != RUSAGE_CHILDREN {
        return None;
    }
    let children = CHILDREN.get_ptr((bpf_get_current_pid_tgid() >> 32) as u32)?;
    // SAFETY: a value of the map lives until a grace period ends.
    amend(argument(registers, ARG1)?, unsafe { &*children })
}

/// times(buffer): own and children's, each in user mode and in the kernel.
#[fexit(function = "__x64_sys_times")]
pub fn usage_times(ctx: FExitContext) -> i32 {
    // SAFETY: the argument.
    unsafe { on_times(ctx.arg(0)) };
    0
}

#[inline(always)]
unsafe fn on_times(registers: Ptr) -> Option<()> {
    // SAFETY: the helpers fail on a bad address and never fault; a value of the map lives until a grace period ends.
    unsafe {
        let children = &*CHILDREN.get_ptr((bpf_get_current_pid_tgid() >> 32) as u32)?;
        let place = argument(registers, ARG0)? as *mut [u64; 4];
        let mut times = bpf_probe_read_user(place.cast_const()).ok()?;
        times[2] += (children[0] * MICROS + children[1]) / TICK;
        times[3] += (children[2] * MICROS + children[3]) / TICK;
        bpf_probe_write_user(place, &raw const times).ok()
    }
}
