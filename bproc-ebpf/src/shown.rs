//! What processes do on their nodes, in what `/proc` shows of their ghosts.
//!
//! The kernel writes a text into memory of its own and copies it to the reader. The programs here note that a thread is shown
//! a ghost, and on the way out of its read write over the copy (`bproc_common::shown`). Who reads anything else pays a
//! look-up; nobody waits for a node.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_current_pid_tgid, bpf_loop, bpf_probe_read_user_buf, generated::bpf_probe_write_user},
    macros::{fexit, map},
    maps::{HashMap, LruHashMap, PerCpuArray},
    programs::FExitContext,
};
use bproc_common::shown::{Shown, TEXT, Work, file};

use crate::{
    maps::{GHOSTS, off},
    task::{self, Ptr},
};

/// What is shown instead of a ghost, by its number. User space sets how many there can be.
#[map]
pub(crate) static SHOWN: HashMap<u32, Shown> = HashMap::with_max_entries(1 << 12, BPF_F_NO_PREALLOC);

/// A thread is being shown a ghost.
#[repr(C)]
#[derive(Clone, Copy)]
struct Showing {
    /// The `seq_file`.
    by: u64,
    ghost: u32,
    which: u32,
}

/// By thread, until its read returns.
#[map]
static SHOWING: LruHashMap<u32, Showing> = LruHashMap::with_max_entries(1 << 10, 0);

/// Where a text is rewritten. The kernel runs a program once at a time on each processor.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// What a step needs to know.
struct Step<'a> {
    shown: &'a Shown,
    which: u32,
}

/// proc_tgid_stat(seq_file, namespace, pid, task).
#[fexit(function = "proc_tgid_stat")]
pub fn shown_stat(ctx: FExitContext) -> i32 {
    // SAFETY: the arguments.
    unsafe { on_show(ctx.arg(0), ctx.arg(3), file::STAT) }
}

/// proc_pid_status(seq_file, namespace, pid, task).
#[fexit(function = "proc_pid_status")]
pub fn shown_status(ctx: FExitContext) -> i32 {
    // SAFETY: the arguments.
    unsafe { on_show(ctx.arg(0), ctx.arg(3), file::STATUS) }
}

#[inline(always)]
unsafe fn on_show(by: u64, task: Ptr, which: u32) -> i32 {
    // SAFETY: task is one; the helper has no preconditions.
    unsafe {
        let ghost = task::host_pid(task);
        // A number that is another's by now may be in one of them, not in both.
        if SHOWN.get_ptr(ghost).is_some() && GHOSTS.get_ptr(ghost).is_some() {
            let showing = Showing { by, ghost, which };
            let _ = SHOWING.insert(bpf_get_current_pid_tgid() as u32, showing, 0);
        }
    }
    0
}

/// seq_read(file, buffer, size, position): how much was read.
#[fexit(function = "seq_read")]
pub fn shown_read(ctx: FExitContext) -> i32 {
    // SAFETY: the arguments, and what is returned.
    unsafe { on_read(ctx.arg(0), ctx.arg(1), ctx.arg(3), ctx.arg(4)) };
    0
}

#[inline(always)]
unsafe fn on_read(file: Ptr, buffer: u64, position: u64, read: i64) -> Option<()> {
    // SAFETY: pointers from the kernel; values of the maps live until a grace period ends; the helpers fail on a bad
    // address of the reader's and never fault.
    unsafe {
        let thread = bpf_get_current_pid_tgid() as u32;
        let showing = *SHOWING.get_ptr(thread)?;
        let _ = SHOWING.remove(thread);
        let by: u64 = task::load(file, off!(file_private_data));
        // Another file's, or not from its beginning.
        if by != showing.by || read <= 0 || task::probe::<i64>(position)? != read {
            return None;
        }
        let step = Step { shown: &*SHOWN.get_ptr(showing.ghost)?, which: showing.which };
        let work = &mut *WORK.get_ptr_mut(0)?;
        let place = work.begin(step.which, read as u64)?;
        bpf_probe_read_user_buf(buffer as *const u8, place).ok()?;
        bpf_loop(TEXT as u32 + Work::MORE, on_step as *mut c_void, (&raw const step).cast_mut().cast(), 0);
        let text = (*WORK.get_ptr(0)?).end(step.which)?;
        bpf_probe_write_user(buffer as *mut c_void, text.as_ptr().cast(), text.len() as u32);
    }
    Some(())
}

/// Called by the kernel, with what was given to `bpf_loop`. Not 0: enough.
///
/// # Safety
/// `step` is what was given, and lives.
unsafe extern "C" fn on_step(_number: u64, step: *const Step<'_>) -> i64 {
    // SAFETY: the step lives in the caller; the place of the work is this processor's own.
    unsafe {
        match WORK.get_ptr_mut(0) {
            Some(work) => (*work).step((*step).which, (*step).shown).into(),
            None => 1,
        }
    }
}
