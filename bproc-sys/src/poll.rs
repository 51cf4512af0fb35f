//! Waiting for several descriptors, for programs without a runtime.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Result, check};

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the end.
    Read,
    /// The same, or room to write.
    ReadWrite,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Something to read.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
    /// The other end is gone, or an error.
    pub ended: bool,
}

impl Readiness {
    /// Reading will not wait.
    pub fn ready(self) -> bool {
        self.readable || self.ended
    }
}

/// Waits without limit until one of them is ready. `None` is skipped. After a signal handler has run, nothing may be
/// ready.
///
/// # Errors
/// ENOMEM, EINVAL.
pub fn wait<const N: usize>(fds: [(Option<BorrowedFd<'_>>, Interest); N]) -> Result<[Readiness; N]> {
    let mut polls = fds.map(|(fd, interest)| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: match interest {
            Interest::Read => libc::POLLIN,
            Interest::ReadWrite => libc::POLLIN | libc::POLLOUT,
        },
        revents: 0,
    });
    // SAFETY: N entries that live through the call.
    match check("poll", unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, -1) }) {
        Err(e) if e.errno() != libc::EINTR => Err(e),
        _ => Ok(polls.map(|p| Readiness {
            readable: p.revents & libc::POLLIN != 0,
            writable: p.revents & libc::POLLOUT != 0,
            ended: p.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0,
        })),
    }
}
