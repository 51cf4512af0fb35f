//! Ends what outlives agents on this machine: spaces, keeper, ghosts, stdio services, pinned eBPF.

use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_config::paths;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::Process;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Names of our own programs that live on without an agent, in the order in which they are ended: spaces first, so
/// that nothing runs whose ghost is gone.
const PROGRAMS: [&str; 4] = ["bproc-mover", "bproc-ghost", "bproc-iod", "bproc-keeper"];

/// Ends everything of the cluster. Agents must have ended.
///
/// # Errors
/// Something is still there, in words.
pub async fn run(name: &str) -> Result<ExitCode> {
    if !paths::is_cluster_name(name) {
        anyhow::bail!("`{name}` is no name of a cluster");
    }
    let dir = paths::run_dir(name);
    let own = std::env::current_exe().context("finding this program")?;
    let install = own.parent().and_then(Path::parent).context("finding where the programs lie")?.to_owned();
    for round in 0..3 {
        // All are told before any is waited for: a ghost goes only when its keeper has.
        let ended: Vec<PidFd> = PROGRAMS.into_iter().flat_map(|program| end_all(&install, program, name)).collect();
        let left = ended.len();
        for fd in ended {
            // What does not end is found again by the next round.
            let _ = fd.wait_exit(Duration::from_secs(5));
        }
        if left == 0 {
            break;
        }
        tracing::debug!(round, left, "some were made meanwhile");
    }
    for pins in pin_dirs(&dir) {
        crate::kernel::remove(&pins)?;
    }
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", dir.display()));
        }
        _ => {}
    }
    for file in paths::state_files(name, &dir) {
        let _ = std::fs::remove_file(file);
    }
    Ok(ExitCode::SUCCESS)
}

fn pin_dirs(dir: &Path) -> Vec<PathBuf> {
    let nodes = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path().join("bpf"));
    nodes.chain([dir.join("bpf-master")]).filter(|p| p.is_dir()).collect()
}

/// Ends every process of this installation's program. Who they are is read from their executable, never from a name
/// that a user's process could have, and they are ended by pidfd, so that a number used again is not hit.
fn end_all(install: &Path, program: &str, cluster: &str) -> Vec<PidFd> {
    let mut ended = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::new) else { continue };
        let Ok(process) = Process::open(pid) else { continue };
        let Ok(exe) = process.exe_path() else { continue };
        if !(exe.starts_with(install) && exe.file_name().is_some_and(|n| n == program)) {
            continue;
        }
        if !serves(&process, cluster) {
            continue;
        }
        if let Ok(fd) = PidFd::open(pid)
            && fd.send_signal(libc::SIGKILL).is_ok()
        {
            ended.push(fd);
        }
    }
    ended
}

/// Two clusters may share one installation: the environment that a ghost was started with, or its command line, tells
/// whose it is.
fn serves(process: &Process, cluster: &str) -> bool {
    let dir = paths::run_dir(cluster);
    let dir = dir.as_os_str().as_encoded_bytes();
    let mut words = process.environ().unwrap_or_default();
    words.extend(process.cmdline().unwrap_or_default());
    words.iter().any(|w| w.windows(dir.len() + 1).any(|part| part.starts_with(dir) && part[dir.len()] == b'/'))
}
