//! Thin eBPF programs: read, look up, emit. What user space can decide, it decides.
//!
//! Tracepoints report what happens to the processes of registered pid
//! namespaces and to registered ghosts; the LSM programs in [`guard`] also
//! refuse, and where fexit programs load, [`usage`] tells parents what their children used on nodes, and [`shown`] tells readers of
//! `/proc` what ghosts stand for. Offsets into the kernel's structures come from user space, which
//! loads only the programs that its role and the kernel allow.
#![no_std]
#![no_main]
// The attribute macros put the functions that are written here into others of their own.
#![allow(missing_docs, unreachable_pub)]

mod group;
mod guard;
mod landlock;
mod maps;
mod shown;
mod subreaper;
mod task;
mod usage;

use aya_ebpf::{
    bindings::{BPF_NOEXIST, task_struct},
    helpers::bpf_get_current_task_btf,
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};
use bproc_common::event::{Event, kind};

use crate::{
    maps::{EXITED, GHOSTS, KEEPERS, Note, SETTINGS, SPACES, STARTERS, count_loss, emit, off},
    task::{Ptr, Space},
};

/// GPL helpers are used, so the kernel must know the license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

const EEXIST: i32 = -17;
const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTTOU: i32 = 22;
/// `signal->flags`: init of a namespace, stopped only by SIGSTOP from outside.
const SIGNAL_UNKILLABLE: u32 = 0x40;
/// `signal->flags`: all threads have stopped.
const SIGNAL_STOP_STOPPED: u32 = 1;
/// `TRACE_SIGNAL_IGNORED` and `TRACE_SIGNAL_ALREADY_PENDING`.
const IGNORED: i32 = 1;
const ALREADY_PENDING: i32 = 2;
pub(crate) const SI_USER: i32 = 0;
const SI_QUEUE: i32 = -1;
const SI_KERNEL: i32 = 0x80;

/// The task that runs now.
#[inline(always)]
pub(crate) fn current() -> Ptr {
    // SAFETY: the helper has no preconditions.
    let task: *mut task_struct = unsafe { bpf_get_current_task_btf() };
    task.cast_const().cast()
}

#[inline(always)]
fn reported(space: &Space) -> bool {
    SPACES.get_ptr(space.inum).is_some()
}

#[inline(always)]
pub(crate) fn is_ghost(host_pid: u32) -> bool {
    GHOSTS.get_ptr(host_pid).is_some()
}

#[inline(always)]
pub(crate) fn is_keeper(host_pid: u32) -> bool {
    KEEPERS.get_ptr(host_pid).is_some()
}

/// FORK in a space, BEYOND on the master.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of the tracepoint: parent, child.
    unsafe { on_fork(ctx.arg(0), ctx.arg(1)) };
    0
}

#[inline(always)]
unsafe fn on_fork(parent: Ptr, child: Ptr) -> Option<()> {
    // SAFETY: both are pointers from the tracepoint.
    unsafe {
        if !task::is_leader(child) {
            return None;
        }
        let space = task::space_of_task(child)?;
        let beyond = is_beyond(parent, &space);
        if !beyond && !reported(&space) {
            return None;
        }
        let describe = |event: &mut Event, kind: u32| {
            task::describe(event, kind, child, &space);
            if kind == kind::FORK {
                (event.arg, event.arg2) = (event.pid, event.host_pid);
                event.pid = task::process_in(parent, &space);
                event.host_pid = task::host_pid(parent);
            }
        };
        if reported(&space) {
            free_at(child);
            emit(|event| describe(event, kind::FORK));
        }
        if beyond {
            emit(|event| describe(event, kind::BEYOND));
        }
    }
    Some(())
}

/// Whether a new process of the master's own was given a pid that is not local.
/// Ghosts, agent and keeper choose such pids on purpose.
///
/// # Safety
/// `parent` is a task.
#[inline(always)]
unsafe fn is_beyond(parent: Ptr, space: &Space) -> bool {
    let (Some(boundary), Some(inum)) = (SETTINGS.get(0), SETTINGS.get(1)) else {
        return false;
    };
    if *boundary == 0 || space.nr < *boundary || space.inum != *inum {
        return false;
    }
    // SAFETY: parent is a task.
    let host = unsafe { task::host_pid(parent) };
    !is_ghost(host) && !is_keeper(host)
}

/// EXEC.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of the tracepoint: task, old pid, bprm.
    unsafe { on_simple(kind::EXEC, ctx.arg(0), 0) };
    0
}

/// Reports something that needs no more than the task.
///
/// # Safety
/// `task` is a task.
#[inline(always)]
unsafe fn on_simple(what: u32, task: Ptr, arg: u32) -> Option<()> {
    // SAFETY: a pointer from the tracepoint.
    unsafe {
        let space = task::space_of_task(task)?;
        if !reported(&space) {
            return None;
        }
        if what == kind::EXEC {
            // A skeleton that has become a program: its signals are a program's from now on. Not there: never was one.
            let _ = GHOSTS.remove(task::host_pid(task));
        }
        emit(|event| {
            task::describe(event, what, task, &space);
            event.arg = arg;
        });
    }
    Some(())
}

/// EXIT. Whether the kernel says that the group is dead depends on its
/// version, so `signal->live` is read, and the note in `EXITED` keeps the last
/// two threads of a process from both reporting it.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument of the tracepoint: task.
    unsafe { on_exit(ctx.arg(0)) };
    0
}

#[inline(always)]
unsafe fn on_exit(task: Ptr) -> Option<()> {
    // SAFETY: a pointer from the tracepoint.
    unsafe {
        let signal = task::follow(task, off!(task_signal))?;
        if task::load::<i32>(signal, off!(signal_live)) != 0 {
            return None;
        }
        let space = task::space_of_task(task)?;
        if !reported(&space) {
            return None;
        }
        // Ghosts tell of the ends of their children, and nobody asks for their own.
        let parent = task::follow(task, off!(task_real_parent))?;
        if is_ghost(task::host_pid(task)) || is_ghost(task::host_pid(parent)) {
            return None;
        }
        let leader = task::follow(task, off!(task_group_leader))?;
        let key = leader as u64;
        let process = u64::from(task::process_in(task, &space));
        let note = [(u64::from(space.inum) << 32) | process, u64::from(task::host_pid(task)), task::start_of(task)];
        if let Some(former) = EXITED.get_ptr(key) {
            if same(&*former, &note) {
                return None;
            }
            free(key, &*former);
        }
        match EXITED.insert(key, note, u64::from(BPF_NOEXIST)) {
            Ok(()) => {}
            Err(EEXIST) => return None,
            Err(_) => count_loss(),
        }
        emit(|event| {
            task::describe(event, kind::EXIT, task, &space);
            task::add_exit(event, task, signal, leader);
        });
    }
    Some(())
}

/// FREE. Runs after a grace period, when nothing but the address is left of the pid.
/// Under load some kernels pass it over; then the next process at this address
/// shows that the one before is gone.
#[btf_tracepoint(function = "sched_process_free")]
pub fn process_free(ctx: BtfTracePointContext) -> i32 {
    free_at(ctx.arg(0));
    0
}

/// Reports the process that was noted for a `task_struct`, if there is one.
#[inline(always)]
fn free_at(task: Ptr) {
    let key = task as u64;
    if let Some(note) = EXITED.get_ptr(key) {
        // SAFETY: a value of the map, copied at once; entries live until a grace period ends.
        unsafe { free(key, &*note) };
    }
}

#[inline(always)]
fn free(key: u64, note: &Note) {
    let note = *note;
    // Whoever removes the note reports it.
    if EXITED.remove(key).is_ok() {
        emit(|event| {
            event.kind = kind::FREE;
            event.pidns = (note[0] >> 32) as u32;
            event.pid = note[0] as u32;
            event.host_pid = note[1] as u32;
            event.start_ns = note[2];
        });
    }
}

/// Whether two notes are about the same process.
#[inline(always)]
fn same(one: &Note, other: &Note) -> bool {
    one[1] == other[1] && one[2] == other[2]
}

/// RENAME of a process (its first thread). An exec renames too, just before its EXEC.
#[btf_tracepoint(function = "task_rename")]
pub fn process_rename(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of the tracepoint: task, new name.
    unsafe { on_rename(ctx.arg(0), ctx.arg(1)) };
    0
}

#[inline(always)]
unsafe fn on_rename(task: Ptr, name: *const u8) -> Option<()> {
    // SAFETY: pointers from the tracepoint; the name is read with a helper that cannot fault.
    unsafe {
        if !task::is_leader(task) {
            return None;
        }
        let space = task::space_of_task(task)?;
        if !reported(&space) {
            return None;
        }
        let mut comm = [0u8; 16];
        aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes(name, &mut comm).ok()?;
        let comm0 = u64::from_ne_bytes([comm[0], comm[1], comm[2], comm[3], comm[4], comm[5], comm[6], comm[7]]);
        let comm1 = u64::from_ne_bytes([comm[8], comm[9], comm[10], comm[11], comm[12], comm[13], comm[14], comm[15]]);
        let (now0, now1): (u64, u64) = (task::load(task, off!(task_comm)), task::load(task, off!(task_comm) + 8));
        if (now0, now1) == (comm0, comm1) {
            return None;
        }
        emit(|event| {
            task::describe(event, kind::RENAME, task, &space);
            (event.comm0, event.comm1) = (comm0, comm1);
        });
    }
    Some(())
}

/// STOP: a stop signal is taken with its default action.
#[btf_tracepoint(function = "signal_deliver")]
pub fn signal_deliver(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of the tracepoint: signal, info, action.
    unsafe { on_deliver(ctx.arg(0), ctx.arg(2)) };
    0
}

#[inline(always)]
unsafe fn on_deliver(sig: i32, action: Ptr) -> Option<()> {
    if !(SIGSTOP..=SIGTTOU).contains(&sig) {
        return None;
    }
    let task = current();
    // SAFETY: pointers from the tracepoint and the helper.
    unsafe {
        if sig != SIGSTOP {
            let signal = task::follow(task, off!(task_signal))?;
            let handler: u64 = task::load(action, off!(sa_handler));
            if handler != 0 || task::load::<u32>(signal, off!(signal_flags)) & SIGNAL_UNKILLABLE != 0 {
                return None;
            }
        }
        on_simple(kind::STOP, task, sig as u32)
    }
}

/// CONT in a space; SIGNAL and UNREAD to a ghost for what a ghost cannot see itself, GROUP for what it cannot tell apart; STARTER of
/// one that is killed.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of the tracepoint: signal, info, task, whether to all threads, result. `info` may be a
    // small number, so it is taken as one.
    unsafe { on_generate(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(4)) };
    0
}

/// Records of a signal that `task` is sent.
///
/// # Safety
/// `task` is a task that is being signalled, by the running one.
#[inline(always)]
unsafe fn on_generate(sig: i32, info: u64, task: Ptr, result: i32) -> Option<()> {
    // Of the most frequent one nothing is ever told, nor of what nobody gets: ghosts and skeletons block signals, and what
    // is blocked is not ignored. SIGCONT makes go on whoever ignores it.
    if sig == SIGCHLD || (result == IGNORED && sig != SIGCONT) {
        return None;
    }
    let stops = (SIGSTOP..=SIGTTOU).contains(&sig);
    // SAFETY: task is a pointer from the tracepoint.
    unsafe {
        let ghost = is_ghost(task::host_pid(task));
        if sig == SIGKILL && !ghost {
            return tell_starter(task);
        }
        if sig != SIGCONT && !ghost {
            return None;
        }
        let space = task::space_of_task(task)?;
        let told = sig == SIGCONT && reported(&space);
        if !ghost && !told {
            return None;
        }
        let describe = |event: &mut Event, kind: u32| {
            task::describe(event, kind, task, &space);
            event.arg = sig as u32;
        };
        if told {
            emit(|event| describe(event, kind::CONT));
        }
        let call = if !ghost || sig == SIGCONT || stops { 0 } else { group::call(sig, info, task).unwrap_or(0) };
        let tell = |kind: u32| {
            emit(|event| {
                describe(event, kind);
                add_sender(event, info, &space);
                (event.call, event.queued) = (call, u32::from(result != ALREADY_PENDING));
            });
        };
        let unseen = sig == SIGKILL || sig == SIGCONT || sig == SIGSTOP;
        if ghost && unseen {
            tell(kind::SIGNAL);
        } else if call != 0 {
            tell(kind::GROUP);
        }
        if ghost && stops {
            let signal = task::follow(task, off!(task_signal))?;
            if task::load::<u32>(signal, off!(signal_flags)) & SIGNAL_STOP_STOPPED != 0 {
                tell(kind::UNREAD);
            }
        }
    }
    Some(())
}

/// STARTER of one that is registered.
///
/// # Safety
/// `task` is a task that is being killed.
#[inline(always)]
unsafe fn tell_starter(task: Ptr) -> Option<()> {
    // SAFETY: as the caller's promise; a value of the map is copied at once.
    unsafe {
        let name = *STARTERS.get_ptr(task::host_pid(task))?;
        let space = task::space_of_task(task)?;
        emit(|event| {
            task::describe(event, kind::STARTER, task, &space);
            event.call = name;
        });
    }
    Some(())
}

/// Who sent a signal: 0 means a process without siginfo, 1 the kernel itself.
///
/// # Safety
/// The running task is the sender.
#[inline(always)]
unsafe fn add_sender(event: &mut Event, info: u64, space: &Space) {
    event.code = match info {
        0 => SI_USER,
        1 => SI_KERNEL,
        _ => task::probe(info + off!(siginfo_code) as u64).unwrap_or(SI_KERNEL),
    };
    if event.code > SI_USER {
        return;
    }
    let sender = current();
    // SAFETY: the running task is a task.
    unsafe {
        event.arg2 = task::process_in(sender, space);
        event.arg3 = task::real_uid(sender);
        event.utime_ns = task::other_rights(sender);
    }
    // What sigqueue's caller wrote there is what a receiver would read.
    if event.code == SI_QUEUE && info > 1 {
        event.arg2 = task::probe(info + off!(siginfo_pid) as u64).unwrap_or(0);
        event.arg3 = task::probe(info + off!(siginfo_uid) as u64).unwrap_or(0);
    }
}

/// Loaded only to find out whether the kernel takes fexit programs; never attached.
#[fexit(function = "bpf_fentry_test1")]
pub fn probe_fexit(_ctx: FExitContext) -> i32 {
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
