//! Who gets the children of a process when it ends: /proc tells of no `PR_SET_CHILD_SUBREAPER`. An iterator over tasks, which
//! user space narrows to one: nothing runs but when it is asked.

use aya_ebpf::programs::BtfTracePointContext;

use crate::{
    maps::{REAPER, off},
    task::{self, Ptr},
};

/// Ancestors that are looked at.
const MOST: u32 = 16;

/// Notes the nearest ancestor of the task that is a subreaper, by its number in the task's pid namespace; 0: there is none.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn subreaper(ctx: *mut core::ffi::c_void) -> i32 {
    // The second pointer of its context, as tracepoints have theirs: the task, null after the last.
    let task: Ptr = BtfTracePointContext::new(ctx).arg(1);
    if task.is_null() {
        return 0;
    }
    // SAFETY: a task of the iterator's.
    let found = unsafe { nearest(task) }.unwrap_or(0);
    // A slot that is always there.
    let _ = REAPER.set(0, found, 0);
    0
}

/// # Safety
/// `task` is a task.
#[inline(always)]
unsafe fn nearest(task: Ptr) -> Option<u32> {
    // SAFETY: the caller's promise; parents are tasks.
    unsafe {
        let space = task::space_of_task(task)?;
        let mut at = task;
        for _ in 0..MOST {
            at = task::follow(at, off!(task_real_parent))?;
            let number = task::process_in(at, &space);
            if number == 0 {
                return None;
            }
            let signal = task::follow(at, off!(task_signal))?;
            let bits: u8 = task::load(signal, off!(signal_subreaper) / 8);
            if bits >> (off!(signal_subreaper) % 8) & 1 != 0 {
                return Some(number);
            }
        }
        None
    }
}
