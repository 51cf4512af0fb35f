//! One image for many: a caller's children that go to nodes as one process. A child more of his, the pattern, is held
//! still by a mover; the nodes get its image from each other, in a tree, while it comes. See `bproc-mover`'s `spread`.
//!
//! Who is a node's giver is decided once, when all listen or have failed: an image passes a node as it comes, and is kept
//! nowhere. Who comes later, or loses his giver, gets it, or the rest, from here.

use super::clients::{Asker, ClientFact, Desk};
use super::moving::failure;
use super::{Actor, Fact};
use crate::mover::{Mover, Said};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Action;
use bproc_core::master::moving::MoveId;
use bproc_mover::wire::{Hold, Report, Task};
use bproc_proto::Failure;
use bproc_proto::client as wire;
use bproc_proto::link::Next;
use bproc_stdio::wire::Token;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
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
    /// The parent.
    handle: PidFd,
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

/// An image that many get.
pub struct Spread {
    /// Whose.
    pub pattern: Pid,
    parent: Pid,
    holder: Mover,
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
    if asker.node().is_some() || asker.number().is_some() {
        return Err(failure(libc::EOPNOTSUPP, "a process on a node sends each of its children away by itself"));
    }
    let pids = Pid::new(request.pid).filter(|p| p.get() > 1).zip(Pid::new(asker.pid));
    let (pattern, parent) = pids.ok_or_else(|| failure(libc::EINVAL, "nobody to be held"))?;
    let unreadable = |e: bproc_sys::Error| failure(e.errno(), format!("process {pattern} cannot be read: {e}"));
    let handle = PidFd::open(parent).map_err(unreadable)?;
    let theirs = Process::open(pattern).and_then(|p| p.stat()).map_err(unreadable)?.ppid == parent.get();
    // What the kernel hides from its own user is root's there; its memory is not for him to send to others of his.
    let open = std::fs::metadata(format!("/proc/{pattern}"))
        .is_ok_and(|m| asker.uid == 0 || std::os::unix::fs::MetadataExt::uid(&m) == asker.uid);
    if !theirs || !open {
        return Err(failure(libc::EPERM, format!("process {pattern} is no child of yours, or not for you to read")));
    }
    let (answer, receiver) = oneshot::channel();
    let asked = Asked { request, pattern, parent, handle, answer };
    desk.facts.send(Fact::Client(ClientFact::Hold(Box::new(asked)))).await.ok();
    receiver.await.unwrap_or_else(|_| Err(failure(libc::ECONNRESET, "the agent is ending; try again")))
}

impl Actor {
    pub(super) fn hold_pattern(&mut self, asked: Asked) {
        let Asked { request, pattern, parent, handle, answer } = asked;
        self.last_spread += 1;
        let number = self.last_spread;
        let task = Task::Hold(Hold { pid: pattern.get(), flags: request.flags });
        let told = move |said| Fact::Holder(number, said);
        let holder = Mover::start(&self.movers, async { Ok((task, Vec::new())) }, self.facts.clone(), told);
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

    /// The mover that holds the pattern tells.
    pub(super) fn holder(&mut self, number: u64, said: Said) {
        let Some(spread) = self.spreads.get_mut(&number) else { return };
        let failed = match said {
            Said::Report(Report::Held(_)) => {
                let gone = spread.answer.take().is_none_or(|answer| answer.send(Ok(number)).is_err());
                if gone {
                    self.spreads.remove(&number);
                }
                return;
            }
            Said::Report(Report::Done(done)) => failure(done.number, done.message),
            Said::Lost => failure(libc::ECANCELED, "the mover was killed"),
            _ => return,
        };
        if let Some(answer) = self.spreads.remove(&number).and_then(|spread| spread.answer) {
            let _ = answer.send(Err(failed));
        }
    }

    /// May a child of this parent become the process that is held?
    pub(super) fn may_follow(&self, request: &wire::Move, parent: Option<Pid>) -> bool {
        let held = self.spreads.get(&request.spread);
        held.is_some_and(|s| Some(s.parent) == parent) && request.node >= 0
    }

    pub(super) fn release(&mut self, number: u64, by: Option<Pid>) {
        if self.spreads.get(&number).is_some_and(|spread| by == Some(spread.parent)) {
            self.spreads.remove(&number);
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
            self.spreads.remove(&number);
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

    /// A target has nobody to give it the image, or no more: it comes from here, from this byte on.
    pub(super) fn feed(&mut self, pid: Pid, offset: u64) {
        let Some(going) = self.moving.get(&pid) else { return };
        let Some(mover) = &going.mover else { return };
        match (self.spreads.get(&going.request.spread), UnixStream::pair()) {
            (Some(spread), Ok((from, to))) => {
                spread.holder.tell_with(Task::Feed(offset), vec![to.into()]);
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
