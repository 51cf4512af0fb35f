//! Many children at once.

use anyhow::Result;

use super::Case;
use super::parent::Parent;
use super::signals::{join_group, own_group_of_child};
use super::sys;

pub(super) const CASES: &[(&str, Case)] =
    &[("two_hundred_at_once", at_once), ("two_hundred_killed_at_once", killed), ("many_in_a_group", group)];

const COUNT: usize = 200;

fn reap(parent: &mut Parent, pids: &[i32]) {
    let mut statuses = vec![String::new(); pids.len()];
    for _ in pids {
        let (pid, status) = parent.wait_quietly(-1, 0);
        match pids.iter().position(|known| *known == pid) {
            Some(at) if statuses[at].is_empty() => statuses[at] = sys::status(status),
            Some(at) => parent.note(format!("child {at} ends twice: {}", sys::status(status))),
            None => parent.note(format!("a stranger, or nobody: {pid} {status}")),
        }
    }
    statuses.iter().enumerate().for_each(|(at, status)| parent.note(format!("child {at}: {status}")));
    parent.wait(-1, 0);
}

fn at_once(parent: &mut Parent) -> Result<()> {
    let mut children = Vec::new();
    for at in 0..COUNT {
        children.push(parent.start(&format!("child{at}"))?);
    }
    for (at, child) in children.iter_mut().enumerate() {
        child.tell(&format!("exit {}", at % 256))?;
    }
    let pids: Vec<i32> = children.iter().map(|child| child.pid).collect();
    reap(parent, &pids);
    Ok(())
}

fn killed(parent: &mut Parent) -> Result<()> {
    let mut children = Vec::new();
    for at in 0..COUNT {
        children.push(parent.start(&format!("child{at}"))?);
    }
    let pids: Vec<i32> = children.iter().map(|child| child.pid).collect();
    let signals = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, 64];
    for (at, pid) in pids.iter().enumerate() {
        sys::kill(*pid, signals[at % signals.len()]);
    }
    reap(parent, &pids);
    Ok(())
}

fn group(parent: &mut Parent) -> Result<()> {
    let first = parent.start_with("leader", &own_group_of_child)?;
    let leader = first.pid;
    let mut children = vec![first];
    for at in 1..50 {
        children.push(parent.start_with(&format!("child{at}"), &move || join_group(leader))?);
    }
    let pids: Vec<i32> = children.iter().map(|child| child.pid).collect();
    parent.note(sys::said(sys::killpg(leader, libc::SIGTERM)));
    reap(parent, &pids);
    parent.note(sys::said(sys::killpg(leader, libc::SIGTERM)));
    Ok(())
}
