//! bpctl: changes of nodes, in the order given.

use std::ffi::OsString;

use bproc::{Client, SetNode};
use bproc_common::id::NodeId;
use bproc_common::nodeset::is_state_name;
use clap::{ArgMatches, CommandFactory};

use crate::cli::Bpctl;
use crate::{nodes, owner};

fn complain(words: impl std::fmt::Display) -> i32 {
    eprintln!("bpctl: {words}");
    1
}

/// One change, without the node.
fn change(option: &str, value: &str) -> Result<SetNode, String> {
    let mut change = SetNode::default();
    match option {
        "mode" => {
            let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777);
            change.mode = Some(mode.ok_or_else(|| format!("'{value}' is no octal mode up to 777"))?);
        }
        "user" => change.user = Some(owner::user_id(value).ok_or_else(|| format!("there is no user '{value}'"))?),
        "group" => change.group = Some(owner::group_id(value).ok_or_else(|| format!("there is no group '{value}'"))?),
        _ if is_state_name(value) => change.state = Some(value.to_owned()),
        _ => return Err(format!("'{value}' is no state: 1 to 15 letters and digits")),
    }
    Ok(change)
}

/// The changes in the order in which their options were given.
fn changes(matches: &ArgMatches) -> Result<Vec<SetNode>, String> {
    let mut found: Vec<(usize, SetNode)> = Vec::new();
    for option in ["state", "mode", "user", "group"] {
        let values = matches.get_many::<String>(option).into_iter().flatten();
        for (value, at) in values.zip(matches.indices_of(option).into_iter().flatten()) {
            found.push((at, change(option, value)?));
        }
    }
    for option in ["reboot", "halt", "pwroff"] {
        // Counted options tell the place of the last only; asking twice is asking once.
        if matches.get_count(option) > 0 {
            found.push((matches.index_of(option).unwrap_or(usize::MAX), change("state", option)?));
        }
    }
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, change)| change).collect())
}

/// Runs bpctl; returns the exit status.
pub(crate) fn run(options: &Bpctl, args: &[OsString]) -> i32 {
    let changes = match Bpctl::command().try_get_matches_from(args) {
        Ok(matches) => changes(&matches),
        Err(error) => Err(error.to_string()),
    };
    let changes = match changes {
        Ok(changes) if changes.is_empty() => return complain("tell what to do: -s, -m, -u, -g, -R, -H or -P"),
        Ok(changes) => changes,
        Err(message) => return complain(message),
    };
    let mut status = 0;
    let targets = match &options.slaves {
        None => vec![NodeId::MASTER],
        Some(text) => {
            let known = match nodes::fetch() {
                Ok(known) => known,
                Err(error) => return complain(error),
            };
            let selection = match nodes::select(text, &known) {
                Ok(selection) => selection,
                Err(error) => return complain(error),
            };
            for unknown in &selection.unknown {
                complain(unknown);
            }
            status = i32::from(selection.nodes.is_empty());
            selection.nodes
        }
    };
    let mut agent = match Client::connect() {
        Ok(agent) => agent,
        Err(error) => return complain(error),
    };
    for node in targets {
        for change in &changes {
            if let Err(error) = agent.set_node(SetNode { number: node.0, ..change.clone() }) {
                eprintln!("{}: {error}", node.0);
                status = 1;
                // The later actions of this node may rest on the one that failed.
                break;
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Vec<SetNode>, String> {
        changes(&Bpctl::command().try_get_matches_from(line.split(' ')).map_err(|e| e.to_string())?)
    }

    #[test]
    fn actions_keep_their_order() {
        let got = parse("bpctl -S 0-3 -m 111 -s up -u root -m 0 -R -f").unwrap();
        let seen: Vec<_> = got.iter().map(|c| (c.mode, c.state.as_deref(), c.user)).collect();
        assert_eq!(
            seen,
            [
                (Some(0o111), None, None),
                (None, Some("up"), None),
                (None, None, Some(0)),
                (Some(0), None, None),
                (None, Some("reboot"), None)
            ]
        );
    }

    #[test]
    fn mistakes_are_told_before_anything_is_done() {
        for line in [
            "bpctl -S 0 -m 888",
            "bpctl -S 0 -m 1777",
            "bpctl -S 0 -s not-a-state",
            "bpctl -S 0 -u no.such.user",
            "bpctl -m 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
