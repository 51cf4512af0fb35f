//! Ends a cluster, also after a crash: nothing here relies on a file that a
//! dead agent should have written.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Cluster, Leftover, process};
use crate::sh::Cmd;

/// How long an agent may take to say goodbye.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops the agents, lets the cluster's own clean-up end what outlives them, and
/// removes what that left. Returns what it left.
pub(super) fn all(cluster: &Cluster) -> Result<Leftover> {
    process::end(&process::agents(cluster)?, PATIENCE)?;
    let agent = cluster.agent();
    let cleaned = if agent.is_file() {
        Cmd::new("timeout")
            .args(["-k", "5", "60"])
            .arg(&agent)
            .args(["cleanup", "--name", &cluster.name])
            .quiet()
            .context("the cluster's own clean-up failed")
    } else {
        Ok(())
    };
    let left = Leftover::of(cluster)?;
    left.remove()?;
    for dir in [cluster.run_dir(), cluster.lib()] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    let still = Leftover::of(cluster)?;
    if !still.is_nothing() {
        bail!("still there: {still}");
    }
    cleaned.map(|()| left)
}
