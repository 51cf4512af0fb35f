//! Where the handlers of signals that run will return to.
//!
//! A signal's frame is an interface: `rt_sigreturn` takes the registers from it, in the order of `struct sigcontext`. Looked
//! for it is from the stack pointer up, and where it says that the interrupted code had another stack, there too. What
//! lies below a stack pointer is over. A frame that is over can still lie above it, in what nobody has written to since:
//! then an address too many is found, never one too few.

use crate::procfs::Map;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::reg;
use crate::tracee::Tracee;

/// Bytes of a stack that are looked through.
const STACK: u64 = 256 << 10;
/// Stacks of one thread that are: handlers may interrupt each other, on one stack and on two by turns.
const STACKS: usize = 16;
/// The code segment of 64-bit programs.
const CS: u64 = 0x33;
/// The flag that is always set, and all that there are.
const FLAGS: (u64, u64) = (2, 0x3f_ffff);

/// Addresses that handlers of these threads return to. `None`: a stack could not be looked through.
pub(super) fn returns(threads: &[Tracee], memory: &MemFile, maps: &[Map]) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    for thread in threads {
        let mut stacks = vec![thread.regs()[reg::RSP]];
        let mut next = 0;
        while let Some(sp) = stacks.get(next).map(|sp| sp & !7) {
            next += 1;
            let map = maps.iter().find(|map| map.start <= sp && sp < map.end);
            // The first is the thread's own; what only looked like a frame has led to another.
            let map = if next == 1 { Some(map?) } else { map };
            let Some(map) = map else { continue };
            let mut bytes = vec![0; (map.end - sp).min(STACK) as usize];
            match memory.read(sp, &mut bytes) {
                Err(_) if next == 1 => return None,
                Err(_) => continue,
                Ok(()) => {}
            }
            let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
            for (rsp, rip) in frames(&words) {
                all.push(rip);
                if stacks.len() < STACKS && !(map.start..map.end).contains(&rsp) && !stacks.contains(&rsp) {
                    stacks.push(rsp);
                }
            }
        }
    }
    Some(all)
}

/// What looks like the middle of a `struct sigcontext`: rsp, rip, flags, segments. The first two of each.
fn frames(words: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    words.windows(4).filter_map(|four| match four {
        [rsp, rip, flags, segments]
            if segments & 0xffff == CS && flags & FLAGS.0 != 0 && flags & !FLAGS.1 == 0 && *rsp != 0 =>
        {
            Some((*rsp, *rip))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_told_from_words_that_lie_about() {
        let rip = 0x7fff_0000_1234;
        let frame = [0, 0x7ffc_0000_1000, rip, 0x246, 0x002b_0000_0000_0033, 0, 0];
        assert_eq!(frames(&frame).collect::<Vec<_>>(), [(0x7ffc_0000_1000, rip)]);
        for (at, other) in [(1, 0), (3, 0x244), (3, 0x7ffc_0000_1000), (4, 0x2b), (4, 0)] {
            let mut words = frame;
            words[at] = other;
            assert_eq!(frames(&words).count(), 0, "{at}");
        }
        assert_eq!(frames(&frame[..3]).count(), 0);
    }
}
