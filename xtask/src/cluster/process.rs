//! Processes of a cluster: found by the program they run, never by a name, and
//! signalled through a pidfd, so that a reused pid is never hit.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Cluster, LIB};

/// A process, held by its pidfd.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) command_line: String,
    fd: OwnedFd,
}

/// Every process whose program lies in this cluster's directory, replaced programs included.
pub(super) fn of(cluster: &Cluster) -> Result<Vec<Process>> {
    let lib = cluster.lib();
    if !lib.starts_with(LIB) || lib == Path::new(LIB) {
        bail!("{} is no directory of a cluster", lib.display());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid > 1
            && program(pid).is_some_and(|program| program.starts_with(&lib))
            && let Some(process) = Process::hold(pid, &lib)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Those of them that are agents.
pub(super) fn agents(cluster: &Cluster) -> Result<Vec<Process>> {
    let agent = cluster.agent();
    Ok(of(cluster)?.into_iter().filter(|process| program(process.pid).is_some_and(|path| path == agent)).collect())
}

/// The program that a process runs. A zombie has none.
fn program(pid: i32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = path.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

impl Process {
    /// Opens the process, then looks again whether it is still one of ours: from
    /// here on the descriptor means this process and no other.
    fn hold(pid: i32, lib: &Path) -> Option<Self> {
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if !program(pid)?.starts_with(lib) {
            return None;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command_line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
        Some(Self { pid, command_line, fd })
    }

    /// Sends a signal; a process that has ended already is no error.
    pub(super) fn signal(&self, signal: c_int) -> Result<()> {
        // SAFETY: the descriptor is open, the signal information is absent, the flags are zero.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(error)
            .with_context(|| format!("cannot send signal {signal} to process {} ({})", self.pid, self.command_line))
    }

    /// Waits for its end; false when the time is over first.
    pub(super) fn ended_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let millis = c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX);
            // SAFETY: one pollfd, which lives over the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, millis) };
            if ready > 0 {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

/// Asks processes to end, then makes them.
pub(super) fn end(processes: &[Process], patience: Duration) -> Result<()> {
    for process in processes {
        process.signal(libc::SIGTERM)?;
        // A stopped one hears it only when it goes on.
        process.signal(libc::SIGCONT)?;
    }
    let end = Instant::now() + patience;
    for process in processes {
        if !process.ended_within(end.saturating_duration_since(Instant::now())) {
            process.signal(libc::SIGKILL)?;
        }
    }
    for process in processes {
        if !process.ended_within(Duration::from_secs(10)) {
            bail!("process {} ({}) does not end", process.pid, process.command_line);
        }
    }
    Ok(())
}
