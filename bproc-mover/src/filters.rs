//! Would a process's seccomp filters let something stand for it? They stay when it becomes its stand-in, whose calls they
//! would forbid, or answer with its end. Filters are classic BPF: read, never run.

/// x86_64 in `seccomp_data`.
const ARCH: u32 = 0xc000_003e;
/// Bytes of `seccomp_data`.
const DATA: u32 = 64;
/// SECCOMP_RET_ACTION_FULL, SECCOMP_RET_ALLOW, SECCOMP_RET_LOG.
const ACTION: u32 = 0xffff_0000;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
/// Instructions that are followed at most, on all ways together.
const MOST: u32 = 1 << 18;

/// A call, and its arguments as far as they are known.
type Call = (&'static str, libc::c_long, [Option<u64>; 6]);

const ANY: [Option<u64>; 6] = [None; 6];

/// What ghosts and skeletons cannot do without.
const NEEDED: &[Call] = &[
    ("socket", libc::SYS_socket, [Some(libc::AF_UNIX as u64), Some(SEQPACKET), Some(0), None, None, None]),
    ("connect", libc::SYS_connect, ANY),
    ("sendmsg", libc::SYS_sendmsg, ANY),
    ("recvmsg", libc::SYS_recvmsg, ANY),
    ("read", libc::SYS_read, ANY),
    ("write", libc::SYS_write, ANY),
    ("ppoll", libc::SYS_ppoll, ANY),
    ("openat", libc::SYS_openat, ANY),
    ("close", libc::SYS_close, ANY),
    ("close_range", libc::SYS_close_range, ANY),
    ("mmap", libc::SYS_mmap, [Some(0), None, Some(3), None, None, Some(0)]),
    ("munmap", libc::SYS_munmap, ANY),
    ("signalfd4", libc::SYS_signalfd4, ANY),
    ("rt_sigaction", libc::SYS_rt_sigaction, ANY),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask, ANY),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, ANY),
    ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, ANY),
    ("kill", libc::SYS_kill, ANY),
    ("tgkill", libc::SYS_tgkill, ANY),
    ("prctl", libc::SYS_prctl, [Some(libc::PR_SET_NAME as u64), None, None, None, None, None]),
    ("getpid", libc::SYS_getpid, ANY),
    ("getppid", libc::SYS_getppid, ANY),
    ("clone3", libc::SYS_clone3, ANY),
    ("waitid", libc::SYS_waitid, ANY),
    ("wait4", libc::SYS_wait4, ANY),
    ("exit_group", libc::SYS_exit_group, ANY),
];

const SEQPACKET: u64 = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;

/// Names of the calls that one of these filters, raw `sock_filter` arrays, forbids to a stand-in, or might.
pub fn forbidden<'f>(filters: impl Iterator<Item = &'f [u8]> + Clone) -> Vec<&'static str> {
    let forbids = |call: &&Call| filters.clone().any(|filter| !allows(filter, call));
    NEEDED.iter().filter(forbids).map(|(name, ..)| *name).collect()
}

/// Where the filter is while it is followed; nothing of what is not known.
#[derive(Clone)]
struct State {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; 16],
}

/// Does every way through the filter end well for this call?
fn allows(filter: &[u8], call: &Call) -> bool {
    let code = filter.as_chunks::<8>().0;
    let mut ways = vec![State { at: 0, a: Some(0), x: Some(0), memory: [Some(0); 16] }];
    let mut steps = 0;
    while let Some(mut state) = ways.pop() {
        loop {
            steps += 1;
            let Some(instruction) = code.get(state.at).filter(|_| steps < MOST) else { return false };
            match step(instruction, call, &mut state) {
                Next::On => state.at += 1,
                Next::Skip(Some(true)) => state.at += 1 + usize::from(instruction[2]),
                Next::Skip(Some(false)) => state.at += 1 + usize::from(instruction[3]),
                Next::Skip(None) => {
                    ways.push(State { at: state.at + 1 + usize::from(instruction[3]), ..state.clone() });
                    state.at += 1 + usize::from(instruction[2]);
                }
                Next::Far(by) => state.at += 1 + by as usize,
                Next::End(Some(value)) if matches!(value & ACTION, ALLOW | LOG) => break,
                Next::End(_) => return false,
            }
        }
    }
    true
}

enum Next {
    On,
    /// By how many, if it is known whether the condition holds.
    Skip(Option<bool>),
    Far(u32),
    End(Option<u32>),
}

fn step(instruction: &[u8; 8], call: &Call, state: &mut State) -> Next {
    let [c0, c1, _, _, k0, k1, k2, k3] = *instruction;
    let (code, k) = (u16::from_le_bytes([c0, c1]), u32::from_le_bytes([k0, k1, k2, k3]));
    let operand = if code & 8 != 0 { state.x } else { Some(k) };
    let cell = (k & 15) as usize;
    match code {
        0x00 => state.a = Some(k),
        0x01 => state.x = Some(k),
        0x20 => state.a = word(call, k),
        0x80 => state.a = Some(DATA),
        0x81 => state.x = Some(DATA),
        0x60 => state.a = state.memory[cell],
        0x61 => state.x = state.memory[cell],
        0x02 => state.memory[cell] = state.a,
        0x03 => state.memory[cell] = state.x,
        0x07 => state.x = state.a,
        0x87 => state.a = state.x,
        0x06 => return Next::End(Some(k)),
        0x16 => return Next::End(state.a),
        0x05 => return Next::Far(k),
        0x84 => state.a = state.a.map(u32::wrapping_neg),
        _ if code & 7 == 5 => {
            let test: fn(u32, u32) -> bool = match code & 0xf0 {
                0x10 => |a, b| a == b,
                0x20 => |a, b| a > b,
                0x30 => |a, b| a >= b,
                0x40 => |a, b| a & b != 0,
                _ => return Next::End(None),
            };
            return Next::Skip(state.a.zip(operand).map(|(a, b)| test(a, b)));
        }
        _ if code & 7 == 4 => {
            let work: fn(u32, u32) -> Option<u32> = match code & 0xf0 {
                0x00 => |a, b| Some(a.wrapping_add(b)),
                0x10 => |a, b| Some(a.wrapping_sub(b)),
                0x20 => |a, b| Some(a.wrapping_mul(b)),
                0x30 => u32::checked_div,
                0x40 => |a, b| Some(a | b),
                0x50 => |a, b| Some(a & b),
                0x60 => u32::checked_shl,
                0x70 => u32::checked_shr,
                0xa0 => |a, b| Some(a ^ b),
                _ => return Next::End(None),
            };
            state.a = state.a.zip(operand).and_then(|(a, b)| work(a, b));
        }
        _ => return Next::End(None),
    }
    Next::On
}

/// A word of the call's `seccomp_data`.
fn word((_, number, arguments): &Call, at: u32) -> Option<u32> {
    match at {
        0 => u32::try_from(*number).ok(),
        4 => Some(ARCH),
        16..DATA => {
            let argument = arguments[((at - 16) / 8) as usize]?;
            Some(if at & 4 == 0 { argument as u32 } else { (argument >> 32) as u32 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::forbidden;

    fn filter(code: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let raw = |(code, yes, no, k): &(u16, u8, u8, u32)| {
            let [c0, c1] = code.to_le_bytes();
            let [k0, k1, k2, k3] = k.to_le_bytes();
            [c0, c1, *yes, *no, k0, k1, k2, k3]
        };
        code.iter().flat_map(raw).collect()
    }

    fn names(filters: &[Vec<u8>]) -> Vec<&'static str> {
        forbidden(filters.iter().map(Vec::as_slice))
    }

    const ALLOW: (u16, u8, u8, u32) = (0x06, 0, 0, 0x7fff_0000);
    const KILL: (u16, u8, u8, u32) = (0x06, 0, 0, 0x8000_0000);
    const EPERM: (u16, u8, u8, u32) = (0x06, 0, 0, 0x0005_0001);

    #[test]
    fn forbidden_calls_are_named() {
        let number = (0x20, 0, 0, 0);
        let without = |call: i64, what| filter(&[number, (0x15, 0, 1, call as u32), what, ALLOW]);
        assert_eq!(names(&[without(libc::SYS_sethostname, EPERM)]), [""; 0]);
        assert_eq!(names(&[without(libc::SYS_clone3, EPERM)]), ["clone3"]);
        let both = [without(libc::SYS_sethostname, KILL), without(libc::SYS_connect, KILL)];
        assert_eq!(names(&both), ["connect"]);
        // All but a few.
        let strict = filter(&[number, (0x15, 1, 0, libc::SYS_read as u32), KILL, ALLOW]);
        let all = names(&[strict]);
        assert!(all.contains(&"socket") && !all.contains(&"read"), "{all:?}");
    }

    #[test]
    fn arguments_count_as_far_as_they_are_known() {
        let of = |at, value| {
            let first = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xc000_003e), KILL, (0x20, 0, 0, 0)];
            let rest = [(0x15, 0, 3, libc::SYS_socket as u32), (0x20, 0, 0, at), (0x15, 0, 1, value), EPERM, ALLOW];
            names(&[filter(&[&first[..], &rest[..]].concat())])
        };
        // No sockets of AF_VSOCK, or of AF_UNIX.
        assert_eq!(of(16, libc::AF_VSOCK as u32), [""; 0]);
        assert_eq!(of(16, libc::AF_UNIX as u32), ["socket"]);
        // Some of an argument that nobody knows.
        assert_eq!(of(40, 7), ["socket"]);
    }

    #[test]
    fn what_is_no_program_allows_nothing() {
        let all = names(&[Vec::new()]);
        assert_eq!(all, names(&[filter(&[(0x05, 0, 0, u32::MAX)])]));
        assert_eq!(all, names(&[filter(&[(0xffff, 0, 0, 0), ALLOW])]));
        assert!(all.contains(&"getpid"));
        // Each test doubles the ways.
        let doubling: Vec<_> = (0..4000).flat_map(|_| [(0x20, 0, 0, 8), (0x15, 0, 0, 5)]).chain([ALLOW]).collect();
        assert_eq!(names(&[filter(&doubling)]), all);
    }
}
