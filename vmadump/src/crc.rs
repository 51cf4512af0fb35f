//! Checksums: CRC-32C for sections, and a four-lane form of it for pages, which
//! runs at memory speed and is short enough for the batch program in a target.

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn feed(mut crc: u32, bytes: &[u8]) -> u32 {
    for b in bytes {
        crc = (crc >> 8) ^ TABLE[((crc ^ u32::from(*b)) & 0xff) as usize];
    }
    crc
}

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    if let Some(crc) = crate::sys::cpu::crc32c(bytes) {
        return crc;
    }
    !feed(!0, bytes)
}

/// Checksum of pages: word i goes to lane i mod 4, then the lanes' CRCs are summed up.
/// `bytes` must be a multiple of 32 long; what is over is not covered.
pub fn pages(bytes: &[u8]) -> u32 {
    PageSum::default().update(bytes).finish()
}

/// [`pages`] in steps.
#[derive(Clone, Copy, Debug)]
pub struct PageSum([u64; 4]);

impl Default for PageSum {
    fn default() -> Self {
        PageSum([0xffff_ffff; 4])
    }
}

impl PageSum {
    /// Takes more pages in.
    #[must_use]
    pub fn update(mut self, bytes: &[u8]) -> Self {
        if crate::sys::cpu::lanes(&mut self.0, bytes) {
            return self;
        }
        for block in bytes.chunks_exact(32) {
            for (lane, word) in self.0.iter_mut().zip(block.chunks_exact(8)) {
                *lane = u64::from(feed(*lane as u32, word));
            }
        }
        self
    }

    /// Goes on from lane values that someone else computed.
    pub fn from_lanes(lanes: [u64; 4]) -> Self {
        PageSum(lanes)
    }

    /// The checksum.
    pub fn finish(self) -> u32 {
        !self.0.iter().fold(!0, |crc, lane| feed(crc, &lane.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_value_and_both_ways_agree() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(!feed(!0, b"123456789"), 0xe306_9283);
        let data: Vec<u8> = (0..8192u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let mut slow = [0xffff_ffffu64; 4];
        for block in data.chunks_exact(32) {
            for (lane, word) in slow.iter_mut().zip(block.chunks_exact(8)) {
                *lane = u64::from(feed(*lane as u32, word));
            }
        }
        assert_eq!(PageSum::from_lanes(slow).finish(), pages(&data));
        assert_eq!(PageSum::default().update(&data[..4096]).update(&data[4096..]).finish(), pages(&data));
    }
}
