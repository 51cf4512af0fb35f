//! The tables of bpstat. Pure: nodes in, text out.

use bproc::Node;
use bproc_common::nodeset::join_runs;
use bproc_common::perm::mode_text;
use serde_json::{Value, json};

use crate::owner;

/// By what the nodes are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Number,
    Status,
    Keep,
}

/// Sorts the selected nodes.
pub(crate) fn sort(nodes: &mut [Node], order: Order, reverse: bool) {
    match order {
        Order::Number => nodes.sort_by_key(|node| node.number),
        Order::Status => nodes.sort_by(|a, b| (&a.state, a.number).cmp(&(&b.state, b.number))),
        Order::Keep => {}
    }
    if reverse {
        nodes.reverse();
    }
}

fn mode(node: &Node) -> String {
    String::from_utf8_lossy(&mode_text(node.mode)).into_owned()
}

fn compact_line(nodes: &str, status: &str, mode: &str, user: &str, group: &str) -> String {
    format!("{nodes:<30} {status:<12} {mode:<10} {user:<10} {group}\n")
}

/// One line for neighbours that are alike.
pub(crate) fn compact(nodes: &[Node], reversed: bool) -> String {
    let mut text = compact_line("Node(s)", "Status", "Mode", "User", "Group");
    let alike = |a: &Node, b: &Node| (&a.state, a.mode, a.user, a.group) == (&b.state, b.mode, b.user, b.group);
    for run in nodes.chunk_by(alike) {
        let mut numbers: Vec<i32> = run.iter().map(|node| node.number).collect();
        if reversed {
            // Within a line numbers ascend, or runs could not be joined.
            numbers.reverse();
        }
        let (user, group) = (owner::user_name(run[0].user), owner::group_name(run[0].group));
        text += &compact_line(&join_runs(&numbers), &run[0].state, &mode(&run[0]), &user, &group);
    }
    text
}

fn long_line(node: &str, address: &str, status: &str, mode: &str, user: &str, group: &str) -> String {
    format!("{node:<6} {address:<15} {status:<12} {mode:<10} {user:<10} {group}\n")
}

/// One line a node.
pub(crate) fn long(nodes: &[Node]) -> String {
    let mut text = long_line("Node", "Address", "Status", "Mode", "User", "Group");
    for node in nodes {
        let (user, group) = (owner::user_name(node.user), owner::group_name(node.group));
        text += &long_line(&node.number.to_string(), &node.address, &node.state, &mode(node), &user, &group);
    }
    text
}

/// Everything that is known of the nodes.
pub(crate) fn json(nodes: &[Node]) -> Value {
    let one = |node: &Node| {
        json!({
            "node": node.number,
            "address": node.address,
            "status": node.state,
            "mode": mode(node),
            "user": owner::user_name(node.user),
            "uid": node.user,
            "group": owner::group_name(node.group),
            "gid": node.group,
            "kernel": node.kernel,
            "load": f64::from(node.load_centi) / 100.0,
            "memory_used": node.mem_used,
            "memory_total": node.mem_total,
            "processes": node.processes,
        })
    };
    nodes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: i32, state: &str, mode: u32) -> Node {
        Node {
            number,
            state: state.into(),
            mode,
            user: 0,
            group: 4_000_000_000,
            address: format!("10.0.0.{number}"),
            ..Node::default()
        }
    }

    fn cluster() -> Vec<Node> {
        let mut nodes: Vec<Node> = (0..5).map(|n| node(n, "up", 0o111)).collect();
        nodes.push(node(5, "down", 0));
        nodes.push(node(7, "up", 0o111));
        nodes
    }

    #[test]
    fn compact_joins_what_is_alike() {
        let mut nodes = cluster();
        sort(&mut nodes, Order::Status, false);
        assert_eq!(
            compact(&nodes, false),
            "Node(s)                        Status       Mode       User       Group\n\
             5                              down         ---------- root       #4000000000\n\
             0-4,7                          up           ---x--x--x root       #4000000000\n"
        );
        sort(&mut nodes, Order::Status, true);
        let lines: Vec<String> = compact(&nodes, true).lines().map(|l| l.split(' ').next().unwrap().into()).collect();
        assert_eq!(lines, ["Node(s)", "0-4,7", "5"]);
        sort(&mut nodes, Order::Number, false);
        let lines: Vec<String> = compact(&nodes, false).lines().map(|l| l.split(' ').next().unwrap().into()).collect();
        assert_eq!(lines, ["Node(s)", "0-4", "5", "7"]);
    }

    #[test]
    fn long_has_a_line_for_each() {
        assert_eq!(
            long(&cluster()[4..6]),
            "Node   Address         Status       Mode       User       Group\n\
             4      10.0.0.4        up           ---x--x--x root       #4000000000\n\
             5      10.0.0.5        down         ---------- root       #4000000000\n"
        );
    }

    #[test]
    fn json_has_numbers_and_names() {
        let value = json(&cluster()[..1]);
        assert_eq!(value[0]["node"], 0);
        assert_eq!(value[0]["mode"], "---x--x--x");
        assert_eq!(value[0]["user"], "root");
        assert_eq!(value[0]["gid"], 4_000_000_000u32);
    }
}
