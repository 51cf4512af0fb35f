//! Numbered messages over a link that may break: each is kept until the other side has it, and sent again after a
//! reconnect; the receiver drops what it has seen. Nothing is lost, nothing is done twice, order is kept.

use std::collections::VecDeque;

/// The sending side of one direction.
#[derive(Debug)]
pub struct Outbox<T> {
    next: u64,
    kept: VecDeque<(u64, T)>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox { next: 1, kept: VecDeque::new() }
    }
}

impl<T: Clone> Outbox<T> {
    /// Takes a message over; returns its number, counted from 1.
    pub fn push(&mut self, message: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.kept.push_back((number, message));
        number
    }

    /// The other side has everything up to `number`.
    pub fn acknowledged(&mut self, number: u64) {
        self.take_acknowledged(number);
    }

    /// The same, and returns what is now safe.
    pub fn take_acknowledged(&mut self, number: u64) -> Vec<T> {
        let safe = self.kept.iter().take_while(|(n, _)| *n <= number).count();
        self.kept.drain(..safe).map(|(_, message)| message).collect()
    }

    /// What must be sent again to a side that has everything up to `seen`.
    pub fn resend_after(&mut self, seen: u64) -> Vec<(u64, T)> {
        self.acknowledged(seen);
        self.kept.iter().cloned().collect()
    }

    /// Takes out those that are not to be sent again.
    pub fn withdraw(&mut self, which: impl Fn(&T) -> bool) {
        self.kept.retain(|(_, message)| !which(message));
    }

    /// Number of the oldest message kept, 0 when none is.
    pub fn oldest(&self) -> u64 {
        self.kept.front().map_or(0, |(n, _)| *n)
    }

    /// The messages kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().map(|(_, message)| message)
    }

    /// Messages kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// True when everything has been acknowledged.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Forgets everything and counts from 1 again: the other side began a new life.
    pub fn reset(&mut self) {
        *self = Outbox::default();
    }
}

/// The receiving side of one direction.
#[derive(Debug, Default)]
pub struct Inbox {
    seen: u64,
}

impl Inbox {
    /// True when the message is new; false for a repetition, which is to be dropped.
    pub fn accept(&mut self, number: u64) -> bool {
        let new = number > self.seen;
        if new {
            self.seen = number;
        }
        new
    }

    /// Newest number accepted, 0 at the start.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_link_loses_nothing_and_doubles_nothing() {
        let mut out = Outbox::default();
        let mut inbox = Inbox::default();
        let mut got = Vec::new();
        for m in 0..10 {
            let n = out.push(m);
            // Every third packet is lost with its connection; then everything is sent again.
            if m % 3 != 0 {
                continue;
            }
            for (n, m) in out.resend_after(inbox.seen()) {
                if inbox.accept(n) {
                    got.push(m);
                }
            }
            assert!(!inbox.accept(n));
        }
        assert_eq!(got, (0..10).collect::<Vec<_>>());
        out.acknowledged(inbox.seen());
        assert!(out.is_empty());
    }
}
