//! One table of cases, each run natively and through the system: what the parent sees must be the same.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use bproc_tests::case;
use bproc_tests::cluster::{Cluster, Role};
use bproc_tests::run::{Finished, finish};
use bproc_tests::runner::{self, Test};

/// Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(120);

fn transcript(cluster: &Cluster, mode: &str, case: &str) -> Result<Finished> {
    let mut command = cluster.command("bproc-case");
    finish(command.args(["parent", mode, case]), b"", LIMIT)
}

/// Lines that differ, the native one first.
fn difference(native: &str, remote: &str) -> String {
    let (native, remote): (Vec<&str>, Vec<&str>) = (native.lines().collect(), remote.lines().collect());
    let pairs = (0..native.len().max(remote.len())).map(|at| (at, native.get(at), remote.get(at)));
    let different = pairs.filter(|(_, native, remote)| native != remote).take(12);
    let show = |line: Option<&&str>| line.map_or("(nothing)".to_owned(), |line| line.chars().take(400).collect());
    different.map(|(at, a, b)| format!("line {at}\n  native: {}\n  remote: {}\n", show(a), show(b))).collect()
}

fn compare(cluster: &Cluster, case: &str) -> Result<()> {
    let native = transcript(cluster, "native", case)?;
    ensure!(native.status == 0, "the case does not even run natively:\n{}{}", native.out(), native.err());
    let remote = transcript(cluster, "remote", case)?;
    ensure!(
        remote.out() == native.out() && remote.status == 0,
        "native and remote differ:\n{}{}\nmaster: {}\nnode: {}",
        difference(&native.out(), &remote.out()),
        remote.err(),
        cluster.log_tail(Role::Master, 8),
        cluster.log_tail(Role::Node(0), 8)
    );
    cluster.quiet()
}

fn main() -> ExitCode {
    let tests = case::all()
        .into_iter()
        .map(|(name, _)| Test::new(name, move |cluster: &Cluster| compare(cluster, name)))
        .collect();
    runner::main(|| Cluster::start(1), tests, Cluster::close)
}
