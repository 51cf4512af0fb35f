use super::nodes::Attach;
use super::*;
use crate::group::{Mark, Record};
use bproc_common::id::Epoch;

const TERM: i32 = 15;
const CALL: GroupCall = GroupCall { group: 40, call: 77 };

fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn siginfo(signal: i32, sender: i32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes[16..20].copy_from_slice(&sender.to_ne_bytes());
    bytes
}

/// 50 and 51 are on node 0, 60 is on node 1.
fn three() -> Master {
    let mut m = Master::new((0..2).map(|n| (n, Node::new(0o111, 0, 0))), Leases::new(1000, 5000, 100), false);
    for (node, all) in [(NodeId(0), vec![50, 51]), (NodeId(1), vec![60])] {
        let attach = Attach {
            epoch: Epoch(1),
            instance: 1,
            orders_seen: 0,
            inventory: vec![],
            skeletons: vec![],
            leases: vec![],
            leaving: vec![],
            arriving: vec![],
        };
        let mut out = vec![];
        m.attach(node, attach, "up", &mut out).unwrap();
        for p in all {
            let facts = SpawnFacts {
                pid: pid(p),
                parent: None,
                node,
                uid: 0,
                gids: [0].into(),
                relatives: vec![pid(40)],
                starter: None,
            };
            m.spawn(Ask(1), facts, &mut out);
            m.held(pid(p), Ok(()), &mut out);
            m.spawned(pid(p), Ok(()), &mut out);
            m.ghost_connected(pid(p), None, &mut out);
        }
    }
    m
}

fn record(sender: i32, call: u64) -> Record {
    let mark = Mark { signal: TERM, code: 0, sender };
    Record { mark, group: 40, call, queued: true, uid: 0, is_set_uid: false, has_other_rights: false }
}

fn wholes(out: &[Action]) -> Vec<i32> {
    let of = |a: &Action| match a {
        Action::Send(node, _, Order::SignalGroup { group: 40, siginfo, .. }) if siginfo[0] == 15 => Some(node.0),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

fn copies(out: &[Action]) -> Vec<(i32, Pid, u32)> {
    let of = |a: &Action| match a {
        Action::Send(node, _, Order::Copy { pid, number, group: 40, .. }) => Some((node.0, *pid, *number)),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

fn signals(out: &[Action]) -> Vec<(i32, Pid)> {
    let of = |a: &Action| match a {
        Action::Send(node, _, Order::Signal { pid, .. }) => Some((node.0, *pid)),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

fn acks(out: &[Action]) -> Vec<u32> {
    out.iter().filter_map(|a| if let Action::Ghost(_, GhostCommand::Ack(n)) = a { Some(*n) } else { None }).collect()
}

#[test]
fn the_senders_ghost_signals_the_group_once_and_who_is_there_gets_no_second() {
    let mut m = three();
    let mut out = vec![];
    m.signal_from_node(NodeId(0), pid(40), siginfo(TERM, 50), Some(CALL), &mut out);
    m.signal_from_node(NodeId(0), pid(60), siginfo(TERM, 50), Some(CALL), &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::SignalGroup(40, TERM))]);
    out.clear();
    for p in [60, 51, 50] {
        m.group_signalled(pid(p), record(50, 1));
    }
    for p in [51, 60, 50] {
        m.ghost_signal(pid(p), 1, siginfo(TERM, 50), &mut out);
        m.settle_calls(false, &mut out);
    }
    assert_eq!(wholes(&out), [1]);
    assert_eq!(copies(&out), [(1, pid(60), 1)]);
    assert_eq!(signals(&out), []);
    assert_eq!(acks(&out), [1, 1]);
    out.clear();
    // What comes later is another signal.
    m.ghost_signal(pid(51), 2, siginfo(TERM, 50), &mut out);
    assert_eq!(signals(&out), [(0, pid(51))]);
}

#[test]
fn each_goes_its_way_alone_where_it_is_not_certain_who_is_where() {
    let both = |m: &mut Master, signal: i32| {
        let mut out = vec![];
        for target in [40, 60] {
            m.signal_from_node(NodeId(0), pid(target), siginfo(signal, 50), Some(CALL), &mut out);
        }
        out
    };
    let alone = |out: &[Action]| {
        assert!(matches!(out[0], Action::SignalLocal(p, _) if p == pid(40)), "{out:?}");
        assert_eq!(signals(out), [(1, pid(60))]);
    };
    alone(&both(&mut three(), 18));
    alone(&both(&mut three(), 20));
    let mut m = three();
    let facts = SpawnFacts {
        pid: pid(70),
        parent: None,
        node: NodeId(1),
        uid: 0,
        gids: [0].into(),
        relatives: vec![],
        starter: None,
    };
    m.spawn(Ask(2), facts, &mut vec![]);
    alone(&both(&mut m, TERM));
    // As it was decided for the first.
    m.held(pid(70), Ok(()), &mut vec![]);
    m.spawned(pid(70), Ok(()), &mut vec![]);
    alone(&both(&mut m, TERM));
    let mut m = three();
    m.exited(pid(50), 0, &mut vec![]);
    alone(&both(&mut m, TERM));
}

#[test]
fn a_ghost_that_nobody_holds_may_have_a_copy_that_nobody_tells_of() {
    let mut m = three();
    let mut out = vec![];
    // Its process was to come home, and did not: the ghost is one again.
    m.processes.get_mut(&pid(60)).unwrap().unheld = true;
    m.group_signalled(pid(51), record(2, 1));
    m.ghost_signal(pid(51), 1, siginfo(TERM, 2), &mut out);
    m.settle_calls(false, &mut out);
    m.ghost_signal(pid(60), 1, siginfo(TERM, 2), &mut out);
    assert_eq!(wholes(&out), []);
    assert_eq!(signals(&out), [(0, pid(51)), (1, pid(60))]);
}

#[test]
fn a_dropped_copy_takes_no_other_along() {
    let mut m = three();
    let mut out = vec![];
    m.ghost_signal(pid(51), 1, siginfo(10, 2), &mut out);
    m.signal_from_node(NodeId(0), pid(40), siginfo(TERM, 50), Some(CALL), &mut out);
    m.group_signalled(pid(51), record(50, 1));
    m.ghost_signal(pid(51), 2, siginfo(TERM, 50), &mut out);
    assert_eq!(acks(&out), []);
    let number = out.iter().find_map(|a| match a {
        Action::Send(_, n, Order::Signal { .. }) => Some(*n),
        _ => None,
    });
    out.clear();
    m.orders_acknowledged(NodeId(0), number.unwrap(), &mut out);
    assert_eq!(acks(&out), [2]);
}

#[test]
fn one_that_was_being_forked_may_have_it_too() {
    let mut m = three();
    let mut out = vec![];
    m.forked(NodeId(0), Some(pid(51)), Child { pid: pid(1000), uid: 0, gid: 0 }, &mut out);
    m.signal_from_node(NodeId(0), pid(40), siginfo(TERM, 50), Some(CALL), &mut out);
    m.group_signalled(pid(51), record(50, 1));
    m.cloned(pid(1000), Ok(()), &mut out);
    m.ghost_connected(pid(1000), Some(pid(51)), &mut out);
    out.clear();
    m.ghost_signal(pid(1000), 1, siginfo(TERM, 0), &mut out);
    assert_eq!(signals(&out), []);
    m.ghost_signal(pid(1000), 2, siginfo(TERM, 0), &mut out);
    assert_eq!(signals(&out), [(0, pid(1000))]);
}

#[test]
fn each_node_is_told_once_when_ghosts_have_told_what_came_before() {
    let mut m = three();
    let mut out = vec![];
    for p in [60, 51, 50] {
        m.group_signalled(pid(p), Record { queued: p != 51, ..record(3, 1) });
        m.settle_calls(false, &mut out);
    }
    m.ghost_signal(pid(60), 1, siginfo(10, 9), &mut out);
    m.ghost_signal(pid(60), 2, siginfo(TERM, 3), &mut out);
    m.settle_calls(false, &mut out);
    // One that waited there before it came.
    m.ghost_signal(pid(51), 1, siginfo(TERM, 9), &mut out);
    assert_eq!(signals(&out), [(1, pid(60)), (0, pid(51))]);
    assert_eq!((wholes(&out), copies(&out)), (vec![], vec![]));
    out.clear();
    m.ghost_signal(pid(50), 1, siginfo(TERM, 3), &mut out);
    m.settle_calls(false, &mut out);
    assert_eq!(wholes(&out), [0, 1]);
    assert_eq!(copies(&out), [(1, pid(60), 2), (0, pid(50), 1)]);
    assert_eq!((signals(&out), acks(&out)), (vec![], vec![]));
    let number = out.iter().filter_map(|a| if let Action::Send(NodeId(1), n, _) = a { Some(*n) } else { None }).max();
    out.clear();
    m.orders_acknowledged(NodeId(1), number.unwrap(), &mut out);
    assert_eq!(acks(&out), [1, 2]);
    m.group_signalled(pid(50), record(3, 2));
    m.settle_calls(true, &mut out);
    assert_eq!(wholes(&out), [0, 1]);
}

#[test]
fn what_one_tells_next_does_not_overtake_it() {
    let mut m = three();
    let mut out = vec![];
    for p in [60, 51] {
        m.group_signalled(pid(p), record(3, 1));
    }
    m.ghost_signal(pid(60), 1, siginfo(TERM, 3), &mut out);
    m.settle_calls(false, &mut out);
    assert_eq!(out, []);
    m.ghost_signal(pid(60), 2, siginfo(10, 3), &mut out);
    assert_eq!(wholes(&out), [0, 1]);
    assert!(matches!(out[..], [.., Action::Send(NodeId(1), _, Order::Signal { number: 2, .. })]), "{out:?}");
    out.clear();
    m.ghost_signal(pid(51), 1, siginfo(TERM, 3), &mut out);
    assert_eq!(copies(&out), [(0, pid(51), 1)]);
}

#[test]
fn who_cannot_tell_is_not_waited_for() {
    let mut m = three();
    let mut out = vec![];
    m.ghost_stopped(pid(51), false, &mut out);
    m.group_signalled(pid(51), record(3, 1));
    m.group_signalled(pid(60), record(3, 1));
    m.settle_calls(false, &mut out);
    assert_eq!(wholes(&out), []);
    m.ghost_disconnected(pid(60));
    m.settle_calls(false, &mut out);
    assert_eq!(wholes(&out), [0, 1]);
}

#[test]
fn a_start_does_not_meet_it() {
    let mut m = three();
    let mut out = vec![];
    m.group_signalled(pid(51), record(3, 1));
    let facts = SpawnFacts {
        pid: pid(70),
        parent: None,
        node: NodeId(1),
        uid: 0,
        gids: [0].into(),
        relatives: vec![],
        starter: None,
    };
    m.spawn(Ask(2), facts, &mut out);
    let at = |out: &[Action], is: fn(&Order) -> bool| {
        out.iter().position(|a| matches!(a, Action::Send(NodeId(1), _, order) if is(order)))
    };
    let (whole, start) =
        (at(&out, |o| matches!(o, Order::SignalGroup { .. })), at(&out, |o| matches!(o, Order::Spawn(_))));
    assert!(whole.is_some() && whole < start, "{out:?}");
    out.clear();
    // The next is not sent as one: who is there, and who is not yet?
    m.group_signalled(pid(51), record(3, 2));
    m.ghost_signal(pid(51), 1, siginfo(TERM, 3), &mut out);
    m.ghost_signal(pid(51), 2, siginfo(TERM, 3), &mut out);
    assert_eq!((copies(&out), signals(&out)), (vec![(0, pid(51), 1)], vec![(0, pid(51))]));
}

#[test]
fn all_of_a_group_are_killed() {
    let mut m = three();
    let mut out = vec![];
    let kill = Record { mark: Mark { signal: 9, code: 0, sender: 3 }, ..record(3, 1) };
    for p in [60, 51] {
        m.group_killed(kill, &mut out);
        m.at_gate(pid(p), &mut out);
    }
    let all: Vec<i32> = out
        .iter()
        .filter_map(|a| match a {
            Action::Send(node, _, Order::SignalGroup { group: 40, siginfo, .. }) if siginfo[0] == 9 => Some(node.0),
            Action::Send(node, _, Order::Kill(pid)) => Some(100 * node.0 + pid.get()),
            _ => None,
        })
        .collect();
    assert_eq!(all, [0, 1, 160, 51]);
}

#[test]
fn without_a_record_it_is_an_ordinary_signal() {
    let mut m = three();
    let mut out = vec![];
    m.ghost_signal(pid(50), 1, siginfo(TERM, 3), &mut out);
    assert_eq!(signals(&out), [(0, pid(50))]);
}

#[test]
fn senders_with_other_rights_reach_each_alone() {
    let users = record(3, 1);
    let nobodys = Mark { sender: 0, ..users.mark };
    for other in [
        Record { is_set_uid: true, ..users },
        Record { has_other_rights: true, ..users },
        Record { mark: nobodys, ..users },
        Record { group: 0, ..users },
    ] {
        let mut m = three();
        let mut out = vec![];
        m.group_signalled(pid(50), other);
        m.ghost_signal(pid(50), 1, siginfo(TERM, other.mark.sender), &mut out);
        m.settle_calls(true, &mut out);
        assert_eq!(wholes(&out), []);
        assert_eq!(signals(&out), [(0, pid(50))]);
    }
}
