use super::*;
use crate::lease::Leases;
use crate::master::Node;
use crate::master::nodes::Attach;
use bproc_common::id::Epoch;

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const ID: MoveId = MoveId(7);

fn pid() -> Pid {
    Pid::new(50).unwrap()
}

fn hello(epoch: u64, there: bool, leaving: Vec<Leaving>) -> Attach {
    Attach {
        epoch: Epoch(epoch),
        instance: 1,
        orders_seen: 0,
        inventory: if there { vec![(pid(), None)] } else { vec![] },
        skeletons: vec![],
        leases: vec![],
        leaving,
        arriving: vec![],
    }
}

/// From A to B, and A does not know whether it has come there.
fn doubt() -> Leaving {
    Leaving { pid: pid(), id: ID, to: Some(B), in_doubt: true, home: false }
}

fn fresh() -> Master {
    let nodes = [(0, Node::new(0o111, 0, 0)), (1, Node::new(0o111, 0, 0))];
    let mut m = Master::new(nodes, Leases::new(1000, 5000, 100), true);
    m.await_nodes([A, B]);
    m
}

fn decisions(out: &Out) -> Vec<bool> {
    let one = |a: &Action| match a {
        Action::Send(A, _, Order::Decide(_, ID, moved)) | Action::DecideHere(_, ID, moved) => Some(*moved),
        _ => None,
    };
    out.iter().filter_map(one).collect()
}

#[test]
fn a_new_master_decides_by_what_the_target_has() {
    for ran in [true, false] {
        for source_first in [true, false] {
            let (mut m, mut out) = (fresh(), vec![]);
            m.ghost_connected(pid(), None, &mut out);
            let source = (A, hello(1, true, vec![doubt()]));
            let target = (B, hello(2, ran, vec![]));
            let [first, last] = if source_first { [source, target] } else { [target, source] };
            m.attach(first.0, first.1, "up", &mut out).unwrap();
            assert_eq!(decisions(&out), []);
            m.attach(last.0, last.1, "up", &mut out).unwrap();
            assert_eq!(decisions(&out), [ran]);
            let gone = if ran {
                Departed::Gone { stand_in: true, stopped: false }
            } else {
                Departed::Failed(Refusal::NodeDied(B))
            };
            m.departed(pid(), ID, gone, &mut out);
            assert_eq!(m.node_of(pid()), Some(if ran { B } else { A }));
            assert!(m.is_settled(pid()));
        }
    }
}

#[test]
fn a_target_that_may_let_it_run_is_waited_for() {
    let (mut m, mut out) = (fresh(), vec![]);
    m.ghost_connected(pid(), None, &mut out);
    m.attach(A, hello(1, true, vec![doubt()]), "up", &mut out).unwrap();
    m.attach(B, Attach { arriving: vec![(pid(), ID)], ..hello(2, false, vec![]) }, "up", &mut out).unwrap();
    assert_eq!(decisions(&out), []);
    m.arrived(pid(), ID, Ok(()), &mut out);
    assert_eq!(decisions(&out), [true]);
}

#[test]
fn one_without_a_ghost_has_run_and_ended() {
    let (mut m, mut out) = (fresh(), vec![]);
    m.attach(A, hello(1, true, vec![doubt()]), "up", &mut out).unwrap();
    m.attach(B, hello(2, false, vec![]), "up", &mut out).unwrap();
    assert_eq!(decisions(&out), []);
    m.recovered(&HashSet::new(), &mut out);
    assert_eq!(decisions(&out), [true]);
    m.departed(pid(), ID, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    assert_eq!(m.processes(), []);
    assert!(out.contains(&Action::Watch(pid())), "its stand-in is to hear of its end");
}

#[test]
fn a_target_that_does_not_come_has_nothing() {
    let (mut m, mut out) = (fresh(), vec![]);
    m.ghost_connected(pid(), None, &mut out);
    m.attach(A, hello(1, true, vec![doubt()]), "up", &mut out).unwrap();
    m.recovered(&[pid()].into(), &mut out);
    assert_eq!(decisions(&out), [false]);
    m.departed(pid(), ID, Departed::Failed(Refusal::NodeDied(B)), &mut out);
    assert_eq!(m.processes(), [(pid(), Some(A))]);
}

#[test]
fn a_mover_of_a_former_master_is_told() {
    for ran in [true, false] {
        let (mut m, mut out) = (fresh(), vec![]);
        m.leaving(None, &doubt(), &mut out);
        m.attach(B, hello(2, ran, vec![]), "up", &mut out).unwrap();
        assert_eq!(decisions(&out), [ran]);
    }
}

#[test]
fn a_new_agent_of_the_source_asks_again() {
    let (mut m, mut out) = (fresh(), vec![]);
    m.ghost_connected(pid(), None, &mut out);
    m.attach(A, hello(1, true, vec![doubt()]), "up", &mut out).unwrap();
    m.link_broken(A);
    m.attach(A, Attach { instance: 2, ..hello(1, true, vec![doubt()]) }, "up", &mut out).unwrap();
    m.attach(B, hello(2, true, vec![]), "up", &mut out).unwrap();
    assert_eq!(decisions(&out), [true]);
}
