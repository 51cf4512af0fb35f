//! Many processes that sleep: local ones, ones forked on a node, ones spawned on a node. And what they cost.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::node::{FIRST, PID};
use crate::procfs::{self, Memory};
use crate::shared::Shared;
use crate::sys::{self, Held};

/// How long all of them may take to be there.
const LIMIT: u64 = 300;

/// Processes that sleep; they end with this value.
pub struct Population {
    /// The local processes, or the ghosts.
    pub pids: Vec<i32>,
    /// Processes of this machine that it consists of: twice as many when node and master are one machine.
    pub processes: usize,
    /// Seconds from the first fork until all are to be seen.
    pub seconds: f64,
    _held: Held,
}

/// Children of one process that `command` starts.
fn populate(how: &str, number: usize, mut command: Command, copies: usize) -> Result<Population> {
    let shared = Shared::create("sleepers", 8)?;
    command.arg(std::env::current_exe().context("this program has no path")?);
    command.arg(how).arg(number.to_string()).arg(shared.path());
    let held = Held::start(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let parent = i32::try_from(shared.wait(PID, 1, LIMIT)?).context("a pid")?;
    let first = shared.words()[FIRST].load(Ordering::Acquire);
    let end = sys::now() + LIMIT * 1_000_000_000;
    let pids = loop {
        let children = procfs::children(parent);
        if children.len() >= number {
            break children;
        }
        if sys::now() > end {
            bail!("{} of {number} are to be seen after {LIMIT} s", children.len());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let seconds = (sys::now() - first) as f64 / 1e9;
    Ok(Population { pids, processes: number * copies, seconds, _held: held })
}

/// Local processes.
pub fn local(number: usize) -> Result<Population> {
    // env does nothing but exec what follows: the same command line on both sides.
    populate("sleepers", number, Command::new("/usr/bin/env"), 1)
}

/// Forked by one process on node 0.
pub fn forked_on_node(cluster: &Cluster, number: usize) -> Result<Population> {
    populate("sleepers", number, cluster.bpsh("0"), 2)
}

/// Each asked for by itself, from this machine.
pub fn spawned(cluster: &Cluster, number: usize) -> Result<Population> {
    let mut command = Command::new("/usr/bin/env");
    command.env("BPROC_SOCKET", cluster.socket());
    populate("spawner", number, command, 2)
}

/// CPU time of some daemons over some seconds, in percent of one processor, and their context switches a second.
pub fn idle(daemons: &[i32], seconds: u64) -> (f64, f64) {
    let ticks = || daemons.iter().map(|pid| procfs::ticks(*pid)).sum::<u64>();
    let switches = || daemons.iter().map(|pid| procfs::switches(*pid)).sum::<i64>();
    let (before, woken) = (ticks(), switches());
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    let used = ticks().saturating_sub(before);
    (used as f64 / seconds as f64, (switches() - woken) as f64 / seconds as f64)
}

/// How long `ps ax` takes, in milliseconds.
pub fn ps(runs: usize) -> Result<Samples> {
    let mut command = Command::new("ps");
    command.arg("ax").stdin(Stdio::null()).stdout(Stdio::null());
    (0..runs)
        .map(|_| crate::spawn::timed(&mut command))
        .collect::<Result<Vec<f64>>>()
        .map(|times| times.into_iter().collect())
}

/// Memory of the system now, after what ended lately has been given back.
pub fn settled() -> Result<Memory> {
    std::thread::sleep(std::time::Duration::from_secs(1));
    Memory::now()
}
