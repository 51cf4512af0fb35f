//! Agents that come, go, are slow, wrong or not root; many processes; the keeper's own end. Needs root.

mod common;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use bproc_common::id::Pid;
use bproc_common::keeper::{KeeperMsg, ev, op, state};
use bproc_common::wait::Status;
use bproc_common::wire::Record;
use bproc_sys::process::Process;
use bproc_sys::seqpacket::Conn;
use bproc_sys::signal::kill;
use common::*;

#[test]
fn a_new_agent_learns_what_it_missed() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let mut pids = [sleeper(), sleeper(), sleeper(), sleeper()];
    pids.sort_unstable();
    let [running, stopped, dying, gone] = pids;
    for pid in pids {
        assert_eq!(agent.ask(op::SEIZE, pid), 0);
    }
    assert_eq!(agent.ask(op::RELEASE, gone), 0);
    drop(agent);
    kill(stopped, libc::SIGTSTP).unwrap();
    kill(dying, libc::SIGKILL).unwrap();
    kill(gone, libc::SIGKILL).unwrap();
    assert_eq!(wait(gone, 0), KILLED);
    assert_eq!(wait(stopped, libc::WUNTRACED), Status::Stopped(libc::SIGTSTP as u8));
    // Its way to the gate is short but nobody tells when it has come there: /proc does.
    let process = Process::open(dying).unwrap();
    while process.stat().unwrap().state != b't' {
        std::thread::yield_now();
    }
    let mut agent = keeper.agent();
    assert_eq!(
        agent.list(),
        [
            (running.get(), state::RUNNING, 0),
            (stopped.get(), state::STOPPED, libc::SIGTSTP as u64),
            (dying.get(), state::EXITING, 9),
        ]
    );
    // Seized again by an agent that does not know: nothing changes.
    assert_eq!(agent.ask(op::SEIZE, dying), 0);
    assert!(is_quiet(dying));
    assert_eq!(agent.ask(op::RELEASE, dying), 0);
    assert_eq!(wait(dying, 0), KILLED);
}

#[test]
fn the_last_agent_is_the_agent() {
    let keeper = Keeper::start();
    let mut first = keeper.agent();
    assert_eq!(first.ask_plain(op::PING), 0);
    let mut second = keeper.agent();
    assert_eq!(second.ask_plain(op::PING), 0);
    assert_eq!(first.next(), None);
}

#[test]
fn only_root_is_heard() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    assert_eq!(agent.ask_plain(op::PING), 0);
    let path = keeper.socket();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let pid = child(|| {
        // SAFETY: no pointers. The bare call: of this process only, which has one thread.
        if unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) } != 0 {
            return 1;
        }
        let Ok(conn) = Conn::connect(&path) else {
            return 2;
        };
        match conn.recv(&mut [0; KeeperMsg::SIZE]) {
            Ok(got) if got.len == 0 => 0,
            _ => 3,
        }
    });
    assert_eq!(wait(pid, 0), Status::Exited(0));
    assert_eq!(agent.ask_plain(op::PING), 0, "the real agent is not disturbed");
}

#[test]
fn garbage_is_ignored() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    for len in [1, 31, 33, 5000] {
        agent.conn.send(&vec![0xff; len], &[]).unwrap();
    }
    use std::os::fd::AsFd;
    agent.conn.send(&[1], &[agent.conn.as_fd()]).unwrap();
    let tag = agent.send(77, 1);
    assert_eq!(agent.done(tag), -libc::ENOSYS);
    for pid in [0, -1, i32::MIN, i32::MAX] {
        for op in [op::SEIZE, op::RELEASE, op::DETACH] {
            let tag = agent.send(op, pid);
            assert_eq!(agent.done(tag), -libc::ESRCH, "op {op} pid {pid}");
        }
    }
    assert_eq!(agent.ask(op::SEIZE, keeper.pidfd.pid()), -libc::EPERM);
    assert_eq!(agent.ask_plain(op::PING), 0);
}

#[test]
fn an_agent_that_does_not_read_is_cut_off() {
    let keeper = Keeper::start();
    let deaf = keeper.agent();
    let mut bytes = [0; KeeperMsg::SIZE];
    KeeperMsg { op: op::PING, ..KeeperMsg::default() }.put(&mut bytes);
    let error = loop {
        if let Err(e) = deaf.conn.send(&bytes, &[]) {
            break e;
        }
    };
    // RESET where commands of ours were left unread.
    assert!(matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)), "{error}");
    let mut agent = keeper.agent();
    assert_eq!(agent.ask_plain(op::PING), 0);
}

#[test]
fn if_the_keeper_dies_all_go_free() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (running, stopped, dying) = (sleeper(), sleeper(), sleeper());
    for pid in [running, stopped, dying] {
        assert_eq!(agent.ask(op::SEIZE, pid), 0);
    }
    kill(stopped, libc::SIGSTOP).unwrap();
    agent.expect(ev::STOPPED, stopped);
    assert_eq!(wait(stopped, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP as u8));
    kill(dying, libc::SIGKILL).unwrap();
    agent.expect(ev::EXITING, dying);
    keeper.kill();
    assert_eq!(wait(dying, 0), KILLED);
    kill(stopped, libc::SIGCONT).unwrap();
    assert_eq!(wait(stopped, libc::WCONTINUED), Status::Continued);
    for pid in [running, stopped] {
        kill(pid, libc::SIGKILL).unwrap();
        assert_eq!(wait(pid, 0), KILLED);
    }
}

#[test]
fn a_keeper_that_holds_nothing_may_be_ended() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    keeper.pidfd.send_signal(libc::SIGTERM).unwrap();
    assert_eq!(agent.ask_plain(op::PING), 0);
    assert_eq!(agent.ask(op::DETACH, pid), 0);
    keeper.pidfd.send_signal(libc::SIGTERM).unwrap();
    assert_eq!(wait(keeper.pidfd.pid(), 0), Status::Exited(0));
    assert!(!keeper.socket().exists());
}

#[test]
fn quit_lets_all_go() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    kill(pid, libc::SIGKILL).unwrap();
    agent.expect(ev::EXITING, pid);
    assert_eq!(agent.ask_plain(op::QUIT), 0);
    assert_eq!(wait(keeper.pidfd.pid(), 0), Status::Exited(0));
    assert_eq!(wait(pid, 0), KILLED);
}

/// Holds, kills and releases so many; none may be lost.
fn many(count: usize) {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pids: Vec<Pid> = (0..count).map(|_| sleeper()).collect();
    let process = Process::open(keeper.pidfd.pid()).unwrap();
    let mut clock = Instant::now();
    let mut lap = |what: &str| {
        let stat = process.stat().unwrap();
        let (user, system) = (stat.utime * 10, stat.stime * 10);
        println!("{count} {what}: {:?}; keeper so far: user {user} ms, system {system} ms", clock.elapsed());
        clock = Instant::now();
    };
    for pid in &pids {
        agent.send(op::SEIZE, pid.get());
    }
    agent.ask_plain(op::PING);
    lap("seized");
    for pid in &pids {
        kill(*pid, libc::SIGKILL).unwrap();
    }
    lap("killed");
    let mut waiting: HashSet<i32> = pids.iter().map(|p| p.get()).collect();
    while !waiting.is_empty() {
        assert!(waiting.remove(&agent.take_event(ev::EXITING).pid));
    }
    lap("at the gate");
    assert!(pids.iter().all(|pid| is_quiet(*pid)));
    assert_eq!(agent.list().len(), count);
    lap("listed");
    for pid in &pids {
        agent.send(op::RELEASE, pid.get());
    }
    agent.ask_plain(op::PING);
    for pid in &pids {
        assert_eq!(wait(*pid, 0), KILLED);
    }
    lap("released and reaped");
    assert_eq!(agent.list(), []);
}

#[test]
fn two_thousand_are_held_and_none_is_lost() {
    many(2000);
}

#[test]
#[ignore = "10,000 processes: for measuring, with --nocapture"]
fn ten_thousand_are_held_and_none_is_lost() {
    many(10_000);
}
