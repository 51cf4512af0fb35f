//! Lays out what was built as it is installed. Every file is written beside its
//! place and renamed: a running program keeps its old text.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{BODY, EBPF, GHOST, capability};
use crate::paths;
use crate::sh::{Cmd, told};

/// The daemons of BProc 4.0: roles of the agent.
const DAEMONS: &[&str] = &["bpmaster", "bpslave"];

/// Stages everything of this profile.
pub(super) fn all(profile: &str) -> Result<()> {
    let stage = paths::stage();
    let built = paths::target().join(profile);
    let libexec = stage.join("libexec/bproc");
    for name in ["bproc-agent", "bproc", "vmadump"] {
        place(&built.join(name), &stage.join("bin").join(name), 0o755)?;
    }
    let bpsh = stage.join("bin/bpsh");
    match built.join("bpsh") {
        alone if alone.is_file() => place(&alone, &bpsh, 0o755)?,
        _ => link("bproc", &bpsh)?,
    }
    for name in DAEMONS {
        link("bproc-agent", &stage.join("bin").join(name))?;
    }
    for name in ["bproc-keeper", "bproc-iod", "bproc-mover"] {
        place(&built.join(name), &libexec.join(name), 0o755)?;
    }
    let ghost = libexec.join(GHOST);
    place(&paths::target().join("release").join(GHOST), &ghost, 0o755)?;
    place(&paths::target().join("release").join(BODY), &libexec.join(BODY), 0o755)?;
    if paths::is_root() {
        capability::set(&ghost)?;
    }
    let object = paths::target().join("ebpf/bpfel-unknown-none/release").join(EBPF);
    place(&object, &libexec.join("bproc.bpf.o"), 0o644)?;
    library(&built, &stage)?;
    manuals(&stage)?;
    told("staged", &stage.display().to_string());
    Ok(())
}

/// The C library, under its linker's name, and the headers.
fn library(built: &Path, stage: &Path) -> Result<()> {
    for name in ["libbproc.so", "libbproc.a"] {
        place(&built.join(name), &stage.join("lib").join(name), 0o644)?;
    }
    let soname = soname(&built.join("libbproc.so"))?;
    if soname.as_deref().is_some_and(|soname| soname != "libbproc.so") {
        link("libbproc.so", &stage.join("lib").join(soname.unwrap_or_default()))?;
    }
    tree(&paths::root().join("libbproc/include"), &stage.join("include"))
}

/// The name by which programs ask for the library at run time, if readelf is there to tell.
fn soname(library: &Path) -> Result<Option<String>> {
    if crate::sh::which("readelf").is_none() {
        return Ok(None);
    }
    let said = Cmd::new("readelf").args(["-d", "-W"]).arg(library).env("LC_ALL", "C").said()?;
    let line = said.lines().find(|line| line.contains("(SONAME)"));
    Ok(line.and_then(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())))
}

/// Manual pages and completions: the tools write their own, and so tell which names they have; those of files and daemons
/// lie in `deploy/man`.
fn manuals(stage: &Path) -> Result<()> {
    let share = stage.join("share");
    match fs::remove_dir_all(&share) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", share.display()));
        }
        _ => {}
    }
    Cmd::new(stage.join("bin/bproc")).arg("generate").arg(&share).quiet()?;
    // These have commands, not names.
    let own = ["bproc-agent", "vmadump"];
    for program in own {
        Cmd::new(stage.join("bin").join(program)).arg("generate").arg(&share).quiet()?;
    }
    for page in files(&share.join("man/man1"))? {
        let tool = page.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if tool != "bproc" && !own.iter().any(|own| tool.starts_with(own)) && !stage.join("bin").join(tool).is_file() {
            link("bproc", &stage.join("bin").join(tool))?;
        }
    }
    for file in files(&paths::root().join("deploy/man"))? {
        let Some(section) = file.extension().and_then(|ext| ext.to_str()) else {
            continue;
        };
        let name = file.file_name().context("a file has a name")?;
        place(&file, &share.join("man").join(format!("man{section}")).join(name), 0o644)?;
    }
    Ok(())
}

/// Copies a file to its place, whole or not at all.
pub fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if !from.is_file() {
        bail!("{} was not built", from.display());
    }
    let dir = to.parent().context("a staged file lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let fresh = beside(to);
    let copied = fs::copy(from, &fresh)
        .and_then(|_| fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&fresh, to));
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Makes `to` hold what `from` holds, modes and links too. What is there besides stays.
pub fn mirror(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let below = file.strip_prefix(from).context("a file lies below its directory")?;
        let copy = to.join(below);
        let kind = fs::symlink_metadata(&file).with_context(|| format!("cannot look at {}", file.display()))?;
        if kind.is_symlink() {
            let target = fs::read_link(&file).with_context(|| format!("cannot read {}", file.display()))?;
            link(&target.to_string_lossy(), &copy)?;
        } else {
            place(&file, &copy, kind.permissions().mode() & 0o777)?;
        }
    }
    Ok(())
}

fn link(target: &str, name: &Path) -> Result<()> {
    let dir = name.parent().context("a staged link lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let fresh = beside(name);
    let _ = fs::remove_file(&fresh);
    symlink(target, &fresh)
        .and_then(|()| fs::rename(&fresh, name))
        .with_context(|| format!("cannot link {} to {target}", name.display()))
}

/// Where a file is written before it takes its place: `lib.so` and `lib.a` may be written at once.
fn beside(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Copies the files below a directory, following no links.
pub fn tree(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let below = file.strip_prefix(from).context("a file lies below its directory")?;
        place(&file, &to.join(below), 0o644)?;
    }
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(found);
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
