//! Facts about the process that this code runs in.

use std::ffi::CStr;
use std::sync::OnceLock;

use crate::image::Vdso;
use crate::procfs;
use crate::wire::Bytes;

/// The kernel's vdso as it is in this process; the same in every process of this kernel but for its address.
pub(crate) fn vdso() -> Option<Vdso> {
    static FOUND: OnceLock<Option<Vdso>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Option<Vdso> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    let maps = procfs::maps(&text);
    let (data_start, code) = procfs::vdso_of(&maps)?;
    // SAFETY: the range is this process's own vdso, readable and never unmapped by us.
    let bytes = unsafe { std::slice::from_raw_parts(code.start as *const u8, (code.end - code.start) as usize) };
    Some(Vdso { data_start, start: code.start, code: Bytes(bytes.to_vec()) })
}

/// Kernel release.
pub(crate) fn kernel() -> String {
    names().0
}

/// Host name.
pub(crate) fn host() -> String {
    names().1
}

fn names() -> (String, String) {
    // SAFETY: zeros are a valid utsname, which outlives the call; its fields end in NUL.
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut names);
        let text = |field: &[libc::c_char]| CStr::from_ptr(field.as_ptr()).to_string_lossy().into_owned();
        (text(&names.release), text(&names.nodename))
    }
}

/// A clock in nanoseconds.
pub(crate) fn clock_ns(clock: i32) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now outlives the call.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// Can timers be made with chosen ids (PR_TIMER_CREATE_RESTORE_IDS, from 6.15)?
pub(crate) fn timer_ids() -> bool {
    // SAFETY: PR_TIMER_CREATE_RESTORE_IDS_GET takes no pointer and changes nothing.
    unsafe { libc::prctl(77, 2, 0, 0, 0) >= 0 }
}

/// Bytes that a thread may register for restartable sequences.
pub(crate) fn rseq_size() -> u32 {
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    const AT_RSEQ_ALIGN: u64 = 28;
    // SAFETY: only reads the auxiliary vector; 0 for what it lacks.
    let [size, align] = [AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN].map(|of| unsafe { libc::getauxval(of) } as u32);
    size.next_multiple_of(align.max(1))
}

/// Nodes of memory that may be used, a bit each.
pub(crate) fn memory_nodes() -> u64 {
    procfs::status(&std::fs::read("/proc/thread-self/status").unwrap_or_default()).nodes.max(1)
}

/// Does this kernel tell what is registered for memory barriers (MEMBARRIER_CMD_GET_REGISTRATIONS, from 6.3)?
pub(crate) fn tells_barriers() -> bool {
    // SAFETY: numbers only, and it changes nothing.
    unsafe { libc::syscall(libc::SYS_membarrier, 512, 0, 0) >= 0 }
}

/// Most descriptors that anybody may have.
pub(crate) fn most_descriptors() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(1 << 20)
}

/// Effective capabilities.
pub(crate) fn effective_caps() -> u64 {
    let status = std::fs::read("/proc/thread-self/status").unwrap_or_default();
    procfs::status(&status).caps[2]
}
