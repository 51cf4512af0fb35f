//! The clocks of a life of the node: CLOCK_MONOTONIC and CLOCK_BOOTTIME are the master's, so that they neither jump nor go
//! back in a process that moves. A time namespace gives them, and gets its offsets before its first process: they are
//! asked for before each hello, and a life in which nothing has happened yet is made anew with them.

use super::Actor;
use bproc_proto::link::ClocksRequest;
use bproc_proto::link::link_client::LinkClient;
use bproc_sys::space::TimeOffsets;
use bproc_sys::time::{boottime_ns, monotonic_ns};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// For so long the master is asked, unless an answer leaves little doubt: the quickest tells best.
const ASKING: Duration = Duration::from_millis(500);
/// At least so many questions.
const QUESTIONS: usize = 3;
/// Little doubt, nanoseconds.
const CERTAIN: i64 = 500_000;
/// Offsets that differ by less are left as they are, nanoseconds: crystals are no better for long.
const TOLERANCE: i64 = 5_000_000;

/// The master's clocks against this machine's.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// What to add to this machine's.
    offsets: TimeOffsets,
    /// By how much that may be wrong, nanoseconds.
    doubt: i64,
}

/// Asks the master. None: it does not tell.
pub async fn measure(client: &mut LinkClient<Channel>) -> Option<Measured> {
    let mut best: Option<Measured> = None;
    let end = Instant::now() + ASKING;
    for asked in 0.. {
        let enough = best.is_some_and(|best| best.doubt < CERTAIN) || Instant::now() > end;
        if asked >= QUESTIONS && enough {
            break;
        }
        let (monotonic, boottime) = (monotonic_ns() as i64, boottime_ns() as i64);
        let told = match client.clocks(ClocksRequest {}).await {
            Ok(told) => told.into_inner(),
            Err(error) => {
                tracing::warn!(%error, "the master does not tell its clocks");
                return best;
            }
        };
        // As if the answer had been given half way.
        let half = (monotonic_ns() as i64 - monotonic) / 2;
        if !told.boot_id.is_empty() && told.boot_id == crate::kernel::boot_id() {
            return Some(Measured { offsets: TimeOffsets { monotonic: 0, boottime: 0 }, doubt: 0 });
        }
        if best.is_none_or(|best| half < best.doubt) {
            let offsets = TimeOffsets {
                monotonic: told.monotonic_ns.saturating_sub(monotonic + half),
                boottime: told.boottime_ns.saturating_sub(boottime + half),
            };
            best = Some(Measured { offsets, doubt: half });
        }
    }
    best
}

impl Measured {
    /// By how much clocks with these offsets are wrong for certain, nanoseconds.
    fn error_of(&self, offsets: TimeOffsets) -> i64 {
        let apart = |a: i64, b: i64| a.saturating_sub(b).saturating_abs();
        let worst =
            apart(offsets.monotonic, self.offsets.monotonic).max(apart(offsets.boottime, self.offsets.boottime));
        // This machine's own clocks were nobody's choice.
        let own = (offsets.monotonic, offsets.boottime) == (0, 0);
        if own { worst } else { worst.saturating_sub(self.doubt) }
    }
}

impl Actor {
    /// Has this life show the master's clocks, if nothing has happened in it.
    pub(super) async fn keep_time(&mut self, measured: Measured) {
        let wrong = measured.error_of(self.space.record.offsets());
        if wrong < TOLERANCE {
            return;
        }
        let fresh = self.table.is_empty()
            && self.halves.is_empty()
            && self.rooms.is_empty()
            && self.under_way.is_empty()
            && self.events.oldest() == 0
            && self.dead_leaders.is_empty();
        if fresh {
            tracing::info!(offsets = ?measured.offsets, doubt_ns = measured.doubt, "beginning anew with the master's clocks");
            self.space.record.set_offsets(measured.offsets);
            self.begin_anew().await;
        } else {
            let wrong_ms = wrong / 1_000_000;
            tracing::warn!(
                wrong_ms,
                "the clocks of this node's processes differ from the master's; they will as long as it has any"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Measured;
    use bproc_sys::space::TimeOffsets;

    #[test]
    fn doubt_is_no_error() {
        let offsets = |monotonic, boottime| TimeOffsets { monotonic, boottime };
        let measured = Measured { offsets: offsets(1_000, -5_000), doubt: 300 };
        assert_eq!(measured.error_of(offsets(1_200, -5_000)), -100);
        assert_eq!(measured.error_of(offsets(1_000, -6_000)), 700);
        assert_eq!(measured.error_of(offsets(0, 0)), 5_000);
        assert_eq!(measured.error_of(offsets(i64::MIN, 0)), i64::MAX - 300);
    }
}
