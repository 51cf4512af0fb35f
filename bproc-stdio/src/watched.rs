//! Descriptors in the hands of the runtime's epoll.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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

/// Becomes readable when the process is gone.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
