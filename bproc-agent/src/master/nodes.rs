//! What nodes say: attaching, and the events of their processes.

use super::link::{self, LinkFact};
use super::{Actor, Attached, clients, run};
use crate::owed::Owed;
use bproc_common::errno;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::nodes::Rejected;
use bproc_core::master::{Action, Child, GroupCall, Refusal};
use bproc_proto::link::{ToNode, Welcome, event as wire_event, from_node, to_node};
use bproc_sys::process::Process;
use std::time::Instant;
use tokio::sync::mpsc;
use tonic::Status;

impl Actor {
    pub(super) async fn link(&mut self, fact: LinkFact, out: &mut Vec<Action>) {
        match fact {
            LinkFact::Attach { node, id, hello, to, answer } => {
                let accepted = self.attach(node, id, &hello, to, out).await;
                let _ = answer.send(accepted);
            }
            LinkFact::Message { node, id, body } => {
                let Some(link) = self.links.get_mut(&node).filter(|l| l.id == id) else { return };
                link.heard = Instant::now();
                self.message(node, *body, out);
            }
            LinkFact::Broken { node, id } => {
                if self.links.get(&node).is_some_and(|l| l.id == id) {
                    tracing::warn!(%node, "the link broke; waiting for the node to come again");
                    self.links.remove(&node);
                    self.travel.lost(node.0);
                    self.spreads_of(node);
                    self.core.link_broken(node);
                    self.away.insert(node, Instant::now());
                }
            }
        }
    }

    async fn attach(
        &mut self,
        node: NodeId,
        id: u64,
        hello: &bproc_proto::link::Hello,
        to: mpsc::UnboundedSender<Result<ToNode, Status>>,
        out: &mut Vec<Action>,
    ) -> bool {
        let script = self.config.node_up.is_file();
        let state = if script { "boot" } else { "up" };
        if !self.may_greet(hello) {
            let message = format!("process of node {node} may have come home: a mover is still at work");
            to.send(Ok(link::refused(libc::EAGAIN, message, true))).ok();
            return false;
        }
        let leaving = hello.leaving.iter().filter_map(|told| self.told_leaving(node, told)).collect();
        let result = self.core.attach(node, link::attach(hello, leaving), state, out);
        let (number, message, retry) = match result {
            Ok(events_seen) => {
                let keep = self.travel.keep();
                let welcome = Welcome {
                    node: node.0,
                    stdio_address: self.stdio_address.clone(),
                    events_seen,
                    ping_timeout_s: self.config.ping_timeout_s,
                    leases: Vec::new(),
                    master_epoch: self.master_epoch,
                    files_address: self.travel.address.clone(),
                    keep: keep.digest,
                    keep_size: keep.size,
                    shows: self.kernel.shows(),
                };
                to.send(Ok(ToNode { body: Some(to_node::Body::Welcome(welcome)) })).ok();
                self.links.insert(node, Attached { id, to, heard: Instant::now(), newest: 0, owed: Owed::default() });
                self.away.remove(&node);
                if events_seen == 0 {
                    self.tell_ghosts_again(node, hello, out);
                }
                self.machines.note(node, hello.machine.clone());
                self.gauges.entry(node).or_default().kernel = hello.kernel.clone();
                tracing::info!(%node, version = %hello.version, kernel = %hello.kernel, resumed = events_seen > 0, "node attached");
                if script && self.core.view(node).is_some_and(|v| v.state == "boot") {
                    run::node_up(node, &self.config, self.facts.clone());
                }
                return true;
            }
            Err(Rejected::Unknown) => {
                (errno::BE_INVALIDNODE, format!("node {node} is not in the master's configuration"), false)
            }
            Err(Rejected::Taken) => (
                libc::EEXIST,
                format!("node {node} is attached already, by another agent; is a second one running there?"),
                true,
            ),
            Err(Rejected::Fenced) => {
                (libc::ESTALE, format!("this life of node {node} was declared dead; its processes must end"), true)
            }
        };
        tracing::warn!(%node, reason = %message, "a node was refused");
        to.send(Ok(link::refused(number, message, retry))).ok();
        false
    }

    /// What the agent before has acknowledged, and was killed before it told ghosts of it.
    fn tell_ghosts_again(&mut self, node: NodeId, hello: &bproc_proto::link::Hello, out: &mut Vec<Action>) {
        for told in &hello.inventory {
            let Some(pid) = Pid::new(told.pid).filter(|pid| self.core.whereabouts(*pid) == Some(node)) else {
                continue;
            };
            // One that came by a move, and has had its name ever since, is known to its node by number only.
            if !told.comm.is_empty() {
                self.core.execed(pid, told.comm.clone(), told.cmdline.clone(), out);
            }
            let Ok(ghost) = Process::open(pid) else { continue };
            if ghost.stat().is_ok_and(|stat| (stat.pgrp, stat.session) != (told.pgid, told.sid)) {
                self.core.grouped(pid, told.pgid, told.sid, out);
            }
            if ghost.status().is_ok_and(|status| (status.uids.real, status.gids.real) != (told.uid, told.gid)) {
                self.core.owned(pid, told.uid, told.gid, out);
            }
        }
    }

    fn message(&mut self, node: NodeId, body: from_node::Body, out: &mut Vec<Action>) {
        match body {
            from_node::Body::Ack(number) => self.core.orders_acknowledged(node, number, out),
            from_node::Body::Pong(pong) => self.gauges.entry(node).or_default().pong = pong,
            from_node::Body::Ask(ask) => {
                let (desk, to) = (self.desk.clone(), self.links.get(&node).map(|link| link.to.clone()));
                tokio::spawn(async move {
                    let answer = clients::answer_node(node, *ask, desk).await;
                    if let Some(to) = to {
                        // A link that broke meanwhile: the node has told the asker.
                        let _ = to.send(Ok(ToNode { body: Some(to_node::Body::Answer(Box::new(answer))) }));
                    }
                });
            }
            from_node::Body::Held(held) => self.held_on(node, held),
            from_node::Body::Doing(doing) => self.show(node, &doing),
            from_node::Body::Hello(_) => tracing::warn!(%node, "a second hello; ignored"),
            from_node::Body::Event(event) => {
                let number = event.number;
                if self.core.accept_event(node, number)
                    && let Some(body) = event.body
                {
                    self.node_event(node, body, out);
                }
                if let Some(link) = self.links.get_mut(&node) {
                    link.newest = number;
                    self.owed.one_more();
                    if link.owed.one_more() {
                        link.settle_acknowledgement();
                    }
                }
            }
        }
    }

    /// What a node tells of how a process stands counts only while that is there. In the middle of a move both ends tell.
    fn tells_of_its_own(&self, node: NodeId, body: &wire_event::Body) -> bool {
        use wire_event::Body;
        let of = match body {
            Body::Execed(told) => told.pid,
            Body::Stopped(told) => told.pid,
            Body::Continued(of) => *of,
            Body::Groups(told) => told.pid,
            _ => return true,
        };
        let elsewhere =
            |pid: Pid| self.core.node_of(pid).is_some_and(|at| at != node) && !self.moving.contains_key(&pid);
        !Pid::new(of).is_some_and(elsewhere)
    }

    fn node_event(&mut self, node: NodeId, body: wire_event::Body, out: &mut Vec<Action>) {
        use wire_event::Body;
        // A pid that is none tells nothing.
        let pid = |raw: i32| Pid::new(raw);
        if let Body::Execed(_) | Body::Stopped(_) | Body::Continued(_) | Body::Groups(_) = &body
            && !self.tells_of_its_own(node, &body)
        {
            // Told again, to a new master, by a node from which the process has gone since.
            return;
        }
        match body {
            Body::Spawned(spawned) => {
                let Some(pid) = pid(spawned.pid) else { return };
                self.specs.remove(&pid);
                let result = match spawned.failure {
                    None => Ok(()),
                    Some(failure) => Err(Refusal::Failed(node, failure.number, failure.message)),
                };
                self.core.spawned(pid, result, out);
            }
            Body::Forked(forked) => {
                let Some(child) = forked.child else { return };
                let Some(pid) = pid(child.pid) else { return };
                let child = Child { pid, uid: child.uid, gid: child.gid };
                self.core.forked(node, Pid::new(forked.parent), child, out);
            }
            Body::Execed(execed) => {
                if let Some(pid) = pid(execed.pid) {
                    self.core.execed(pid, execed.comm, execed.cmdline, out);
                }
            }
            Body::Exited(exited) => {
                if let Some(pid) = pid(exited.pid) {
                    if let Some(rusage) = &exited.rusage {
                        self.kernel.set_usage(pid, &rusage.raw);
                    }
                    self.core.exited(pid, exited.status, out);
                }
            }
            Body::Stopped(stopped) => {
                if let Some(pid) = pid(stopped.pid) {
                    self.core.stopped(pid, stopped.signal, out);
                }
            }
            Body::Continued(raw) => {
                if let Some(pid) = pid(raw) {
                    self.core.continued(pid, out);
                }
            }
            Body::Reaped(raw) => {
                if let Some(pid) = pid(raw) {
                    self.core.reaped(pid, out);
                }
            }
            Body::Groups(groups) => {
                if let Some(pid) = pid(groups.pid) {
                    self.core.grouped(pid, groups.pgid, groups.sid, out);
                    if let (Some(uid), Some(gid)) = (groups.uid, groups.gid) {
                        self.core.owned(pid, uid, gid, out);
                    }
                }
            }
            Body::Signal(signal) => {
                if let Some(pid) = pid(signal.pid) {
                    // Its stand-in may be in a group that it has left.
                    let is_member = || Process::open(pid).and_then(|p| p.stat()).is_ok_and(|s| s.pgrp == signal.group);
                    let group = GroupCall { group: signal.group, call: signal.call };
                    let group = (group.group > 1 && group.call != 0 && is_member()).then_some(group);
                    self.core.signal_from_node(node, pid, signal.siginfo, group, out);
                }
            }
            Body::Surveyed(_)
            | Body::Receiving(_)
            | Body::Frozen(_)
            | Body::Adopted(_)
            | Body::Arrived(_)
            | Body::Departed(_) => {
                self.move_event(node, body, out);
            }
            Body::LowLease(_) => self.core.low_lease(node, out),
            Body::Trouble(failure) => tracing::warn!(%node, number = failure.number, "{}", failure.message),
            Body::Reparented(_) => {}
        }
    }
}
