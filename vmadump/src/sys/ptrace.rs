//! ptrace and waitpid, typed.

use std::time::{Duration, Instant};

use super::{SysError, done};
use crate::image::Rseq;
use crate::wire::Bytes;

/// General registers in the order of `user_regs_struct`.
pub(crate) type Regs = [u64; 27];

/// Indices into [`Regs`].
pub(crate) mod reg {
    /// rbx.
    pub(crate) const RBX: usize = 5;
    /// r14.
    pub(crate) const R14: usize = 1;
    /// r10.
    pub(crate) const R10: usize = 7;
    /// rax.
    pub(crate) const RAX: usize = 10;
    /// rdx.
    pub(crate) const RDX: usize = 12;
    /// rsi.
    pub(crate) const RSI: usize = 13;
    /// rdi.
    pub(crate) const RDI: usize = 14;
    /// orig_rax.
    pub(crate) const ORIG_RAX: usize = 15;
    /// rip.
    pub(crate) const RIP: usize = 16;
    /// cs.
    pub(crate) const CS: usize = 17;
    /// eflags.
    pub(crate) const EFLAGS: usize = 18;
    /// rsp.
    pub(crate) const RSP: usize = 19;
    /// fs_base.
    pub(crate) const FS_BASE: usize = 21;
    /// gs_base.
    pub(crate) const GS_BASE: usize = 22;
}

/// PTRACE_O_TRACESYSGOOD.
pub(crate) const SYSGOOD: u64 = libc::PTRACE_O_TRACESYSGOOD as u64;
/// PTRACE_O_TRACECLONE.
pub(crate) const TRACECLONE: u64 = libc::PTRACE_O_TRACECLONE as u64;
/// PTRACE_O_TRACEEXEC.
pub(crate) const TRACEEXEC: u64 = libc::PTRACE_O_TRACEEXEC as u64;
/// PTRACE_O_EXITKILL.
pub(crate) const EXITKILL: u64 = libc::PTRACE_O_EXITKILL as u64;
/// PTRACE_O_SUSPEND_SECCOMP.
pub(crate) const SUSPEND_SECCOMP: u64 = 1 << 21;

/// Event number of a clone.
pub(crate) const EVENT_CLONE: i32 = 3;
/// Event number of an exec.
pub(crate) const EVENT_EXEC: i32 = 4;
/// Event number of an interrupt or group stop.
pub(crate) const EVENT_STOP: i32 = 128;

/// Between two looks at a thread that cannot be waited for.
const PAUSE: Duration = Duration::from_micros(50);

/// What waitpid told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// Ended with this exit code.
    Exited(i32),
    /// Ended by this signal.
    Killed(i32),
    /// Stopped: signal (bit 7: system call), ptrace event.
    Stopped(i32, i32),
}

fn request(op: libc::c_uint, tid: i32, addr: u64, data: u64, what: &'static str) -> Result<i64, SysError> {
    // SAFETY: the callers pass buffers that live through the call and are as large as the request writes.
    let ret = unsafe { libc::ptrace(op as _, tid, addr as *mut libc::c_void, data as *mut libc::c_void) };
    done(ret, what, tid)
}

/// Attaches without stopping.
pub(crate) fn seize(tid: i32, options: u64) -> Result<(), SysError> {
    request(libc::PTRACE_SEIZE, tid, 0, options, "attach to").map(drop)
}

/// Asks for a stop.
pub(crate) fn interrupt(tid: i32) -> Result<(), SysError> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0, "interrupt").map(drop)
}

/// Goes on, delivering `signal` unless 0.
pub(crate) fn cont(tid: i32, signal: i32) -> Result<(), SysError> {
    request(libc::PTRACE_CONT, tid, 0, signal as u64, "continue").map(drop)
}

/// Goes on to the next system call entry or exit.
pub(crate) fn cont_syscall(tid: i32) -> Result<(), SysError> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0, "continue").map(drop)
}

/// Lets it run one instruction.
pub(crate) fn step(tid: i32) -> Result<(), SysError> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0, "step").map(drop)
}

/// Lets go, delivering `signal` unless 0.
pub(crate) fn detach(tid: i32, signal: i32) -> Result<(), SysError> {
    request(libc::PTRACE_DETACH, tid, 0, signal as u64, "detach from").map(drop)
}

/// Changes the options.
pub(crate) fn set_options(tid: i32, options: u64) -> Result<(), SysError> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options, "set ptrace options of").map(drop)
}

/// Message of the last event.
pub(crate) fn event_message(tid: i32) -> Result<u64, SysError> {
    let mut message = 0u64;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as u64, "read the ptrace event of")?;
    Ok(message)
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

/// General registers.
pub(crate) fn regs(tid: i32) -> Result<Regs, SysError> {
    let mut regs = [0u64; 27];
    let mut iov = iovec(regs.as_mut_ptr().cast(), size_of::<Regs>());
    request(libc::PTRACE_GETREGSET, tid, libc::NT_PRSTATUS as u64, &raw mut iov as u64, "read the registers of")?;
    if iov.iov_len != size_of::<Regs>() {
        return Err(SysError { op: "read the 64-bit registers of", pid: tid, errno: libc::ENOEXEC });
    }
    Ok(regs)
}

/// Sets the general registers.
pub(crate) fn set_regs(tid: i32, regs: &Regs) -> Result<(), SysError> {
    let mut iov = iovec(regs.as_ptr().cast_mut().cast(), size_of::<Regs>());
    request(libc::PTRACE_SETREGSET, tid, libc::NT_PRSTATUS as u64, &raw mut iov as u64, "set the registers of")
        .map(drop)
}

/// Extended state in the standard layout.
pub(crate) fn xstate(tid: i32) -> Result<Vec<u8>, SysError> {
    let mut buf = vec![0; 16384];
    let mut iov = iovec(buf.as_mut_ptr(), buf.len());
    request(libc::PTRACE_GETREGSET, tid, 0x202, &raw mut iov as u64, "read the vector registers of")?;
    buf.truncate(iov.iov_len);
    Ok(buf)
}

/// Sets the extended state.
pub(crate) fn set_xstate(tid: i32, state: &[u8]) -> Result<(), SysError> {
    let mut iov = iovec(state.as_ptr().cast_mut(), state.len());
    request(libc::PTRACE_SETREGSET, tid, 0x202, &raw mut iov as u64, "set the vector registers of").map(drop)
}

/// Blocked signals.
pub(crate) fn mask(tid: i32) -> Result<u64, SysError> {
    let mut mask = 0u64;
    request(0x420a, tid, 8, &raw mut mask as u64, "read the signal mask of")?;
    Ok(mask)
}

/// Sets the blocked signals.
pub(crate) fn set_mask(tid: i32, mask: u64) -> Result<(), SysError> {
    request(0x420b, tid, 8, &raw const mask as u64, "set the signal mask of").map(drop)
}

/// Pending signals of the thread, or with `shared` of its process: raw siginfo each.
pub(crate) fn pending(tid: i32, shared: bool) -> Result<Vec<Bytes>, SysError> {
    let mut all = Vec::new();
    let mut most = usize::MAX;
    while all.len() < most && more_pending(tid, shared, &mut all)? {
        if most == usize::MAX && all.len() >= LONG {
            // More come as fast as they are read. Those that come now are the stand-in's.
            most = queued(tid).max(all.len());
        }
    }
    Ok(all)
}

/// A queue so long that it may never be read to its end.
const LONG: usize = 1024;

/// How many signals its user has queued.
fn queued(tid: i32) -> usize {
    let status = std::fs::read(format!("/proc/{tid}/status"));
    status.map_or(usize::MAX, |status| crate::procfs::status(&status).queued.0 as usize)
}

/// Signals that are read by one request.
const AT_ONCE: usize = 16;

/// Reads some after those that are read. False: there are none. The kernel goes through the whole queue for each.
fn more_pending(tid: i32, shared: bool, all: &mut Vec<Bytes>) -> Result<bool, SysError> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut buf = [[0u8; 128]; AT_ONCE];
    let args = Args { off: all.len() as u64, flags: u32::from(shared), nr: AT_ONCE as i32 };
    let n = request(0x4209, tid, &raw const args as u64, buf.as_mut_ptr() as u64, "read the pending signals of")?;
    all.extend(buf.iter().take(n as usize).map(|info| Bytes(info.to_vec())));
    Ok(n > 0)
}

/// Those of the pending signals that are SIGCONT.
pub(crate) fn continues(tid: i32, shared: bool) -> Result<Vec<Bytes>, SysError> {
    let mut all = Vec::new();
    while more_pending(tid, shared, &mut all)? {
        if all.len() >= AT_ONCE {
            all = if may_be_continued(tid) { pending(tid, shared)? } else { Vec::new() };
            break;
        }
    }
    all.retain(is_continue);
    Ok(all)
}

/// What a long queue is not read for.
fn may_be_continued(tid: i32) -> bool {
    std::fs::read(format!("/proc/{tid}/status"))
        .map_or(true, |status| crate::procfs::status(&status).pending >> (libc::SIGCONT - 1) & 1 != 0)
}

/// Does a SIGCONT wait for the thread or its process?
pub(crate) fn is_continued(tid: i32) -> Result<bool, SysError> {
    Ok(!continues(tid, true)?.is_empty() || !continues(tid, false)?.is_empty())
}

/// Is this raw siginfo that of a SIGCONT?
pub(crate) fn is_continue(info: &Bytes) -> bool {
    info.first() == Some(&(libc::SIGCONT as u8))
}

/// siginfo of the signal at whose delivery the thread stopped: signal, code, sender.
pub(crate) fn stop_info(tid: i32) -> Result<(i32, i32, i32), SysError> {
    let mut info = [0u8; 128];
    request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as u64, "read the signal of")?;
    let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok((word(0), word(8), word(16)))
}

/// Restartable sequences registration; all zero when there is none or the kernel cannot tell.
pub(crate) fn rseq(tid: i32) -> Rseq {
    #[repr(C)]
    #[derive(Default)]
    struct Conf {
        address: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut conf = Conf::default();
    if request(0x420f, tid, size_of::<Conf>() as u64, &raw mut conf as u64, "read rseq of").is_err() {
        conf = Conf::default();
    }
    Rseq { address: conf.address, size: conf.size, signature: conf.signature, flags: conf.flags }
}

/// Has a stopped thread seccomp filters, as far as we may know (CAP_SYS_ADMIN)?
pub(crate) fn is_filtered(tid: i32) -> bool {
    request(0x420c, tid, 0, 0, "look for seccomp filters of").is_ok()
}

fn has_seccomp(tid: i32) -> bool {
    let status = super::files::read_record(&format!("/proc/{tid}/status"));
    status.is_ok_and(|text| crate::procfs::status(&text).seccomp != 0)
}

/// Seccomp filters of a thread, oldest first. Needs CAP_SYS_ADMIN.
pub(crate) fn filters(tid: i32) -> Result<Vec<Bytes>, SysError> {
    let mut all = Vec::new();
    loop {
        let n = match request(0x420c, tid, all.len() as u64, 0, "read the seccomp filters of") {
            Ok(n) => n as usize,
            Err(e) if e.errno == libc::ENOENT => break,
            // Another thread has some; one in strict mode has another limit.
            Err(e) if e.errno == libc::EINVAL && all.is_empty() && !has_seccomp(tid) => break,
            Err(e) => return Err(e),
        };
        let mut filter = vec![0u8; n * 8];
        request(0x420c, tid, all.len() as u64, filter.as_mut_ptr() as u64, "read the seccomp filters of")?;
        all.push(Bytes(filter));
    }
    // The kernel counts from the oldest.
    Ok(all)
}

fn decode(raw: i32) -> Status {
    if libc::WIFEXITED(raw) {
        Status::Exited(libc::WEXITSTATUS(raw))
    } else if libc::WIFSIGNALED(raw) {
        Status::Killed(libc::WTERMSIG(raw))
    } else {
        Status::Stopped((raw >> 8) & 0xff, raw >> 16)
    }
}

/// Waits for a change of `tid`, as long as it takes.
pub(crate) fn wait(tid: i32) -> Result<Status, SysError> {
    loop {
        if let Some(status) = poll(tid)? {
            return Ok(status);
        }
        if !look_around(tid, 0)? {
            // Somebody else's change stands before it.
            std::thread::sleep(PAUSE);
        }
    }
}

/// The end of a process is told by its leader, and only when the ends of its other traced threads have been waited for.
/// That is done here, for one that is next. With `WNOHANG` in `flags` it does not wait for any to be. False: there is
/// none, or it is neither a change of `tid` nor such an end.
fn look_around(tid: i32, flags: i32) -> Result<bool, SysError> {
    let flags = flags | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: siginfo_t is plain data; zeros tell that nothing was there.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info outlives the call.
    let ret = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    match done(ret.into(), "wait for", tid) {
        Err(e) if e.errno == libc::EINTR => return Ok(true),
        other => other?,
    };
    // SAFETY: waitid has filled it, or it is zero.
    let who = unsafe { info.si_pid() };
    if who == tid {
        return Ok(true);
    }
    let over = matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    let its_own = || std::path::Path::new(&format!("/proc/{tid}/task/{who}")).exists();
    Ok(who > 0 && over && its_own() && poll(who)?.is_some())
}

/// A change of `tid` that is there already.
pub(crate) fn poll(tid: i32) -> Result<Option<Status>, SysError> {
    let mut raw = 0;
    // SAFETY: raw outlives the call.
    let ret = unsafe { libc::waitpid(tid, &raw mut raw, libc::__WALL | libc::WNOHANG) };
    Ok(if done(ret.into(), "wait for", tid)? == 0 { None } else { Some(decode(raw)) })
}

/// Waits for a change of `tid` at most `limit`; ETIMEDOUT after it.
pub(crate) fn wait_at_most(tid: i32, limit: Duration) -> Result<Status, SysError> {
    let start = Instant::now();
    let mut turns = 0u32;
    loop {
        if let Some(status) = poll(tid)? {
            return Ok(status);
        }
        turns += 1;
        if turns < 200 {
            std::thread::yield_now();
        } else if start.elapsed() > limit {
            return Err(SysError { op: "stop (is it in an uninterruptible wait?)", pid: tid, errno: libc::ETIMEDOUT });
        } else if !look_around(tid, libc::WNOHANG)? {
            std::thread::sleep(PAUSE);
        }
    }
}
