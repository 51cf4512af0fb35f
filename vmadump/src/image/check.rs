//! Do the parts of an image fit together? Everything later relies on what is checked here.

use super::{AreaKind, FdKind, Habits, Image, MOST_VDSOS, PAGE, TASK_END};

/// Lowest address that an image may use (mmap_min_addr of every usual kernel).
pub(crate) const LOWEST: u64 = 0x1_0000;

/// Parts that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// Areas overlap, are out of order, unaligned or outside of user space.
    #[error("its memory areas overlap or lie outside of user space")]
    Areas,
    /// A file index points nowhere.
    #[error("it refers to a file that is not in its file table")]
    FileIndex,
    /// A path is relative, empty, too long or has a NUL.
    #[error("it has a path that cannot be one")]
    Path,
    /// No thread, the same thread twice, or impossible ids.
    #[error("its threads are impossible")]
    Threads,
    /// Credentials index points nowhere, or too many groups.
    #[error("its credentials are impossible")]
    Creds,
    /// Extended state is too large or its layout overlaps.
    #[error("its CPU state is impossible")]
    Cpu,
    /// Signal numbers, siginfo sizes.
    #[error("its signals are impossible")]
    Signals,
    /// Timer values.
    #[error("its timers are impossible")]
    Timers,
    /// Descriptor numbers.
    #[error("its descriptors are impossible")]
    Fds,
    /// The vdso is no page-aligned user memory.
    #[error("its vdso is impossible")]
    Vdso,
}

fn ensure(fine: bool, otherwise: Unsound) -> Result<(), Unsound> {
    if fine { Ok(()) } else { Err(otherwise) }
}

fn is_path(path: &[u8]) -> bool {
    path.first() == Some(&b'/') && path.len() < 4096 && !path.contains(&0)
}

pub(crate) fn check(image: &Image) -> Result<(), Unsound> {
    areas(image)?;
    threads(image)?;
    for file in &image.files {
        ensure(is_path(&file.path) && file.mtime_ns < 1_000_000_000 && file.build_id.len() <= 64, Unsound::Path)?;
    }
    ensure(image.mm.exe.is_none_or(|i| (i as usize) < image.files.len()), Unsound::FileIndex)?;
    ensure(is_path(&image.process.cwd), Unsound::Path)?;
    ensure(image.mm.auxv.len() <= 8192 && image.mm.auxv.len().is_multiple_of(8), Unsound::Areas)?;
    ensure(!image.creds.is_empty() && image.creds.iter().all(|c| c.groups.len() <= 65536), Unsound::Creds)?;
    let cpu = &image.cpu;
    ensure(cpu.xsize <= 1 << 16 && cpu.features.len() <= 64 && cpu.components.len() <= 64, Unsound::Cpu)?;
    ensure(
        cpu.components
            .iter()
            .all(|c| c.bit < 64 && c.offset <= 1 << 16 && c.size <= 1 << 16 && c.offset + c.size <= cpu.xsize),
        Unsound::Cpu,
    )?;
    ensure(image.signals.actions.iter().all(|a| (1..=64).contains(&a.signal)), Unsound::Signals)?;
    let mut pending = image.signals.pending.iter().chain(image.threads.iter().flat_map(|t| &t.pending));
    ensure(
        pending.all(|p| p.len() == 128 && (1..=64).contains(&i32::from_le_bytes([p[0], p[1], p[2], p[3]]))),
        Unsound::Signals,
    )?;
    let timers = &image.timers;
    ensure(timers.itimers.iter().all(|t| t[1] < 1_000_000 && t[3] < 1_000_000), Unsound::Timers)?;
    let far = i64::MAX as u64;
    ensure(timers.posix.iter().all(|t| t.id < 1 << 31 && t.interval_ns <= far && t.left_ns <= far), Unsound::Timers)?;
    ensure(timers.posix.windows(2).all(|w| w[0].id < w[1].id), Unsound::Timers)?;
    memory_files(image)?;
    fds(image)?;
    let bound = &image.processors;
    ensure(bound.is_empty() || bound.len() == image.threads.len(), Unsound::Threads)?;
    ensure(bound.iter().all(|set| set.len() <= 1024), Unsound::Threads)?;
    if let Some(settings) = &image.settings {
        ensure(settings.io_priorities.len() == image.threads.len(), Unsound::Threads)?;
    }
    image.habits.as_ref().map_or(Ok(()), |all| habits(image, all))?;
    vdsos(image)
}

/// Each is page-aligned user memory, and apart from all else.
fn vdsos(image: &Image) -> Result<(), Unsound> {
    ensure(image.vdsos.len() <= MOST_VDSOS, Unsound::Vdso)?;
    let mut taken: Vec<(u64, u64)> = image.areas.iter().map(|a| (a.start, a.end)).collect();
    for vdso in image.vdso.iter().chain(&image.vdsos) {
        let end = vdso.start.checked_add(vdso.code.len() as u64);
        let fine = vdso.data_start.is_multiple_of(PAGE)
            && vdso.start.is_multiple_of(PAGE)
            && vdso.data_start >= LOWEST
            && vdso.data_start <= vdso.start
            && vdso.start - vdso.data_start <= 256 * PAGE
            && !vdso.code.is_empty()
            && (vdso.code.len() as u64).is_multiple_of(PAGE)
            && vdso.code.len() as u64 <= 64 * PAGE
            && end.is_some_and(|e| e <= TASK_END && taken.iter().all(|t| t.1 <= vdso.data_start || t.0 >= e));
        ensure(fine, Unsound::Vdso)?;
        taken.push((vdso.data_start, end.unwrap_or(TASK_END)));
    }
    Ok(())
}

fn areas(image: &Image) -> Result<(), Unsound> {
    let mut last = LOWEST;
    for area in &image.areas {
        let fine = area.start >= last
            && area.start < area.end
            && area.end <= TASK_END
            && area.start.is_multiple_of(PAGE)
            && area.end.is_multiple_of(PAGE)
            && area.prot <= 7
            && area.pages <= (area.end - area.start) / PAGE;
        ensure(fine, Unsound::Areas)?;
        last = area.end;
        match area.kind {
            AreaKind::File { file, offset } => {
                ensure((file as usize) < image.files.len(), Unsound::FileIndex)?;
                ensure(
                    offset.is_multiple_of(PAGE)
                        && offset.checked_add(area.end - area.start).is_some_and(|e| e < 1 << 62),
                    Unsound::Areas,
                )?;
                ensure(!area.shared || area.prot & 2 == 0, Unsound::Areas)?;
            }
            AreaKind::Shared { offset, .. } => {
                ensure(area.shared, Unsound::Areas)?;
                ensure(
                    offset.is_multiple_of(PAGE)
                        && offset.checked_add(area.end - area.start).is_some_and(|e| e < 1 << 62),
                    Unsound::Areas,
                )?;
            }
            AreaKind::Anon | AreaKind::Data | AreaKind::Contents { .. } => ensure(!area.shared, Unsound::Areas)?,
        }
    }
    Ok(())
}

fn threads(image: &Image) -> Result<(), Unsound> {
    ensure(!image.threads.is_empty() && image.threads[0].tid == image.meta.pid, Unsound::Threads)?;
    let mut tids: Vec<i32> = image.threads.iter().map(|t| t.tid).collect();
    tids.sort_unstable();
    ensure(tids[0] > 0 && tids.windows(2).all(|w| w[0] != w[1]), Unsound::Threads)?;
    for thread in &image.threads {
        ensure((thread.creds as usize) < image.creds.len(), Unsound::Creds)?;
        ensure(thread.comm.len() < 16 && !thread.comm.contains(&0), Unsound::Threads)?;
        ensure((576..=1 << 16).contains(&thread.xstate.len()), Unsound::Cpu)?;
        ensure(
            thread.filters.iter().all(|f| f.len().is_multiple_of(8) && (8..=8 * 4096).contains(&f.len())),
            Unsound::Threads,
        )?;
        ensure(thread.pdeathsig <= 64 && thread.priority < 100 && (-20..=19).contains(&thread.nice), Unsound::Threads)?;
        ensure(thread.rseq.address < TASK_END && thread.rseq.size <= 4096, Unsound::Threads)?;
        let [rip, fs, gs] = [thread.regs[16], thread.regs[21], thread.regs[22]];
        ensure(rip < TASK_END && fs < TASK_END && gs < TASK_END, Unsound::Threads)?;
    }
    Ok(())
}

/// The contents of each are as long as it is, and come once; each shows one memory.
fn memory_files(image: &Image) -> Result<(), Unsound> {
    const MOST: usize = 1 << 16;
    /// The longest name that memfd_create takes.
    const NAME: usize = 249;
    ensure(image.memory_files.len() <= MOST, Unsound::Fds)?;
    let mut objects = Vec::new();
    for file in &image.memory_files {
        ensure(file.name.len() <= NAME && !file.name.contains(&0) && file.size < 1 << 62, Unsound::Fds)?;
        objects.extend(file.object);
    }
    objects.sort_unstable();
    ensure(objects.windows(2).all(|two| two[0] != two[1]), Unsound::Fds)?;
    let mut contents = Vec::new();
    for area in &image.areas {
        if let AreaKind::Contents { file } = area.kind {
            let of = image.memory_files.get(file as usize).ok_or(Unsound::FileIndex)?;
            ensure(of.size.next_multiple_of(PAGE) == area.end - area.start, Unsound::Areas)?;
            contents.push(file);
        }
    }
    contents.sort_unstable();
    ensure(contents.windows(2).all(|two| two[0] != two[1]), Unsound::Areas)
}

/// One of each thread; areas that there are, once; descriptors that can tell.
fn habits(image: &Image, habits: &Habits) -> Result<(), Unsound> {
    /// Flags and modes of memory policies.
    const MODES: u32 = 0xe00f;
    let threads = image.threads.len();
    let of_each = [habits.memory_faults.len(), habits.policies.len()];
    ensure(of_each.iter().all(|len| *len == threads), Unsound::Threads)?;
    ensure(habits.barriers & !0x154 == 0 && habits.locks & !6 == 0, Unsound::Threads)?;
    ensure(habits.memory_faults.iter().all(|how| *how <= 2), Unsound::Threads)?;
    let mut policies = habits.policies.iter().chain(habits.placed.iter().map(|p| &p.policy));
    ensure(policies.all(|policy| policy.mode & !MODES == 0), Unsound::Threads)?;
    let mut areas = image.areas.iter();
    let found = |p: &super::Placed| areas.any(|area| (area.start, area.end) == (p.start, p.end));
    ensure(habits.placed.iter().all(found), Unsound::Areas)?;
    let tells = |told: &super::Told| {
        let pipe = |fd: &super::Fd| fd.fd == told.fd && matches!(fd.kind, FdKind::Pipe { .. } | FdKind::Socket { .. });
        image.fds.iter().any(pipe) && (0..=2).contains(&told.kind) && told.id >= 0 && told.signal <= 64
    };
    ensure(habits.told.len() <= image.fds.len() && habits.told.iter().all(tells), Unsound::Fds)
}

fn fds(image: &Image) -> Result<(), Unsound> {
    const MOST_PAIRS: u32 = 1 << 12;
    let mut last = -1;
    let mut ends = Vec::new();
    for (at, fd) in image.fds.iter().enumerate() {
        ensure(fd.fd > last && fd.fd < 1 << 20, Unsound::Fds)?;
        last = fd.fd;
        match &fd.kind {
            FdKind::Regular { file, offset } => {
                ensure((*file as usize) < image.files.len(), Unsound::FileIndex)?;
                ensure(*offset <= i64::MAX as u64, Unsound::Fds)?;
            }
            FdKind::Memory { file, offset } => {
                ensure((*file as usize) < image.memory_files.len(), Unsound::FileIndex)?;
                ensure(*offset <= i64::MAX as u64, Unsound::Fds)?;
            }
            FdKind::Directory { path } | FdKind::Device { path } => ensure(is_path(path), Unsound::Path)?,
            FdKind::SameAs { fd } => ensure(image.fds[..at].iter().any(|o| o.fd == *fd), Unsound::Fds)?,
            FdKind::Timerfd { interval_ns, left_ns, .. } => {
                ensure((*interval_ns).max(*left_ns) <= i64::MAX as u64, Unsound::Fds)?;
            }
            FdKind::Epoll { watches } => ensure(watches.iter().all(|w| w[0] < 1 << 20), Unsound::Fds)?,
            FdKind::Pipe { pair, writes, size, data } => {
                ensure(
                    (1..=1 << 30).contains(size) && data.len() <= *size as usize && *pair < MOST_PAIRS,
                    Unsound::Fds,
                )?;
                ends.push((*pair, *writes, 0));
            }
            FdKind::Socket { pair, second, kind, .. } => {
                ensure(matches!(kind, 1 | 2 | 5) && *pair < MOST_PAIRS, Unsound::Fds)?;
                ends.push((*pair, *second, *kind));
            }
            _ => {}
        }
    }
    // Both ends of each, of one kind, and numbers without gaps.
    ends.sort_unstable();
    let fits = |(number, two): (usize, &[(u32, bool, u32)])| matches!(two, [(a, false, k), (b, true, l)] if a == b && k == l && *a as usize == number);
    ensure(ends.chunks(2).enumerate().all(fits), Unsound::Fds)
}
