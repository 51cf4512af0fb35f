//! Signals that ghosts cannot see, and processes beyond the boundary.

mod common;

use bproc_bpf::Role;
use bproc_common::event::{Event, kind};
use common::{collect, fork, kill, monitor, of, text, wait};

/// A process of ours that waits for a signal.
fn sleeper() -> i32 {
    fork(|| {
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::pause() };
        }
    })
}

#[test]
fn a_kill_names_its_sender() {
    let Some(mut monitor) = monitor(Role::Master) else {
        return;
    };
    let (ghost, other) = (sleeper(), sleeper());
    monitor.add_ghost(ghost as u32).expect("add");
    kill(other, libc::SIGKILL);
    wait(other);
    kill(ghost, 0);
    let sender = fork(|| {
        // SAFETY: no memory is involved; the pid is that of our sleeper.
        unsafe { libc::kill(ghost, libc::SIGSTOP) }
    });
    wait(sender);
    kill(ghost, libc::SIGCONT);
    kill(ghost, libc::SIGKILL);
    wait(ghost);
    let events = collect(&mut monitor, |events| events.len() >= 3);
    let shown = text(&events);
    let me = std::process::id();
    let told: Vec<(u32, u32, u32)> = events.iter().map(|e| (e.kind, e.arg, e.arg2)).collect();
    assert_eq!(told, [(kind::SIGNAL, 19, sender as u32), (kind::SIGNAL, 18, me), (kind::SIGNAL, 9, me)], "{shown}");
    for event in &events {
        assert_eq!((event.pid, event.host_pid), (ghost as u32, ghost as u32));
        assert_eq!((event.arg3, event.code), (0, 0), "{shown}");
    }
}

#[test]
fn the_sender_has_its_real_uid() {
    let Some(mut monitor) = monitor(Role::Master) else {
        return;
    };
    let ghost = fork(|| {
        // SAFETY: no memory is involved.
        unsafe {
            libc::setuid(4242);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    });
    // The sender needs the uid on both sides, so wait until it is set.
    let deadline = std::time::Instant::now() + common::LIMIT;
    while std::fs::read_to_string(format!("/proc/{ghost}/status")).is_ok_and(|status| !status.contains("Uid:\t4242")) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    monitor.add_ghost(ghost as u32).expect("add");
    let sender = fork(|| {
        // SAFETY: no memory is involved; the pid is that of our sleeper.
        unsafe {
            libc::setuid(4242);
            libc::kill(ghost, libc::SIGKILL)
        }
    });
    assert_eq!(wait(sender), 0);
    wait(ghost);
    let events = collect(&mut monitor, |events| !events.is_empty());
    assert_eq!(events[0].arg2, sender as u32, "{}", text(&events));
    assert_eq!((events[0].arg3, events[0].uid), (4242, 4242));
}

#[test]
fn a_stop_signal_to_a_stopped_ghost_is_told() {
    let Some(mut monitor) = monitor(Role::Master) else {
        return;
    };
    let ghost = sleeper();
    monitor.add_ghost(ghost as u32).expect("add");
    let unread = |events: &[Event]| of(events, kind::UNREAD).iter().map(|e| e.arg as i32).collect::<Vec<_>>();
    kill(ghost, libc::SIGSTOP);
    let mut status = 0;
    // SAFETY: a child of ours and a valid place for its status.
    assert_eq!(unsafe { libc::waitpid(ghost, &mut status, libc::WUNTRACED) }, ghost);
    assert!(libc::WIFSTOPPED(status));
    kill(ghost, libc::SIGTSTP);
    kill(ghost, libc::SIGSTOP);
    kill(ghost, libc::SIGCONT);
    kill(ghost, libc::SIGKILL);
    wait(ghost);
    let events = collect(&mut monitor, |events| of(events, kind::SIGNAL).iter().any(|e| e.arg == libc::SIGKILL as u32));
    // The first one met a running ghost: the keeper tells of that.
    assert_eq!(unread(&events), [libc::SIGTSTP, libc::SIGSTOP], "{}", text(&events));
    let from = of(&events, kind::UNREAD)[0];
    assert_eq!((from.code, from.arg2), (0, std::process::id()));
}

#[test]
fn pids_beyond_the_boundary_are_told() {
    let Some(mut monitor) = monitor(Role::Master) else {
        return;
    };
    // Every pid is beyond 2, so also those of whoever else runs here.
    monitor.set_boundary(2).expect("set");
    let child = fork(|| 0);
    wait(child);
    let mine = |event: &bproc_common::event::Event| event.pid == child as u32;
    let events = collect(&mut monitor, |events| events.iter().any(mine));
    monitor.add_keeper(std::process::id()).expect("add");
    let silent = fork(|| 0);
    wait(silent);
    monitor.remove_keeper(std::process::id()).expect("remove");
    let last = fork(|| 0);
    wait(last);
    let later = collect(&mut monitor, |events| events.iter().any(|event| event.pid == last as u32));
    assert!(!later.iter().any(|event| event.pid == silent as u32));
    let told = events.into_iter().find(mine).expect("told");
    assert_eq!(told.kind, kind::BEYOND);
    assert_eq!(told.ppid, std::process::id());
    assert!(of(&later, kind::FORK).is_empty(), "{}", text(&later));
}

/// A sleeper that leads a group, or joins one, and keeps all signals waiting as a ghost does.
fn member(of: i32) -> i32 {
    let pid = fork(|| {
        // SAFETY: a set of signals on the stack; no other memory is involved.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
            loop {
                libc::pause();
            }
        }
    });
    // SAFETY: our own children.
    assert_eq!(unsafe { libc::setpgid(pid, of) }, 0);
    let deadline = std::time::Instant::now() + common::LIMIT;
    let is_deaf =
        |status: String| status.contains("SigBlk:\tfffffffe7ffbfeff") || status.contains("SigBlk:\tfffffffffffbfeff");
    while !std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(is_deaf) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    pid
}

#[test]
fn one_call_to_a_group_has_one_name() {
    let Some(mut monitor) = monitor(Role::Master) else {
        return;
    };
    // The second is nobody's ghost.
    let leader = member(0);
    let members = [leader, member(leader), member(leader), member(leader)];
    for ghost in [members[0], members[2], members[3]] {
        monitor.add_ghost(ghost as u32).expect("add");
    }
    let send = |whom: i32, signal: i32| {
        assert!(!(-1..=1).contains(&whom));
        // SAFETY: a child of ours, or a group of such.
        assert_eq!(unsafe { libc::kill(whom, signal) }, 0);
    };
    send(-leader, libc::SIGTERM);
    send(members[3], libc::SIGINT);
    send(-leader, libc::SIGTERM);
    send(-leader, libc::SIGHUP);
    send(-leader, libc::SIGCONT);
    let events = collect(&mut monitor, |events| of(events, kind::GROUP).len() >= 9);
    send(-leader, libc::SIGKILL);
    for member in members {
        wait(member);
    }
    let killed = collect(&mut monitor, |events| events.len() >= 3);
    let shown = text(&events) + &text(&killed);
    let groups = of(&events, kind::GROUP);
    let told: Vec<_> = groups.iter().map(|e| (e.pid as i32, e.arg as i32, e.queued)).collect();
    let each = |signal: i32, queued: u32| [3, 2, 0].map(|at| (members[at], signal, queued));
    assert_eq!(told, [each(libc::SIGTERM, 1), each(libc::SIGTERM, 0), each(libc::SIGHUP, 1)].concat(), "{shown}");
    let mut calls: Vec<u64> = groups.iter().chain(&of(&killed, kind::SIGNAL)).map(|e| e.call).collect();
    for group in groups {
        assert_eq!((group.pgid as i32, group.arg2, group.code), (leader, std::process::id(), 0), "{shown}");
    }
    calls.dedup();
    assert_eq!(calls.len(), 4, "{shown}");
    assert!(calls.iter().all(|call| *call != 0), "{shown}");
}
