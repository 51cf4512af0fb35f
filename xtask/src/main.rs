//! Everything one types in this checkout: set-up, the tour, clusters that
//! stay, tests, lint. `cargo xtask help` lists it.
#![allow(unreachable_pub, reason = "a program exports nothing: `pub` marks what other modules of it use")]

mod build;
mod paths;
mod setup;
mod sh;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, demo, clusters, tests, benchmarks of BProc",
    version
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch what this machine lacks for building and testing
    Setup(setup::SetupArgs),
    /// Build everything and lay it out under target/bproc
    Build(build::BuildArgs),
    /// Virtual machines with other kernels
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Vm(args) => vm::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
