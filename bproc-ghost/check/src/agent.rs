//! Starts ghosts and ends them.

use crate::wire::{Conn, Listener};
use bproc_common::ghost::{ENV_PDEATH, ENV_ROLE, ENV_SOCKET};
use std::ffi::CString;
use std::io::Error;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of the release binary: the staged one if `BPROC_STAGE` names it, as where there is no cargo; else built if need be.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(stage) = std::env::var_os("BPROC_STAGE") {
            return PathBuf::from(stage).join("libexec/bproc/bproc-ghost");
        }
        let test = std::env::current_exe().expect("own path");
        let target = test.ancestors().nth(3).expect("target/PROFILE/deps/TEST").to_owned();
        let done = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--package", "bproc-ghost", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(done.success());
        target.join("release/bproc-ghost")
    })
    .clone()
}

/// Wait status of a child that has ended, stopped or gone on.
///
/// # Panics
/// When it is not our child.
pub fn wait_status(pid: i32, options: i32) -> i32 {
    assert!(pid > 1);
    let mut status = 0;
    // SAFETY: one child of ours, a live status.
    let got = unsafe { libc::waitpid(pid, &mut status, options) };
    assert_eq!(got, pid, "waitpid: {}", Error::last_os_error());
    status
}

/// A started process that is ended on drop.
struct Child {
    pid: i32,
    reaped: bool,
}

impl Child {
    /// Forks, and becomes the ghost. `flags` are new namespaces.
    fn start(flags: i32, program: &std::path::Path, uid: Option<u32>, environment: &[String]) -> Child {
        let text = |t: &str| CString::new(t).expect("no NUL");
        let program = text(program.to_str().expect("text"));
        let environment: Vec<_> = environment.iter().map(|e| text(e)).collect();
        let mut envp: Vec<_> = environment.iter().map(|e| e.as_ptr()).collect();
        envp.push(std::ptr::null());
        let argv = [program.as_ptr(), std::ptr::null()];
        // SAFETY: the child makes system calls only, with memory prepared before, and then execs or exits.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) as i32;
            if pid == 0 {
                let mut fine = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
                if flags & libc::CLONE_NEWNS != 0 {
                    let kind = libc::MS_REC | libc::MS_PRIVATE;
                    fine &= libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), kind, std::ptr::null()) == 0;
                }
                if let Some(uid) = uid {
                    fine &= libc::syscall(libc::SYS_setgroups, 0, 0) == 0;
                    fine &= libc::syscall(libc::SYS_setresgid, uid, uid, uid) == 0;
                    fine &= libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0;
                }
                if fine {
                    libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
                }
                libc::_exit(126);
            }
            pid
        };
        assert!(pid > 1, "clone: {}", Error::last_os_error());
        Child { pid, reaped: false }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: a child of ours that was not reaped, so the number is still its own.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// A ghost that is a child of the test.
pub struct Ghost {
    child: Child,
    /// The agent's socket.
    pub listener: Listener,
    /// Its connection.
    pub conn: Conn,
}

impl Ghost {
    /// Starts one in role ghost.
    pub fn start() -> Ghost {
        Ghost::start_as(Listener::new(), &binary(), None)
    }

    /// Starts this copy of the binary as this user.
    ///
    /// # Panics
    /// When it does not connect.
    pub fn start_as(mut listener: Listener, program: &std::path::Path, uid: Option<u32>) -> Ghost {
        let environment =
            [format!("{ENV_SOCKET}={}", listener.path().display()), format!("{ENV_PDEATH}={}", std::process::id())];
        let child = Child::start(0, program, uid, &environment);
        let conn = listener.accept(child.pid);
        assert_eq!(conn.hello.c, i64::from(std::process::id()));
        Ghost { child, listener, conn }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Its next change of state, an end included.
    pub fn wait(&mut self) -> i32 {
        let status = wait_status(self.child.pid, libc::WUNTRACED | libc::WCONTINUED);
        self.child.reaped = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        status
    }

    /// Sends it a signal by kill.
    pub fn kill(&self, signal: i32) {
        assert!(!self.child.reaped);
        // SAFETY: a child of ours that was not reaped.
        assert_eq!(unsafe { libc::kill(self.child.pid, signal) }, 0);
    }

    /// Sends it a signal by sigqueue.
    pub fn queue(&self, signal: i32, value: u64) {
        assert!(!self.child.reaped);
        let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
        // SAFETY: a child of ours that was not reaped.
        let done = unsafe { libc::sigqueue(self.child.pid, signal, value) };
        assert_eq!(done, 0, "sigqueue: {}", Error::last_os_error());
    }
}

/// A pid namespace with the binary as its init. Its connection is what it derefs to.
pub struct Space {
    _child: Child,
    /// The agent's socket.
    pub listener: Listener,
    /// Connection of init.
    pub init: Conn,
}

impl Space {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Space {
        let mut listener = Listener::new();
        let environment = [format!("{ENV_SOCKET}={}", listener.path().display()), format!("{ENV_ROLE}=2")];
        let child = Child::start(libc::CLONE_NEWPID | libc::CLONE_NEWNS, &binary(), None, &environment);
        let init = listener.accept(1);
        Space { _child: child, listener, init }
    }

    /// The agent goes away: no connection of init, no socket.
    pub fn lose_agent(&mut self) {
        self.listener.hide();
        self.init.hang_up();
    }

    /// The agent is back: waits for init.
    pub fn regain_agent(&mut self) {
        self.listener.show();
        self.init = self.listener.accept(1);
    }

    /// Makes a child of init and gives its connection.
    pub fn clone_child(&mut self, pid: i32, role: bproc_common::ghost::Role) -> Conn {
        self.init.clone_child(&mut self.listener, pid, role)
    }
}

impl Deref for Space {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.init
    }
}

impl DerefMut for Space {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.init
    }
}
