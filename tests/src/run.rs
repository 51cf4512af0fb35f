//! A program with input, output and a time limit, in a session of its own.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;

/// What came of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit code, or the number of the signal, negative.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: String| text.chars().take(2000).collect::<String>();
        write!(f, "status {}, stdout {:?}, stderr {:?}", self.status, short(self.out()), short(self.err()))
    }
}

impl Finished {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Has the command's process die with the thread that starts it, in a session of its own.
pub fn tie(command: &mut Command) -> &mut Command {
    // SAFETY: prctl and setsid are safe between fork and exec, and touch no memory.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 || libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// Signals as a fresh login has them, for this process and what it starts: who runs tests in the background of a shell,
/// or under nohup, leaves some ignored, and programs would inherit that.
pub fn as_after_login() {
    for signal in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE, 32, 33].contains(s)) {
        // SAFETY: the default action is no code of ours; nothing here has handlers yet.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before sigprocmask reads it.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// The number of a status: the exit code, or minus the signal.
pub fn number(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// A time limit, which is longer where the processor is emulated.
pub fn patience(limit: Duration) -> Duration {
    const EMULATED: u32 = 6;
    if std::env::var_os("BPROC_VM").is_some() { limit * EMULATED } else { limit }
}

/// Waits for the end of a child within the limit; past it the child is killed, and that is an error.
///
/// # Errors
/// It did not end.
pub fn wait(child: &mut Child, limit: Duration) -> Result<i32> {
    let limit = patience(limit);
    let pid = Pid::new(child.id() as i32).context("a child has a pid")?;
    let ended = PidFd::open(pid)?.wait_exit(limit)?;
    if !ended {
        child.kill()?;
    }
    let status = number(child.wait()?);
    if !ended {
        bail!("process {pid} did not end within {} s, and was killed", limit.as_secs());
    }
    Ok(status)
}

/// Runs the command to its end.
///
/// # Errors
/// It cannot be started, or does not end within the limit: then its output so far is told.
pub fn finish(command: &mut Command, input: &[u8], limit: Duration) -> Result<Finished> {
    let words = format!("{command:?}");
    let words: String = words.chars().take(300).collect();
    tie(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {words}"))?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin.take() {
                // Whoever does not read it all says so by his status.
                let _ = stdin.write_all(input);
            }
        });
        let out = scope.spawn(move || all(stdout.as_mut()));
        let err = scope.spawn(move || all(stderr.as_mut()));
        let status = wait(&mut child, limit);
        if status.is_err() {
            // Others may hold the pipes' ends: the streams cannot be read to their ends.
            kill_session(child.id() as i32);
        }
        let finished = Finished {
            status: *status.as_ref().unwrap_or(&-9),
            stdout: out.join().unwrap_or_default(),
            stderr: err.join().unwrap_or_default(),
        };
        status.with_context(|| format!("{words}\nstdout: {}\nstderr: {}", finished.out(), finished.err()))?;
        Ok(finished)
    })
}

fn all(from: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error is what there is.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// Kills whoever is left of a session that a test made: found by session, held by pidfd, looked at again.
fn kill_session(session: i32) {
    let of = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse::<i32>().ok()
    };
    for process in crate::procs::all() {
        if of(process.pid) == Some(session)
            && let Some(fd) = Pid::new(process.pid).and_then(|pid| PidFd::open(pid).ok())
            && of(process.pid) == Some(session)
        {
            // It may have ended by itself.
            let _ = fd.send_signal(libc::SIGKILL);
        }
    }
}
