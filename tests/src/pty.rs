//! A person at a terminal: types, and reads what appears.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run;

/// ^C.
pub const INTERRUPT: &str = "\x03";
/// ^Z.
pub const SUSPEND: &str = "\x1a";
/// ^\.
pub const QUIT: &str = "\x1c";
/// ^D.
pub const END: &str = "\x04";
/// What the shell says when it waits.
pub const PROMPT: &str = "ready> ";
/// For something to appear.
const LIMIT: Duration = Duration::from_secs(30);

/// An interactive bash on a terminal of its own.
pub struct Session {
    terminal: Option<File>,
    shell: Child,
    /// All that appeared and was not expected yet.
    unread: String,
}

fn open() -> Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize { ws_row: 40, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: room for two descriptors; no name and no modes are asked for.
    let result = unsafe {
        libc::openpty(&raw mut ours, &raw mut theirs, std::ptr::null_mut(), std::ptr::null(), &raw const size)
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("no terminal is left");
    }
    // SAFETY: both were just made, and nobody else has them.
    let pair = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // SAFETY: integers. The shell shall not hold our end open.
    unsafe { libc::fcntl(pair.0.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok(pair)
}

impl Session {
    /// A bash, with the environment of the command.
    ///
    /// # Errors
    /// No terminal, no bash, no prompt.
    pub fn start(command: &mut Command) -> Result<Session> {
        command
            .args(["--norc", "--noprofile", "-i"])
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .env_remove("PROMPT_COMMAND");
        let mut session = Session::run(command.env("HISTFILE", "/dev/null").env("INPUTRC", "/dev/null"))?;
        session.expect(PROMPT)?;
        // What is typed shall not appear: only what programs say is of interest.
        session.line("stty -echo; bind 'set enable-bracketed-paste off' 2>/dev/null")?;
        Ok(session)
    }

    /// A program that leads the session of a new terminal.
    ///
    /// # Errors
    /// No terminal, no such program.
    pub fn run(command: &mut Command) -> Result<Session> {
        let (ours, theirs) = open()?;
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(Stdio::from(theirs));
        // SAFETY: three system calls without memory, safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let shell = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Session { terminal: Some(ours.into()), shell, unread: String::new() })
    }

    /// Types this, as it stands.
    ///
    /// # Errors
    /// The terminal is closed.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let terminal = self.terminal.as_mut().context("the terminal is closed")?;
        Ok(terminal.write_all(text.as_bytes())?)
    }

    /// Types a line and waits for the next prompt; returns what appeared between.
    ///
    /// # Errors
    /// No prompt appears.
    pub fn line(&mut self, line: &str) -> Result<String> {
        self.type_in(&format!("{line}\n"))?;
        self.expect(PROMPT)
    }

    /// Waits until this text appears; returns what appeared before it.
    ///
    /// # Errors
    /// It does not; what did is told.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + run::patience(LIMIT);
        loop {
            if let Some(at) = self.unread.find(text) {
                let before = self.unread[..at].replace('\r', "");
                self.unread.drain(..at + text.len());
                return Ok(before);
            }
            let left = end.saturating_duration_since(Instant::now());
            let terminal = self.terminal.as_mut().context("the terminal is closed")?;
            if !crate::case::sys::readable(terminal.as_raw_fd(), left) {
                bail!("'{text}' does not appear; there is: {:?}", self.unread);
            }
            let mut part = [0; 4096];
            match terminal.read(&mut part) {
                Ok(length) if length > 0 => self.unread.push_str(&String::from_utf8_lossy(&part[..length])),
                _ => bail!("the shell has gone before '{text}' appeared; there was: {:?}", self.unread),
            }
        }
    }

    /// Makes the window larger or smaller.
    ///
    /// # Errors
    /// The terminal is closed.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = self.terminal.as_ref().context("the terminal is closed")?;
        // SAFETY: reads a struct winsize.
        if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
            return Err(io::Error::last_os_error()).context("cannot resize the terminal");
        }
        Ok(())
    }

    /// Closes the terminal as a closed window does, and waits for the shell's end.
    ///
    /// # Errors
    /// The shell does not end.
    pub fn hang_up(mut self) -> Result<()> {
        self.terminal = None;
        run::wait(&mut self.shell, LIMIT)?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.terminal = None;
        // It ended by itself, or shall now.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
