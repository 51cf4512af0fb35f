//! Stop and continue, as the parent sees them.

use anyhow::Result;

use super::Case;
use super::parent::{Child, Mode, Parent};
use super::signals::{join_group, own_group_of_child};
use super::sys;
use crate::procs::{self, Proc};

pub(super) const CASES: &[(&str, Case)] = &[
    ("stop_and_continue_are_waited_for", stop_and_continue),
    ("a_stop_of_an_orphaned_group_is_dropped", orphaned_group),
    ("a_handled_sigtstp_does_not_stop", handled),
    ("exit_while_stopped", killed_while_stopped),
    ("sigterm_waits_while_stopped", term_while_stopped),
    ("the_child_stops_itself", stops_itself),
    ("a_storm_of_stops_ends_stopped", storm_stopped),
    ("a_storm_of_stops_ends_running", storm_running),
    ("sigchld_of_stop_and_continue", sigchld),
    ("sa_nocldstop", nocldstop),
    ("a_whole_group_stops_and_goes_on", group),
];

fn stop_and_continue(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &own_group_of_child)?;
    for signal in [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        parent.note(sys::said(sys::kill(child.pid, signal)));
        parent.wait(child.pid, libc::WUNTRACED);
        parent.wait(child.pid, libc::WUNTRACED | libc::WCONTINUED | libc::WNOHANG);
        parent.note(sys::said(sys::kill(child.pid, libc::SIGCONT)));
        parent.wait(child.pid, libc::WUNTRACED | libc::WCONTINUED);
        parent.wait(child.pid, libc::WUNTRACED | libc::WCONTINUED | libc::WNOHANG);
        parent.ask(&mut child, "echo awake")?;
    }
    parent.end(child);
    Ok(())
}

fn orphaned_group(parent: &mut Parent) -> Result<()> {
    // In the group of its parent, which leads the session: nobody outside could continue it.
    let mut child = parent.start("child")?;
    for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        sys::kill(child.pid, signal);
        parent.ask(&mut child, "echo not stopped")?;
    }
    sys::kill(child.pid, libc::SIGTERM);
    parent.wait(child.pid, libc::WUNTRACED);
    Ok(())
}

fn handled(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &own_group_of_child)?;
    parent.ask(&mut child, "handle 20 18")?;
    sys::kill(child.pid, libc::SIGTSTP);
    parent.ask(&mut child, "signals 1")?;
    parent.wait(child.pid, libc::WUNTRACED | libc::WNOHANG);
    sys::kill(child.pid, libc::SIGCONT);
    parent.ask(&mut child, "signals 1")?;
    parent.wait(child.pid, libc::WCONTINUED | libc::WNOHANG);
    sys::kill(child.pid, libc::SIGSTOP);
    parent.wait(child.pid, libc::WUNTRACED);
    sys::kill(child.pid, libc::SIGCONT);
    parent.wait(child.pid, libc::WCONTINUED);
    parent.ask(&mut child, "signals 1")?;
    parent.end(child);
    Ok(())
}

fn killed_while_stopped(parent: &mut Parent) -> Result<()> {
    for reported in [true, false] {
        let child = parent.start_with("child", &own_group_of_child)?;
        sys::kill(child.pid, libc::SIGSTOP);
        if reported {
            parent.wait(child.pid, libc::WUNTRACED);
        } else {
            parent.eventually("it stops", |_| is_stopped(child.pid));
        }
        sys::kill(child.pid, libc::SIGKILL);
        parent.wait(child.pid, 0);
    }
    Ok(())
}

fn term_while_stopped(parent: &mut Parent) -> Result<()> {
    let child = parent.start_with("child", &own_group_of_child)?;
    sys::kill(child.pid, libc::SIGSTOP);
    parent.wait(child.pid, libc::WUNTRACED);
    sys::kill(child.pid, libc::SIGTERM);
    parent.wait(child.pid, libc::WNOHANG);
    sys::kill(child.pid, libc::SIGCONT);
    parent.wait(child.pid, 0);
    Ok(())
}

fn stops_itself(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &own_group_of_child)?;
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        child.tell(&format!("kill {} {signal}", child.pid))?;
        parent.wait(child.pid, libc::WUNTRACED);
        sys::kill(child.pid, libc::SIGCONT);
        parent.wait(child.pid, libc::WCONTINUED);
        let line = child.line()?;
        parent.note(line);
    }
    parent.end(child);
    Ok(())
}

/// The ghost, or natively the process itself.
fn is_stopped(pid: i32) -> bool {
    Proc::read(pid).is_some_and(|process| matches!(process.state, 'T' | 't'))
}

/// The process behind the ghost.
fn process_is_stopped(parent: &Parent, pid: i32) -> bool {
    match parent.mode() {
        Mode::Native => is_stopped(pid),
        Mode::Remote => procs::behind(pid, Some(parent.program())).is_some_and(|process| process.state == 'T'),
    }
}

fn storm(parent: &mut Parent, rounds: usize) -> Result<Child> {
    let child = parent.start_with("child", &own_group_of_child)?;
    for round in 0..rounds {
        let stop = if round % 2 == 0 { libc::SIGSTOP } else { libc::SIGTSTP };
        sys::kill(child.pid, stop);
        sys::kill(child.pid, libc::SIGCONT);
    }
    Ok(child)
}

/// Takes what the storm has left to wait for.
fn drain(pid: i32) {
    while sys::waitpid(pid, libc::WUNTRACED | libc::WCONTINUED | libc::WNOHANG).0 > 0 {}
}

fn storm_stopped(parent: &mut Parent) -> Result<()> {
    for _ in 0..5 {
        let mut child = storm(parent, 100)?;
        sys::kill(child.pid, libc::SIGSTOP);
        let pid = child.pid;
        parent.eventually("both are stopped", |parent| is_stopped(pid) && process_is_stopped(parent, pid));
        drain(pid);
        sys::kill(pid, libc::SIGCONT);
        parent.ask(&mut child, "echo awake")?;
        parent.eventually("both run", |parent| !is_stopped(pid) && !process_is_stopped(parent, pid));
        parent.end(child);
    }
    Ok(())
}

fn storm_running(parent: &mut Parent) -> Result<()> {
    for _ in 0..5 {
        let mut child = storm(parent, 100)?;
        let pid = child.pid;
        parent.ask(&mut child, "echo awake")?;
        parent.eventually("both run", |parent| !is_stopped(pid) && !process_is_stopped(parent, pid));
        parent.ask(&mut child, "echo awake")?;
        drain(pid);
        sys::kill(pid, libc::SIGSTOP);
        parent.wait(pid, libc::WUNTRACED);
        parent.end(child);
    }
    Ok(())
}

fn sigchld(parent: &mut Parent) -> Result<()> {
    let child = parent.start_with("child", &own_group_of_child)?;
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        sys::kill(child.pid, signal);
        parent.sigchld();
        parent.wait(child.pid, libc::WUNTRACED);
        sys::kill(child.pid, libc::SIGCONT);
        parent.sigchld();
        parent.wait(child.pid, libc::WCONTINUED);
        parent.no_sigchld();
    }
    sys::kill(child.pid, libc::SIGKILL);
    parent.sigchld();
    parent.wait(child.pid, 0);
    parent.no_sigchld();
    Ok(())
}

extern "C" fn nothing(_: i32) {}

fn nocldstop(parent: &mut Parent) -> Result<()> {
    sys::action(libc::SIGCHLD, nothing as *const () as usize, libc::SA_NOCLDSTOP);
    let child = parent.start_with("child", &own_group_of_child)?;
    sys::kill(child.pid, libc::SIGSTOP);
    parent.wait(child.pid, libc::WUNTRACED);
    sys::kill(child.pid, libc::SIGCONT);
    parent.wait(child.pid, libc::WCONTINUED);
    parent.no_sigchld();
    sys::kill(child.pid, libc::SIGTERM);
    parent.sigchld();
    parent.wait(child.pid, 0);
    Ok(())
}

fn group(parent: &mut Parent) -> Result<()> {
    let first = parent.start_with("first", &own_group_of_child)?;
    let leader = first.pid;
    let second = parent.start_with("second", &move || join_group(leader))?;
    for _ in 0..3 {
        sys::killpg(leader, libc::SIGTSTP);
        parent.wait(first.pid, libc::WUNTRACED);
        parent.wait(second.pid, libc::WUNTRACED);
        sys::killpg(leader, libc::SIGCONT);
        parent.wait(first.pid, libc::WCONTINUED);
        parent.wait(second.pid, libc::WCONTINUED);
    }
    sys::killpg(leader, libc::SIGHUP);
    parent.wait(first.pid, 0);
    parent.wait(second.pid, 0);
    Ok(())
}
