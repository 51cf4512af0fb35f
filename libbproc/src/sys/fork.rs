//! fork(2) of libc, for a child whose end sends its parent no signal.
//!
//! Only libc's own fork takes its locks and runs the handlers of pthread_atfork(3), and it always asks for SIGCHLD. So
//! the kernel gives the thread's system calls back for the time of it (Syscall User Dispatch, Linux 5.11), and a handler
//! makes them: the one that forks without the signal, the others as they are. Other threads notice nothing: a SIGSYS that
//! is not of this goes to the action that the process has for it, which is restored before the call returns.
//!
//! Where the kernel refuses that, the child is an ordinary one.
//!
//! The handler makes system calls by [`call`] only: those of all other code would come back to it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// prctl(2): which system calls are given back. Linux 5.11.
const SET_SYSCALL_USER_DISPATCH: c_int = 59;
const DISPATCH_OFF: c_int = 0;
const DISPATCH_ON: c_int = 1;
/// `si_code` of a system call that was given back.
const SYS_USER_DISPATCH: c_int = 2;
/// The handler brings its own return.
const SA_RESTORER: u64 = 0x0400_0000;
/// Flags of the process's own action that hold for the handler too: where it runs, and what it interrupts.
const SHARED_FLAGS: u64 = (libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART) as u64;
/// Bit of SIGSYS in the kernel's set.
const SIGSYS_BIT: u64 = 1 << (libc::SIGSYS - 1);
/// Bytes of the kernel's set.
const SET_SIZE: usize = 8;
/// Bits of clone(2)'s flags that are the signal of the child's end.
const CSIGNAL: usize = 0xff;
/// Bytes of the instruction `syscall`.
const SYSCALL_SIZE: i64 = 2;

// Between first and last the kernel makes system calls as always: it looks at the address behind the instruction.
core::arch::global_asm!(
    ".pushsection .text.bproc_dispatch,\"ax\",@progbits",
    ".hidden bproc_dispatch_call",
    ".globl bproc_dispatch_call",
    ".type bproc_dispatch_call,@function",
    "bproc_dispatch_call:",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "syscall",
    "ret",
    ".size bproc_dispatch_call, . - bproc_dispatch_call",
    ".hidden bproc_dispatch_return",
    ".globl bproc_dispatch_return",
    ".type bproc_dispatch_return,@function",
    "bproc_dispatch_return:",
    "mov eax, {rt_sigreturn}",
    "syscall",
    "ud2",
    ".size bproc_dispatch_return, . - bproc_dispatch_return",
    ".hidden bproc_dispatch_last",
    ".globl bproc_dispatch_last",
    "bproc_dispatch_last:",
    ".popsection",
    rt_sigreturn = const libc::SYS_rt_sigreturn,
);

unsafe extern "C" {
    fn bproc_dispatch_call(number: usize, arguments: *const [usize; 6]) -> isize;
    fn bproc_dispatch_return();
    fn bproc_dispatch_last();
}

/// The kernel's record of what a signal does: handler, flags, restorer, mask.
type Action = [u64; 4];

/// The thread that forks, 0: none. There is one action for SIGSYS.
static FORKING: AtomicI32 = AtomicI32::new(0);
/// It got a SIGSYS that was sent to the process.
static TO_PROCESS: AtomicBool = AtomicBool::new(false);
/// It got one that was sent to the thread.
static TO_THREAD: AtomicBool = AtomicBool::new(false);
/// The process's own action for SIGSYS.
static OWN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn own() -> Action {
    OWN.each_ref().map(|word| word.load(Ordering::Acquire))
}

fn handler() -> u64 {
    dispatched as *const () as u64
}

/// A system call that the kernel makes in any case; minus errno on failure.
///
/// # Safety
/// As the system call.
unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> isize {
    // SAFETY: as the caller promises; the arguments live through it.
    unsafe { bproc_dispatch_call(number as usize, &raw const arguments) }
}

/// The action for SIGSYS; changes it if there is a new one.
fn action(new: Option<Action>) -> Action {
    let mut old = Action::default();
    let new = new.as_ref().map_or(0, |new| std::ptr::from_ref(new) as usize);
    // SAFETY: null or an action that lives through the call, and room for one.
    unsafe { call(libc::SYS_rt_sigaction, [libc::SIGSYS as usize, new, &raw mut old as usize, SET_SIZE, 0, 0]) };
    old
}

/// Gives the thread's system calls back from now on, but for the two here; or no more.
fn dispatch(mode: c_int) -> bool {
    let first = bproc_dispatch_call as *const () as usize;
    let (first, size) = match mode {
        DISPATCH_ON => (first, bproc_dispatch_last as *const () as usize - first),
        _ => (0, 0),
    };
    // SAFETY: the handler is there when they are given back.
    unsafe { call(libc::SYS_prctl, [SET_SYSCALL_USER_DISPATCH as usize, mode as usize, first, size, 0, 0]) == 0 }
}

fn thread() -> c_int {
    // SAFETY: no arguments.
    unsafe { call(libc::SYS_gettid, [0; 6]) as c_int }
}

/// Adds SIGSYS to what the thread blocks, or takes it from that.
fn mask(how: c_int) {
    let set = SIGSYS_BIT;
    // SAFETY: the set lives through the call; null: the old one is not wanted.
    unsafe { call(libc::SYS_rt_sigprocmask, [how as usize, &raw const set as usize, 0, SET_SIZE, 0, 0]) };
}

/// The time in which the thread's system calls come to the handler. All signals are blocked, before and after.
struct Window;

impl Window {
    /// `None`: the kernel refuses it.
    fn open() -> io::Result<Option<Window>> {
        let thread = thread();
        while let Err(other) = FORKING.compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed) {
            if other == thread {
                // In a handler of pthread_atfork: libc's fork is not to be called by itself.
                return Err(io::Error::from_raw_os_error(libc::EDEADLK));
            }
            // The process was forked by one thread while another was in here.
            // SAFETY: no pointers; nothing is sent.
            if unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), other, 0) } < 0 {
                let _ = FORKING.compare_exchange(other, 0, Ordering::Relaxed, Ordering::Relaxed);
                continue;
            }
            std::thread::yield_now();
        }
        let before = action(None);
        // After such a fork the handler is there, and it is known what it stands for.
        if before[0] != handler() {
            OWN.iter().zip(before).for_each(|(word, value)| word.store(value, Ordering::Release));
        }
        let [_, flags, _, blocked] = own();
        let flags = flags & SHARED_FLAGS | libc::SA_SIGINFO as u64 | SA_RESTORER;
        action(Some([handler(), flags, bproc_dispatch_return as *const () as u64, blocked]));
        // What the kernel gives back does not wait.
        mask(libc::SIG_UNBLOCK);
        let window = Window;
        Ok(dispatch(DISPATCH_ON).then_some(window))
    }
}

impl Drop for Window {
    /// In the child, too.
    fn drop(&mut self) {
        dispatch(DISPATCH_OFF);
        mask(libc::SIG_BLOCK);
        // Another thread may have changed it.
        if action(None)[0] == handler() {
            action(Some(own()));
        }
        let is_child = FORKING.load(Ordering::Relaxed) != thread();
        let sent = [&TO_PROCESS, &TO_THREAD].map(|came| came.swap(false, Ordering::Relaxed) && !is_child);
        FORKING.store(0, Ordering::Release);
        // They wait again.
        // SAFETY: no pointers; to this process and this thread.
        unsafe {
            if sent[0] {
                libc::kill(libc::getpid(), libc::SIGSYS);
            }
            if sent[1] {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread(), libc::SIGSYS);
            }
        }
    }
}

/// Makes a system call of the thread that forks.
unsafe extern "C" fn dispatched(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives what SA_SIGINFO promises, and nobody else has it.
    let (code, to) = unsafe { ((*info).si_code, &mut *context.cast::<ucontext_t>()) };
    if FORKING.load(Ordering::Relaxed) != thread() {
        return forward(signal, code, info, context);
    }
    if code != SYS_USER_DISPATCH {
        let came = if code == libc::SI_TKILL { &TO_THREAD } else { &TO_PROCESS };
        return came.store(true, Ordering::Relaxed);
    }
    let registers = &mut to.uc_mcontext.gregs;
    let number = registers[libc::REG_RAX as usize];
    let from = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9];
    let mut arguments = from.map(|register| registers[register as usize] as usize);
    let result = match number {
        libc::SYS_rt_sigprocmask => {
            // The mask that holds when the handler has returned.
            let mask = (&raw mut to.uc_sigmask).cast::<u64>();
            // SAFETY: the kernel's set lies in libc's larger one; the rest is what the code that calls promises.
            unsafe { change(&mut *mask, arguments) }
        }
        libc::SYS_clone if is_fork(arguments) => {
            arguments[0] &= !CSIGNAL;
            // SAFETY: as libc's own call. In the child it returns on a copy of this stack.
            let child = unsafe { call(number, arguments) };
            if child != 0 {
                dispatch(DISPATCH_OFF);
            }
            child
        }
        // Those that return elsewhere, in a handler of pthread_atfork, cannot be made here. The child is an ordinary one.
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork | libc::SYS_rt_sigreturn => {
            dispatch(DISPATCH_OFF);
            registers[libc::REG_RIP as usize] -= SYSCALL_SIZE;
            return;
        }
        // SAFETY: as the code that calls promises.
        _ => unsafe { call(number, arguments) },
    };
    to.uc_mcontext.gregs[libc::REG_RAX as usize] = result as i64;
}

/// A copy of the process, on the same stack.
fn is_fork(arguments: [usize; 6]) -> bool {
    arguments[0] & (libc::CLONE_VM | libc::CLONE_VFORK) as usize == 0 && arguments[1] == 0
}

/// rt_sigprocmask(2), but SIGSYS is not blocked, and seems to be.
///
/// # Safety
/// The pointers are null or to sets.
unsafe fn change(mask: &mut u64, [how, new, old, _, _, _]: [usize; 6]) -> isize {
    let before = *mask;
    if new != 0 {
        // SAFETY: as the caller promises.
        let set = unsafe { (new as *const u64).read_unaligned() };
        let after = match how as c_int {
            libc::SIG_BLOCK => before | set,
            libc::SIG_UNBLOCK => before & !set,
            libc::SIG_SETMASK => set,
            _ => return -(libc::EINVAL as isize),
        };
        *mask = after & !SIGSYS_BIT;
    }
    if old != 0 {
        // SAFETY: as the caller promises.
        unsafe { (old as *mut u64).write_unaligned(before | SIGSYS_BIT) };
    }
    0
}

/// What the process does with a SIGSYS of another thread.
fn forward(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    type Handler = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
    match own()[0] as usize {
        // The kernel does not let what it says itself be ignored.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_IGN | libc::SIG_DFL => {
            action(Some(Action::default()));
            // SAFETY: no pointers; to this thread. It comes when the handler has returned.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread(), signal) };
        }
        // SAFETY: what the process has set as handler, which gets what the kernel gives one.
        own => unsafe { std::mem::transmute::<usize, Handler>(own)(signal, info, context) },
    }
}

/// A child as fork(2) makes it, 0 in the child, but its parent gets no signal when it ends, unless it has executed
/// a program meanwhile: exec makes it an ordinary child. The caller has blocked all signals.
///
/// # Errors
/// What fork(2) says; EDEADLK in a handler of pthread_atfork(3) that runs because of such a fork.
pub(crate) fn fork_without_signal() -> io::Result<i32> {
    let window = Window::open()?;
    let forked = super::fork();
    drop(window);
    forked
}
