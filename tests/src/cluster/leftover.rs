//! What there is of a cluster on this machine. After its end there must be nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;

use super::{LIB, LIMIT};
use crate::procs;

fn mounts(name: &str) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let dirs = [run_dir(name), Path::new(LIB).join(name)];
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut own: Vec<PathBuf> = points.filter(|point| dirs.iter().any(|dir| point.starts_with(dir))).collect();
    own.reverse();
    Ok(own)
}

fn run_dir(name: &str) -> PathBuf {
    Path::new("/run/bproc.d").join(name)
}

/// Control groups that carry the cluster's name.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 4)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            } else if depth > 0 {
                todo.push((entry.path(), depth - 1));
            }
        }
    }
    found
}

/// What agents make once and keep: mounts, control groups, pinned eBPF. Neither use nor a crash may make it more.
pub(super) fn lasting(name: &str) -> Result<Vec<String>> {
    let mut all: Vec<String> = mounts(name)?.iter().map(|point| format!("mount {}", point.display())).collect();
    all.extend(cgroups(name).iter().map(|path| format!("control group {}", path.display())));
    let mut todo = vec![run_dir(name)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path);
            } else if path.ancestors().any(|dir| dir.file_name().is_some_and(|n| n == "bpf" || n == "bpf-master")) {
                all.push(format!("pin {}", path.display()));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// All there is, in words.
pub(super) fn of(name: &str) -> Result<Vec<String>> {
    let processes = procs::from_below(&Path::new(LIB).join(name));
    let mut left: Vec<String> = processes.iter().map(|process| format!("process {process:?}")).collect();
    left.extend(mounts(name)?.iter().map(|point| format!("mount {}", point.display())));
    left.extend(cgroups(name).iter().map(|path| format!("control group {}", path.display())));
    left.extend(Some(run_dir(name)).filter(|dir| dir.exists()).map(|dir| format!("directory {}", dir.display())));
    Ok(left)
}

/// Removes it: the next test shall not suffer.
pub(super) fn remove(name: &str) -> Result<()> {
    let dir = Path::new(LIB).join(name);
    for process in procs::from_below(&dir) {
        let Some(fd) = Pid::new(process.pid).and_then(|pid| PidFd::open(pid).ok()) else { continue };
        if procs::Proc::read(process.pid).is_some_and(|again| again.exe.starts_with(&dir)) {
            // It may have ended by itself.
            let _ = fd.send_signal(libc::SIGKILL);
            fd.wait_exit(LIMIT)?;
        }
    }
    for point in mounts(name)? {
        let text = std::ffi::CString::new(point.into_os_string().into_encoded_bytes())?;
        // SAFETY: the string is terminated and lives over the call.
        unsafe { libc::umount2(text.as_ptr(), libc::MNT_DETACH) };
    }
    cgroups(name).iter().for_each(|path| drop(fs::remove_dir(path)));
    match fs::remove_dir_all(run_dir(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("removing the run directory"),
        _ => Ok(()),
    }
}
