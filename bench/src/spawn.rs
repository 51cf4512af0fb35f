//! One process, begun and ended: `bpsh 0 /bin/true` beside ssh and plain fork and exec.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::cluster::Cluster;
use crate::least::Least;
use crate::measure::Samples;
use crate::report::Report;
use crate::ssh::{Setting, Ssh};
use crate::sys;

const PROGRAM: &str = "/bin/true";
/// A fresh connection takes so long that fewer runs do.
const FRESH_RUNS: usize = 40;

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

/// The same with output and errors read from pipes to their ends, as `$(...)` in a shell does it.
fn timed_with_pipes(command: &mut Command) -> Result<f64> {
    let start = sys::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let mut said = Vec::new();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    out.context("no pipe")?.read_to_end(&mut said)?;
    err.context("no pipe")?.read_to_end(&mut said)?;
    let status = child.wait()?;
    let end = sys::now();
    if !status.success() || !said.is_empty() {
        bail!("{command:?}: {status}, {}", String::from_utf8_lossy(&said));
    }
    Ok((end - start) as f64 / 1e6)
}

struct Case {
    name: &'static str,
    command: Command,
    pipes: bool,
    runs: usize,
    samples: Samples,
}

/// Interleaved runs of every case.
pub fn run(setup: &Setup) -> Result<()> {
    let runs = setup.runs.unwrap_or(200);
    let mut report = Report::new("spawn", "ms");
    let cluster = Cluster::up(setup, 1)?;
    let debian = Ssh::start(Setting::Debian)?;
    let stripped = Ssh::start(Setting::Stripped)?;
    let least = Least::start(PROGRAM)?;
    let mut no_streams = cluster.tool("bpsh");
    no_streams.args(["-N", "0"]);
    let mut plain = Command::new(PROGRAM);
    plain.stdin(Stdio::null());
    let case = |name, mut command: Command, pipes: bool, runs| {
        if !pipes {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        Case { name, command, pipes, runs, samples: Samples::default() }
    };
    let with = |mut command: Command| {
        command.arg(PROGRAM);
        command
    };
    let mut cases = [
        case("bpsh 0 /bin/true", with(cluster.bpsh("0")), true, runs),
        case("ssh, multiplexed, as Debian has it", with(debian.multiplexed()), true, runs),
        case("ssh, multiplexed, stripped", with(stripped.multiplexed()), true, runs),
        case("ssh, fresh, as Debian has it", with(debian.fresh()), true, FRESH_RUNS),
        case("ssh, fresh, stripped", with(stripped.fresh()), true, FRESH_RUNS),
        case("fork and exec", plain, true, runs),
        case("the least: a static program has another run it", least.command(), true, runs),
        case("bpsh, on /dev/null", with(cluster.bpsh("0")), false, runs),
        case("bpsh -N, no streams", with(no_streams), false, runs),
        case("ssh, multiplexed, as Debian has it, on /dev/null", with(debian.multiplexed()), false, runs),
        case("ssh, multiplexed, stripped, on /dev/null", with(stripped.multiplexed()), false, runs),
    ];
    for run in 0..runs + 5 {
        for case in cases.iter_mut().filter(|case| run < case.runs.min(runs) + 5) {
            let time = if case.pipes { timed_with_pipes(&mut case.command) } else { timed(&mut case.command) }?;
            // The first ones warm up.
            if run >= 5 {
                case.samples.add(time);
            }
        }
    }
    for case in cases {
        report.row(case.name, case.samples);
    }
    report.note(
        "Standard input is /dev/null. Output and errors go to pipes that are read, as in $(...), or to /dev/null.",
    );
    report.note("ssh starts the user's login shell for the command, as it always does; as Debian has it: with what /etc/skel has.");
    report.finish(setup)
}
