//! What few processes have set: asked along with the rest, and written only if there is any.

use super::survey::proc_file;
use crate::batch::{Batch, Index, Results, Scratch};
use crate::error::Error;
use crate::image::{Area, Fd, FdKind, Habits, Placed, Policy, Told};
use crate::procfs;
use crate::sys::own;
use crate::sys::process::{get_fd, told_of};
use std::os::fd::AsFd;

const PR_MCE_KILL_GET: u64 = 34;
/// PR_MCE_KILL_DEFAULT.
const DEFAULT: u32 = 2;
/// Bits of a mask of nodes that every kernel takes.
const NODES: u64 = 1024;
/// MPOL_F_ADDR.
const OF_ADDRESS: u64 = 2;
/// MEMBARRIER_CMD_GET_REGISTRATIONS.
const REGISTRATIONS: u64 = 512;
/// Commands that say whether they are registered, and what registers them: private expedited, with cores, with rseq.
const BARRIERS: [(u64, u32); 3] = [(8, 16), (32, 64), (128, 256)];

/// Bytes of scratch memory for each area that is asked about.
pub(super) const ROOM: u64 = 512;

struct Where {
    asked: Index,
    mode: u64,
    nodes: u64,
}

impl Where {
    fn ask(batch: &mut Batch, address: u64, flags: u64) -> Where {
        let (mode, nodes) = (batch.room(4), batch.room(NODES as usize / 8));
        let args = [mode, nodes, NODES, address, flags];
        let asked = batch.may(libc::SYS_get_mempolicy, &args, "read the memory policy");
        Where { asked, mode, nodes }
    }

    fn told(&self, got: &Results) -> Policy {
        match got.ret(self.asked) {
            0 => Policy { mode: got.half(self.mode), nodes: got.word(self.nodes) },
            _ => Policy::default(),
        }
    }
}

/// What a thread is asked.
pub(super) struct OfThread {
    faults: Index,
    policy: Where,
}

impl OfThread {
    pub(super) fn ask(batch: &mut Batch) -> Self {
        let faults = batch.may(libc::SYS_prctl, &[PR_MCE_KILL_GET, 0, 0, 0, 0], "read what becomes of memory faults");
        OfThread { faults, policy: Where::ask(batch, 0, 0) }
    }
}

/// What the process is asked.
pub(super) struct OfProcess {
    barriers: Vec<(Index, Option<u32>)>,
    placed: Vec<(u64, u64, Where)>,
}

impl OfProcess {
    /// `placed`: where areas begin that may have policies of their own.
    pub(super) fn ask(batch: &mut Batch, areas: &[Area], placed: &[u64]) -> Self {
        let mut ask = |command| batch.may(libc::SYS_membarrier, &[command, 0, 0], "read the memory barriers");
        let barriers = match own::tells_barriers() {
            true => vec![(ask(REGISTRATIONS), None)],
            // They are refused to whoever has not registered.
            false => BARRIERS.map(|(command, register)| (ask(command), Some(register))).to_vec(),
        };
        let areas = areas.iter().filter(|area| placed.binary_search(&area.start).is_ok());
        let placed = areas.map(|area| (area.start, area.end, Where::ask(batch, area.start, OF_ADDRESS))).collect();
        OfProcess { barriers, placed }
    }

    fn barriers(&self, got: &Results) -> u32 {
        let of = |(index, register): &(Index, Option<u32>)| match (got.ret(*index), register) {
            (told @ 1.., None) => told as u32 & 0x154,
            (0, Some(register)) => *register,
            _ => 0,
        };
        self.barriers.iter().map(of).fold(0, |all, one| all | one)
    }
}

/// What becomes of memory that the process maps from now on, as that of the table of calls shows. `locked`: bytes of locked
/// memory with that.
pub(super) fn locks(pid: i32, locked: u64, scratch: &Scratch) -> Result<u32, Error> {
    if locked < scratch.size {
        return Ok(0);
    }
    let maps = procfs::maps(&proc_file(pid, "smaps")?);
    let fresh = maps.iter().find(|map| map.start == scratch.base);
    Ok(fresh.map_or(0, |map| match (map.has(b"lo"), map.has(b"lf")) {
        (true, true) => (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32,
        (true, false) => libc::MCL_FUTURE as u32,
        _ => 0,
    }))
}

/// Who is told of pipes and sockets of the process. The process stands still.
fn told(pid: i32, fds: &[Fd]) -> Vec<Told> {
    let carried = fds.iter().filter(|f| matches!(f.kind, FdKind::Pipe { .. } | FdKind::Socket { .. }));
    let of = |fd: &Fd| {
        let (kind, outer, signal) = told_of(get_fd(pid, fd.fd).ok()?.as_fd())?;
        // By their numbers in their own namespace; a group has that of its first.
        let inner = |id: i32| procfs::status(&std::fs::read(format!("/proc/{id}/status")).ok()?).ns_pid.pop();
        let id = if outer > 0 { inner(outer).unwrap_or(0) } else { 0 };
        (id != 0 || signal != 0).then_some(Told { fd: fd.fd, kind, id, signal })
    };
    carried.filter_map(of).collect()
}

/// All of them, if there are any.
pub(super) fn assemble<'a>(
    pid: i32,
    asked: &OfProcess,
    got: &Results,
    threads: impl Iterator<Item = (&'a OfThread, &'a Results)>,
    locks: u32,
    fds: &[Fd],
) -> Option<Habits> {
    let of = |(asked, got): (&OfThread, &Results)| {
        let faults = u32::try_from(got.ret(asked.faults)).unwrap_or(DEFAULT).min(DEFAULT);
        (faults, asked.policy.told(got))
    };
    let (memory_faults, policies): (Vec<u32>, Vec<Policy>) = threads.map(of).unzip();
    let placed = asked.placed.iter().map(|(start, end, of)| Placed { start: *start, end: *end, policy: of.told(got) });
    let habits = Habits {
        barriers: asked.barriers(got),
        locks,
        memory_faults,
        policies,
        placed: placed.filter(|placed| placed.policy.mode != 0).collect(),
        told: told(pid, fds),
    };
    let none = habits.barriers == 0
        && habits.locks == 0
        && habits.memory_faults.iter().all(|how| *how == DEFAULT)
        && habits.policies.iter().all(|policy| policy.mode == 0)
        && habits.placed.is_empty()
        && habits.told.is_empty();
    (!none).then_some(habits)
}
