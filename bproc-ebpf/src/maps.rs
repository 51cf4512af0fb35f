//! Maps: what user space asks to hear about, and the ring that it hears through.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use aya_log_ebpf::warn;
use bproc_common::event::{Event, Offsets};

/// Processes at most; user space sets what this machine can hold.
const PIDS: u32 = 1 << 12;

/// Patched by user space before the load; frozen afterwards, so that the
/// verifier knows each offset as a constant.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_pid: 0,
    task_tgid: 0,
    task_signal: 0,
    task_real_parent: 0,
    task_group_leader: 0,
    task_thread_pid: 0,
    task_pid_links: 0,
    task_cred: 0,
    task_comm: 0,
    task_start_boottime: 0,
    task_utime: 0,
    task_stime: 0,
    task_exit_code: 0,
    task_nsproxy: 0,
    task_nvcsw: 0,
    task_nivcsw: 0,
    signal_live: 0,
    signal_flags: 0,
    signal_group_exit_code: 0,
    signal_pids: 0,
    signal_subreaper: 0,
    signal_utime: 0,
    signal_stime: 0,
    pid_level: 0,
    pid_tasks: 0,
    pid_numbers: 0,
    upid_nr: 0,
    upid_ns: 0,
    upid_size: 0,
    pidns_inum: 0,
    pidns_idr_next: 0,
    cred_uid: 0,
    cred_euid: 0,
    cred_egid: 0,
    cred_cap_effective: 0,
    cred_security: 0,
    nsproxy_pid_ns: 0,
    sa_handler: 0,
    siginfo_code: 0,
    siginfo_pid: 0,
    siginfo_uid: 0,
    file_private_data: 0,
};

/// Offset of a field in the running kernel.
macro_rules! off {
    ($field:ident) => {
        $crate::maps::offset(|all| &all.$field)
    };
}
pub(crate) use off;

/// Reads one offset; volatile, because the value in the object is not the one at run time.
#[inline(always)]
pub(crate) fn offset(pick: impl FnOnce(&'static Offsets) -> &'static u32) -> usize {
    // SAFETY: a reference to a static is readable.
    unsafe { core::ptr::read_volatile(pick(&OFFSETS)) as usize }
}

/// Events on their way to user space.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

/// Events that found the ring full, or no memory, for each CPU.
#[map]
static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Pid namespaces (by inode number) whose processes are reported.
#[map]
pub(crate) static SPACES: HashMap<u32, u8> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Ghosts and skeletons, by their process number in the initial namespace.
#[map]
pub(crate) static GHOSTS: HashMap<u32, u8> = HashMap::with_max_entries(PIDS, BPF_F_NO_PREALLOC);

/// Processes of the master's own of which SIGKILL is told, by their process number in the initial namespace, and their names.
#[map]
pub(crate) static STARTERS: HashMap<u32, u64> = HashMap::with_max_entries(1 << 14, BPF_F_NO_PREALLOC);

/// Our own processes that may trace ghosts and choose pids: agent, keeper, init of a space.
#[map]
pub(crate) static KEEPERS: HashMap<u32, u8> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// By the thread that signals a group: the list node of the last member that it reached, the name of its system call, when it was, and
/// how often the thread had left its processor.
#[map]
pub(crate) static CALLS: LruHashMap<u32, [u64; 4]> = LruHashMap::with_max_entries(1024, 0);

/// Pids that a namespace may hand out: first in the low half, last in the high half.
#[map]
pub(crate) static LEASES: HashMap<u32, u64> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// What the program `subreaper` found last.
#[map]
pub(crate) static REAPER: Array<u32> = Array::with_max_entries(1, 0);

/// `[0]`: first pid that is not the master's own (0: no boundary); `[1]`: the master's pid namespace.
#[map]
pub(crate) static SETTINGS: Array<u32> = Array::with_max_entries(2, 0);

/// Namespace (high half) and pid, pid in the initial namespace, start time.
pub(crate) type Note = [u64; 3];

/// Processes that exited and were not reaped, by their leader's `task_struct`.
/// Its pid is detached when it is reaped, so it must be noted before.
#[map]
pub(crate) static EXITED: HashMap<u64, Note> = HashMap::with_max_entries(PIDS, BPF_F_NO_PREALLOC);

/// Hands an event to user space, or counts that it could not. It is filled where it will be read: the verifier follows
/// what is written to a stack, on each path, but not what is written to a ring.
#[inline(always)]
pub(crate) fn emit(fill: impl FnOnce(&mut Event)) {
    let Some(mut place) = EVENTS.reserve::<Event>(0) else {
        return count_loss();
    };
    let event = place.write(Event { ..Event::default() });
    fill(event);
    // SAFETY: the helper has no preconditions.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    place.submit(0);
}

/// Counts one event that user space will not see.
#[inline(never)]
pub(crate) fn count_loss() {
    if let Some(count) = DROPPED.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own; a nested program can at worst lose one count of many.
        let lost = unsafe {
            *count += 1;
            *count
        };
        // A ring that is full once is full often: say it less and less.
        if lost & (lost - 1) == 0 {
            warn!((), "{} events lost on one CPU: the reader is too slow", lost);
        }
    }
}
