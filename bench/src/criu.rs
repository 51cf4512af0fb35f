//! CRIU, where one is installed that runs on this kernel: a process dumped to files in memory and restored from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::sys;

/// A CRIU that works here, with a directory for its images.
pub struct Criu {
    dir: PathBuf,
    version: String,
}

impl Criu {
    /// None when there is none in PATH, or it says that it does not run on this kernel.
    pub fn find() -> Option<Self> {
        let check = Command::new("criu").arg("check").stderr(Stdio::null()).stdout(Stdio::null()).status();
        if !check.is_ok_and(|status| status.success()) {
            return None;
        }
        let said = Command::new("criu").arg("--version").output().ok()?.stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let version = said.lines().next()?.trim_start_matches("Version:").trim().to_owned();
        Some(Self { dir: Path::new("/dev/shm").join(format!("bproc-bench-criu-{}", std::process::id())), version })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn call(&self, arguments: &[&str]) -> Result<f64> {
        let start = sys::now();
        let output = Command::new("criu")
            .arg(arguments[0])
            .arg("-D")
            .arg(&self.dir)
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .output()?;
        let end = sys::now();
        if !output.status.success() {
            bail!("criu {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok((end - start) as f64 / 1e6)
    }

    /// Dumps this child, which ends it, and restores it as a child. Milliseconds of each.
    pub fn dump_and_restore(&self, pid: i32) -> Result<(f64, f64)> {
        fs::create_dir_all(&self.dir)?;
        let dumped = self.call(&["dump", "-v0", "-t", &pid.to_string()])?;
        // Its number must be free.
        sys::wait(pid)?;
        sys::adopt_orphans();
        let restored = self.call(&["restore", "-v0", "-d"])?;
        fs::remove_dir_all(&self.dir)?;
        Ok((dumped, restored))
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        // Most often it is gone.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
