//! Starting the first process of a space: pid 1 of a new pid and mount namespace.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use bproc_common::ghost::{ENV_LEASE, ENV_ROLE, ENV_SOCKET, Role};
use bproc_common::id::Pid;

use crate::error::{Error, Result};
use crate::launch::{self, CloneArgs, Program};
use crate::pidfd::PidFd;
use crate::process::Process;

/// `CLONE_NEWTIME`, also for unshare(2).
const CLONE_NEWTIME: u64 = 0x80;

/// What a space's init is started with.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The zeroth argument: what `ps` shows.
    pub argv0: &'a OsStr,
    /// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME in the space against the machine's, in nanoseconds: gives the
    /// space a time namespace.
    pub time_offsets: Option<TimeOffsets>,
    /// Mounts a `/proc` of the space over the machine's, in the space's mount namespace.
    pub mount_proc: bool,
    /// `oom_score_adj` of init. Where the kernel refuses it is left: ask by `/proc` when it matters.
    pub oom_score_adj: Option<i16>,
    /// Seconds that init lives on without its agent; 0: for ever.
    pub lease_s: u32,
    /// Kills the space when the calling *thread* ends. For tests: a space outlives its agent.
    pub tied: bool,
}

/// Offsets of the clocks of a time namespace in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOffsets {
    /// Of CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// Of CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// A space's init, as the machine sees it. It is a child of the caller, which is to reap it when it ends.
#[derive(Debug)]
pub struct Init {
    /// Of init.
    pub pidfd: PidFd,
    /// Inode number of the space's pid namespace.
    pub pid_ns: u64,
}

/// Laid out before the fork.
struct Plan<'a> {
    program: Program,
    options: Options<'a>,
    /// `oom_score_adj` as text.
    oom: Option<String>,
    /// Lines of `timens_offsets`.
    offsets: Option<String>,
    parent: i32,
}

/// Starts the ghost binary as the init of a new space and returns when it has been executed. It has a session of its
/// own, /dev/null as standard descriptors, no others, and does not die with the caller.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL where time namespaces are missing but wanted, ENOSPC at the limit of
/// namespaces; what execve(2) says of the program.
pub fn spawn_init(ghost: &Path, socket: &Path, options: Options<'_>) -> Result<Init> {
    let role = (Role::Init as i64).to_string();
    let lease = options.lease_s.to_string();
    let env = [
        (OsStr::new(ENV_SOCKET), socket.as_os_str()),
        (OsStr::new(ENV_ROLE), OsStr::new(&role)),
        (OsStr::new(ENV_LEASE), OsStr::new(&lease)),
    ];
    let plan = Plan {
        program: Program::new(ghost, &[options.argv0], &env, &[])?,
        oom: options.oom_score_adj.map(|score| score.to_string()),
        offsets: options.time_offsets.map(TimeOffsets::text),
        parent: std::process::id() as i32,
        options,
    };
    let (err_r, err_w) = plan.program.pipe()?;
    let (pid_r, pid_w) = plan.program.pipe()?;
    let signals = launch::quiet();
    let helper = if plan.offsets.is_some() {
        // A time namespace gets its offsets before its first process: from one in between, which makes init as its
        // own sibling, so that the caller is the parent still.
        let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        // SAFETY: the child makes async-signal-safe calls only and ends by exit_group.
        let helper = unsafe { launch::clone3(&args) };
        if helper == 0 {
            // SAFETY: this is a forked child; everything used was laid out before.
            unsafe { between(&plan, pid_w.as_raw_fd(), err_w.as_raw_fd()) }
        }
        Some(launch::cloned("clone3", helper)?)
    } else {
        // SAFETY: the child makes async-signal-safe calls only and ends by exec or exit_group.
        let ret = unsafe { make_init(&plan, libc::SIGCHLD as u64, 0, err_w.as_raw_fd()) };
        let pid = launch::cloned("clone3 of a space's init", ret)?;
        // SAFETY: writes four bytes to a pipe with room.
        unsafe { launch::tell(pid_w.as_raw_fd(), pid) };
        None
    };
    drop((signals, err_w, pid_w));
    let pid = launch::hear(pid_r.as_fd());
    let errno = launch::hear(err_r.as_fd());
    if let Some(helper) = helper {
        launch::reap(helper);
    }
    let failed = |errno| Error::new("start as a space's init", errno).path(ghost);
    let Some(pid) = pid.and_then(Pid::new) else {
        return Err(failed(errno.unwrap_or(libc::EAGAIN)));
    };
    if let Some(errno) = errno {
        launch::reap(pid.get());
        return Err(failed(errno));
    }
    // It is our child and not reaped: the number is still its own.
    let started = PidFd::open(pid).and_then(|pidfd| Ok(Init { pidfd, pid_ns: Process::open(pid)?.pid_ns()? }));
    if started.is_err() {
        // Without a handle nobody could ever end it.
        let _ = crate::signal::kill(pid, libc::SIGKILL);
        launch::reap(pid.get());
    }
    started
}

/// Clones init; in the child, makes it the ghost.
///
/// # Safety
/// Async-signal-safe; the child does not return.
unsafe fn make_init(plan: &Plan<'_>, exit_signal: u64, flags: u64, err: i32) -> libc::c_long {
    let flags = flags | (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    let args = CloneArgs { flags, exit_signal, ..CloneArgs::default() };
    // SAFETY: the child makes async-signal-safe calls only and ends by exec or exit_group.
    unsafe {
        let ret = launch::clone3(&args);
        if ret == 0 {
            let errno = become_init(plan);
            launch::fail(err, errno);
        }
        ret
    }
}

/// Settles in the new namespaces and executes the ghost; comes back only with an errno.
///
/// # Safety
/// To be called in a forked child only.
unsafe fn become_init(plan: &Plan<'_>) -> i32 {
    // SAFETY: async-signal-safe calls on memory laid out before the fork.
    unsafe {
        if plan.options.tied {
            let errno = launch::tie_to(plan.parent, libc::SIGKILL);
            if errno != 0 {
                return errno;
            }
        }
        if let Some(text) = &plan.oom {
            // Refused without CAP_SYS_RESOURCE: no reason not to start.
            launch::put_text(c"/proc/self/oom_score_adj", text.as_bytes());
        }
        libc::syscall(libc::SYS_setsid);
        let none = std::ptr::null::<libc::c_char>();
        let flags = libc::MS_REC | libc::MS_SLAVE;
        if libc::syscall(libc::SYS_mount, none, c"/".as_ptr(), none, flags, none) == -1 {
            return launch::errno();
        }
        if plan.options.mount_proc {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            let proc = c"proc".as_ptr();
            if libc::syscall(libc::SYS_mount, proc, c"/proc".as_ptr(), proc, flags, none) == -1 {
                return launch::errno();
            }
        }
        plan.program.exec()
    }
}

/// The process in between: makes the time namespace, sets its offsets, makes init, ends.
///
/// # Safety
/// To be called in a forked child only.
unsafe fn between(plan: &Plan<'_>, pid: i32, err: i32) -> ! {
    // SAFETY: async-signal-safe calls on memory laid out before the fork.
    unsafe {
        if libc::syscall(libc::SYS_unshare, CLONE_NEWTIME) == -1 {
            launch::fail(err, launch::errno());
        }
        if let Some(text) = &plan.offsets {
            let errno = launch::put_text(c"/proc/self/timens_offsets", text.as_bytes());
            if errno != 0 {
                launch::fail(err, errno);
            }
        }
        // With CLONE_PARENT the exit signal is the cloner's own, SIGCHLD.
        let ret = make_init(plan, 0, libc::CLONE_PARENT as u64, err);
        if ret == -1 {
            launch::fail(err, launch::errno());
        }
        launch::tell(pid, ret as i32);
        loop {
            libc::syscall(libc::SYS_exit_group, 0);
        }
    }
}

impl TimeOffsets {
    /// As `timens_offsets` wants it: seconds may be negative, nanoseconds not.
    fn text(self) -> String {
        let line = |clock: &str, ns: i64| {
            format!("{clock} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
        };
        line("monotonic", self.monotonic) + &line("boottime", self.boottime)
    }
}
