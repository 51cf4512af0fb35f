//! Who is under Landlock: /proc does not tell. An iterator over tasks, as [`crate::subreaper`], which writes what user space
//! judges: only the kernel's own variables say where Landlock keeps its pointer among those of other security modules.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel_buf, generated::bpf_seq_write},
    programs::BtfTracePointContext,
};
use bproc_common::landlock::BYTES;

use crate::{
    maps::off,
    task::{self, Ptr},
};

/// Writes the beginning of what the security modules keep with a thread's credentials.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn landlock(ctx: *mut core::ffi::c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    let (meta, task): (*const *mut _, Ptr) = (ctx.arg(0), ctx.arg(1));
    if task.is_null() {
        return 0;
    }
    let mut kept = [0u8; BYTES];
    // SAFETY: a task of the iterator's, and where it writes to, the first field of what it says of itself. What cannot be
    // read is zero.
    unsafe {
        let at = task::follow(task, off!(task_cred)).and_then(|cred| task::follow(cred, off!(cred_security)));
        if let Some(at) = at {
            let _ = bpf_probe_read_kernel_buf(at, &mut kept);
        }
        bpf_seq_write(*meta, kept.as_ptr().cast(), BYTES as u32);
    }
    0
}
