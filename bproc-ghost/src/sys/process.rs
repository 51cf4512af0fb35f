//! Processes: making, waiting, groups, limits, the program itself.

use super::{Errno, Result, call, padded};
use crate::abi::{CloneArgs, Limit, Prctl, SigInfo, errno, nr};
use core::ffi::CStr;
use core::ptr;

pub(crate) fn getpid() -> i32 {
    plain!(nr::GETPID).unwrap_or(0) as i32
}

pub(crate) fn getppid() -> i32 {
    plain!(nr::GETPPID).unwrap_or(0) as i32
}

/// Makes a process with its own copy of memory. 0 is returned in the child.
pub(crate) fn clone_process(flags: u64, exit_signal: i32, pid: Option<i32>) -> Result<i32> {
    const SHARING: u64 = 0x100 | 0x800 | 0x10000;
    let tid = pid.unwrap_or(0);
    let args = CloneArgs {
        flags: flags & !SHARING,
        exit_signal: exit_signal as u64,
        set_tid: if pid.is_some() { ptr::from_ref(&tid) as u64 } else { 0 },
        set_tid_size: u64::from(pid.is_some()),
        ..CloneArgs::default()
    };
    // SAFETY: memory is not shared and the stack is copied, so both processes go on as after fork.
    unsafe { call(nr::CLONE3, [ptr::from_ref(&args) as usize, core::mem::size_of::<CloneArgs>(), 0, 0, 0, 0]) }
        .map(|pid| pid as i32)
}

/// Whose change of state [`waitid`] asks for.
#[derive(Clone, Copy)]
pub(crate) enum Whose {
    Anybody,
    Pid(i32),
}

/// Asks for a child's change of state; a pid of 0 in `info` means none.
pub(crate) fn waitid(whose: Whose, options: i32, info: &mut SigInfo, usage: Option<&mut [u8; 144]>) -> Result<()> {
    let (kind, pid) = match whose {
        Whose::Anybody => (0, 0),
        Whose::Pid(pid) => (1, pid),
    };
    let usage = usage.map_or(0, |u| ptr::from_mut(u) as usize);
    // SAFETY: siginfo (128 bytes) and rusage (144 bytes) are live and writable.
    unsafe { call(nr::WAITID, [kind, pid as usize, ptr::from_mut(info) as usize, options as usize, usage, 0]) }
        .map(|_| ())
}

/// Reaps child `pid` if it has ended: its pid, else 0.
pub(crate) fn reap(pid: i32) -> Result<i32> {
    let options = crate::abi::wait::NOHANG | crate::abi::wait::ALL_KINDS;
    plain!(nr::WAIT4, pid, 0, options, 0).map(|pid| pid as i32)
}

/// Status of a traced process that stops because it executes a program.
pub(crate) const EXEC_STOP: i32 = 5 | 4 << 8;

/// The parent traces this process from now on.
pub(crate) fn trace_me() -> Result<()> {
    const TRACEME: usize = 0;
    plain!(nr::PTRACE, TRACEME).map(|_| ())
}

/// A stopped tracee stops when it executes a program, and dies with this process.
pub(crate) fn bind_tracee(pid: i32) -> Result<()> {
    const SETOPTIONS: usize = 0x4200;
    const TRACE_EXEC: usize = 1 << 4;
    const EXIT_KILL: usize = 1 << 20;
    plain!(nr::PTRACE, SETOPTIONS, pid, 0, TRACE_EXEC | EXIT_KILL).map(|_| ())
}

/// A stopped tracee goes on, without the signal that has stopped it.
pub(crate) fn let_go_on(pid: i32) -> Result<()> {
    const CONT: usize = 7;
    plain!(nr::PTRACE, CONT, pid, 0, 0).map(|_| ())
}

pub(crate) fn setpgid(pid: i32, group: i32) -> Result<()> {
    plain!(nr::SETPGID, pid, group).map(|_| ())
}

pub(crate) fn getpgid(pid: i32) -> Result<i32> {
    plain!(nr::GETPGID, pid).map(|n| n as i32)
}

pub(crate) fn setsid() -> Result<i32> {
    plain!(nr::SETSID).map(|n| n as i32)
}

pub(crate) fn getsid(pid: i32) -> Result<i32> {
    plain!(nr::GETSID, pid).map(|n| n as i32)
}

/// Nice value of this process.
pub(crate) fn set_nice(nice: i32) -> Result<()> {
    plain!(nr::SETPRIORITY, 0, 0, nice).map(|_| ())
}

/// Policy, SCHED_RESET_ON_FORK included, and real-time priority of this process.
pub(crate) fn set_scheduler(policy: u32, priority: u32) -> Result<()> {
    // SAFETY: struct sched_param is one number, which is live.
    unsafe { call(nr::SCHED_SETSCHEDULER, [0, policy as usize, ptr::from_ref(&priority) as usize, 0, 0, 0]) }
        .map(|_| ())
}

/// Processors that this process may run on, bit by number. Those that are not here do not count.
pub(crate) fn set_processors(set: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as are announced, at any alignment.
    unsafe { call(nr::SCHED_SETAFFINITY, [0, set.len(), set.as_ptr() as usize, 0, 0, 0]) }.map(|_| ())
}

/// Class and data of this process's priority of input and output.
pub(crate) fn set_io_priority(value: u32) -> Result<()> {
    const PROCESS: usize = 1;
    plain!(nr::IOPRIO_SET, PROCESS, 0, value).map(|_| ())
}

/// Execution domain; u32::MAX changes nothing.
pub(crate) fn set_personality(value: u32) {
    let _ = plain!(nr::PERSONALITY, value);
}

pub(crate) fn set_umask(mask: u32) {
    let _ = plain!(nr::UMASK, mask);
}

pub(crate) fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the path is NUL-terminated and live.
    unsafe { call(nr::CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(|_| ())
}

/// Enters a mount namespace; root and working directory are its root then.
pub(crate) fn enter_mounts(namespace: i32) -> Result<()> {
    const CLONE_NEWNS: usize = 0x20000;
    plain!(nr::SETNS, namespace, CLONE_NEWNS).map(|_| ())
}

/// Reads a limit of this process.
pub(crate) fn limit(which: u32) -> Result<Limit> {
    let mut old = Limit::default();
    // SAFETY: the record is live and has the kernel's layout.
    unsafe { call(nr::PRLIMIT64, [0, which as usize, 0, &raw mut old as usize, 0, 0]) }.map(|_| old)
}

/// Sets a limit of this process.
pub(crate) fn set_limit(which: u32, limit: Limit) -> Result<()> {
    // SAFETY: the record is live and has the kernel's layout.
    unsafe { call(nr::PRLIMIT64, [0, which as usize, ptr::from_ref(&limit) as usize, 0, 0, 0]) }.map(|_| ())
}

/// prctl with numbers as arguments.
pub(crate) fn prctl(option: Prctl, a: usize, b: usize) -> Result<usize> {
    plain!(nr::PRCTL, option as usize, a, b)
}

/// Sets the name that ps shows; 15 bytes count.
pub(crate) fn set_name(name: &[u8; 16]) -> Result<()> {
    const PR_SET_NAME: usize = 15;
    // SAFETY: 16 bytes, of which the kernel reads no more.
    unsafe { call(nr::PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// Replaces the program. Returns only on failure.
///
/// # Safety
/// The three must be what execve takes: text, and two arrays of pointers to text that end with null.
pub(crate) unsafe fn execve(path: *const u8, argv: *const u64, envp: *const u64) -> Errno {
    // SAFETY: the caller vouches for the arguments.
    match unsafe { call(nr::EXECVE, [path as usize, argv as usize, envp as usize, 0, 0, 0]) } {
        Err(error) => error,
        Ok(_) => Errno(errno::ENOSYS),
    }
}
