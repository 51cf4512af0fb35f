use super::nodes::Attach;
use super::*;
use crate::group::Mark;
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
            let facts =
                SpawnFacts { pid: pid(p), parent: None, node, uid: 0, gids: [0].into(), relatives: vec![pid(40)] };
            m.spawn(Ask(1), facts, &mut out);
            m.held(pid(p), Ok(()), &mut out);
            m.spawned(pid(p), Ok(()), &mut out);
            m.ghost_connected(pid(p), None, &mut out);
        }
    }
    m
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
    let mark = Mark { signal: TERM, code: 0, sender: 50 };
    m.signal_from_node(NodeId(0), pid(40), siginfo(TERM, 50), Some(CALL), &mut out);
    m.signal_from_node(NodeId(0), pid(60), siginfo(TERM, 50), Some(CALL), &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::SignalGroup(40, TERM))]);
    out.clear();
    for p in [60, 51, 50] {
        m.group_signalled(pid(p), mark);
    }
    for p in [60, 51, 50] {
        m.ghost_signal(pid(p), 1, siginfo(TERM, 50), &mut out);
    }
    assert_eq!(signals(&out), [(1, pid(60))]);
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
    let facts = SpawnFacts { pid: pid(70), parent: None, node: NodeId(1), uid: 0, gids: [0].into(), relatives: vec![] };
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
fn a_dropped_copy_takes_no_other_along() {
    let mut m = three();
    let mut out = vec![];
    m.ghost_signal(pid(51), 1, siginfo(10, 2), &mut out);
    m.signal_from_node(NodeId(0), pid(40), siginfo(TERM, 50), Some(CALL), &mut out);
    m.group_signalled(pid(51), Mark { signal: TERM, code: 0, sender: 50 });
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
    m.group_signalled(pid(51), Mark { signal: TERM, code: 0, sender: 50 });
    m.cloned(pid(1000), Ok(()), &mut out);
    m.ghost_connected(pid(1000), Some(pid(51)), &mut out);
    out.clear();
    m.ghost_signal(pid(1000), 1, siginfo(TERM, 0), &mut out);
    assert_eq!(signals(&out), []);
    m.ghost_signal(pid(1000), 2, siginfo(TERM, 0), &mut out);
    assert_eq!(signals(&out), [(0, pid(1000))]);
}
