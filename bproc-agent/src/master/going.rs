//! A move that is under way, as the master's agent knows it: what the core knows nothing of, and what nodes are told.

use super::link::named;
use super::machines::Machines;
use crate::mover::Mover;
use crate::survey::Survey;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::Order;
use bproc_core::master::moving::MoveId;
use bproc_proto::SpawnSpec;
use bproc_proto::client::{self as wire, Moved};
use bproc_proto::link::{self, ToNode, order, to_node};
use bproc_sys::pidfd::PidFd;
use std::os::fd::OwnedFd;

/// What the agent keeps of a move.
pub struct Going {
    /// What 0 to 2 of the process led to when its streams were prepared; for one of the master's own.
    pub(super) stdio: Vec<Vec<u8>>,
    pub(super) spec: SpawnSpec,
    pub(super) children: Vec<bproc_proto::Relative>,
    /// Whether one of the master's own can move at all.
    pub(super) survey: Option<Survey>,
    pub(super) request: wire::Move,
    /// The process, or its ghost: it keeps its number, and this it, wherever it goes.
    pub(super) handle: PidFd,
    pub(super) from: Option<NodeId>,
    pub(super) to: Option<NodeId>,
    /// Where the target listens.
    pub(super) address: String,
    /// The first bytes on the connection.
    pub(super) token: Vec<u8>,
    /// See [`super::streams::Streams::successor`].
    pub(super) successor: Vec<u8>,
    pub(super) mover: Option<Mover>,
    pub(super) fds: Vec<(i32, OwnedFd)>,
    /// Its image is another process's, that others get too: this one's number.
    pub(super) image: Option<Pid>,
    /// From whom the target gets it, and to whom it passes it on.
    pub(super) relay: link::Relay,
    /// The process dies with the mover of the master's own that sends it.
    pub(super) leaving: bool,
    /// It is built into its ghost, and may go on as soon as the source says so.
    pub(super) ready: bool,
    pub(super) moved: Moved,
    /// A former agent began it: nobody waits for the answer.
    pub(super) taken_over: bool,
    /// It is tried again if its ghost, or another, has yet to follow what the source says.
    pub(super) again: bool,
}

impl Going {
    /// It goes on reading where it read before.
    fn keeps_input(&self) -> bool {
        self.request.socket == 0 && !self.request.listed
    }

    /// An order of a move in the wire's words.
    pub fn order(&self, number: u64, order: &Order, pid: Pid, id: MoveId, machines: &Machines) -> Option<ToNode> {
        let (files, flags) = (self.request.files as u32, self.request.flags);
        let r#move = Some(named(pid, id));
        let body = match order {
            Order::Survey(..) => order::Body::Survey(link::Survey {
                r#move,
                files,
                flags,
                target: machines.of(self.to),
                rights: self.spec.rights.clone(),
                listed: self.request.listed,
            }),
            Order::Receive(..) => order::Body::Receive(link::Receive {
                r#move,
                spec: Some(self.spec.clone()),
                children: self.children.clone(),
                token: self.token.clone(),
                socket: self.request.socket,
                drop_files: self.request.files != 0,
                from: self.from.map_or(-1, |node| node.0),
                only_streams: self.request.listed,
                image: self.image.map_or(0, Pid::get),
                rank: self.request.rank,
            }),
            Order::Relay(..) => order::Body::Relay(link::Relay { r#move, ..self.relay.clone() }),
            Order::Depart(..) => order::Body::Depart(link::Depart {
                r#move,
                address: self.address.clone(),
                token: self.token.clone(),
                files,
                flags,
                to: self.to.map_or(-1, |node| node.0),
                children: self.children.iter().map(|c| c.pid).collect(),
                recall: self.keeps_input(),
                successor: self.successor.clone(),
                spread: self.request.spread,
            }),
            Order::Children(..) => order::Body::Children(link::Children { r#move, children: self.children.clone() }),
            _ => return None,
        };
        Some(ToNode { body: Some(to_node::Body::Order(link::Order { number, body: Some(body) })) })
    }

    /// What the target is going to be told of the groups, sessions and owners of the process and those around it is what
    /// they are on the node where it is.
    pub(super) fn agrees(&self, told: &[link::Groups]) -> bool {
        told.iter().all(|now| {
            let itself = (now.pid == self.spec.pid).then_some((self.spec.pgid, self.spec.sid));
            let mut others = self.spec.relatives.iter().chain(&self.children);
            let other = || others.find(|r| r.pid == now.pid).map(|r| (r.pgid, r.sid));
            let owner = self.spec.credentials.as_ref().filter(|_| itself.is_some()).map(|c| (c.ruid, c.rgid));
            itself.or_else(other).is_none_or(|numbers| numbers == (now.pgid, now.sid))
                && owner.is_none_or(|owner| Some(owner) == now.uid.zip(now.gid))
        })
    }
}
