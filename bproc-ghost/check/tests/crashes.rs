//! What a space does for an agent that dies: signals are not sent twice, and without any agent it ends.

use bproc_common::ghost::{Msg, Role, ev, op};
use bproc_ghost_check::{Conn, Space, parts, siginfo};

/// Has `sender` send a signal with this value to the skeleton 500, noted with this key.
fn send(sender: &mut Conn, receiver: i64, key: i64, value: u64) {
    let msg = Msg { op: op::SIGNAL, a: 500, c: receiver, d: key, ..Msg::default() };
    let info = siginfo(40, libc::SI_QUEUE, 77, 5, value);
    assert_eq!(sender.call_msg(msg, &info), 0);
}

#[test]
fn a_signal_that_may_have_been_sent_is_sent_only_if_it_was_not() {
    let mut space = Space::start();
    let mut target = space.clone_child(500, Role::Skeleton);
    let mut other = space.clone_child(600, Role::Skeleton);
    send(&mut space.init, 7, 1, 10);
    send(&mut other, 7, 2, 20);
    space.lose_agent();
    space.regain_agent();
    // Whoever sent it: each knows of all.
    send(&mut other, 7, -1, 11);
    send(&mut space.init, 7, -2, 21);
    // The same number for another process, another number, and no question.
    send(&mut space.init, 8, -1, 30);
    send(&mut other, 7, -3, 40);
    send(&mut other, 7, -3, 41);
    send(&mut other, 7, 1, 50);
    send(&mut other, 0, 0, 60);
    let values: Vec<u64> = (0..6).map(|_| parts(&target.report(ev::SIGNAL).payload).4).collect();
    assert_eq!(values, [10, 20, 30, 40, 50, 60]);
    assert_eq!(target.call_with(op::NAME, 0, 0, b"x", &[]), 0);
    assert_eq!(target.kept(ev::SIGNAL), 0);
}

#[test]
fn an_old_note_makes_room_for_a_new_one() {
    let mut space = Space::start();
    let mut target = space.clone_child(500, Role::Skeleton);
    for key in 1..=5000 {
        send(&mut space.init, 7, key, 0);
        let number = target.report(ev::SIGNAL).msg.tag;
        target.ack(number);
    }
    send(&mut space.init, 7, -5000, 1);
    send(&mut space.init, 7, -905, 2);
    send(&mut space.init, 7, -904, 3);
    assert_eq!(parts(&target.report(ev::SIGNAL).payload).4, 3);
}

#[test]
fn an_init_ends_when_its_agent_says_nothing_though_it_is_connected() {
    let mut space = Space::start();
    assert_eq!(space.call(op::LEASE, 60_000, 0), 0);
    assert_eq!(space.call(op::LEASE, 400, 0), 0);
    let mut child = space.clone_child(500, Role::Skeleton);
    assert_eq!(child.call(op::LEASE, 400, 0), -i64::from(libc::EPERM));
    assert!(space.receive().is_none(), "the connection ends with init");
    assert!(child.receive().is_none(), "and with it the whole space");
}

#[test]
fn an_init_without_a_lease_lives_on() {
    let mut space = Space::start();
    assert_eq!(space.call(op::LEASE, 300, 0), 0);
    assert_eq!(space.call(op::LEASE, 0, 0), 0);
    let mut child = space.clone_child(500, Role::Skeleton);
    space.lose_agent();
    std::thread::sleep(std::time::Duration::from_millis(500));
    space.regain_agent();
    assert_eq!(child.call_with(op::NAME, 0, 0, b"x", &[]), 0);
}
