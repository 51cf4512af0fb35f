//! How a ghost's lines in `/proc` are rewritten, so that they tell of its process. Plain bytes in, plain bytes out: the eBPF
//! programs run [`Work::step`] once for each byte, tests run it natively.
//!
//! The reader has been told how many bytes there are, so a text keeps its length. In `stat` numbers that tell nothing of
//! the process anyway (faults, limit, addresses, old signal masks: the ghost's) become 0 and give room. In `status` each
//! value keeps its column.

/// Bytes of a page, in which `stat` counts resident memory.
const PAGE: u64 = 4096;
/// Bytes of a text that are looked at.
pub const TEXT: usize = 1024;
/// Digits of a number with what follows.
const DIGITS: usize = 16;
/// A size in `status`: eight columns or more, and " kB".
const SIZE: usize = 11;
/// The state in `status`, as long as "S (sleeping)".
const WORDS: usize = 12;
/// What a step may write beyond its place.
const SLACK: usize = 16;
/// Where in `stat` the name has ended at the latest: a number, and 15 bytes of which each may be written as four.
const HEAD: u32 = 96;
/// Shorter than any text that is rewritten.
const SHORTEST: u32 = 64;

/// What is shown of a process that runs elsewhere, in the letters of the texts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    numbers: [[u8; DIGITS]; 5],
    lengths: [u8; 5],
    state: u8,
    words: [u8; WORDS],
    sizes: [[u8; SIZE]; 2],
}

/// Bytes of a [`Shown`].
pub const SHOWN: usize = size_of::<Shown>();
const _: () = assert!(SHOWN == 120);

/// Numbers of a process, as its node told them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Letter of its state.
    pub state: u8,
    /// User time, clock ticks.
    pub utime: u64,
    /// System time, clock ticks.
    pub stime: u64,
    /// Threads.
    pub threads: u64,
    /// Virtual memory, bytes.
    pub vsize: u64,
    /// Resident memory, bytes.
    pub rss: u64,
}

/// The decimal digits of a number, at most 15, then zeros; and how many they are.
fn digits(number: u64) -> ([u8; DIGITS], u8) {
    let mut rest = number.min(10u64.pow(15) - 1);
    let mut reversed = [b'0'; DIGITS];
    let mut length = 0;
    while length == 0 || rest > 0 {
        reversed[length] = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    let mut out = [b'0'; DIGITS];
    for (to, from) in out.iter_mut().zip(reversed.iter().take(length).rev()) {
        *to = *from;
    }
    (out, length as u8)
}

/// KiB as `status` has them: right-aligned in eight columns with the unit, which gives way to more digits.
fn size(kib: u64) -> [u8; SIZE] {
    let (text, length) = digits(kib.min(10u64.pow(SIZE as u32) - 1));
    let length = usize::from(length);
    let mut out = [b' '; SIZE];
    let start = 8usize.saturating_sub(length);
    out[start..start + length].copy_from_slice(&text[..length]);
    if length <= 8 {
        out[8..].copy_from_slice(b" kB");
    }
    out
}

impl Shown {
    /// From the numbers of a process.
    pub fn new(numbers: &Numbers) -> Shown {
        let all = [numbers.utime, numbers.stime, numbers.threads, numbers.vsize, numbers.rss / PAGE].map(digits);
        let words = match numbers.state {
            b'R' => b"R (running) ",
            b'D' => b"D (disk)    ",
            // A ghost stops and goes on with its process: it knows before the node tells.
            _ => b"S (sleeping)",
        };
        Shown {
            numbers: all.map(|(text, _)| text),
            lengths: all.map(|(_, length)| length),
            state: words[0],
            words: *words,
            sizes: [numbers.vsize, numbers.rss].map(|bytes| size(bytes / 1024)),
        }
    }

    /// As the eBPF programs find it.
    pub fn bytes(&self) -> [u8; SHOWN] {
        let mut out = [0; SHOWN];
        let parts = [self.numbers.as_flattened(), &self.lengths, &[self.state], &self.words, self.sizes.as_flattened()];
        for (to, from) in out.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        out
    }
}

/// Which text.
pub mod file {
    /// `/proc/PID/stat`.
    pub const STAT: u32 = 1;
    /// `/proc/PID/status`.
    pub const STATUS: u32 = 2;
}

/// Names of lines in `status`, the last eight bytes of each.
const fn name(text: &[u8]) -> u64 {
    let mut name = 0;
    let mut at = 0;
    while at < text.len() {
        name = name << 8 | text[at] as u64;
        at += 1;
    }
    name
}
const STATE: u64 = name(b"State");
const SIZES: [(u64, usize); 4] = [(name(b"VmPeak"), 0), (name(b"VmSize"), 0), (name(b"VmHWM"), 1), (name(b"VmRSS"), 1)];
const LAST: u64 = name(b"VmRSS");

/// What becomes of a field of `stat`, counted as proc(5) does.
enum Field {
    State,
    Number(usize),
    Zero,
    /// Zeros to the length that the text had.
    Fill,
    Kept,
}

#[inline(always)]
fn field(number: u32) -> Field {
    match number {
        3 => Field::State,
        14 => Field::Number(0),
        15 => Field::Number(1),
        20 => Field::Number(2),
        23 => Field::Number(3),
        24 => Field::Number(4),
        10 | 12 | 25..=34 | 45..=50 => Field::Zero,
        51 => Field::Fill,
        _ => Field::Kept,
    }
}

/// What the kernel says of a stopped ghost, which only the keeper traces, and what its process would be called; as long.
const TRACED: &[u8; 16] = b"t (tracing stop)";
const STOPPED: &[u8; 16] = b"T (stopped)     ";

/// A text while it is rewritten. It lives in a map, so that the kernel's verifier takes every number in it for unknown: it
/// follows a step once, not once for each byte.
#[repr(C)]
pub struct Work {
    text: [u8; TEXT + SLACK],
    out: [u8; TEXT + SLACK],
    name: u64,
    length: u32,
    pos: u32,
    put: u32,
    field: u32,
    close: u32,
    done: u32,
}

/// A place in a text, in bounds for whoever checks.
#[inline(always)]
fn at(place: u32) -> usize {
    place as usize & (TEXT - 1)
}

#[inline(always)]
fn copy<const N: usize>(to: &mut [u8; TEXT + SLACK], place: u32, from: &[u8; N]) {
    let place = at(place);
    for (offset, byte) in from.iter().enumerate() {
        to[place + offset] = *byte;
    }
}

impl Work {
    /// For tests; the programs have theirs in a map.
    pub const EMPTY: Work = Work {
        text: [0; TEXT + SLACK],
        out: [0; TEXT + SLACK],
        name: 0,
        length: 0,
        pos: 0,
        put: 0,
        field: 0,
        close: 0,
        done: 0,
    };

    /// Begins with a text of so many bytes, which are to be put into what is returned; `None` when they are too few or, of a
    /// text that is needed to its end, too many.
    #[inline(always)]
    pub fn begin(&mut self, which: u32, length: u64) -> Option<&mut [u8]> {
        let short = length < SHORTEST as u64;
        if short || (which == file::STAT && length > TEXT as u64) {
            return None;
        }
        let length = if length > TEXT as u64 { TEXT as u64 } else { length };
        self.length = length as u32;
        (self.name, self.pos, self.put, self.field, self.close, self.done) = (0, 0, 0, 0, 0, 0);
        Some(&mut self.text[..length as usize])
    }

    /// One step of as many as there are bytes, and [`Work::MORE`]. True when no more are needed.
    #[inline(always)]
    pub fn step(&mut self, which: u32, shown: &Shown) -> bool {
        if self.pos >= self.length {
            return true;
        }
        if which == file::STAT { self.step_stat(shown) } else { self.step_status(shown) }
    }

    /// Steps beside one for each byte, at most.
    pub const MORE: u32 = HEAD;

    /// What is to be shown instead of the text: as many bytes. `None`: the text as it is.
    #[inline(always)]
    pub fn end(&self, which: u32) -> Option<&[u8]> {
        if self.done == 0 {
            return None;
        }
        let text = if which == file::STAT { &self.out } else { &self.text };
        // As it is already, but the verifier does not know; and it does not see through a comparison with both ends at once.
        let length = (self.length as usize).max(SHORTEST as usize);
        if length > TEXT { None } else { Some(&text[..length]) }
    }

    #[inline(always)]
    fn step_stat(&mut self, shown: &Shown) -> bool {
        let c = self.text[at(self.pos)];
        if self.field == 0 {
            // The name may hold anything: it ends at the last parenthesis.
            self.out[at(self.pos)] = c;
            self.pos += 1;
            if c == b')' {
                self.close = self.pos;
            }
            if self.pos == HEAD || self.pos == self.length {
                (self.field, self.pos, self.put) = (2, self.close, self.close);
                return self.close == 0;
            }
            return false;
        }
        if self.pos >= self.put {
            // What is not written to is filled.
            self.out[at(self.pos)] = b'0';
        }
        if c == b' ' || c == b'\n' {
            if matches!(field(self.field), Field::Fill) {
                if self.put > self.pos {
                    return true;
                }
                self.put = self.pos;
            }
            self.out[at(self.put)] = c;
            self.put += 1;
            self.pos += 1;
            self.field += 1;
            if c == b'\n' {
                // Nothing behind it, and all fields that are known.
                self.done = u32::from(self.pos == self.length && self.put == self.length && self.field > 52);
                return true;
            }
            match field(self.field) {
                Field::Number(index) => {
                    copy(&mut self.out, self.put, &shown.numbers[index]);
                    self.put += u32::from(shown.lengths[index]);
                }
                Field::Zero | Field::Fill => {
                    self.out[at(self.put)] = b'0';
                    self.put += 1;
                }
                Field::State | Field::Kept => {}
            }
            return false;
        }
        match field(self.field) {
            Field::State if matches!(c, b'Z' | b'X') => return true,
            Field::State => {
                // A ghost stops with its process, and is stopped here and now.
                self.out[at(self.put)] = if matches!(c, b'T' | b't') { b'T' } else { shown.state };
                self.put += 1;
            }
            Field::Kept => {
                self.out[at(self.put)] = c;
                self.put += 1;
            }
            Field::Number(_) | Field::Zero | Field::Fill => {}
        }
        self.pos += 1;
        false
    }

    #[inline(always)]
    fn step_status(&mut self, shown: &Shown) -> bool {
        let c = self.text[at(self.pos)];
        // Behind the colon and a tabulator.
        let value = self.pos + 2;
        self.pos += 1;
        if c == b'\n' {
            self.name = 0;
            return false;
        }
        if c != b':' {
            self.name = self.name << 8 | u64::from(c);
            return false;
        }
        if value + WORDS as u32 >= self.length {
            return true;
        }
        if self.name == STATE {
            let (letter, end) = (self.text[at(value)], value + TRACED.len() as u32);
            if letter == b'S' && self.text[at(value + WORDS as u32)] == b'\n' {
                copy(&mut self.text, value, &shown.words);
            } else if letter == b't' && end < self.length && self.text[at(end)] == b'\n' {
                copy(&mut self.text, value, STOPPED);
            } else if matches!(letter, b'Z' | b'X') {
                return true;
            }
            self.done = 1;
        }
        for (name, index) in SIZES {
            if self.name == name && self.text[at(value + SIZE as u32)] == b'\n' {
                copy(&mut self.text, value, &shown.sizes[index]);
            }
        }
        self.name == LAST
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    const BUSY: Numbers =
        Numbers { state: b'R', utime: 1234, stime: 56, threads: 17, vsize: 9_876_543_488, rss: 123_456 * PAGE };
    /// A ghost's, to its own user.
    const GHOST: &str = "860308 (a) b (c)) S 860307 860308 860300 34816 860308 4194560 129 0 3 0 0 1 0 0 20 0 1 0 8221572 \
1085440 64 18446744073709551615 4194304 4231112 140727091771568 0 0 0 0 2147483647 0 0 1 0 0 17 0 0 0 0 0 0 4240000 4241000 \
38207488 140727091776379 140727091776394 140727091776394 140727091777514 9\n";
    /// To others.
    const OTHERS: &str = "7 (x) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 8221572 1085440 64 18446744073709551615 1 1 0 \
0 0 0 2147483647 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
    const STATUS: &str = "Name:\tState:\\nx\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nVmPeak:\t    1060 kB\nVmSize:\t    1060 kB\n\
VmLck:\t       0 kB\nVmHWM:\t     256 kB\nVmRSS:\t     256 kB\nRssAnon:\t      16 kB\nThreads:\t1\n";

    fn rewrite(which: u32, text: &str, numbers: &Numbers) -> Option<String> {
        let mut work = Work::EMPTY;
        let length = work.begin(which, text.len() as u64)?;
        length.copy_from_slice(&text.as_bytes()[..length.len()]);
        let shown = Shown::new(numbers);
        for _ in 0..work.length + Work::MORE {
            if work.step(which, &shown) {
                break;
            }
        }
        work.end(which).map(|out| String::from_utf8(out.to_vec()).expect("text"))
    }

    fn fields(text: &str) -> Vec<&str> {
        let (_, rest) = text.rsplit_once(") ").expect("name");
        rest.trim_end_matches('\n').split(' ').collect()
    }

    #[test]
    fn stat_has_the_numbers_of_the_process_and_the_length_that_it_had() {
        for text in [GHOST, OTHERS] {
            let out = rewrite(file::STAT, text, &BUSY).expect("rewritten");
            assert_eq!(out.len(), text.len());
            assert!(out.ends_with('\n'));
            let (before, after) = (fields(text), fields(&out));
            assert_eq!(after.len(), before.len());
            assert!(out.starts_with(text.rsplit_once(") ").expect("name").0));
            for (index, (old, new)) in before.iter().zip(&after).enumerate() {
                match index + 3 {
                    3 => assert_eq!(*new, "R"),
                    14 => assert_eq!(*new, "1234"),
                    15 => assert_eq!(*new, "56"),
                    20 => assert_eq!(*new, "17"),
                    23 => assert_eq!(*new, "9876543488"),
                    24 => assert_eq!(*new, "123456"),
                    10 | 12 | 25..=34 | 45..=51 => assert_eq!(new.parse::<u64>(), Ok(0), "field {}", index + 3),
                    _ => assert_eq!(old, new, "field {}", index + 3),
                }
            }
        }
    }

    #[test]
    fn what_is_stopped_here_stays_so_and_the_dead_are_left_alone() {
        for letter in ["T", "t"] {
            let stopped = OTHERS.replace(") S", &[") ", letter].concat());
            assert_eq!(fields(&rewrite(file::STAT, &stopped, &BUSY).expect("rewritten"))[0], "T");
        }
        assert_eq!(rewrite(file::STAT, &OTHERS.replace(") S", ") Z"), &BUSY), None);
    }

    #[test]
    fn numbers_that_do_not_fit_change_nothing() {
        let text = OTHERS.replace("18446744073709551615", "0").replace("2147483647", "0");
        assert_eq!(rewrite(file::STAT, &text, &BUSY), None);
        assert!(rewrite(file::STAT, &text, &Numbers { state: b'R', vsize: 9_999_999, ..Numbers::default() }).is_some());
    }

    #[test]
    fn text_of_another_form_is_left_alone() {
        for text in [
            "",
            "x",
            "7 (x",
            &GHOST[..200],
            &GHOST[..GHOST.len() - 1],
            &"7".repeat(300),
            &")".repeat(1024),
            &") \n".repeat(40),
        ] {
            assert_eq!(rewrite(file::STAT, text, &BUSY), None, "{text}");
        }
        assert_eq!(rewrite(file::STAT, &OTHERS.replace(" 17 0", " 17"), &BUSY), None);
    }

    #[test]
    fn no_bytes_do_harm() {
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut text = [GHOST, OTHERS, STATUS].concat().into_bytes();
            for _ in 0..40 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) as usize % text.len();
                text[at] = *b") (\n:S0Z\x7f".get((seed >> 20) as usize % 9).expect("one of these");
            }
            let text = String::from_utf8(text).expect("ASCII");
            for which in [file::STAT, file::STATUS] {
                let start = (seed >> 40) as usize % 600;
                if let Some(out) = rewrite(which, &text[start..], &BUSY) {
                    assert_eq!(out.len(), text[start..].len().min(TEXT));
                }
            }
        }
    }

    #[test]
    fn status_keeps_its_columns() {
        let out = rewrite(file::STATUS, STATUS, &BUSY).expect("rewritten");
        let expected = STATUS
            .replace("S (sleeping)", "R (running) ")
            .replace("    1060 kB", " 9645062 kB")
            .replace("     256 kB", "  493824 kB");
        assert_eq!(out, expected);
        let large = rewrite(file::STATUS, STATUS, &Numbers { vsize: 20 << 40, ..BUSY }).expect("rewritten");
        assert!(large.contains("VmSize:\t21474836480\n"), "{large}");
        let large = rewrite(file::STATUS, STATUS, &Numbers { vsize: 200 << 30, ..BUSY }).expect("rewritten");
        assert!(large.contains("VmSize:\t209715200  \n"), "{large}");
        let stopped = STATUS.replace("S (sleeping)", "T (stopped)");
        assert!(rewrite(file::STATUS, &stopped, &BUSY).expect("rewritten").contains("T (stopped)\n"));
        let traced = STATUS.replace("S (sleeping)", "t (tracing stop)");
        assert!(rewrite(file::STATUS, &traced, &BUSY).expect("rewritten").contains("\tT (stopped)     \n"));
    }

    #[test]
    fn a_part_of_status_is_rewritten_as_far_as_it_goes() {
        let text = &STATUS[..STATUS.find("VmHWM").expect("there") + 10];
        let out = rewrite(file::STATUS, text, &BUSY).expect("rewritten");
        assert_eq!(out.len(), text.len());
        assert!(out.contains("VmSize:\t 9645062 kB\n") && out.contains("State:\tR"));
    }
}
