//! Reading tasks, pids and namespaces of the running kernel.
//!
//! Everything is read with `bpf_probe_read_kernel`, which cannot fault: see [`load`].

use aya_ebpf::helpers::bpf_probe_read_kernel;
use bproc_common::event::Event;

use crate::maps::off;

/// Pointer to an object of the kernel.
pub(crate) type Ptr = *const u8;

/// Deepest nesting of pid namespaces (`MAX_PID_NS_LEVEL`).
const MAX_LEVEL: u32 = 32;
/// More bytes than the numbers of one pid take at the deepest nesting.
const MAX_NUMBERS: u64 = 4096;
/// `signal->flags`: the group exits with `group_exit_code`.
const SIGNAL_GROUP_EXIT: u32 = 4;
/// `enum pid_type`.
const PIDTYPE_TGID: usize = 1;
const PIDTYPE_PGID: usize = 2;
const PIDTYPE_SID: usize = 3;

/// A field of a kernel object; zero when it cannot be read.
///
/// By the helper, although the verifier would let typed pointers be followed with plain loads: for each of those, and
/// again on each path to it, it looks for a name among all types of the kernel, which made a load of these programs
/// take a second. `T` is a number or a pointer.
///
/// # Safety
/// `base` is an object of the kernel; `offset` is that of a `T` in it.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(base: Ptr, offset: usize) -> T {
    // SAFETY: the helper cannot fault, and zero is a value of every `T` used here.
    unsafe { probe(base as u64 + offset as u64).unwrap_or(core::mem::zeroed()) }
}

/// A pointer field of a kernel object; `None` when null.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn follow(base: Ptr, offset: usize) -> Option<Ptr> {
    // SAFETY: the caller's promise.
    let next: Ptr = unsafe { load(base, offset) };
    if next.is_null() { None } else { Some(next) }
}

/// Reads kernel memory at any address; `None` when it cannot be read.
#[inline(always)]
pub(crate) fn probe<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper fails on a bad address and never faults.
    unsafe { bpf_probe_read_kernel(address as *const T).ok() }
}

/// A pid namespace as seen from one of its pids.
#[derive(Clone, Copy)]
pub(crate) struct Space {
    level: u32,
    ns: u64,
    /// Inode number of the namespace.
    pub(crate) inum: u32,
    /// The pid there.
    pub(crate) nr: u32,
}

/// Address of the number of `pid` at a level; `None` when it has no such level.
///
/// # Safety
/// `pid` is a `struct pid`.
#[inline(always)]
unsafe fn number_at(pid: Ptr, level: u32) -> Option<u64> {
    // SAFETY: as the caller's promise.
    let deepest: u32 = unsafe { load(pid, off!(pid_level)) };
    if level > deepest || level > MAX_LEVEL {
        return None;
    }
    let within = u64::from(level) * off!(upid_size) as u64;
    // Linux 6.1 forgets all bounds in a product and then refuses to add it.
    if within > MAX_NUMBERS {
        return None;
    }
    Some(pid as u64 + off!(pid_numbers) as u64 + within)
}

/// The active pid namespace of a `struct pid` and its number there.
///
/// # Safety
/// `pid` is a `struct pid`.
#[inline(always)]
pub(crate) unsafe fn space_of(pid: Ptr) -> Option<Space> {
    // SAFETY: as the caller's promise.
    let level: u32 = unsafe { load(pid, off!(pid_level)) };
    // SAFETY: as above.
    let upid = unsafe { number_at(pid, level) }?;
    let nr = probe::<u32>(upid + off!(upid_nr) as u64)?;
    let ns = probe::<u64>(upid + off!(upid_ns) as u64)?;
    let inum = probe::<u32>(ns + off!(pidns_inum) as u64)?;
    Some(Space { level, ns, inum, nr })
}

/// The active pid namespace of a task and the thread's number there.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn space_of_task(task: Ptr) -> Option<Space> {
    // SAFETY: as the caller's promise.
    unsafe { space_of(follow(task, off!(task_thread_pid))?) }
}

/// The number that a `struct pid` has in a namespace; 0 when it is not in it.
///
/// # Safety
/// `pid` is a `struct pid`.
#[inline(always)]
unsafe fn number_in(pid: Ptr, space: &Space) -> u32 {
    // SAFETY: as the caller's promise.
    let Some(upid) = (unsafe { number_at(pid, space.level) }) else {
        return 0;
    };
    if probe::<u64>(upid + off!(upid_ns) as u64) != Some(space.ns) {
        return 0;
    }
    probe::<u32>(upid + off!(upid_nr) as u64).unwrap_or(0)
}

/// Number of a task's process, group or session in a namespace.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
unsafe fn id_in(task: Ptr, which: usize, space: &Space) -> u32 {
    // SAFETY: as the caller's promise; signal->pids is an array of pointers.
    unsafe {
        let Some(signal) = follow(task, off!(task_signal)) else {
            return 0;
        };
        let Some(pid) = follow(signal, off!(signal_pids) + which * size_of::<Ptr>()) else {
            return 0;
        };
        number_in(pid, space)
    }
}

/// The process number of a task in a namespace; 0 when it is not in it.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn process_in(task: Ptr, space: &Space) -> u32 {
    // SAFETY: as the caller's promise.
    unsafe { id_in(task, PIDTYPE_TGID, space) }
}

/// The process number of a task in the initial namespace.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn host_pid(task: Ptr) -> u32 {
    // SAFETY: as the caller's promise.
    unsafe { load(task, off!(task_tgid)) }
}

/// Whether a task is the first of its process.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn is_leader(task: Ptr) -> bool {
    // SAFETY: as the caller's promise.
    unsafe { load::<u32>(task, off!(task_pid)) == host_pid(task) }
}

/// Real uid of a task.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn real_uid(task: Ptr) -> u32 {
    // SAFETY: as the caller's promise.
    unsafe {
        match follow(task, off!(task_cred)) {
            Some(cred) => load(cred, off!(cred_uid)),
            None => u32::MAX,
        }
    }
}

/// How the rights of a task differ from those of its real user: see `Event::utime_ns`.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn other_rights(task: Ptr) -> u64 {
    const CAP_KILL: u32 = 1 << 5;
    // SAFETY: as the caller's promise.
    unsafe {
        let Some(cred) = follow(task, off!(task_cred)) else { return 3 };
        let (real, effective): (u32, u32) = (load(cred, off!(cred_uid)), load(cred, off!(cred_euid)));
        let can_kill = load::<u32>(cred, off!(cred_cap_effective)) & CAP_KILL != 0;
        u64::from(real != effective) | u64::from(can_kill != (real == 0)) << 1
    }
}

/// Fills an event about a task, with everything that does not depend on the kind.
///
/// # Safety
/// `task` is a task and `space` is its namespace.
#[inline(always)]
pub(crate) unsafe fn describe(event: &mut Event, kind: u32, task: Ptr, space: &Space) {
    // SAFETY: as the caller's promise; the offsets are those of the types named.
    unsafe {
        event.kind = kind;
        event.pidns = space.inum;
        event.pid = process_in(task, space);
        event.pgid = id_in(task, PIDTYPE_PGID, space);
        event.sid = id_in(task, PIDTYPE_SID, space);
        event.host_pid = host_pid(task);
        event.comm0 = load(task, off!(task_comm));
        event.comm1 = load(task, off!(task_comm) + 8);
        event.start_ns = start_of(task);
        if let Some(parent) = follow(task, off!(task_real_parent)) {
            event.ppid = process_in(parent, space);
        }
        if let Some(cred) = follow(task, off!(task_cred)) {
            event.uid = load(cred, off!(cred_euid));
            event.gid = load(cred, off!(cred_egid));
        }
    }
}

/// When the process of a task was started, in nanoseconds of boot time.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
pub(crate) unsafe fn start_of(task: Ptr) -> u64 {
    // SAFETY: as the caller's promise.
    unsafe { load(load(task, off!(task_group_leader)), off!(task_start_boottime)) }
}

/// Completes an EXIT with the status that wait will show and the CPU time of all threads.
///
/// # Safety
/// `task` is the last thread of its process.
#[inline(always)]
pub(crate) unsafe fn add_exit(event: &mut Event, task: Ptr, signal: Ptr, leader: Ptr) {
    // SAFETY: as the caller's promise.
    unsafe {
        let flags: u32 = load(signal, off!(signal_flags));
        event.arg = if flags & SIGNAL_GROUP_EXIT != 0 {
            load(signal, off!(signal_group_exit_code))
        } else {
            load(leader, off!(task_exit_code))
        };
        event.utime_ns = load::<u64>(signal, off!(signal_utime)) + load::<u64>(task, off!(task_utime));
        event.stime_ns = load::<u64>(signal, off!(signal_stime)) + load::<u64>(task, off!(task_stime));
        // A leader that ended before its threads is a zombie, not yet in the sum.
        if !is_leader(task) {
            event.utime_ns += load::<u64>(leader, off!(task_utime));
            event.stime_ns += load::<u64>(leader, off!(task_stime));
        }
    }
}
