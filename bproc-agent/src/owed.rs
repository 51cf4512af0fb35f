//! Acknowledgements that wait for company: each by itself would wake the other side's agent, which has nothing to do but
//! to forget what it kept.

use std::time::Duration;
use tokio::time::Instant;

/// Longest time for which an acknowledgement is put off.
const PAUSE: Duration = Duration::from_millis(5);
/// Messages after which it is sent at once: ghosts and outboxes keep what is not acknowledged.
const MOST: u32 = 32;

/// What one side of a link owes the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owed {
    count: u32,
    since: Option<Instant>,
}

impl Owed {
    /// One more message is to be acknowledged; true when all are, now.
    pub fn one_more(&mut self) -> bool {
        self.count += 1;
        self.since.get_or_insert_with(Instant::now);
        self.count >= MOST
    }

    /// Whether anything is owed.
    pub fn any(&self) -> bool {
        self.since.is_some()
    }

    /// When it is to be settled at the latest; some time that is over when nothing is owed.
    pub fn due(&self) -> Instant {
        self.since.map_or_else(Instant::now, |since| since + PAUSE)
    }

    /// True when something was owed: the acknowledgement goes out now.
    pub fn settle(&mut self) -> bool {
        let any = self.any();
        *self = Owed::default();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settles_after_some_or_in_time() {
        let mut owed = Owed::default();
        assert!(!owed.any() && !owed.settle());
        assert!((1..MOST).all(|_| !owed.one_more()));
        assert!(owed.any() && owed.due() <= Instant::now() + PAUSE);
        assert!(owed.one_more());
        assert!(owed.settle() && !owed.any());
    }
}
