//! Code that a kernel gives its processes, and what becomes of it on another kernel.
//!
//! Programs keep addresses of its functions. Where the kernel has other code, the old code stays at its place, and each
//! of its functions leads to the new one; so a process carries the oldest vdso that it believes in, and at most one more.
//! Back on a kernel that has just this code, the kernel's own is mapped there again.
//!
//! A handler of a signal may return into the middle of the one more. That code is kept aside then, as it is, with a mark,
//! until no handler does: at most one of each kernel, since there the kernel's own is mapped in its place.
//!
//! What was read of the old data before is found to be out of date by the old code itself: its pages are zero, which
//! sends it to the system call. Only the first bytes of a function must not be interrupted: see [`is_entered`].

use crate::elf;
use crate::error::Refusal;
use crate::image::Vdso;
use crate::wire::Bytes;

/// Bytes of a function that may be written over.
const ENTRY: u64 = 32;
/// `jmp [rip+0]`; the address follows.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];

/// In the bytes of an ELF header that mean nothing, and are zero.
const MARK_AT: usize = 9;
const MARK: &[u8] = b"vmadump";

/// What a function does where the kernel's vdso lacks it.
enum Substitute {
    /// The system call with this number, which takes the same arguments.
    Call(u32),
    /// The same, but for the question after the size of a state of its own (`!0` for it), which is answered by ENOSYS.
    GetRandom,
    /// It needs nothing of the kernel: the code stays.
    Itself,
    /// Answers ENOSYS.
    Nothing,
}

fn substitute(name: &[u8]) -> Substitute {
    match name.strip_prefix(b"__vdso_").unwrap_or(name) {
        b"clock_gettime" => Substitute::Call(libc::SYS_clock_gettime as u32),
        b"clock_getres" => Substitute::Call(libc::SYS_clock_getres as u32),
        b"gettimeofday" => Substitute::Call(libc::SYS_gettimeofday as u32),
        b"time" => Substitute::Call(libc::SYS_time as u32),
        b"getcpu" => Substitute::Call(libc::SYS_getcpu as u32),
        b"getrandom" => Substitute::GetRandom,
        // Newer kernels look whether a thread dies in it; older ones have no such promise to keep.
        b"futex_robust_list64_try_unlock" | b"futex_robust_list32_try_unlock" | b"sgx_enter_enclave" => {
            Substitute::Itself
        }
        _ => Substitute::Nothing,
    }
}

impl Substitute {
    fn code(&self) -> Vec<u8> {
        /// mov rax, -ENOSYS; ret
        const NOSYS: [u8; 8] = [0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3];
        let call = |nr: u32| {
            let [a, b, c, d] = nr.to_le_bytes();
            // mov eax, nr; syscall; ret
            [0xb8, a, b, c, d, 0x0f, 0x05, 0xc3]
        };
        match self {
            Substitute::Call(nr) => call(*nr).to_vec(),
            Substitute::GetRandom => {
                let call = call(libc::SYS_getrandom as u32);
                // cmp r8, -1; je over the call
                let mut code = vec![0x49, 0x83, 0xf8, 0xff, 0x74, call.len() as u8];
                code.extend(call);
                code.extend(NOSYS);
                code
            }
            Substitute::Itself => Vec::new(),
            Substitute::Nothing => NOSYS.to_vec(),
        }
    }
}

/// The old vdso with each function replaced by a jump to the new one's of the same name, or by what does its work.
pub fn trampoline(old: &Vdso, new: &Vdso, new_start: u64) -> Result<Vec<u8>, Refusal> {
    let mut code = old.code.0.clone();
    let targets = elf::functions(&new.code);
    let functions = elf::functions(&old.code);
    for (name, at) in &functions {
        let with = match targets.iter().find(|(n, _)| n == name) {
            Some((_, to)) => {
                let mut jump = JUMP.to_vec();
                jump.extend((new_start + to).to_le_bytes());
                jump
            }
            None => substitute(name).code(),
        };
        let end = at + with.len() as u64;
        // Not into the next function.
        let next = functions.iter().map(|f| f.1).filter(|other| other > at).min();
        let room = next.is_none_or(|next| end <= next);
        match code.get_mut(*at as usize..end as usize).filter(|_| room && with.len() as u64 <= ENTRY) {
            Some(place) => place.copy_from_slice(&with),
            None => return Err(Refusal::Vdso(Bytes(name.clone()).text())),
        }
    }
    Ok(code)
}

/// Where this vdso leads to, if to another.
pub(crate) fn leads_to(code: &[u8]) -> Option<u64> {
    let functions = elf::functions(code);
    let (_, at) = functions.iter().find(|(name, _)| name.ends_with(b"clock_gettime"))?;
    let to = code.get(*at as usize..)?.strip_prefix(&JUMP)?.first_chunk()?;
    Some(u64::from_le_bytes(*to))
}

/// The code, known by its ELF header as one that was kept aside: memory of the program's own with a copy of a vdso is not.
pub(crate) fn marked(code: &[u8]) -> Vec<u8> {
    let mut code = code.to_vec();
    if let Some(place) = code.get_mut(MARK_AT..MARK_AT + MARK.len()) {
        place.copy_from_slice(MARK);
    }
    code
}

/// Takes the mark away. False: there is none.
pub(crate) fn unmark(code: &mut [u8]) -> bool {
    match code.get_mut(MARK_AT..MARK_AT + MARK.len()) {
        Some(place) if place == MARK => {
            place.fill(0);
            true
        }
        _ => false,
    }
}

/// The same code, but for beginnings of functions?
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    if a.len() != b.len() {
        return false;
    }
    let entries = elf::functions(a);
    let differs = |i: usize| a[i] != b[i] && !entries.iter().any(|(_, at)| (*at..at + ENTRY).contains(&(i as u64)));
    entries == elf::functions(b) && !(0..a.len()).any(differs)
}

/// Is this offset so far inside of a function that its beginning cannot be written over?
pub(crate) fn is_entered(functions: &[(Vec<u8>, u64)], offset: u64) -> bool {
    functions.iter().any(|(_, at)| (at + 1..at + ENTRY).contains(&offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vdso {
        crate::sys::own::vdso().unwrap()
    }

    /// The vdso without the functions of that name, as far as their names go.
    fn without(mut vdso: Vdso, name: &[u8]) -> Vdso {
        let mut at = 0;
        while let Some(next) = vdso.code.0[at..].windows(name.len()).position(|w| w == name) {
            vdso.code.0[at + next] = b'X';
            at += next + 1;
        }
        vdso
    }

    #[test]
    fn functions_lead_to_the_new_ones() {
        let (old, new) = (own(), own());
        let code = trampoline(&old, &new, 0x7000_0000_0000).unwrap();
        let (_, clock) = elf::functions(&old.code).into_iter().find(|f| f.0 == b"__vdso_clock_gettime").unwrap();
        assert_eq!((leads_to(&code), leads_to(&old.code)), (Some(0x7000_0000_0000 + clock), None));
        for (_, at) in elf::functions(&old.code) {
            let jump = &code[at as usize..][..14];
            assert!(jump.starts_with(&JUMP));
            assert_eq!(jump[6..], (0x7000_0000_0000 + at).to_le_bytes());
        }
        assert!(same(&code, &old.code) && same(&old.code, &code));
        let mut other = code.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(!same(&other, &old.code));
    }

    #[test]
    fn a_mark_changes_nothing_else() {
        let mut code = own().code.0;
        assert!(!unmark(&mut code) && !unmark(&mut []));
        let mut with = marked(&code);
        assert_eq!(elf::functions(&with), elf::functions(&code));
        assert!(with != code);
        assert!(unmark(&mut with) && with == code);
    }

    #[test]
    fn what_the_new_one_lacks_calls_the_system() {
        let (old, new) = (own(), without(own(), b"clock_getres"));
        let functions = elf::functions(&old.code);
        let (_, at) = functions.iter().find(|(n, _)| n == b"__vdso_clock_getres").unwrap();
        let code = trampoline(&old, &new, 0x7000_0000_0000).unwrap();
        assert_eq!(code[*at as usize..][..8], [0xb8, 229, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert!(is_entered(&functions, at + 1) && !is_entered(&functions, *at));
    }

    #[test]
    fn the_code_of_getrandom_is_as_it_should_be() {
        let code = Substitute::GetRandom.code();
        assert_eq!(code[..4], [0x49, 0x83, 0xf8, 0xff]);
        // Over the call to the answer.
        assert_eq!(code[6 + usize::from(code[5])..], Substitute::Nothing.code());
        assert!(code.len() as u64 <= ENTRY);
    }
}
