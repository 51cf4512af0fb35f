//! Where the things of a cluster lie while it runs.
//!
//! `/var/run/bproc` is a *file* that old programs read, and `/var/run` is `/run`: so no directory can be called
//! `/run/bproc`. Every cluster has the directory `/run/bproc.d/NAME`; the cluster called `default` writes the file.

use std::path::{Path, PathBuf};

/// Name of the cluster where none is said.
pub const DEFAULT_CLUSTER: &str = "default";
/// Parent of the clusters' directories.
pub const RUN_BASE: &str = "/run/bproc.d";
/// The file that old programs read.
pub const STATE_FILE: &str = "/var/run/bproc";
/// Environment variable that names the agent's socket, before all else.
pub const SOCKET_VARIABLE: &str = "BPROC_SOCKET";

/// Run directory of the cluster `name`.
pub fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN_BASE).join(name)
}

/// Where nodes of cluster `name` keep programs that travelled, if nothing else is configured.
pub fn cache_dir(name: &str) -> PathBuf {
    Path::new("/var/cache/bproc").join(name)
}

/// Socket of the agent for programs on this machine, in the run directory.
pub fn agent_socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Socket of the master's gRPC service for schedulers, in the run directory.
pub fn api_socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("api.sock")
}

/// Socket of the agent of cluster `name`: `$BPROC_SOCKET` when it is set and not empty, else in the run directory.
pub fn agent_socket(name: &str) -> PathBuf {
    match std::env::var_os(SOCKET_VARIABLE) {
        Some(path) if !path.is_empty() => path.into(),
        _ => agent_socket_in(&run_dir(name)),
    }
}

/// Socket of the stdio service of a role (`master` or `slave`).
pub fn iod_socket_in(run_dir: &Path, role: &str) -> PathBuf {
    run_dir.join(format!("iod-{role}.sock"))
}

/// Where the state of the nodes is written: always `nodes` in the run directory, and [`STATE_FILE`] besides for the
/// default cluster in its ordinary place.
pub fn state_files(name: &str, run_dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![run_dir.join("nodes")];
    if name == DEFAULT_CLUSTER && run_dir == self::run_dir(name) {
        files.push(PathBuf::from(STATE_FILE));
    }
    files
}

/// True for a name that may stand in paths and certificates: 1 to 40 lower-case letters, digits and `-`, no `-` at
/// an end.
pub fn is_cluster_name(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}
