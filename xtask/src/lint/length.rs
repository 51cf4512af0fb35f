//! A file that nobody can keep in mind is told; it is a hint to find the seam,
//! and past the limit a failure.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::sh::Cmd;

/// Lines that a source file may have.
const LIMIT: usize = 600;

/// Looks at every Rust file that git knows.
pub(super) fn check() -> Result<()> {
    let root = paths::root();
    let mut long = Vec::new();
    for name in Cmd::new("git").args(["ls-files", "*.rs"]).dir(&root).said()?.lines() {
        // A file that was removed but not yet committed is still listed.
        let path = root.join(name);
        if !path.exists() {
            continue;
        }
        let lines = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?.lines().count();
        if lines > LIMIT {
            long.push(format!("{name} has {lines} lines, more than {LIMIT}: find its seam"));
        }
    }
    if long.is_empty() { Ok(()) } else { bail!("{}", long.join("\n")) }
}
