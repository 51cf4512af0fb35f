//! One input, many readers, each at its own pace: the slowest one throttles the source. Pure.

/// Bytes that are kept for the slowest reader at most.
const CAPACITY: usize = 256 << 10;

/// What was read and not yet taken by everybody.
#[derive(Debug)]
pub(crate) struct Feed {
    kept: Vec<u8>,
    /// Where `kept` begins in the whole stream.
    base: u64,
    /// How far each reader is; `None`: it takes no more.
    readers: Vec<Option<u64>>,
    ended: bool,
}

impl Feed {
    /// A feed for so many readers.
    pub(crate) fn new(readers: usize) -> Feed {
        Feed { kept: Vec::new(), base: 0, readers: vec![Some(0); readers], ended: false }
    }

    /// More input is wanted.
    pub(crate) fn wants(&self) -> bool {
        !self.ended && self.kept.len() < CAPACITY && self.readers.iter().any(Option::is_some)
    }

    /// Input came.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.kept.extend_from_slice(data);
    }

    /// The input has ended.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// What this reader has not taken yet.
    pub(crate) fn pending(&self, reader: usize) -> &[u8] {
        match self.readers[reader] {
            Some(at) => &self.kept[(at - self.base) as usize..],
            None => &[],
        }
    }

    /// The reader has taken `n` bytes of what was pending.
    pub(crate) fn take(&mut self, reader: usize, n: usize) {
        let most = self.pending(reader).len();
        if let Some(at) = &mut self.readers[reader] {
            *at += n.min(most) as u64;
        }
    }

    /// The reader takes no more.
    pub(crate) fn drop_reader(&mut self, reader: usize) {
        self.readers[reader] = None;
    }

    /// The input has ended and the reader has taken all.
    pub(crate) fn is_done(&self, reader: usize) -> bool {
        self.ended && self.pending(reader).is_empty()
    }

    /// Forgets what everybody has taken.
    pub(crate) fn trim(&mut self) {
        let end = self.base + self.kept.len() as u64;
        let least = self.readers.iter().flatten().min().copied().unwrap_or(end);
        self.kept.drain(..(least - self.base) as usize);
        self.base = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_everything_at_his_own_pace() {
        let input: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let mut feed = Feed::new(3);
        let mut got = vec![Vec::new(); 3];
        let mut rest = input.as_slice();
        for turn in 0.. {
            if feed.wants() && !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(997));
                feed.push(now);
                rest = later;
            } else if rest.is_empty() {
                feed.end();
            }
            for (reader, got) in got.iter_mut().enumerate() {
                let pending = feed.pending(reader);
                let n = pending.len().min((turn * (reader + 3)) % 811);
                got.extend_from_slice(&pending[..n]);
                feed.take(reader, n);
            }
            feed.trim();
            if (0..3).all(|reader| feed.is_done(reader)) {
                break;
            }
        }
        assert!(got.iter().all(|got| *got == input));
        assert!(feed.kept.is_empty());
    }

    #[test]
    fn the_slowest_throttles_until_it_is_gone() {
        let mut feed = Feed::new(2);
        feed.push(&vec![0; CAPACITY]);
        feed.take(0, CAPACITY);
        feed.trim();
        assert!(!feed.wants());
        feed.drop_reader(1);
        feed.trim();
        assert!(feed.wants() && feed.kept.is_empty());
        feed.drop_reader(0);
        assert!(!feed.wants());
    }
}
