//! C structures for the kernel to fill.

/// A structure of integers and pointers for which all bytes zero is a value.
///
/// # Safety
/// All bytes zero must be a valid value of the type.
pub(crate) unsafe trait Zeroable: Sized {
    /// All bytes zero.
    fn zeroed() -> Self {
        // SAFETY: the trait's own condition.
        unsafe { std::mem::zeroed() }
    }
}

macro_rules! zeroable {
    ($($ty:ty),* $(,)?) => {
        $(
            // SAFETY: integers and raw pointers only.
            unsafe impl Zeroable for $ty {}
        )*
    };
}

zeroable!(
    libc::stat,
    libc::msghdr,
    libc::sockaddr_un,
    libc::ucred,
    libc::siginfo_t,
    libc::sigset_t,
    libc::sigaction,
    libc::rlimit,
    libc::rlimit64,
    libc::timespec,
    libc::statvfs,
    libc::signalfd_siginfo,
    libc::rusage,
);
