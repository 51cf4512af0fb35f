//! Everything one types in this checkout: set-up, the tour, clusters that
//! stay, tests, lint. `cargo xtask help` lists it.
#![allow(unreachable_pub, reason = "a program exports nothing: `pub` marks what other modules of it use")]

mod bench;
mod build;
mod cluster;
mod demo;
mod lint;
mod paths;
mod setup;
mod sh;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, clusters, tests, benchmarks of BProc", version)]
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
    /// Start a cluster on this machine, show what it can do, take it down
    Demo(demo::DemoArgs),
    /// Start a cluster on this machine that stays
    Up(cluster::UpArgs),
    /// End a cluster and whatever runs in it
    Down(cluster::Named),
    /// Print what a shell needs to use a cluster: eval "$(cargo xtask env)"
    Env(cluster::Named),
    /// List the clusters of this machine
    Status,
    /// Run the tests: unit, local, vm, or all of them
    Test(test::TestArgs),
    /// Check form, warnings, walls between crates, links in documents
    Lint,
    /// Measure, with peers beside
    Bench(bench::BenchArgs),
    /// Virtual machines with other kernels
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(args),
        Task::Demo(args) => demo::run(&args),
        Task::Up(args) => cluster::up(&args),
        Task::Down(args) => cluster::down(&args),
        Task::Env(args) => cluster::env(&args),
        Task::Status => cluster::status(),
        Task::Test(args) => test::run(&args),
        Task::Lint => lint::run(),
        Task::Bench(args) => bench::run(&args),
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
