//! Node sets of the command line against the nodes that the agent knows.

use bproc::{Client, Error, Node};
use bproc_common::id::NodeId;
use bproc_common::nodeset::{self, Selection};

/// The nodes of the cluster, by number.
pub(crate) fn fetch() -> Result<Vec<Node>, Error> {
    let mut nodes = Client::connect()?.nodes()?;
    nodes.retain(|node| node.number >= 0);
    nodes.sort_by_key(|node| node.number);
    Ok(nodes)
}

/// Resolves a node set.
///
/// # Errors
/// When the text is none; the words say where.
pub(crate) fn select(text: &str, nodes: &[Node]) -> Result<Selection, nodeset::ParseError> {
    let states: Vec<(NodeId, &str)> = nodes.iter().map(|n| (NodeId(n.number), n.state.as_str())).collect();
    Ok(nodeset::resolve(&nodeset::parse(text)?, &states))
}
