//! What clients ask.

use super::caller::Caller;
use super::clients::ClientFact;
use super::{Actor, Waiting, Waits};
use bproc_common::errno;
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::{Action, Ask, SpawnFacts};
use bproc_proto::{Failure, client as wire};

impl Actor {
    pub(super) fn client(&mut self, fact: ClientFact, out: &mut Vec<Action>) {
        match fact {
            ClientFact::Spawn { node, spec, caller, starter, answer } => {
                let Some(pid) = Pid::new(spec.pid) else { return };
                let ask = Ask(self.next_ask);
                self.next_ask += 1;
                self.asks.insert(ask, Waiting { pid, answer: Waits::Spawn(answer) });
                self.specs.insert(pid, *spec);
                let Caller { parent, uid, gids, relatives, .. } = caller;
                if let Some((parent, starter)) = parent.zip(starter) {
                    self.kernel.add_starter(parent, starter);
                }
                let facts = SpawnFacts { pid, parent, node, uid, gids, relatives, starter };
                self.core.spawn(ask, facts, out);
            }
            ClientFact::Resize { resize, caller, answer } => {
                let pids = Pid::new(resize.pid).zip(Pid::new(caller));
                let done = pids.is_some_and(|(pid, caller)| self.core.resize(pid, caller, resize.winsize, out));
                let _ = answer.send(done);
            }
            ClientFact::Nodes(answer) => {
                let _ = answer.send(self.node_list());
            }
            ClientFact::Processes(answer) => {
                let on_node = |(pid, node): (Pid, Option<NodeId>)| wire::ProcessOnNode {
                    pid: pid.get(),
                    node: node.unwrap_or(NodeId::NONE).0,
                    ..Default::default()
                };
                let processes = self.core.processes().into_iter().map(on_node).collect();
                let _ = answer.send(wire::ProcessList { processes });
            }
            ClientFact::Attribute(get, answer) => {
                let known = self.known(get.number);
                let _ = answer.send(known.and_then(|()| self.attributes.get(get.number, &get.name)));
            }
            ClientFact::SetAttribute(set, answer) => {
                let known = self.known(set.number);
                let done = known.and_then(|()| self.attributes.set(set.number, set.name, set.value));
                if done.is_ok() {
                    self.changes.send_modify(|n| *n += 1);
                }
                let _ = answer.send(done);
            }
            ClientFact::Where(pid, answer) => {
                let _ = answer.send(self.core.whereabouts(pid));
            }
            ClientFact::Settled { pid, on_node, answer } => self.settling.push((pid, on_node, answer)),
            ClientFact::Move(asked) => self.move_asked(*asked, out),
            ClientFact::Hold(asked) => self.hold_pattern(*asked),
            ClientFact::CameOrFailed(spread) => self.came_or_failed(spread, out),
            ClientFact::Release(spread, by) => self.release(spread, by),
            ClientFact::SetNode { change, uid, gids, answer } => {
                let result = self.set_node(change, uid, &gids);
                if result.is_ok() {
                    out.push(Action::NodesChanged);
                }
                let _ = answer.send(result);
            }
        }
    }

    fn known(&self, number: i32) -> Result<(), Failure> {
        let id = NodeId(number);
        if self.core.view(id).is_some() {
            return Ok(());
        }
        Err(Failure { number: errno::BE_INVALIDNODE, message: format!("there is no node {id}") })
    }

    fn set_node(&mut self, change: wire::SetNode, uid: u32, gids: &[u32]) -> Result<(), Failure> {
        let id = NodeId(change.number);
        let failure = |number, message: String| Err(Failure { number, message });
        if id == NodeId::MASTER {
            let why = "the master is always up and open to all, which cannot be changed: name other nodes (bpctl -S)";
            return failure(libc::EINVAL, why.into());
        }
        let Some(node) = self.core.node_mut(id) else {
            return failure(errno::BE_INVALIDNODE, format!("there is no node {id}"));
        };
        let owner = uid == 0 || uid == node.user;
        let only_root = change.user.is_some() || change.state.is_some();
        let own_group = change.group.is_none_or(|g| uid == 0 || gids.contains(&g));
        if (only_root && uid != 0) || !owner || !own_group {
            return failure(libc::EPERM, format!("user {uid} may not change node {id} so"));
        }
        if let Some(state) = change.state {
            if state.is_empty() || state.len() > 15 || !state.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return failure(libc::EINVAL, format!("`{state}` is no state: 1 to 15 letters and digits"));
            }
            node.state = state;
        }
        node.mode = change.mode.map_or(node.mode, |m| m & 0o111);
        node.user = change.user.unwrap_or(node.user);
        node.group = change.group.unwrap_or(node.group);
        Ok(())
    }

    fn node_list(&self) -> wire::NodeList {
        let nodes = self.core.node_ids().into_iter().filter_map(|id| {
            let view = self.core.view(id)?;
            let gauges = self.gauges.get(&id).cloned().unwrap_or_default();
            let address = self.config.nodes.iter().find(|n| n.number == id.0).map(|n| n.addr.to_string());
            Some(wire::Node {
                number: id.0,
                state: view.state,
                mode: view.mode,
                user: view.user,
                group: view.group,
                address: address.unwrap_or_default(),
                kernel: gauges.kernel,
                load_centi: gauges.pong.load_centi,
                mem_used: gauges.pong.mem_used,
                mem_total: gauges.pong.mem_total,
                processes: view.processes as u32,
            })
        });
        wire::NodeList { nodes: nodes.collect() }
    }
}
