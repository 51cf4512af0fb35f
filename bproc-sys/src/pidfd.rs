//! Descriptors of processes: unlike numbers they cannot come to mean another process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bproc_common::id::Pid;
use bproc_common::wait::Status;

use crate::error::{Error, Result, check, check_long};
use crate::pod::Zeroable;
use crate::signal::{SigInfo, valid};

/// A pidfd, closed on exec. Readable (poll) from the moment that the process is a zombie or gone.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: Pid,
}

impl PidFd {
    /// pidfd_open(2).
    ///
    /// # Errors
    /// ESRCH; EINVAL (ENOENT from Linux 6.15 on) when the number is that of a thread; EMFILE.
    pub fn open(pid: Pid) -> Result<PidFd> {
        // SAFETY: no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.get(), 0) };
        let fd = check_long("pidfd_open", ret).map_err(|e| e.pid(pid))?;
        // SAFETY: the call has just made the descriptor, nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(PidFd { fd, pid })
    }

    /// Takes a pidfd that came from elsewhere and is said to be of `pid`, which is used to name it in errors only.
    pub fn from_owned(fd: OwnedFd, pid: Pid) -> PidFd {
        PidFd { fd, pid }
    }

    /// The number it was opened with.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// pidfd_send_signal(2) as kill(2) would send it.
    ///
    /// # Errors
    /// EINVAL for a number outside 1..=64, ESRCH when it has been reaped, EPERM.
    pub fn send_signal(&self, signal: i32) -> Result<()> {
        self.send(signal, std::ptr::null())
    }

    /// pidfd_send_signal(2) with this siginfo, under the rules of [`crate::signal::queue_info`].
    ///
    /// # Errors
    /// As [`PidFd::send_signal`]; EAGAIN when the receiver's queue is full.
    pub fn send_info(&self, signal: i32, info: &SigInfo) -> Result<()> {
        self.send(signal, info.0.as_ptr())
    }

    /// sigqueue(3) with the caller's own pid and uid.
    ///
    /// # Errors
    /// As [`PidFd::send_info`].
    pub fn sigqueue(&self, signal: i32, value: u64) -> Result<()> {
        self.send_info(signal, &SigInfo::from_here(signal, value))
    }

    fn send(&self, signal: i32, info: *const u8) -> Result<()> {
        let op = "pidfd_send_signal";
        let signal = valid(op, signal).map_err(|e| e.pid(self.pid))?;
        // SAFETY: `info` is null or points to the 128 bytes of a SigInfo that lives through the call.
        let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, info, 0) };
        check_long(op, ret).map_err(|e| e.pid(self.pid))?;
        Ok(())
    }

    /// True when the process is a zombie or gone.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn has_exited(&self) -> Result<bool> {
        self.wait_exit(Duration::ZERO)
    }

    /// Waits until the process is a zombie or gone; false when `limit` passes first.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait_exit(&self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now()).as_millis();
            let left = libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX);
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry that lives through the call.
            match check("poll of pidfd", unsafe { libc::poll(&raw mut poll, 1, left) }) {
                Ok(n) if n > 0 => return Ok(true),
                Ok(_) if left == 0 => return Ok(false),
                Ok(_) => {}
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.pid(self.pid)),
            }
        }
    }

    /// Reaps the process if it is a child of the caller and has ended; `None` while it has not.
    ///
    /// # Errors
    /// ECHILD when it is no child or has been reaped.
    pub fn try_reap(&self) -> Result<Option<Status>> {
        let mut info = libc::siginfo_t::zeroed();
        // SAFETY: `info` lives through the call.
        let ret = unsafe {
            libc::waitid(libc::P_PIDFD, self.fd.as_raw_fd() as libc::id_t, &raw mut info, libc::WEXITED | libc::WNOHANG)
        };
        check("waitid", ret).map_err(|e| e.pid(self.pid))?;
        // SAFETY: waitid fills the SIGCHLD fields, or leaves the zeros.
        let (child, value) = unsafe { (info.si_pid(), info.si_status()) };
        if child == 0 {
            return Ok(None);
        }
        Ok(Some(match info.si_code {
            libc::CLD_EXITED => Status::Exited(value as u8),
            code => Status::Killed { signal: value as u8, core: code == libc::CLD_DUMPED },
        }))
    }

    /// pidfd_getfd(2): a duplicate of a descriptor of the process, closed on exec.
    ///
    /// # Errors
    /// EBADF when it has no such descriptor, EPERM when it may not be traced, ESRCH.
    pub fn get_fd(&self, number: RawFd) -> Result<OwnedFd> {
        // SAFETY: no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), number, 0) };
        let fd = check_long("pidfd_getfd", ret).map_err(|e| e.pid(self.pid))?;
        // SAFETY: the call has just made the descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> OwnedFd {
        pidfd.fd
    }
}

/// Reaps one child if it has ended; `None` while it has not.
///
/// # Errors
/// ECHILD when it is no child or has been reaped.
pub fn try_reap(pid: Pid) -> Result<Option<Status>> {
    let mut raw = 0;
    // SAFETY: `raw` lives through the call.
    let ret = unsafe { libc::waitpid(pid.get(), &raw mut raw, libc::WNOHANG) };
    let ret = check("waitpid", ret).map_err(|e: Error| e.pid(pid))?;
    Ok((ret == pid.get()).then(|| Status::from_raw(raw)))
}
