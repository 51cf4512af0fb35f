//! The system calls of the runner, each behind a safe function.

use std::ffi::CString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use crate::jobs::own;

/// Turns a libc result into a `Result`.
pub(crate) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn text(value: &str) -> CString {
    // Only the host's own files and constants come here; a NUL ends the text.
    CString::new(value.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// `mount(2)`.
pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (text(source), text(target), text(kind), text(data));
    // SAFETY: four NUL-terminated strings that live until the call returns.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// `chroot(2)` into the current directory.
pub(crate) fn chroot_here() -> io::Result<()> {
    let here = text(".");
    // SAFETY: a NUL-terminated string that lives until the call returns.
    check(unsafe { libc::chroot(here.as_ptr()) }).map(drop)
}

/// `sethostname(2)`.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Loads the kernel module in the open file.
pub(crate) fn load_module(fd: RawFd) -> io::Result<()> {
    let arguments = text("");
    // SAFETY: finit_module(fd, args, flags) reads the string only.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, fd, arguments.as_ptr(), 0) };
    check(i32::try_from(result).unwrap_or(-1)).map(drop)
}

/// Sets an extended attribute of a file.
pub(crate) fn set_attribute(path: &str, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (text(path), text(name));
    // SAFETY: two NUL-terminated strings and a buffer with its length.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// Sets a resource limit for us and all that we start.
pub(crate) fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives until the call returns.
    unsafe { libc::setrlimit(resource, &raw const limit) };
}

/// The running kernel's release, as `uname -r` says.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs_f64)
}

/// Blocks SIGCHLD for us and returns a descriptor that becomes readable on it.
pub(crate) fn child_signals() -> OwnedFd {
    // SAFETY: the set is initialised by sigemptyset before use; the calls keep
    // no reference to it.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        own(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Blocks nothing: for a child, which would inherit what we block.
pub(crate) fn unblock_signals() {
    // SAFETY: sigemptyset initialises the set; sigprocmask reads it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Reads all that is pending on a non-blocking descriptor and throws it away.
pub(crate) fn clear(fd: RawFd) {
    let mut buffer = [0u8; 1024];
    while matches!(read(fd, &mut buffer), Ok(count) if count > 0) {}
}

/// `read(2)`.
pub(crate) fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Makes reads of a descriptor return at once.
pub(crate) fn set_nonblocking(fd: RawFd) {
    // SAFETY: F_SETFL takes an integer and touches no memory.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
}

/// `poll(2)`; an interrupted or failed wait is as good as a short one.
pub(crate) fn poll(list: &mut [libc::pollfd], patience: Duration) {
    let millis = i32::try_from(patience.as_millis()).unwrap_or(1000);
    // SAFETY: pointer and length describe `list`.
    unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, millis) };
}

/// Reaps one dead child, if there is one: its pid and wait status.
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is valid for the write.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// SIGKILL to every process of the VM but ourselves.
pub(crate) fn kill_all() {
    // Outside a VM this would be a disaster; `main` checked it, and so do we.
    if std::process::id() == 1 {
        // SAFETY: kill touches no memory; process 1 itself is spared.
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}

/// No translation of line ends or characters on a serial line.
pub(crate) fn raw_mode(fd: RawFd) {
    // SAFETY: tcgetattr fills `mode` before it is used, else we return.
    unsafe {
        let mut mode = std::mem::zeroed::<libc::termios>();
        if libc::tcgetattr(fd, &raw mut mode) < 0 {
            return;
        }
        libc::cfmakeraw(&raw mut mode);
        libc::tcsetattr(fd, libc::TCSANOW, &raw const mode);
    }
}

/// Waits until a serial line has sent everything.
pub(crate) fn drain(fd: RawFd) {
    // SAFETY: tcdrain takes a descriptor only.
    unsafe { libc::tcdrain(fd) };
}

/// Ends the VM: qemu exits with `2 * code + 1`.
pub(crate) fn power_off(code: u8) -> ! {
    // SAFETY: iopl gives us the port instructions; port 0xf4 is qemu's
    // isa-debug-exit device, which takes any byte. reboot does not return when
    // it succeeds.
    unsafe {
        drain(1);
        if libc::iopl(3) == 0 {
            std::arch::asm!(
                "out dx, al",
                in("dx") 0xf4_u16,
                in("al") code,
                options(nomem, nostack, preserves_flags),
            );
        }
        libc::reboot(libc::RB_POWER_OFF);
    }
    // Without the device and without ACPI: sleep, the host's limit ends us.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
