//! ptrace for the keeper, typed: what wait reports is a [`Stop`]; only the [`Stopped`] that comes with it can be
//! sent on its way, once.
//!
//! Only the thread that seized a process may use these on it.

use bproc_common::id::Pid;
use bproc_common::wait::Status;

use crate::error::{Error, Result, check_long};
use crate::signal::SigInfo;

/// From `linux/ptrace.h`.
const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_LISTEN: libc::c_uint = 0x4208;
const PTRACE_SEIZE: libc::c_uint = 0x4206;
const PTRACE_INTERRUPT: libc::c_uint = 0x4207;

/// A process that stands still for its tracer until it is sent on.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a stopped process stands still until it is sent on"]
pub struct Stopped(Pid);

/// Why a process stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A signal is about to be delivered: send it on with it.
    Signal(i32),
    /// Its group has stopped by this signal.
    Group(i32),
    /// Trap without a signal: first stop of a new child, after an interrupt, or the end of a group stop.
    Trap,
    /// It has made a child (fork, vfork, clone).
    Child,
    /// It has executed a program.
    Exec,
    /// It is about to end; its wait status will be this (as far as it can be known).
    Exit(i32),
    /// Anything else: send it on.
    Other,
}

/// What wait reports of a tracee.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It stands still.
    Stop(Stopped, Stop),
    /// It has ended and this tracer has reaped it; its parent may now.
    End(Pid, Status),
}

fn ptrace(op: &'static str, request: libc::c_uint, pid: Pid, data: usize) -> Result<()> {
    // SAFETY: none of the requests made here has the kernel write to memory of ours; `data` is a number.
    let ret = unsafe { libc::syscall(libc::SYS_ptrace, request as libc::c_long, pid.get(), 0usize, data) };
    check_long(op, ret).map_err(|e| e.pid(pid))?;
    Ok(())
}

/// PTRACE_SEIZE with stops at exit, exec and the birth of children, who are seized too. The process runs on; if the
/// tracer dies it goes free.
///
/// # Errors
/// ESRCH, and EPERM for zombies, kernel threads, what is traced already, or without CAP_SYS_PTRACE.
pub fn seize(pid: Pid) -> Result<()> {
    let options = libc::PTRACE_O_TRACEEXIT
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE;
    ptrace("PTRACE_SEIZE", PTRACE_SEIZE, pid, options as usize)
}

/// Has a seized process stop ([`Stop::Trap`] or [`Stop::Group`] follows, or another stop that was on its way).
///
/// # Errors
/// ESRCH.
pub fn interrupt(pid: Pid) -> Result<()> {
    ptrace("PTRACE_INTERRUPT", PTRACE_INTERRUPT, pid, 0)
}

impl Stopped {
    /// Of which process.
    pub fn pid(&self) -> Pid {
        self.0
    }

    /// Runs on; 0 for no signal.
    ///
    /// # Errors
    /// ESRCH when a SIGKILL was faster.
    pub fn cont(self, signal: i32) -> Result<()> {
        ptrace("PTRACE_CONT", libc::PTRACE_CONT, self.0, signal as usize)
    }

    /// Stays in its group stop until SIGCONT, as if it was not traced.
    ///
    /// # Errors
    /// ESRCH when a SIGKILL was faster.
    pub fn listen(self) -> Result<()> {
        ptrace("PTRACE_LISTEN", PTRACE_LISTEN, self.0, 0)
    }

    /// Runs on, traced no longer; 0 for no signal.
    ///
    /// # Errors
    /// ESRCH when a SIGKILL was faster.
    pub fn detach(self, signal: i32) -> Result<()> {
        ptrace("PTRACE_DETACH", libc::PTRACE_DETACH, self.0, signal as usize)
    }

    /// What the kernel adds to an event: the child's pid, or the wait status.
    ///
    /// # Errors
    /// ESRCH when a SIGKILL was faster.
    pub fn message(&self) -> Result<u64> {
        let mut message: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word, which lives through the call.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::PTRACE_GETEVENTMSG as libc::c_long,
                self.0.get(),
                0usize,
                &raw mut message,
            )
        };
        check_long("PTRACE_GETEVENTMSG", ret).map_err(|e| e.pid(self.0))?;
        Ok(message)
    }
}

impl Stopped {
    /// Where the signal that is about to be delivered comes from.
    ///
    /// # Errors
    /// ESRCH when a SIGKILL was faster, EINVAL at another stop.
    pub fn siginfo(&self) -> Result<SigInfo> {
        let mut info = SigInfo([0; 128]);
        // SAFETY: the kernel writes a siginfo_t, 128 bytes, into `info`, which lives through the call.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::PTRACE_GETSIGINFO as libc::c_long,
                self.0.get(),
                0usize,
                info.0.as_mut_ptr(),
            )
        };
        check_long("PTRACE_GETSIGINFO", ret).map_err(|e| e.pid(self.0))?;
        Ok(info)
    }
}

/// The next report of this tracee; `None` when there is none now.
///
/// # Errors
/// ECHILD when it is no tracee (any more).
pub fn try_wait(pid: Pid) -> Result<Option<Event>> {
    wait(pid.get()).map_err(|e| e.pid(pid))
}

/// The next report of any tracee; `None` when there is none now. Its cost grows with the number of tracees.
///
/// # Errors
/// ECHILD when there are none at all.
pub fn try_wait_any() -> Result<Option<Event>> {
    wait(-1)
}

fn wait(which: i32) -> Result<Option<Event>> {
    let mut raw = 0;
    // SAFETY: `raw` lives through the call.
    let ret = unsafe { libc::waitpid(which, &raw mut raw, libc::__WALL | libc::WNOHANG) };
    if ret == -1 {
        return Err(Error::last("waitpid"));
    }
    let Some(pid) = Pid::new(ret) else {
        return Ok(None);
    };
    if !libc::WIFSTOPPED(raw) {
        return Ok(Some(Event::End(pid, Status::from_raw(raw))));
    }
    let stopped = Stopped(pid);
    let signal = libc::WSTOPSIG(raw);
    let stop = match raw >> 16 {
        0 => Stop::Signal(signal),
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        PTRACE_EVENT_STOP => Stop::Group(signal),
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => Stop::Child,
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        // Without a message it has been killed on its way: it will be so reported.
        libc::PTRACE_EVENT_EXIT => Stop::Exit(stopped.message().map_or(libc::SIGKILL, |m| m as i32)),
        _ => Stop::Other,
    };
    Ok(Some(Event::Stop(stopped, stop)))
}
