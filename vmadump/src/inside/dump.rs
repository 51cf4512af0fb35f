//! The calling process writes its own image, read from a twin that stands still.

use std::io::Write;

use super::{Quiet, one_thread};
use crate::capture::{FdPolicy, Options, Room, Source, Survey};
use crate::cpu;
use crate::error::{Error, Refusal};
use crate::image::{
    Action, AltStack, Creds, Image, Meta, Mm, PosixTimer, Process, Rseq, Signals, Thread, Timers, Vdso, Writer, advice,
};
use crate::procfs;
use crate::sys::inside::{self as own, Context, Twin, twin};
use crate::sys::memory::MemFile;
use crate::sys::ptrace::{self as pt, reg};
use crate::sys::{own as machine, process};
use crate::wire::Bytes;

/// Writes the calling process to `out`. Returns the bytes written, and 0 in the process that is restored
/// from the image. Open files do not travel. `flags`: see [`crate::capture::DUMP_LIBS`] and the like.
pub fn dump_self(out: impl Write, flags: u32) -> Result<u64, Error> {
    one_thread()?;
    let pid = std::process::id() as i32;
    let options = Options { flags, fds: FdPolicy::StdioOnly, ..Options::default() };
    let survey = Survey::of_own(pid, &options)?;
    let quiet = Quiet::new();
    let mut context = Context::default();
    let Some(twin) = twin(&mut context)? else {
        // Restored: the mask came with the image, and what the twin's parent held open is not ours.
        std::mem::forget(quiet);
        return Ok(0);
    };
    let (image, source) = image_of(pid, &survey, &twin, &context, quiet.0)?;
    let failed = |why| Error::Io { op: "write", why };
    let mut writer = Writer::new(out, &image).map_err(failed)?;
    source.stream(&mut writer, &mut |_, _| {})?;
    writer.finish().map_err(failed)
}

/// What only a tracer learns: where restartable sequences are registered. The twin inherited it.
pub(super) fn rseq_of(twin: &Twin) -> Result<Rseq, Error> {
    pt::seize(twin.0, 0)?;
    pt::interrupt(twin.0)?;
    pt::wait(twin.0)?;
    let rseq = pt::rseq(twin.0);
    pt::detach(twin.0, 0)?;
    Ok(rseq)
}

fn image_of(pid: i32, survey: &Survey, twin: &Twin, context: &Context, mask: u64) -> Result<(Image, Source), Error> {
    let mut layout = survey.layout_of(twin.0)?;
    if layout.areas.iter().any(|a| a.advice & advice::DONT_FORK != 0) {
        return Err(Refusal::DontFork.into());
    }
    let memory = MemFile::open(twin.0)?;
    let status = &survey.status;
    let stat = procfs::stat(&std::fs::read("/proc/self/stat").unwrap_or_default());
    let mark = |i: usize| stat.get(i).copied().unwrap_or(0);
    let last = |v: &[i32]| v.last().copied().unwrap_or(0);
    let cpu = cpu::here();
    let (sp, stack_flags, size) = own::altstack();
    let (policy, priority, nice) = process::scheduling(0)?;
    let mut regs = [0u64; 27];
    let c = context;
    for (at, value) in
        [(0, c.r15), (1, c.r14), (2, c.r13), (3, c.r12), (4, c.rbp), (5, c.rbx), (reg::RSP, c.rsp), (reg::RIP, c.rip)]
    {
        regs[at] = value;
    }
    let [fs, gs] = own::bases();
    for (at, value) in [
        (reg::ORIG_RAX, u64::MAX),
        (reg::CS, 0x33),
        (reg::EFLAGS, 0x202),
        (20, 0x2b),
        (reg::FS_BASE, fs),
        (reg::GS_BASE, gs),
    ] {
        regs[at] = value;
    }
    let comm: Bytes = std::fs::read("/proc/self/comm")
        .unwrap_or_default()
        .trim_ascii_end()
        .iter()
        .copied()
        .take(15)
        .collect::<Vec<u8>>()
        .into();
    let thread = Thread {
        tid: last(&status.ns_pid).max(1),
        comm: comm.clone(),
        regs,
        xstate: own::xstate(cpu.xsize as usize).into(),
        blocked: mask,
        pending: Vec::new(),
        altstack: AltStack { sp, flags: stack_flags, size },
        robust: process::robust_list(0).unwrap_or_default(),
        tid_address: own::prctl_word(40),
        rseq: rseq_of(twin)?,
        creds: 0,
        policy,
        priority,
        nice,
        timer_slack: own::prctl_value(libc::PR_GET_TIMERSLACK).max(0) as u64,
        pdeathsig: (own::prctl_word(libc::PR_GET_PDEATHSIG) as u32).min(64),
        filters: Vec::new(),
    };
    let actions = (1..=64u32).filter(|s| *s != 9 && *s != 19).filter_map(|signal| {
        let [handler, flags, restorer, mask] = own::action(signal);
        (handler != 0 || flags & !0x0400_0000 != 0).then_some(Action { signal, handler, flags, restorer, mask })
    });
    let vdso = match procfs::vdso_of(&layout.maps) {
        Some((data_start, code)) => {
            let mut bytes = vec![0; (code.end - code.start) as usize];
            memory.read(code.start, &mut bytes)?;
            Some(Vdso { data_start, start: code.start, code: bytes.into() })
        }
        None => None,
    };
    let exe = survey.known.get(&survey.exe).map(|f| layout.file(f));
    let cwd =
        std::env::current_dir().map(|p| p.into_os_string().into_encoded_bytes()).unwrap_or_else(|_| b"/".to_vec());
    let mut image = Image {
        meta: Meta {
            pid: thread.tid,
            ppid: status.ppid,
            pgid: last(&status.ns_pgid),
            sid: last(&status.ns_sid),
            comm,
            cmdline: std::fs::read("/proc/self/cmdline").unwrap_or_default().into(),
            host: machine::host().into(),
            kernel: machine::kernel().into(),
            time_ns: machine::clock_ns(libc::CLOCK_REALTIME),
            monotonic_ns: machine::clock_ns(libc::CLOCK_MONOTONIC),
            boottime_ns: machine::clock_ns(libc::CLOCK_BOOTTIME),
            start_ticks: mark(22),
            utime_ticks: mark(14),
            stime_ticks: mark(15),
            flags: survey.options.flags,
            stopped: false,
            from_inside: true,
        },
        cpu,
        mm: Mm {
            marks: [
                mark(26),
                mark(27),
                mark(45),
                mark(46),
                mark(47),
                own::brk(),
                mark(28),
                mark(48),
                mark(49),
                mark(50),
                mark(51),
            ],
            auxv: std::fs::read("/proc/self/auxv").unwrap_or_default().into(),
            exe,
            dumpable: own::prctl_value(libc::PR_GET_DUMPABLE).clamp(0, 2) as u32,
            thp_disabled: own::prctl_value(42) == 1,
        },
        files: layout.files.clone(),
        areas: layout.areas.clone(),
        vdso,
        vdsos: Vec::new(),
        creds: vec![Creds {
            uids: status.uids,
            gids: status.gids,
            groups: status.groups.clone(),
            caps: status.caps,
            securebits: 0,
            no_new_privs: status.no_new_privs,
        }],
        threads: vec![thread],
        signals: Signals { actions: actions.collect(), pending: Vec::new() },
        timers: Timers { itimers: [0, 1, 2].map(own::itimer), posix: timers(pid)? },
        process: Process {
            limits: process::limits(0)?,
            umask: status.umask,
            cwd: cwd.into(),
            subreaper: own::prctl_word(libc::PR_GET_CHILD_SUBREAPER) as u32 == 1,
            oom_score_adj: 0,
        },
        fds: Vec::new(),
        processors: Vec::new(),
        memory_files: Vec::new(),
        settings: None,
        habits: None,
    };
    layout.tell_readable(&mut image);
    let source = Source::new(twin.0, memory, Room::touched(), &mut image, Vec::new())?;
    Ok((image, source))
}

fn timers(pid: i32) -> Result<Vec<PosixTimer>, Error> {
    let text = String::from_utf8_lossy(&std::fs::read("/proc/self/timers").unwrap_or_default()).into_owned();
    let mut all = Vec::new();
    for t in procfs::timers(&text) {
        if t.clock < 0 || t.notify & 3 == 2 {
            return Err(Refusal::Timer.into());
        }
        let [interval_ns, left_ns] = own::timer(t.id);
        all.push(PosixTimer {
            id: t.id,
            clock: t.clock,
            notify: t.notify,
            signal: t.signal,
            value: t.value,
            tid: pid,
            interval_ns,
            left_ns,
        });
    }
    all.sort_by_key(|t| t.id);
    Ok(all)
}
