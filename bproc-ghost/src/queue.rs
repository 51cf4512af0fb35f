//! Signals that were taken from the kernel and are not yet acknowledged, in order.
//!
//! A ring of fixed size. When it is full the rest waits in the kernel's own queue,
//! which loses nothing.

use crate::abi::SigInfo;

/// Signals that may be under way unacknowledged.
const ROOM: usize = 64;

pub(crate) struct Queue {
    ring: [SigInfo; ROOM],
    /// Number of the newest signal taken; the first is 1.
    newest: u32,
    /// How many of the newest are not acknowledged.
    waiting: u32,
}

impl Queue {
    pub(crate) const fn new() -> Queue {
        Queue { ring: [SigInfo::ZERO; ROOM], newest: 0, waiting: 0 }
    }

    /// The first is the one after `newest`.
    pub(crate) fn count_from(&mut self, newest: u32) {
        self.newest = newest;
    }

    pub(crate) fn newest(&self) -> u32 {
        self.newest
    }

    pub(crate) fn has_room(&self) -> bool {
        (self.waiting as usize) < ROOM
    }

    /// Numbers a signal and keeps it. Call only when there is room.
    pub(crate) fn push(&mut self, info: &SigInfo) -> u32 {
        self.newest = self.newest.wrapping_add(1);
        self.ring[self.newest as usize % ROOM] = *info;
        self.waiting += 1;
        self.newest
    }

    /// Forgets all signals up to this number. Numbers of signals not sent yet are taken for the newest.
    pub(crate) fn acknowledge(&mut self, number: u32) {
        let left = self.newest.wrapping_sub(number);
        if left < self.waiting {
            self.waiting = left;
        } else if left > u32::MAX / 2 {
            self.waiting = 0;
        }
    }

    /// What is not acknowledged, oldest first, with numbers.
    pub(crate) fn unacknowledged(&self) -> impl Iterator<Item = (u32, &SigInfo)> {
        (0..self.waiting).rev().map(|back| {
            let number = self.newest.wrapping_sub(back);
            (number, &self.ring[number as usize % ROOM])
        })
    }
}
