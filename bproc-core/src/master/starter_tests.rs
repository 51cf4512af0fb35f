use super::nodes::Attach;
use super::*;
use bproc_common::id::Epoch;

const NODE: NodeId = NodeId(0);
const BPSH: Starter = Starter(77);
/// Number of that.
const NUMBER: i32 = 2;

fn pid(n: i32) -> Pid {
    Pid::new(n).unwrap()
}

fn attach(m: &mut Master, inventory: &[i32], out: &mut Out) {
    let hello = Attach {
        epoch: Epoch(1),
        instance: 1,
        orders_seen: 0,
        inventory: inventory.iter().map(|p| (pid(*p), None)).collect(),
        skeletons: vec![],
        leases: vec![],
        leaving: vec![],
        arriving: vec![],
    };
    m.attach(NODE, hello, "up", out).unwrap();
}

fn master(recovering: bool) -> Master {
    Master::new([(0, Node::new(0o111, 0, 0))], Leases::new(1000, 5000, 100), recovering)
}

/// One program, 50, that `bpsh` started, and its child, 51.
fn started() -> Master {
    let mut m = master(false);
    let mut out = vec![];
    attach(&mut m, &[], &mut out);
    let (parent, relatives) = (Some(pid(NUMBER)), vec![pid(NUMBER)]);
    let facts =
        SpawnFacts { pid: pid(50), parent, node: NODE, uid: 0, gids: [0].into(), relatives, starter: Some(BPSH) };
    m.spawn(Ask(1), facts, &mut out);
    m.held(pid(50), Ok(()), &mut out);
    m.spawned(pid(50), Ok(()), &mut out);
    m.ghost_connected(pid(50), Some(pid(NUMBER)), &mut out);
    fork(&mut m, 50, 51, &mut out);
    m
}

fn fork(m: &mut Master, parent: i32, child: i32, out: &mut Out) {
    m.forked(NODE, Some(pid(parent)), Child { pid: pid(child), uid: 0, gid: 0 }, out);
    m.cloned(pid(child), Ok(()), out);
    m.ghost_connected(pid(child), Some(pid(parent)), out);
}

fn killed(out: &[Action]) -> Vec<i32> {
    let kill = |a: &Action| if let Action::Send(_, _, Order::Kill(pid)) = a { Some(pid.get()) } else { None };
    out.iter().filter_map(kill).collect()
}

#[test]
fn all_that_a_killed_bpsh_started_goes_with_it() {
    let mut m = started();
    let mut out = vec![];
    fork(&mut m, 51, 52, &mut out);
    m.starter_killed(BPSH, &mut out);
    assert_eq!(killed(&out), [50, 51, 52]);
    // In its last moment, and told later.
    out.clear();
    fork(&mut m, 52, 53, &mut out);
    assert_eq!(killed(&out), [53]);
}

#[test]
fn what_programs_left_behind_stays_when_bpsh_ends_after_them() {
    let mut m = started();
    let mut out = vec![];
    m.exited(pid(50), 0, &mut out);
    m.ghost_gone(pid(50), &mut out);
    m.relative_gone(pid(NUMBER), 0, &mut out);
    assert_eq!(killed(&out), []);
    // Another bpsh is another one.
    m.starter_killed(Starter(78), &mut out);
    assert_eq!(killed(&out), []);
}

#[test]
fn what_programs_left_behind_goes_with_a_killed_bpsh() {
    let mut m = started();
    let mut out = vec![];
    m.exited(pid(50), 0, &mut out);
    m.ghost_gone(pid(50), &mut out);
    m.starter_killed(BPSH, &mut out);
    assert_eq!(killed(&out), [51]);
}

#[test]
fn a_bpsh_that_is_gone_before_its_programs_takes_all_along() {
    let mut m = started();
    let mut out = vec![];
    m.relative_gone(pid(NUMBER), 0, &mut out);
    assert_eq!(killed(&out), [50, 51]);
}

#[test]
fn a_new_master_learns_it_from_ghosts() {
    for told_before in [true, false] {
        let mut m = master(true);
        let mut out = vec![];
        if told_before {
            m.starter_killed(BPSH, &mut out);
        }
        m.ghost_connected(pid(51), None, &mut out);
        m.ghost_started_by(pid(51), Some(BPSH), &mut out);
        attach(&mut m, &[51], &mut out);
        if told_before {
            assert!(out.contains(&Action::KillGhost(pid(51))), "{out:?}");
        } else {
            m.starter_killed(BPSH, &mut out);
            assert_eq!(killed(&out), [51]);
        }
    }
}

#[test]
fn a_ghost_that_does_not_know_is_told() {
    let mut m = started();
    let mut out = vec![];
    m.ghost_started_by(pid(51), None, &mut out);
    assert_eq!(out, [Action::Ghost(pid(51), GhostCommand::Starter(BPSH))]);
}
