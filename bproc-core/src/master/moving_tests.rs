use super::moving::{Departed, MoveFacts, MoveId, Speaker};
use super::nodes::Attach;
use super::*;
use bproc_common::id::Epoch;
use bproc_common::wait::Status;

pub(super) const A: NodeId = NodeId(0);
pub(super) const B: NodeId = NodeId(1);
pub(super) const P: i32 = 50;
pub(super) const CHILD: i32 = 60;

pub(super) fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn siginfo(signal: i32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes
}

fn hello(epoch: u64) -> Attach {
    Attach {
        epoch: Epoch(epoch),
        instance: 1,
        orders_seen: 0,
        inventory: vec![],
        skeletons: vec![],
        leases: vec![],
        leaving: vec![],
        arriving: vec![],
    }
}

pub(super) fn up() -> Master {
    let nodes = [(0, Node::new(0o111, 0, 0)), (1, Node::new(0o111, 0, 0))];
    let mut m = Master::new(nodes, Leases::new(1000, 5000, 100), false);
    m.attach(A, hello(1), "up", &mut vec![]).unwrap();
    m.attach(B, hello(2), "up", &mut vec![]).unwrap();
    m
}

pub(super) fn facts(to: Option<NodeId>) -> MoveFacts {
    MoveFacts {
        pid: pid(P),
        parent: Some(pid(2)),
        to,
        uid: 5,
        gids: [5].into(),
        speaker: None,
        owner: 5,
        comm: b"prog".to_vec(),
        relatives: vec![pid(2)],
        children: vec![pid(CHILD)],
    }
}

pub(super) fn orders(out: &[Action]) -> Vec<(NodeId, Order)> {
    let one = |a: &Action| if let Action::Send(n, _, o) = a { Some((*n, o.clone())) } else { None };
    out.iter().filter_map(one).collect()
}

pub(super) fn id_of(m: &Master) -> MoveId {
    m.moves.values().next().map(|m| m.id).unwrap()
}

/// Up to the point where the source sends.
pub(super) fn under_way(m: &mut Master, to: Option<NodeId>, out: &mut Out) -> MoveId {
    m.move_asked(Ask(9), facts(to), out);
    let id = id_of(m);
    m.surveyed(pid(P), id, Ok(()), out);
    m.receiving(pid(P), id, Ok(()), out);
    id
}

/// P runs on A, having gone there from the master.
pub(super) fn on_a() -> Master {
    let (mut m, mut out) = (up(), vec![]);
    let id = under_way(&mut m, Some(A), &mut out);
    m.committing(pid(P), id, &mut out);
    m.ghost_connected(pid(P), Some(pid(2)), &mut out);
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    m.held(pid(P), Ok(()), &mut out);
    assert_eq!(m.node_of(pid(P)), Some(A));
    m
}

fn failed() -> Refusal {
    Refusal::Failed(B, 5, "it broke".into())
}

#[test]
fn from_the_master_to_a_node() {
    let (mut m, mut out) = (up(), vec![]);
    let id = under_way(&mut m, Some(A), &mut out);
    assert!(orders(&out).contains(&(A, Order::Receive(pid(P), id))));
    assert!(out.contains(&Action::SendFromHere(pid(P), id)));
    // Skeletons there: parent, child, and its own as long as it has not come.
    for p in [2, CHILD, P] {
        assert!(out.contains(&Action::Watch(pid(p))), "{p}");
    }
    out.clear();
    m.committing(pid(P), id, &mut out);
    assert_eq!(out, [Action::ProceedHere(pid(P), id, true)]);
    out.clear();
    m.arrived(pid(P), id, Ok(()), &mut out);
    assert_eq!(out, []);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    assert!(out.contains(&Action::Answer(Ask(9), Ok(()))));
    assert!(out.contains(&Action::Hold(pid(P))) && out.contains(&Action::TrackSignals(pid(P))));
    assert_eq!(m.processes(), [(pid(P), Some(A))]);
    // Its child on the master is reaped by it there: the ghost reaps too.
    m.ghost_connected(pid(P), Some(pid(2)), &mut out);
    out.clear();
    m.reaped(pid(CHILD), &mut out);
    // Not before the keeper holds it: nobody would hold a child that it made.
    assert_eq!(out, []);
    m.held(pid(P), Ok(()), &mut out);
    let told = [GhostCommand::Name(b"prog".to_vec()), GhostCommand::WatchChildren, GhostCommand::Reap(pid(CHILD))];
    assert_eq!(out, told.map(|command| Action::Ghost(pid(P), command)));
}

#[test]
fn one_that_moves_while_it_is_stopped_is_not_stopped_again() {
    let (mut m, mut out) = (up(), vec![]);
    let id = under_way(&mut m, Some(A), &mut out);
    m.committing(pid(P), id, &mut out);
    m.stopped(pid(P), 19, &mut out);
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: true }, &mut out);
    m.held(pid(P), Ok(()), &mut out);
    m.stopped(pid(P), 19, &mut out);
    out.clear();
    m.ghost_stopped(pid(P), false, &mut out);
    // It connects all the same, does what it is told, and is left alone.
    assert_eq!(out, [Action::Thaw(pid(P))]);
    out.clear();
    m.ghost_connected(pid(P), Some(pid(2)), &mut out);
    let told = [GhostCommand::Name(b"prog".to_vec()), GhostCommand::WatchChildren, GhostCommand::Report];
    assert_eq!(out, told.map(|command| Action::Ghost(pid(P), command)));
    out.clear();
    m.ghost_ready(pid(P), &mut out);
    assert_eq!(out, [Action::Freeze(pid(P))]);
    // Continued on its node, as if it had been told to stop.
    out.clear();
    m.continued(pid(P), &mut out);
    assert_eq!(out, [Action::WakeGhost(pid(P))]);
    out.clear();
    m.ghost_ready(pid(P), &mut out);
    assert_eq!(out, []);
}

#[test]
fn one_that_moves_while_it_is_stopped_and_is_continued_at_once() {
    for connects_early in [true, false] {
        let (mut m, mut out) = (up(), vec![]);
        let id = under_way(&mut m, Some(A), &mut out);
        m.committing(pid(P), id, &mut out);
        m.stopped(pid(P), 19, &mut out);
        m.arrived(pid(P), id, Ok(()), &mut out);
        if connects_early {
            m.ghost_connected(pid(P), Some(pid(2)), &mut out);
        }
        m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: true }, &mut out);
        if !connects_early {
            m.ghost_connected(pid(P), Some(pid(2)), &mut out);
        }
        out.clear();
        // The keeper has never seen it stopped.
        m.held(pid(P), Ok(()), &mut out);
        m.stopped(pid(P), 19, &mut out);
        let told = [GhostCommand::Name(b"prog".to_vec()), GhostCommand::WatchChildren];
        assert_eq!(out, told.map(|command| Action::Ghost(pid(P), command)));
        m.ghost_signal(pid(P), 1, siginfo(18), &mut out);
        m.continued(pid(P), &mut out);
        out.clear();
        m.stopped(pid(P), 20, &mut out);
        assert_eq!(out, [Action::Ghost(pid(P), GhostCommand::Stop(20))]);
    }
}

#[test]
fn a_parent_elsewhere_is_told_of_stops() {
    let (mut m, mut out) = (on_a(), vec![]);
    let child = pid(CHILD);
    m.child_changed(pid(P), child, Status::Stopped(20), &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeStopped(child, 20))]);
    // On its way both ends are told: nobody knows where it will look.
    let id = under_way(&mut m, Some(B), &mut out);
    out.clear();
    m.child_changed(pid(P), child, Status::Continued, &mut out);
    assert_eq!(orders(&out), [A, B].map(|node| (node, Order::RelativeContinued(child))));
    m.child_changed(pid(P), child, Status::Stopped(19), &mut out);
    m.arrived(pid(P), id, Ok(()), &mut out);
    out.clear();
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    assert_eq!(orders(&out), [(B, Order::RelativeStopped(child, 19))]);
    // So is a new agent of its node.
    out.clear();
    let anew = Attach { instance: 2, inventory: vec![(pid(P), None)], skeletons: vec![child], ..hello(2) };
    m.link_broken(B);
    m.attach(B, anew, "up", &mut out).unwrap();
    assert!(orders(&out).contains(&(B, Order::RelativeStopped(child, 19))));
    m.child_changed(pid(P), child, Status::Exited(0), &mut out);
    m.relative_gone(child, 0, &mut out);
    assert!(m.halted.is_empty());
}

#[test]
fn a_failure_of_either_end_leaves_it_where_it_was() {
    for first in 0..4 {
        let mut m = on_a();
        let mut out = vec![];
        m.move_asked(Ask(9), facts(Some(B)), &mut out);
        let id = id_of(&m);
        assert!(orders(&out).contains(&(A, Order::Survey(pid(P), id))));
        match first {
            0 => m.surveyed(pid(P), id, Err(failed()), &mut out),
            1 => {
                m.surveyed(pid(P), id, Ok(()), &mut out);
                m.receiving(pid(P), id, Err(failed()), &mut out);
            }
            2 => {
                m.surveyed(pid(P), id, Ok(()), &mut out);
                m.receiving(pid(P), id, Ok(()), &mut out);
                m.arrived(pid(P), id, Err(failed()), &mut out);
                m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
            }
            _ => {
                m.surveyed(pid(P), id, Ok(()), &mut out);
                m.receiving(pid(P), id, Ok(()), &mut out);
                m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
                assert!(orders(&out).contains(&(B, Order::Cancel(pid(P), id))));
                m.arrived(pid(P), id, Err(Refusal::Busy(pid(P))), &mut out);
            }
        }
        assert!(out.contains(&Action::Answer(Ask(9), Err(failed()))), "{first}: {out:?}");
        assert_eq!(m.processes(), [(pid(P), Some(A))]);
        assert!(m.moves.is_empty());
    }
}

#[test]
fn signals_on_the_way_come_with_it() {
    for well in [true, false] {
        let mut m = on_a();
        let mut out = vec![];
        let id = under_way(&mut m, Some(B), &mut out);
        out.clear();
        m.ghost_signal(pid(P), 1, siginfo(10), &mut out);
        m.ghost_stopped(pid(P), false, &mut out);
        assert_eq!(orders(&out), []);
        let place = if well {
            m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
            m.arrived(pid(P), id, Ok(()), &mut out);
            B
        } else {
            m.arrived(pid(P), id, Err(failed()), &mut out);
            m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
            A
        };
        let told = orders(&out);
        let signal = Order::Signal { pid: pid(P), number: 1, siginfo: siginfo(10) };
        assert!(told.contains(&(place, signal)) && told.contains(&(place, Order::Stop(pid(P)))), "{told:?}");
    }
}

#[test]
fn a_kill_on_the_way_finds_it() {
    let mut m = on_a();
    let mut out = vec![];
    let id = under_way(&mut m, Some(B), &mut out);
    m.at_gate(pid(P), &mut out);
    assert!(orders(&out).contains(&(A, Order::Kill(pid(P)))));
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    assert!(orders(&out).contains(&(B, Order::Kill(pid(P)))));
    out.clear();
    m.exited(pid(P), 9, &mut out);
    assert!(out.contains(&Action::Release(pid(P))));
}

#[test]
fn the_target_decides_a_doubt() {
    for ran in [true, false] {
        let mut m = on_a();
        let mut out = vec![];
        let id = under_way(&mut m, Some(B), &mut out);
        m.departed(pid(P), id, Departed::InDoubt, &mut out);
        assert!(m.moves.contains_key(&pid(P)));
        if ran {
            m.arrived(pid(P), id, Ok(()), &mut out);
        } else {
            m.lost(B, &mut out);
        }
        assert!(orders(&out).contains(&(A, Order::Decide(pid(P), id, ran))), "{out:?}");
        let end = if ran { Departed::Gone { stand_in: true, stopped: false } } else { Departed::Failed(failed()) };
        m.departed(pid(P), id, end, &mut out);
        assert_eq!(m.node_of(pid(P)), Some(if ran { B } else { A }));
        assert!(m.moves.is_empty());
    }
}

#[test]
fn home_into_the_ghost() {
    let mut m = on_a();
    let mut out = vec![];
    m.move_asked(Ask(9), facts(None), &mut out);
    let id = id_of(&m);
    m.surveyed(pid(P), id, Ok(()), &mut out);
    assert!(out.contains(&Action::ReceiveHere(pid(P), id)));
    m.receiving(pid(P), id, Ok(()), &mut out);
    out.clear();
    m.frozen(pid(P), id, None, &mut out);
    assert_eq!(out, [Action::TakeGhost(pid(P), id)]);
    m.ghost_disconnected(pid(P));
    m.ghost_signal(pid(P), 1, siginfo(10), &mut out);
    out.clear();
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    assert!(out.contains(&Action::SignalHome(pid(P), siginfo(10))));
    assert!(out.contains(&Action::UntrackSignals(pid(P))) && m.processes().is_empty());
    // The skeleton that it left on A learns how it ends.
    out.clear();
    m.relative_gone(pid(P), 7 << 8, &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeGone(pid(P), 7 << 8))]);
}

#[test]
fn a_child_that_came_home_is_reaped_when_its_parent_elsewhere_has() {
    let (mut m, mut out) = (on_a(), vec![]);
    m.forked(A, Some(pid(P)), Child { pid: pid(CHILD), uid: 5, gid: 5 }, &mut out);
    m.adopted(pid(CHILD), Some(pid(P)), &mut out);
    m.cloned(pid(CHILD), Ok(()), &mut out);
    m.ghost_connected(pid(CHILD), Some(pid(P)), &mut out);
    let facts = MoveFacts { pid: pid(CHILD), parent: Some(pid(P)), children: vec![], ..facts(None) };
    m.move_asked(Ask(9), facts, &mut out);
    let id = id_of(&m);
    m.surveyed(pid(CHILD), id, Ok(()), &mut out);
    m.receiving(pid(CHILD), id, Ok(()), &mut out);
    m.frozen(pid(CHILD), id, None, &mut out);
    m.ghost_disconnected(pid(CHILD));
    m.arrived(pid(CHILD), id, Ok(()), &mut out);
    m.departed(pid(CHILD), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    m.relative_gone(pid(CHILD), 7 << 8, &mut out);
    out.clear();
    m.reaped(pid(CHILD), &mut out);
    assert_eq!(out, [Action::Ghost(pid(P), GhostCommand::Reap(pid(CHILD)))]);
}

#[test]
fn a_homecoming_that_fails_gives_the_ghost_back() {
    let mut m = on_a();
    let mut out = vec![];
    m.ghost_signal(pid(P), 1, siginfo(10), &mut out);
    let id = under_way(&mut m, None, &mut out);
    m.frozen(pid(P), id, None, &mut out);
    m.ghost_disconnected(pid(P));
    m.arrived(pid(P), id, Err(failed()), &mut out);
    m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
    assert!(out.contains(&Action::Hold(pid(P))) && out.contains(&Action::Answer(Ask(9), Err(failed()))));
    // It counts its signals on from beyond what the node knows.
    let number = m.counts_from(pid(P)) + 1;
    assert!(number > 2);
    m.ghost_connected(pid(P), Some(pid(2)), &mut out);
    out.clear();
    m.ghost_signal(pid(P), number, siginfo(12), &mut out);
    let signal = Order::Signal { pid: pid(P), number, siginfo: siginfo(12) };
    assert_eq!(orders(&out), [(A, signal)]);
}

#[test]
fn a_ghost_that_was_left_as_it_is_takes_signals_again() {
    let mut m = on_a();
    let mut out = vec![];
    let id = under_way(&mut m, None, &mut out);
    m.frozen(pid(P), id, None, &mut out);
    m.arrived(pid(P), id, Err(failed()), &mut out);
    m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
    let again = Action::Ghost(pid(P), GhostCommand::TakeSignals);
    assert!(out.contains(&Action::Hold(pid(P))) && !out.contains(&again));
    m.held(pid(P), Ok(()), &mut out);
    assert!(out.contains(&again));
}

#[test]
fn a_ghost_that_nobody_came_into_takes_signals_again() {
    let mut m = on_a();
    let mut out = vec![];
    let id = under_way(&mut m, None, &mut out);
    m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
    m.arrived(pid(P), id, Err(failed()), &mut out);
    assert!(out.contains(&Action::Ghost(pid(P), GhostCommand::TakeSignals)) && !out.contains(&Action::Hold(pid(P))));
    assert!(!out.contains(&Action::Ghost(pid(P), GhostCommand::WatchChildren)));
}

#[test]
fn signals_for_one_that_was_thought_to_be_at_home_go_where_it_is() {
    let nodes = [(0, Node::new(0o111, 0, 0)), (1, Node::new(0o111, 0, 0))];
    let (mut m, mut out) = (Master::new(nodes, Leases::new(1000, 5000, 100), true), vec![]);
    m.await_nodes([A, B]);
    m.attach(B, hello(2), "up", &mut out).unwrap();
    let id = under_way(&mut m, Some(B), &mut out);
    // Its node is late.
    m.attach(A, Attach { inventory: vec![(pid(P), None)], ..hello(1) }, "up", &mut out).unwrap();
    m.ghost_connected(pid(P), None, &mut out);
    m.ghost_signal(pid(P), 1, siginfo(10), &mut out);
    out.clear();
    m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
    m.arrived(pid(P), id, Err(failed()), &mut out);
    let signal = Order::Signal { pid: pid(P), number: 1, siginfo: siginfo(10) };
    assert!(orders(&out).contains(&(A, signal)), "{out:?}");
}

#[test]
fn a_body_that_looks_like_a_fork_gets_no_ghost() {
    let (mut m, mut out) = (up(), vec![]);
    under_way(&mut m, Some(A), &mut out);
    out.clear();
    m.forked(A, Some(pid(2)), Child { pid: pid(P), uid: 5, gid: 5 }, &mut out);
    assert_eq!((out, m.processes()), (vec![], vec![]));
}

#[test]
fn a_lost_source_takes_with_it_what_has_not_arrived() {
    for arrived in [true, false] {
        let mut m = on_a();
        let mut out = vec![];
        let id = under_way(&mut m, Some(B), &mut out);
        m.lost(A, &mut out);
        assert!(m.moves.contains_key(&pid(P)), "only the target knows");
        m.arrived(pid(P), id, if arrived { Ok(()) } else { Err(failed()) }, &mut out);
        assert_eq!(m.processes().len(), usize::from(arrived));
        assert_eq!(out.contains(&Action::Release(pid(P))), !arrived);
    }
}

#[test]
fn a_child_that_ends_while_its_parent_is_about_to_go_is_forgotten_if_that_stays() {
    let (mut m, mut out) = (on_a(), vec![]);
    m.forked(A, Some(pid(P)), Child { pid: pid(CHILD), uid: 5, gid: 5 }, &mut out);
    m.cloned(pid(CHILD), Ok(()), &mut out);
    m.adopted(pid(CHILD), Some(pid(P)), &mut out);
    // The parent comes home, and goes again.
    let id = under_way(&mut m, None, &mut out);
    m.frozen(pid(P), id, None, &mut out);
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    let id = under_way(&mut m, Some(A), &mut out);
    m.committing(pid(P), id, &mut out);
    m.exited(pid(CHILD), 9, &mut out);
    m.ghost_gone(pid(CHILD), &mut out);
    assert_eq!(m.zombies(), [(pid(CHILD), Some(pid(P)))]);
    out.clear();
    m.arrived(pid(P), id, Err(failed()), &mut out);
    m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
    assert!(orders(&out).contains(&(A, Order::Forget(pid(CHILD)))), "{out:?}");
    assert_eq!(m.zombies(), []);
}

#[test]
fn refusals() {
    let mut m = on_a();
    let answer = |m: &mut Master, f: MoveFacts| {
        let mut out = vec![];
        m.move_asked(Ask(9), f, &mut out);
        match out.as_slice() {
            [Action::Answer(_, result)] => result.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answer(&mut m, facts(Some(A))), Ok(()));
    assert_eq!(answer(&mut m, MoveFacts { uid: 6, ..facts(Some(B)) }), Err(Refusal::NotYours(pid(P))));
    assert_eq!(answer(&mut m, facts(Some(NodeId(7)))), Err(Refusal::NoSuchNode(NodeId(7))));
    m.node_mut(B).unwrap().mode = 0;
    assert_eq!(answer(&mut m, facts(Some(B))), Err(Refusal::NotAllowed(B)));
    m.lost(B, &mut vec![]);
    assert!(matches!(answer(&mut m, facts(Some(B))), Err(Refusal::NodeDown(..))));
    let mut out = vec![];
    under_way(&mut m, None, &mut out);
    assert_eq!(answer(&mut m, facts(None)), Err(Refusal::Busy(pid(P))));
}

#[test]
fn other_children_than_were_told() {
    for well in [true, false] {
        let mut m = on_a();
        let mut out = vec![];
        let id = under_way(&mut m, Some(B), &mut out);
        out.clear();
        m.frozen(pid(P), id, Some(vec![pid(CHILD + 1)]), &mut out);
        assert_eq!(orders(&out), [(B, Order::Children(pid(P), id))]);
        assert!(out.contains(&Action::Watch(pid(CHILD + 1))));
        out.clear();
        if well {
            m.adopted_children(pid(P), id, Ok(()), &mut out);
            assert_eq!(orders(&out), [(A, Order::GoOn(pid(P), id))]);
        } else {
            m.arrived(pid(P), id, Err(failed()), &mut out);
            assert_eq!(orders(&out), [(A, Order::Cancel(pid(P), id))]);
            m.departed(pid(P), id, Departed::Failed(failed()), &mut out);
            assert_eq!(m.node_of(pid(P)), Some(A));
        }
    }
}

#[test]
fn the_ghost_is_taken_when_it_has_reaped_what_the_process_has() {
    let mut m = on_a();
    let mut out = vec![];
    let child = Child { pid: pid(CHILD), uid: 5, gid: 5 };
    m.forked(A, Some(pid(P)), child, &mut out);
    m.cloned(pid(CHILD), Ok(()), &mut out);
    m.ghost_connected(pid(CHILD), Some(pid(P)), &mut out);
    m.adopted(pid(CHILD), Some(pid(P)), &mut vec![]);
    let id = under_way(&mut m, None, &mut out);
    m.exited(pid(CHILD), 0, &mut out);
    m.reaped(pid(CHILD), &mut out);
    out.clear();
    m.frozen(pid(P), id, None, &mut out);
    assert_eq!(out, []);
    m.ghost_gone(pid(CHILD), &mut out);
    let reap = out.iter().position(|a| *a == Action::Ghost(pid(P), GhostCommand::Reap(pid(CHILD))));
    let take = out.iter().position(|a| *a == Action::TakeGhost(pid(P), id));
    assert!(reap.is_some() && reap < take, "{out:?}");
}

#[test]
fn a_node_speaks_for_its_own() {
    let rights = |node, ghost, uid, place| {
        let speaker = Some(Speaker { node, ghost });
        MoveFacts { uid, speaker, ..facts(Some(B)) }.rights(place)
    };
    let unvouched = Err(Refusal::Unvouched(pid(P), A));
    for uid in [0, 5] {
        // Someone of the machine: what runs there goes where its user may, nothing else moves.
        assert_eq!(rights(A, None, uid, Some(A)), Ok(5));
        assert_eq!(rights(A, None, uid, Some(B)), unvouched);
        assert_eq!(rights(A, None, uid, None), unvouched);
        // Another user's process with the rights of root, or of this user, which only the node has seen.
        assert_eq!(rights(A, Some(6), uid, Some(A)), Ok(5));
        assert_eq!(rights(A, Some(6), uid, None), unvouched);
        // A process of root's or of this user's.
        for place in [None, Some(A), Some(B)] {
            assert_eq!(rights(A, Some(0), uid, place), Ok(uid));
            assert_eq!(rights(A, Some(5), uid, place), Ok(5));
        }
    }
    assert_eq!(rights(A, Some(0), 6, Some(A)), Err(Refusal::NotYours(pid(P))));
    assert_eq!(rights(A, Some(6), 6, Some(A)), Err(Refusal::NotYours(pid(P))));
}
