//! The command by which a ghost becomes a program, from an exec block.
//!
//! Order matters: what needs privilege comes before the identity changes, descriptors
//! before the limit on their number, the signal mask last. A signal that is pending
//! goes over into the program, or acts on it, as natively. After the first step there is
//! no way back: a failure is told and the process ends. Whoever must not end has a child try it before ([`crate::trial`]).

use crate::abi::{Action, Caps, Limit, Prctl, RLIMIT_NOFILE, ambient, errno, sig};
use crate::command::{Answer, Fds, INVALID};
use crate::ghost::Ghost;
use crate::sys::{self, Errno, MAX_FDS};
use crate::trial;
use bproc_common::exec::{Head, MAGIC, MAX_BLOCK, flag};
use bproc_common::ghost::{Msg, Role};
use bproc_common::wire::Record;
use core::ffi::CStr;

/// Who runs what the kernel takes for no program.
const SHELL: &CStr = c"/bin/sh";
/// Exit code of a process that could not become the program, as shells have it.
const EXIT_NO_PROGRAM: i32 = 127;

/// It is tried, and not done ([`bproc_common::ghost::op::EXEC`]).
const ONLY_TRIED: i64 = 2;

/// Returns only in init, which can become nothing else, and where it was to be tried, and cannot be done or is not to be.
pub(crate) fn become_program(ghost: &mut Ghost, msg: &Msg, fds: &Fds) -> sys::Result<Answer> {
    if ghost.role == Role::Init {
        return Err(INVALID);
    }
    if msg.a != 0
        && let Some(error) = trial::refusal(ghost, fds)
    {
        return Err(error);
    }
    if msg.a == ONLY_TRIED {
        return Ok(Answer::Value(0));
    }
    let error = match attempt(ghost, fds, false) {
        Ok(error) | Err(error) => error,
    };
    ghost.answer(msg.tag, Err(error));
    sys::exit(EXIT_NO_PROGRAM)
}

/// Does all of it. `trial`: in a child that is ended when that has worked. It leaves its signals blocked, and the terminal to
/// the others, who would lose it with its end.
pub(crate) fn attempt(ghost: &mut Ghost, fds: &Fds, trial: bool) -> sys::Result<Errno> {
    let [memfd, files @ ..] = fds.all() else {
        return Err(INVALID);
    };
    let mut block = Block::map(*memfd)?;
    sys::close(*memfd);
    settings(&block)?;
    let files = match files {
        [mounts, files @ ..] if block.head.flags & flag::MOUNTS != 0 => {
            sys::enter_mounts(*mounts)?;
            sys::close(*mounts);
            files
        }
        files => files,
    };
    if files.len() != block.head.nfds as usize {
        return Err(INVALID);
    }
    block.make_pointers()?;
    sys::close(ghost.signals);
    if set_up(ghost, &block, files, trial)? && block.head.flags & flag::BELOW_CWD != 0 {
        block.shorten_path()?;
    }
    let argv = block.bytes[block.head.argv_at as usize..].as_ptr().cast();
    let envp = block.bytes[block.head.envp_at as usize..].as_ptr().cast();
    let path = block.text(block.head.path_at)?.as_ptr().cast();
    if !trial {
        sys::set_mask(block.head.blocked);
    }
    // SAFETY: make_pointers has made both tables arrays of pointers to texts in the block, ended by null.
    let mut error = unsafe { sys::execve(path, argv, envp) };
    if error == Errno(errno::ENOEXEC) && block.head.flags & flag::SHELL != 0 {
        let argv = block.give_to_shell()?;
        // SAFETY: as above, and give_to_shell has put two texts before the rest of the arguments.
        error = unsafe { sys::execve(SHELL.as_ptr().cast(), argv, envp) };
    }
    sys::set_mask(u64::MAX);
    Ok(error)
}

/// An exec block in memory. Its last byte is 0, so whatever starts inside is a text that ends inside.
struct Block {
    head: Head,
    bytes: &'static mut [u8],
}

impl Block {
    fn map(memfd: i32) -> sys::Result<Block> {
        let size = sys::file_size(memfd)?;
        if !(Head::SIZE as u64..=MAX_BLOCK).contains(&size) {
            return Err(INVALID);
        }
        let bytes = sys::map_file(memfd, size as usize)?;
        let head = Head::get(bytes).ok_or(INVALID)?;
        if head.magic != MAGIC || head.size != size || bytes.last() != Some(&0) {
            return Err(INVALID);
        }
        Ok(Block { head, bytes })
    }

    fn table(&self, at: u64, entries: u64, size: u64) -> sys::Result<&[u8]> {
        let end = entries.checked_mul(size).and_then(|n| n.checked_add(at)).ok_or(INVALID)?;
        usize::try_from(at).ok().zip(usize::try_from(end).ok()).and_then(|(a, e)| self.bytes.get(a..e)).ok_or(INVALID)
    }

    fn text(&self, at: u64) -> sys::Result<&CStr> {
        usize::try_from(at)
            .ok()
            .and_then(|at| self.bytes.get(at..))
            .and_then(|rest| CStr::from_bytes_until_nul(rest).ok())
            .ok_or(INVALID)
    }

    /// Turns the offsets of arguments and environment into addresses, in place.
    fn make_pointers(&mut self) -> sys::Result<()> {
        let base = self.bytes.as_ptr() as u64;
        let size = self.bytes.len() as u64;
        for (at, count) in [(self.head.argv_at, self.head.argc), (self.head.envp_at, self.head.envc)] {
            self.table(at, u64::from(count) + 1, 8)?;
            let (start, count) = (at as usize, count as usize);
            for entry in 0..=count {
                let slot = &mut self.bytes[start + 8 * entry..start + 8 * entry + 8];
                let offset = word(slot);
                if (offset == 0) != (entry == count) || offset >= size {
                    return Err(INVALID);
                }
                if entry < count {
                    slot.copy_from_slice(&(base + offset).to_ne_bytes());
                }
            }
        }
        Ok(())
    }
}

/// What a local fork and exec would take over besides. While this has init's rights and /proc: the master saw that the caller has
/// all this, and whoever may not raise a thing natively inherits it raised. What the machine refuses is left.
fn settings(block: &Block) -> sys::Result<()> {
    const AS_IT_IS: u32 = u32::MAX;
    let head = &block.head;
    let processors = block.table(head.processors_at, u64::from(head.nprocessors), 1)?;
    if head.flags & flag::SETTINGS == 0 {
        return Ok(());
    }
    let _ = sys::write_number(c"/proc/self/oom_score_adj", head.oom_score_adj.into());
    if head.core_filter != AS_IT_IS {
        let _ = sys::write_number(c"/proc/self/coredump_filter", head.core_filter.into());
    }
    sys::set_personality(head.personality);
    if head.io_priority != 0 {
        let _ = sys::set_io_priority(head.io_priority);
    }
    if !processors.is_empty() {
        let _ = sys::set_processors(processors);
    }
    // Before the policy: real-time ones have none.
    if head.timer_slack != 0 {
        let _ = sys::prctl(Prctl::SetTimerslack, head.timer_slack as usize, 0);
    }
    if head.policy != 0 {
        let _ = sys::set_scheduler(head.policy, head.priority);
    }
    Ok(())
}

impl Block {
    /// The program's path without the working directory in which it is.
    fn shorten_path(&mut self) -> sys::Result<()> {
        let cwd = self.text(self.head.cwd_at)?.to_bytes();
        let path = self.text(self.head.path_at)?.to_bytes();
        let skip = match path.strip_prefix(cwd) {
            Some(rest) if cwd.ends_with(b"/") && !rest.is_empty() => cwd.len(),
            Some([b'/', _, ..]) => cwd.len() + 1,
            _ => 0,
        };
        self.head.path_at += skip as u64;
        Ok(())
    }

    /// The arguments for a shell: its name and the program's path instead of the zeroth.
    fn give_to_shell(&mut self) -> sys::Result<*const u64> {
        let path = self.text(self.head.path_at)?.as_ptr() as u64;
        let at = self.head.argv_at.checked_sub(8).filter(|at| *at >= Head::SIZE as u64).ok_or(INVALID)? as usize;
        let room = self.bytes.get_mut(at..at + 16).filter(|_| self.head.argc > 0).ok_or(INVALID)?;
        room[..8].copy_from_slice(&(SHELL.as_ptr() as u64).to_ne_bytes());
        room[8..].copy_from_slice(&path.to_ne_bytes());
        Ok(room.as_ptr().cast())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

fn half(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// All but exec itself. True: it is in its working directory.
fn set_up(ghost: &mut Ghost, block: &Block, files: &[i32], trial: bool) -> sys::Result<bool> {
    let head = &block.head;
    let cwd = block.text(head.cwd_at)?;
    session(head)?;
    place_files(ghost, files, block.table(head.fds_at, u64::from(head.nfds), 4)?)?;
    if head.flags & flag::CTTY != 0 && !trial {
        sys::take_terminal(0)?;
    }
    // With privilege first: natively a working directory is inherited, and whether its path may be walked is never
    // asked. Where root has less rights than the user (network file systems) the second attempt helps.
    let entered = sys::chdir(cwd);
    sys::set_umask(head.umask & 0o777);
    // A ghost that may not raise its priority goes on with the one it has.
    let _ = sys::set_nice(head.nice);
    limits(block.table(head.rlimits_at, u64::from(head.nrlimits), 16)?)?;
    identity(head, block.table(head.groups_at, u64::from(head.ngroups), 4)?)?;
    let mut there = true;
    if entered.is_err() {
        match sys::chdir(cwd) {
            Err(Errno(errno::ENOENT | errno::ENOTDIR)) if head.flags & flag::CWD_OPTIONAL != 0 => {
                sys::chdir(c"/")?;
                there = false;
            }
            other => other?,
        }
    }
    if head.flags & flag::NO_NEW_PRIVS != 0 {
        sys::prctl(Prctl::SetNoNewPrivs, 1, 0)?;
    }
    // After the identity, whose change forgets it.
    sys::prctl(Prctl::SetParentDeathSignal, head.pdeathsig as u32 as usize, 0)?;
    dispositions(head.ignored)?;
    Ok(there)
}

/// Session and group. Being in the wanted place already is no error.
fn session(head: &Head) -> sys::Result<()> {
    let me = sys::getpid();
    if head.flags & flag::SETSID != 0 && sys::getsid(0) != Ok(me) {
        sys::setsid()?;
    }
    if head.flags & flag::SETPGID != 0 {
        if head.pgid < 0 {
            return Err(INVALID);
        }
        let group = if head.pgid == 0 { me } else { head.pgid };
        if sys::getpgid(0) != Ok(group) {
            sys::setpgid(0, group)?;
        }
    }
    Ok(())
}

/// Gives descriptors their numbers. All that stand on a number to be given step aside first, the socket too.
fn place_files(ghost: &mut Ghost, files: &[i32], numbers: &[u8]) -> sys::Result<()> {
    let taken = |fd: i32| numbers.chunks_exact(4).any(|n| half(n) as i32 == fd);
    let aside = |fd: i32| -> sys::Result<i32> {
        let mut at = fd;
        let mut from = 0;
        while taken(at) {
            let next = sys::dup_from(fd, from)?;
            if at != fd {
                sys::close(at);
            }
            at = next;
            from = next + 1;
        }
        Ok(at)
    };
    let highest = numbers.chunks_exact(4).map(half).max().unwrap_or(0);
    make_room(highest)?;
    let socket = aside(ghost.link.fd())?;
    ghost.link.moved_to(socket);
    let mut sources = [-1; MAX_FDS];
    for (source, file) in sources.iter_mut().zip(files) {
        *source = aside(*file)?;
    }
    for (source, number) in sources.iter().zip(numbers.chunks_exact(4)) {
        let number = i32::try_from(half(number)).map_err(|_| INVALID)?;
        sys::dup_to(*source, number)?;
    }
    Ok(())
}

/// A process may hold descriptors above its limit, having lowered it; to place them ours must be higher for now.
fn make_room(highest: u32) -> sys::Result<()> {
    let old = sys::limit(RLIMIT_NOFILE)?;
    let wanted = u64::from(highest) + 2 * MAX_FDS as u64;
    if old.soft < wanted && sys::set_limit(RLIMIT_NOFILE, Limit { soft: wanted, hard: old.hard.max(wanted) }).is_err() {
        sys::set_limit(RLIMIT_NOFILE, Limit { soft: old.hard, hard: old.hard })?;
    }
    Ok(())
}

/// Sets limits in the order of their numbers; those that this kernel does not know end the table.
fn limits(table: &[u8]) -> sys::Result<()> {
    for (which, pair) in (0u32..).zip(table.chunks_exact(16)) {
        let wanted = Limit { soft: word(&pair[..8]), hard: word(&pair[8..]) };
        match sys::set_limit(which, wanted) {
            Ok(()) => {}
            Err(Errno(errno::EPERM)) => {
                let hard = sys::limit(which)?.hard;
                let capped = Limit { soft: wanted.soft.min(hard), hard: wanted.hard.min(hard) };
                sys::set_limit(which, capped)?;
            }
            Err(Errno(errno::EINVAL)) if wanted.soft <= wanted.hard => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Groups, ids and capabilities. Everything that is so already needs no privilege.
fn identity(head: &Head, groups: &[u8]) -> sys::Result<()> {
    for capability in 0..64 {
        match sys::prctl(Prctl::BoundingRead, capability, 0) {
            Ok(1) if head.cap_bounding >> capability & 1 == 0 => {
                sys::prctl(Prctl::BoundingDrop, capability, 0)?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let before = sys::caps()?;
    sys::prctl(Prctl::SetKeepCaps, 1, 0)?;
    if !sys::has_groups(groups.chunks_exact(4).map(half)) {
        sys::setgroups(groups)?;
    }
    sys::setresgid(head.rgid, head.egid, head.sgid)?;
    sys::setresuid(head.ruid, head.euid, head.suid)?;
    let inheritable = head.cap_inheritable;
    let permitted = before.permitted;
    sys::set_caps(Caps { effective: permitted, permitted, inheritable })?;
    sys::prctl(Prctl::Ambient, ambient::CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|c| head.cap_ambient >> c & 1 != 0) {
        sys::prctl(Prctl::Ambient, ambient::RAISE, capability)?;
    }
    // After the ambient set, which they may close, and the ids, which they may untie from the capabilities.
    if head.securebits != 0 {
        // Without those that an older kernel does not know.
        const RIGHTS: u32 = 0xff;
        sys::prctl(Prctl::SetSecurebits, head.securebits as usize, 0)
            .or_else(|_| sys::prctl(Prctl::SetSecurebits, (head.securebits & RIGHTS) as usize, 0))?;
    }
    if head.euid != 0 {
        let left = head.cap_ambient;
        sys::set_caps(Caps { effective: left, permitted: left, inheritable })?;
    }
    Ok(())
}

/// Signals are ignored as told, else default.
///
/// Setting the default of a signal whose default is to be ignored drops one that is pending and blocked. So these get
/// a handler that does nothing, which exec turns into the default; ones that have a handler are left to exec anyway.
fn dispositions(ignored: u64) -> sys::Result<()> {
    for signal in (1..=sig::MAX).filter(|s| ![sig::KILL, sig::STOP].contains(s)) {
        let now = sys::action(signal)?.0;
        if ignored >> (signal - 1) & 1 != 0 {
            if now != Action::Ignore {
                sys::set_action(signal, Action::Ignore)?;
            }
        } else if now == Action::Ignore {
            let harmless = [sig::CHLD, sig::CONT, sig::URG, sig::WINCH].contains(&signal);
            sys::set_action(signal, if harmless { Action::Handler } else { Action::Default })?;
        }
    }
    Ok(())
}
