//! Moves in their last step when a master begins anew, or a node's agent: what the nodes, and movers of the former agent's,
//! tell of them.

use super::Actor;
use super::Fact;
use super::going::Going;
use crate::checked;
use crate::former::{self, Caller};
use crate::mover::Mover;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Action;
use bproc_core::master::moving::{Leaving, MoveId};
use bproc_mover::wire::Doubt;
use bproc_proto::link;
use bproc_sys::pidfd::PidFd;

impl Actor {
    /// What the next agent is told if this one is gone when it is in doubt whether a process has gone.
    pub(super) fn doubt(&self, pid: Pid, id: MoveId, to: Option<NodeId>) -> Doubt {
        Doubt {
            socket: self.config.run_dir.join(former::SOCKET).into_os_string().into_encoded_bytes(),
            pid: pid.get(),
            id: id.0,
            to: to.map_or(-1, |node| node.0),
            inputs: Vec::new(),
        }
    }

    /// A mover that a former agent began waits to be told.
    pub(super) fn take_over(&mut self, caller: Caller, out: &mut Vec<Action>) {
        let Doubt { pid, id, to, .. } = caller.doubt;
        let Some((pid, handle)) = Pid::new(pid).and_then(|pid| Some((pid, PidFd::open(pid).ok()?))) else { return };
        if self.moving.contains_key(&pid) {
            return tracing::warn!(%pid, "a mover is in doubt about a process that moves");
        }
        tracing::info!(%pid, "a former agent's mover does not know what became of a process that was to go");
        let (id, to) = (MoveId(id), (to >= 0).then_some(NodeId(to)));
        let mover = Mover::take_over(&self.movers, caller, self.facts.clone(), move |said| Fact::Mover(pid, id, said));
        self.moving.insert(pid, Going { mover: Some(mover), leaving: true, ..Going::taken_over(handle, None, to) });
        self.core.leaving(None, &Leaving { pid, id, to, in_doubt: true, home: false }, out);
    }

    /// Whether a node's words can be understood: what movers here are about to do is told first.
    pub(super) fn may_greet(&mut self, hello: &link::Hello) -> bool {
        !hello.leaving.iter().any(|leaving| leaving.to < 0) || !self.former.is_at_work()
    }

    /// What a node says of a process in its last step there.
    pub(super) fn told_leaving(&mut self, node: NodeId, told: &link::Leaving) -> Option<Leaving> {
        let (pid, id) = told.r#move.and_then(|m| Some((Pid::new(m.pid)?, MoveId(m.id))))?;
        let to = (told.to >= 0).then_some(NodeId(told.to));
        let home = to.is_none() && checked::ghost(pid, self.keeper.pid, self.ghost_exe).is_none();
        if let (true, false, Ok(handle)) = (home, self.moving.contains_key(&pid), PidFd::open(pid)) {
            self.moving.insert(pid, Going::taken_over(handle, Some(node), None));
        }
        Some(Leaving { pid, id, to, in_doubt: told.in_doubt, home })
    }

    /// The same, told later.
    pub(super) fn leaving(&mut self, node: NodeId, told: &link::Leaving, out: &mut Vec<Action>) {
        if let Some(leaving) = self.told_leaving(node, told) {
            self.core.leaving(Some(node), &leaving, out);
        }
    }

    /// Those of a former agent's that are over.
    pub(super) fn forget_taken_over(&mut self) {
        let core = &self.core;
        self.moving.retain(|pid, going| !going.taken_over || core.is_taken_over(*pid));
    }
}

impl Going {
    fn taken_over(handle: PidFd, from: Option<NodeId>, to: Option<NodeId>) -> Going {
        Going {
            stdio: Vec::new(),
            spec: Default::default(),
            children: Vec::new(),
            survey: None,
            request: Default::default(),
            handle,
            from,
            to,
            address: String::new(),
            token: Vec::new(),
            successor: Vec::new(),
            mover: None,
            fds: Vec::new(),
            image: None,
            relay: Default::default(),
            leaving: false,
            ready: false,
            moved: Default::default(),
            taken_over: true,
            again: false,
        }
    }
}
