//! Limits of a process in which others do things: they must not get in the way of that, and are its own again afterwards.
//!
//! From outside this wants CAP_SYS_RESOURCE for another user's process, and for a hard limit that is to rise. A machine may withhold
//! that from root: then soft limits are raised from inside, up to the hard ones, and what needs more is refused.

use crate::batch::Scratch;
use crate::error::{Error, Refusal};
use crate::facts::cap;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::reg;
use crate::sys::{own, process};
use crate::tracee::Tracee;

/// Soft and hard ones by RLIMIT number.
pub type Limits = [[u64; 2]; 16];

const FSIZE: usize = libc::RLIMIT_FSIZE as usize;
const DATA: usize = libc::RLIMIT_DATA as usize;
const STACK: usize = libc::RLIMIT_STACK as usize;
const NPROC: usize = libc::RLIMIT_NPROC as usize;
const NOFILE: usize = libc::RLIMIT_NOFILE as usize;
const MEMLOCK: usize = libc::RLIMIT_MEMLOCK as usize;
const AS: usize = libc::RLIMIT_AS as usize;

/// Those that calls made for a process run into: it gets its own last.
pub(crate) const LATE: [usize; 7] = [FSIZE, DATA, STACK, NPROC, NOFILE, MEMLOCK, AS];
/// Those of memory.
const OF_MEMORY: [usize; 2] = [DATA, AS];

/// What a stand-in needs for itself: it is small, has a connection, and takes some descriptors with an order. `text`: bytes of
/// arguments and environment, of which the kernel lets a quarter of the stack be.
const fn least(text: u64) -> [(usize, u64); 4] {
    [(DATA, (1 << 20) + 2 * text), (STACK, (256 << 10) + 6 * text), (NOFILE, 16), (AS, (8 << 20) + 8 * text)]
}

/// Limits of what stands for a process with these: its own but for those with which nothing could stand here.
pub fn of_stand_in(own: &Limits, text: u64) -> Limits {
    let mut all = *own;
    for (which, least) in least(text) {
        all[which] = all[which].map(|limit| limit.max(least));
    }
    all
}

/// Raises the limits of what stands for a process as far as that needs it: others may have lowered them meanwhile.
pub fn keep_alive(pid: i32) {
    let Ok(now) = process::limits(pid) else { return };
    let wanted = of_stand_in(&now, 0);
    for which in (0..now.len()).filter(|which| now[*which] != wanted[*which]) {
        // Without the right to it, up to the hard one.
        let most = now[which][1];
        if process::set_limit(pid, which, wanted[which]).is_err() {
            let _: Result<(), _> = process::set_limit(pid, which, [wanted[which][0].min(most), most]);
        }
    }
}

/// Of a process, whoever it is.
pub(crate) fn of(pid: i32) -> Result<Limits, Error> {
    if let Ok(limits) = process::limits(pid) {
        return Ok(limits);
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).map_err(|_| Error::Gone(pid))?;
    let unreadable = || Error::Unexpected { pid, what: "its limits cannot be read".into() };
    parse(&text).ok_or_else(unreadable)
}

/// The text in /proc: a title, and one line each by number.
fn parse(text: &str) -> Option<Limits> {
    const NAME: usize = 25;
    let number = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let mut all = [[0; 2]; 16];
    let mut lines = text.lines().skip(1);
    for pair in &mut all {
        let mut words = lines.next()?.get(NAME..)?.split_whitespace();
        *pair = [number(words.next()?)?, number(words.next()?)?];
    }
    Some(all)
}

fn may_raise() -> bool {
    own::effective_caps() >> cap::SYS_RESOURCE & 1 == 1
}

/// Could something stand for a process with these limits? For whoever cannot raise hard ones.
fn suffice(limits: &Limits, text: u64) -> Result<(), Refusal> {
    match least(text).into_iter().find(|(which, least)| limits[*which][1] < *least) {
        None => Ok(()),
        Some((which, least)) => Err(Refusal::LowLimit { what: name(which), is: limits[which][1], least }),
    }
}

/// Could something stand for the process when it has gone? Asked while it runs. `text`: as above.
///
/// # Errors
/// A hard limit is too low for that, and this machine lets nobody raise it; it has ended.
pub fn can_leave(pid: i32, text: u64) -> Result<(), Error> {
    if may_raise() {
        return Ok(());
    }
    Ok(suffice(&of(pid)?, text)?)
}

/// Could a process be built in this one? The room that the calls want is not all.
pub(crate) fn can_come(pid: i32, room: u64) -> Result<(), Refusal> {
    if may_raise() {
        return Ok(());
    }
    // Who is gone is found out soon.
    let Ok(limits) = of(pid) else { return Ok(()) };
    for which in OF_MEMORY {
        let [_, is] = limits[which];
        if is < room {
            return Err(Refusal::LowLimit { what: name(which), is, least: room });
        }
    }
    suffice(&limits, 0)
}

fn name(which: usize) -> &'static str {
    match which {
        DATA => "data",
        STACK => "stack",
        NOFILE => "open files",
        _ => "address space",
    }
}

/// The limits of a process that stands still, lifted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifted {
    own: Limits,
    now: Limits,
}

impl Lifted {
    /// For the building of a process in it.
    pub(crate) fn for_all(tracee: &mut Tracee, gate: u64, memory: &MemFile) -> Result<Lifted, Error> {
        Lifted::lift(tracee, gate, memory, &LATE, 0)
    }

    /// For the execution of what stands for it, with so much text: no more than that needs.
    pub(crate) fn for_exec(tracee: &mut Tracee, gate: u64, memory: &MemFile, text: u64) -> Result<Lifted, Error> {
        Lifted::lift(tracee, gate, memory, &[], text)
    }

    fn lift(tracee: &mut Tracee, gate: u64, memory: &MemFile, all: &[usize], text: u64) -> Result<Lifted, Error> {
        let own = of(tracee.tid())?;
        let mut lifted = Lifted { own, now: own };
        let stand_in = of_stand_in(&own, text);
        for which in LATE {
            let wanted = match which {
                // One without end would lay the memory of a program out in another way.
                STACK => stand_in[which],
                NOFILE if all.contains(&which) => [own::most_descriptors().max(own[which][1]); 2],
                _ if all.contains(&which) => [u64::MAX; 2],
                _ => stand_in[which],
            };
            let most = if may_raise() { u64::MAX } else { own[which][1] };
            let wanted = wanted.map(|limit| limit.min(most));
            if wanted != own[which] && put(tracee, gate, memory, which, wanted) {
                lifted.now[which] = wanted;
            }
        }
        // Once it had more processes than its user may have, it could execute nothing.
        if all.is_empty() && process::set_limit(tracee.tid(), NPROC, [u64::MAX; 2]).is_ok() {
            lifted.now[NPROC] = [u64::MAX; 2];
        }
        Ok(lifted)
    }

    /// Those that it had.
    pub(crate) fn own(&self) -> &Limits {
        &self.own
    }

    /// The former ones again.
    pub(crate) fn put_back(self, tracee: &mut Tracee, gate: u64, memory: &MemFile) {
        for which in LATE.into_iter().filter(|which| self.own[*which] != self.now[*which]) {
            put(tracee, gate, memory, which, self.own[which]);
        }
    }
}

/// [`Tracee::lay`] in one that may have no more memory, too: for the moment of this call it may.
pub(crate) fn lay(tracee: &mut Tracee, gate: u64, memory: &MemFile, scratch: &Scratch) -> Result<(), Error> {
    match tracee.lay(memory, gate, scratch) {
        Err(Error::Inside { why, .. }) if why.raw_os_error() == Some(libc::ENOMEM) => {}
        laid => return laid,
    }
    let own = of(tracee.tid())?;
    for which in OF_MEMORY {
        let [_, hard] = own[which];
        put(tracee, gate, memory, which, [if may_raise() { u64::MAX } else { hard }; 2]);
    }
    let laid = tracee.lay(memory, gate, scratch);
    OF_MEMORY.into_iter().filter(|which| own[*which] != [u64::MAX; 2]).for_each(|which| {
        put(tracee, gate, memory, which, own[which]);
    });
    laid
}

/// These, of those that may have been lifted, for a process that stands still, and in which nothing need be called. What only it
/// itself could set stays lifted.
pub(crate) fn set(pid: i32, wanted: &Limits) {
    for which in LATE {
        let _: Result<(), _> = process::set_limit(pid, which, wanted[which]);
    }
}

/// From outside, or else from inside.
fn put(tracee: &mut Tracee, gate: u64, memory: &MemFile, which: usize, pair: [u64; 2]) -> bool {
    process::set_limit(tracee.tid(), which, pair).is_ok() || put_inside(tracee, gate, memory, which, pair)
}

/// It says so itself. What lies below its stack, where it has nothing, is lent for that.
fn put_inside(tracee: &mut Tracee, gate: u64, memory: &MemFile, which: usize, pair: [u64; 2]) -> bool {
    const BELOW: u64 = 1024;
    let at = tracee.regs()[reg::RSP].wrapping_sub(BELOW) & !15;
    let mut was = [0; 16];
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&pair[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&pair[1].to_ne_bytes());
    if memory.read(at, &mut was).is_err() || memory.write(at, &bytes).is_err() {
        return false;
    }
    let done = tracee.raw_call(gate, libc::SYS_prlimit64, &[0, which as u64, at, 0]);
    let again = memory.write(at, &was);
    done.is_ok_and(|done| done == 0) && again.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_tells_what_the_call_tells() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(parse(&text), process::limits(0).ok());
        assert_eq!(parse("nothing"), None);
    }

    #[test]
    fn a_stand_in_has_what_it_needs_and_no_more() {
        let mut own = [[u64::MAX; 2]; 16];
        assert_eq!(of_stand_in(&own, 0), own);
        own[NOFILE] = [1, 1];
        own[NPROC] = [1, 1];
        let mut wanted = own;
        wanted[NOFILE] = [16, 16];
        assert_eq!(of_stand_in(&own, 0), wanted);
        own[NOFILE] = [0, 4096];
        wanted[NOFILE] = [16, 4096];
        assert_eq!(of_stand_in(&own, 0), wanted);
        assert!(suffice(&own, 0).is_ok());
        own[NOFILE] = [0, 1];
        assert!(matches!(suffice(&own, 0), Err(Refusal::LowLimit { what: "open files", is: 1, least: 16 })));
    }
}
