//! The own process looked at from inside, and left behind.
//!
//! A process cannot copy memory that changes while it is copied, and our own
//! allocations would change it. So it forks: the *twin* stands still and is
//! copied from. In the image the fork returns 0.

use std::arch::global_asm;

use super::{SysError, done};
use crate::image::PAGE;

/// Callee-saved registers at a call, in the order that the assembly stores them.
#[repr(C)]
#[derive(Default, Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    pub(crate) rsp: u64,
    pub(crate) rip: u64,
}

global_asm!(
    ".pushsection .text.vmadump_twin,\"ax\",@progbits",
    ".globl vmadump_twin",
    ".hidden vmadump_twin",
    ".type vmadump_twin,@function",
    "vmadump_twin:",
    "mov [rdi], rbx",
    "mov [rdi + 8], rbp",
    "mov [rdi + 16], r12",
    "mov [rdi + 24], r13",
    "mov [rdi + 32], r14",
    "mov [rdi + 40], r15",
    "lea rax, [rsp + 8]",
    "mov [rdi + 48], rax",
    "mov rax, [rsp]",
    "mov [rdi + 56], rax",
    // clone without a signal at the end: the caller's wait and SIGCHLD know nothing of it.
    "mov r9, rsi",
    "mov eax, 56",
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "ret",
    // The twin: dies with its parent, does nothing, writes nothing.
    "2:",
    "mov eax, 157",
    "mov edi, 1",
    "mov esi, 9",
    "syscall",
    "mov eax, 110",
    "syscall",
    "cmp rax, r9",
    "jne 4f",
    "3:",
    "mov eax, 34",
    "syscall",
    "jmp 3b",
    "4:",
    "mov eax, 231",
    "xor edi, edi",
    "syscall",
    "jmp 4b",
    ".popsection",
);

unsafe extern "C" {
    fn vmadump_twin(context: *mut Context, parent: u64) -> i64;
}

/// The still copy of the calling process. Ends when dropped.
pub(crate) struct Twin(pub(crate) i32);

impl Drop for Twin {
    fn drop(&mut self) {
        // Our own child, not reaped by anyone else: __WALL is needed to see it.
        let _: Result<(), SysError> = super::process::kill(self.0, libc::SIGKILL);
        let _: std::io::Result<i32> = super::process::reap(self.0);
        forget_child(self.0);
    }
}

/// Tracing the twin may have left a SIGCHLD that tells of it. It goes, unless a child of the caller's own is to be
/// waited for, whose signal it may have swallowed. All signals are blocked.
fn forget_child(pid: i32) {
    let chld = 1u64 << (libc::SIGCHLD - 1);
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one siginfo each; set and time outlive the calls.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::syscall(libc::SYS_rt_sigtimedwait, &raw const chld, &raw mut info, &raw const now, 8)
            != i64::from(libc::SIGCHLD)
        {
            return;
        }
        let mut child: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT;
        let other = libc::waitid(libc::P_ALL, 0, &raw mut child, flags) == 0 && child.si_pid() != 0;
        if info.si_pid() != pid || other {
            libc::syscall(libc::SYS_rt_sigqueueinfo, std::process::id(), libc::SIGCHLD, &raw const info);
        }
    }
}

/// Forks a twin. `None`: this is the process restored from an image that the twin was copied to.
/// All signals must be blocked.
#[inline(never)]
pub(crate) fn twin(context: &mut Context) -> Result<Option<Twin>, SysError> {
    // SAFETY: the assembly stores into the context and follows the C calling convention; in the restored process
    // it returns once more, with callee-saved registers and stack as they were, which is an ordinary return.
    let ret = unsafe { vmadump_twin(context, std::process::id().into()) };
    match ret {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(Twin(pid as i32))),
        e => Err(SysError { op: "fork", pid: 0, errno: -e as i32 }),
    }
}

/// Blocks all signals; the mask before.
pub(crate) fn block_signals() -> u64 {
    let (all, mut before) = (!0u64, 0u64);
    // SAFETY: both masks are 8 bytes, as told.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, 8) };
    before
}

/// Sets the mask.
pub(crate) fn set_mask(mask: u64) {
    // SAFETY: the mask is 8 bytes, as told.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0usize, 8) };
}

/// Extended state as ptrace would give it.
pub(crate) fn xstate(size: usize) -> Vec<u8> {
    #[repr(align(64))]
    #[derive(Clone, Copy)]
    struct Line([u8; 64]);
    let mut lines = vec![Line([0; 64]); size.max(576).div_ceil(64)];
    if is_x86_feature_detected!("xsave") {
        // SAFETY: the buffer is aligned and as large as CPUID says for all of XCR0.
        unsafe { save(lines.as_mut_ptr().cast()) };
    } else {
        // SAFETY: FXSAVE writes 512 bytes to an aligned buffer.
        unsafe { std::arch::x86_64::_fxsave64(lines.as_mut_ptr().cast()) };
        lines[8].0[0] = 3;
    }
    let mut bytes: Vec<u8> = lines.iter().flat_map(|l| l.0).collect();
    bytes.truncate(size.max(576));
    bytes[464..512].fill(0);
    bytes
}

#[target_feature(enable = "xsave")]
unsafe fn save(to: *mut u8) {
    // SAFETY: the caller's promise about the buffer.
    unsafe { std::arch::x86_64::_xsave64(to, !0) };
}

/// fs_base and gs_base.
pub(crate) fn bases() -> [u64; 2] {
    let mut both = [0u64; 2];
    for (slot, code) in both.iter_mut().zip([0x1003, 0x1004]) {
        // SAFETY: the kernel writes one word.
        unsafe { libc::syscall(libc::SYS_arch_prctl, code, slot as *mut u64) };
    }
    both
}

/// Disposition of a signal: handler, flags, restorer, mask.
pub(crate) fn action(signal: u32) -> [u64; 4] {
    let mut action = [0u64; 4];
    // SAFETY: the kernel writes 32 bytes for a mask of 8.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0usize, action.as_mut_ptr(), 8) };
    action
}

/// An interval timer: interval s, us, left s, us.
pub(crate) fn itimer(which: i32) -> [u64; 4] {
    let mut value = [0u64; 4];
    // SAFETY: the kernel writes one itimerval.
    unsafe { libc::syscall(libc::SYS_getitimer, which, value.as_mut_ptr()) };
    value
}

/// A POSIX timer's interval and time left, in nanoseconds.
pub(crate) fn timer(id: u32) -> [u64; 2] {
    let mut value = [0u64; 4];
    // SAFETY: the kernel writes one itimerspec.
    unsafe { libc::syscall(libc::SYS_timer_gettime, id, value.as_mut_ptr()) };
    [value[0] * 1_000_000_000 + value[1], value[2] * 1_000_000_000 + value[3]]
}

/// Alternate signal stack: sp, flags, size.
pub(crate) fn altstack() -> (u64, u32, u64) {
    let mut stack = [0u64; 3];
    // SAFETY: the kernel writes one stack_t.
    unsafe { libc::syscall(libc::SYS_sigaltstack, 0usize, stack.as_mut_ptr()) };
    (stack[0], stack[1] as u32, stack[2])
}

/// prctl that returns a value or stores one word.
pub(crate) fn prctl_word(option: i32) -> u64 {
    let mut word = 0u64;
    // SAFETY: these options write at most a word.
    unsafe { libc::syscall(libc::SYS_prctl, option, &raw mut word, 0, 0, 0) };
    word
}

/// prctl without a pointer.
pub(crate) fn prctl_value(option: i32) -> i64 {
    // SAFETY: these options take no pointer.
    unsafe { libc::syscall(libc::SYS_prctl, option, 0, 0, 0, 0) }
}

/// The break.
pub(crate) fn brk() -> u64 {
    // SAFETY: brk(0) only asks.
    unsafe { libc::syscall(libc::SYS_brk, 0) as u64 }
}

/// Memory of ours at a chosen place, unmapped when dropped.
pub(crate) struct Region {
    at: u64,
    len: u64,
}

impl Region {
    /// Maps it, private and lazily.
    pub(crate) fn map(at: u64, len: u64) -> Result<Self, SysError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE cannot touch memory that is in use.
        let got = unsafe { libc::mmap(at as *mut libc::c_void, len as usize, 3, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(SysError::last("map room for the image", 0));
        }
        let region = Region { at: got as u64, len };
        if region.at == at {
            Ok(region)
        } else {
            Err(SysError { op: "map room for the image", pid: 0, errno: libc::EEXIST })
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the region is ours alone, readable and writable, and lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, self.len as usize) }
    }

    /// First address.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Makes the first page code.
    pub(crate) fn make_code(&mut self) -> Result<(), SysError> {
        // SAFETY: the page is part of our own region; its bytes are complete.
        let ret =
            unsafe { libc::mprotect(self.at as *mut libc::c_void, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) };
        done(ret.into(), "make code", 0).map(drop)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.len as usize) };
    }
}

/// Runs the batch program that lies at `code` on the table at `entry` and never comes back.
/// The table must end in a sigreturn; a failing call in it ends the process by SIGKILL.
pub(crate) fn leave(code: u64, entry: u64) -> ! {
    // SAFETY: `code` is a copy of the batch program in executable memory, `entry` its first entry; both were made by
    // the only caller. Nothing of this program runs afterwards.
    unsafe {
        std::arch::asm!(
            "mov rbx, {entry}",
            "mov r14, 1",
            "jmp {code}",
            entry = in(reg) entry,
            code = in(reg) code,
            options(noreturn)
        )
    }
}

/// Extended state that a signal frame may hold.
pub(crate) fn enabled() -> u64 {
    super::cpu::xcr0()
}
