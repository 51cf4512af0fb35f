use super::moving::Departed;
use super::moving_tests::{A, B, CHILD, P, facts, id_of, on_a, orders, pid, under_way, up};
use super::*;

#[test]
fn a_subreaper_elsewhere_gets_its_orphans() {
    let (mut m, mut out) = (on_a(), vec![]);
    let (child, orphan) = (pid(CHILD), pid(70));
    m.adopts(pid(P), child, &[child, orphan], &[], &mut out);
    assert_eq!(out[0], Action::Watch(orphan));
    assert_eq!(orders(&out), [(A, Order::Orphans { dead: child, orphans: vec![orphan], line: vec![] })]);
    // Not twice, and not after the stand-in of the dead one was told to end.
    out.clear();
    m.adopts(pid(P), child, &[child, orphan], &[], &mut out);
    m.relative_gone(child, 0, &mut out);
    m.adopts(pid(P), child, &[pid(71)], &[], &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeGone(child, 0))]);
    // It waits for the orphan there; here its ghost does.
    out.clear();
    m.relative_gone(orphan, 6 << 8, &mut out);
    m.reaped(orphan, &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeGone(orphan, 6 << 8))]);
    assert!(out.contains(&Action::Ghost(pid(P), GhostCommand::Reap(orphan))));
}

#[test]
fn a_zombie_that_a_subreaper_elsewhere_has_had_before_is_no_orphan() {
    let (mut m, mut out) = (on_a(), vec![]);
    let (child, orphan, other) = (pid(CHILD), pid(70), pid(71));
    let all = [child, orphan, other];
    m.adopts(pid(P), child, &all, &[], &mut out);
    m.relative_gone(child, 5 << 8, &mut out);
    out.clear();
    // What P has reaped on its node is told last.
    m.adopts(pid(P), orphan, &all, &[], &mut out);
    m.relative_gone(orphan, 6 << 8, &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeGone(orphan, 6 << 8))]);
    // The ghost is away, and has yet to reap it.
    m.ghost_disconnected(pid(P));
    m.reaped(child, &mut out);
    out.clear();
    m.adopts(pid(P), other, &all, &[], &mut out);
    assert_eq!(out, []);
}

#[test]
fn an_orphan_of_one_without_a_stand_in_there() {
    let (mut m, mut out) = (on_a(), vec![]);
    let (middle, dead, orphan) = (pid(CHILD), pid(70), pid(71));
    let child = Child { pid: orphan, uid: 5, gid: 5 };
    m.forked(B, Some(dead), child, &mut out);
    out.clear();
    // P's ghost has got it, and the ancestors of the dead one are made for that.
    m.adopts(pid(P), dead, &[middle, orphan], &[middle], &mut out);
    assert_eq!(m.parent_of(orphan), Some(pid(P)));
    assert_eq!(orders(&out), [(A, Order::Orphans { dead, orphans: vec![orphan], line: vec![middle] })]);
    // The one that was made for it ends, too.
    out.clear();
    m.relative_gone(dead, 5 << 8, &mut out);
    assert_eq!(orders(&out), [(A, Order::RelativeGone(dead, 5 << 8))]);
}

#[test]
fn orphans_whose_subreaper_only_its_node_knows() {
    let (mut m, mut out) = (on_a(), vec![]);
    let (dead, orphan, here) = (pid(CHILD), pid(71), pid(72));
    for (node, pid) in [(B, orphan), (A, here)] {
        m.forked(node, Some(dead), Child { pid, uid: 5, gid: 5 }, &mut out);
    }
    out.clear();
    m.leaves(dead, A, &[], &mut out);
    m.leaves(dead, A, &[], &mut out);
    assert_eq!(orders(&out), [(A, Order::Orphans { dead, orphans: vec![orphan], line: vec![] })]);
    m.leaves_nobody(dead);
    assert_eq!((m.parent_of(orphan), m.children_of(dead)), (None, vec![]));
    // From now on those that its process has left are its ghost's.
    out.clear();
    m.is_subreaper(B, pid(P), &mut out);
    assert_eq!(out, []);
    m.is_subreaper(A, pid(P), &mut out);
    assert_eq!(out, [Action::Ghost(pid(P), GhostCommand::Subreaper)]);
}

#[test]
fn nobody_is_gone_before_he_is_made() {
    let (mut m, mut out) = (on_a(), vec![]);
    let child = pid(70);
    let forked = |pid| Child { pid, uid: 5, gid: 5 };
    m.forked(A, Some(pid(P)), forked(child), &mut out);
    // P goes on to B, where the child gets a stand-in.
    m.move_asked(Ask(3), facts(Some(B)), &mut out);
    let id = id_of(&m);
    m.surveyed(pid(P), id, Ok(()), &mut out);
    m.receiving(pid(P), id, Ok(()), &mut out);
    out.clear();
    m.frozen(pid(P), id, Some(vec![pid(CHILD), child]), &mut out);
    assert!(!out.contains(&Action::Watch(child)));
    m.adopted(child, Some(pid(P)), &mut out);
    assert!(out.contains(&Action::Watch(child)));
    // Whose ghost nobody could look at is known by his process.
    m.exited(child, 7 << 8, &mut out);
    out.clear();
    m.relative_gone(child, 0, &mut out);
    assert_eq!(orders(&out), [(B, Order::RelativeGone(child, 7 << 8))]);
}

#[test]
fn a_child_that_is_reaped_before_the_source_has_spoken() {
    let (mut m, mut out) = (up(), vec![]);
    let id = under_way(&mut m, Some(A), &mut out);
    m.committing(pid(P), id, &mut out);
    m.arrived(pid(P), id, Ok(()), &mut out);
    m.reaped(pid(CHILD), &mut out);
    m.departed(pid(P), id, Departed::Gone { stand_in: true, stopped: false }, &mut out);
    m.ghost_connected(pid(P), Some(pid(2)), &mut out);
    out.clear();
    m.held(pid(P), Ok(()), &mut out);
    assert!(out.contains(&Action::Ghost(pid(P), GhostCommand::Reap(pid(CHILD)))));
}
