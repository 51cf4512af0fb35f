//! One image for many, of a process on this node: its agent holds the pattern, and feeds those of its brothers' movers
//! whose targets get it from nobody else. Who gets it from whom the master says: `master/spread.rs`.

use super::{Actor, Fact};
use crate::mover::{Mover, Said};
use crate::pattern::{held, may_hold};
use bproc_mover::wire::{Hold, Task};
use bproc_proto::Failure;
use bproc_proto::link::{self as wire, from_node};
use std::os::unix::net::UnixStream;

impl Actor {
    /// The master says: hold it.
    pub(super) fn hold(&mut self, order: wire::Hold) {
        let hosts = self.table.running(order.pid).zip(self.table.running(order.parent));
        let ended = || Failure { number: libc::ESRCH, message: format!("process {} has ended", order.pid) };
        let held = hosts.ok_or_else(ended).and_then(|(pid, parent)| may_hold(pid, parent, order.uid).map(|()| pid));
        let pid = match held {
            Ok(pid) => pid,
            Err(failure) => return self.held(order.number, Err(failure)),
        };
        let (number, task) = (order.number, Task::Hold(Hold { pid, flags: order.flags }));
        let told = move |said| Fact::Holder(number, said);
        let holder = Mover::start(&self.movers, None, async { Ok((task, Vec::new())) }, self.facts.clone(), told);
        self.holders.insert(number, holder);
    }

    /// The mover that holds it tells.
    pub(super) fn holder(&mut self, number: u64, said: Said) {
        let Some(result) = held(said).filter(|_| self.holders.contains_key(&number)) else { return };
        if result.is_err() {
            self.holders.remove(&number);
        }
        self.held(number, result);
    }

    fn held(&self, number: u64, result: Result<(), Failure>) {
        self.say(from_node::Body::Held(wire::Held { number, failure: result.err() }));
    }

    /// A target of a process of here has nobody to give it the image, or no more: it comes from here, from this byte on.
    pub(super) fn feed(&self, r#move: wire::Move, offset: u64) {
        let Some(half) = self.halves.get(&r#move.pid).filter(|half| half.r#move == r#move) else { return };
        let Some(mover) = &half.mover else { return };
        match (self.holders.get(&half.spread), UnixStream::pair()) {
            (Some(holder), Ok((from, to))) => {
                holder.tell_with(Task::Feed(offset), vec![to.into()]);
                mover.tell_with(Task::Feed(offset), vec![from.into()]);
            }
            _ => mover.tell(Task::Proceed(false)),
        }
    }
}
