//! Programs in C that are measured, compiled for one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A directory that goes with this value.
pub struct Dir(PathBuf);

impl Dir {
    /// Makes it.
    pub fn new(what: &str) -> Result<Self> {
        let dir = Path::new("/var/tmp").join(format!("bproc-bench-{what}-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compiles a program from this text.
pub fn cc(program: &Path, text: &str, flags: &[&str]) -> Result<()> {
    let source = program.with_extension("c");
    fs::write(&source, text)?;
    let output = Command::new("cc").arg("-O2").arg("-o").arg(program).arg(&source).args(flags).output();
    let output = output.context("cannot start cc")?;
    ensure!(output.status.success(), "cc {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
