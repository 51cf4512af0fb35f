//! Signals to the child: who gets what, with which siginfo, in which order, and who may send.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Case;
use super::parent::Parent;
use super::sys;

pub(super) const CASES: &[(&str, Case)] = &[
    ("default_action_of_every_signal", default_actions),
    ("every_signal_queued_with_value_to_a_handler", queued_to_handler),
    ("every_signal_killed_to_a_handler", killed_to_handler),
    ("si_code_tells_kill_from_sigqueue_and_tgkill", codes),
    ("queued_signals_keep_their_order", order),
    ("blocked_standard_signals_coalesce", coalesce),
    ("a_blocked_signal_waits", blocked),
    ("an_ignored_signal_does_nothing", ignored),
    ("sigkill_cannot_be_caught", sigkill),
    ("pidfd_and_thread_directed_signals", directed),
    ("signals_to_nobody_and_bad_numbers", errors),
    ("killpg_reaches_the_whole_group", group),
    ("kill_0_reaches_parent_and_child", own_group),
    ("another_user_may_not_signal", permission),
    ("a_user_signals_his_own_child", own_child),
    ("the_child_signals_its_parent", to_parent),
    ("children_signal_each_other", to_sibling),
    ("a_thousand_signals_none_lost", thousand),
    ("signals_at_once_after_the_start", at_once),
];

/// All numbers that a program may use: the C library keeps two for itself.
pub(super) fn numbers() -> impl Iterator<Item = i32> {
    (1..=64).filter(|number| !matches!(number, 32 | 33))
}

fn catchable() -> impl Iterator<Item = i32> {
    numbers().filter(|number| !matches!(*number, libc::SIGKILL | libc::SIGSTOP))
}

/// So that the terminal's stop signals are not dropped: its parent is outside of its group, in the same session.
pub(super) fn own_group_of_child() {
    join_group(0);
}

/// Joins a group, or makes one with 0.
pub(super) fn join_group(group: i32) {
    sys::setpgid(0, group);
}

fn default_actions(parent: &mut Parent) -> Result<()> {
    for signal in 1..=64 {
        let child = parent.start_with("child", &own_group_of_child)?;
        parent.note(format!("signal {signal}: {}", sys::said(sys::kill(child.pid, signal))));
        match signal {
            libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => {
                // It would have acted on the first one by then.
                sys::kill(child.pid, libc::SIGTERM);
                parent.wait(child.pid, libc::WUNTRACED | libc::WCONTINUED);
            }
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                parent.wait(child.pid, libc::WUNTRACED);
                sys::kill(child.pid, libc::SIGCONT);
                parent.wait(child.pid, libc::WCONTINUED);
                sys::kill(child.pid, libc::SIGKILL);
                parent.wait(child.pid, 0);
            }
            _ => {
                parent.wait(child.pid, 0);
            }
        }
    }
    Ok(())
}

fn handler_of_all(parent: &mut Parent, send: impl Fn(i32, i32) -> i32) -> Result<()> {
    let mut child = parent.start("child")?;
    let all: Vec<String> = catchable().map(|signal| signal.to_string()).collect();
    parent.ask(&mut child, &format!("handle {}", all.join(" ")))?;
    for signal in catchable() {
        let said = sys::said(send(child.pid, signal));
        parent.note(format!("signal {signal}: {said}"));
        parent.ask(&mut child, "signals 1")?;
    }
    parent.end(child);
    Ok(())
}

fn queued_to_handler(parent: &mut Parent) -> Result<()> {
    handler_of_all(parent, |pid, signal| sys::sigqueue(pid, signal, 0x0123_4567_0000 + signal as usize * 7))
}

fn killed_to_handler(parent: &mut Parent) -> Result<()> {
    handler_of_all(parent, sys::kill)
}

fn order(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let all: Vec<String> = catchable().map(|signal| signal.to_string()).collect();
    parent.ask(&mut child, &format!("block {}", all.join(" ")))?;
    for value in 0..300 {
        if sys::sigqueue(child.pid, 40, value) < 0 {
            bail!("sigqueue {value}: {}", sys::name(sys::errno()));
        }
    }
    for signal in [50, 45, 41] {
        sys::sigqueue(child.pid, signal, 1);
        sys::sigqueue(child.pid, signal, 2);
    }
    sys::sigqueue(child.pid, 64, 0);
    parent.ask(&mut child, "take-all-until 64")?;
    parent.end(child);
    Ok(())
}

fn coalesce(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "block 10 12 64")?;
    for value in 0..20 {
        sys::sigqueue(child.pid, libc::SIGUSR1, value);
    }
    sys::kill(child.pid, libc::SIGUSR2);
    sys::sigqueue(child.pid, 64, 0);
    parent.ask(&mut child, "take-all-until 64")?;
    parent.end(child);
    Ok(())
}

fn blocked(parent: &mut Parent) -> Result<()> {
    // Blocked by the parent before the start, too: the mask is inherited.
    let mut child = parent.start_with("child", &|| {
        sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGTERM]));
    })?;
    sys::kill(child.pid, libc::SIGTERM);
    parent.ask(&mut child, "echo still here")?;
    parent.ask(&mut child, "take 15")?;
    sys::kill(child.pid, libc::SIGTERM);
    parent.ask(&mut child, "echo still here")?;
    child.tell("unblock 15")?;
    parent.wait(child.pid, 0);
    Ok(())
}

fn ignored(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &|| {
        sys::action(libc::SIGTERM, libc::SIG_IGN, 0);
        sys::action(libc::SIGHUP, libc::SIG_IGN, 0);
    })?;
    parent.ask(&mut child, "ignore 10")?;
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
        parent.note(sys::said(sys::kill(child.pid, signal)));
    }
    parent.ask(&mut child, "handle 12")?;
    sys::kill(child.pid, libc::SIGUSR2);
    parent.ask(&mut child, "signals 1")?;
    parent.ask(&mut child, "echo still here")?;
    sys::kill(child.pid, libc::SIGINT);
    parent.wait(child.pid, 0);
    Ok(())
}

fn sigkill(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let all: Vec<String> = catchable().map(|signal| signal.to_string()).collect();
    parent.ask(&mut child, &format!("handle {}", all.join(" ")))?;
    parent.ask(&mut child, &format!("block {}", all.join(" ")))?;
    parent.note(sys::said(sys::kill(child.pid, libc::SIGKILL)));
    parent.note(sys::said(sys::kill(child.pid, libc::SIGKILL)));
    parent.wait(child.pid, 0);
    parent.note(sys::said(sys::kill(child.pid, libc::SIGKILL)));
    Ok(())
}

fn directed(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "handle 10 12")?;
    let fd = sys::pidfd(child.pid).map_err(anyhow::Error::msg)?;
    parent.note(sys::said(sys::pidfd_kill(fd, libc::SIGUSR1)));
    parent.ask(&mut child, "signals 1")?;
    parent.note(sys::said(sys::tgkill(child.pid, child.pid, libc::SIGUSR2)));
    parent.ask(&mut child, "signals 1")?;
    parent.note(sys::said(sys::pidfd_kill(fd, libc::SIGKILL)));
    parent.wait(child.pid, 0);
    parent.note(sys::said(sys::pidfd_kill(fd, libc::SIGKILL)));
    Ok(())
}

fn codes(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "handle 10 40")?;
    let fd = sys::pidfd(child.pid).map_err(anyhow::Error::msg)?;
    let pid = child.pid;
    let sends: [&dyn Fn(i32) -> i32; 4] = [
        &|signal| sys::kill(pid, signal),
        &|signal| sys::tgkill(pid, pid, signal),
        &|signal| sys::sigqueue(pid, signal, 5),
        &|signal| sys::pidfd_kill(fd, signal),
    ];
    for send in sends {
        for signal in [libc::SIGUSR1, 40] {
            parent.note(format!("{signal}: {}", sys::said(send(signal))));
            parent.ask(&mut child, "exactly 1")?;
        }
    }
    parent.end(child);
    Ok(())
}

fn errors(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.note(format!("0: {}", sys::said(sys::kill(child.pid, 0))));
    parent.note(format!("65: {}", sys::said(sys::kill(child.pid, 65))));
    parent.note(format!("-1: {}", sys::said(sys::kill(child.pid, -1))));
    child.tell("exit 3")?;
    parent.eventually("zombie", |_| is_zombie(child.pid));
    parent.note(format!("zombie, 0: {}", sys::said(sys::kill(child.pid, 0))));
    parent.note(format!("zombie, 9: {}", sys::said(sys::kill(child.pid, libc::SIGKILL))));
    parent.wait(child.pid, 0);
    parent.note(format!("gone, 0: {}", sys::said(sys::kill(child.pid, 0))));
    parent.note(format!("gone, pidfd: {:?}", sys::pidfd(child.pid)));
    Ok(())
}

pub(super) fn is_zombie(pid: i32) -> bool {
    crate::procs::Proc::read(pid).is_some_and(|process| process.state == 'Z')
}

fn group(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start_with("first", &own_group_of_child)?;
    let leader = first.pid;
    let join = move || join_group(leader);
    let mut second = parent.start_with("second", &join)?;
    let mut other = parent.start_with("other", &own_group_of_child)?;
    for child in [&mut first, &mut second, &mut other] {
        parent.ask(child, "ids")?;
        parent.ask(child, "handle 10 12")?;
    }
    parent.note(sys::said(sys::killpg(leader, libc::SIGUSR1)));
    parent.ask(&mut first, "signals 1")?;
    parent.ask(&mut second, "signals 1")?;
    sys::kill(other.pid, libc::SIGUSR2);
    parent.ask(&mut other, "signals 1")?;
    parent.note(sys::said(sys::killpg(leader, libc::SIGKILL)));
    for child in [&first, &second] {
        parent.wait(child.pid, 0);
    }
    parent.note(format!("empty group: {}", sys::said(sys::killpg(leader, libc::SIGKILL))));
    parent.end(other);
    Ok(())
}

fn own_group(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start("first")?;
    let mut second = parent.start("second")?;
    parent.ask(&mut first, "handle 10")?;
    parent.ask(&mut second, "handle 10")?;
    sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGUSR1]));
    parent.note(sys::said(sys::kill_own_group(libc::SIGUSR1)));
    parent.ask(&mut first, "signals 1")?;
    parent.ask(&mut second, "signals 1")?;
    note_signal(parent, libc::SIGUSR1);
    parent.end(first);
    parent.end(second);
    Ok(())
}

fn note_signal(parent: &mut Parent, signal: i32) {
    let line = match sys::next_signal(&[signal], Duration::from_secs(10)) {
        Some(info) => {
            let value = if info.code == libc::SI_QUEUE { info.value } else { 0 };
            format!("signal {} code {} from={} uid {} value {value}", info.signal, info.code, info.pid, info.uid)
        }
        None => "no signal came".to_owned(),
    };
    parent.note(line);
}

/// What kill says in a process of that user.
fn kill_as(uid: u32, pid: i32, signal: i32) -> Result<String> {
    let killer = sys::fork()?;
    if killer == 0 {
        sys::setuid(uid);
        let result = sys::kill(pid, signal);
        sys::exit(if result < 0 { sys::errno() } else { 0 });
    }
    let (_, status) = sys::waitpid(killer, 0);
    // Its SIGCHLD is none of the case's.
    sys::next_signal(&[libc::SIGCHLD], Duration::from_millis(100));
    Ok(match libc::WEXITSTATUS(status) {
        0 => "0".into(),
        errno => sys::name(errno),
    })
}

fn become_nobody() {
    sys::setgroups(&[]);
    sys::setgid(65534);
    sys::setuid(65534);
}

fn permission(parent: &mut Parent) -> Result<()> {
    let mut mine = parent.start("child")?;
    let mut theirs = parent.start_with("nobody", &become_nobody)?;
    for (name, child) in [("root's", &mut mine), ("nobody's", &mut theirs)] {
        parent.ask(child, "handle 10")?;
        for uid in [0, 65534, 1234] {
            for signal in [0, libc::SIGUSR1] {
                let said = kill_as(uid, child.pid, signal)?;
                parent.note(format!("{uid} to {name} with {signal}: {said}"));
                if signal != 0 && said == "0" {
                    let got = child.ask("signals 1")?;
                    // The killer has no name.
                    parent.note(got.replace("from=", "from: ").split(" uid").last().unwrap_or_default());
                }
            }
        }
    }
    let said = kill_as(1234, theirs.pid, libc::SIGKILL)?;
    parent.note(format!("1234 kills nobody's: {said}"));
    parent.ask(&mut theirs, "echo still here")?;
    let said = kill_as(65534, theirs.pid, libc::SIGKILL)?;
    parent.note(format!("nobody kills nobody's: {said}"));
    parent.wait(theirs.pid, 0);
    parent.end(mine);
    Ok(())
}

fn own_child(parent: &mut Parent) -> Result<()> {
    become_nobody();
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "handle 10")?;
    sys::sigqueue(child.pid, libc::SIGUSR1, 99);
    parent.ask(&mut child, "signals 1")?;
    sys::kill(child.pid, libc::SIGSTOP);
    parent.wait(child.pid, libc::WUNTRACED);
    parent.sigchld();
    sys::kill(child.pid, libc::SIGKILL);
    parent.wait(child.pid, 0);
    parent.sigchld();
    Ok(())
}

fn to_parent(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGUSR1, libc::SIGUSR2]));
    let me = sys::getpid();
    parent.ask(&mut child, &format!("kill {me} 10"))?;
    note_signal(parent, libc::SIGUSR1);
    parent.ask(&mut child, &format!("sigqueue {me} 12"))?;
    note_signal(parent, libc::SIGUSR2);
    parent.ask(&mut child, &format!("kill {me} 0"))?;
    parent.end(child);
    Ok(())
}

fn to_sibling(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start("first")?;
    let mut second = parent.start("second")?;
    parent.ask(&mut second, "handle 10")?;
    parent.ask(&mut first, &format!("sigqueue {} 10", second.pid))?;
    parent.ask(&mut second, "signals 1")?;
    parent.ask(&mut first, &format!("kill {} 9", second.pid))?;
    parent.wait(second.pid, 0);
    // The node learns a moment after the parent that its number is free.
    let mut there = "kill 0".to_owned();
    for _ in 0..1000 {
        if there != "kill 0" {
            break;
        }
        there = first.ask(&format!("kill {} 0", second.pid))?;
    }
    parent.note(there);
    first.tell(&format!("kill {} 15", first.pid))?;
    parent.wait(first.pid, 0);
    Ok(())
}

fn thousand(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "handle 34 35")?;
    for value in 0..1000 {
        sys::sigqueue(child.pid, 34, value);
    }
    parent.ask(&mut child, "signals 1000")?;
    parent.end(child);
    Ok(())
}

/// Nothing is between the start and the signal: it may be too early for a ghost, never for its process.
fn at_once(parent: &mut Parent) -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGHUP, libc::SIGRTMAX()] {
        let program = super::parent::Program {
            path: "/bin/sleep".into(),
            argv: vec![b"sleep".to_vec(), b"60".to_vec()],
            prepare: &|| {},
            tied: true,
        };
        let Ok(child) = parent.launch(&program)? else { bail!("sleep does not start") };
        parent.call(child.pid, "child");
        parent.note(sys::said(sys::kill(child.pid, signal)));
        parent.wait(child.pid, 0);
    }
    Ok(())
}
