//! Wait status, as `wait4(2)` encodes it.

/// How a process ended or paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Ended by `_exit` with this code, 0 to 255.
    Exited(u8),
    /// Ended by a signal; `core` tells whether an image was dumped.
    Killed {
        /// The signal.
        signal: u8,
        /// A core was dumped.
        core: bool,
    },
    /// Stopped by this signal.
    Stopped(u8),
    /// Goes on after a stop.
    Continued,
}

impl Status {
    /// Reads a raw status.
    pub const fn from_raw(raw: i32) -> Status {
        let low = (raw & 0x7f) as u8;
        if raw == 0xffff {
            Status::Continued
        } else if raw & 0xff == 0x7f {
            Status::Stopped(((raw >> 8) & 0xff) as u8)
        } else if low == 0 {
            Status::Exited(((raw >> 8) & 0xff) as u8)
        } else {
            Status::Killed { signal: low, core: raw & 0x80 != 0 }
        }
    }

    /// The raw status.
    pub const fn to_raw(self) -> i32 {
        match self {
            Status::Exited(code) => (code as i32) << 8,
            Status::Killed { signal, core } => signal as i32 | if core { 0x80 } else { 0 },
            Status::Stopped(signal) => 0x7f | (signal as i32) << 8,
            Status::Continued => 0xffff,
        }
    }

    /// True when the process is over.
    pub const fn is_end(self) -> bool {
        matches!(self, Status::Exited(_) | Status::Killed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn there_and_back() {
        for raw in [0, 7 << 8, 255 << 8, 9, 11 | 0x80, 0x7f | 19 << 8, 0xffff] {
            assert_eq!(Status::from_raw(raw).to_raw(), raw);
        }
        assert_eq!(Status::from_raw(0x8b), Status::Killed { signal: 11, core: true });
    }
}
