//! What there is of a cluster on this machine: processes, mounts, control
//! groups. After `down` there must be nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, process};

/// Depth to which control groups are searched: they lie at the top, or below a service.
const CGROUP_DEPTH: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub struct Leftover {
    processes: Vec<process::Process>,
    /// Mount points below the run directory, inner ones first.
    mounts: Vec<PathBuf>,
    /// Control groups, inner ones first.
    cgroups: Vec<PathBuf>,
    /// eBPF pins outside of the run directory.
    pins: Vec<PathBuf>,
}

impl Leftover {
    /// Looks for everything.
    pub(super) fn of(cluster: &Cluster) -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        let (mounts, cgroup_roots, bpf_roots) = mounts(&table, &[cluster.run_dir(), cluster.lib()]);
        let mut found = Self { processes: process::of(cluster)?, mounts, ..Self::default() };
        for root in cgroup_roots {
            search(&root, &names(&cluster.name), CGROUP_DEPTH, &mut found.cgroups);
        }
        for root in bpf_roots.iter().filter(|root| !found.mounts.contains(root)) {
            search(root, &names(&cluster.name), 2, &mut found.pins);
        }
        Ok(found)
    }

    /// True when there is nothing of the cluster.
    pub fn is_nothing(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.cgroups.is_empty() && self.pins.is_empty()
    }

    /// Ends and removes it.
    pub(super) fn remove(&self) -> Result<()> {
        process::end(&self.processes, Duration::ZERO)?;
        for mount in &self.mounts {
            crate::sh::Cmd::new("umount").arg("-l").arg(mount).quiet()?;
        }
        for group in &self.cgroups {
            kill_group(group)?;
            fs::remove_dir(group).with_context(|| format!("cannot remove the control group {}", group.display()))?;
        }
        for pin in &self.pins {
            fs::remove_dir_all(pin).with_context(|| format!("cannot remove the eBPF pins {}", pin.display()))?;
        }
        Ok(())
    }
}

/// Directory names that say that they belong to this cluster.
fn names(cluster: &str) -> Vec<String> {
    vec![format!("bproc-{cluster}"), format!("bproc.{cluster}"), format!("bproc/{cluster}")]
}

/// Ends what is in a version 2 group: whatever is there was started for the cluster.
fn kill_group(group: &Path) -> Result<()> {
    let events = group.join("cgroup.events");
    if !events.is_file() {
        return Ok(());
    }
    let populated = || fs::read_to_string(&events).is_ok_and(|text| text.lines().any(|line| line == "populated 1"));
    if !populated() {
        return Ok(());
    }
    fs::write(group.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot end what runs in {}", group.display()))?;
    let file = fs::File::open(&events).with_context(|| format!("cannot open {}", events.display()))?;
    // cgroup.events wakes its pollers when it changes; two seconds is for a kernel under load.
    for _ in 0..20 {
        if !populated() {
            break;
        }
        let mut poll = libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&file), events: libc::POLLPRI, revents: 0 };
        // SAFETY: one pollfd, which lives over the call.
        unsafe { libc::poll(&raw mut poll, 1, 100) };
    }
    Ok(())
}

/// Of a mountinfo table: mount points below `ours` (inner first), roots of control groups, roots of bpffs.
fn mounts(table: &str, ours: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>, Vec<PathBuf>) {
    let (mut own, mut cgroup, mut bpf) = (Vec::new(), Vec::new(), Vec::new());
    for line in table.lines() {
        let Some(point) = line.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("");
        if ours.iter().any(|dir| point.starts_with(dir)) {
            own.insert(0, point.clone());
        }
        match kind {
            "cgroup" | "cgroup2" => cgroup.push(point),
            "bpf" => bpf.push(point),
            _ => {}
        }
    }
    (own, cgroup, bpf)
}

/// Directories of these names below `dir`, with all below them, inner ones first.
fn search(dir: &Path, names: &[String], depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if names.iter().any(|name| path.ends_with(name)) {
            below(&path, found);
        } else if depth > 0 {
            search(&path, names, depth - 1, found);
        }
    }
}

fn below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), found);
        }
    }
    found.push(dir.to_path_buf());
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processes = self.processes.iter().map(|one| format!("process {} ({})", one.pid, one.command_line));
        let mounts = self.mounts.iter().map(|path| format!("mount {}", path.display()));
        let groups = self.cgroups.iter().map(|path| format!("control group {}", path.display()));
        let pins = self.pins.iter().map(|path| format!("eBPF pins {}", path.display()));
        let all: Vec<String> = processes.chain(mounts).chain(groups).chain(pins).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::mounts;

    #[test]
    fn inner_mounts_come_first_and_other_clusters_stay() {
        let table = "30 1 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                     40 1 0:30 / /run/bproc.d/a rw shared:1 - tmpfs tmpfs rw\n\
                     41 40 0:31 / /run/bproc.d/a/bpf rw - bpf bpf rw\n\
                     42 1 0:32 / /run/bproc.d/ab rw - tmpfs tmpfs rw\n";
        let (own, cgroup, bpf) = mounts(table, &[PathBuf::from("/run/bproc.d/a")]);
        assert_eq!(own, [PathBuf::from("/run/bproc.d/a/bpf"), PathBuf::from("/run/bproc.d/a")]);
        assert_eq!(cgroup, [PathBuf::from("/sys/fs/cgroup")]);
        assert_eq!(bpf, [PathBuf::from("/run/bproc.d/a/bpf")]);
    }
}
