use super::nodes::{Attach, Rejected};
use super::*;
use bproc_common::id::Epoch;

const NODE: NodeId = NodeId(0);

fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn siginfo(signal: i32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes
}

fn hello(epoch: u64, inventory: Vec<Pid>) -> Attach {
    let inventory = inventory.into_iter().map(|pid| (pid, None)).collect();
    Attach {
        epoch: Epoch(epoch),
        instance: 1,
        orders_seen: 0,
        inventory,
        skeletons: vec![],
        leases: vec![],
        leaving: vec![],
        arriving: vec![],
    }
}

fn master(recovering: bool) -> Master {
    Master::new([(0, Node::new(0o111, 0, 0))], Leases::new(1000, 5000, 100), recovering)
}

fn up() -> Master {
    let mut m = master(false);
    m.attach(NODE, hello(1, vec![]), "up", &mut vec![]).unwrap();
    m
}

fn facts(p: i32) -> SpawnFacts {
    SpawnFacts {
        pid: pid(p),
        parent: Some(pid(2)),
        node: NODE,
        uid: 5,
        gids: [5].into(),
        relatives: vec![pid(2)],
        starter: None,
    }
}

fn running(m: &mut Master, p: i32) {
    let mut out = vec![];
    m.spawn(Ask(1), facts(p), &mut out);
    m.held(pid(p), Ok(()), &mut out);
    m.spawned(pid(p), Ok(()), &mut out);
    m.ghost_connected(pid(p), Some(pid(2)), &mut out);
}

fn orders(out: &[Action]) -> Vec<Order> {
    out.iter().filter_map(|a| if let Action::Send(_, _, o) = a { Some(o.clone()) } else { None }).collect()
}

#[test]
fn the_caller_hears_success_only_when_held_and_started() {
    for first in [true, false] {
        let mut m = up();
        let mut out = vec![];
        m.spawn(Ask(7), facts(50), &mut out);
        assert!(orders(&out).contains(&Order::Spawn(pid(50))));
        out.clear();
        if first {
            m.held(pid(50), Ok(()), &mut out)
        } else {
            m.spawned(pid(50), Ok(()), &mut out)
        }
        assert_eq!(out, []);
        if first {
            m.spawned(pid(50), Ok(()), &mut out)
        } else {
            m.held(pid(50), Ok(()), &mut out)
        }
        assert!(out.contains(&Action::Answer(Ask(7), Ok(()))));
    }
}

#[test]
fn a_failed_exec_lets_the_caller_go_and_leaves_nothing() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(7), facts(50), &mut out);
    m.held(pid(50), Ok(()), &mut out);
    out.clear();
    let why = Refusal::Failed(NODE, 2, "no such file".into());
    m.spawned(pid(50), Err(why.clone()), &mut out);
    assert_eq!(out, [Action::LetGo(pid(50)), Action::Answer(Ask(7), Err(why))]);
    assert!(m.processes().is_empty());
}

#[test]
fn what_the_stand_in_is_sent_during_a_start_comes_to_where_the_process_is() {
    for works in [true, false] {
        let mut m = up();
        let mut out = vec![];
        m.spawn(Ask(7), facts(50), &mut out);
        m.signal_from_node(NODE, pid(50), siginfo(10), None, &mut out);
        m.held(pid(50), Ok(()), &mut out);
        out.clear();
        let result = if works { Ok(()) } else { Err(Refusal::Failed(NODE, 2, "no such file".into())) };
        m.spawned(pid(50), result, &mut out);
        let there =
            |a: &Action| matches!(a, Action::Send(NODE, _, Order::Signal { pid: to, number: 0, .. }) if *to == pid(50));
        let here = |a: &Action| matches!(a, Action::SignalLocal(to, _) if *to == pid(50));
        assert_eq!(out.iter().filter(|a| there(a)).count(), usize::from(works), "{out:?}");
        assert_eq!(out.iter().filter(|a| here(a)).count(), usize::from(!works), "{out:?}");
    }
}

#[test]
fn a_killed_ghost_is_released_only_after_the_node_confirms() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.at_gate(pid(50), &mut out);
    assert_eq!(orders(&out), [Order::Kill(pid(50))]);
    assert!(!out.contains(&Action::Release(pid(50))));
    out.clear();
    m.exited(pid(50), 9, &mut out);
    assert_eq!(out, [Action::Release(pid(50))]);
    m.ghost_gone(pid(50), &mut out);
    assert!(m.processes().is_empty());
}

#[test]
fn killed_before_it_started() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(1), facts(50), &mut out);
    m.held(pid(50), Ok(()), &mut out);
    m.at_gate(pid(50), &mut out);
    out.clear();
    m.spawned(pid(50), Ok(()), &mut out);
    assert_eq!(orders(&out), [Order::Kill(pid(50))]);
}

#[test]
fn commands_wait_for_the_ghost_in_order() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(1), facts(50), &mut out);
    m.held(pid(50), Ok(()), &mut out);
    m.spawned(pid(50), Ok(()), &mut out);
    let child = Child { pid: pid(1000), uid: 5, gid: 5 };
    m.forked(NODE, Some(pid(50)), child, &mut out);
    m.exited(pid(50), 7 << 8, &mut out);
    out.clear();
    m.ghost_connected(pid(50), Some(pid(2)), &mut out);
    let expected = [GhostCommand::Clone(pid(1000)), GhostCommand::Exit(7)];
    assert_eq!(out, expected.map(|c| Action::Ghost(pid(50), c)));
}

#[test]
fn signals_go_once_and_are_acknowledged_when_safe() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.ghost_signal(pid(50), 1, siginfo(10), &mut out);
    m.ghost_signal(pid(50), 1, siginfo(10), &mut out);
    let [Action::Send(_, number, Order::Signal { number: 1, .. })] = out[..] else { panic!("{out:?}") };
    out.clear();
    m.orders_acknowledged(NODE, number, &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::Ack(1))]);
}

#[test]
fn a_late_continued_does_not_wake_a_ghost_that_was_stopped_since() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.ghost_signal(pid(50), 1, siginfo(18), &mut out);
    m.ghost_stopped(pid(50), false, &mut out);
    out.clear();
    m.continued(pid(50), &mut out);
    assert_eq!(out, []);
    m.stopped(pid(50), 19, &mut out);
    assert_eq!(out, []);
    // Continued by somebody on the node.
    m.continued(pid(50), &mut out);
    assert_eq!(out, [Action::WakeGhost(pid(50))]);
}

#[test]
fn a_continue_that_a_terminal_stop_drops_is_made_up_for() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.ghost_stopped(pid(50), false, &mut out);
    m.ghost_continued(pid(50));
    out.clear();
    m.ghost_signal(pid(50), 1, siginfo(20), &mut out);
    assert!(matches!(orders(&out)[..], [Order::Continue(_), Order::Signal { .. }]), "{out:?}");
    out.clear();
    m.continued(pid(50), &mut out);
    m.stopped(pid(50), 20, &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::Stop(20))]);
}

#[test]
fn a_stop_that_finds_the_ghost_stopped_reaches_its_process() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    // Its process goes on already, and the ghost stops only now, as it was told.
    m.stopped(pid(50), 20, &mut out);
    m.ghost_signal(pid(50), 1, siginfo(18), &mut out);
    m.ghost_stopped(pid(50), true, &mut out);
    out.clear();
    m.unread_stop(pid(50), siginfo(20), &mut out);
    assert!(matches!(orders(&out)[..], [Order::Signal { number: 0, .. }]), "{out:?}");
    out.clear();
    m.continued(pid(50), &mut out);
    assert_eq!(out, [Action::WakeGhost(pid(50))]);
    out.clear();
    m.stopped(pid(50), 20, &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::Stop(20))]);
    out.clear();
    m.unread_stop(pid(50), siginfo(19), &mut out);
    assert_eq!(orders(&out), [Order::Stop(pid(50))]);
}

#[test]
fn a_late_stopped_is_old_news_before_the_ghost_has_passed_on_its_continue() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.ghost_stopped(pid(50), false, &mut out);
    m.ghost_continued(pid(50));
    out.clear();
    m.stopped(pid(50), 19, &mut out);
    assert_eq!(out, []);
    m.ghost_signal(pid(50), 1, siginfo(18), &mut out);
    m.continued(pid(50), &mut out);
    out.clear();
    m.stopped(pid(50), 20, &mut out);
    assert_eq!(out, [Action::Ghost(pid(50), GhostCommand::Stop(20))]);
}

#[test]
fn a_late_stopped_is_old_news_while_a_continue_is_on_its_way() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.ghost_stopped(pid(50), false, &mut out);
    m.ghost_continued(pid(50));
    m.ghost_signal(pid(50), 1, siginfo(18), &mut out);
    out.clear();
    m.stopped(pid(50), 19, &mut out);
    m.continued(pid(50), &mut out);
    assert_eq!(out, []);
}

#[test]
fn a_lost_node_ends_its_ghosts_and_a_second_claim_is_refused() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    assert_eq!(m.attach(NODE, hello(2, vec![]), "up", &mut out), Err(Rejected::Taken));
    m.lost(NODE, &mut out);
    assert!(out.contains(&Action::Release(pid(50))) && out.contains(&Action::KillGhost(pid(50))));
    assert_eq!(m.attach(NODE, hello(1, vec![pid(50)]), "up", &mut out), Err(Rejected::Fenced));
    assert!(m.attach(NODE, hello(3, vec![]), "up", &mut out).is_ok());
}

#[test]
fn after_a_restart_the_halves_find_each_other() {
    let mut m = master(true);
    let mut out = vec![];
    m.ghost_connected(pid(50), Some(pid(2)), &mut out);
    m.ghost_signal(pid(50), 4, siginfo(10), &mut out);
    m.ghost_connected(pid(51), Some(pid(2)), &mut out);
    let skeletons = vec![pid(40), pid(52)];
    m.attach(NODE, Attach { skeletons, ..hello(1, vec![pid(50), pid(52)]) }, "up", &mut out).unwrap();
    assert!(out.contains(&Action::Watch(pid(40))) && !out.contains(&Action::Watch(pid(52))), "{out:?}");
    assert!(orders(&out).iter().any(|o| matches!(o, Order::Signal { number: 4, .. })));
    out.clear();
    m.recovered(&[pid(50), pid(51)].into(), &mut out);
    assert!(out.contains(&Action::KillGhost(pid(51))), "{out:?}");
    assert_eq!(orders(&out), [Order::Kill(pid(52))]);
    assert_eq!(m.processes().iter().map(|(p, _)| p.get()).collect::<Vec<_>>(), [50, 52]);
}

#[test]
fn the_end_of_the_recovery_spares_what_was_started_meanwhile() {
    let mut m = master(true);
    let mut out = vec![];
    m.attach(NODE, hello(1, vec![pid(40)]), "up", &mut out).unwrap();
    m.ghost_connected(pid(40), Some(pid(2)), &mut out);
    m.spawn(Ask(1), facts(50), &mut out);
    m.spawn(Ask(2), facts(51), &mut out);
    m.held(pid(51), Ok(()), &mut out);
    m.spawned(pid(51), Ok(()), &mut out);
    m.forked(NODE, Some(pid(40)), Child { pid: pid(52), uid: 0, gid: 0 }, &mut out);
    out.clear();
    // One is being made, one was answered, one forked; none of their ghosts has connected.
    m.recovered(&[pid(40)].into(), &mut out);
    assert_eq!(out, []);
    m.ghost_connected(pid(51), Some(pid(2)), &mut out);
    m.exited(pid(51), 0, &mut out);
    assert!(out.contains(&Action::Ghost(pid(51), GhostCommand::Exit(0))), "{out:?}");
}

#[test]
fn refused_before_anything_is_done() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(1), SpawnFacts { node: NodeId(9), ..facts(50) }, &mut out);
    m.node_mut(NODE).unwrap().mode = 0o100;
    m.spawn(Ask(2), facts(50), &mut out);
    assert_eq!(
        out,
        [
            Action::Answer(Ask(1), Err(Refusal::NoSuchNode(NodeId(9)))),
            Action::Answer(Ask(2), Err(Refusal::NotAllowed(NODE))),
        ]
    );
}

#[test]
fn a_restarted_agent_of_a_node_tells_what_is_left() {
    let mut m = up();
    running(&mut m, 50);
    running(&mut m, 51);
    let mut out = vec![];
    m.orders_acknowledged(NODE, 9, &mut out);
    m.link_broken(NODE);
    out.clear();
    let hello = Attach { instance: 2, orders_seen: 9, ..hello(1, vec![pid(51)]) };
    m.attach(NODE, hello, "up", &mut out).unwrap();
    assert!(out.contains(&Action::KillGhost(pid(50))), "{out:?}");
    assert!(!out.contains(&Action::KillGhost(pid(51))), "{out:?}");
}

#[test]
fn starts_that_a_restarted_agent_had_begun_are_decided_by_what_runs() {
    let mut m = up();
    let mut out = vec![];
    for n in [60, 61, 62] {
        m.spawn(Ask(n as u64), facts(n), &mut out);
        m.held(pid(n), Ok(()), &mut out);
    }
    m.link_broken(NODE);
    // Ordered after the break: never begun, but who knows.
    m.spawn(Ask(63), facts(63), &mut out);
    m.held(pid(63), Ok(()), &mut out);
    out.clear();
    let hello = Attach { instance: 2, orders_seen: 2, ..hello(1, vec![pid(60), pid(61)]) };
    m.attach(NODE, hello, "up", &mut out).unwrap();
    let answers: Vec<_> = out.iter().filter(|a| matches!(a, Action::Answer(..))).cloned().collect();
    let again = |n| Action::Answer(Ask(n), Err(Refusal::Interrupted(NODE)));
    // The order of 60 was acknowledged, but its answer never came.
    assert_eq!(answers, [Action::Answer(Ask(60), Ok(())), Action::Answer(Ask(61), Ok(())), again(62), again(63)]);
    assert_eq!(orders(&out), []);
}

#[test]
fn the_skeleton_of_a_start_that_a_crash_cut_short_hears_of_its_end() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(60), facts(60), &mut out);
    m.link_broken(NODE);
    let hello = Attach { instance: 2, orders_seen: 2, skeletons: vec![pid(60)], ..hello(1, vec![]) };
    m.attach(NODE, hello, "up", &mut out).unwrap();
    assert!(out.contains(&Action::Watch(pid(60))), "{out:?}");
    // The keeper is later than the node.
    m.held(pid(60), Ok(()), &mut out);
    assert!(out.contains(&Action::Answer(Ask(60), Err(Refusal::Interrupted(NODE)))), "{out:?}");
    out.clear();
    m.relative_gone(pid(60), 9, &mut out);
    assert_eq!(orders(&out), [Order::RelativeGone(pid(60), 9)]);
}

#[test]
fn a_configuration_read_again_keeps_what_is_attached() {
    let mut m = up();
    let mut out = vec![];
    let node = || Node::new(0o100, 0, 0);
    m.configure([(1, node()), (2, node())], &mut out);
    assert_eq!(m.node_ids(), [NodeId(0), NodeId(1), NodeId(2)]);
    assert_eq!(m.view(NODE).unwrap().state, "up");
    m.lost(NODE, &mut out);
    m.configure([(2, node())], &mut out);
    assert_eq!(m.node_ids(), [NodeId(2)]);
}

#[test]
fn orders_are_sent_again_in_order() {
    let mut m = up();
    running(&mut m, 50);
    running(&mut m, 51);
    let mut out = vec![];
    m.orders_acknowledged(NODE, 3, &mut out);
    m.link_broken(NODE);
    m.ghost_signal(pid(51), 1, siginfo(10), &mut out);
    m.ghost_gone(pid(50), &mut out);
    out.clear();
    // Seen so far: a lease and two spawns. The loss of 50 makes an order of its own.
    let hello = Attach { instance: 2, orders_seen: 3, ..hello(1, vec![pid(51)]) };
    m.attach(NODE, hello, "up", &mut out).unwrap();
    let numbers: Vec<u64> =
        out.iter().filter_map(|a| if let Action::Send(_, n, _) = a { Some(*n) } else { None }).collect();
    assert!(numbers.len() > 1 && numbers.is_sorted(), "{out:?}");
}

#[test]
fn children_of_a_process_without_a_ghost_get_theirs() {
    const EAGAIN: i32 = 11;
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    let child = |n| Child { pid: pid(n), uid: 5, gid: 6 };
    m.ghost_connected(pid(50), Some(pid(2)), &mut out);
    m.forked(NODE, Some(pid(50)), child(60), &mut out);
    m.forked(NODE, Some(pid(60)), child(61), &mut out);
    out.clear();
    // Its user has too many processes here: the nursery makes it, which may fail as well.
    m.cloned(pid(60), Err(EAGAIN), &mut out);
    assert_eq!(out, [Action::NurseryClone(child(60))]);
    out.clear();
    m.cloned(pid(60), Err(EAGAIN), &mut out);
    assert_eq!(orders(&out), [Order::Kill(pid(60))]);
    assert!(out.contains(&Action::NurseryClone(child(61))), "{out:?}");
}

#[test]
fn a_ghost_that_was_made_is_not_made_again() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    let child = |n| Child { pid: pid(n), uid: 5, gid: 5 };
    m.forked(NODE, Some(pid(50)), child(1000), &mut out);
    m.forked(NODE, Some(pid(50)), child(1001), &mut out);
    m.adopted(pid(1000), Some(pid(50)), &mut vec![]);
    out.clear();
    // The parent's ghost ended: its answer to the first was lost, the second it never made.
    m.cloned(pid(1000), Err(ESRCH), &mut out);
    m.cloned(pid(1001), Err(ESRCH), &mut out);
    assert_eq!(out, [Action::NurseryClone(child(1001))]);
}

#[test]
fn children_of_a_caller_that_cannot_be_held_have_an_end() {
    let mut m = up();
    let mut out = vec![];
    m.spawn(Ask(1), facts(50), &mut out);
    m.held(pid(50), Err(1), &mut out);
    let child = Child { pid: pid(1000), uid: 5, gid: 5 };
    m.forked(NODE, Some(pid(50)), child.clone(), &mut out);
    out.clear();
    m.spawned(pid(50), Ok(()), &mut out);
    assert!(out.contains(&Action::NurseryClone(child)), "{out:?}");
}

#[test]
fn zombies_of_a_parent_that_ends_are_over() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.forked(NODE, Some(pid(50)), Child { pid: pid(1000), uid: 5, gid: 5 }, &mut out);
    m.cloned(pid(1000), Ok(()), &mut out);
    m.ghost_connected(pid(1000), Some(pid(50)), &mut out);
    m.exited(pid(1000), 1, &mut out);
    m.ghost_gone(pid(1000), &mut out);
    out.clear();
    // The node's init holds the zombie, and waits for this.
    m.exited(pid(50), 0, &mut out);
    assert_eq!(orders(&out), [Order::Forget(pid(1000))]);
    m.ghost_gone(pid(50), &mut out);
    assert_eq!(m.node_of(pid(1000)), None);
    assert_eq!(m.node_of(pid(50)), None);
}

#[test]
fn a_start_of_a_former_master_that_fails_opens_the_gate() {
    let mut m = master(true);
    let mut out = vec![];
    m.adopted(pid(50), None, &mut vec![]);
    m.attach(NODE, hello(1, vec![pid(50)]), "up", &mut out).unwrap();
    // Its caller's connection broke, and it ends; the node was in the middle of the start.
    m.at_gate(pid(50), &mut out);
    assert_eq!(orders(&out).last(), Some(&Order::Kill(pid(50))));
    out.clear();
    m.spawned(pid(50), Err(Refusal::Failed(NODE, 8, String::new())), &mut out);
    assert_eq!(out, [Action::Release(pid(50))]);
    m.ghost_gone(pid(50), &mut out);
    assert_eq!((m.processes(), m.zombies()), (vec![], vec![]));
}

#[test]
fn a_stopped_ghost_is_not_missed_at_the_end_of_the_recovery() {
    let mut m = master(true);
    let mut out = vec![];
    // It cannot connect before it is continued. The keeper holds it.
    m.adopted(pid(50), None, &mut vec![]);
    m.ghost_stopped(pid(50), false, &mut out);
    m.attach(NODE, hello(1, vec![pid(50)]), "up", &mut out).unwrap();
    out.clear();
    m.recovered(&[].into(), &mut out);
    assert_eq!(out, []);
    m.ghost_connected(pid(50), Some(pid(2)), &mut out);
    assert_eq!(m.node_of(pid(50)), Some(NODE));
}

#[test]
fn an_end_that_a_former_master_had_replayed_is_forgotten() {
    let mut m = master(true);
    let mut out = vec![];
    // The ghost has gone; the order to forget was lost with the former master.
    m.attach(NODE, hello(1, vec![pid(50)]), "up", &mut out).unwrap();
    m.exited(pid(50), 0, &mut out);
    out.clear();
    m.recovered(&[].into(), &mut out);
    assert_eq!(orders(&out), [Order::Forget(pid(50))]);
    assert_eq!(m.zombies(), []);
}

#[test]
fn a_kill_told_before_the_ghost_is_made_ends_it() {
    let mut m = up();
    running(&mut m, 50);
    let mut out = vec![];
    m.forked(NODE, Some(pid(50)), Child { pid: pid(1000), uid: 5, gid: 5 }, &mut out);
    m.exited(pid(1000), 9, &mut out);
    m.cloned(pid(1000), Ok(()), &mut out);
    out.clear();
    m.ghost_connected(pid(1000), Some(pid(50)), &mut out);
    assert_eq!(out, [Action::Ghost(pid(1000), GhostCommand::Die(9))]);
}

#[test]
fn a_start_that_no_node_knows_is_let_go_when_all_have_spoken() {
    let gone = |out: &[Action]| out.contains(&Action::Release(pid(50)));
    for first_at_gate in [true, false] {
        let nodes = [(0, Node::new(0o111, 0, 0)), (1, Node::new(0o111, 0, 0))];
        let (mut m, mut out) = (Master::new(nodes, Leases::new(1000, 5000, 100), true), vec![]);
        m.await_nodes([NodeId(0), NodeId(1)]);
        m.adopted(pid(50), None, &mut vec![]);
        m.adopted(pid(51), None, &mut vec![]);
        if first_at_gate {
            m.at_gate(pid(50), &mut out);
        }
        m.attach(NodeId(0), hello(1, vec![]), "up", &mut out).unwrap();
        assert!(m.is_awaited(NodeId(1)) && !gone(&out));
        m.attach(NodeId(1), hello(2, vec![pid(51)]), "up", &mut out).unwrap();
        if !first_at_gate {
            m.at_gate(pid(50), &mut out);
        }
        // The other one runs.
        m.at_gate(pid(51), &mut out);
        assert!(gone(&out) && !out.contains(&Action::Release(pid(51))));
        assert_eq!(orders(&out).last(), Some(&Order::Kill(pid(51))));
    }
}
