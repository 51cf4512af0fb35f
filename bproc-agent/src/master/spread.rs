//! One image for many: a caller's children that go to nodes as one process. A child more of his, the pattern, is held
//! still by a mover where it is, on a node by that node's agent; the nodes get its image from each other, in a tree, while it comes. See `bproc-mover`'s `spread`.
//!
//! Who is a node's giver is decided once, when all listen or have failed: an image passes a node as it comes, and is kept
//! nowhere. Who comes later, or loses his giver, gets it, or the rest, from here.

use super::clients::{Asker, ClientFact, Desk};
use super::moving::failure;
use super::places::settled;
use super::{Actor, Fact};
use crate::mover::{Mover, Said};
use crate::pattern::{held, may_hold};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Action;
use bproc_core::master::moving::MoveId;
use bproc_mover::wire::{Hold, Task};
use bproc_proto::Failure;
use bproc_proto::client as wire;
use bproc_proto::link::{self, Next, ToNode, to_node};
use bproc_stdio::wire::Token;
use bproc_sys::pidfd::PidFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::oneshot;

/// After that long without another that listens nobody is waited for.
const GRACE: Duration = Duration::from_secs(1);
/// Most that one node gives to: as many descriptors go to a mover at once, and some.
const MOST: usize = 32;

/// A process that is to be held.
#[derive(Debug)]
pub struct Asked {
    request: wire::Hold,
    pattern: Pid,
    parent: Pid,
    /// The parent, or his ghost.
    handle: PidFd,
    /// Where they are; none: here.
    on: Option<NodeId>,
    uid: u32,
    answer: oneshot::Sender<Result<u64, Failure>>,
}

/// A target that listens.
#[derive(Clone, Debug)]
pub struct Joining {
    pub pid: Pid,
    pub id: MoveId,
    pub node: NodeId,
    /// Where it waits for whoever gives it the image.
    pub gives: String,
}

/// Who holds a pattern.
enum Holder {
    Here(Mover),
    On(NodeId),
}

/// An image that many get.
pub struct Spread {
    /// Whose.
    pub pattern: Pid,
    parent: Pid,
    holder: Holder,
    answer: Option<oneshot::Sender<Result<u64, Failure>>>,
    ranks: usize,
    /// Those that came, or failed.
    over: usize,
    ready: Vec<Joining>,
    /// Everybody's giver is decided.
    decided: bool,
}

/// A client asks. Returns when the process stands still.
pub async fn ask(request: wire::Hold, asker: &Asker, desk: &Desk) -> Result<u64, Failure> {
    let pids = Pid::new(request.pid).filter(|p| p.get() > 1).zip(Pid::new(asker.number().unwrap_or(asker.pid)));
    let (pattern, parent) = pids.ok_or_else(|| failure(libc::EINVAL, "nobody to be held"))?;
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pattern} cannot be read: {e}"));
    let on = match asker.number() {
        None => None,
        Some(_) => {
            // Its node looks whose child it is. It must have heard of it.
            let places = (settled(parent, true, desk).await, settled(pattern, true, desk).await);
            let own =
                places.0.filter(|node| asker.node().is_none_or(|speaks| speaks == *node) && places.1 == Some(*node));
            Some(
                own.ok_or_else(|| failure(libc::ESRCH, format!("process {pattern} is not on the node of its parent")))?,
            )
        }
    };
    let handle = PidFd::open(parent).map_err(unreadable)?;
    if on.is_none() {
        may_hold(pattern.get(), parent.get(), asker.uid)?;
    }
    let (answer, receiver) = oneshot::channel();
    let asked = Asked { request, pattern, parent, handle, on, uid: asker.uid, answer };
    desk.facts.send(Fact::Client(ClientFact::Hold(Box::new(asked)))).await.ok();
    receiver.await.unwrap_or_else(|_| Err(failure(libc::ECONNRESET, "the agent is ending; try again")))
}

impl Actor {
    pub(super) fn hold_pattern(&mut self, asked: Asked) {
        let Asked { request, pattern, parent, handle, on, uid, answer } = asked;
        self.last_spread += 1;
        let number = self.last_spread;
        let (pid, flags) = (pattern.get(), request.flags);
        let holder = match on {
            None => {
                let task = Task::Hold(Hold { pid, flags });
                let told = move |said| Fact::Holder(number, said);
                Holder::Here(Mover::start(
                    &self.movers,
                    None,
                    async { Ok((task, Vec::new())) },
                    self.facts.clone(),
                    told,
                ))
            }
            Some(node) => {
                let hold = link::Hold { number, pid, parent: parent.get(), uid, flags };
                if !self.say(node, to_node::Body::Hold(hold)) {
                    let _ = answer.send(Err(failure(libc::EAGAIN, format!("node {node} is cut off at the moment"))));
                    return;
                }
                Holder::On(node)
            }
        };
        let spread = Spread {
            pattern,
            parent,
            holder,
            answer: Some(answer),
            ranks: request.ranks as usize,
            over: 0,
            ready: Vec::new(),
            decided: false,
        };
        self.spreads.insert(number, spread);
        // Whoever waits for the children has ended: nobody does.
        let facts = self.facts.clone();
        tokio::spawn(async move {
            if let Ok(fd) = crate::watched::watched(handle, Interest::READABLE) {
                let _ = fd.readable().await;
            }
            facts.send(Fact::SpreadOver(number)).await.ok();
        });
    }

    /// Tells a node, if its link stands.
    fn say(&self, node: NodeId, body: to_node::Body) -> bool {
        self.links.get(&node).is_some_and(|link| link.to.send(Ok(ToNode { body: Some(body) })).is_ok())
    }

    /// The mover that holds the pattern tells.
    pub(super) fn holder(&mut self, number: u64, said: Said) {
        if let Some(result) = held(said) {
            self.is_held(number, result);
        }
    }

    /// The agent of a node whose mover does.
    pub(super) fn held_on(&mut self, node: NodeId, said: link::Held) {
        let its = self.spreads.get(&said.number).is_some_and(|s| matches!(s.holder, Holder::On(on) if on == node));
        if its {
            self.is_held(said.number, said.failure.map_or(Ok(()), Err));
        }
    }

    fn is_held(&mut self, number: u64, result: Result<(), Failure>) {
        let Some(spread) = self.spreads.get_mut(&number) else { return };
        let Some(answer) = spread.answer.take() else {
            // It was held, and now it is not.
            return if result.is_err() {
                self.spread_is_over(number)
            };
        };
        let failed = result.is_err();
        if answer.send(result.map(|()| number)).is_err() || failed {
            self.spread_is_over(number);
        }
    }

    /// Nobody needs the pattern any more.
    pub(super) fn spread_is_over(&mut self, number: u64) {
        if let Some(Spread { holder: Holder::On(node), .. }) = self.spreads.remove(&number) {
            self.say(node, to_node::Body::Release(number));
        }
    }

    /// A node is cut off: what it holds it holds no more.
    pub(super) fn spreads_of(&mut self, node: NodeId) {
        self.spreads.retain(|_, spread| !matches!(spread.holder, Holder::On(on) if on == node));
    }

    /// May a child of this parent become the process that is held?
    pub(super) fn may_follow(&self, request: &wire::Move, parent: Option<Pid>) -> bool {
        let held = self.spreads.get(&request.spread);
        held.is_some_and(|s| Some(s.parent) == parent) && request.node >= 0
    }

    pub(super) fn release(&mut self, number: u64, by: Option<Pid>) {
        if self.spreads.get(&number).is_some_and(|spread| by == Some(spread.parent)) {
            self.spread_is_over(number);
        }
    }

    /// A target listens.
    pub(super) fn may_join(&mut self, number: u64, joining: Joining, out: &mut Vec<Action>) {
        let Some(spread) = self.spreads.get_mut(&number) else { return };
        if spread.decided {
            return self.core.relay(joining.pid, joining.id, out);
        }
        spread.ready.push(joining);
        let (facts, ready) = (self.facts.clone(), spread.ready.len());
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            facts.send(Fact::Late(number, ready)).await.ok();
        });
        self.decide_givers(number, false, out);
    }

    pub(super) fn late(&mut self, number: u64, ready: usize, out: &mut Vec<Action>) {
        if self.spreads.get(&number).is_some_and(|spread| spread.ready.len() == ready) {
            self.decide_givers(number, true, out);
        }
    }

    pub(super) fn came_or_failed(&mut self, number: u64, out: &mut Vec<Action>) {
        let Some(spread) = self.spreads.get_mut(&number) else { return };
        spread.over += 1;
        if spread.over >= spread.ranks {
            self.spread_is_over(number);
        } else {
            self.decide_givers(number, false, out);
        }
    }

    /// Who gets it from whom, if all are there that can be waited for.
    fn decide_givers(&mut self, number: u64, at_once: bool, out: &mut Vec<Action>) {
        let Some(spread) = self.spreads.get_mut(&number).filter(|spread| !spread.decided) else { return };
        let moving = &mut self.moving;
        // Those that have failed since are counted among these.
        spread.ready.retain(|j| moving.contains_key(&j.pid));
        if spread.ready.is_empty() || (!at_once && spread.ready.len() + spread.over < spread.ranks) {
            return;
        }
        spread.decided = true;
        let mut ready = std::mem::take(&mut spread.ready);
        ready.sort_by_key(|j| moving.get(&j.pid).map(|going| going.request.rank));
        for (giver, to) in edges(ready.len(), self.config.cache.fan_out as usize) {
            let Ok(token) = Token::random() else { break };
            let token = token.as_bytes().to_vec();
            if let Some(going) = moving.get_mut(&ready[to].pid) {
                (going.relay.token, going.relay.from) = (token.clone(), ready[giver].node.0);
            }
            if let Some(going) = moving.get_mut(&ready[giver].pid) {
                going.relay.to.push(Next { address: ready[to].gives.clone(), token, node: ready[to].node.0 });
            }
        }
        for joining in ready {
            self.core.relay(joining.pid, joining.id, out);
        }
    }

    /// A target of a process of here has nobody to give it the image, or no more: it comes from here, from this byte on.
    pub(super) fn feed(&mut self, pid: Pid, offset: u64) {
        let Some(going) = self.moving.get(&pid) else { return };
        let Some(mover) = &going.mover else { return };
        match (self.spreads.get(&going.request.spread), UnixStream::pair()) {
            (Some(Spread { holder: Holder::Here(holder), .. }), Ok((from, to))) => {
                holder.tell_with(Task::Feed(offset), vec![to.into()]);
                mover.tell_with(Task::Feed(offset), vec![from.into()]);
            }
            _ => mover.tell(Task::Proceed(false)),
        }
    }
}

/// Who gives to whom among so many; the first get it from the source.
fn edges(all: usize, fan_out: usize) -> impl Iterator<Item = (usize, usize)> {
    let fan_out = fan_out.clamp(1, MOST);
    (fan_out..all).map(move |to| ((to - fan_out) / fan_out, to))
}

#[cfg(test)]
mod tests {
    use super::edges;

    #[test]
    fn everybody_gets_it_once() {
        let of = |all, fan_out| edges(all, fan_out).collect::<Vec<_>>();
        assert_eq!(of(7, 2), [(0, 2), (0, 3), (1, 4), (1, 5), (2, 6)]);
        assert_eq!(of(4, 1), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(of(16, 65_536), []);
        assert_eq!(of(2, 2), []);
        for fan_out in 1..5 {
            let all = of(100, fan_out);
            assert!(all.iter().all(|(giver, to)| giver < to));
            for giver in 0..100 {
                assert!(all.iter().filter(|(g, _)| *g == giver).count() <= fan_out);
            }
        }
    }
}
