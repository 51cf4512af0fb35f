//! Trees of ghosts with chosen pids, and what is told of their ends.

use bproc_common::ghost::{Role, ev, left, op};
use bproc_common::wait::Status;
use bproc_ghost_check::{Conn, Ghost, Space, root_head, shell};
use std::os::fd::AsRawFd;

/// CLD_* codes.
const EXITED: i64 = 1;
const KILLED: i64 = 2;
const STOPPED: i64 = 5;
const CONTINUED: i64 = 6;

/// pid, code and status of the next report about a child.
fn change(parent: &mut Conn) -> (i64, i64, i32) {
    let msg = parent.report(ev::CHILD).msg;
    (msg.a, msg.b, msg.c as i32)
}

fn ends(conn: &mut Conn, code: i64) {
    conn.send(op::EXIT, code, 0, &[], &[]);
}

/// State letter and parent of a process of this machine.
fn state(pid: i32) -> (char, String) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("there is such a process");
    let mut fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
    (fields.next().expect("state").chars().next().expect("letter"), fields.next().expect("ppid").into())
}

#[test]
fn a_tree_has_the_pids_and_parents_that_were_asked_for() {
    let mut space = Space::start();
    assert_eq!((space.pid(), space.role()), (1, Role::Init as i64));
    let mut father = space.clone_child(500, Role::Skeleton);
    assert_eq!((father.hello.c, father.role()), (1, Role::Skeleton as i64));
    assert_eq!(father.call(op::SETSID, 0, 0), 500);
    let child = father.clone_child(&mut space.listener, 77_777, Role::Ghost);
    assert_eq!((child.hello.c, child.role(), child.hello.d), (500, Role::Ghost as i64, 0));
    // CLONE_PARENT makes a sibling of the one that is asked.
    let mut child = child;
    assert_eq!(child.call(op::CLONE, 600, 1), 600);
    let mut sibling = space.listener.accept(600);
    assert_eq!((sibling.hello.c, sibling.role()), (500, Role::Ghost as i64));
    assert_eq!(sibling.call(op::SETPGID, 0, 0), 0);
    assert_eq!(child.call(op::SETPGID, 0, 600), 0);
    assert_eq!(father.call(op::CLONE, 600, 0), -i64::from(libc::EEXIST));
    ends(&mut sibling, 4);
    assert_eq!(change(&mut father), (600, EXITED, 4 << 8));
    assert_eq!(father.call(op::REAP, 600, 0), 600);
    assert_eq!(father.call(op::REAP, 600, 0), -i64::from(libc::ECHILD));
    assert_eq!(father.call(op::REAP, 77_777, 0), 0);
    // An orphan goes to init, which tells of it.
    ends(&mut father, 0);
    assert_eq!(change(&mut space), (500, EXITED, 0));
    ends(&mut child, 9);
    assert_eq!(change(&mut space), (77_777, EXITED, 9 << 8));
}

#[test]
fn pids_follow_the_cursor_when_none_is_asked_for() {
    let mut space = Space::start();
    assert_eq!(space.call(op::LAST_PID, 9_000_000_000, 0), -i64::from(libc::EINVAL));
    assert_eq!(space.call(op::LAST_PID, 40_000, 0), 0);
    assert_eq!(space.call(op::LAST_PID, 0, 0), 40_000);
    assert_eq!(space.call(op::CLONE, 0, 0), 40_001);
    assert_eq!(space.call(op::LAST_PID, 0, 0), 40_001);
    let mut child = space.listener.accept(40_001);
    assert_eq!(child.role(), Role::Skeleton as i64);
    assert_eq!(child.call(op::LAST_PID, 50_000, 0), -i64::from(libc::EPERM));
}

#[test]
fn a_clone_of_one_that_holds_signals_takes_its_own() {
    let mut space = Space::start();
    let mut child = space.clone_child(300, Role::Skeleton);
    assert_eq!(child.call(op::HOLD, left::QUEUED, 0), 0);
    assert_eq!(child.call(op::CLONE, 301, 0), 301);
    let mut other = space.listener.accept(301);
    let outer = other.outer_pid();
    assert!(outer > 1);
    let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
    // SAFETY: no memory; its init is ours, and it has not ended.
    assert_eq!(unsafe { libc::sigqueue(outer, libc::SIGRTMIN(), value) }, 0);
    assert_eq!(other.report(ev::SIGNAL).msg.a, i64::from(libc::SIGRTMIN()));
}

#[test]
fn an_end_is_told_with_status_and_usage_and_waits_for_the_reaper() {
    let mut space = Space::start();
    let mut child = space.clone_child(300, Role::Skeleton);
    let outer = child.outer_pid();
    let block = shell(root_head(), "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; kill -ABRT $$", |b| b.fds = &[]);
    child.send(op::EXEC, 0, 0, &[], &[block.as_raw_fd()]);
    let packet = space.report(ev::CHILD);
    assert_eq!((packet.msg.a, packet.msg.b), (300, KILLED));
    assert_eq!(Status::from_raw(packet.msg.c as i32), Status::Killed { signal: libc::SIGABRT as u8, core: false });
    assert_eq!(packet.payload.len(), 144);
    let long = |at: usize| i64::from_ne_bytes(packet.payload[at..at + 8].try_into().expect("8 bytes"));
    assert!(long(0) * 1_000_000 + long(8) + long(16) * 1_000_000 + long(24) > 0, "some CPU time");
    assert!(long(32) > 100, "ru_maxrss in KiB");
    assert_eq!(state(outer).0, 'Z');
    assert_eq!(space.call(op::REAP, 300, 0), 300);
    assert!(!std::path::Path::new(&format!("/proc/{outer}")).exists());
    assert_eq!(space.kept(ev::CHILD), 0);
}

#[test]
fn two_hundred_ends_at_once_are_all_told() {
    let mut space = Space::start();
    let mut children: Vec<_> = (1000..1200).map(|pid| space.clone_child(pid, Role::Skeleton)).collect();
    for (code, child) in children.iter_mut().enumerate() {
        ends(child, code as i64);
    }
    let mut told: Vec<_> = (0..200).map(|_| change(&mut space)).collect();
    told.sort_unstable();
    let wanted: Vec<_> = (0..200).map(|n| (1000 + n, EXITED, (n as i32) << 8)).collect();
    assert_eq!(told, wanted);
    for pid in 1000..1200 {
        assert_eq!(space.call(op::REAP, pid, 0), pid);
    }
    assert_eq!(space.kept(ev::CHILD), 0, "none twice");
    // The numbers may be used again, and are told again.
    let mut again = space.clone_child(1007, Role::Skeleton);
    ends(&mut again, 1);
    assert_eq!(change(&mut space), (1007, EXITED, 1 << 8));
}

#[test]
fn a_thousand_ends_wait_for_an_agent_that_is_away() {
    let mut space = Space::start();
    let mut children: Vec<_> = (1000..2000).map(|pid| space.clone_child(pid, Role::Skeleton)).collect();
    // Some are told already and not reaped.
    ends(&mut children[3], 3);
    assert_eq!(change(&mut space), (1003, EXITED, 3 << 8));
    space.lose_agent();
    for child in &mut children[4..] {
        ends(child, 5);
    }
    space.regain_agent();
    let mut told: Vec<_> = (0..997).map(|_| change(&mut space).0).collect();
    told.sort_unstable();
    assert_eq!(told, (1003..2000).collect::<Vec<_>>());
}

#[test]
fn stops_and_continuations_of_children_are_told() {
    let mut space = Space::start();
    let mut child = space.clone_child(300, Role::Skeleton);
    assert_eq!(child.call(op::STOP, i64::from(libc::SIGSTOP), 0), 0);
    assert_eq!(change(&mut space), (300, STOPPED, 0x137f));
    let wake = bproc_ghost_check::siginfo(libc::SIGCONT, libc::SI_QUEUE, 1, 0, 0x6270_7263);
    assert_eq!(space.call_with(op::SIGNAL, 300, 0, &wake, &[]), 0);
    assert_eq!(change(&mut space), (300, CONTINUED, 0xffff));
    assert_eq!(child.call(op::SETSID, 0, 0), 300);
    let kill = bproc_ghost_check::siginfo(libc::SIGKILL, libc::SI_USER, 1, 0, 0);
    assert_eq!(space.call_with(op::SIGNAL, 300, 0, &kill, &[]), 0);
    assert_eq!(change(&mut space), (300, KILLED, libc::SIGKILL));
}

#[test]
fn a_ghost_tells_of_stops_only_if_so_asked() {
    let mut ghost = Ghost::start();
    let child_pid = 4_000_000 + ((std::process::id() + 50_000) % 100_000) as i32;
    let mut child = ghost.conn.clone_child(&mut ghost.listener, child_pid, Role::Ghost);
    let outer = child.outer_pid();
    assert_eq!(child.call(op::STOP, i64::from(libc::SIGSTOP), 0), 0);
    assert_eq!(ghost.conn.call(op::WATCH_CHILDREN, 1, 0), 0);
    assert_eq!(change(&mut ghost.conn), (i64::from(child_pid), STOPPED, 0x137f));
    let go_on = bproc_ghost_check::siginfo(libc::SIGCONT, libc::SI_QUEUE, 1, 0, 7);
    assert_eq!(ghost.conn.call_with(op::SIGNAL, i64::from(child_pid), 0, &go_on, &[]), 0);
    assert_eq!(change(&mut ghost.conn), (i64::from(child_pid), CONTINUED, 0xffff));
    ends(&mut child, 6);
    while state(outer).0 != 'Z' {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    }
    assert_eq!(ghost.conn.kept(ev::CHILD), 0);
    assert_eq!(ghost.conn.call(op::REAP, i64::from(child_pid), 0), i64::from(child_pid));
}

#[test]
fn a_ghost_keeps_its_zombies_to_itself_until_asked() {
    let mut ghost = Ghost::start();
    // Far above what this machine is likely to use.
    let child_pid = 4_000_000 + (std::process::id() % 100_000) as i32;
    let mut child = ghost.conn.clone_child(&mut ghost.listener, child_pid, Role::Ghost);
    let outer = child.outer_pid();
    ends(&mut child, 6);
    assert!(child.receive().is_none());
    while state(outer).0 != 'Z' {
        std::thread::yield_now();
    }
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    assert_eq!(ghost.conn.kept(ev::CHILD), 0);
    assert_eq!(ghost.conn.call(op::WATCH_CHILDREN, 0, 0), 0);
    assert_eq!(change(&mut ghost.conn), (i64::from(child_pid), EXITED, 6 << 8));
    assert_eq!(ghost.conn.call(op::REAP, i64::from(child_pid), 0), i64::from(child_pid));
}
