//! Who is under Landlock, whose rules nobody can read. Each thread has a pointer to them among what the security modules keep with
//! its credentials, null where there are none. At which place is decided when the kernel starts, and only variables of
//! its own say so. A thread that puts itself under Landlock finds it.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use bproc_common::landlock::BYTES;

use crate::tasks::{self, Of};

const WORDS: usize = BYTES / 8;
/// Pointers into the kernel are above.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// What the security modules keep with a thread's credentials, and whatever lies behind.
type Kept = [u64; WORDS];

/// Looks.
pub(crate) struct Landlock {
    program: OwnedFd,
    /// Where the pointer is.
    word: usize,
}

impl Landlock {
    /// Whether a thread of the process is under it.
    pub(crate) fn holds(&self, pid: u32) -> io::Result<bool> {
        Ok(kept(&self.program, Of::Process(pid))?.iter().any(|kept| kept[self.word] != 0))
    }
}

/// Finds out where the pointer is. None: the kernel has no Landlock.
///
/// # Errors
/// Why it cannot be found out.
pub(crate) fn find(program: Result<OwnedFd, String>) -> Result<Option<Landlock>, String> {
    if !exists() {
        return Ok(None);
    }
    let program = program?;
    let samples = std::thread::scope(|scope| {
        // Its own credentials only are changed.
        let thread = std::thread::Builder::new().name("landlock".into()).spawn_scoped(scope, || samples(&program));
        thread?.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    match place(&samples.map_err(|error| format!("trying Landlock: {error}"))?) {
        Some(word) => Ok(Some(Landlock { program, word })),
        None => Err("where it keeps its pointers cannot be seen".into()),
    }
}

fn exists() -> bool {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: u32 = 1;
    // SAFETY: no memory is involved.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    let absent = || matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP));
    version >= 0 || !absent()
}

/// What is kept with the credentials of the calling thread before it is under Landlock, then, and with new ones.
fn samples(program: &OwnedFd) -> io::Result<[Kept; 3]> {
    // SAFETY: no arguments.
    let own = Of::Thread(unsafe { libc::gettid() } as u32);
    let none = || io::Error::from(io::ErrorKind::NotFound);
    let sample = || kept(program, own)?.first().copied().ok_or_else(none);
    let free = sample()?;
    restrict_this_thread()?;
    let held = sample()?;
    renew_credentials()?;
    Ok([free, held, sample()?])
}

/// Where a pointer came that goes from credentials to credentials. Behind what is kept lies anything; the true place is before.
fn place([free, held, again]: &[Kept; 3]) -> Option<usize> {
    (0..WORDS).find(|at| free[*at] == 0 && held[*at] >= KERNEL && held[*at] == again[*at])
}

fn kept(program: &OwnedFd, of: Of) -> io::Result<Vec<Kept>> {
    let (mut file, mut buffer, mut all) = (tasks::look(program, of)?, [0; 16 * BYTES], Vec::new());
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            some => all.extend_from_slice(&buffer[..some]),
        }
    }
    let words = |bytes: &[u8; BYTES]| {
        let mut words = [0; WORDS];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes));
        words
    };
    Ok(all.as_chunks().0.iter().map(words).collect())
}

/// Forbids the calling thread to execute programs.
fn restrict_this_thread() -> io::Result<()> {
    let execute = 1u64;
    // SAFETY: a number of the size that is told; the flags are zero.
    let rules = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const execute, size_of::<u64>(), 0) };
    if rules < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor, which nobody else has.
    let rules = unsafe { OwnedFd::from_raw_fd(rules as i32) };
    // SAFETY: no memory is involved, and both are of the calling thread only.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread the capabilities that it has, for which the kernel copies its credentials.
fn renew_credentials() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    let (mut header, mut sets) = (HEADER, [0u32; 6]);
    // SAFETY: a header and room for both halves of three sets, as the version says.
    let done = unsafe {
        libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) == 0
            && libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::{KERNEL, WORDS, place};

    #[test]
    fn the_pointer_is_told_from_all_else() {
        let words = |some: &[(usize, u64)]| {
            let mut words = [0; WORDS];
            some.iter().for_each(|(at, word)| words[*at] = *word);
            words
        };
        let (rules, label, stray) = (KERNEL + 64, KERNEL + 128, KERNEL + 192);
        // Another module's label and list, Landlock's pointer and number, and what lies behind.
        let free = words(&[(0, label), (1, KERNEL), (9, stray)]);
        let held = words(&[(0, label), (1, KERNEL + 8), (3, rules), (4, 1), (7, stray), (8, stray)]);
        let again = words(&[(0, label), (1, KERNEL + 16), (3, rules), (4, 1), (8, stray)]);
        assert_eq!(place(&[free, held, again]), Some(3));
        assert_eq!(place(&[held, held, again]), None);
        assert_eq!(place(&[free, held, free]), None);
    }
}
