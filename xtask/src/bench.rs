//! `cargo xtask bench`: builds, then hands over to the benchmarks' own program.

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::sh::Cmd;
use crate::{build, paths};

/// What `cargo xtask bench` is asked for.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What to measure and how; `--help` after `--` lists it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The command.
pub fn run(args: &BenchArgs) -> Result<()> {
    setup::for_purposes(&[Purpose::Build, Purpose::Tour, Purpose::Bench])?;
    build::all(build::BuildArgs::RELEASE)?;
    Cmd::cargo()
        .args(["run", "--release", "-p", "bproc-bench", "--"])
        .arg("--xtask")
        .arg(std::env::current_exe().context("this program has no path")?)
        .arg("--out")
        .arg(paths::target().join("bench"))
        .args(&args.rest)
        .run()
        .context("a benchmark failed")
}
