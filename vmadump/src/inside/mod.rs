//! Dump and undump of the calling process by itself: no privilege, one thread.

mod dump;
mod undump;

use crate::error::{Error, Refusal};

pub use dump::dump_self;
pub use undump::{is_here, undump_self};

/// Fails for a caller with several threads, which cannot be told from outside what they are about.
///
/// # Errors
/// [`Refusal::Threads`].
pub fn one_thread() -> Result<(), Error> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) | Err(_) => Ok(()),
        Ok(n) => Err(Refusal::Threads(n).into()),
    }
}

/// Signals blocked for a while.
struct Quiet(u64);

impl Quiet {
    fn new() -> Self {
        Quiet(crate::sys::inside::block_signals())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        crate::sys::inside::set_mask(self.0);
    }
}
