//! Descriptors in the hands of the runtime's epoll.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// Puts `fd` under the runtime's watch; comes back with it when epoll does not take it.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor as long as it lives, and it lives in the AsyncFd.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
}
