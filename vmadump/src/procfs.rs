//! Text of /proc, parsed. Takes bytes, never a path.

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Map {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device, `major:minor`.
    pub dev: (u32, u32),
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// Path or `[name]`, escapes undone, without ` (deleted)`.
    pub name: Vec<u8>,
    /// The file is deleted.
    pub deleted: bool,
    /// Two-letter flags of smaps, if read from there.
    pub flags: Vec<[u8; 2]>,
}

impl Map {
    /// Has the smaps flag.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

/// Undoes the octal escapes of path names.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal =
            text.get(at + 1..at + 4).filter(|_| text[at] == b'\\').and_then(|d| number(d, 8)).filter(|v| *v < 256);
        match octal {
            Some(v) => {
                out.push(v as u8);
                at += 4;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

fn map_line(line: &[u8]) -> Option<Map> {
    let mut words = line.splitn(6, |b| *b == b' ');
    let range = words.next()?;
    let dash = range.iter().position(|b| *b == b'-')?;
    let perms = words.next()?;
    let offset = number(words.next()?, 16)?;
    let dev = words.next()?;
    let colon = dev.iter().position(|b| *b == b':')?;
    let inode = number(words.next()?, 10)?;
    let name = words.next().unwrap_or_default().trim_ascii_start();
    let bit = |i: usize, c: u8, v: u32| if perms.get(i) == Some(&c) { v } else { 0 };
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(short) => (short, true),
        None => (name, false),
    };
    Some(Map {
        start: number(&range[..dash], 16)?,
        end: number(&range[dash + 1..], 16)?,
        prot: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
        shared: perms.get(3) == Some(&b's'),
        offset,
        dev: (number(&dev[..colon], 16)? as u32, number(&dev[colon + 1..], 16)? as u32),
        inode,
        name: unescape(name),
        deleted,
        flags: Vec::new(),
    })
}

/// Parses `maps` or `smaps`; lines that are neither are skipped.
pub fn maps(text: &[u8]) -> Vec<Map> {
    let mut all: Vec<Map> = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            if let Some(last) = all.last_mut() {
                last.flags = flags.split(|b| *b == b' ').filter_map(|f| <[u8; 2]>::try_from(f).ok()).collect();
            }
        } else if let Some(map) = map_line(line) {
            all.push(map);
        }
    }
    all
}

/// The vdso among mappings: first address of its data pages, and its code.
pub fn vdso_of(maps: &[Map]) -> Option<(u64, &Map)> {
    let code = maps.iter().position(|m| m.name == b"[vdso]")?;
    let mut first = maps[code].start;
    for map in maps[..code].iter().rev() {
        if map.name.starts_with(b"[vvar") && map.end == first {
            first = map.start;
        } else {
            break;
        }
    }
    Some((first, &maps[code]))
}

/// What `/proc/PID/status` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// umask.
    pub umask: u32,
    /// State letter.
    pub state: u8,
    /// Ids from the outer to the inner namespace.
    pub ns_pid: Vec<i32>,
    /// Process group in each namespace.
    pub ns_pgid: Vec<i32>,
    /// Session in each namespace.
    pub ns_sid: Vec<i32>,
    /// Thread group.
    pub tgid: i32,
    /// Parent, in the reader's namespace.
    pub ppid: i32,
    /// Tracer or 0.
    pub tracer: i32,
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Real, effective, saved, file system.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub caps: [u64; 5],
    /// no_new_privs.
    pub no_new_privs: bool,
    /// Ignored signals, bit 0 for signal 1.
    pub ignored: u64,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Signals that are pending for it or its process: bit by number less one.
    pub pending: u64,
    /// Signals that are queued for its user, and how many may be.
    pub queued: (u64, u64),
    /// Bytes of memory that are locked.
    pub locked: u64,
    /// The first 64 nodes of memory that it may use, a bit each.
    pub nodes: u64,
}

/// Parses `/proc/PID/status`.
pub fn status(text: &[u8]) -> Status {
    let mut s = Status::default();
    for line in text.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let words: Vec<&[u8]> = line[colon + 1..].split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).collect();
        let first = words.first().copied().unwrap_or_default();
        let int = |w: &[u8]| std::str::from_utf8(w).ok().and_then(|t| t.parse::<i64>().ok()).unwrap_or(0);
        let ids = || words.iter().map(|w| int(w) as i32).collect();
        let four = || std::array::from_fn(|i| words.get(i).map_or(0, |w| int(w) as u32));
        let hex = || number(first, 16).unwrap_or(0);
        match &line[..colon] {
            b"Umask" => s.umask = number(first, 8).unwrap_or(0) as u32,
            b"State" => s.state = first.first().copied().unwrap_or(0),
            b"NSpid" => s.ns_pid = ids(),
            b"NSpgid" => s.ns_pgid = ids(),
            b"NSsid" => s.ns_sid = ids(),
            b"Tgid" => s.tgid = int(first) as i32,
            b"PPid" => s.ppid = int(first) as i32,
            b"TracerPid" => s.tracer = int(first) as i32,
            b"Uid" => s.uids = four(),
            b"Gid" => s.gids = four(),
            b"Groups" => s.groups = words.iter().map(|w| int(w) as u32).collect(),
            b"CapInh" => s.caps[0] = hex(),
            b"CapPrm" => s.caps[1] = hex(),
            b"CapEff" => s.caps[2] = hex(),
            b"CapBnd" => s.caps[3] = hex(),
            b"CapAmb" => s.caps[4] = hex(),
            b"NoNewPrivs" => s.no_new_privs = first == b"1",
            b"SigPnd" | b"ShdPnd" => s.pending |= hex(),
            b"SigIgn" => s.ignored = hex(),
            b"Seccomp" => s.seccomp = int(first) as u32,
            b"VmLck" => s.locked = number(first, 10).unwrap_or(0) << 10,
            b"Mems_allowed" => {
                let mut low = first.rsplit(|b| *b == b',').map(|w| number(w, 16).unwrap_or(0));
                s.nodes = low.next().unwrap_or(0) | low.next().unwrap_or(0) << 32;
            }
            b"SigQ" => {
                let mut numbers = first.split(|b| *b == b'/').map(|w| number(w, 10).unwrap_or(0));
                s.queued = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            }
            _ => {}
        }
    }
    s
}

/// Areas of `/proc/PID/numa_maps` whose memory is taken from nodes of a choice: their first addresses.
pub fn placed(text: &[u8]) -> Vec<u64> {
    let line = |line: &[u8]| {
        let mut words = line.split(|b| *b == b' ');
        let start = number(words.next()?, 16)?;
        words.next().is_some_and(|policy| policy != b"default").then_some(start)
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Fields of `/proc/PID/stat` after the name, the first (state) has index 3 as in the manual.
pub fn stat(text: &[u8]) -> Vec<u64> {
    let after = text.iter().rposition(|b| *b == b')').map_or(0, |p| p + 1);
    let words = text[after..].split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    let values = words.map(|w| {
        std::str::from_utf8(w)
            .ok()
            .and_then(|t| t.parse::<i64>().map(|v| v as u64).or_else(|_| t.parse()).ok())
            .unwrap_or(0)
    });
    [0; 3].into_iter().chain(values).collect()
}

/// Has this thread ended, or gone already?
pub(crate) fn is_over(pid: i32, tid: i32) -> bool {
    match std::fs::read(format!("/proc/{pid}/task/{tid}/stat")) {
        Ok(text) => {
            let after = text.iter().rposition(|b| *b == b')').map_or(0, |p| p + 1);
            matches!(text[after..].trim_ascii_start().first(), Some(b'Z' | b'X' | b'x'))
        }
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// One timer of `/proc/PID/timers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timer {
    /// Kernel's id.
    pub id: u32,
    /// Signal.
    pub signal: u32,
    /// Value for the handler.
    pub value: u64,
    /// SIGEV_*.
    pub notify: u32,
    /// Thread for SIGEV_THREAD_ID, in the reader's namespace.
    pub tid: i32,
    /// Clock.
    pub clock: i32,
}

/// Parses `/proc/PID/timers`.
pub fn timers(text: &str) -> Vec<Timer> {
    let mut all: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        if key == "ID" {
            all.push(Timer { id: value.trim().parse().unwrap_or(0), ..Timer::default() });
            continue;
        }
        let Some(timer) = all.last_mut() else { continue };
        match key {
            "signal" => {
                if let Some((signal, pointer)) = value.split_once('/') {
                    timer.signal = signal.parse().unwrap_or(0);
                    timer.value = u64::from_str_radix(pointer.trim().trim_start_matches("0x"), 16).unwrap_or(0);
                }
            }
            "notify" => {
                let (how, who) = value.split_once('/').unwrap_or((value, ""));
                timer.notify = match how {
                    "none" => 1,
                    "thread" => 2,
                    _ => 0,
                };
                if let Some(tid) = who.strip_prefix("tid.") {
                    timer.notify |= 4;
                    timer.tid = tid.trim().parse().unwrap_or(0);
                }
            }
            "ClockID" => timer.clock = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    all
}

/// A field of `/proc/PID/fdinfo/N`.
pub fn fdinfo<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// What an epoll descriptor watches, from its fdinfo: number, events, data.
pub fn watched(text: &str) -> Vec<[u64; 3]> {
    let number = |word: Option<&str>, radix| u64::from_str_radix(word?, radix).ok();
    let line = |l: &str| {
        let mut words = l.strip_prefix("tfd:")?.split_whitespace();
        let fd = number(words.next(), 10)?;
        words.next().filter(|w| *w == "events:")?;
        let events = number(words.next(), 16)?;
        words.next().filter(|w| *w == "data:")?;
        Some([fd, events, number(words.next(), 16)?])
    };
    text.lines().filter_map(line).collect()
}

/// A `(seconds, nanoseconds)` field of a timerfd's fdinfo, in nanoseconds.
pub fn timer_ns(text: &str, key: &str) -> u64 {
    let pair = fdinfo(text, key).and_then(|v| v.strip_prefix('(')?.strip_suffix(')')?.split_once(", "));
    let part = |word: &str| word.parse::<u64>().unwrap_or(0);
    pair.map_or(0, |(s, ns)| part(s).saturating_mul(1_000_000_000).saturating_add(part(ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_and_timerfd() {
        let text = "pos:\t0\nflags:\t02000002\ntfd:        5 events:       1d data:             ffff5  pos:0 ino:61af sdev:7\n\
                    tfd:       11 events: 80000019 data: ffffffffffffffff  pos:0 ino:8 sdev:d\n";
        assert_eq!(watched(text), [[5, 0x1d, 0xffff5], [11, 0x8000_0019, u64::MAX]]);
        let text = "clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 500)\nit_interval: (0, 7)\n";
        assert_eq!((timer_ns(text, "it_value"), timer_ns(text, "it_interval")), (2_000_000_500, 7));
    }

    #[test]
    fn maps_with_spaces_escapes_and_flags() {
        let text = b"7f00-8000 r-xs 00001000 fe:1a 42   /tmp/a b\\012c (deleted)\nSize: 4 kB\nVmFlags: rd ex mr sh \n8000-9000 ---p 00000000 00:00 0 \n";
        let all = maps(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].name, b"/tmp/a b\nc");
        assert!(all[0].deleted && all[0].shared && all[0].has(b"sh"));
        assert_eq!((all[0].prot, all[0].offset, all[0].dev, all[0].inode), (5, 4096, (0xfe, 0x1a), 42));
        assert_eq!((all[1].prot, all[1].name.len()), (0, 0));
    }

    #[test]
    fn policies_and_nodes() {
        let text = b"7f00 default anon=3\n8000 bind:0-1 anon=1 dirty=1 N0=1\n9000 interleave=static:0\n";
        assert_eq!(placed(text), [0x8000, 0x9000]);
        let all = status(b"VmLck:\t      12 kB\nMems_allowed:\t00000000,00000002,80000001\n");
        assert_eq!((all.locked, all.nodes), (12 << 10, 0x2_8000_0001));
    }

    #[test]
    fn stat_of_a_name_with_brackets() {
        let s = stat(b"12 (a) b (c)) S 1 2 3 0 -1 4\n");
        assert_eq!((s[4], s[5], s[8]), (1, 2, u64::MAX));
    }

    #[test]
    fn timers_of_threads_and_signals() {
        let text = "ID: 3\nsignal: 34/00000000deadbeef\nnotify: signal/tid.77\nClockID: 1\nID: 9\nsignal: 10/0000000000000001\nnotify: signal/pid.5\nClockID: 0\n";
        let all = timers(text);
        assert_eq!(all[0], Timer { id: 3, signal: 34, value: 0xdead_beef, notify: 4, tid: 77, clock: 1 });
        assert_eq!((all[1].notify, all[1].id), (0, 9));
    }
}
