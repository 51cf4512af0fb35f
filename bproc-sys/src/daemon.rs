//! Starting helpers that outlive their starter: keeper and stdio service.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use bproc_common::id::Pid;

use crate::error::{Error, Result};
use crate::launch::{self, CloneArgs, Program};
use crate::pidfd::PidFd;

/// Whose child a helper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Life {
    /// Nobody's (init's): it outlives the caller and leaves it no zombie.
    #[default]
    Detached,
    /// The caller's: it is killed when the calling *thread* ends, and the caller reaps it. For tests.
    Tied,
}

/// What a helper is started with.
#[derive(Debug, Clone, Copy)]
pub struct Helper<'a> {
    /// The program.
    pub path: &'a Path,
    /// Arguments, the zeroth included.
    pub argv: &'a [&'a OsStr],
    /// Its whole environment.
    pub env: &'a [(&'a OsStr, &'a OsStr)],
    /// Descriptors to pass, each at its number there. 0, 1 and 2 are /dev/null if not named here; all others are
    /// closed.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
    /// Whose child it is.
    pub life: Life,
}

/// Starts a helper in a session of its own, with default signals, umask 022, in `/`, and returns when it has been
/// executed.
///
/// # Errors
/// What execve(2) says of the program (ENOENT, EACCES...), and of the steps before it.
pub fn spawn_detached(helper: &Helper<'_>) -> Result<PidFd> {
    let program = Program::new(helper.path, helper.argv, helper.env, helper.fds)?;
    // The helper's errno of exec, its pid, and the word that it may go: it waits until its pid has been made sure of.
    let (err_r, err_w) = program.pipe()?;
    let (pid_r, pid_w) = program.pipe()?;
    let (go_r, go_w) = program.pipe()?;
    let me = std::process::id() as i32;
    let signals = launch::quiet();
    let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    // SAFETY: the child makes async-signal-safe calls only and ends by exec or exit_group.
    let first = unsafe { launch::clone3(&args) };
    if first == 0 {
        // SAFETY: this is a forked child; everything used was laid out before.
        unsafe {
            libc::syscall(libc::SYS_close, go_w.as_raw_fd());
            libc::syscall(libc::SYS_close, err_r.as_raw_fd());
            if helper.life == Life::Detached {
                match launch::clone3(&args) {
                    0 => {}
                    -1 => launch::fail(err_w.as_raw_fd(), launch::errno()),
                    second => {
                        launch::tell(pid_w.as_raw_fd(), second as i32);
                        loop {
                            libc::syscall(libc::SYS_exit_group, 0);
                        }
                    }
                }
            } else {
                let errno = launch::tie_to(me, libc::SIGKILL);
                if errno != 0 {
                    launch::fail(err_w.as_raw_fd(), errno);
                }
            }
            if launch::hear(go_r.as_fd()).is_none() {
                launch::fail(err_w.as_raw_fd(), libc::ECANCELED);
            }
            libc::syscall(libc::SYS_setsid);
            let errno = program.exec();
            launch::fail(err_w.as_raw_fd(), errno)
        }
    }
    let first = launch::cloned("clone3", first)?;
    drop((signals, err_w, pid_w, go_r));
    let pid = match helper.life {
        Life::Tied => Some(first),
        Life::Detached => {
            let second = launch::hear(pid_r.as_fd());
            launch::reap(first);
            second
        }
    };
    let started = (|| {
        let Some(pid) = pid.and_then(Pid::new) else {
            let errno = launch::hear(err_r.as_fd()).unwrap_or(libc::EAGAIN);
            return Err(Error::new("fork of helper", errno).path(helper.path));
        };
        let pidfd = PidFd::open(pid)?;
        // SAFETY: writes four bytes to a pipe.
        unsafe { launch::tell(go_w.as_raw_fd(), 1) };
        match launch::hear(err_r.as_fd()) {
            None => Ok(pidfd),
            Some(errno) => Err(Error::new("start", errno).path(helper.path)),
        }
    })();
    drop(go_w);
    if started.is_err() && helper.life == Life::Tied {
        launch::reap(first);
    }
    started
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    fn run(path: &str, argv: &[&str], life: Life, out: &std::fs::File) -> Result<PidFd> {
        let argv: Vec<&OsStr> = argv.iter().map(OsStr::new).collect();
        spawn_detached(&Helper {
            path: Path::new(path),
            argv: &argv,
            env: &[(OsStr::new("A"), OsStr::new("b"))],
            fds: &[(out.as_fd(), 1), (out.as_fd(), 7)],
            life,
        })
    }

    fn temporary() -> std::fs::File {
        crate::memfd::create(c"test").map(std::fs::File::from).unwrap()
    }

    fn text(file: &std::fs::File) -> String {
        let mut text = String::new();
        use std::io::Seek;
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_helper_has_its_descriptors_and_nothing_else() {
        let out = temporary();
        // Not by listing the directory, which would take a descriptor.
        let script = "echo $A; echo seven >&7; n=0; while [ $n -lt 100 ]; do \
                      [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done; trap";
        let helper = run("/bin/sh", &["sh", "-c", script], Life::Detached, &out).unwrap();
        assert!(helper.wait_exit(Duration::from_secs(20)).unwrap());
        let lines: Vec<_> = text(&out).lines().map(str::to_owned).collect();
        // 10 is the shell's own copy of what it redirected, if it keeps one.
        let lines: Vec<_> = lines.iter().filter(|l| *l != "10").collect();
        assert_eq!(lines, ["b", "seven", "0", "1", "2", "7"]);
        assert!(helper.try_reap().is_err(), "it is not our child");
    }

    #[test]
    fn the_errno_of_exec_comes_back() {
        let out = temporary();
        for life in [Life::Detached, Life::Tied] {
            let error = run("/no/such/program", &["x"], life, &out).unwrap_err();
            assert_eq!(error.errno(), libc::ENOENT);
            assert!(error.to_string().contains("/no/such/program"));
        }
    }

    #[test]
    fn a_tied_helper_dies_with_its_thread() {
        let helper = std::thread::spawn(|| run("/bin/sleep", &["sleep", "60"], Life::Tied, &temporary()).unwrap())
            .join()
            .unwrap();
        assert!(helper.wait_exit(Duration::from_secs(20)).unwrap());
        use bproc_common::wait::Status;
        assert_eq!(helper.try_reap().unwrap(), Some(Status::Killed { signal: 9, core: false }));
    }
}
