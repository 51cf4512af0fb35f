//! How long an init lives without a word from its agent: then it ends, and its space with it. Counted in beats of a
//! timer, each heard once, so that a machine that stood still for a while costs no more than one.

use crate::sys;

/// Beats a lease.
const BEATS: u32 = 8;

pub(crate) struct Lease {
    timer: Option<i32>,
    silent: u32,
}

impl Lease {
    pub(crate) const fn new() -> Lease {
        Lease { timer: None, silent: 0 }
    }

    /// Begins, or begins again: so many milliseconds from now; for ever with 0.
    pub(crate) fn renew(&mut self, ms: u32) -> sys::Result<()> {
        self.silent = 0;
        let timer = match self.timer {
            Some(timer) => timer,
            None => *self.timer.insert(sys::timer()?),
        };
        sys::set_timer(timer, u64::from(ms) * 1_000_000 / u64::from(BEATS))
    }

    /// A clone has none of its own.
    pub(crate) fn give_up(&mut self) {
        if let Some(timer) = self.timer.take() {
            sys::close(timer);
        }
    }

    /// Readable at each beat; negative for none.
    pub(crate) fn fd(&self) -> i32 {
        self.timer.unwrap_or(-1)
    }

    /// Hears a beat. True when the time is over.
    pub(crate) fn beat(&mut self) -> bool {
        let mut count = [0; 8];
        if sys::read(self.fd(), &mut count).is_ok() {
            self.silent += 1;
        }
        self.silent >= BEATS
    }
}
