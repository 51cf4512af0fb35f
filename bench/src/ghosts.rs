//! Ten thousand ghosts: what each costs, how fast they come, and that they are quiet.
//!
//! Node and master are one machine here, so a process of the space is two processes of it. What a ghost costs is what
//! all that costs, less what the same number of local processes costs.

use anyhow::Result;

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::population::{self, Population};
use crate::procfs::{self, Memory};
use crate::report::Report;

/// How many runs of `ps ax` in front of each population.
const PS_RUNS: usize = 5;
/// Seconds to look at daemons that should do nothing.
const IDLE: u64 = 10;

/// What one population cost, in KiB a process unless it says otherwise.
struct Cost {
    case: String,
    /// By MemAvailable of the whole system.
    system: f64,
    /// By what the kernel holds.
    kernel: f64,
    /// Private pages of a ghost or process, the median of some.
    private: f64,
    /// Made a second, until all are to be seen.
    rate: f64,
    ps: Samples,
    processes: usize,
    /// CPU in percent of one processor, and context switches a second, of all daemons of the cluster.
    idle: Option<(f64, f64)>,
    /// Ghosts that count for the load average.
    running: usize,
    load: (f64, f64),
}

fn cost(case: &str, cluster: Option<&Cluster>, make: impl FnOnce() -> Result<Population>) -> Result<Cost> {
    eprintln!("bproc-bench: {case} ...");
    let load = procfs::load();
    let daemons = cluster.map(Cluster::daemons).transpose()?;
    let before = population::settled()?;
    let there = make()?;
    let after = population::settled()?;
    let number = there.pids.len() as f64;
    let step = (there.pids.len() / 100).max(1);
    let private: Samples = there.pids.iter().step_by(step).map(|pid| procfs::private(*pid) as f64).collect();
    let running = there.pids.iter().filter(|pid| matches!(procfs::state(**pid), Some('R' | 'D'))).count();
    let idle = daemons.map(|daemons| population::idle(&daemons, IDLE));
    let Memory { available, kernel } = before;
    Ok(Cost {
        case: case.into(),
        system: (available - after.available) as f64 / number,
        kernel: (after.kernel - kernel) as f64 / number,
        private: private.median(),
        rate: number / there.seconds,
        ps: population::ps(PS_RUNS)?,
        processes: there.processes,
        idle,
        running,
        load: (load, procfs::load()),
    })
}

/// Every population in turn.
pub fn run(setup: &Setup) -> Result<()> {
    let number = setup.ghosts;
    let mut all = vec![cost(&format!("{number} local"), None, || population::local(number))?];
    all.push(cost(&format!("{} local", 2 * number), None, || population::local(2 * number))?);
    {
        let cluster = Cluster::up(setup, 1)?;
        let ghosts = |case: &str| format!("{number} {case}");
        all.push(cost(&ghosts("forked on a node"), Some(&cluster), || population::forked_on_node(&cluster, number))?);
    }
    {
        let cluster = Cluster::up(setup, 1)?;
        all.push(cost(&format!("{number} spawned"), Some(&cluster), || population::spawned(&cluster, number))?);
    }
    memory(setup, &all)?;
    rates(setup, &all)?;
    quiet(setup, &all)
}

fn memory(setup: &Setup, all: &[Cost]) -> Result<()> {
    let mut report = Report::new("ghosts-memory", "KiB each");
    for cost in all {
        report.figure(format!("{}: whole system", cost.case), cost.system);
        report.figure(format!("{}: in the kernel", cost.case), cost.kernel);
        report.figure(format!("{}: private pages", cost.case), cost.private);
    }
    for cost in all.iter().filter(|cost| cost.idle.is_some()) {
        report.note(format!(
            "{}: a ghost, all told, less one local process: {:.0} KiB",
            cost.case,
            cost.system - all[0].system
        ));
    }
    report.finish(setup)
}

fn rates(setup: &Setup, all: &[Cost]) -> Result<()> {
    let mut report = Report::new("ghosts-created", "a second");
    for cost in all {
        report.figure(&cost.case, cost.rate);
    }
    report.finish(setup)
}

fn quiet(setup: &Setup, all: &[Cost]) -> Result<()> {
    let mut report = Report::new("ghosts-ps", "ms");
    for cost in all {
        report.row(format!("ps ax with {} ({} processes)", cost.case, cost.processes), cost.ps.clone());
    }
    for cost in all {
        let (before, after) = cost.load;
        let mut text = format!(
            "{}: {} in state R or D; load average {before:.2} before, {after:.2} after",
            cost.case, cost.running
        );
        if let Some((percent, switches)) = cost.idle {
            text.push_str(&format!("; daemons idle: {percent:.1} % CPU, {switches:.0} context switches a second"));
        }
        report.note(text);
    }
    report.finish(setup)
}
