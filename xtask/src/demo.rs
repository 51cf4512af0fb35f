//! `cargo xtask demo`: a cluster on this machine, and a tour through it. Each
//! command is printed as one would type it, with what it really said; a step
//! that does not turn out as promised ends the tour with an error.

mod session;
mod steps;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::Cluster;
use crate::setup::{self, Purpose};
use crate::{build, paths, vm};
use session::Session;

/// What `cargo xtask demo` is asked for.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Take what is staged as it is
    #[arg(long)]
    no_build: bool,
}

const NODES: u8 = 3;

/// The command.
pub fn run(args: &DemoArgs) -> Result<()> {
    let root = paths::is_root();
    if !args.no_build {
        let mut purposes = vec![Purpose::Build, Purpose::Tour];
        if !root {
            purposes.push(Purpose::Test);
        }
        setup::for_purposes(&purposes)?;
        build::all(build::BuildArgs::default())?;
    }
    if !root {
        println!("\nThis user is not root, which a cluster needs: the tour runs in a virtual machine instead.");
        return vm::run_demo();
    }
    let cluster = Cluster::named("demo")?;
    // One that an earlier tour left when it was broken off.
    cluster.down()?;
    println!("\nA cluster of {NODES} nodes, all on this machine:");
    cluster.up(NODES, None)?;
    let toured = tour(&cluster);
    let ended = cluster.down();
    toured.with_context(|| format!("the tour went wrong; logs are in {}", cluster.log_dir().display()))?;
    let left = ended?;
    if !left.is_nothing() {
        bail!("the cluster is down, but its own clean-up had left {left}");
    }
    println!("\nThe cluster is down; nothing was left: no process, no mount, no control group, no eBPF program.");
    println!("One that stays:  cargo xtask up   then   eval \"$(cargo xtask env)\"");
    Ok(())
}

fn tour(cluster: &Cluster) -> Result<()> {
    let place = Place::make()?;
    let mut session = Session::start(cluster.environment(), &place.0)?;
    steps::all(&mut session)?;
    session.end()
}

/// A directory for the files of the tour, gone with its end.
struct Place(PathBuf);

impl Place {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("bproc-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The tour's outcome counts; a directory that stays in /tmp does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
