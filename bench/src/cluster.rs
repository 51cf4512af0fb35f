//! A cluster of a benchmark's own, started and ended by the same program as a developer's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Setup;
use crate::procfs;

/// A running cluster; it ends with this value.
pub struct Cluster {
    name: String,
    xtask: PathBuf,
}

impl Cluster {
    /// Starts it and waits until all its nodes are up.
    pub fn up(setup: &Setup, nodes: u8) -> Result<Self> {
        Self::up_with(setup, nodes, None)
    }

    /// With settings of its own.
    pub fn up_with(setup: &Setup, nodes: u8, settings: Option<&Path>) -> Result<Self> {
        let cluster = Self { name: format!("bench-{}", std::process::id()), xtask: setup.xtask.clone() };
        let output = Command::new(&cluster.xtask)
            .args(["up", "--no-build", "--name", &cluster.name, "--nodes", &nodes.to_string()])
            .args(settings.into_iter().flat_map(|file| [Path::new("--config"), file]))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", cluster.xtask.display()))?;
        if !output.status.success() {
            bail!("no cluster of {nodes} nodes: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(cluster)
    }

    /// One of its tools, without input and output.
    pub fn tool(&self, program: &str) -> Command {
        let lib = Path::new("/var/lib/bproc").join(&self.name);
        let mut command = Command::new(lib.join("bin").join(program));
        command.env("BPROC_SOCKET", self.socket()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Where its master's agent listens.
    pub fn socket(&self) -> PathBuf {
        Path::new("/run/bproc.d").join(&self.name).join("agent.sock")
    }

    /// `bpsh NODES` of this cluster; the program follows.
    pub fn bpsh(&self, nodes: &str) -> Command {
        let mut command = self.tool("bpsh");
        command.arg(nodes);
        command
    }

    /// Pids of its daemons: those that carry its name in their command line.
    pub fn daemons(&self) -> Result<Vec<i32>> {
        let mark = format!("--name\0{}\0", self.name);
        let is_daemon = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&line).into_owned();
            // Only ours by name: this also excludes the program that starts clusters.
            text.contains(&mark) && text.split('\0').next().is_some_and(|program| program.contains("bproc-"))
        };
        Ok(procfs::pids()?.into_iter().filter(is_daemon).collect())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = Command::new(&self.xtask).args(["down", "--name", &self.name]).stdin(Stdio::null()).output();
        match down {
            Ok(output) if output.status.success() => {
                let said = String::from_utf8_lossy(&output.stdout);
                if said.contains("nothing left") {
                    let _ = fs::remove_dir_all(Path::new("/var/log/bproc").join(&self.name));
                } else {
                    eprintln!("bproc-bench: {}", said.trim());
                }
            }
            Ok(output) => eprintln!("bproc-bench: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => eprintln!("bproc-bench: {} cannot end a cluster: {error}", self.xtask.display()),
        }
    }
}
