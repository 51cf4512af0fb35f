//! A terminal that its processes have closed, and may open again.

use tokio::time::{Duration, Instant};

/// A terminal that nobody has open is looked at from time to time: no event tells that its session is over.
#[derive(Default)]
pub(crate) struct Closed {
    until: Option<Instant>,
    pause: Duration,
}

impl Closed {
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(250);

    /// It is not to be read now.
    pub(crate) fn is_resting(&self) -> bool {
        self.until.is_some()
    }

    /// Nobody has it open.
    pub(crate) fn rest(&mut self) {
        self.pause = (self.pause * 2).clamp(Closed::FIRST, Closed::LONGEST);
        self.until = Some(Instant::now() + self.pause);
    }

    /// Comes back when it is to be read again.
    pub(crate) async fn rested(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
        }
        self.until = None;
    }
}
