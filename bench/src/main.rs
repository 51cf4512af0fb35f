//! Benchmarks: what the space costs, beside what one would use without it.
//!
//! Each benchmark is a module with `run(&Setup)`; it starts clusters of its own ([`cluster`]), measures every case in
//! turn within one run, so that a noisy machine disturbs all alike, and hands the samples to [`report`], which prints
//! a table with ratios and writes one JSON object a line to `target/bench/NAME.json`. [`node`] is what runs on the
//! node's side: the same binary.

mod cluster;
mod criu;
mod ebpf;
mod ghosts;
mod least;
mod measure;
mod moves;
mod node;
mod population;
mod procfs;
mod programs;
mod report;
mod shared;
mod signal;
mod spawn;
mod ssh;
mod stdio;
mod sys;
mod travel;
mod vrfork;
mod wide;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "bproc-bench", about = "Measure a cluster on this machine, with its peers beside it")]
struct Cli {
    #[command(subcommand)]
    on_node: Option<OnNode>,
    /// What to measure; everything when nothing is named
    names: Vec<Name>,
    /// How many runs of each case, where runs are counted; each benchmark has its own number otherwise
    #[arg(long)]
    runs: Option<usize>,
    /// How many ghosts
    #[arg(long, default_value_t = 10_000)]
    ghosts: usize,
    /// How many nodes `wide` asks
    #[arg(long, default_value_t = 64)]
    nodes: u8,
    /// How much `stdio` sends, and the large process of `moves` holds, in MiB
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// The program that starts and ends clusters
    #[arg(long, default_value = "target/debug/xtask")]
    xtask: PathBuf,
    /// Directory for NAME.json
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// What the benchmarks run on a node.
#[derive(Subcommand)]
enum OnNode {
    /// Count signals into a file that is shared
    #[command(hide = true)]
    Handler {
        /// The file
        file: PathBuf,
    },
    /// Fork processes that sleep
    #[command(hide = true)]
    Sleepers {
        /// How many
        number: usize,
        /// The file into which to count them
        file: PathBuf,
    },
    /// Spawn processes on node 0 that sleep
    #[command(hide = true)]
    Spawner {
        /// How many
        number: usize,
        /// The file into which to count them
        file: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A process on a node, by bpsh and by ssh
    Spawn,
    /// A process on each of many nodes
    Wide,
    /// From kill on a ghost to the handler on the node
    Signal,
    /// Many ghosts: memory, creation, load
    Ghosts,
    /// What eBPF costs processes that have nothing to do with it
    Ebpf,
    /// Bytes through standard input and output
    Stdio,
    /// A program that nodes do not have
    Travel,
    /// Running processes go elsewhere, beside CRIU
    Moves,
    /// One process on many nodes
    Vrfork,
}

/// What every benchmark is told.
struct Setup {
    runs: Option<usize>,
    ghosts: usize,
    nodes: u8,
    mib: u64,
    xtask: PathBuf,
    out: PathBuf,
}

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bproc-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<()> {
    let cli = Cli::parse();
    match cli.on_node {
        Some(OnNode::Handler { file }) => return node::count_signals(&file),
        Some(OnNode::Sleepers { number, file }) => return node::fork_sleepers(number, &file),
        Some(OnNode::Spawner { number, file }) => return node::spawn_sleepers(number, &file),
        None => {}
    }
    if !sys::is_root() {
        bail!("a cluster needs root");
    }
    let setup =
        Setup { runs: cli.runs, ghosts: cli.ghosts, nodes: cli.nodes, mib: cli.mib, xtask: cli.xtask, out: cli.out };
    let names = if cli.names.is_empty() { Name::value_variants() } else { &cli.names };
    for name in names {
        match name {
            Name::Spawn => spawn::run(&setup)?,
            Name::Wide => wide::run(&setup)?,
            Name::Signal => signal::run(&setup)?,
            Name::Ghosts => ghosts::run(&setup)?,
            Name::Ebpf => ebpf::run(&setup)?,
            Name::Stdio => stdio::run(&setup)?,
            Name::Travel => travel::run(&setup)?,
            Name::Moves => moves::run(&setup)?,
            Name::Vrfork => vrfork::run(&setup)?,
        }
    }
    Ok(())
}
