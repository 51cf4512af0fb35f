//! Node sets as people write them (`0-3,n7,allup,!down`): parsed, then resolved against the nodes that there are.
//!
//! Pure: who asks gives the nodes and their states. Order and duplicates of what was written are kept; what names
//! nothing that exists is told apart, never dropped.

use crate::id::NodeId;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

/// One item of the comma-separated list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `-1` or `master`.
    Master,
    /// `3`, `n3`, `.3` (both ends the same) or `3-7`.
    Range(i32, i32),
    /// `3-`: every node from this number on.
    From(i32),
    /// `all`, or a state with or without `all`, `not` or `!` before it.
    Word(String),
}

/// Why a text is not a node set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The item that could not be read.
    pub item: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node set item '{}': {}", self.item, self.reason)
    }
}

#[cfg(feature = "std")]
impl std::error::Error for ParseError {}

/// What was written but names nothing that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Numbers that are not configured, from first to last inclusive.
    Nodes(i32, i32),
    /// A word that selects no node: a state with or without `all`, `not` or `!` before it, or nothing known.
    Word(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Nodes(first, last) if first == last => write!(f, "no node {first} is configured"),
            Unknown::Nodes(first, last) => write!(f, "no nodes {first}-{last} are configured"),
            Unknown::Word(word) if is_state(word) => write!(f, "no node is '{word}'"),
            Unknown::Word(word) => write!(f, "'{word}' is no node, state or node set"),
        }
    }
}

/// A node set resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The nodes, in the order written.
    pub nodes: Vec<NodeId>,
    /// What selects nothing, in the order written.
    pub unknown: Vec<Unknown>,
}

/// States that the agent itself sets, or that it gives a meaning to.
pub const STATES: [&str; 8] = ["down", "unavailable", "error", "up", "boot", "reboot", "halt", "pwroff"];

/// Longest name of a state in bytes.
pub const STATE_LEN: usize = 15;

/// True for what an administrator may set as a node's state: 1 to 15 letters and digits.
pub fn is_state_name(text: &str) -> bool {
    (1..=STATE_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_state(word: &str) -> bool {
    let rest = word.strip_prefix("all").unwrap_or(word);
    let state = rest.strip_prefix('!').or_else(|| rest.strip_prefix("not")).unwrap_or(rest);
    STATES.contains(&state)
}

fn number(text: &str) -> Option<Result<i32, &'static str>> {
    let digits = text.strip_prefix(['n', '.']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().map_err(|_| "the number is too large"))
}

fn parse_item(text: &str) -> Result<Item, &'static str> {
    if text == "master" || text == "-1" {
        return Ok(Item::Master);
    }
    if let Some(n) = number(text) {
        return n.map(|n| Item::Range(n, n));
    }
    if let Some((first, last)) = text.split_once('-') {
        let first = number(first).ok_or("a range is N-M or N-")??;
        if last.is_empty() {
            return Ok(Item::From(first));
        }
        let last = number(last).ok_or("a range is N-M or N-")??;
        if last < first {
            return Err("the range runs backwards");
        }
        return Ok(Item::Range(first, last));
    }
    let body = text.strip_prefix("all").unwrap_or(text);
    let body = body.strip_prefix('!').unwrap_or(body);
    if !text.bytes().all(|b| b.is_ascii_graphic()) || (body.is_empty() && text != "all") {
        return Err("expected a number, a range, 'master', 'all' or a state");
    }
    Ok(Item::Word(text.to_string()))
}

/// Reads a node set. Empty items (`0,,1`) are skipped.
///
/// # Errors
/// The first item that is neither number, range nor word.
pub fn parse(text: &str) -> Result<Vec<Item>, ParseError> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| parse_item(item).map_err(|reason| ParseError { item: item.to_string(), reason }))
        .collect()
}

/// Which states a word asks for.
fn predicate<'w>(word: &'w str, nodes: &[(NodeId, &str)]) -> (&'w str, bool) {
    let used = |name: &str| STATES.contains(&name) || nodes.iter().any(|(_, state)| *state == name);
    if used(word) {
        return (word, true);
    }
    let rest = word.strip_prefix("all").unwrap_or(word);
    if used(rest) {
        return (rest, true);
    }
    match rest.strip_prefix('!').or_else(|| rest.strip_prefix("not")) {
        Some(state) if !state.is_empty() => (state, false),
        _ => (rest, true),
    }
}

/// Resolves a parsed set against the slaves that are configured, given with their states.
///
/// Time is bounded by the number of nodes and items, not by the numbers in ranges.
pub fn resolve(items: &[Item], nodes: &[(NodeId, &str)]) -> Selection {
    let mut known: Vec<i32> = nodes.iter().map(|(id, _)| id.0).filter(|n| *n >= 0).collect();
    known.sort_unstable();
    known.dedup();
    let mut out = Selection::default();
    for item in items {
        match item {
            Item::Master => out.nodes.push(NodeId::MASTER),
            Item::Range(first, last) => {
                let mut next = *first;
                let start = known.partition_point(|n| n < first);
                for n in known[start..].iter().copied().take_while(|n| n <= last) {
                    if n > next {
                        out.unknown.push(Unknown::Nodes(next, n - 1));
                    }
                    out.nodes.push(NodeId(n));
                    next = n.saturating_add(1);
                }
                let reached = out.nodes.last() == Some(&NodeId(*last));
                if next <= *last && !reached {
                    out.unknown.push(Unknown::Nodes(next, *last));
                }
            }
            Item::From(first) => {
                let start = known.partition_point(|n| n < first);
                if start == known.len() {
                    out.unknown.push(Unknown::Nodes(*first, *first));
                }
                out.nodes.extend(known[start..].iter().map(|n| NodeId(*n)));
            }
            Item::Word(word) => {
                let before = out.nodes.len();
                let (name, wanted) = predicate(word, nodes);
                let fits = |state: &str| word == "all" || (state == name) == wanted;
                let mut fitting: Vec<NodeId> =
                    nodes.iter().filter(|(id, state)| id.is_slave() && fits(state)).map(|(id, _)| *id).collect();
                fitting.sort_unstable();
                out.nodes.extend(fitting);
                if out.nodes.len() == before {
                    out.unknown.push(Unknown::Word(word.clone()));
                }
            }
        }
    }
    out
}

/// Numbers as a list with ascending runs joined: `0-4,7`. What it makes, [`parse`] reads back (negative ones only -1).
pub fn join_runs(numbers: &[i32]) -> String {
    let mut out = String::new();
    let mut i = 0;
    while i < numbers.len() {
        let mut j = i;
        while j + 1 < numbers.len() && numbers[i] >= 0 && numbers[j].checked_add(1) == Some(numbers[j + 1]) {
            j += 1;
        }
        if i > 0 {
            out.push(',');
        }
        // Writing to a String cannot fail.
        let _ = if i == j { write!(out, "{}", numbers[i]) } else { write!(out, "{}-{}", numbers[i], numbers[j]) };
        i = j + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: [(NodeId, &str); 6] = [
        (NodeId(0), "up"),
        (NodeId(1), "up"),
        (NodeId(2), "down"),
        (NodeId(3), "drained"),
        (NodeId(7), "error"),
        (NodeId(8), "up"),
    ];

    fn pick(text: &str) -> Vec<i32> {
        resolve(&parse(text).unwrap(), &CLUSTER).nodes.iter().map(|n| n.0).collect()
    }

    fn missing(text: &str) -> Vec<Unknown> {
        resolve(&parse(text).unwrap(), &CLUSTER).unknown
    }

    #[test]
    fn every_form_of_the_list() {
        assert_eq!(pick("3,n1,.0"), [3, 1, 0]);
        assert_eq!(pick("1-3"), [1, 2, 3]);
        assert_eq!(pick("n1-n3"), [1, 2, 3]);
        assert_eq!(pick("2-"), [2, 3, 7, 8]);
        assert_eq!(pick("master,0,-1"), [-1, 0, -1]);
        assert_eq!(pick("all"), [0, 1, 2, 3, 7, 8]);
        assert_eq!(pick("up"), [0, 1, 8]);
        assert_eq!(pick("allup"), [0, 1, 8]);
        assert_eq!(pick("notup"), [2, 3, 7]);
        assert_eq!(pick("allnotup"), [2, 3, 7]);
        assert_eq!(pick("!up"), [2, 3, 7]);
        assert_eq!(pick("drained,0"), [3, 0]);
        assert_eq!(pick("!drained"), [0, 1, 2, 7, 8]);
    }

    #[test]
    fn order_and_duplicates_stay() {
        assert_eq!(pick("8,0,8,0-1"), [8, 0, 8, 0, 1]);
    }

    #[test]
    fn what_is_not_there_is_told() {
        assert_eq!(missing("4"), [Unknown::Nodes(4, 4)]);
        assert_eq!(missing("2-9"), [Unknown::Nodes(4, 6), Unknown::Nodes(9, 9)]);
        assert_eq!(missing("0-2147483647"), [Unknown::Nodes(4, 6), Unknown::Nodes(9, i32::MAX)]);
        assert_eq!(missing("9-"), [Unknown::Nodes(9, 9)]);
        assert_eq!(missing("boot"), [Unknown::Word("boot".into())]);
        assert_eq!(missing("upp"), [Unknown::Word("upp".into())]);
        assert_eq!(missing("0,1,2-"), []);
        let alike = [(NodeId(0), "up"), (NodeId(1), "up")];
        for word in ["boot", "allboot", "notup", "!up", "allnotup", "all!up"] {
            let got = resolve(&parse(word).unwrap(), &alike);
            assert_eq!((got.nodes, got.unknown), (vec![], vec![Unknown::Word(word.into())]));
            assert_eq!(Unknown::Word(word.into()).to_string(), format!("no node is '{word}'"));
        }
        assert_eq!(Unknown::Word("all".into()).to_string(), "'all' is no node, state or node set");
        for word in ["upp", "notupp", "not"] {
            assert_eq!(Unknown::Word(word.into()).to_string(), format!("'{word}' is no node, state or node set"));
        }
    }

    #[test]
    fn the_largest_number_does_not_overflow() {
        let nodes = [(NodeId(i32::MAX), "up")];
        let got = resolve(&parse("2147483646-2147483647").unwrap(), &nodes);
        assert_eq!(got.nodes, [NodeId(i32::MAX)]);
        assert_eq!(got.unknown, [Unknown::Nodes(i32::MAX - 1, i32::MAX - 1)]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["3-1", "99999999999", "1-x", "!", "all!", "-5", "1-2-3", "a b", "\u{e9}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn no_text_of_the_alphabet_panics_and_runs_read_back() {
        // Every text of up to five of these characters, resolved: results stay among the nodes that exist.
        let alphabet = [b'0', b'7', b'-', b',', b'n', b'!', b'.'];
        for len in 0..=5u32 {
            for mut code in 0..7usize.pow(len) {
                let text: String = (0..len)
                    .map(|_| {
                        let c = alphabet[code % 7] as char;
                        code /= 7;
                        c
                    })
                    .collect();
                if let Ok(items) = parse(&text) {
                    let got = resolve(&items, &CLUSTER);
                    assert!(got.nodes.iter().all(|id| *id == NodeId::MASTER || CLUSTER.iter().any(|(n, _)| n == id)));
                    let numbers: Vec<i32> = got.nodes.iter().map(|n| n.0).collect();
                    assert_eq!(pick(&join_runs(&numbers)), numbers, "{text}");
                }
            }
        }
    }

    #[test]
    fn runs() {
        assert_eq!(join_runs(&[]), "");
        assert_eq!(join_runs(&[0, 1, 2, 3, 4]), "0-4");
        assert_eq!(join_runs(&[0, 2, 3, 3, 9]), "0,2-3,3,9");
        assert_eq!(join_runs(&[-1, 0, 1]), "-1,0-1");
    }
}
