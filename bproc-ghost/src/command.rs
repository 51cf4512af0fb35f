//! Takes the agent's commands: one packet, one answer.
//!
//! The agent is trusted but may be of another version: what is too long, too short or
//! unknown is answered with EINVAL, and descriptors that no command asked for are closed.

use crate::abi::{O_WRONLY, Prctl, errno};
use crate::children::Interest;
use crate::ghost::Ghost;
use crate::sys::{self, Control, Errno, MAX_FDS};
use crate::{exec, family, signals};
use bproc_common::ghost::{MAX_PACKET, Msg, Role, ev, op};
use bproc_common::wire::Record;
use core::ffi::CStr;

pub(crate) const INVALID: Errno = Errno(errno::EINVAL);

/// The descriptors of a packet. Those not taken are closed.
pub(crate) struct Fds {
    pub(crate) numbers: [i32; MAX_FDS],
    pub(crate) count: usize,
}

impl Fds {
    pub(crate) fn close(&mut self) {
        for fd in &self.numbers[..self.count] {
            sys::close(*fd);
        }
        self.count = 0;
    }

    pub(crate) fn all(&self) -> &[i32] {
        &self.numbers[..self.count]
    }
}

/// Room for one packet.
pub(crate) struct Inbox {
    packet: [u8; MAX_PACKET],
    control: Control,
    fds: Fds,
}

/// How a command is answered.
pub(crate) enum Answer {
    Value(i64),
    /// Not at all, or it has been already.
    None,
}

impl From<()> for Answer {
    fn from((): ()) -> Answer {
        Answer::Value(0)
    }
}

impl From<i32> for Answer {
    fn from(value: i32) -> Answer {
        Answer::Value(i64::from(value))
    }
}

impl Inbox {
    pub(crate) const fn new() -> Inbox {
        Inbox { packet: [0; MAX_PACKET], control: Control::new(), fds: Fds { numbers: [0; MAX_FDS], count: 0 } }
    }

    /// Takes one packet and obeys. An error means that the connection is over.
    pub(crate) fn receive(&mut self, ghost: &mut Ghost) -> sys::Result<()> {
        let got = match sys::receive(ghost.link.fd(), &mut self.packet, &mut self.control, &mut self.fds.numbers) {
            Ok(got) => got,
            Err(Errno(errno::EAGAIN | errno::EINTR)) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.fds.count = got.fds;
        if got.bytes == 0 {
            return Err(INVALID);
        }
        let packet = &self.packet[..got.bytes.min(MAX_PACKET)];
        let msg = Msg::get(packet).unwrap_or_default();
        let payload = packet.get(Msg::SIZE..).unwrap_or(&[]);
        let answer = if got.bytes < Msg::SIZE || got.cut || got.bytes > MAX_PACKET || msg.len as usize != payload.len()
        {
            Err(INVALID)
        } else {
            obey(ghost, &msg, payload, &mut self.fds)
        };
        self.fds.close();
        ghost.answer(msg.tag, answer);
        Ok(())
    }
}

impl Ghost {
    pub(crate) fn answer(&mut self, tag: u32, answer: sys::Result<Answer>) {
        let value = match answer {
            // Nobody waits for an answer to the number 0; mistakes are told to anybody.
            Ok(_) if tag == 0 => return,
            Ok(Answer::None) => return,
            Ok(Answer::Value(value)) => value,
            Err(Errno(number)) => -i64::from(number),
        };
        self.link.send(Msg { op: ev::RESULT, tag, a: value, ..Msg::default() }, &[]);
    }
}

/// An argument as pid, signal or the like.
pub(crate) fn int(argument: i64) -> sys::Result<i32> {
    i32::try_from(argument).map_err(|_| INVALID)
}

/// A pid that means one process.
pub(crate) fn pid(argument: i64) -> sys::Result<i32> {
    int(argument).and_then(|pid| if pid > 0 { Ok(pid) } else { Err(INVALID) })
}

fn obey(ghost: &mut Ghost, msg: &Msg, payload: &[u8], fds: &mut Fds) -> sys::Result<Answer> {
    match msg.op {
        op::EXIT => sys::exit(msg.a as i32),
        op::DIE => signals::die(msg.a),
        op::STOP => signals::stop(ghost, msg),
        op::CLONE => family::clone(ghost, msg, payload),
        op::REAP => {
            let child = pid(msg.a)?;
            let reaped = sys::reap(child)?;
            if reaped == child {
                ghost.children.reaped(child);
            }
            Ok(reaped.into())
        }
        op::SETPGID => sys::setpgid(int(msg.a)?, int(msg.b)?).map(Answer::from),
        op::SETSID => sys::setsid().map(Answer::from),
        op::NAME => name(payload).map(Answer::from),
        op::CMDLINE => ghost.title.set(payload, msg.a, fds).map(Answer::from),
        op::SIGNAL => signals::send_once(ghost, msg, payload).map(Answer::from),
        op::SIGNAL_GROUP if ghost.role == Role::Ghost => sys::kill_group(pid(msg.a)?, int(msg.b)?).map(Answer::from),
        op::EXEC => exec::become_program(ghost, msg, fds),
        op::LAST_PID if ghost.role != Role::Init => Err(Errno(errno::EPERM)),
        op::LAST_PID if msg.a == 0 => last_pid().map(Answer::from),
        op::LAST_PID => set_last_pid(pid(msg.a)?).map(Answer::from),
        op::LEASE => lease(ghost, msg.a).map(Answer::from),
        op::CREDS => credentials(msg).map(Answer::from),
        op::ACK => {
            ghost.queue.acknowledge(msg.a as u32);
            Ok(Answer::None)
        }
        op::HOLD => {
            ghost.hold(msg.a as u64)?;
            Ok(().into())
        }
        op::NOTHING => Ok(().into()),
        op::NICE => sys::set_nice(int(msg.a)?).map(Answer::from),
        op::SUBREAPER => sys::prctl(Prctl::SetChildSubreaper, usize::from(msg.a != 0), 0).map(|_| ().into()),
        op::STARTER if ghost.role == Role::Ghost => {
            ghost.starter = msg.a as u64;
            Ok(().into())
        }
        op::WATCH_CHILDREN => {
            ghost.children.watch(if msg.a == 1 { Interest::Stops } else { Interest::All });
            Ok(().into())
        }
        _ => Err(INVALID),
    }
}

/// The name that ps shows as comm.
fn name(text: &[u8]) -> sys::Result<()> {
    let mut name = [0; 16];
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.len() > 15 || text.contains(&0) {
        return Err(INVALID);
    }
    name[..text.len()].copy_from_slice(text);
    sys::set_name(&name)
}

const LAST_PID: &CStr = c"/proc/sys/kernel/ns_last_pid";

/// The number that the last fork in this pid namespace got, or was to get.
fn last_pid() -> sys::Result<i32> {
    let mut text = [0u8; 16];
    let mut digits = sys::read_file(LAST_PID, &mut text)?.iter().take_while(|c| c.is_ascii_digit());
    digits.try_fold(0i32, |n, digit| n.checked_mul(10)?.checked_add(i32::from(digit - b'0'))).ok_or(INVALID)
}

/// The next forks in this pid namespace get the numbers after this one.
fn set_last_pid(pid: i32) -> sys::Result<()> {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = pid;
    while rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let file = sys::open(LAST_PID, O_WRONLY)?;
    let written = sys::write(file, &digits[at..]);
    sys::close(file);
    written.map(|_| ())
}

/// Lives so many milliseconds more without a word from the agent.
fn lease(ghost: &mut Ghost, ms: i64) -> sys::Result<()> {
    if ghost.role != Role::Init {
        return Err(Errno(errno::EPERM));
    }
    ghost.lease.renew(u32::try_from(ms).map_err(|_| INVALID)?)
}

/// Takes a user's identity and keeps the capabilities, which a ghost needs to clone with chosen pids.
fn credentials(msg: &Msg) -> sys::Result<()> {
    let id = |argument: i64| u32::try_from(argument).ok().filter(|id| *id != u32::MAX).ok_or(INVALID);
    let (uid, gid) = (id(msg.a)?, id(msg.b)?);
    sys::setgroups(&[])?;
    sys::prctl(Prctl::SetKeepCaps, 1, 0)?;
    sys::setresgid(gid, gid, gid)?;
    sys::setresuid(uid, uid, uid)?;
    let mut caps = sys::caps()?;
    caps.effective = caps.permitted;
    sys::set_caps(caps)?;
    // The change of identity has set what the system's suid_dumpable says.
    sys::prctl(Prctl::SetDumpable, 0, 0).map(|_| ())
}
