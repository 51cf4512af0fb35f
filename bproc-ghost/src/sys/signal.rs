//! Signals: mask, taking, actions, sending.

use super::{Errno, Result, call, getpid, padded};
use crate::abi::{Action, KernelAction, SigInfo, Timespec, errno, nr};
use core::arch::global_asm;
use core::ptr;

const SIG_SETMASK: usize = 2;

/// Sets the signal mask; bit 0 is signal 1. Gives the former one.
pub(crate) fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both masks are 8 bytes and live; the call cannot fail with these arguments.
    let _ = unsafe {
        call(nr::RT_SIGPROCMASK, [SIG_SETMASK, ptr::from_ref(&mask) as usize, &raw mut old as usize, 8, 0, 0])
    };
    old
}

/// A descriptor that is readable while signals are pending.
pub(crate) fn signalfd(mask: u64) -> Result<i32> {
    const SFD_NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    // SAFETY: the mask is 8 bytes and live.
    let fd =
        unsafe { call(nr::SIGNALFD4, [usize::MAX, ptr::from_ref(&mask) as usize, 8, SFD_NONBLOCK_CLOEXEC, 0, 0]) }?;
    Ok(fd as i32)
}

/// Takes the next pending signal of a set; EAGAIN when there is none.
pub(crate) fn take_signal(set: u64, info: &mut SigInfo) -> Result<i32> {
    let now = Timespec::from_millis(0);
    // SAFETY: the three areas are live and of the sizes that the kernel expects.
    let signal = unsafe {
        call(
            nr::RT_SIGTIMEDWAIT,
            [ptr::from_ref(&set) as usize, ptr::from_mut(info) as usize, ptr::from_ref(&now) as usize, 8, 0, 0],
        )
    }?;
    Ok(signal as i32)
}

global_asm!(
    ".globl ghost_idle_handler",
    "ghost_idle_handler: ret",
    ".globl ghost_handler_return",
    "ghost_handler_return: mov eax, 15",
    "syscall",
);
// SAFETY: both are labels in the assembly above; they are never called from here, their addresses go to the kernel.
unsafe extern "C" {
    fn ghost_idle_handler();
    fn ghost_handler_return();
}

const SA_NOCLDWAIT: usize = 2;

/// What happens on a signal, and whether its flags make children vanish (SIGCHLD only).
pub(crate) fn action(signal: i32) -> Result<(Action, bool)> {
    let mut old = KernelAction::default();
    // SAFETY: `old` has the kernel's layout and is live.
    unsafe { call(nr::RT_SIGACTION, [signal as usize, 0, &raw mut old as usize, 8, 0, 0]) }?;
    let action = match old.handler {
        0 => Action::Default,
        1 => Action::Ignore,
        _ => Action::Handler,
    };
    Ok((action, old.flags & SA_NOCLDWAIT != 0))
}

/// Sets what happens on a signal.
pub(crate) fn set_action(signal: i32, action: Action) -> Result<()> {
    const SA_RESTORER: usize = 0x0400_0000;
    let new = match action {
        Action::Default => KernelAction::default(),
        Action::Ignore => KernelAction { handler: 1, ..KernelAction::default() },
        Action::Handler => KernelAction {
            handler: ghost_idle_handler as *const () as usize,
            flags: SA_RESTORER,
            restorer: ghost_handler_return as *const () as usize,
            mask: 0,
        },
    };
    // SAFETY: `new` has the kernel's layout; the handler returns at once through its restorer.
    unsafe { call(nr::RT_SIGACTION, [signal as usize, ptr::from_ref(&new) as usize, 0, 8, 0, 0]) }.map(|_| ())
}

/// Sends a plain signal. Groups and everybody are refused: `pid` must be above 1.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<()> {
    if pid <= 1 {
        return Err(Errno(errno::EPERM));
    }
    plain!(nr::KILL, pid, signal).map(|_| ())
}

/// Sends a plain signal to a process group; `group` must be above 1.
pub(crate) fn kill_group(group: i32, signal: i32) -> Result<()> {
    if group <= 1 {
        return Err(Errno(errno::EPERM));
    }
    plain!(nr::KILL, -group, signal).map(|_| ())
}

/// Sends a plain signal to a thread of a process above 1.
pub(crate) fn tgkill(pid: i32, thread: i32, signal: i32) -> Result<()> {
    if pid <= 1 || thread <= 1 {
        return Err(Errno(errno::EPERM));
    }
    plain!(nr::TGKILL, pid, thread, signal).map(|_| ())
}

/// Sends itself, the only thread, a signal.
pub(crate) fn raise(signal: i32) {
    let me = getpid();
    let _ = plain!(nr::TGKILL, me, me, signal);
}

/// Sends a signal with this siginfo to a process above 1, or to one thread of it.
pub(crate) fn queue_signal(pid: i32, thread: Option<i32>, signal: i32, info: &SigInfo) -> Result<()> {
    if pid <= 1 || thread.is_some_and(|t| t <= 1) {
        return Err(Errno(errno::EPERM));
    }
    let info = ptr::from_ref(info) as usize;
    // SAFETY: the siginfo is 128 bytes and live; the kernel reads it only.
    unsafe {
        match thread {
            None => call(nr::RT_SIGQUEUEINFO, [pid as usize, signal as usize, info, 0, 0, 0]),
            Some(t) => call(nr::RT_TGSIGQUEUEINFO, [pid as usize, t as usize, signal as usize, info, 0, 0]),
        }
    }
    .map(|_| ())
}
