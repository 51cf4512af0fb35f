//! bpstat: what the agent knows of nodes and processes, as tables that people and scripts read.

mod filter;
mod table;

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::net::{IpAddr, ToSocketAddrs};

use bproc::{Client, Node};
use bproc_common::id::NodeId;
use bproc_common::nodeset::Selection;
use serde_json::json;

use crate::cli::Bpstat;
use crate::{nodes, sys};
use table::Order;

/// A message for standard error; the exit status is 1.
type Failure = String;

fn words(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Runs bpstat; returns the exit status.
pub(crate) fn run(options: &Bpstat) -> i32 {
    if options.lock {
        for signal in [libc::SIGINT, libc::SIGTSTP] {
            sys::set_ignored(signal, true);
        }
    }
    let result = if options.filter {
        annotate()
    } else if let Some(host) = &options.host {
        number_of(host)
    } else if options.update {
        follow(options)
    } else {
        show(options).and_then(|(text, status)| emit(&text).map(|()| status))
    };
    result.unwrap_or_else(|message| {
        eprintln!("bpstat: {message}");
        1
    })
}

fn emit(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| format!("cannot write: {e}"))
}

/// The nodes that are asked for, and whether everything named exists.
fn select(options: &Bpstat, all: &[Node]) -> Result<(Vec<Node>, bool), Failure> {
    if options.nodes.is_empty() {
        return Ok((all.to_vec(), true));
    }
    let Selection { nodes, unknown } = nodes::select(&options.nodes.join(","), all).map_err(words)?;
    for unknown in &unknown {
        eprintln!("bpstat: {unknown}");
    }
    let master = match nodes.contains(&NodeId::MASTER) {
        true => Some(Client::connect().and_then(|mut agent| agent.master()).map_err(words)?),
        false => None,
    };
    let node = |id: &NodeId| all.iter().chain(&master).find(|node| node.number == id.0);
    let found: Vec<Node> = nodes.iter().filter_map(node).cloned().collect();
    let fine = unknown.is_empty() || !found.is_empty();
    Ok((found, fine))
}

fn order(options: &Bpstat) -> Order {
    let by_number = options.long || options.address || options.status || options.json;
    match (options.sort_number, options.sort_status, options.keep_order) {
        (true, ..) => Order::Number,
        (_, true, _) => Order::Status,
        (.., true) => Order::Keep,
        _ if by_number => Order::Number,
        _ => Order::Status,
    }
}

/// What is to be printed, and the exit status.
fn show(options: &Bpstat) -> Result<(String, i32), Failure> {
    let all = nodes::fetch().map_err(words)?;
    let (mut chosen, fine) = select(options, &all)?;
    table::sort(&mut chosen, order(options), options.reverse);
    let lines = |field: fn(&Node) -> &str| chosen.iter().map(|node| format!("{}\n", field(node))).collect();
    let text = if options.processes {
        processes(options, &chosen)?
    } else if options.number {
        format!("{}\n", chosen.len())
    } else if options.total {
        format!("{}\n", all.len())
    } else if options.json {
        format!("{:#}\n", table::json(&chosen))
    } else if options.address {
        lines(|node| &node.address)
    } else if options.status {
        lines(|node| &node.state)
    } else if options.long {
        table::long(&chosen)
    } else {
        table::compact(&chosen, options.reverse)
    };
    Ok((text, i32::from(!fine)))
}

fn processes(options: &Bpstat, chosen: &[Node]) -> Result<String, Failure> {
    let mut list = Client::connect().and_then(|mut agent| agent.processes()).map_err(words)?;
    if !options.nodes.is_empty() {
        list.retain(|process| chosen.iter().any(|node| node.number == process.node));
    }
    list.sort_by_key(|process| process.pid);
    if options.reverse {
        list.reverse();
    }
    if options.json {
        let one = |p: &bproc::ProcessOnNode| json!({"pid": p.pid, "node": p.node, "comm": p.comm, "state": p.state});
        return Ok(format!("{:#}\n", list.iter().map(one).collect::<serde_json::Value>()));
    }
    let lines = list.iter().map(|process| format!("{}\t{}\n", process.pid, process.node));
    Ok(std::iter::once("PID\tNode\n".to_owned()).chain(lines).collect())
}

/// Prints again at each change, until it is interrupted or the agent breaks off.
fn follow(options: &Bpstat) -> Result<i32, Failure> {
    // Watched from before the first look on: no change is missed.
    let mut watch = Client::connect().and_then(Client::watch).map_err(words)?;
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let (text, _) = show(options)?;
        emit(&format!("{clear}{text}"))?;
        match watch.next() {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(words(error)),
            None => return Ok(0),
        }
        if clear.is_empty() {
            emit("\n")?;
        }
    }
}

/// Prints the number of the node with this address.
fn number_of(host: &str) -> Result<i32, Failure> {
    let found = (host, 0).to_socket_addrs().map_err(|e| format!("{host}: {e}"))?;
    let wanted: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    let is_wanted = |text: &str| text.parse::<IpAddr>().is_ok_and(|ip| wanted.contains(&ip.to_canonical()));
    let number = match nodes::fetch().map_err(words)?.iter().find(|node| is_wanted(&node.address)) {
        Some(node) => node.number,
        None => {
            let me = Client::connect().and_then(|mut agent| agent.whoami()).map_err(words)?;
            if !is_wanted(&String::from_utf8_lossy(&me.master_address)) {
                return Err(format!("{host}: no node has this address"));
            }
            -1
        }
    };
    emit(&format!("{number}\n"))?;
    Ok(0)
}

/// Copies what ps prints, with the node before each line.
fn annotate() -> Result<i32, Failure> {
    let mut input = io::stdin().lock();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    let mut read = |line: &mut Vec<u8>| {
        line.clear();
        input.read_until(b'\n', line).map_err(|e| format!("cannot read: {e}"))
    };
    let cannot_write = |e: io::Error| format!("cannot write: {e}");
    read(&mut line)?;
    let column = filter::column(&line)
        .ok_or("the input does not begin with a header that has a column PID (is it what ps prints?)")?;
    let list = Client::connect().and_then(|mut agent| agent.processes()).map_err(words)?;
    let on_node: HashMap<i32, i32> = list.iter().map(|process| (process.pid, process.node)).collect();
    let mut node = "NODE".to_owned();
    while !line.is_empty() {
        out.write_all(node.as_bytes()).and_then(|()| out.write_all(b"\t")).map_err(cannot_write)?;
        out.write_all(&line).map_err(cannot_write)?;
        read(&mut line)?;
        let found = filter::pid(&line, column).and_then(|pid| on_node.get(&pid));
        node = found.map(i32::to_string).unwrap_or_default();
    }
    out.flush().map_err(cannot_write)?;
    Ok(0)
}
