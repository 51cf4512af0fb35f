//! What only the process itself can ask: run in all its threads at once, one batch each.

use super::Layout;
use super::fds;
use super::habits::{self, OfProcess, OfThread};
use super::survey::{Survey, proc_file, proc_record};
use super::vdsos::Vdsos;
use crate::batch::{Batch, Index, Results, Scratch};
use crate::error::{Error, Refusal};
use crate::image::{Action, AltStack, Creds, Image, Meta, Mm, PosixTimer, Process, Settings, Signals, Thread, Timers};
use crate::limits;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::{self as pt, reg};
use crate::sys::{own, process};
use crate::tracee::{Owed, Tracee, leave_rseq};
use crate::wire::Bytes;
use crate::{cpu, procfs};

const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_MEMORY_MERGE: u64 = 68;
/// So many POSIX timers fit the batch.
pub(super) const MOST_TIMERS: usize = 512;
const PER_THREAD: u64 = 4096;
const LEADER: u64 = 128 << 10;

/// Bytes of scratch memory for so many threads and areas that may have memory policies.
pub(super) fn room(threads: usize, placed: usize) -> u64 {
    4096 + leader(placed) + PER_THREAD * threads as u64
}

/// Bytes for the first thread's calls.
fn leader(placed: usize) -> u64 {
    LEADER + (habits::ROOM * placed as u64).next_multiple_of(4096)
}

/// Is the scratch memory mapped?
pub(super) fn laid(pid: i32, scratch: &Scratch) -> bool {
    proc_file(pid, "maps").is_ok_and(|text| procfs::maps(&text).iter().any(|m| m.start == scratch.base))
}

/// Timers of this kind can be made elsewhere.
pub(super) fn carries(timer: &procfs::Timer) -> bool {
    timer.clock >= 0 && timer.notify & 3 != 2
}

struct Each {
    altstack: u64,
    tid_address: u64,
    pdeath: u64,
    securebits: Index,
    slack: Index,
    habits: OfThread,
}

fn each(batch: &mut Batch) -> Each {
    let (altstack, tid_address, pdeath) = (batch.room(24), batch.room(8), batch.room(4));
    batch.must(libc::SYS_sigaltstack, &[0, altstack], "read the signal stack");
    batch.may(libc::SYS_prctl, &[PR_GET_TID_ADDRESS, tid_address], "read the tid address");
    batch.may(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG as u64, pdeath], "read the parent-death signal");
    let securebits = batch.may(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64], "read the secure bits");
    let slack = batch.may(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK as u64], "read the timer slack");
    Each { altstack, tid_address, pdeath, securebits, slack, habits: OfThread::ask(batch) }
}

struct Whole {
    actions: Vec<(u32, u64)>,
    itimers: [u64; 3],
    timers: Vec<(procfs::Timer, u64)>,
    brk: Index,
    dumpable: Index,
    thp: Index,
    merges: Index,
    subreaper: u64,
    clocks: [u64; 2],
    limits: [u64; 16],
    habits: OfProcess,
    /// MCL_* of what will be mapped.
    locks: u32,
}

fn whole(batch: &mut Batch, pid: i32, habits: impl FnOnce(&mut Batch) -> OfProcess) -> Result<Whole, Error> {
    let mut actions = Vec::new();
    for signal in (1..=64).filter(|s| *s != libc::SIGKILL as u32 && *s != libc::SIGSTOP as u32) {
        let at = batch.room(32);
        batch.must(libc::SYS_rt_sigaction, &[u64::from(signal), 0, at, 8], "read a signal handler");
        actions.push((signal, at));
    }
    let itimers = [0, 1, 2].map(|which| {
        let at = batch.room(32);
        batch.must(libc::SYS_getitimer, &[which, at], "read a timer");
        at
    });
    let text = String::from_utf8_lossy(&proc_file(pid, "timers").unwrap_or_default()).into_owned();
    let mut timers = Vec::new();
    for timer in procfs::timers(&text) {
        if !carries(&timer) || timers.len() >= MOST_TIMERS {
            return Err(Refusal::Timer.into());
        }
        let at = batch.room(32);
        batch.must(libc::SYS_timer_gettime, &[u64::from(timer.id), at], "read a timer");
        timers.push((timer, at));
    }
    let brk = batch.may(libc::SYS_brk, &[0], "read the break");
    let dumpable = batch.may(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64], "read dumpable");
    let thp = batch.may(libc::SYS_prctl, &[libc::PR_GET_THP_DISABLE as u64], "read the huge page setting");
    // Since Linux 6.4.
    let merges = batch.may(libc::SYS_prctl, &[PR_GET_MEMORY_MERGE, 0, 0, 0, 0], "read the merging of memory");
    let subreaper = batch.room(4);
    batch.may(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER as u64, subreaper], "read subreaper");
    let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].map(|clock| {
        let at = batch.room(16);
        batch.may(libc::SYS_clock_gettime, &[clock as u64, at], "read a clock");
        at
    });
    // From outside this would need CAP_SYS_RESOURCE for another user's process.
    let limits = std::array::from_fn(|which| {
        let at = batch.room(16);
        batch.must(libc::SYS_prlimit64, &[0, which as u64, 0, at], "read a limit");
        at
    });
    let habits = habits(batch);
    Ok(Whole { actions, itimers, timers, brk, dumpable, thp, merges, subreaper, clocks, limits, habits, locks: 0 })
}

/// Asks everything and makes the image without pages. Leaves the scratch memory mapped.
#[allow(clippy::too_many_arguments)]
pub(super) fn ask(
    pid: i32,
    survey: &Survey,
    layout: &Layout,
    vdsos: Vdsos,
    threads: &mut [Tracee],
    memory: &MemFile,
    gate: u64,
    scratch: &Scratch,
) -> Result<Image, Error> {
    for thread in threads.iter_mut() {
        if thread.regs()[reg::CS] != 0x33 {
            return Err(Refusal::Architecture.into());
        }
        let rip = thread.regs()[reg::RIP];
        if let Some(abort) = leave_rseq(memory, &thread.rseq(), rip)? {
            let mut regs = *thread.regs();
            regs[reg::RIP] = abort;
            let mask = thread.mask();
            thread.set_own(regs, mask);
            pt::set_mask(thread.tid(), !0)?;
        }
    }
    // The batch's own SIGSTOP ends a pending SIGCONT: those are noted before it, all others after it, for a
    // timer that goes off meanwhile is told by its signal only.
    let continues = pt::continues(pid, true)?;
    let mut each_continues = Vec::new();
    for thread in threads.iter_mut() {
        let own = pt::continues(thread.tid(), false)?;
        if !(own.is_empty() && continues.is_empty()) {
            // Should it not go at all.
            thread.owe(Some(Owed::Continue));
        }
        each_continues.push(own);
    }
    let xstates: Vec<Vec<u8>> = threads.iter().map(|t| pt::xstate(t.tid())).collect::<Result<_, _>>()?;
    limits::lay(&mut threads[0], gate, memory, scratch).map_err(|error| match error {
        Error::Inside { why, .. } if why.raw_os_error() == Some(libc::EACCES) => Refusal::NoNewCode.into(),
        error => error,
    })?;
    let mut batches = Vec::new();
    for i in 0..threads.len() as u64 {
        let mut batch =
            Batch::new(scratch.data() + if i == 0 { 0 } else { leader(survey.placed.len()) + PER_THREAD * i });
        let each = each(&mut batch);
        let habits = |batch: &mut Batch| OfProcess::ask(batch, &layout.areas, &survey.placed);
        let whole = if i == 0 { Some(whole(&mut batch, pid, habits)?) } else { None };
        batches.push((batch, each, whole));
    }
    let mut begun = Vec::new();
    let mut failed = None;
    for (thread, (batch, ..)) in threads.iter_mut().zip(&batches) {
        match thread.start(memory, scratch, batch) {
            Ok(()) => begun.push((thread, batch)),
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    let mut results: Vec<Results> = Vec::new();
    for (thread, batch) in begun {
        match thread.finish(memory, batch, &mut Vec::new()) {
            Ok(r) => results.push(r),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    // The kernel tells each thread of a SIGCONT.
    Tracee::owe_once(threads);
    if let Some(e) = failed {
        return Err(e);
    }
    let mut shared_pending = pt::pending(pid, true)?;
    shared_pending.extend(continues);
    let continued = Tracee::owed_to_any(threads) == Some(Owed::Continue);
    if continued && !shared_pending.iter().chain(each_continues.iter().flatten()).any(pt::is_continue) {
        // It came while the batch ran. From whom is not known.
        let mut info = vec![0; 128];
        info[0] = libc::SIGCONT as u8;
        shared_pending.push(Bytes(info));
    }
    let mut pendings = Vec::new();
    for (thread, more) in threads.iter().zip(each_continues) {
        let mut own = pt::pending(thread.tid(), false)?;
        own.extend(more);
        pendings.push(own);
    }
    let mut creds: Vec<Creds> = Vec::new();
    let mut list = Vec::new();
    let mut ids = Vec::new();
    for (i, (thread, pending)) in threads.iter().zip(pendings).enumerate() {
        let status = procfs::status(&proc_record(pid, &format!("task/{}/status", thread.tid()))?);
        let tid = status.ns_pid.last().copied().unwrap_or(thread.tid());
        ids.push((thread.tid(), tid));
        if let Some(whole) = &mut batches[i].2 {
            whole.locks = habits::locks(pid, status.locked, scratch)?;
        }
        let made = make_thread(
            thread,
            tid,
            &status,
            &mut creds,
            &batches[i].1,
            &results[i],
            pending,
            xstates[i].clone(),
            survey.filtered,
        )?;
        list.push(made);
    }
    let Some(whole) = &batches[0].2 else { return Err(Error::Gone(pid)) };
    let mut image = assemble(
        pid,
        survey,
        layout,
        vdsos,
        list,
        creds,
        whole,
        &results[0],
        shared_pending,
        &ids,
        threads[0].in_group_stop(),
    )?;
    let of_threads = batches.iter().zip(&results).map(|((_, each, _), got)| (&each.habits, got));
    image.habits = habits::assemble(pid, &whole.habits, &results[0], of_threads, whole.locks, &image.fds);
    Ok(image)
}

/// An interval timer that has gone off, and whose signal is not delivered yet, shows no time left.
fn still_running(mut timer: [u64; 4]) -> [u64; 4] {
    if timer[2] == 0 && timer[3] == 0 && (timer[0] != 0 || timer[1] != 0) {
        timer[3] = 1;
    }
    timer
}

#[allow(clippy::too_many_arguments)]
fn make_thread(
    thread: &Tracee,
    tid: i32,
    status: &procfs::Status,
    creds: &mut Vec<Creds>,
    asked: &Each,
    got: &Results,
    pending: Vec<Bytes>,
    xstate: Vec<u8>,
    filtered: bool,
) -> Result<Thread, Error> {
    let outer = thread.tid();
    let own = Creds {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        caps: status.caps,
        securebits: got.ret(asked.securebits).max(0) as u32,
        no_new_privs: status.no_new_privs,
    };
    let index = creds.iter().position(|c| *c == own).unwrap_or_else(|| {
        creds.push(own);
        creds.len() - 1
    });
    let mut comm = proc_record(outer, "comm")?;
    comm.truncate(comm.len().min(16));
    while comm.last() == Some(&b'\n') {
        comm.pop();
    }
    comm.truncate(15);
    let (policy, priority, nice) = process::scheduling(outer)?;
    Ok(Thread {
        tid,
        comm: comm.into(),
        regs: *thread.regs(),
        xstate: xstate.into(),
        blocked: thread.mask(),
        pending,
        altstack: AltStack {
            sp: got.word(asked.altstack),
            flags: got.half(asked.altstack + 8),
            size: got.word(asked.altstack + 16),
        },
        robust: process::robust_list(outer).unwrap_or_default(),
        tid_address: got.word(asked.tid_address),
        rseq: thread.rseq(),
        creds: index as u32,
        policy,
        priority,
        nice,
        timer_slack: got.ret(asked.slack).max(0) as u64,
        pdeathsig: got.half(asked.pdeath).min(64),
        filters: if filtered { pt::filters(outer)? } else { Vec::new() },
    })
}

#[allow(clippy::too_many_arguments)]
fn assemble(
    pid: i32,
    survey: &Survey,
    layout: &Layout,
    vdsos: Vdsos,
    threads: Vec<Thread>,
    creds: Vec<Creds>,
    asked: &Whole,
    got: &Results,
    pending: Vec<Bytes>,
    ids: &[(i32, i32)],
    stopped: bool,
) -> Result<Image, Error> {
    let stat = procfs::stat(&proc_record(pid, "stat")?);
    let mark = |i: usize| stat.get(i).copied().unwrap_or(0);
    let brk = (got.ret(asked.brk) as u64).max(mark(47));
    let last = |v: &[i32]| v.last().copied().unwrap_or(0);
    let time = |at: u64| got.word(at).saturating_mul(1_000_000_000).saturating_add(got.word(at + 8));
    let mut layout_files = layout.clone();
    let mut fds = fds::read(pid, survey.options.fds, &mut layout_files, &survey.channels.again(pid))?;
    fds::ask_counters(pid, &mut fds)?;
    let processors = bound(ids.iter().map(|(outer, _)| *outer))?;
    let hex = |name: &str| {
        let text = proc_record(pid, name).ok().and_then(|text| String::from_utf8(text).ok())?;
        u32::from_str_radix(text.trim(), 16).ok()
    };
    let io = ids.iter().map(|(outer, _)| process::io_priority(*outer).unwrap_or(0));
    let settings = hex("personality").zip(hex("coredump_filter")).map(|(personality, core_filter)| Settings {
        personality,
        core_filter,
        merges_memory: got.ret(asked.merges) == 1,
        io_priorities: io.collect(),
    });
    let exe = survey.known.get(&survey.exe).map(|f| layout_files.file(f));
    let status = &survey.status;
    let actions = asked.actions.iter().filter_map(|(signal, at)| {
        let w = |i: u64| got.word(at + 8 * i);
        let action = Action { signal: *signal, handler: w(0), flags: w(1), restorer: w(2), mask: w(3) };
        (action.handler != 0 || action.flags & !0x0400_0000 != 0).then_some(action)
    });
    let posix = asked.timers.iter().map(|(t, at)| PosixTimer {
        id: t.id,
        clock: t.clock,
        notify: t.notify,
        signal: t.signal,
        value: t.value,
        tid: ids.iter().find(|(outer, _)| *outer == t.tid).map_or(0, |i| i.1),
        interval_ns: time(*at),
        left_ns: time(*at + 16).max(u64::from(time(*at) != 0)),
    });
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"))
        .map(|p| p.into_os_string().into_encoded_bytes())
        .unwrap_or_else(|_| b"/".to_vec());
    let cwd = if cwd.ends_with(b" (deleted)") || cwd.first() != Some(&b'/') { b"/".to_vec() } else { cwd };
    let oom = proc_record(pid, "oom_score_adj")
        .ok()
        .and_then(|t| String::from_utf8(t).ok()?.trim().parse().ok())
        .unwrap_or(0);
    let mut posix: Vec<PosixTimer> = posix.collect();
    posix.sort_by_key(|t| t.id);
    Ok(Image {
        meta: Meta {
            pid: threads[0].tid,
            ppid: ns_parent(status),
            pgid: last(&status.ns_pgid),
            sid: last(&status.ns_sid),
            comm: threads[0].comm.clone(),
            cmdline: proc_file(pid, "cmdline").unwrap_or_default().into(),
            host: own::host().into(),
            kernel: own::kernel().into(),
            time_ns: own::clock_ns(libc::CLOCK_REALTIME),
            monotonic_ns: time(asked.clocks[0]),
            boottime_ns: time(asked.clocks[1]),
            start_ticks: mark(22),
            utime_ticks: mark(14),
            stime_ticks: mark(15),
            flags: survey.options.flags,
            stopped,
            from_inside: false,
        },
        cpu: cpu::here(),
        mm: Mm {
            marks: [
                mark(26),
                mark(27),
                mark(45),
                mark(46),
                mark(47),
                brk,
                mark(28),
                mark(48),
                mark(49),
                mark(50),
                mark(51),
            ],
            auxv: proc_record(pid, "auxv").unwrap_or_default().into(),
            exe,
            dumpable: got.ret(asked.dumpable).clamp(0, 2) as u32,
            thp_disabled: got.ret(asked.thp) == 1,
        },
        files: layout_files.files,
        areas: layout.areas.clone(),
        vdso: vdsos.own,
        vdsos: vdsos.others,
        creds,
        threads,
        signals: Signals { actions: actions.collect(), pending },
        timers: Timers {
            itimers: asked.itimers.map(|at| still_running([0, 8, 16, 24].map(|o| got.word(at + o)))),
            posix,
        },
        process: Process {
            limits: asked.limits.map(|at| [got.word(at), got.word(at + 8)]),
            umask: status.umask,
            cwd: cwd.into(),
            subreaper: got.half(asked.subreaper) == 1,
            oom_score_adj: oom,
        },
        fds,
        processors,
        settings,
        habits: None,
        memory_files: layout_files.memory.into_iter().map(|(_, file)| file).collect(),
    })
}

/// Processors of each thread, where one may not run on all that this program may.
fn bound(threads: impl Iterator<Item = i32>) -> Result<Vec<Bytes>, Error> {
    let all = process::processors(1).or_else(|_| process::processors(0))?;
    let of = |tid| process::processors(tid).map(|set| Bytes(if set == all { Vec::new() } else { set }));
    let each: Vec<Bytes> = threads.map(of).collect::<Result<_, _>>()?;
    Ok(if each.iter().any(|set| !set.is_empty()) { each } else { Vec::new() })
}

/// The parent's pid in the innermost namespace: known only where that is the reader's own.
fn ns_parent(status: &procfs::Status) -> i32 {
    if status.ns_pid.len() > 1 {
        let text = proc_record(status.ppid, "status").unwrap_or_default();
        let parent = procfs::status(&text);
        return if parent.ns_pid.len() == status.ns_pid.len() { parent.ns_pid.last().copied().unwrap_or(0) } else { 0 };
    }
    status.ppid
}
