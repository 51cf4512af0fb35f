//! What the eBPF program `landlock` writes of each thread.

/// Bytes from the beginning of what the security modules keep with a thread's credentials. All that there are take less.
pub const BYTES: usize = 192;
