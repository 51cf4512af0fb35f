//! Calls of the C library as programs seldom make them: `tests/programs/corners.c`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::run::finish;
use crate::traveller::compile;

use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(100);

/// One kind of them, from the master and from nodes.
///
/// # Errors
/// They do something else than they should.
pub fn corners(cluster: &Cluster, what: &str, from: &[&str]) -> Result<()> {
    let program = compile(cluster, "tests/programs/corners.c", &[], true)?;
    for at in from {
        let done = finish(cluster.environment(Command::new(&program).args([what, at])), b"", LIMIT)?;
        ensure!((done.out().as_str(), done.status) == ("done\n", 0), "{what} from {at}: {done:?}");
        cluster.quiet().with_context(|| format!("{what} from {at}"))?;
    }
    Ok(())
}
