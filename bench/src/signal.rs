//! From kill on a ghost to the handler of the process on the node; the clocks agree, since both are on this machine.

use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::cluster::Cluster;
use crate::measure::Samples;
use crate::node::{self, COUNT, LAST, PID, VALUES};
use crate::report::Report;
use crate::shared::Shared;
use crate::sys::{self, Held};

/// How many signals are queued without waiting.
const MANY: usize = 10_000;

struct Target {
    _process: Held,
    shared: Shared,
    pid: i32,
}

impl Target {
    fn start(name: &str, command: impl FnOnce() -> Command) -> Result<Self> {
        let shared = Shared::create(name, VALUES + MANY + 1)?;
        let mut command = command();
        command.arg("handler").arg(shared.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Held::start(&mut command)?;
        let pid = i32::try_from(shared.wait(PID, 1, 20)?).context("a pid")?;
        Ok(Self { _process: process, shared, pid })
    }

    fn count(&self) -> u64 {
        self.shared.words()[COUNT].load(Ordering::Acquire)
    }

    /// Microseconds from kill to handler.
    fn one(&self) -> Result<f64> {
        let before = self.count();
        let start = sys::now();
        sys::sigqueue(self.pid, node::signal(), MANY).context("cannot signal")?;
        self.shared.wait(COUNT, before + 1, 10)?;
        Ok((self.shared.words()[LAST].load(Ordering::Relaxed) - start) as f64 / 1e3)
    }

    /// Queues many; signals a second until the last has come, how often the queue was full, how many came.
    fn many(&self) -> Result<(f64, u64, u64)> {
        let before = self.count();
        let (start, mut full) = (sys::now(), 0);
        for value in 0..MANY {
            loop {
                match sys::sigqueue(self.pid, node::signal(), value) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        full += 1;
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    Err(error) => return Err(error).context("cannot signal"),
                }
            }
        }
        self.shared.wait(COUNT, before + MANY as u64, 60)?;
        let took = (self.shared.words()[LAST].load(Ordering::Relaxed) - start) as f64 / 1e9;
        let counts = self.shared.words()[VALUES..VALUES + MANY].iter().map(|count| count.load(Ordering::Relaxed));
        let (lost, twice) = counts.fold((0, 0), |(lost, twice), count| match count {
            0 => (lost + 1, twice),
            1 => (lost, twice),
            _ => (lost, twice + 1),
        });
        if lost + twice > 0 {
            bail!("of {MANY} signals {lost} were lost and {twice} came more than once");
        }
        Ok((MANY as f64 / took, full, self.count() - before))
    }
}

/// Both ways in turn.
pub fn run(setup: &Setup) -> Result<()> {
    let runs = setup.runs.unwrap_or(1000);
    let own = std::env::current_exe().context("this program has no path")?;
    let cluster = Cluster::up(setup, 1)?;
    let remote = Target::start("remote", || {
        let mut command = cluster.bpsh("0");
        command.arg(&own);
        command
    })?;
    let local = Target::start("local", || Command::new(&own))?;
    let mut report = Report::new("signal", "us");
    let [mut to_ghost, mut to_local] = [const { Samples::new() }; 2];
    for run in 0..runs + 20 {
        let (one, two) = (remote.one()?, local.one()?);
        if run >= 20 {
            to_ghost.add(one);
            to_local.add(two);
        }
        // People do not send signals back to back; let everybody fall asleep.
        std::thread::sleep(Duration::from_millis(1));
    }
    report.row("sigqueue to a ghost, until the handler on the node", to_ghost);
    report.row("sigqueue to a local process, until its handler", to_local);
    report.finish(setup)?;
    let mut rates = Report::new("signals", "1000/s");
    for (case, target) in [("to a ghost", &remote), ("to a local process", &local)] {
        let (rate, full, came) = target.many()?;
        rates.figure(format!("{MANY} queued signals {case}"), rate / 1e3);
        rates.note(format!("{case}: {came} of {MANY} came, each value once; the queue was full {full} times"));
    }
    rates.finish(setup)
}
