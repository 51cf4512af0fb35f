//! A keeper to test against, the agent's side of its socket, and children to be held.
//!
//! Everything dies with the test's thread (PR_SET_PDEATHSIG) and the test process with its alarm.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bproc_common::id::Pid;
use bproc_common::keeper::{KeeperMsg, ev, op};
use bproc_common::wait::Status;
use bproc_common::wire::Record;
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use bproc_sys::pidfd::PidFd;
use bproc_sys::seqpacket::Conn;

/// Seconds after which the whole test process is killed.
const LIMIT: u32 = 120;

/// Held while a keeper is started and while a child is forked: a child that executes nothing would keep what the start
/// waits to see closed.
static FORKS: Mutex<()> = Mutex::new(());

fn one_fork() -> MutexGuard<'static, ()> {
    FORKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running keeper with its socket in a directory of its own.
pub(crate) struct Keeper {
    /// Of the process.
    pub(crate) pidfd: PidFd,
    dir: PathBuf,
}

impl Keeper {
    /// Starts one.
    pub(crate) fn start() -> Keeper {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // SAFETY: takes a number.
        unsafe { libc::alarm(LIMIT) };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bproc-keeper-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("s");
        let argv = [OsStr::new("bproc-keeper"), OsStr::new("--socket"), socket.as_os_str()];
        let alone = one_fork();
        let pidfd = spawn_detached(&Helper {
            path: Path::new(env!("CARGO_BIN_EXE_bproc-keeper")),
            argv: &argv,
            env: &[],
            fds: &[],
            life: Life::Tied,
        })
        .unwrap();
        drop(alone);
        Keeper { pidfd, dir }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// Connects as an agent.
    pub(crate) fn agent(&self) -> Agent {
        loop {
            match Conn::connect(&self.socket()) {
                Ok(conn) => {
                    return Agent { conn, seen: VecDeque::new(), tag: 0 };
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::thread::yield_now(),
                Err(e) => panic!("connect: {e}"),
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&self) {
        self.pidfd.send_signal(libc::SIGKILL).unwrap();
        wait(self.pidfd.pid(), 0);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.pidfd.send_signal(libc::SIGKILL);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The agent's side.
pub(crate) struct Agent {
    /// Blocking.
    pub(crate) conn: Conn,
    seen: VecDeque<KeeperMsg>,
    tag: u32,
}

impl Agent {
    /// Sends a command without waiting for the answer; returns its tag.
    pub(crate) fn send(&mut self, op: u32, pid: i32) -> u32 {
        self.tag += 1;
        let mut bytes = [0; KeeperMsg::SIZE];
        KeeperMsg { op, pid, tag: self.tag, ..KeeperMsg::default() }.put(&mut bytes);
        self.conn.send(&bytes, &[]).unwrap();
        self.tag
    }

    /// The next packet; `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<KeeperMsg> {
        let mut bytes = [0; KeeperMsg::SIZE];
        let got = self.conn.recv(&mut bytes).unwrap();
        (got.len > 0).then(|| KeeperMsg::get(&bytes[..got.len]).unwrap())
    }

    /// Sends a command and waits for its DONE; returns the value. Events meanwhile are kept.
    pub(crate) fn ask(&mut self, op: u32, pid: Pid) -> i32 {
        let tag = self.send(op, pid.get());
        self.done(tag)
    }

    /// Waits for the DONE of this tag.
    pub(crate) fn done(&mut self, tag: u32) -> i32 {
        self.find(|m| m.op == ev::DONE && m.tag == tag).value
    }

    /// Waits for an event about this process; others are kept.
    pub(crate) fn expect(&mut self, event: u32, pid: Pid) -> KeeperMsg {
        self.find(|m| m.op == event && m.pid == pid.get())
    }

    fn find(&mut self, wanted: impl Fn(&KeeperMsg) -> bool) -> KeeperMsg {
        if let Some(at) = self.seen.iter().position(&wanted) {
            return self.seen.remove(at).unwrap();
        }
        loop {
            let msg = self.next().expect("the keeper has hung up");
            if wanted(&msg) {
                return msg;
            }
            self.seen.push_back(msg);
        }
    }

    /// The next event of this kind, of any process.
    pub(crate) fn take_event(&mut self, event: u32) -> KeeperMsg {
        self.find(|m| m.op == event)
    }

    /// Whether such an event has come; all that the keeper has seen so far is in.
    pub(crate) fn has_seen(&mut self, event: u32, pid: Pid) -> bool {
        self.ask_plain(op::PING);
        self.seen.iter().any(|m| m.op == event && m.pid == pid.get())
    }

    /// A command without a pid.
    pub(crate) fn ask_plain(&mut self, op: u32) -> i32 {
        let tag = self.send(op, 0);
        self.done(tag)
    }

    /// LIST: pid, state, extra.
    pub(crate) fn list(&mut self) -> Vec<(i32, i32, u64)> {
        self.seen.retain(|m| m.op != ev::STATE);
        self.ask_plain(op::LIST);
        let mut all: Vec<_> =
            self.seen.iter().filter(|m| m.op == ev::STATE).map(|m| (m.pid, m.value, m.extra)).collect();
        all.sort_unstable();
        all
    }
}

/// Forks a child that runs `body` and exits with its result. It has a process group of its own and is killed with
/// the test's thread.
pub(crate) fn child(body: impl FnOnce() -> i32) -> Pid {
    let parent = std::process::id() as i32;
    let alone = one_fork();
    // SAFETY: the child makes plain system calls and ends by _exit.
    let pid = unsafe { libc::fork() };
    // In the child too, which may fork.
    drop(alone);
    if pid == 0 {
        // SAFETY: no pointers.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                libc::_exit(99);
            }
            libc::setpgid(0, 0);
            libc::_exit(body());
        }
    }
    let child = Pid::new(pid).expect("fork");
    // Here too: in this process's group, which may be orphaned, the kernel drops stop signals of the terminal.
    // SAFETY: no pointers. It fails for one that has executed a program, and so is in its group already.
    unsafe { libc::setpgid(child.get(), child.get()) };
    child
}

/// A child that does nothing until it is killed.
pub(crate) fn sleeper() -> Pid {
    child(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

/// waitpid, waiting.
pub(crate) fn wait(pid: Pid, flags: i32) -> Status {
    let mut raw = 0;
    // SAFETY: `raw` lives through the call.
    let ret = unsafe { libc::waitpid(pid.get(), &raw mut raw, flags) };
    assert_eq!(ret, pid.get(), "waitpid: {}", std::io::Error::last_os_error());
    Status::from_raw(raw)
}

/// True when waitpid sees a living child without news.
pub(crate) fn is_quiet(pid: Pid) -> bool {
    let mut raw = 0;
    let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    // SAFETY: `raw` lives through the call.
    unsafe { libc::waitpid(pid.get(), &raw mut raw, flags) == 0 }
}

/// Ended by SIGKILL.
pub(crate) const KILLED: Status = Status::Killed { signal: 9, core: false };

/// A pipe that children inherit across fork: reading end, writing end.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    let (r, w) = std::io::pipe().unwrap();
    (r.into(), w.into())
}

/// One byte into a pipe.
pub(crate) fn put(fd: &OwnedFd, byte: u8) {
    // SAFETY: one byte that lives through the call.
    let ret = unsafe { libc::write(fd.as_raw_fd(), (&raw const byte).cast(), 1) };
    assert_eq!(ret, 1);
}

/// One byte out of a pipe; 0 at its end.
pub(crate) fn take(fd: &OwnedFd) -> u8 {
    let mut byte = 0u8;
    // SAFETY: one byte that lives through the call.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut byte).cast(), 1) };
    byte
}
