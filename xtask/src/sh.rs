//! Running other programs: every failure names the command line, and what the
//! program wrote when its output was captured.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command that is told in full when it fails.
pub struct Cmd(Command);

impl Cmd {
    /// A command found on PATH, or by its path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Command::new(program))
    }

    /// This cargo, in the checkout.
    pub fn cargo() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self::new(cargo).dir(crate::paths::root())
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    /// Takes an environment variable away.
    pub fn env_remove(mut self, key: &str) -> Self {
        self.0.env_remove(key);
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.0.current_dir(dir);
        self
    }

    /// Runs it on this terminal; anything but exit code 0 is an error.
    pub fn run(mut self) -> Result<()> {
        let line = self.line();
        let status = self.0.status().with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Runs it without showing anything; its output comes with the error.
    pub fn quiet(self) -> Result<()> {
        self.said().map(drop)
    }

    /// Runs it and returns what it wrote to standard output.
    pub fn said(mut self) -> Result<String> {
        let line = self.line();
        let out = self.output_of(&line)?;
        if !out.status.success() {
            bail!(
                "`{line}` failed: {}\n{}{}",
                out.status,
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The plain command, for what needs more than running it to its end.
    pub fn into_inner(self) -> Command {
        self.0
    }

    fn output_of(&mut self, line: &str) -> Result<Output> {
        self.0.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// One line of what xtask does: a name and what became of it.
pub fn told(what: &str, outcome: &str) {
    println!("  {what:<22} {outcome}");
}

/// The first directory of PATH that holds `program`.
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}
