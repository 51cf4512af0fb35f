//! The files of a cluster: its programs where every user may execute them, and their end.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;

use super::{Cluster, LIB, LIMIT, leftover};
use crate::procs;
use crate::run::finish;

/// Names of clusters of tests: `t-PID-N`.
const PREFIX: &str = "t-";

/// The program of the cases: beside the test programs' directory, where cargo puts it.
fn case_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut dirs = own.ancestors().skip(1);
    dirs.find_map(|dir| Some(dir.join("bproc-case")).filter(|path| path.is_file()))
        .context("bproc-case is not built: cargo test -p bproc-tests")
}

/// The programs to test: what BPROC_STAGE says, else what xtask staged, else a cluster for trying things.
fn stage() -> Result<PathBuf> {
    let staged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bproc");
    let candidates = std::env::var_os("BPROC_STAGE").map(PathBuf::from).into_iter();
    candidates
        .chain([staged, Path::new(LIB).join("dev")])
        .find(|dir| dir.join("bin/bproc-agent").is_file())
        .context("no programs to test: run `cargo xtask build` first, or say where they are in BPROC_STAGE")
}

pub(super) fn unused_name() -> Result<String> {
    (0..1000)
        .map(|number| format!("{PREFIX}{}-{number}", std::process::id()))
        .find(|name| !Path::new(LIB).join(name).exists())
        .context("no name for a cluster is left")
}

fn open_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).with_context(|| format!("{}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Copies `from` with all below it. Links to the originals would keep them from being built anew meanwhile.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    open_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
        }
    }
    Ok(())
}

pub(super) fn copy(cluster: &Cluster) -> Result<()> {
    let (stage, dir) = (stage()?, cluster.dir());
    open_dir(Path::new(LIB))?;
    open_dir(&dir)?;
    for part in ["bin", "libexec"] {
        copy_tree(&stage.join(part), &dir.join(part))?;
    }
    for part in ["etc", "log"] {
        open_dir(&dir.join(part))?;
    }
    fs::copy(case_program()?, cluster.program("bproc-case")).context("copying bproc-case")?;
    Ok(())
}

/// The process that ends the cluster when this one has been killed.
pub(super) fn guard(name: &str) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(case_program()?);
    command.args(["guard", name]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    command.spawn().context("cannot start the guard of the cluster")
}

/// The first pid namespace (`PROC_PID_INIT_INO`): all processes are seen from there.
const ALL: u64 = 0xeffffffc;

/// Ends clusters of tests that were killed together with their guards. Not where other tests may run unseen.
pub(super) fn sweep() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self/ns/pid")?.ino() != ALL {
        return Ok(());
    }
    for entry in fs::read_dir(LIB).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) && !is_guarded(&name) {
            eprintln!("ending {name}, which a killed test left");
            clean_up(&name)?;
        }
    }
    Ok(())
}

fn is_guarded(name: &str) -> bool {
    procs::all().iter().filter(|process| process.comm == "bproc-case").any(|process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1..3) == Some(&[b"guard".as_slice(), name.as_bytes()])
    })
}

/// Ends agents that still run, and everything that outlives them; then removes the files.
pub(super) fn clean_up(name: &str) -> Result<()> {
    let dir = Path::new(LIB).join(name);
    if !name.starts_with(PREFIX) || name.contains('/') {
        bail!("{name} is no cluster of a test");
    }
    let agent = dir.join("bin/bproc-agent");
    for process in procs::all().iter().filter(|process| process.exe == agent) {
        let Some(pid) = Pid::new(process.pid) else { continue };
        // Gone meanwhile is as good.
        let Ok(fd) = PidFd::open(pid) else { continue };
        if procs::Proc::read(process.pid).is_some_and(|again| again.exe == agent) {
            let _ = fd.send_signal(libc::SIGKILL);
            fd.wait_exit(LIMIT)?;
        }
    }
    let mut why = String::new();
    if agent.is_file() {
        let mut command = Command::new(&agent);
        let cleaned = finish(command.args(["cleanup", "--name", name]).current_dir("/"), b"", LIMIT)?;
        if cleaned.status != 0 {
            why = format!("`bproc-agent cleanup` failed with {}: {}\n", cleaned.status, cleaned.err());
        }
    }
    let left = leftover::of(name)?;
    leftover::remove(name)?;
    if std::env::var_os("BPROC_TEST_KEEP").is_none() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    if !left.is_empty() || !why.is_empty() {
        bail!("{why}left behind:\n{}", left.join("\n"));
    }
    Ok(())
}
