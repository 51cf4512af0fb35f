//! Which vdso a stopped process believes in, and that no thread is in the middle of one where that would be lost.

use super::Layout;
use crate::elf;
use crate::error::Error;
use crate::image::{AreaKind, PAGE, Vdso};
use crate::procfs::{self, Map};
use crate::sys::memory::MemFile;
use crate::sys::ptrace::reg;
use crate::tracee::Tracee;
use crate::vdso;

/// Larger vdsos there are not, bytes.
const LARGEST: u64 = 64 << 10;
/// Steps out of a function's beginning, and out of a whole function.
const FEW: usize = 64;
const MANY: usize = 20_000;
/// Bytes of a stack that are looked through for the frame of a signal.
const STACK: u64 = 256 << 10;

/// The vdso of the image. One that was brought along from another kernel wins over the kernel's own, to which it leads:
/// then its areas are no others any more, and the kernel's own is nobody's.
pub(super) fn settle(layout: &mut Layout, memory: &MemFile, threads: &mut [Tracee]) -> Result<Option<Vdso>, Error> {
    let Some((data_start, code)) = procfs::vdso_of(&layout.maps) else { return Ok(None) };
    let (data_start, start, end) = (data_start, code.start, code.end);
    if let Some((former, indices)) = former(layout, memory) {
        let functions = elf::functions(&former.code);
        let inside =
            |rip: u64| (start..end).contains(&rip) || vdso::is_entered(&functions, rip.wrapping_sub(former.start));
        if leave(threads, inside, MANY)? && !is_remembered(threads, memory, &layout.maps, start, end) {
            layout.forget(&indices);
            return Ok(Some(former));
        }
    }
    let code = read(memory, start, end)?;
    // The kernel's data lie elsewhere in a time namespace: who is in the middle of a clock would read what is not there, and be
    // killed, or take one thing for another. Who does not come out (random bytes by the megabyte) reads no clock.
    if !leave(threads, |rip| (start..end).contains(&rip), MANY)? {
        let functions = elf::functions(&code);
        leave(threads, |rip| vdso::is_entered(&functions, rip.wrapping_sub(start)), FEW)?;
    }
    Ok(Some(Vdso { data_start, start, code: code.into() }))
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

/// A vdso that was brought along, and its areas: code, and data if they are known.
fn former(layout: &Layout, memory: &MemFile) -> Option<(Vdso, Vec<usize>)> {
    let anon = |i: &usize, prot: u32| {
        let area = &layout.areas[*i];
        area.kind == AreaKind::Anon && !area.shared && area.prot == prot && area.end - area.start <= LARGEST
    };
    for i in (0..layout.areas.len()).filter(|i| anon(i, 5)) {
        let (start, end) = (layout.areas[i].start, layout.areas[i].end);
        let mut magic = [0; 4];
        if memory.read(start, &mut magic).is_err() || magic != *b"\x7fELF" {
            continue;
        }
        let Ok(code) = read(memory, start, end) else { continue };
        if !vdso::is_trampoline(&code) {
            continue;
        }
        let data = i.checked_sub(1).filter(|d| anon(d, 1) && layout.areas[*d].end == start);
        let data_start = data.map_or(start, |d| layout.areas[d].start);
        return Some((Vdso { data_start, start, code: code.into() }, data.into_iter().chain([i]).collect()));
    }
    None
}

/// Does a stack hold an address in there, as the frame of a signal does that came in the middle of it?
fn is_remembered(threads: &[Tracee], memory: &MemFile, maps: &[Map], start: u64, end: u64) -> bool {
    threads.iter().any(|thread| {
        let sp = thread.regs()[reg::RSP] & !7;
        let Some(map) = maps.iter().find(|m| m.start <= sp && sp < m.end) else { return true };
        let mut bytes = vec![0; (map.end - sp).min(STACK).next_multiple_of(8) as usize];
        let most = ((map.end - sp) as usize).min(bytes.len());
        bytes.truncate(most);
        // What cannot be looked through might.
        memory.read(sp, &mut bytes).is_err()
            || bytes.as_chunks::<8>().0.iter().any(|word| (start..end).contains(&u64::from_ne_bytes(*word)))
    })
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
