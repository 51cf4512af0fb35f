//! Calls of several threads of a process: most run beside each other, those that take the process elsewhere are alone.
//!
//! A move takes all descriptors but the standard streams from the process, those of calls that other threads are in, too:
//! such a call would fail in the middle, and close numbers that belong to somebody else by then. So a move waits until
//! the others have ended, and calls that come meanwhile wait until it has ended, wherever that is.
//!
//! One word of the process counts. It says whose it is: in a process that was forked while others were in calls, nobody is.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libc::c_int;

use crate::sys;

/// How long one that is to be alone waits for the end of others.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody is alone, or wants to be. Below it: how many are in calls beside each other.
const ALONE: u32 = 1 << 31;

/// Upper half: the process; lower half: who is in calls.
static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The thread is in a call.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A thread is in a call as long as this is there.
#[derive(Debug)]
pub(crate) struct Call {
    process: u32,
    /// What it takes from the word at its end; 0: it is within another one of its thread.
    share: u32,
}

/// Who is in calls in this process, by the word.
fn inside(word: u64, process: u32) -> u32 {
    if (word >> 32) as u32 == process { word as u32 } else { 0 }
}

/// Changes the word if it is still this one.
fn change(process: u32, word: u64, to: u32) -> bool {
    let to = u64::from(process) << 32 | u64::from(to);
    CALLS.compare_exchange(word, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

impl Call {
    /// Beside others; waits for one that is alone.
    pub(crate) fn beside() -> Call {
        let process = std::process::id();
        if INSIDE.get() {
            return Call { process, share: 0 };
        }
        loop {
            let word = CALLS.load(Ordering::Acquire);
            let now = inside(word, process);
            if now & ALONE != 0 {
                sys::wait_for_change(&CALLS, now, None);
            } else if change(process, word, now + 1) {
                return Call::begin(process, 1);
            }
        }
    }

    /// When all others have ended.
    ///
    /// # Errors
    /// EBUSY: some have not within 5 s, or the thread itself is in a call, which a handler of a signal has interrupted.
    pub(crate) fn alone() -> Result<Call, c_int> {
        let process = std::process::id();
        if INSIDE.get() {
            return Err(libc::EBUSY);
        }
        loop {
            let word = CALLS.load(Ordering::Acquire);
            let now = inside(word, process);
            if now & ALONE != 0 {
                sys::wait_for_change(&CALLS, now, None);
            } else if change(process, word, now | ALONE) {
                break;
            }
        }
        let call = Call::begin(process, ALONE);
        let end = Instant::now() + PATIENCE;
        loop {
            match inside(CALLS.load(Ordering::Acquire), process) {
                ALONE => return Ok(call),
                now => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(libc::EBUSY);
                    }
                    sys::wait_for_change(&CALLS, now, Some(left));
                }
            }
        }
    }

    fn begin(process: u32, share: u32) -> Call {
        INSIDE.set(true);
        Call { process, share }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.share == 0 {
            return;
        }
        INSIDE.set(false);
        let process = std::process::id();
        if self.process != process {
            // It was forked in the call.
            return;
        }
        loop {
            let word = CALLS.load(Ordering::Acquire);
            let left = inside(word, process).saturating_sub(self.share);
            if change(process, word, left) {
                if self.share == ALONE || left == ALONE {
                    sys::tell_of_change(&CALLS);
                }
                return;
            }
        }
    }
}
