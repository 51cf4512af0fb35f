//! bpmove: running processes go on elsewhere.

use bproc::{Client, Files, MoveRequest};
use bproc_common::id::NodeId;

use crate::cli::Bpmove;

fn complain(words: impl std::fmt::Display) -> i32 {
    eprintln!("bpmove: {words}");
    1
}

/// A node by number, or the master.
fn node(text: &str) -> Option<NodeId> {
    match text {
        "master" | "-1" => Some(NodeId::MASTER),
        number => number.parse().ok().filter(|n| *n >= 0).map(NodeId),
    }
}

/// Runs bpmove; returns the exit status.
pub(crate) fn run(options: &Bpmove) -> i32 {
    let Some(node) = node(&options.node) else {
        return complain(format!("'{}' is no node: a number, or master", options.node));
    };
    // What a shell has open is open here, too, and would seem to be shared: `bpmove $$`.
    crate::sys::close_inherited();
    let mut status = 0;
    for pid in &options.pids {
        let files = if options.drop_files { Files::DropOthers } else { Files::Carry };
        let request = MoveRequest { pid: *pid, node: node.0, flags: MoveRequest::FLAGS, files };
        match Client::connect().and_then(|mut client| client.move_process(&request)) {
            Ok(moved) if options.verbose => {
                let (ms, kib) = (moved.frozen_ns as f64 / 1e6, moved.bytes >> 10);
                println!("{pid}: on {node}; it stood still for {ms:.2} ms, {kib} KiB");
            }
            Ok(_) => {}
            Err(error) => status = complain(error),
        }
    }
    status
}
