//! Processes in fresh pid namespaces, and events awaited with a time limit.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use bproc_bpf::{Config, Monitor, Role};
use bproc_common::event::{Event, kind};

pub const LIMIT: Duration = Duration::from_secs(20);

/// The object, or `None` with a printed reason when this machine cannot run the test.
pub fn object() -> Option<PathBuf> {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: loading eBPF programs needs root");
        return None;
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        eprintln!("skipped: this kernel has no BTF");
        return None;
    }
    let path = std::env::var_os("BPROC_BPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bproc/libexec/bproc/bproc.bpf.o"),
        PathBuf::from,
    );
    if !path.exists() {
        eprintln!("skipped: no object at {}; build it or set BPROC_BPF_OBJECT", path.display());
        return None;
    }
    Some(path)
}

/// A monitor without pins.
pub fn monitor(role: Role) -> Option<Monitor> {
    Some(Monitor::start(&Config::new(object()?, role)).expect("monitor"))
}

/// Forks; the child calls `run` with nothing but this thread, then exits with its result.
pub fn fork(run: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child uses system calls only and leaves with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: as above. The helper dies with the thread that made it.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::alarm(60);
            libc::_exit(run());
        }
    }
    pid
}

/// Waits for a child and gives its wait status.
pub fn wait(pid: i32) -> i32 {
    assert!(pid > 0);
    let mut status = 0;
    // SAFETY: a child of ours and a valid place for its status.
    let done = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(done, pid, "wait: {}", io::Error::last_os_error());
    status
}

/// Kills a process that the caller just made.
pub fn kill(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: the pid was checked.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which are owned at once.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

pub fn read_byte(fd: &OwnedFd) {
    let mut byte = 0u8;
    // SAFETY: one writable byte.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut byte).cast(), 1) };
}

pub fn write_byte(fd: &OwnedFd) {
    // SAFETY: one readable byte.
    unsafe { libc::write(fd.as_raw_fd(), c"x".as_ptr().cast(), 1) };
}

/// A pid namespace whose init waits for [`Space::go`] and then runs a function.
pub struct Space {
    pub inum: u32,
    /// Parent of init, outside.
    outer: i32,
    go: OwnedFd,
    /// Keeps the namespace: its inode number would be the next one's, of another test.
    _namespace: std::fs::File,
}

impl Space {
    pub fn new(run: impl FnOnce() -> i32) -> Space {
        let (wait_go, go) = pipe();
        let (is_ready, ready) = pipe();
        let outer = fork(|| {
            // SAFETY: no memory is involved.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
                return 99;
            }
            let init = fork(|| {
                write_byte(&ready);
                read_byte(&wait_go);
                run()
            });
            libc::WEXITSTATUS(wait(init))
        });
        read_byte(&is_ready);
        let path = format!("/proc/{outer}/ns/pid_for_children");
        let namespace = std::fs::File::open(path).expect("namespace");
        Space { inum: namespace.metadata().expect("inode").ino() as u32, outer, go, _namespace: namespace }
    }

    /// Lets init run.
    pub fn go(&self) {
        write_byte(&self.go);
    }

    /// Waits for the end of init; gives its exit code.
    pub fn end(&self) -> i32 {
        libc::WEXITSTATUS(wait(self.outer))
    }
}

/// Reads events until `enough` says so.
pub fn collect(monitor: &mut Monitor, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + LIMIT;
    let mut events = Vec::new();
    loop {
        monitor.drain(|event| events.push(*event));
        if enough(&events) {
            return events;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "time is up with {}", text(&events));
        wait_readable(monitor, left);
    }
}

/// Whether init of the only space has ended, after which nothing but FREE comes.
pub fn ended(events: &[Event]) -> bool {
    let mut last = events.iter().rev();
    last.any(|event| event.kind == kind::EXIT && event.pid == 1)
}

/// Adds the FREEs that come within some seconds, until there are `count`: the
/// kernel may be late with them, or pass one over under load.
pub fn await_free(monitor: &mut Monitor, events: &mut Vec<Event>, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(3);
    while of(events, kind::FREE).len() < count && Instant::now() < deadline {
        wait_readable(monitor, Duration::from_millis(100));
        monitor.drain(|event| events.push(*event));
    }
}

fn wait_readable(monitor: &Monitor, limit: Duration) {
    let mut poll = libc::pollfd { fd: monitor.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid record.
    unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) };
}

pub fn of(events: &[Event], what: u32) -> Vec<Event> {
    let found = events.iter().filter(|event| event.kind == what);
    found.copied().collect()
}

pub fn text(events: &[Event]) -> String {
    let lines = events.iter().map(|event| {
        let (name, len) = event.comm();
        format!(
            "\n kind {} pid {} ppid {} pgid {} sid {} host {} arg {} arg2 {} {}",
            event.kind,
            event.pid,
            event.ppid,
            event.pgid,
            event.sid,
            event.host_pid,
            event.arg,
            event.arg2,
            String::from_utf8_lossy(&name[..len])
        )
    });
    lines.collect()
}
