//! Which signals were sent into the space, in memory that init shares with all skeletons: an agent that takes over from
//! one that was killed does not know which of its last commands were carried out, and says so; what stands here is not
//! sent a second time.

use crate::sys;
use core::sync::atomic::{AtomicU64, Ordering};

/// Far more than can be under way: each ghost keeps few that are not acknowledged.
const ROOM: u64 = 4096;
const BYTES: usize = (1 + 2 * ROOM as usize) * 8;

/// A ring: a count of all notes ever made, then pairs of receiver and key.
pub(crate) struct Delivered(Option<&'static [AtomicU64]>);

impl Delivered {
    pub(crate) const fn new() -> Delivered {
        Delivered(None)
    }

    /// For init. Its clones have the same memory. Without memory nothing is noted, which only a crash of the agent
    /// would show.
    pub(crate) fn share(&mut self) {
        self.0 = sys::map_shared(BYTES).ok();
    }

    /// Notes that the signal `key` was sent to `receiver`.
    pub(crate) fn note(&self, receiver: u64, key: u64) {
        let Some(words) = self.0 else { return };
        let Some((count, ring)) = words.split_first() else { return };
        let at = 2 * (count.fetch_add(1, Ordering::Relaxed) % ROOM) as usize;
        if let Some([first, second]) = ring.get(at..at + 2) {
            first.store(receiver, Ordering::Relaxed);
            second.store(key, Ordering::Release);
        }
    }

    /// True when that is noted.
    pub(crate) fn has(&self, receiver: u64, key: u64) -> bool {
        let ring = self.0.and_then(|words| words.get(1..)).unwrap_or(&[]);
        ring.as_chunks::<2>()
            .0
            .iter()
            .any(|[first, second]| second.load(Ordering::Acquire) == key && first.load(Ordering::Relaxed) == receiver)
    }
}
