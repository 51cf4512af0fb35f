//! The system calls that std lacks. All unsafe code of the benchmarks is here, in [`crate::shared`] and in
//! [`crate::node`].

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};

/// Is this root?
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// CLOCK_MONOTONIC in nanoseconds. Safe in a signal handler.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn checked(pid: i32) -> io::Result<()> {
    // 0 and below are groups, and -1 is everybody.
    if pid > 1 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// kill(2) of one process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    checked(pid)?;
    // SAFETY: two integers; the process is one that the caller started.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// sigqueue(3) of one process.
pub fn sigqueue(pid: i32, signal: i32, value: usize) -> io::Result<()> {
    checked(pid)?;
    let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
    // SAFETY: integers; the value is only handed through.
    if unsafe { libc::sigqueue(pid, signal, value) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// fork(2), where the child runs this and ends. The program has one thread whenever it is called.
pub fn fork(child: impl FnOnce() -> i32) -> Result<i32> {
    // SAFETY: with a single thread the child may do whatever the parent may; it never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot fork"),
        0 => {
            let code = child();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// Waits for this child. Returns the status of wait(2).
pub fn wait(pid: i32) -> Result<i32> {
    checked(pid)?;
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        if unsafe { libc::waitpid(pid, &mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).with_context(|| format!("cannot wait for process {pid}"));
        }
    }
}

/// Ends this process with its parent.
pub fn die_with_parent() {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Orphans below this process become its children.
pub fn adopt_orphans() {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// What is started with this ends with this process, and leads a session of its own if asked to.
pub fn tie(command: &mut Command, session: bool) {
    // SAFETY: all three are safe between fork and exec, and take no pointers.
    unsafe {
        command.pre_exec(move || {
            die_with_parent();
            // What whoever started the benchmark left open.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            if session && libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// Ignores this signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is a valid disposition of every signal that is passed here.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Takes this signal with a handler that does nothing.
pub fn take(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the handler does nothing, which is safe anywhere.
    unsafe { libc::signal(signal, nothing as extern "C" fn(i32) as libc::sighandler_t) };
}

/// A child that ends with the benchmark, and at the latest when this is dropped.
pub struct Held(Child);

impl Held {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        tie(command, false);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// An error when it has ended.
    pub fn still_there(&mut self) -> Result<()> {
        match self.0.try_wait().context("a child cannot be waited for")? {
            None => Ok(()),
            Some(status) => bail!("process {} ended too early: {status}", self.0.id()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
