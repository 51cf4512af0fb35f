//! Bytes through standard input and output of a process: on a node, over ssh, and locally.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::report::Report;
use crate::ssh::{Setting, Ssh};
use crate::sys::{self, Held};

const PIECE: usize = 1 << 20;
const MIB: u64 = 1 << 20;

/// One piece of what is sent: no two are equal, and a shift shows.
fn piece(number: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&((number << 32) + index as u64).to_le_bytes());
    }
}

/// MiB a second there and back again, compared byte for byte.
fn through(command: &mut Command, mib: u64) -> Result<f64> {
    let start = sys::now();
    let mut held = Held::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut input = held.child().stdin.take().context("no standard input")?;
    let mut output = held.child().stdout.take().context("no standard output")?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let mut bytes = vec![0; PIECE];
        for number in 0..mib {
            piece(number, &mut bytes);
            input.write_all(&bytes)?;
        }
        Ok(())
    });
    let (mut bytes, mut wanted) = (vec![0; PIECE], vec![0; PIECE]);
    for number in 0..mib {
        output.read_exact(&mut bytes).with_context(|| format!("the output ends after {number} of {mib} MiB"))?;
        piece(number, &mut wanted);
        if bytes != wanted {
            bail!("MiB {number} came back changed");
        }
    }
    if output.read(&mut bytes).context("cannot read to the end")? != 0 {
        bail!("more came back than was sent");
    }
    let took = (sys::now() - start) as f64 / 1e9;
    let Ok(written) = writer.join() else { bail!("the writer failed") };
    written.context("cannot write all")?;
    let status = held.child().wait().context("a child cannot be waited for")?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok((mib * MIB) as f64 / MIB as f64 / took)
}

/// Interleaved runs of every case.
pub fn run(setup: &Setup) -> Result<()> {
    let (runs, mib) = (setup.runs.unwrap_or(3), setup.mib);
    let mut report = Report::new("stdio", "MiB/s");
    let cluster = Cluster::up(setup, 2)?;
    let ssh = Ssh::start(Setting::Stripped)?;
    let cat = |mut command: Command| {
        command.arg("cat");
        command
    };
    let mut cases = [
        ("pipe to cat and back", Command::new("cat"), Samples::default()),
        ("bpsh 1 cat", cat(cluster.bpsh("1")), Samples::default()),
        ("ssh cat, multiplexed", cat(ssh.multiplexed()), Samples::default()),
        ("ssh cat, fresh", cat(ssh.fresh()), Samples::default()),
    ];
    for _ in 0..runs {
        for (case, command, samples) in &mut cases {
            eprintln!("bproc-bench: {case}, {mib} MiB ...");
            samples.add(through(command, mib)?);
        }
    }
    for (case, _, samples) in cases {
        report.row(case, samples);
    }
    report.note(format!("{mib} MiB each way, every byte compared; both ways share the machine."));
    report.finish(setup)
}
