//! Every system call of the ghost, and every `unsafe` that goes with them.
//!
//! Thin: a function is one call with its arguments made safe. Results are the value or
//! the kernel's error number.

use crate::abi::{
    Action, Caps, CloneArgs, KernelAction, Limit, MmMap, O_RDONLY, PollFd, Prctl, SigInfo, Timespec, errno, nr,
};
use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::ptr;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Result<T> = core::result::Result<T, Errno>;

/// Makes one system call.
///
/// # Safety
/// The arguments must be what this call expects; memory they point to must be valid for it.
unsafe fn call(number: usize, a: [usize; 6]) -> Result<usize> {
    let value: isize;
    // SAFETY: the caller vouches for the arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => value,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&value) { Err(Errno(-value as i32)) } else { Ok(value as usize) }
}

/// A system call whose arguments are numbers.
macro_rules! plain {
    ($number:expr $(, $arg:expr)*) => {
        // SAFETY: used for calls that take numbers only and touch no memory of ours.
        unsafe { call($number, padded(&[$($arg as usize),*])) }
    };
}

fn padded(numbers: &[usize]) -> [usize; 6] {
    let mut all = [0; 6];
    for (slot, number) in all.iter_mut().zip(numbers) {
        *slot = *number;
    }
    all
}

/// Ends the program by an illegal instruction.
pub(crate) fn trap() -> ! {
    // SAFETY: ends the program.
    unsafe { asm!("ud2", options(noreturn, nostack)) }
}

/// Ends the program.
pub(crate) fn exit(code: i32) -> ! {
    let _ = plain!(nr::EXIT_GROUP, code);
    trap()
}

// Signals.

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
    let fd = unsafe {
        call(nr::SIGNALFD4, [usize::MAX, ptr::from_ref(&mask) as usize, 8, SFD_NONBLOCK_CLOEXEC, 0, 0])
    }?;
    Ok(fd as i32)
}

/// Takes the next pending signal; EAGAIN when there is none.
pub(crate) fn take_signal(info: &mut SigInfo) -> Result<i32> {
    let all = u64::MAX;
    let now = Timespec::from_millis(0);
    // SAFETY: the three areas are live and of the sizes that the kernel expects.
    let signal = unsafe {
        call(
            nr::RT_SIGTIMEDWAIT,
            [ptr::from_ref(&all) as usize, ptr::from_mut(info) as usize, ptr::from_ref(&now) as usize, 8, 0, 0],
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

// Descriptors.

pub(crate) fn close(fd: i32) {
    let _ = plain!(nr::CLOSE, fd);
}

/// Closes every descriptor.
pub(crate) fn close_all() {
    let _ = plain!(nr::CLOSE_RANGE, 0, u32::MAX, 0);
}

/// A copy at the first free number from `from` on, closed by exec.
pub(crate) fn dup_from(fd: i32, from: i32) -> Result<i32> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    plain!(nr::FCNTL, fd, F_DUPFD_CLOEXEC, from).map(|n| n as i32)
}

/// A copy at exactly this number, kept by exec. The numbers must differ.
pub(crate) fn dup_to(fd: i32, number: i32) -> Result<()> {
    plain!(nr::DUP3, fd, number, 0).map(|_| ())
}

pub(crate) fn set_blocking(fd: i32) -> Result<()> {
    const F_SETFL: usize = 4;
    plain!(nr::FCNTL, fd, F_SETFL, 0).map(|_| ())
}

pub(crate) fn open(path: &CStr, flags: usize) -> Result<i32> {
    const AT_FDCWD: isize = -100;
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: the path is NUL-terminated and live.
    unsafe { call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0]) }
        .map(|fd| fd as i32)
}

pub(crate) fn read(fd: i32, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the slice is writable for its length.
    unsafe { call(nr::READ, [fd as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) }
}

pub(crate) fn read_at(fd: i32, into: &mut [u8], at: usize) -> Result<usize> {
    // SAFETY: the slice is writable for its length.
    unsafe { call(nr::PREAD64, [fd as usize, into.as_mut_ptr() as usize, into.len(), at, 0, 0]) }
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the slice is readable for its length.
    unsafe { call(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// Size of a file, by its end.
pub(crate) fn file_size(fd: i32) -> Result<u64> {
    const SEEK_END: usize = 2;
    plain!(nr::LSEEK, fd, 0, SEEK_END).map(|n| n as u64)
}

/// Reads the whole of a small file, or as much as fits.
pub(crate) fn read_file<'a>(path: &CStr, into: &'a mut [u8]) -> Result<&'a [u8]> {
    let fd = open(path, O_RDONLY)?;
    let mut n = 0;
    let end = loop {
        match read(fd, &mut into[n..]) {
            Ok(0) => break Ok(()),
            Ok(got) => n += got,
            Err(error) => break Err(error),
        }
    };
    close(fd);
    end.map(|()| &into[..n])
}

/// Waits; `left` becomes what is left of it.
pub(crate) fn poll(fds: &mut [PollFd], left: Option<&mut Timespec>) -> Result<usize> {
    let left = left.map_or(0, |t| ptr::from_mut(t) as usize);
    // SAFETY: entries and time are live; the kernel writes both within their bounds.
    unsafe { call(nr::PPOLL, [fds.as_mut_ptr() as usize, fds.len(), left, 0, 0, 0]) }
}

/// Makes the terminal at this descriptor the controlling one.
pub(crate) fn take_terminal(fd: i32) -> Result<()> {
    const TIOCSCTTY: usize = 0x540e;
    plain!(nr::IOCTL, fd, TIOCSCTTY, 0).map(|_| ())
}

// Memory.

const PROT_READ_WRITE: usize = 3;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;

/// Fresh zeroed memory that stays until [`unmap`].
pub(crate) fn map_zeroed(len: usize) -> Result<&'static mut [u8]> {
    map(len, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX)
}

/// A private writable view of a file's first `len` bytes.
pub(crate) fn map_file(fd: i32, len: usize) -> Result<&'static mut [u8]> {
    map(len, MAP_PRIVATE, fd as usize)
}

fn map(len: usize, flags: usize, fd: usize) -> Result<&'static mut [u8]> {
    // SAFETY: a new area at an address of the kernel's choice overlaps nothing.
    let at = unsafe { call(nr::MMAP, [0, len, PROT_READ_WRITE, flags, fd, 0]) }?;
    // SAFETY: the kernel has mapped `len` bytes here for us alone, readable and writable.
    Ok(unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) })
}

/// Gives memory of [`map_zeroed`] or [`map_file`] back.
pub(crate) fn unmap(area: &'static mut [u8]) {
    // SAFETY: the area is ours and its only reference ends here.
    let _ = unsafe { call(nr::MUNMAP, [area.as_mut_ptr() as usize, area.len(), 0, 0, 0, 0]) };
}

/// End of the heap area, of which the ghost uses nothing.
pub(crate) fn program_break() -> u64 {
    plain!(nr::BRK, 0).unwrap_or(0) as u64
}

const PR_SET_MM: usize = 35;
const PR_SET_MM_MAP: usize = 14;

/// Tells the kernel where arguments and the like are.
pub(crate) fn set_mm_map(map: &MmMap) -> Result<()> {
    // SAFETY: the record has the kernel's layout; these addresses are shown by /proc and never used by the program.
    unsafe {
        call(
            nr::PRCTL,
            [PR_SET_MM, PR_SET_MM_MAP, ptr::from_ref(map) as usize, core::mem::size_of::<MmMap>(), 0, 0],
        )
    }
    .map(|_| ())
}

// Processes.

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

pub(crate) fn set_umask(mask: u32) {
    let _ = plain!(nr::UMASK, mask);
}

pub(crate) fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the path is NUL-terminated and live.
    unsafe { call(nr::CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(|_| ())
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

// Credentials.

/// True when the supplementary groups are exactly these, in any order.
pub(crate) fn has_groups(groups: impl Iterator<Item = u32>) -> bool {
    let mut own = [0u32; 256];
    // SAFETY: the array holds as many entries as are announced.
    let n = unsafe { call(nr::GETGROUPS, [own.len(), own.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    let Some(own) = n.ok().and_then(|n| own.get(..n)) else { return false };
    let mut count = 0;
    for group in groups {
        count += 1;
        if !own.contains(&group) {
            return false;
        }
    }
    count == own.len()
}

/// Sets the supplementary groups, which are `count` numbers of 4 bytes in `groups`.
pub(crate) fn setgroups(groups: &[u8]) -> Result<()> {
    // SAFETY: the slice holds that many numbers; the kernel takes any alignment.
    unsafe { call(nr::SETGROUPS, [groups.len() / 4, groups.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// Real, effective and saved gid; u32::MAX leaves one as it is.
pub(crate) fn setresgid(real: u32, effective: u32, saved: u32) -> Result<()> {
    plain!(nr::SETRESGID, real, effective, saved).map(|_| ())
}

/// Real, effective and saved uid; u32::MAX leaves one as it is.
pub(crate) fn setresuid(real: u32, effective: u32, saved: u32) -> Result<()> {
    plain!(nr::SETRESUID, real, effective, saved).map(|_| ())
}

/// Version 3 of the capability interface, and this process.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

pub(crate) fn caps() -> Result<Caps> {
    let mut data = [0u32; 6];
    // SAFETY: header and two records of three words, as version 3 wants.
    unsafe {
        call(nr::CAPGET, [CAP_HEADER.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    let pair = |low: usize| u64::from(data[low]) | u64::from(data[low + 3]) << 32;
    Ok(Caps { effective: pair(0), permitted: pair(1), inheritable: pair(2) })
}

pub(crate) fn set_caps(caps: Caps) -> Result<()> {
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        caps.effective as u32,
        caps.permitted as u32,
        caps.inheritable as u32,
        high(caps.effective),
        high(caps.permitted),
        high(caps.inheritable),
    ];
    // SAFETY: header and two records of three words, as version 3 wants.
    unsafe { call(nr::CAPSET, [CAP_HEADER.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// mount(2) without data.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: usize) -> Result<()> {
    // SAFETY: three NUL-terminated texts, no data.
    unsafe {
        call(
            nr::MOUNT,
            [source.as_ptr() as usize, target.as_ptr() as usize, kind.as_ptr() as usize, flags, 0, 0],
        )
    }
    .map(|_| ())
}

// The socket.

/// Longest path that a Unix socket's address holds.
pub(crate) const SOCKET_PATH: usize = 107;

/// A SEQPACKET connection to the path, blocking. EAGAIN when the listener's queue is full.
pub(crate) fn connect(path: &[u8]) -> Result<i32> {
    const AF_UNIX: usize = 1;
    const SEQPACKET_CLOEXEC_NONBLOCK: usize = 5 | 0o2_000_000 | 0o4_000;
    let mut address = [0u8; 110];
    let text = path.get(..path.len().min(SOCKET_PATH)).unwrap_or(&[]);
    address[..2].copy_from_slice(&(AF_UNIX as u16).to_ne_bytes());
    address[2..2 + text.len()].copy_from_slice(text);
    let fd = plain!(nr::SOCKET, AF_UNIX, SEQPACKET_CLOEXEC_NONBLOCK, 0)? as i32;
    // SAFETY: the address is live and as long as told.
    let done = unsafe { call(nr::CONNECT, [fd as usize, address.as_ptr() as usize, 3 + text.len(), 0, 0, 0]) };
    match done.and_then(|_| set_blocking(fd).map(|()| 0)) {
        Ok(_) => Ok(fd),
        Err(error) => {
            close(fd);
            Err(error)
        }
    }
}

#[repr(C)]
struct IoVec {
    at: usize,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: usize,
    name_len: usize,
    iov: usize,
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: usize,
}

/// Sends one packet made of two parts.
pub(crate) fn send(fd: i32, head: &[u8], payload: &[u8]) -> Result<()> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let parts = [head, payload].map(|part| IoVec { at: part.as_ptr() as usize, len: part.len() });
    let message = MsgHdr {
        name: 0,
        name_len: 0,
        iov: parts.as_ptr() as usize,
        iov_len: parts.len(),
        control: 0,
        control_len: 0,
        flags: 0,
    };
    loop {
        // SAFETY: the record and what it points to are live and only read.
        match unsafe { call(nr::SENDMSG, [fd as usize, ptr::from_ref(&message) as usize, MSG_NOSIGNAL, 0, 0, 0]) } {
            Err(Errno(errno::EINTR)) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Most descriptors that a packet can bring.
pub(crate) const MAX_FDS: usize = 253;
const CONTROL_HEAD: usize = 16;

/// Room for the descriptors of a packet.
#[repr(C, align(8))]
pub(crate) struct Control([u8; CONTROL_HEAD + 4 * MAX_FDS + 4]);

impl Control {
    pub(crate) const fn new() -> Control {
        Control([0; CONTROL_HEAD + 4 * MAX_FDS + 4])
    }
}

/// What [`receive`] got.
pub(crate) struct Received {
    /// Bytes of the packet, even if there was room for less.
    pub(crate) bytes: usize,
    /// Descriptors put into `fds`.
    pub(crate) fds: usize,
    /// Some descriptors did not fit.
    pub(crate) cut: bool,
}

/// Takes one packet with its descriptors, without waiting.
pub(crate) fn receive(fd: i32, into: &mut [u8], control: &mut Control, fds: &mut [i32; MAX_FDS]) -> Result<Received> {
    // DONTWAIT, CMSG_CLOEXEC, and TRUNC for the true length.
    const FLAGS: usize = 0x40 | 0x4000_0000 | 0x20;
    const MSG_CTRUNC: usize = 8;
    let part = IoVec { at: into.as_mut_ptr() as usize, len: into.len() };
    let mut message = MsgHdr {
        name: 0,
        name_len: 0,
        iov: ptr::from_ref(&part) as usize,
        iov_len: 1,
        control: ptr::from_mut(control) as usize,
        control_len: CONTROL_HEAD + 4 * MAX_FDS,
        flags: 0,
    };
    // SAFETY: the record and what it points to are live and writable for the lengths told.
    let bytes = unsafe { call(nr::RECVMSG, [fd as usize, &raw mut message as usize, FLAGS, 0, 0, 0]) }?;
    let mut got = 0;
    if message.control_len >= CONTROL_HEAD {
        let c = &control.0;
        let len = usize::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
        let rights = c[8..16] == [1, 0, 0, 0, 1, 0, 0, 0];
        if rights && let Some(numbers) = c.get(CONTROL_HEAD..len.min(message.control_len)) {
            for (slot, number) in fds.iter_mut().zip(numbers.chunks_exact(4)) {
                *slot = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
                got += 1;
            }
        }
    }
    Ok(Received { bytes, fds: got, cut: message.flags & MSG_CTRUNC != 0 })
}
