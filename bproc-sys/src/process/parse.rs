//! `/proc/PID/stat` and `/proc/PID/status` as types.

use super::{LIMITS, Limit};

/// The text was not what the kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("text from /proc is not in the known form")
    }
}

impl std::error::Error for Malformed {}

/// The parts of `/proc/PID/stat` that BProc uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Pid.
    pub pid: i32,
    /// Name, without the parentheses; any bytes.
    pub comm: Vec<u8>,
    /// State letter: R S D T t Z X I.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal, 0 for none.
    pub tty: i32,
    /// Foreground group of the terminal, -1 for none.
    pub tpgid: i32,
    /// User time in clock ticks (1/100 s).
    pub utime: u64,
    /// System time in clock ticks.
    pub stime: u64,
    /// nice value.
    pub nice: i32,
    /// Threads.
    pub threads: u32,
    /// Start after boot in clock ticks; with the pid it names the process for good.
    pub starttime: u64,
    /// Virtual memory in bytes.
    pub vsize: u64,
    /// Resident memory in pages.
    pub rss: u64,
    /// Kernel's PF_ flags.
    pub flags: u32,
    /// Wait status of a zombie; 0 for a reader who may not trace the process.
    pub exit_code: i32,
}

impl TryFrom<&[u8]> for Stat {
    type Error = Malformed;

    fn try_from(text: &[u8]) -> Result<Stat, Malformed> {
        // The name may hold anything, parentheses and spaces too: it ends at the last one.
        let open = text.iter().position(|b| *b == b'(').ok_or(Malformed)?;
        let close = text.iter().rposition(|b| *b == b')').ok_or(Malformed)?;
        let comm = text.get(open + 1..close).ok_or(Malformed)?.to_vec();
        let pid = number(text.get(..open).ok_or(Malformed)?)?;
        let rest: Vec<&[u8]> = words(text.get(close + 1..).ok_or(Malformed)?).collect();
        // proc(5) counts the state as field 3.
        let field = |n: usize| rest.get(n - 3).copied().ok_or(Malformed);
        Ok(Stat {
            pid,
            comm,
            state: *field(3)?.first().ok_or(Malformed)?,
            ppid: number(field(4)?)?,
            pgrp: number(field(5)?)?,
            session: number(field(6)?)?,
            tty: number(field(7)?)?,
            tpgid: number(field(8)?)?,
            flags: number(field(9)?)?,
            utime: number(field(14)?)?,
            stime: number(field(15)?)?,
            nice: number(field(19)?)?,
            threads: number(field(20)?)?,
            starttime: number(field(22)?)?,
            vsize: number(field(23)?)?,
            rss: number(field(24)?)?,
            exit_code: number(field(52)?)?,
        })
    }
}

/// The four ids of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
    /// For file access.
    pub fs: u32,
}

/// Capability sets, bit n is capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Inheritable.
    pub inheritable: u64,
    /// Permitted.
    pub permitted: u64,
    /// Effective.
    pub effective: u64,
    /// Bounding.
    pub bounding: u64,
    /// Ambient.
    pub ambient: u64,
}

/// The parts of `/proc/PID/status` that BProc uses. Signal sets: bit 0 is signal 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Thread group.
    pub tgid: i32,
    /// Tracer, 0 for none.
    pub tracer: i32,
    /// User ids.
    pub uids: Ids,
    /// Group ids.
    pub gids: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The pid in each pid namespace from the reader's down to its own.
    pub ns_pids: Vec<i32>,
    /// The process group in each pid namespace.
    pub ns_pgids: Vec<i32>,
    /// The session in each pid namespace.
    pub ns_sids: Vec<i32>,
    /// umask.
    pub umask: u32,
    /// Signals that are queued for its user, and its limit of these.
    pub queued: (u64, u64),
    /// Threads.
    pub threads: u32,
    /// Pending for the thread.
    pub sig_pending: u64,
    /// Pending for the process.
    pub sig_shared_pending: u64,
    /// Blocked.
    pub sig_blocked: u64,
    /// Ignored.
    pub sig_ignored: u64,
    /// Caught.
    pub sig_caught: u64,
    /// Capabilities.
    pub caps: Caps,
    /// no_new_privs.
    pub no_new_privs: bool,
    /// seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters.
    pub seccomp_filters: u32,
}

impl TryFrom<&[u8]> for Status {
    type Error = Malformed;

    fn try_from(text: &[u8]) -> Result<Status, Malformed> {
        let mut out = Status::default();
        let mut seen_uid = false;
        for line in text.split(|b| *b == b'\n') {
            let Some(colon) = line.iter().position(|b| *b == b':') else {
                continue;
            };
            let (key, rest) = line.split_at(colon);
            let value = rest.get(1..).unwrap_or_default().trim_ascii();
            match key {
                b"Tgid" => out.tgid = number(value)?,
                b"TracerPid" => out.tracer = number(value)?,
                b"Uid" => {
                    out.uids = ids(value)?;
                    seen_uid = true;
                }
                b"Gid" => out.gids = ids(value)?,
                b"Groups" => out.groups = words(value).map(number).collect::<Result<_, _>>()?,
                b"NSpid" => out.ns_pids = words(value).map(number).collect::<Result<_, _>>()?,
                b"NSpgid" => out.ns_pgids = words(value).map(number).collect::<Result<_, _>>()?,
                b"NSsid" => out.ns_sids = words(value).map(number).collect::<Result<_, _>>()?,
                b"Umask" => out.umask = radix(value, 8)? as u32,
                b"Threads" => out.threads = number(value)?,
                b"SigQ" => {
                    let (queued, most) = value.split_at(value.iter().position(|b| *b == b'/').ok_or(Malformed)?);
                    out.queued = (number(queued)?, number(most.get(1..).unwrap_or_default())?);
                }
                b"SigPnd" => out.sig_pending = radix(value, 16)?,
                b"ShdPnd" => out.sig_shared_pending = radix(value, 16)?,
                b"SigBlk" => out.sig_blocked = radix(value, 16)?,
                b"SigIgn" => out.sig_ignored = radix(value, 16)?,
                b"SigCgt" => out.sig_caught = radix(value, 16)?,
                b"CapInh" => out.caps.inheritable = radix(value, 16)?,
                b"CapPrm" => out.caps.permitted = radix(value, 16)?,
                b"CapEff" => out.caps.effective = radix(value, 16)?,
                b"CapBnd" => out.caps.bounding = radix(value, 16)?,
                b"CapAmb" => out.caps.ambient = radix(value, 16)?,
                b"NoNewPrivs" => out.no_new_privs = number::<u32>(value)? != 0,
                b"Seccomp" => out.seccomp = number(value)?,
                b"Seccomp_filters" => out.seccomp_filters = number(value)?,
                _ => {}
            }
        }
        if seen_uid { Ok(out) } else { Err(Malformed) }
    }
}

/// The lines of `/proc/PID/limits`, which the kernel writes in the order of the RLIMIT numbers. Names hold spaces and
/// have a width of 25.
pub(super) fn limits(text: &[u8]) -> Result<[Limit; LIMITS], Malformed> {
    let mut all = [Limit::default(); LIMITS];
    let mut lines = text.split(|b| *b == b'\n').skip(1);
    for limit in &mut all {
        let mut values = words(lines.next().and_then(|l| l.get(25..)).ok_or(Malformed)?);
        let mut value = || match values.next() {
            Some(b"unlimited") => Ok(u64::MAX),
            Some(digits) => number(digits),
            None => Err(Malformed),
        };
        *limit = Limit { soft: value()?, hard: value()? };
    }
    Ok(all)
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty())
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, Malformed> {
    std::str::from_utf8(text.trim_ascii()).ok().and_then(|t| t.parse().ok()).ok_or(Malformed)
}

fn radix(text: &[u8], radix: u32) -> Result<u64, Malformed> {
    std::str::from_utf8(text).ok().and_then(|t| u64::from_str_radix(t, radix).ok()).ok_or(Malformed)
}

fn ids(text: &[u8]) -> Result<Ids, Malformed> {
    let mut of = words(text);
    let mut next = || of.next().ok_or(Malformed).and_then(number);
    Ok(Ids { real: next()?, effective: next()?, saved: next()?, fs: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &[u8] = b"4711 (a) b (c)) t 17 4711 4700 34816 4711 4194560 86 0 0 0 12 34 0 0 20 -5 3 0 9143 2301952 \
        181 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn a_name_with_parentheses_ends_at_the_last_one() {
        let s = Stat::try_from(STAT).unwrap();
        assert_eq!(s.comm, b"a) b (c)");
        assert_eq!((s.pid, s.state, s.ppid, s.session, s.tty), (4711, b't', 17, 4700, 34816));
        assert_eq!((s.utime, s.stime, s.nice, s.threads, s.starttime), (12, 34, -5, 3, 9143));
        assert_eq!((s.vsize, s.rss), (2_301_952, 181));
    }

    #[test]
    fn status_fields_land_where_they_belong() {
        let text = b"Name:\tx\nUmask:\t0027\nTgid:\t9\nTracerPid:\t3\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \n\
            NSpid:\t900\t9\nThreads:\t2\nSigQ:\t17/31000\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000010000\n\
            SigIgn:\t0000000000001000\nCapInh:\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t1\nCapBnd:\t2\nCapAmb:\t3\n\
            NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let s = Status::try_from(&text[..]).unwrap();
        assert_eq!(s.uids, Ids { real: 1, effective: 2, saved: 3, fs: 4 });
        assert_eq!(s.gids.fs, 8);
        assert_eq!((s.groups, s.ns_pids), (vec![10, 20], vec![900, 9]));
        assert_eq!((s.umask, s.tracer, s.sig_blocked, s.sig_ignored), (0o27, 3, 0x10000, 0x1000));
        assert_eq!((s.caps.permitted, s.caps.ambient), (0x1ff_ffff_ffff, 3));
        assert!(s.no_new_privs);
        assert_eq!((s.seccomp, s.seccomp_filters), (2, 3));
    }

    #[test]
    fn no_prefix_and_no_changed_byte_panics() {
        for end in 0..STAT.len() {
            let _ = Stat::try_from(&STAT[..end]);
            for byte in [0, b'(', b')', b' ', b'-', 0xff] {
                let mut text = STAT.to_vec();
                text[end] = byte;
                let _ = Stat::try_from(text.as_slice());
                let _ = Status::try_from(text.as_slice());
            }
        }
        assert_eq!(Stat::try_from(&b")("[..]), Err(Malformed));
        assert_eq!(Status::try_from(&b""[..]), Err(Malformed));
    }
}
