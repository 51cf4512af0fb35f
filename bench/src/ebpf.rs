//! What the eBPF programs cost processes that have nothing to do with the space: the same loops with the programs
//! loaded and without, in turn.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::report::Report;
use crate::sys;

/// One loop: its name, how often it goes round for one sample, what it does.
type Loop = (&'static str, usize, fn() -> Result<()>);

const LOOPS: [Loop; 3] =
    [("fork, exit, wait", 400, fork), ("fork, exec, wait", 100, exec), ("kill, ignored", 50_000, kill)];
/// Samples of each loop in each round.
const SAMPLES: usize = 10;

fn fork() -> Result<()> {
    let pid = sys::fork(|| 0)?;
    sys::wait(pid).map(drop)
}

fn exec() -> Result<()> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::null()).status().map(drop).context("cannot start /bin/true")
}

fn kill() -> Result<()> {
    let own = i32::try_from(std::process::id()).context("a pid")?;
    sys::kill(own, libc::SIGUSR1).context("cannot signal")
}

/// Adds samples, in microseconds a turn.
fn measure(times: &mut [Samples; 3]) -> Result<()> {
    for _ in 0..SAMPLES {
        for ((_, turns, turn), samples) in LOOPS.iter().zip(times.iter_mut()) {
            let start = sys::now();
            for _ in 0..*turns {
                turn()?;
            }
            samples.add((sys::now() - start) as f64 / 1e3 / *turns as f64);
        }
    }
    Ok(())
}

/// Rounds without, with, without, with ...
pub fn run(setup: &Setup) -> Result<()> {
    sys::ignore(libc::SIGUSR1);
    let rounds = setup.runs.unwrap_or(6);
    let mut report = Report::new("ebpf", "us");
    let mut without: [Samples; 3] = Default::default();
    let mut with: [Samples; 3] = Default::default();
    for _ in 0..rounds {
        measure(&mut without)?;
        let _cluster = Cluster::up(setup, 1)?;
        measure(&mut with)?;
    }
    let quiet = |samples: &Samples| samples.quantile(0.1);
    for (index, (name, ..)) in LOOPS.iter().enumerate() {
        let (a, b) = (quiet(&without[index]), quiet(&with[index]));
        report.note(format!(
            "{name}: best tenth {a:.3} without, {b:.3} with: {:+.3} us, {:+.1} %",
            b - a,
            (b / a - 1.0) * 100.0
        ));
        report.row(format!("{name}: without"), std::mem::take(&mut without[index]));
        report.row(format!("{name}: with"), std::mem::take(&mut with[index]));
    }
    report.note("Master and one node on this machine, so both sets of programs run at each event.");
    report.finish(setup)
}
