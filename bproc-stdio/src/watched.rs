//! Descriptors in the hands of the runtime's epoll.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// Sends on a local socket that is watched for reading only: one watched for writing too wakes its owner each time when
/// the other end has read something. Only while the socket is full it is watched, under another number.
pub(crate) async fn sent(fd: &OwnedFd, mut send: impl FnMut(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    loop {
        match send(fd) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        watch(fd.try_clone()?, Interest::WRITABLE)?.writable().await?.retain_ready();
    }
}

/// Puts `fd` under the runtime's watch; comes back with it when epoll does not take it.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor as long as it lives, and it lives in the AsyncFd.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
}
