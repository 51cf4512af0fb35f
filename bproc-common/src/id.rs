//! Names of things: nodes, processes of the space, lives of a node.

/// Number of a node. Slaves count from 0; the master is [`NodeId::MASTER`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct NodeId(pub i32);

impl NodeId {
    /// The master.
    pub const MASTER: NodeId = NodeId(-1);
    /// The machine that the caller is on.
    pub const SELF: NodeId = NodeId(-2);
    /// No node.
    pub const NONE: NodeId = NodeId(-3);
    /// Any node.
    pub const ANY: NodeId = NodeId(-4);

    /// True for a slave's number, of whatever state.
    pub const fn is_slave(self) -> bool {
        self.0 >= 0
    }
}

impl core::fmt::Display for NodeId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if *self == NodeId::MASTER { f.write_str("master") } else { write!(f, "{}", self.0) }
    }
}

/// A pid in the space: the number that the process has on the master and on
/// every node. Always positive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Pid(i32);

impl Pid {
    /// `None` unless `raw` is positive: 0 and -1 have meanings to `kill(2)` that
    /// must never be reached by accident.
    pub const fn new(raw: i32) -> Option<Pid> {
        if raw > 0 { Some(Pid(raw)) } else { None }
    }

    /// The number, positive.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl core::fmt::Display for Pid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One life of a node: a slave that comes back after it was declared down has a
/// new one. Drawn by the slave's agent when it makes its space; never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Epoch(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_refuses_what_kill_would_broadcast() {
        assert_eq!(Pid::new(0), None);
        assert_eq!(Pid::new(-1), None);
        assert_eq!(Pid::new(7).map(Pid::get), Some(7));
    }
}
