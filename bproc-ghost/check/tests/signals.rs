//! Signals to a ghost reach the agent: all, once, in order, with their siginfo.

use bproc_common::ghost::{Msg, WAKE, ev, left, op};
use bproc_common::wire::Record;
use bproc_ghost_check::{Ghost, parts};

const RT: i32 = 40;

/// Takes signals from `first` on and gives their values; acknowledges every 32nd.
fn take(ghost: &mut Ghost, first: u32, count: u32) -> Vec<u64> {
    (first..first + count)
        .map(|number| {
            let packet = ghost.conn.report(ev::SIGNAL);
            assert_eq!(packet.msg.tag, number);
            if number % 32 == 0 {
                ghost.conn.ack(number);
            }
            parts(&packet.payload).4
        })
        .collect()
}

#[test]
fn every_signal_comes_once_with_its_sender() {
    let mut ghost = Ghost::start();
    let mut number = 0;
    for signal in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        number += 1;
        ghost.kill(signal);
        let packet = ghost.conn.report(ev::SIGNAL);
        assert_eq!((packet.msg.tag, packet.msg.a), (number, i64::from(signal)));
        // SAFETY: tells a number.
        let uid = unsafe { libc::getuid() };
        let (signo, code, pid, sender, _) = parts(&packet.payload);
        assert_eq!((signo, code, pid, sender), (signal, libc::SI_USER, std::process::id() as i32, uid));
        ghost.conn.ack(number);
    }
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    assert_eq!(ghost.conn.kept(ev::SIGNAL), 0);
}

#[test]
fn queued_values_keep_their_order() {
    let mut ghost = Ghost::start();
    for value in 0..100 {
        ghost.queue(RT, value);
    }
    assert_eq!(take(&mut ghost, 1, 100), (0..100).collect::<Vec<_>>());
}

#[test]
fn ten_thousand_wait_in_the_kernel_while_the_agent_does_not_acknowledge() {
    let mut ghost = Ghost::start();
    for value in 0..10_000 {
        ghost.queue(RT, value);
    }
    assert_eq!(take(&mut ghost, 1, 10_000), (0..10_000).collect::<Vec<_>>());
}

#[test]
fn an_agent_that_goes_away_loses_and_doubles_nothing() {
    let mut ghost = Ghost::start();
    for value in 0..10 {
        ghost.queue(RT, value);
    }
    take(&mut ghost, 1, 10);
    ghost.conn.ack(5);
    assert_eq!(ghost.conn.call(op::REAP, 0, 0), -i64::from(libc::EINVAL));
    ghost.listener.hide();
    ghost.conn.hang_up();
    for value in 10..200 {
        ghost.queue(RT, value);
    }
    ghost.kill(libc::SIGUSR1);
    ghost.listener.show();
    ghost.conn = ghost.listener.accept(ghost.pid());
    assert!(ghost.conn.hello.d >= 10);
    // USR1 has the lower number: the kernel gives it first once the ring has room, so order is kept per signal.
    let mut values = Vec::new();
    let mut user = 0;
    for number in 6..=201 {
        let packet = ghost.conn.report(ev::SIGNAL);
        assert_eq!(packet.msg.tag, number);
        match packet.msg.a as i32 {
            libc::SIGUSR1 => user += 1,
            _ => values.push(parts(&packet.payload).4),
        }
        ghost.conn.ack(number);
    }
    assert_eq!(user, 1);
    assert_eq!(values, (5..200).collect::<Vec<_>>());
}

#[test]
fn one_that_may_have_no_descriptors_hears_and_tells_all_the_same() {
    let mut ghost = Ghost::start();
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the record outlives the call.
    let done = unsafe { libc::prlimit(ghost.pid(), libc::RLIMIT_NOFILE, &raw const none, std::ptr::null_mut()) };
    assert_eq!(done, 0);
    for number in 1..=20 {
        ghost.kill(libc::SIGUSR1);
        let packet = ghost.conn.report(ev::SIGNAL);
        assert_eq!((packet.msg.tag, packet.msg.a), (number, i64::from(libc::SIGUSR1)));
        ghost.conn.ack(number);
        assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", ghost.pid())).expect("it lives");
    let ticks = stat.split(' ').skip(13).take(2).map(|field| field.parse::<u32>().expect("a number")).sum::<u32>();
    assert!(ticks < 20, "it takes {ticks} ticks of the processor in a second");
}

#[test]
fn the_waking_call_is_not_forwarded() {
    let mut ghost = Ghost::start();
    ghost.queue(libc::SIGCONT, 0x6270_7263);
    ghost.kill(libc::SIGUSR2);
    assert_eq!(ghost.conn.report(ev::SIGNAL).msg.a, i64::from(libc::SIGUSR2));
    // The lower number is taken first; an answer means that all are taken, else the next SIGCONT would be merged.
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    // With another value it is a user's.
    ghost.queue(libc::SIGCONT, 1);
    assert_eq!(ghost.conn.report(ev::SIGNAL).msg.a, i64::from(libc::SIGCONT));
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    assert_eq!(ghost.conn.kept(ev::SIGNAL), 0);
}

#[test]
fn stops_and_goes_on() {
    for signal in [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        let mut ghost = Ghost::start();
        assert_eq!(ghost.conn.call(op::SETPGID, 0, 0), 0);
        assert_eq!(ghost.conn.call(op::STOP, i64::from(signal), 0), 0);
        let status = ghost.wait();
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == signal, "{status:x}");
        ghost.queue(libc::SIGCONT, 0x6270_7263);
        assert!(libc::WIFCONTINUED(ghost.wait()));
        assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"on", &[]), 0);
        // A user's SIGCONT wakes it as well and is forwarded.
        assert_eq!(ghost.conn.call(op::STOP, i64::from(signal), 0), 0);
        assert!(libc::WIFSTOPPED(ghost.wait()));
        ghost.kill(libc::SIGCONT);
        assert!(libc::WIFCONTINUED(ghost.wait()));
        assert_eq!(ghost.conn.report(ev::SIGNAL).msg.a, i64::from(libc::SIGCONT));
    }
    assert_eq!(Ghost::start().conn.call(op::STOP, i64::from(libc::SIGTERM), 0), -i64::from(libc::EINVAL));
}

#[test]
fn a_stop_that_was_counted_before_the_newest_waking_call_is_late() {
    let mut ghost = Ghost::start();
    ghost.queue(libc::SIGCONT, u64::from(WAKE) | 5 << 32);
    assert_eq!(ghost.conn.call(op::STOP, i64::from(libc::SIGSTOP), 4), 0);
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"runs", &[]), 0);
    for number in [5, 6, 0] {
        assert_eq!(ghost.conn.call(op::STOP, i64::from(libc::SIGSTOP), number), 0);
        assert!(libc::WIFSTOPPED(ghost.wait()), "{number}");
        ghost.queue(libc::SIGCONT, WAKE.into());
        assert!(libc::WIFCONTINUED(ghost.wait()));
    }
    assert_eq!(ghost.conn.kept(ev::SIGNAL), 0);
}

#[test]
fn dies_as_told() {
    let fatal = (1..=64).filter(|s| {
        let harmless = [
            libc::SIGCHLD,
            libc::SIGCONT,
            libc::SIGSTOP,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
            libc::SIGURG,
            libc::SIGWINCH,
        ];
        !harmless.contains(s)
    });
    for signal in fatal {
        let mut ghost = Ghost::start();
        ghost.conn.send(op::DIE, i64::from(signal), 0, &[], &[]);
        assert_eq!(ghost.wait(), signal, "dies by {signal} without core");
    }
    let mut ghost = Ghost::start();
    ghost.conn.send(op::DIE, i64::from(libc::SIGCHLD), 0, &[], &[]);
    assert_eq!(libc::WEXITSTATUS(ghost.wait()), 128 + libc::SIGCHLD);
    for code in [0, 7, 255] {
        let mut ghost = Ghost::start();
        ghost.conn.send(op::EXIT, code, 0, &[], &[]);
        assert_eq!(ghost.wait(), (code as i32) << 8);
    }
}

#[test]
fn bad_packets_are_refused_and_do_no_harm() {
    let mut ghost = Ghost::start();
    let invalid = -i64::from(libc::EINVAL);
    assert_eq!(ghost.conn.call(9999, 0, 0), invalid);
    assert_eq!(ghost.conn.call(op::CLONE, -5, 0), invalid);
    assert_eq!(ghost.conn.call_with(op::CLONE, 5, 0, b"2", &[]), invalid);
    assert_eq!(ghost.conn.call_with(op::CLONE, 5, 0, b"junk", &[]), invalid);
    assert_eq!(ghost.conn.call(op::REAP, -1, 0), invalid);
    assert_eq!(ghost.conn.call(op::REAP, i64::MAX, 0), invalid);
    assert_eq!(ghost.conn.call(op::CREDS, -1, 0), invalid);
    assert_eq!(ghost.conn.call(op::LAST_PID, 5, 0), -i64::from(libc::EPERM));
    assert_eq!(ghost.conn.call_with(op::NAME, 0, 0, b"longer than fifteen", &[]), invalid);
    for target in [-1, 0, 1] {
        assert_eq!(ghost.conn.call_with(op::SIGNAL, target, 0, &[0; 128], &[]), invalid);
    }
    assert_eq!(ghost.conn.call_with(op::SIGNAL, 2, 0, b"short", &[]), invalid);
    let refused = |ghost: &mut Ghost, bytes: &[u8], fds: &[i32]| {
        ghost.conn.send_raw(bytes, fds);
        assert_eq!(ghost.conn.report(ev::RESULT).msg.a, invalid);
    };
    refused(&mut ghost, b"x", &[]);
    refused(&mut ghost, &[0; 9000], &[]);
    refused(&mut ghost, &[0xff; Msg::SIZE], &[]);
    refused(&mut ghost, &[0; Msg::SIZE], &[0; 253]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", ghost.pid())).expect("readable by root").count();
    assert_eq!(open, 2, "the socket and the signalfd");
    ghost.conn.send(op::EXIT, 3, 0, &[], &[]);
    assert_eq!(ghost.wait(), 3 << 8);
}

#[test]
fn one_that_holds_leaves_signals_in_the_kernel() {
    let mut ghost = Ghost::start();
    ghost.queue(RT, 0);
    assert_eq!(take(&mut ghost, 1, 1), [0]);
    assert_eq!(ghost.conn.call(op::HOLD, left::ALL, 0), 0);
    ghost.queue(RT, 1);
    // Its answers come in order: it tells of no signal before this one.
    assert_eq!(ghost.conn.call(op::HOLD, left::ALL, 0), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", ghost.pid())).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).unwrap();
    assert_eq!(u64::from_str_radix(pending, 16).unwrap(), 1 << (RT - 1));
    assert_eq!(ghost.conn.call(op::HOLD, left::NONE, 0), 0);
    assert_eq!(take(&mut ghost, 2, 1), [1]);
    // A new agent knows nothing of it.
    ghost.conn.ack(2);
    assert_eq!(ghost.conn.call(op::HOLD, left::ALL, 0), 0);
    ghost.listener.hide();
    ghost.conn.hang_up();
    ghost.queue(RT, 2);
    ghost.listener.show();
    ghost.conn = ghost.listener.accept(ghost.pid());
    assert_eq!(take(&mut ghost, 3, 1), [2]);
}

#[test]
fn one_that_holds_queued_signals_tells_of_others() {
    let mut ghost = Ghost::start();
    assert_eq!(ghost.conn.call(op::HOLD, left::QUEUED, 0), 0);
    ghost.queue(RT, 1);
    ghost.queue(libc::SIGUSR1, 2);
    assert_eq!(take(&mut ghost, 1, 1), [2]);
    assert_eq!(ghost.conn.call(op::HOLD, left::NONE, 0), 0);
    assert_eq!(take(&mut ghost, 2, 1), [1]);
}
