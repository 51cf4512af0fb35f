//! Parents, children, groups and sessions, when some of them are elsewhere.

use std::time::Duration;

use anyhow::Result;

use super::Case;
use super::parent::{Child, Mode, Parent};
use super::signals::{join_group, own_group_of_child};
use super::sys;
use crate::procs::Proc;

pub(super) const CASES: &[(&str, Case)] = &[
    ("ids_are_the_masters", ids),
    ("ids_in_groups_and_sessions", ids_in_groups),
    ("the_child_forks_and_waits", forks),
    ("the_childs_child_is_a_process_of_the_master", grandchild),
    ("the_childs_child_dies_by_the_parents_hand", kill_grandchild),
    ("double_fork", double_fork),
    ("setsid_and_setpgid_show", setsid),
    ("setpgid_from_outside", setpgid_outside),
    ("the_parent_dies_first", parent_dies),
    ("a_subreaper_inherits_the_child", subreaper),
    ("the_death_signal_of_the_parent", pdeathsig),
    ("tied_children_die_with_their_parent", tied),
    ("the_group_leader_dies_first", leader_dies),
    ("children_of_the_dead_child", children_of_the_dead),
];

fn ids(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "ids")?;
    parent.end(child);
    Ok(())
}

fn lead_session() {
    sys::setsid();
}

fn ids_in_groups(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start_with("first", &own_group_of_child)?;
    let leader = first.pid;
    let mut second = parent.start_with("second", &move || join_group(leader))?;
    let mut third = parent.start_with("third", &lead_session)?;
    for child in [&mut first, &mut second, &mut third] {
        parent.ask(child, "ids")?;
        let line = format!("pgrp={} sid={}", sys::getpgid(child.pid), sys::getsid(child.pid));
        parent.note(line);
    }
    parent.end(first);
    parent.ask(&mut second, "ids")?;
    parent.end(second);
    parent.end(third);
    Ok(())
}

fn forks(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    for code in [0, 3, 255] {
        parent.ask(&mut child, &format!("fork-exit {code}"))?;
        parent.ask(&mut child, &format!("vfork-exit {code}"))?;
    }
    for _ in 0..50 {
        child.ask("fork-exit 1")?;
    }
    parent.ask(&mut child, "wait 0")?;
    child.tell("exit 0")?;
    parent.wait(child.pid, 0);
    Ok(())
}

/// The child's child, by its pid.
fn grandchild_of(parent: &mut Parent, child: &mut Child) -> Result<i32> {
    let pid: i32 = child.ask("fork-pause")?.parse()?;
    parent.call(pid, "grandchild");
    parent.eventually("the grandchild is seen", |_| Proc::read(pid).is_some());
    Ok(pid)
}

fn grandchild(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &own_group_of_child)?;
    let pid = grandchild_of(parent, &mut child)?;
    let owner = child.pid;
    parent.eventually("its parent is the child", |_| Proc::read(pid).is_some_and(|p| p.ppid == owner));
    parent.eventually("its group is the child's", |_| sys::getpgid(pid) == owner);
    parent.eventually("its session is ours", |_| sys::getsid(pid) == sys::getpid());
    parent.wait(pid, libc::WNOHANG);
    sys::kill(pid, libc::SIGKILL);
    parent.ask(&mut child, "wait 0")?;
    parent.eventually("it is gone", |_| Proc::read(pid).is_none());
    parent.end(child);
    Ok(())
}

fn kill_grandchild(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1] {
        let pid = grandchild_of(parent, &mut child)?;
        parent.note(sys::said(sys::kill(pid, signal)));
        parent.ask(&mut child, "wait 0")?;
        parent.eventually("it is gone", |_| Proc::read(pid).is_none());
    }
    let pid = grandchild_of(parent, &mut child)?;
    sys::kill(pid, libc::SIGSTOP);
    parent.ask(&mut child, &format!("wait {}", libc::WUNTRACED))?;
    sys::kill(pid, libc::SIGCONT);
    parent.ask(&mut child, &format!("wait {}", libc::WCONTINUED))?;
    sys::kill(pid, libc::SIGKILL);
    parent.ask(&mut child, "wait 0")?;
    parent.end(child);
    Ok(())
}

fn double_fork(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "double-fork")?;
    parent.ask(&mut child, "wait 0")?;
    parent.end(child);
    Ok(())
}

fn setsid(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let pid = child.pid;
    parent.ask(&mut child, "setpgid 0 0")?;
    parent.ask(&mut child, "ids")?;
    parent.eventually("the group shows", |_| sys::getpgid(pid) == pid);
    let group = sys::getpgrp();
    parent.ask(&mut child, &format!("setpgid 0 {group}"))?;
    parent.ask(&mut child, "ids")?;
    parent.eventually("the old group shows", |_| sys::getpgid(pid) == group);
    parent.ask(&mut child, "setsid")?;
    parent.ask(&mut child, "ids")?;
    parent.eventually("the session shows", |_| sys::getsid(pid) == pid && sys::getpgid(pid) == pid);
    parent.ask(&mut child, "setsid")?;
    parent.note(sys::said(sys::killpg(pid, libc::SIGTERM)));
    parent.wait(pid, 0);
    Ok(())
}

fn setpgid_outside(parent: &mut Parent) -> Result<()> {
    let child = parent.start("child")?;
    // It has executed a program: too late.
    parent.note(sys::said(sys::setpgid(child.pid, child.pid)));
    parent.end(child);
    Ok(())
}

/// A process between the parent and the child, which starts it and ends when told.
fn with_middle(
    parent: &mut Parent,
    tied: bool,
    then: impl FnOnce(&mut Parent, Child, i32) -> Result<()>,
) -> Result<()> {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    // The child's streams must be the parent's, so the parent makes them and the middle inherits all.
    let (mut numbers, mut tell) = std::io::pipe()?;
    let (mut go, mut release) = std::io::pipe()?;
    let (report_in, report_out) = std::io::pipe()?;
    let (commands_in, commands_out) = std::io::pipe()?;
    let middle = sys::fork()?;
    if middle == 0 {
        drop((release, report_in, commands_out));
        let relay = |parent: &mut Parent| -> Result<i32> {
            // SAFETY: descriptors of our own, onto numbers that stay open.
            unsafe {
                libc::dup2(commands_in.as_raw_fd(), 0);
                libc::dup2(report_out.as_raw_fd(), 1);
            }
            let child = parent.start_on_own_streams(tied)?;
            Ok(child)
        };
        let pid = relay(parent).unwrap_or(-1);
        let _ = tell.write_all(&pid.to_ne_bytes());
        let _ = go.read(&mut [0]);
        sys::exit(0);
    }
    drop((tell, go, report_out, commands_in));
    let mut pid = [0; 4];
    numbers.read_exact(&mut pid)?;
    let pid = i32::from_ne_bytes(pid);
    anyhow::ensure!(pid > 1, "the child of the middle does not start");
    parent.call(middle, "middle");
    parent.call(pid, "child");
    let mut child = Child::of(pid, commands_out.into(), report_in.into());
    let ready = child.line()?;
    parent.note(ready);
    parent.ask(&mut child, "ids")?;
    let prepared = child.ask("handle 10")?;
    parent.note(prepared);
    if !tied {
        parent.ask(&mut child, "pdeathsig 10")?;
    }
    let _ = release.write_all(b"x");
    sys::interrupt_after(10);
    let (_, status) = sys::waitpid(middle, 0);
    sys::alarm(0);
    parent.note(format!("middle: {}", sys::status(status)));
    sys::next_signal(&[libc::SIGCHLD], Duration::from_secs(1));
    then(parent, child, middle)
}

fn parent_dies(parent: &mut Parent) -> Result<()> {
    with_middle(parent, false, |parent, mut child, middle| {
        let pid = child.pid;
        parent.ask(&mut child, &format!("orphaned {middle}"))?;
        parent.eventually("another parent shows", |_| Proc::read(pid).is_some_and(|p| p.ppid != middle));
        parent.note(sys::said(sys::kill(pid, libc::SIGTERM)));
        parent.wait(pid, 0);
        parent.eventually("it is gone", |_| Proc::read(pid).is_none());
        Ok(())
    })
}

fn subreaper(parent: &mut Parent) -> Result<()> {
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    with_middle(parent, false, |parent, mut child, middle| {
        let (pid, me) = (child.pid, sys::getpid());
        parent.ask(&mut child, &format!("orphaned {middle}"))?;
        parent.eventually("we are its parent", |_| Proc::read(pid).is_some_and(|p| p.ppid == me));
        child.tell("exit 21")?;
        parent.wait(pid, 0);
        parent.sigchld();
        Ok(())
    })
}

fn pdeathsig(parent: &mut Parent) -> Result<()> {
    with_middle(parent, false, |parent, mut child, middle| {
        let got = child.ask("signals 1")?;
        parent.note(got.split(" from").next().unwrap_or_default());
        parent.ask(&mut child, &format!("orphaned {middle}"))?;
        sys::kill(child.pid, libc::SIGKILL);
        let pid = child.pid;
        parent.eventually("it is gone", |_| Proc::read(pid).is_none());
        Ok(())
    })
}

fn tied(parent: &mut Parent) -> Result<()> {
    with_middle(parent, true, |parent, mut child, _| {
        let pid = child.pid;
        parent.eventually("it dies", |_| Proc::read(pid).is_none());
        if parent.mode() == Mode::Remote {
            let program = parent.program().clone();
            let gone = crate::procs::behind(pid, Some(&program)).is_none_or(|process| process.state == 'Z');
            if !gone {
                parent.note("its process lives on");
            }
        }
        let length = child.count_rest()?;
        parent.note(format!("{length} bytes more"));
        Ok(())
    })
}

fn leader_dies(parent: &mut Parent) -> Result<()> {
    let mut leader = parent.start_with("leader", &own_group_of_child)?;
    let group = leader.pid;
    let mut member = parent.start_with("member", &move || join_group(group))?;
    leader.tell("exit 1")?;
    parent.wait(group, 0);
    parent.ask(&mut member, "ids")?;
    let mut late = parent.start_with("late", &move || join_group(group))?;
    parent.ask(&mut late, "ids")?;
    parent.note(sys::said(sys::killpg(group, libc::SIGTERM)));
    parent.wait(member.pid, 0);
    parent.wait(late.pid, 0);
    parent.note(sys::said(sys::killpg(group, libc::SIGTERM)));
    Ok(())
}

fn children_of_the_dead(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let pid = grandchild_of(parent, &mut child)?;
    let owner = child.pid;
    child.tell("exit 8")?;
    parent.wait(owner, 0);
    parent.eventually("it has another parent", |_| Proc::read(pid).is_some_and(|p| p.ppid != owner));
    parent.note(format!("it lives: {}", sys::said(sys::kill(pid, 0))));
    parent.note(sys::said(sys::kill(pid, libc::SIGTERM)));
    parent.eventually("it is gone", |_| Proc::read(pid).is_none());
    Ok(())
}
