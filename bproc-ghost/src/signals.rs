//! Commands about signals: to end or stop oneself by one, to send one.

use crate::abi::{Action, Caps, Limit, Prctl, RLIMIT_CORE, SigInfo, cld, errno, si, sig, wait};
use crate::command::{Answer, INVALID, int, pid};
use crate::ghost::Ghost;
use crate::sys::{self, Errno, Whose};
use bproc_common::ghost::Msg;

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Ends by a signal without leaving a core. A signal that does not end a process, or that the first process of a
/// namespace is immune to, is shown as a shell would: exit code 128 + signal.
pub(crate) fn die(signal: i64) -> ! {
    let harmless =
        [sig::CHLD, sig::CONT, sig::STOP, sig::TSTP, sig::TTIN, sig::TTOU, sig::URG, sig::WINCH].map(i64::from);
    if (1..=i64::from(sig::MAX)).contains(&signal) && !harmless.contains(&signal) {
        let signal = signal as i32;
        let _ = sys::set_limit(RLIMIT_CORE, Limit::default());
        let _ = sys::set_action(signal, Action::Default);
        sys::raise(signal);
        sys::set_mask(!bit(signal));
    }
    sys::exit(128 | (signal as i32 & 0x7f))
}

/// Stops itself. The answer goes out before, since afterwards nothing does until somebody continues it. (In an
/// orphaned process group the kernel ignores all of these but SIGSTOP.)
pub(crate) fn stop(ghost: &mut Ghost, msg: &Msg) -> sys::Result<Answer> {
    let signal = int(msg.a)?;
    if ![sig::STOP, sig::TSTP, sig::TTIN, sig::TTOU].contains(&signal) {
        return Err(INVALID);
    }
    // Read before commands, but perhaps not yet when this one came.
    ghost.take_signals();
    if (1..i64::from(ghost.woken)).contains(&msg.b) {
        return Ok(().into());
    }
    if signal != sig::STOP && sys::action(signal)?.0 != Action::Default {
        sys::set_action(signal, Action::Default)?;
    }
    ghost.answer(msg.tag, Ok(().into()));
    // The kernel drops a SIGCONT that waits when a stop signal comes: it would be lost.
    ghost.take_signals();
    sys::raise(signal);
    if signal != sig::STOP {
        sys::set_mask(!bit(signal));
        sys::set_mask(u64::MAX);
    }
    Ok(Answer::None)
}

/// Sends a signal, and notes it if it has a key; one that may have been sent before is looked up first.
pub(crate) fn send_once(ghost: &Ghost, msg: &Msg, payload: &[u8]) -> sys::Result<()> {
    let (receiver, key) = (msg.c as u64, msg.d.unsigned_abs());
    if msg.d < 0 && ghost.delivered.has(receiver, key) {
        return Ok(());
    }
    send(msg, payload)?;
    if key != 0 {
        ghost.delivered.note(receiver, key);
    }
    Ok(())
}

/// Sends a signal that was sent elsewhere, so that the receiver sees the same siginfo, as far as the kernel lets.
///
/// | si_code | how |
/// |---|---|
/// | SI_QUEUE and other negative ones | rt_sigqueueinfo, unchanged |
/// | SI_USER, SI_TKILL, from us | kill, tgkill |
/// | SI_USER, SI_TKILL, from another pid | by a process that has this pid for a moment |
/// | the same, pid taken, or 0 (sender in an outer namespace) | SI_QUEUE with si_pid and si_uid, value 0 |
/// | positive: from the kernel, may not be claimed | kill by us |
fn send(msg: &Msg, payload: &[u8]) -> sys::Result<()> {
    let target = int(msg.a)?;
    if target < -1 {
        return send_to_group(payload, -target);
    }
    let target = pid(msg.a)?;
    let thread = if msg.b == 0 { None } else { Some(pid(msg.b)?) };
    let info = SigInfo(payload.try_into().map_err(|_| INVALID)?);
    let signal = info.signal();
    if target == 1 || !(0..=sig::MAX).contains(&signal) {
        return Err(INVALID);
    }
    match info.code() {
        si::USER | si::TKILL if info.pid() != sys::getpid() => send_as(&info, target, thread),
        code if code >= si::USER || code == si::TKILL => send_plainly(&info, target, thread),
        _ => sys::queue_signal(target, thread, signal, &info),
    }
}

/// Sends to a group, once for all of its members, with the rights of its sender's user and no more:
///
/// | who sends | how |
/// |---|---|
/// | we stand for the sender, and are its user | we do |
/// | the same, but it has become another user since | not at all: EXDEV |
/// | another pid | a process that has this pid for a moment |
/// | the same, pid taken, or SIGKILL, which nobody asks about; the kernel | we do, as its user or as root |
fn send_to_group(payload: &[u8], group: i32) -> sys::Result<()> {
    let info = SigInfo(payload.try_into().map_err(|_| INVALID)?);
    let (signal, uid) = (info.signal(), info.uid());
    if !(0..=sig::MAX).contains(&signal) {
        return Err(INVALID);
    }
    let is_users = info.code() == si::USER && info.pid() > 0;
    if is_users && info.pid() == sys::getpid() {
        return match sys::getuid() == uid {
            true => without_rights(uid != 0, || sys::kill_group(group, signal)),
            false => Err(Errno(errno::EXDEV)),
        };
    }
    if is_users && signal != sig::KILL {
        match sys::clone_process(0, 0, Some(info.pid())) {
            Ok(0) => {
                let sent = sys::setresuid(uid, uid, uid).and_then(|()| sys::kill_group(group, signal));
                sys::exit(sent.err().map_or(0, |Errno(number)| number));
            }
            Ok(child) => return sent_by(child),
            Err(Errno(errno::EEXIST | errno::EINVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    if !is_users || uid == 0 {
        return sys::kill_group(group, signal);
    }
    // Its capabilities go with the effective user, and come with it.
    sys::setresuid(uid, uid, 0)?;
    let sent = sys::kill_group(group, signal);
    sys::setresuid(0, 0, 0)?;
    sys::prctl(Prctl::SetDumpable, 0, 0)?;
    sent
}

/// Does something with the capabilities put down.
fn without_rights(put_down: bool, what: impl FnOnce() -> sys::Result<()>) -> sys::Result<()> {
    if !put_down {
        return what();
    }
    let all = sys::caps()?;
    sys::set_caps(Caps { effective: 0, ..all })?;
    let done = what();
    sys::set_caps(all)?;
    done
}

fn send_plainly(info: &SigInfo, target: i32, thread: Option<i32>) -> sys::Result<()> {
    match thread {
        None if info.code() == si::TKILL => sys::tgkill(target, target, info.signal()),
        None => sys::kill(target, info.signal()),
        Some(thread) => sys::tgkill(target, thread, info.signal()),
    }
}

/// Sends from a short-lived process with the sender's pid and real uid. That process keeps the capabilities of this
/// one: whether the sender was allowed to has been decided where it is.
fn send_as(info: &SigInfo, target: i32, thread: Option<i32>) -> sys::Result<()> {
    let child = match sys::clone_process(0, 0, Some(info.pid())) {
        Ok(0) => {
            let sent = sys::setresuid(info.uid(), u32::MAX, u32::MAX).and_then(|()| send_plainly(info, target, thread));
            sys::exit(sent.err().map_or(0, |Errno(number)| number));
        }
        Ok(child) => child,
        Err(Errno(errno::EEXIST | errno::EINVAL)) => {
            let mut queued = *info;
            queued.set_code(si::QUEUE);
            queued.set_value(0);
            return sys::queue_signal(target, thread, info.signal(), &queued);
        }
        Err(error) => return Err(error),
    };
    sent_by(child)
}

/// What became of a signal that a child was to send.
fn sent_by(child: i32) -> sys::Result<()> {
    let mut end = SigInfo::ZERO;
    while let Err(error) = sys::waitid(Whose::Pid(child), wait::EXITED | wait::ALL_KINDS, &mut end, None) {
        if error != Errno(errno::EINTR) {
            return Err(error);
        }
    }
    match (end.code(), end.status()) {
        (cld::EXITED, 0) => Ok(()),
        (cld::EXITED, number) => Err(Errno(number)),
        _ => Err(Errno(errno::EAGAIN)),
    }
}
