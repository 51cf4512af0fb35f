//! Which vdso a stopped process believes in, which others it may return into, and that no thread is in the middle of one
//! where that would be lost.

use super::Layout;
use super::frames;
use crate::elf;
use crate::error::Error;
use crate::image::{AreaKind, MOST_VDSOS, PAGE, Vdso};
use crate::procfs;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::reg;
use crate::tracee::Tracee;
use crate::vdso;

/// Larger vdsos there are not, bytes.
const LARGEST: u64 = 64 << 10;
/// Steps out of a function's beginning, and out of a whole function.
const FEW: usize = 64;
const MANY: usize = 20_000;

/// What the image has of vdsos.
#[derive(Debug, Default)]
pub(super) struct Vdsos {
    /// The one that the process believes in.
    pub(super) own: Option<Vdso>,
    /// Those of other kernels that a handler of a signal may return into.
    pub(super) others: Vec<Vdso>,
}

/// The vdsos of the image. One that was brought along from another kernel wins over the kernel's own, to which it leads:
/// then its areas are no others any more, and the kernel's own is nobody's, unless a handler returns into it.
pub(super) fn settle(layout: &mut Layout, memory: &MemFile, threads: &mut [Tracee]) -> Result<Vdsos, Error> {
    let Some((data_start, code)) = procfs::vdso_of(&layout.maps) else { return Ok(Vdsos::default()) };
    let (data_start, start, end) = (data_start, code.start, code.end);
    let (former, mut others) = brought(layout, memory, start, end);
    let in_others = |rip: u64| others.iter().any(|(vdso, _)| holds(vdso, rip));
    let functions = former.as_ref().map(|(former, _)| elf::functions(&former.code)).unwrap_or_default();
    let former_start = former.as_ref().map_or(0, |(former, _)| former.start);
    let entered = |rip: u64| vdso::is_entered(&functions, rip.wrapping_sub(former_start));
    // Who does not come out (random bytes by the megabyte) finds the same code afterwards.
    let out = leave(threads, |rip| (start..end).contains(&rip) || in_others(rip) || entered(rip), MANY)?;
    let mut forgotten = Vec::new();
    let own = match former {
        // Its first instructions will be other ones.
        Some((former, indices)) if out || !threads.iter().any(|thread| entered(thread.regs()[reg::RIP])) => {
            others.insert(0, (Vdso { data_start, start, code: read(memory, start, end)?.into() }, Vec::new()));
            forgotten.extend(indices);
            former
        }
        _ => {
            let code = read(memory, start, end)?;
            // The kernel's data lie elsewhere in a time namespace: who is in the middle of a clock would read what is not
            // there, and be killed, or take one thing for another. Who does not come out reads no clock.
            if !out {
                let functions = elf::functions(&code);
                leave(threads, |rip| vdso::is_entered(&functions, rip.wrapping_sub(start)), FEW)?;
            }
            Vdso { data_start, start, code: code.into() }
        }
    };
    let believed = if others.is_empty() { None } else { Some(frames::returns(threads, memory, &layout.maps)) };
    let mut kept = Vec::new();
    for (vdso, indices) in others {
        forgotten.extend(indices);
        let mut all =
            threads.iter().map(|thread| thread.regs()[reg::RIP]).chain(believed.iter().flatten().flatten().copied());
        // What could not be looked through might return there.
        if believed == Some(None) || all.any(|rip| holds(&vdso, rip)) {
            kept.push(vdso);
        }
    }
    layout.forget(&forgotten);
    Ok(Vdsos { own: Some(own), others: kept })
}

fn holds(vdso: &Vdso, rip: u64) -> bool {
    (vdso.start..vdso.start + vdso.code.len() as u64).contains(&rip)
}

fn read(memory: &MemFile, start: u64, end: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; (end - start) as usize];
    memory.read(start, &mut bytes)?;
    Ok(bytes)
}

/// Has threads run on until none is inside. False: one does not come out.
fn leave(threads: &mut [Tracee], inside: impl Fn(u64) -> bool, steps: usize) -> Result<bool, Error> {
    let mut all = true;
    for thread in threads {
        all &= thread.leave(&inside, steps)?;
    }
    Ok(all)
}

/// A vdso and the indices of its areas: code, and data if they are known.
type Placed = (Vdso, Vec<usize>);

/// The vdso that was brought along and leads to the kernel's own, which is at these addresses, and those that were kept
/// aside.
fn brought(layout: &Layout, memory: &MemFile, start: u64, end: u64) -> (Option<Placed>, Vec<Placed>) {
    let anon = |i: &usize, prot: u32| {
        let area = &layout.areas[*i];
        area.kind == AreaKind::Anon && !area.shared && area.prot == prot && area.end - area.start <= LARGEST
    };
    let (mut former, mut aside) = (None, Vec::new());
    for i in (0..layout.areas.len()).filter(|i| anon(i, 5)) {
        let (from, to) = (layout.areas[i].start, layout.areas[i].end);
        let mut magic = [0; 4];
        if memory.read(from, &mut magic).is_err() || magic != *b"\x7fELF" {
            continue;
        }
        let Ok(mut code) = read(memory, from, to) else { continue };
        let leads = vdso::leads_to(&code).is_some_and(|to| (start..end).contains(&to)) && former.is_none();
        let kept = vdso::unmark(&mut code) && aside.len() < MOST_VDSOS - 1;
        if !leads && !kept {
            continue;
        }
        let data = i.checked_sub(1).filter(|d| anon(d, 1) && layout.areas[*d].end == from);
        let data_start = data.map_or(from, |d| layout.areas[d].start);
        let placed = (Vdso { data_start, start: from, code: code.into() }, data.into_iter().chain([i]).collect());
        if kept { aside.push(placed) } else { former = Some(placed) }
    }
    (former, aside)
}

impl Layout {
    /// Areas that do not belong to the image.
    fn forget(&mut self, indices: &[usize]) {
        let mut i = 0;
        let mut keeps = || {
            i += 1;
            !indices.contains(&(i - 1))
        };
        self.areas.retain(|_| keeps());
        i = 0;
        let mut keeps = || {
            i += 1;
            !indices.contains(&(i - 1))
        };
        self.readable.retain(|_| keeps());
    }
}

const _: () = assert!(LARGEST.is_multiple_of(PAGE));
