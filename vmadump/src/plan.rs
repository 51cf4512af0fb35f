//! From an image and the target's facts to the list of things to do, or the reason why not. Pure: both
//! drivers (from outside by ptrace, from inside in the own process) carry out the same list.

use crate::batch::find_hole;
use crate::cpu;
use crate::elf;
use crate::error::Refusal;
use crate::facts::{Facts, cap};
use crate::image::{Area, AreaKind, Creds, FdKind, Habits, Image, PAGE, Policy, PosixTimer, Vdso, advice};
use crate::tracee::leave_call;
use crate::vdso;

/// Which limit that of queued signals is.
pub(crate) const SIGPENDING: usize = libc::RLIMIT_SIGPENDING as usize;

/// Whose image it is: no right beyond these may come out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// uid.
    pub uid: u32,
    /// gid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What somebody vouches for.
    pub rights: Rights,
}

/// What a process may have beyond its user's rights, and how far the latter go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Further users.
    pub uids: Vec<u32>,
    /// Further groups.
    pub gids: Vec<u32>,
    /// Capabilities that may be in its sets.
    pub caps: u64,
    /// Most that its bounding set may have.
    pub bounding: u64,
    /// Most that its limits may be, soft and hard.
    pub limits: [[u64; 2]; 16],
}

impl Default for Rights {
    /// Nothing beyond the user's, which have no end.
    fn default() -> Self {
        Rights { uids: Vec::new(), gids: Vec::new(), caps: 0, bounding: !0, limits: [[u64::MAX; 2]; 16] }
    }
}

/// What the restorer wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Refuse images that ask for more than this user has. `None`: the image's own credentials are taken where the
    /// restorer may give them.
    pub owner: Option<Owner>,
    /// Leave credentials as they are in the restorer.
    pub keep_creds: bool,
    /// Bytes of scratch room beyond what tables need.
    pub staging: u64,
    /// Ranges that scratch memory must not touch beside those of the image.
    pub avoid: Vec<(u64, u64)>,
    /// Scratch memory that there is already: base, bytes. It is taken if it is large enough and nothing else is to be
    /// there.
    pub scratch: Option<(u64, u64)>,
}

/// A mapping to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapAt {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// PROT_* while pages are put in.
    pub prot: u32,
    /// MAP_* without FIXED and ANONYMOUS.
    pub flags: i32,
    /// Offset in the file.
    pub offset: u64,
}

/// One step. The order is the order of execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Unmap everything but the scratch memory.
    Clear,
    /// Map the kernel's vdso with its data pages starting here.
    Vdso(u64),
    /// Vdso code of another kernel, patched to lead into this one's or marked as kept aside, and zero pages where its data
    /// were.
    Brought {
        /// First data page.
        data_start: u64,
        /// First code page.
        start: u64,
        /// The patched code.
        code: Vec<u8>,
    },
    /// Private anonymous memory.
    Anon(MapAt),
    /// Shared memory that several areas show: its size, the areas.
    Shared(u64, Vec<MapAt>),
    /// A file (index in the file table) and its mappings.
    File(u32, Vec<MapAt>),
    /// A memory file (index in the table), which stays open until the descriptors are made, and what maps it while
    /// the pages come.
    MemoryFile(u32, Vec<MapAt>),
    /// Here the pages are put in.
    Pages,
    /// The memory file is whole: where its contents were mapped, and what maps it only then.
    Sealed(u32, Option<(u64, u64)>, Vec<MapAt>),
    /// Final protection.
    Protect {
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
        /// PROT_*.
        prot: u32,
    },
    /// madvise.
    Advise {
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
        /// MADV_*.
        advice: i32,
    },
    /// mlock2.
    Lock {
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
        /// Each page only when it is touched.
        late: bool,
    },
    /// mbind.
    Place {
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
        /// From where its memory is taken.
        policy: Policy,
    },
    /// The kernel's marks: brk, arguments, auxiliary vector, program.
    Marks,
    /// Dispositions of all signals.
    Actions,
    /// umask, working directory, subreaper, huge page setting.
    Surroundings,
    /// Descriptors.
    Fds,
    /// Limits: soft and hard by number.
    Limits(Box<[[u64; 2]; 16]>),
    /// The limit of queued signals until all are: the last of these that the body may set. What the process has queued counts
    /// for its user where it was, too, until it has ended there.
    WideQueue([[u64; 2]; 2]),
    /// The limit of queued signals, soft and hard, when all are.
    Queue([u64; 2]),
    /// Other threads.
    Threads,
    /// Signals pending for the process.
    Pending,
    /// Everything that is a thread's own, in each.
    ThreadState,
    /// Timers are armed.
    Timers(Vec<TimerStep>),
    /// Credentials, in each thread; nothing privileged works afterwards.
    Creds,
    /// Seccomp filters, in each thread.
    Filters,
    /// Registers; the process is ready.
    Registers,
}

/// A step towards POSIX timers with the ids that the program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerStep {
    /// From now on timer_create takes the id from its argument.
    ChooseIds(bool),
    /// Make timer with this index in the image.
    Make(usize),
    /// Make a timer with this id only to get past the number.
    Skip(u32),
    /// Arm the timer with this index.
    Arm(usize),
}

/// The list, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub ops: Vec<Op>,
    /// Extended state of each thread in the target's layout.
    pub xstate: Vec<Vec<u8>>,
    /// Registers of each thread, out of interrupted system calls.
    pub regs: Vec<[u64; 27]>,
    /// Processors that each thread may run on: bit by number.
    pub processors: Vec<Vec<u8>>,
    /// Credentials are given.
    pub creds: bool,
    /// Most that the bounding set may have.
    pub bounding: u64,
    /// Scheduling comes after the credentials, so that the kernel says what this user may have of it.
    pub modest: bool,
    /// Where scratch memory may lie: base, bytes.
    pub scratch: (u64, u64),
    /// Address of a `syscall` instruction of the new vdso.
    pub gate: Option<u64>,
}

/// Bytes of restartable sequences' data that every kernel takes.
const RSEQ: u32 = 32;

/// Areas with so many pages are filled with huge ones.
const LARGE: u64 = (16 << 20) / PAGE;

/// Can the image be restored here, and how?
pub fn plan(image: &Image, facts: &Facts, wishes: &Wishes) -> Result<Plan, Refusal> {
    let missing = cpu::missing(&image.cpu, &facts.cpu);
    if !missing.is_empty() {
        return Err(Refusal::CpuFeatures(missing));
    }
    let xstate = image
        .threads
        .iter()
        .map(|t| cpu::relayout(&t.xstate, &image.cpu, &facts.cpu).ok_or(Refusal::CpuState(t.tid)))
        .collect::<Result<_, _>>()?;
    if image.threads.len() > 1 && !facts.can_choose_pids() {
        return Err(Refusal::ThreadIds(image.threads.len()));
    }
    if image.threads.iter().any(|t| !t.filters.is_empty()) && !facts.can(cap::SYS_ADMIN) {
        return Err(Refusal::Seccomp);
    }
    // The kernel would not fill what the program reads there.
    if let Some(thread) = image.threads.iter().find(|t| t.rseq.size > facts.rseq.max(RSEQ)) {
        return Err(Refusal::Rseq(thread.rseq.size));
    }
    if let Some(owner) = &wishes.owner {
        image.creds.iter().try_for_each(|c| within(c, owner))?;
    }
    let creds = facts.can(cap::SETUID) && !wishes.keep_creds && !image.meta.from_inside;
    let mut used: Vec<(u64, u64)> = image.areas.iter().map(|a| (a.start, a.end)).collect();
    let mut ops = vec![Op::Clear];
    let gate = lay_vdsos(image, facts, &mut used, &mut ops)?;
    mappings(image, &mut ops);
    large_pages(&image.areas, &mut ops);
    let sealed = memory_files(image, &mut ops);
    if let Some(habits) = &image.habits {
        places(habits, facts, &mut ops)?;
    }
    ops.push(Op::Pages);
    ops.extend(sealed);
    finish_areas(&image.areas, &mut ops);
    ops.extend([Op::Marks, Op::Actions, Op::Surroundings, Op::Fds]);
    let rights = wishes.owner.as_ref().filter(|owner| owner.uid != 0).map(|owner| &owner.rights);
    let limits = limits(image, facts, rights);
    let queue = limits[SIGPENDING];
    let most = if facts.can(cap::SYS_RESOURCE) { u64::MAX } else { facts.limits[SIGPENDING][1] };
    ops.extend([Op::Limits(Box::new(limits)), Op::WideQueue([[queue[1]; 2], [most; 2]])]);
    ops.push(Op::Threads);
    ops.extend([Op::Pending, Op::ThreadState, Op::Timers(timers(&image.timers.posix, facts.timer_ids)?)]);
    if creds {
        ops.push(Op::Creds);
    }
    ops.extend([Op::Queue(queue), Op::Filters, Op::Registers]);
    let size = (8 << 20) + 1024 * (image.areas.len() + image.fds.len() + image.threads.len()) as u64 + wishes.staging;
    let waiting = image.fds.iter().map(|f| match &f.kind {
        FdKind::Pipe { data, .. } | FdKind::Socket { data, .. } => data.len() as u64 + 256,
        FdKind::Epoll { watches } => 256 * watches.len() as u64,
        _ => 0,
    });
    let size = size + waiting.sum::<u64>() + 256 * image.signals() as u64;
    let size = size.next_multiple_of(PAGE);
    used.extend(&wishes.avoid);
    let fits = |(base, room): &(u64, u64)| *room >= size && used.iter().all(|(a, b)| *b <= *base || *a >= base + room);
    let scratch = match wishes.scratch.filter(fits) {
        Some(scratch) => scratch,
        None => (find_hole(&mut used, size).ok_or(Refusal::NoRoom)?, size),
    };
    Ok(Plan {
        ops,
        xstate,
        regs: image.threads.iter().map(|t| leave_call(t.regs)).collect(),
        processors: (0..image.threads.len())
            .map(|i| {
                image.processors.get(i).filter(|set| !set.is_empty()).map_or(&facts.processors, |set| &set.0).clone()
            })
            .collect(),
        creds,
        bounding: rights.map_or(!0, |rights| rights.bounding),
        modest: rights.is_some(),
        scratch,
        gate,
    })
}

/// No right that the owner has not, or that nobody vouches for: his uid everywhere, groups of his, no capabilities unless
/// he is root.
pub(crate) fn within(creds: &Creds, owner: &Owner) -> Result<(), Refusal> {
    if owner.uid == 0 {
        return Ok(());
    }
    let rights = &owner.rights;
    if let Some(uid) = creds.uids.iter().find(|u| **u != owner.uid && !rights.uids.contains(u)) {
        return Err(Refusal::Rights(format!("uid {uid} (it belongs to uid {})", owner.uid)));
    }
    let mut gids = creds.gids.iter().chain(&creds.groups);
    if let Some(gid) = gids.find(|g| **g != owner.gid && !owner.groups.contains(g) && !rights.gids.contains(g)) {
        return Err(Refusal::Rights(format!("group {gid}")));
    }
    let [inheritable, permitted, effective, _, ambient] = creds.caps;
    let more = (inheritable | permitted | effective | ambient) & !rights.caps;
    if more != 0 {
        return Err(Refusal::Rights(format!("capabilities {more:#x}")));
    }
    Ok(())
}

/// Where the vdsos go. Address of a `syscall` instruction in the kernel's own.
fn lay_vdsos(
    image: &Image,
    facts: &Facts,
    used: &mut Vec<(u64, u64)>,
    ops: &mut Vec<Op>,
) -> Result<Option<u64>, Refusal> {
    let size = |v: &Vdso| v.start - v.data_start + v.code.len() as u64;
    used.extend(image.vdso.iter().chain(&image.vdsos).map(|v| (v.data_start, v.data_start + size(v))));
    let is_kernels =
        |v: &&Vdso| facts.vdso.as_ref().is_some_and(|new| size(v) == size(new) && vdso::same(&v.code, &new.code));
    let own = image.vdso.as_ref().filter(is_kernels);
    // Been here before: where it was then. So there are never more of them than kernels.
    let again = image.vdsos.iter().find(is_kernels).filter(|_| own.is_none() && image.vdso.is_some());
    for other in image.vdsos.iter().filter(|other| again.is_none_or(|again| again.start != other.start)) {
        let code = vdso::marked(&other.code);
        ops.push(Op::Brought { data_start: other.data_start, start: other.start, code });
    }
    let (Some(new), Some(old)) = (&facts.vdso, &image.vdso) else { return Ok(None) };
    let place = match own.or(again) {
        Some(same) => same.data_start,
        None => {
            let place = find_hole(used, size(new) + 16 * PAGE).ok_or(Refusal::NoRoom)?;
            used.push((place, place + size(new)));
            place
        }
    };
    ops.push(Op::Vdso(place));
    let start = place + (new.start - new.data_start);
    if own.is_none() {
        let code = vdso::trampoline(old, new, start)?;
        ops.push(Op::Brought { data_start: old.data_start, start: old.start, code });
    }
    Ok(elf::syscall_instruction(&new.code).map(|at| start + at as u64))
}

fn at(area: &Area, offset: u64) -> MapAt {
    let fill = area.pages > 0 && area.prot & 2 == 0;
    let mut flags = if area.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if area.advice & advice::NO_RESERVE != 0 {
        flags |= libc::MAP_NORESERVE;
    }
    if area.advice & advice::GROWS_DOWN != 0 {
        flags |= libc::MAP_GROWSDOWN;
    }
    MapAt { start: area.start, len: area.end - area.start, prot: if fill { 3 } else { area.prot }, flags, offset }
}

fn mappings(image: &Image, ops: &mut Vec<Op>) {
    let mut files: Vec<(u32, Vec<MapAt>)> = Vec::new();
    let mut objects: Vec<(u32, Vec<MapAt>)> = Vec::new();
    let add = |list: &mut Vec<(u32, Vec<MapAt>)>, key: u32, map: MapAt| match list.iter_mut().find(|(k, _)| *k == key) {
        Some((_, maps)) => maps.push(map),
        None => list.push((key, vec![map])),
    };
    for area in &image.areas {
        match area.kind {
            AreaKind::Anon | AreaKind::Data => ops.push(Op::Anon(at(area, 0))),
            AreaKind::File { file, offset } => add(&mut files, file, at(area, offset)),
            AreaKind::Shared { object, .. } if shown(image, object) => {}
            AreaKind::Shared { object, offset } => add(&mut objects, object, at(area, offset)),
            AreaKind::Contents { .. } => {}
        }
    }
    ops.extend(files.into_iter().map(|(file, maps)| Op::File(file, maps)));
    ops.extend(objects.into_iter().map(|(_, maps)| {
        let size = maps.iter().map(|m| m.offset + m.len).max().unwrap_or(0);
        Op::Shared(size, maps)
    }));
}

/// Is the shared memory a memory file?
fn shown(image: &Image, object: u32) -> bool {
    image.memory_files.iter().any(|file| file.object == Some(object))
}

/// Makes memory files, as far as it can be done before their contents come; the steps after that are returned.
fn memory_files(image: &Image, ops: &mut Vec<Op>) -> Vec<Op> {
    let mut after = Vec::new();
    for (index, file) in image.memory_files.iter().enumerate() {
        let index = index as u32;
        let contents = image.areas.iter().find(|a| a.kind == AreaKind::Contents { file: index });
        let mut maps: Vec<MapAt> = image
            .areas
            .iter()
            .filter_map(|area| match area.kind {
                AreaKind::Shared { object, offset } if Some(object) == file.object => Some(at(area, offset)),
                _ => None,
            })
            .collect();
        // Where nobody may write any more, only those mappings are allowed that came after; elsewhere those that came
        // before may be the ones that are.
        let late = if file.seals & libc::F_SEAL_WRITE as u32 != 0 { std::mem::take(&mut maps) } else { Vec::new() };
        maps.extend(contents.map(|area| MapAt { flags: libc::MAP_SHARED, ..at(area, 0) }));
        ops.push(Op::MemoryFile(index, maps));
        after.push(Op::Sealed(index, contents.map(|area| (area.start, area.end - area.start)), late));
    }
    after
}

const ADVICE: [(u32, i32); 8] = [
    (advice::DONT_FORK, libc::MADV_DONTFORK),
    (advice::DONT_DUMP, libc::MADV_DONTDUMP),
    (advice::HUGE, libc::MADV_HUGEPAGE),
    (advice::NO_HUGE, libc::MADV_NOHUGEPAGE),
    (advice::WIPE_ON_FORK, 18),
    (advice::MERGEABLE, libc::MADV_MERGEABLE),
    (advice::SEQUENTIAL, libc::MADV_SEQUENTIAL),
    (advice::RANDOM, libc::MADV_RANDOM),
];

/// Before memory is filled: page by page takes twice as long where there is much, and where large pages are the rule each
/// page that was alone would become 2 MiB.
fn large_pages(areas: &[Area], ops: &mut Vec<Op>) {
    for area in areas.iter().filter(|area| area.kind == AreaKind::Anon) {
        let (start, len) = (area.start, area.end - area.start);
        if area.advice & advice::NO_HUGE != 0 {
            ops.push(Op::Advise { start, len, advice: libc::MADV_NOHUGEPAGE });
        } else if area.pages >= LARGE && area.pages * PAGE >= len / 2 {
            ops.push(Op::Advise { start, len, advice: libc::MADV_HUGEPAGE });
        }
    }
}

/// Where memory is taken from, before there is any. What a policy names and is not here the kernel leaves out, if anything is left.
fn places(habits: &Habits, facts: &Facts, ops: &mut Vec<Op>) -> Result<(), Refusal> {
    const BIND: u32 = 2;
    const RELATIVE: u32 = 1 << 14;
    let all = habits.policies.iter().chain(habits.placed.iter().map(|placed| &placed.policy));
    let mut bound = all.filter(|policy| policy.mode & 0xf == BIND && policy.mode & RELATIVE == 0);
    if let Some(policy) = bound.find(|policy| policy.nodes & facts.nodes == 0) {
        return Err(Refusal::MemoryNodes(policy.nodes));
    }
    let place = |placed: &crate::image::Placed| Op::Place {
        start: placed.start,
        len: placed.end - placed.start,
        policy: placed.policy.clone(),
    };
    ops.extend(habits.placed.iter().map(place));
    Ok(())
}

fn finish_areas(areas: &[Area], ops: &mut Vec<Op>) {
    for area in areas {
        let (start, len) = (area.start, area.end - area.start);
        if at(area, 0).prot != area.prot {
            ops.push(Op::Protect { start, len, prot: area.prot });
        }
        for (_, advice) in ADVICE.iter().filter(|(bit, _)| area.advice & bit != 0) {
            ops.push(Op::Advise { start, len, advice: *advice });
        }
        if area.advice & advice::LOCKED != 0 {
            ops.push(Op::Lock { start, len, late: area.advice & advice::LOCKED_LATE != 0 });
        }
    }
}

/// Hard limits that may not be raised stay where they are.
fn limits(image: &Image, facts: &Facts, rights: Option<&Rights>) -> [[u64; 2]; 16] {
    let mut all = image.process.limits;
    if let Some(rights) = rights {
        for (pair, most) in all.iter_mut().zip(&rights.limits) {
            pair[1] = pair[1].min(most[1]);
        }
    }
    if !facts.can(cap::SYS_RESOURCE) {
        for (pair, mine) in all.iter_mut().zip(&facts.limits) {
            pair[1] = pair[1].min(mine[1]);
        }
    }
    all.iter_mut().for_each(|pair| pair[0] = pair[0].min(pair[1]));
    all
}

/// Can a new process have timers with these ids, ascending? The kernel counts them up from 0; the ones between are made and
/// deleted.
pub(crate) fn timer_ids(ids: impl Iterator<Item = u32>, choose: bool) -> Result<(), Refusal> {
    const MOST_SKIPPED: u32 = 4096;
    let mut next = 0u32;
    for id in ids.filter(|_| !choose) {
        if id.saturating_sub(next) > MOST_SKIPPED {
            return Err(Refusal::Timer);
        }
        next = id.saturating_add(1);
    }
    Ok(())
}

fn timers(timers: &[PosixTimer], choose: bool) -> Result<Vec<TimerStep>, Refusal> {
    timer_ids(timers.iter().map(|timer| timer.id), choose)?;
    let mut steps = Vec::new();
    if timers.is_empty() {
        return Ok(steps);
    }
    if choose {
        steps.push(TimerStep::ChooseIds(true));
        steps.extend((0..timers.len()).map(TimerStep::Make));
        steps.push(TimerStep::ChooseIds(false));
    } else {
        let mut next = 0;
        for (i, timer) in timers.iter().enumerate() {
            steps.extend((next..timer.id).map(TimerStep::Skip));
            steps.push(TimerStep::Make(i));
            next = timer.id + 1;
        }
    }
    steps.extend((0..timers.len()).filter(|i| timers[*i].left_ns > 0).map(TimerStep::Arm));
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_not_filled_with_large_pages() {
        let area = |pages: u64, advice: u32| Area {
            start: 0x10_0000,
            end: 0x10_0000 + (64 << 20),
            kind: AreaKind::Anon,
            pages,
            advice,
            prot: 3,
            shared: false,
            name: Vec::new().into(),
        };
        let all = (64 << 20) / PAGE;
        for (area, wanted) in [
            (area(all, 0), Some(libc::MADV_HUGEPAGE)),
            (area(all, advice::NO_HUGE), Some(libc::MADV_NOHUGEPAGE)),
            (area(1, advice::NO_HUGE), Some(libc::MADV_NOHUGEPAGE)),
            (area(all / 3, 0), None),
            (area(1, 0), None),
        ] {
            let mut ops = Vec::new();
            large_pages(&[area], &mut ops);
            let told = ops.iter().map(|op| if let Op::Advise { advice, .. } = op { *advice } else { -1 });
            assert_eq!(told.collect::<Vec<_>>(), wanted.into_iter().collect::<Vec<_>>());
        }
    }
}
