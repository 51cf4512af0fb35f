//! Copies the staged programs to where every user may execute them: a checkout
//! below /root may not be traversed, and a process that goes to a node execs
//! the ghost with its user's rights.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::{Cluster, LIB};
use crate::build::{capability, stage};
use crate::paths;

/// Installs everything anew.
pub(super) fn all(cluster: &Cluster) -> Result<()> {
    let (from, to) = (paths::stage(), cluster.lib());
    fs::DirBuilder::new().recursive(true).mode(0o755).create(LIB).with_context(|| format!("cannot make {LIB}"))?;
    for part in ["bin", "libexec", "lib"] {
        stage::mirror(&from.join(part), &to.join(part))?;
    }
    for dir in [Path::new(LIB), &to] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open {} to all users", dir.display()))?;
    }
    capability::set(&to.join("libexec/bproc/bproc-ghost"))
}
