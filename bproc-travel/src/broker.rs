//! Who gets a file from whom: the master serves a few, these serve a few each, and so on. Pure: questions in, answers
//! out; what time it is comes with the question.

use crate::digest::Digest;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A child that was not heard of for so long does not count any more.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Files that are remembered; then all are forgotten, and the next asker is served here.
const MOST: usize = 1 << 14;

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The master itself.
    Master,
    /// A node, at an address.
    Node(i32, String),
}

struct Child {
    node: i32,
    since: Instant,
}

struct Holder {
    node: i32,
    address: String,
    children: Vec<Child>,
}

/// Spread of one file. The master is the holder of number -1 and comes first; the others follow in the order in which
/// they were sent to somebody, which makes a tree of small depth.
#[derive(Default)]
struct Spread {
    holders: Vec<Holder>,
}

impl Spread {
    /// Those who get it from a node, directly or not.
    fn below(&self, node: i32) -> Vec<i32> {
        let mut found = vec![node];
        let mut at = 0;
        while at < found.len() {
            let children = self.holders.iter().filter(|holder| holder.node == found[at]).flat_map(|h| &h.children);
            let fresh: Vec<i32> = children.map(|child| child.node).filter(|child| !found.contains(child)).collect();
            found.extend(fresh);
            at += 1;
        }
        found
    }
}

/// The spread of all files.
pub struct Broker {
    fan_out: usize,
    files: HashMap<Digest, Spread>,
}

const MASTER: i32 = -1;

impl Broker {
    /// Each holder serves so many at once.
    pub fn new(fan_out: u32) -> Broker {
        Broker { fan_out: fan_out.max(1) as usize, files: HashMap::new() }
    }

    /// A node wants a file, and will serve it to others at `address` (if that is not empty). These nodes could not give
    /// it.
    pub fn assign(&mut self, digest: Digest, node: i32, address: &str, failed: &[i32], now: Instant) -> Source {
        if self.files.len() >= MOST {
            self.files.clear();
        }
        let spread = self.files.entry(digest).or_default();
        if spread.holders.is_empty() {
            spread.holders.push(Holder { node: MASTER, address: String::new(), children: Vec::new() });
        }
        let below = spread.below(node);
        // Whoever asks has it no more, and is served by nobody else.
        spread
            .holders
            .retain(|holder| holder.node == MASTER || (holder.node != node && !failed.contains(&holder.node)));
        for holder in &mut spread.holders {
            holder.children.retain(|child| {
                child.node != node && !failed.contains(&child.node) && now.duration_since(child.since) < FORGOTTEN
            });
        }
        // Who waits for the asker has nothing to give.
        let mut others = spread.holders.iter_mut().filter(|holder| !below.contains(&holder.node));
        let free = others.find(|holder| holder.children.len() < self.fan_out);
        let source = match free {
            Some(holder) => {
                holder.children.push(Child { node, since: now });
                if holder.node == MASTER { Source::Master } else { Source::Node(holder.node, holder.address.clone()) }
            }
            None => Source::Master,
        };
        if !address.is_empty() {
            spread.holders.push(Holder { node, address: address.into(), children: Vec::new() });
        }
        source
    }

    /// A node is done with what it got from another (or from the master: -1): it has it whole, or not at all.
    pub fn told(&mut self, digest: Digest, node: i32, from: i32, whole: bool) {
        let Some(spread) = self.files.get_mut(&digest) else { return };
        for holder in spread.holders.iter_mut().filter(|holder| holder.node == from) {
            holder.children.retain(|child| child.node != node);
        }
        if !whole {
            spread.holders.retain(|holder| holder.node != node);
        }
    }

    /// A node cannot be reached any more.
    pub fn lost(&mut self, node: i32) {
        for spread in self.files.values_mut() {
            spread.holders.retain(|holder| holder.node != node);
            for holder in &mut spread.holders {
                holder.children.retain(|child| child.node != node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Digest = Digest([1; 32]);

    fn ask(broker: &mut Broker, node: i32, failed: &[i32], now: Instant) -> i32 {
        match broker.assign(FILE, node, &format!("h:{node}"), failed, now) {
            Source::Master => MASTER,
            Source::Node(number, address) => {
                assert_eq!(address, format!("h:{number}"));
                number
            }
        }
    }

    #[test]
    fn many_at_once_make_a_tree() {
        let (mut broker, now) = (Broker::new(2), Instant::now());
        let parents: Vec<i32> = (0..14).map(|node| ask(&mut broker, node, &[], now)).collect();
        assert_eq!(parents, [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn one_after_the_other_is_served_here() {
        let (mut broker, now) = (Broker::new(2), Instant::now());
        for node in 0..5 {
            assert_eq!(ask(&mut broker, node, &[], now), MASTER);
            broker.told(FILE, node, MASTER, true);
        }
    }

    #[test]
    fn who_failed_costs_only_itself() {
        let (mut broker, now) = (Broker::new(1), Instant::now());
        assert_eq!(ask(&mut broker, 0, &[], now), MASTER);
        assert_eq!(ask(&mut broker, 1, &[], now), 0);
        assert_eq!(ask(&mut broker, 2, &[], now), 1);
        // Nobody is sent to those that wait for itself.
        assert_eq!(ask(&mut broker, 0, &[], now), MASTER);
        assert_eq!(ask(&mut broker, 1, &[], now), 0);
        assert_eq!(ask(&mut broker, 2, &[], now), 1);
        // 1 has died: its child asks again and is sent elsewhere, nobody is sent to it.
        assert_eq!(ask(&mut broker, 2, &[1], now), 0);
        assert_eq!(ask(&mut broker, 3, &[], now), 2);
        broker.lost(0);
        assert_eq!(ask(&mut broker, 4, &[], now), MASTER);
        // Children that nobody hears of do not block for ever.
        let later = now + FORGOTTEN * 2;
        assert_eq!(ask(&mut broker, 5, &[], later), MASTER);
    }
}
