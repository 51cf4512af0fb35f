//! Descriptors that tokio watches.

use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a socket or pidfd.
///
/// # Errors
/// The descriptor cannot be watched, or not once more.
#[allow(unsafe_code)]
pub fn watched<T: AsRawFd + AsFd>(io: T, interest: Interest) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: T owns its descriptor (AsFd) and moves into the AsyncFd, so that the number stays open and the same for
    // as long as it is watched.
    unsafe { AsyncFd::register_with_interest(io, interest) }.map_err(Into::into)
}

/// Sends on a local socket that is watched for reading only: a socket watched for writing too wakes its owner each time
/// when the other end has read something. Only while the socket is full it is watched, under another number.
///
/// # Errors
/// Those of `op`; WouldBlock is waited out.
pub async fn sent<T: AsFd>(io: &T, mut op: impl FnMut(&T) -> std::io::Result<()>) -> std::io::Result<()> {
    loop {
        match op(io) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        watched(io.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?.writable().await?.retain_ready();
    }
}
