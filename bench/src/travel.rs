//! A program of 12 MB that the nodes do not have: its first start on all of them, and the next; with the nodes giving
//! it to each other, and with the master giving it to each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::report::Report;
use crate::spawn::timed;

const NODES: u8 = 16;
const BYTES: usize = 12 << 20;
/// More than there are nodes.
const STAR: u32 = 65_536;

/// `/bin/true`, made as long as that by bytes that are in no other.
fn program(path: &Path, seed: u64) -> Result<()> {
    let mut bytes = fs::read("/bin/true").context("no /bin/true")?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    fs::rename(&fresh, path).with_context(|| path.display().to_string())
}

/// Runs of the first start and of the next; and of one on a single node.
fn measure(setup: &Setup, dir: &Path, fan_out: u32, runs: usize) -> Result<[Samples; 3]> {
    let root = dir.join("root");
    fs::create_dir_all(root.join("tmp"))?;
    let settings = dir.join("settings.toml");
    fs::write(&settings, format!("[slave]\nroot = \"{}\"\n[cache]\nfan_out = {fan_out}\n", root.display()))?;
    let cluster = Cluster::up_with(setup, NODES, Some(&settings))?;
    let path = dir.join("program");
    let mut samples = [const { Samples::new() }; 3];
    for run in 0..runs + 1 {
        program(&path, run as u64 + 1000 * u64::from(fan_out))?;
        let cold = timed(cluster.tool("bpsh").arg("-a").arg(&path))?;
        let warm = timed(cluster.tool("bpsh").arg("-a").arg(&path))?;
        let one = timed(cluster.bpsh("0").arg(&path))?;
        // In the first run connections are made, and what all programs are linked with travels.
        if run > 0 {
            for (samples, time) in samples.iter_mut().zip([cold, warm, one]) {
                samples.add(time);
            }
        }
    }
    Ok(samples)
}

/// Each shape has a cluster of its own.
pub fn run(setup: &Setup) -> Result<()> {
    let runs = setup.runs.unwrap_or(5);
    let dir = Path::new("/var/tmp").join(format!("bproc-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let result = (|| {
        let mut report = Report::new("travel", "ms");
        for (shape, fan_out) in [("tree", 2), ("star", STAR)] {
            let [cold, warm, one] = measure(setup, &dir, fan_out, runs)?;
            report.row(format!("12 MB to {NODES} nodes, first start, {shape}"), cold);
            report.row(format!("the same again, {shape}"), warm);
            report.row(format!("again on one node, {shape}"), one);
        }
        report.note(
            "All nodes share this machine's processors, disk and loop-back: a tree spreads load that is one here.",
        );
        report.finish(setup)
    })();
    fs::remove_dir_all(&dir)?;
    result
}
