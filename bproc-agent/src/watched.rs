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

/// The same for reading and writing.
///
/// # Errors
/// As [`watched`].
pub fn both_ways<T: AsRawFd + AsFd>(io: T) -> std::io::Result<AsyncFd<T>> {
    watched(io, Interest::READABLE | Interest::WRITABLE)
}
