//! One process, begun and ended: `bpsh 0 /bin/true` beside ssh and plain fork and exec.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::report::Report;
use crate::ssh::Ssh;
use crate::sys;

const PROGRAM: &str = "/bin/true";

/// Milliseconds from before fork until after wait.
pub fn timed(command: &mut Command) -> Result<f64> {
    let start = sys::now();
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let end = sys::now();
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok((end - start) as f64 / 1e6)
}

/// Interleaved runs of every case.
pub fn run(setup: &Setup) -> Result<()> {
    let runs = setup.runs.unwrap_or(200);
    let mut report = Report::new("spawn", "ms");
    let cluster = Cluster::up(setup, 1)?;
    let ssh = Ssh::start()?;
    let mut plain = Command::new(PROGRAM);
    plain.stdin(Stdio::null()).stdout(Stdio::null());
    let shell = |mut command: Command| {
        command.arg(PROGRAM);
        command
    };
    let mut cases = [
        ("bpsh 0 /bin/true", shell(cluster.bpsh("0")), Samples::default()),
        (
            "bpsh -N 0 /bin/true",
            shell({
                let mut c = cluster.tool("bpsh");
                c.args(["-N", "0"]);
                c
            }),
            Samples::default(),
        ),
        ("ssh, multiplexed", shell(ssh.multiplexed()), Samples::default()),
        ("ssh, fresh", shell(ssh.fresh()), Samples::default()),
        ("fork and exec", plain, Samples::default()),
    ];
    for run in 0..runs + 5 {
        for (_, command, samples) in &mut cases {
            let time = timed(command)?;
            // The first ones warm up.
            if run >= 5 {
                samples.add(time);
            }
        }
    }
    for (case, _, samples) in cases {
        report.row(case, samples);
    }
    report.note("ssh starts the user's login shell for the command, as it always does; without start-up files here.");
    report.finish(setup)
}
