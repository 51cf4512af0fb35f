//! What the machines of nodes have: each tells it when it attaches, and whoever moves a process looks before it is
//! stopped.

use bproc_common::id::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use vmadump::facts::Machine;

/// The words of all nodes, shared by all tasks.
#[derive(Clone, Debug, Default)]
pub struct Machines(Arc<Mutex<HashMap<NodeId, Vec<u8>>>>);

impl Machines {
    /// A node has told.
    pub fn note(&self, node: NodeId, machine: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, machine);
    }

    /// What the machine of a node has; none: the master's. Empty if it has not told.
    pub fn of(&self, node: Option<NodeId>) -> Vec<u8> {
        match node {
            None => Machine::here().encode(),
            Some(node) => {
                let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.get(&node).cloned().unwrap_or_default()
            }
        }
    }
}
