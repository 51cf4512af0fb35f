//! `cargo xtask test`: every ring of tests, each timed, the quick ones first.
//!
//! cargo's own lines are shown as they come. A ring that cannot run here says
//! why; it is never counted as passed.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::setup::{self, Purpose};
use crate::sh::Cmd;
use crate::{build, paths, vm};

/// What `cargo xtask test` is asked for.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// One ring of tests only
    ring: Option<Ring>,
    /// Kernels for the virtual machines, as in 6.1,6.12,7.2
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<String>,
}

/// Rings of tests, from the quick to the slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ring {
    /// What needs no cluster
    Unit,
    /// Clusters of real agents on this machine (needs root)
    Local,
    /// The same on other kernels, in virtual machines
    Vm,
}

/// The package of the cluster tests, and those that need flags of their own.
const CLUSTER_TESTS: &str = "bproc-tests";
const OF_THEIR_OWN: &[&str] = &["bproc-ghost", "bproc-ebpf", CLUSTER_TESTS];

/// The command.
pub fn run(args: &TestArgs) -> Result<()> {
    if !args.kernel.is_empty() && args.ring.is_some_and(|ring| ring != Ring::Vm) {
        bail!("--kernel belongs to the tests in virtual machines: cargo xtask test vm --kernel ...");
    }
    // The kernel matrix takes long and is asked for by name, but for those who can run clusters nowhere else.
    let wanted = |ring: Ring| match args.ring {
        Some(only) => only == ring,
        None => ring != Ring::Vm || !paths::is_root(),
    };
    let mut parts = Parts::default();
    parts.time("setup", || setup::for_purposes(&[Purpose::Build, Purpose::Tour, Purpose::Test]))?;
    parts.time("build", || build::all(build::BuildArgs::default()))?;
    if wanted(Ring::Unit) {
        parts.time("unit", unit)?;
    }
    if wanted(Ring::Local) {
        if paths::is_root() {
            parts.time("local", local)?;
        } else if args.ring.is_some() {
            bail!("tests with a cluster on this machine need root; without root: cargo xtask test vm");
        } else {
            parts.note("local", "not run: needs root");
        }
    }
    if wanted(Ring::Vm) {
        parts.time("vm", || vm::run_tests(&args.kernel))?;
    } else if args.ring.is_none() {
        parts.note("vm", "not run: cargo xtask test vm");
    }
    parts.tell();
    Ok(())
}

/// Unit and property tests, and the ghost's against a real kernel.
fn unit() -> Result<()> {
    let mut cargo = Cmd::cargo().args(["test", "--workspace", "--no-fail-fast"]);
    for package in OF_THEIR_OWN {
        cargo = cargo.args(["--exclude", package]);
    }
    with_stage(cargo).env("BPROC_FUZZ_SECONDS", "60").run()
}

/// Clusters of real agents, here.
fn local() -> Result<()> {
    with_stage(Cmd::cargo().args(["test", "--no-fail-fast", "-p", CLUSTER_TESTS])).run()
}

fn with_stage(cargo: Cmd) -> Cmd {
    let object = paths::stage().join("libexec/bproc/bproc.bpf.o");
    cargo.env("BPROC_STAGE", paths::stage()).env("BPROC_BPF_OBJECT", object)
}

/// How long each part took.
#[derive(Default)]
struct Parts(Vec<(&'static str, String)>);

impl Parts {
    fn time(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        let done = work();
        let took = format!("{:.0} s", start.elapsed().as_secs_f64());
        if done.is_err() {
            eprintln!("== {name} failed after {took}");
            self.tell();
        }
        self.note(name, &took);
        done
    }

    fn note(&mut self, name: &'static str, what: &str) {
        self.0.push((name, what.to_owned()));
    }

    fn tell(&self) {
        for (name, took) in &self.0 {
            println!("{name:<8} {took}");
        }
    }
}
