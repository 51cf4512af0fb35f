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

const LOOPS: [Loop; 4] = [
    ("fork, exit, wait", 400, fork),
    ("fork, exec, wait", 100, exec),
    ("kill, taken by a handler", 20_000, handled),
    ("kill, ignored", 50_000, ignored),
];
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

fn kill(signal: i32) -> Result<()> {
    let own = i32::try_from(std::process::id()).context("a pid")?;
    sys::kill(own, signal).context("cannot signal")
}

fn ignored() -> Result<()> {
    kill(libc::SIGUSR1)
}

fn handled() -> Result<()> {
    kill(libc::SIGUSR2)
}

/// Adds samples, in microseconds a turn.
fn measure(times: &mut [Samples; LOOPS.len()]) -> Result<()> {
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

/// Rounds without, without, with a master's programs, with a master's and a node's, and again. That the first two differ
/// is noise.
pub fn run(setup: &Setup) -> Result<()> {
    sys::ignore(libc::SIGUSR1);
    sys::take(libc::SIGUSR2);
    let rounds = setup.runs.unwrap_or(6);
    let mut report = Report::new("ebpf", "us");
    let mut times: [[Samples; LOOPS.len()]; 4] = Default::default();
    for _ in 0..rounds {
        for (index, nodes) in [None, None, Some(0), Some(1)].into_iter().enumerate() {
            let _cluster = nodes.map(|nodes| Cluster::up(setup, nodes)).transpose()?;
            measure(&mut times[index])?;
        }
    }
    let quiet = |samples: &Samples| samples.quantile(0.1);
    for (index, (name, ..)) in LOOPS.iter().enumerate() {
        let base = quiet(&times[0][index]);
        let change = |which: usize| {
            let other = quiet(&times[which][index]);
            format!("{:+.3} us, {:+.1} %", other - base, (other / base - 1.0) * 100.0)
        };
        report.note(format!(
            "{name}: best tenth {base:.3}; without once more {}; with a master's programs {}; with a master's and a node's {}",
            change(1),
            change(2),
            change(3)
        ));
        for (which, with) in ["without", "without, again", "with a master's", "with both"].into_iter().enumerate() {
            report.row(format!("{name}: {with}"), std::mem::take(&mut times[which][index]));
        }
    }
    report.note("A machine is master or node; both sets of programs on one machine are a matter of tests.");
    report.finish(setup)
}
