//! Sending signals to one process that is named by a checked pid, and reading what `siginfo_t` says.

use std::mem::size_of;

use bproc_common::id::Pid;

use crate::error::{Error, Result, check, check_long};
use crate::pod::Zeroable;

/// Largest signal number.
pub const MAX: i32 = 64;

/// A `siginfo_t` as bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigInfo(pub [u8; 128]);

const _: () = assert!(size_of::<libc::siginfo_t>() == 128);

impl SigInfo {
    /// As `sigqueue(3)` fills it, from this sender with this value.
    pub fn queued(signo: i32, pid: i32, uid: u32, value: u64) -> SigInfo {
        SigInfo::with(signo, libc::SI_QUEUE, pid, uid).value_set(value)
    }

    /// The same from the caller.
    pub fn from_here(signo: i32, value: u64) -> SigInfo {
        // SAFETY: takes nothing, cannot fail.
        let uid = unsafe { libc::getuid() };
        SigInfo::queued(signo, std::process::id() as i32, uid, value)
    }

    /// With these fields and zeros elsewhere.
    pub fn with(signo: i32, code: i32, pid: i32, uid: u32) -> SigInfo {
        let mut raw = [0; 128];
        raw[0..4].copy_from_slice(&signo.to_ne_bytes());
        raw[8..12].copy_from_slice(&code.to_ne_bytes());
        raw[16..20].copy_from_slice(&pid.to_ne_bytes());
        raw[20..24].copy_from_slice(&uid.to_ne_bytes());
        SigInfo(raw)
    }

    fn value_set(mut self, value: u64) -> SigInfo {
        self.0[24..32].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn word(&self, at: usize) -> i32 {
        let mut w = [0; 4];
        w.copy_from_slice(&self.0[at..at + 4]);
        i32::from_ne_bytes(w)
    }

    /// `si_signo`.
    pub fn signo(&self) -> i32 {
        self.word(0)
    }

    /// `si_errno`.
    pub fn errno(&self) -> i32 {
        self.word(4)
    }

    /// `si_code`: SI_USER, SI_QUEUE and so on; positive ones come from the kernel.
    pub fn code(&self) -> i32 {
        self.word(8)
    }

    /// `si_pid`, where the code has one.
    pub fn pid(&self) -> i32 {
        self.word(16)
    }

    /// `si_uid`, where the code has one.
    pub fn uid(&self) -> u32 {
        self.word(20) as u32
    }

    /// `si_value`, where the code has one.
    pub fn value(&self) -> u64 {
        let mut w = [0; 8];
        w.copy_from_slice(&self.0[24..32]);
        u64::from_ne_bytes(w)
    }

    /// `si_status` of a SIGCHLD.
    pub fn status(&self) -> i32 {
        self.word(24)
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigInfo")
            .field("signo", &self.signo())
            .field("code", &self.code())
            .field("pid", &self.pid())
            .field("uid", &self.uid())
            .finish_non_exhaustive()
    }
}

/// `signal` if it is one, else EINVAL.
pub(crate) fn valid(op: &'static str, signal: i32) -> Result<i32> {
    if (1..=MAX).contains(&signal) { Ok(signal) } else { Err(Error::new(op, libc::EINVAL)) }
}

/// kill(2) of one process.
///
/// # Errors
/// EINVAL for a number outside 1..=64, ESRCH, EPERM.
pub fn kill(pid: Pid, signal: i32) -> Result<()> {
    let signal = valid("kill", signal).map_err(|e| e.pid(pid))?;
    // SAFETY: no pointers; the pid is positive.
    check("kill", unsafe { libc::kill(pid.get(), signal) }).map_err(|e| e.pid(pid))?;
    Ok(())
}

/// kill(2) of a process group.
///
/// # Errors
/// EINVAL for a number outside 1..=64 or for group 1 (-1 is everybody), ESRCH, EPERM.
pub fn kill_group(pgid: Pid, signal: i32) -> Result<()> {
    let signal = valid("kill of group", signal).map_err(|e| e.pid(pgid))?;
    if pgid.get() == 1 {
        return Err(Error::new("kill of group", libc::EINVAL).pid(pgid));
    }
    // SAFETY: no pointers; the negative number is below -1.
    check("kill of group", unsafe { libc::kill(-pgid.get(), signal) }).map_err(|e| e.pid(pgid))?;
    Ok(())
}

/// kill(2) with signal 0: whether the process exists and may be signalled.
///
/// # Errors
/// ESRCH, EPERM.
pub fn probe(pid: Pid) -> Result<()> {
    // SAFETY: no pointers; signal 0 changes nothing.
    check("kill", unsafe { libc::kill(pid.get(), 0) }).map_err(|e| e.pid(pid))?;
    Ok(())
}

/// tgkill(2): signal to one thread.
///
/// # Errors
/// EINVAL for a number outside 1..=64, ESRCH, EPERM.
pub fn tgkill(tgid: Pid, tid: Pid, signal: i32) -> Result<()> {
    let signal = valid("tgkill", signal).map_err(|e| e.pid(tid))?;
    // SAFETY: no pointers.
    let ret = unsafe { libc::syscall(libc::SYS_tgkill, tgid.get(), tid.get(), signal) };
    check_long("tgkill", ret).map_err(|e| e.pid(tid))?;
    Ok(())
}

/// sigqueue(3) with the caller's own pid and uid.
///
/// # Errors
/// EINVAL for a number outside 1..=64, EAGAIN when the receiver's queue is full, ESRCH, EPERM.
pub fn sigqueue(pid: Pid, signal: i32, value: u64) -> Result<()> {
    queue_info(pid, signal, &SigInfo::from_here(signal, value))
}

/// rt_sigqueueinfo(2): a signal with the siginfo that is given. The kernel refuses (EPERM) codes of its own, and
/// SI_TKILL, unless the receiver is the caller.
///
/// # Errors
/// EINVAL for a number outside 1..=64, EAGAIN when the receiver's queue is full, ESRCH, EPERM.
pub fn queue_info(pid: Pid, signal: i32, info: &SigInfo) -> Result<()> {
    let signal = valid("rt_sigqueueinfo", signal).map_err(|e| e.pid(pid))?;
    // SAFETY: the kernel reads 128 bytes, which is what SigInfo has.
    let ret = unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, pid.get(), signal, info.0.as_ptr()) };
    check_long("rt_sigqueueinfo", ret).map_err(|e| e.pid(pid))?;
    Ok(())
}

/// rt_tgsigqueueinfo(2): the same for one thread.
///
/// # Errors
/// As [`queue_info`].
pub fn queue_info_thread(tgid: Pid, tid: Pid, signal: i32, info: &SigInfo) -> Result<()> {
    let signal = valid("rt_tgsigqueueinfo", signal).map_err(|e| e.pid(tid))?;
    // SAFETY: the kernel reads 128 bytes, which is what SigInfo has.
    let ret = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, tgid.get(), tid.get(), signal, info.0.as_ptr()) };
    check_long("rt_tgsigqueueinfo", ret).map_err(|e| e.pid(tid))?;
    Ok(())
}

/// All signals blocked in this thread for as long as it lives.
#[derive(Debug)]
pub struct AllBlocked {
    before: libc::sigset_t,
    /// The mask is the thread's: the guard must not leave it.
    _here: std::marker::PhantomData<*const ()>,
}

impl AllBlocked {
    /// Blocks all signals that can be blocked.
    pub fn new() -> AllBlocked {
        let mut all = libc::sigset_t::zeroed();
        let mut before = libc::sigset_t::zeroed();
        // SAFETY: both sets live through the calls, which cannot fail with these arguments.
        unsafe {
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        }
        AllBlocked { before, _here: std::marker::PhantomData }
    }
}

impl Default for AllBlocked {
    fn default() -> AllBlocked {
        AllBlocked::new()
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel; null means that the present mask is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Signals that are read from a descriptor instead of interrupting.
#[derive(Debug)]
pub struct SignalFd {
    fd: std::os::fd::OwnedFd,
}

impl SignalFd {
    /// Blocks these signals in the calling thread, gives them back their default action (the kernel does not even
    /// send a SIGCHLD that is ignored) and opens a non-blocking descriptor to read them from.
    ///
    /// # Errors
    /// EINVAL for a number outside 1..=64 and what signalfd(2) says.
    pub fn block(signals: &[i32]) -> Result<SignalFd> {
        use std::os::fd::FromRawFd;
        let mut set = libc::sigset_t::zeroed();
        for signal in signals {
            let signal = valid("signalfd", *signal)?;
            // SAFETY: the set lives through the call, the number is a signal; no handler is installed.
            unsafe {
                libc::sigaddset(&raw mut set, signal);
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        // SAFETY: the set lives through both calls; null means that the old mask is not wanted.
        let ret = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        let fd = check("signalfd", ret)?;
        // SAFETY: the call has just made the descriptor, nobody else owns it.
        let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
        Ok(SignalFd { fd })
    }

    /// The next signal: its number and the sending pid (for SIGCHLD the child's). `None` when there is none.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn read(&self) -> Result<Option<(i32, i32)>> {
        use std::os::fd::AsRawFd;
        let mut info = libc::signalfd_siginfo::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` lives through the call and has `size` bytes.
        let ret = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size) };
        if ret == size as isize {
            return Ok(Some((info.ssi_signo as i32, info.ssi_pid as i32)));
        }
        match Error::last("read of signalfd") {
            e if matches!(e.errno(), libc::EAGAIN | libc::EINTR) => Ok(None),
            e => Err(e),
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
