//! One process on each of many nodes, all of this machine.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::report::Report;
use crate::spawn::timed;
use crate::ssh::{Setting, Ssh};
use crate::sys::{self, Held};

/// All at once; milliseconds until the last has ended.
fn at_once(number: u8, command: impl Fn() -> Command) -> Result<f64> {
    let start = sys::now();
    let mut started = Vec::new();
    for _ in 0..number {
        started.push(Held::start(&mut command())?);
    }
    for held in &mut started {
        let status = held.child().wait().context("a child cannot be waited for")?;
        if !status.success() {
            bail!("one of many ended with {status}");
        }
    }
    Ok((sys::now() - start) as f64 / 1e6)
}

/// Interleaved runs of every case.
pub fn run(setup: &Setup) -> Result<()> {
    let (runs, nodes) = (setup.runs.unwrap_or(20), setup.nodes);
    let mut report = Report::new("wide", "ms");
    let cluster = Cluster::up(setup, nodes)?;
    let ssh = Ssh::start(Setting::Stripped)?;
    let [mut bpsh, mut multiplexed, mut fresh, mut plain] = [const { Samples::new() }; 4];
    for run in 0..runs + 1 {
        let one = timed(cluster.tool("bpsh").args(["-a", "/bin/true"]))?;
        let two = at_once(nodes, || with_true(ssh.multiplexed()))?;
        let three = at_once(nodes, || with_true(ssh.fresh()))?;
        let four = at_once(nodes, || {
            let mut command = Command::new("/bin/true");
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command
        })?;
        if run > 0 {
            bpsh.add(one);
            multiplexed.add(two);
            fresh.add(three);
            plain.add(four);
        }
    }
    report.row(format!("bpsh -a /bin/true, {nodes} nodes"), bpsh);
    report.row(format!("{nodes} ssh at once, multiplexed"), multiplexed);
    report.row(format!("{nodes} ssh at once, fresh"), fresh);
    report.row(format!("{nodes} fork and exec"), plain);
    report.note("Agents, ghosts and processes of all nodes share this machine's processors.");
    report.finish(setup)
}

fn with_true(mut command: Command) -> Command {
    command.arg("/bin/true");
    command
}
