//! The master's address, as programs are told it: the one at which a node reaches it.

use bproc_common::id::NodeId;
use bproc_config::MachineConfig;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all tasks.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it listens; none: at every address of the machine.
    bound: Option<IpAddr>,
    /// What a configuration for all machines says of it.
    configured: Option<IpAddr>,
    /// Where each node has reached it.
    reached: Arc<Mutex<BTreeMap<NodeId, IpAddr>>>,
}

impl Address {
    /// As far as the configuration tells it. Names are left to nodes, which look them up themselves.
    pub fn new(config: &MachineConfig) -> Address {
        let masters = config.masters.first().into_iter().flatten();
        Address {
            bound: Some(config.bind.ip()).filter(|ip| !ip.is_unspecified()),
            configured: masters.into_iter().find_map(|master| master.host.parse().ok()),
            reached: Arc::default(),
        }
    }

    /// A node is linked with this address of this machine.
    pub fn reached(&self, node: NodeId, at: IpAddr) {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(node, at.to_canonical());
    }

    /// For someone on the machine of this node, none: on the master's. Empty if nobody has said or found one yet.
    pub fn tell(&self, node: Option<NodeId>) -> String {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let by_itself = node.and_then(|node| reached.get(&node).copied());
        let known = by_itself.or(self.bound).or_else(|| reached.values().next().copied()).or(self.configured);
        known.map(|ip| ip.to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(bound: Option<&str>, configured: Option<&str>) -> Address {
        let parse = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Address { bound: parse(bound), configured: parse(configured), reached: Arc::default() }
    }

    #[test]
    fn where_it_is_reached_before_what_is_written() {
        let everywhere = address(None, None);
        assert_eq!(everywhere.tell(None), "");
        let everywhere = address(None, Some("10.0.0.1"));
        assert_eq!(everywhere.tell(Some(NodeId(3))), "10.0.0.1");
        everywhere.reached(NodeId(3), "::ffff:10.0.0.9".parse().unwrap());
        everywhere.reached(NodeId(1), "10.1.0.1".parse().unwrap());
        assert_eq!(everywhere.tell(Some(NodeId(3))), "10.0.0.9");
        assert_eq!(everywhere.tell(None), "10.1.0.1");
        let bound = address(Some("10.2.0.1"), Some("10.0.0.1"));
        bound.reached(NodeId(1), "10.2.0.1".parse().unwrap());
        assert_eq!(bound.tell(None), "10.2.0.1");
    }
}
