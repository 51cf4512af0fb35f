//! Moves in their last step when the master's agent is a new one, or this: the master is told of them, and movers in doubt
//! that a former agent began are this one's.

use super::{Actor, Fact, moving::Half};
use crate::checked;
use crate::former::{self, Caller};
use crate::mover::Mover;
use bproc_mover::wire::{Doubt, Input, Task};
use bproc_proto::link::{self as wire, event};
use std::collections::BTreeSet;

impl Actor {
    /// Is a process in the middle of its last step, so that nobody can say whether it is here?
    pub(super) fn in_between(&self) -> bool {
        self.halves.values().any(|half| half.committed && !half.in_doubt)
    }

    /// Another master knows of no move: those that have not come to their last step never do.
    pub(super) fn give_up_moves(&mut self) {
        self.cancel_rooms();
        for half in self.halves.values().filter(|half| !half.committed) {
            self.tell_mover(Some(half.r#move), Task::Proceed(false));
        }
    }

    /// What the next agent is told if this one is gone when it is in doubt whether a process has gone.
    pub(super) fn doubt(&self, r#move: wire::Move, to: i32, inputs: Vec<(Vec<u8>, i32)>) -> Doubt {
        Doubt {
            socket: self.dir.join(former::SOCKET).into_os_string().into_encoded_bytes(),
            pid: r#move.pid,
            id: r#move.id,
            to,
            inputs: inputs.into_iter().map(|(token, stream)| Input { token, stream }).collect(),
        }
    }

    /// Those that were reaped, and of whose end the master has yet to hear: the events that are kept tell it.
    pub(super) fn over(&self) -> BTreeSet<i32> {
        let over = self.events.iter().filter_map(|event| match event {
            event::Body::Exited(exited) if !self.table.is_here(exited.pid) => Some(exited.pid),
            _ => None,
        });
        over.collect()
    }

    /// Whoever was forked here and has gone elsewhere, another master knows from there.
    pub(super) fn withdraw_forks(&mut self) {
        let (over, table) = (self.over(), &self.table);
        let here = |pid: i32| over.contains(&pid) || table.is_here(pid);
        self.events.withdraw(|event| match event {
            event::Body::Forked(forked) => forked.child.as_ref().is_some_and(|child| !here(child.pid)),
            _ => false,
        });
    }

    /// Processes in the last step of going.
    pub(super) fn leaving(&self) -> Vec<wire::Leaving> {
        let leaving = self.halves.values().filter(|half| half.committed && !self.table.is_arriving(half.r#move.pid));
        let told = |half: &Half| wire::Leaving { r#move: Some(half.r#move), to: half.to, in_doubt: half.in_doubt };
        leaving.map(told).collect()
    }

    /// Moves in the last step of coming.
    pub(super) fn arriving(&self) -> Vec<wire::Move> {
        let arriving = self.halves.values().filter(|half| half.committed && self.table.is_arriving(half.r#move.pid));
        arriving.map(|half| half.r#move).collect()
    }

    /// A mover that a former agent began waits to be told. `late`: the master has been greeted meanwhile.
    pub(super) fn take_over(&mut self, caller: Caller, late: bool) {
        let Doubt { pid, id, to, .. } = caller.doubt;
        let r#move = wire::Move { pid, id };
        let Some(host_pid) = self.table.running(pid).filter(|_| !self.halves.contains_key(&pid)) else {
            tracing::warn!(pid, "a mover is in doubt about a process that is not here");
            return;
        };
        tracing::info!(pid, "a former agent's mover does not know what became of a process that was to go");
        self.table.leave(pid);
        let input = |input: &Input| wire::ForwardedStream {
            token: input.token.clone(),
            stream: input.stream,
            input: true,
            ..Default::default()
        };
        let streams = caller.doubt.inputs.iter().map(input).collect();
        let handle = checked::member(host_pid, pid);
        let mover = Mover::take_over(&self.movers, caller, self.facts.clone(), move |said| Fact::Mover(r#move, said));
        let half = Half {
            r#move,
            host_pid,
            handle,
            mover: Some(mover),
            streams,
            recall: true,
            successor: Vec::new(),
            to,
            spec: None,
            committed: true,
            leaving: true,
            unread: false,
            in_doubt: true,
            spread: 0,
            giver: None,
        };
        self.halves.insert(pid, half);
        if late {
            let departed =
                wire::Departed { r#move: Some(r#move), in_doubt: true, former: true, to, ..Default::default() };
            self.tell(event::Body::Departed(departed));
        }
    }
}
