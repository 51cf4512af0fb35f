//! One process on 16 nodes at once: its image from node to node, and from here to each.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::moves::Programs;
use crate::report::Report;

const NODES: u8 = 16;
/// More than there are nodes.
const STAR: u32 = 65_536;
/// MiB of the process's own memory.
const SIZES: [u64; 3] = [0, 8, 64];

/// From call to return, milliseconds: then all children run.
fn measure(cluster: &Cluster, programs: &Programs, mib: u64, runs: usize) -> Result<Samples> {
    let mut command = Command::new(&programs.calls);
    let numbers = [runs as u64, mib, NODES.into()].map(|number| number.to_string());
    command.arg("vrfork").args(numbers).env("BPROC_SOCKET", cluster.socket()).stdin(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.success(), "calls vrfork: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    let times: Result<Vec<f64>> = text.lines().map(|line| Ok(line.parse::<f64>()? / 1e6)).collect();
    Ok(times?.into_iter().collect())
}

/// Each shape has a cluster of its own.
pub fn run(setup: &Setup) -> Result<()> {
    let programs = Programs::compile()?;
    let runs = setup.runs.unwrap_or(12);
    let settings = Path::new("/var/tmp").join(format!("bproc-bench-{}.toml", std::process::id()));
    let result = (|| {
        let mut report = Report::new("vrfork", "ms");
        for (shape, fan_out) in [("two each", 2), ("one each (a chain)", 1), ("a star", STAR)] {
            fs::write(&settings, format!("[cache]\nfan_out = {fan_out}\n")).context("the settings")?;
            let cluster = Cluster::up_with(setup, NODES, Some(&settings))?;
            // The first makes connections, and brings the program.
            measure(&cluster, &programs, 0, 2)?;
            for mib in SIZES {
                report.row(format!("{mib} MiB to {NODES} nodes, {shape}"), measure(&cluster, &programs, mib, runs)?);
            }
        }
        report.note("All nodes share this machine's processors: a tree spreads load that is one here.");
        report.finish(setup)
    })();
    let _ = fs::remove_file(&settings);
    result
}
