//! What runs inside: jobs, and the test executables that cargo builds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::rootfs::Extra;
use crate::paths;
use crate::sh::Cmd;

/// A shell command for the guest.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Name in the tables.
    pub(crate) name: String,
    /// Time limit, generous: emulation is ten to thirty times slower.
    pub(crate) limit: Duration,
    /// For `/bin/sh -c`; one line.
    pub(crate) command: String,
}

impl Job {
    /// A job; line breaks in the command become `;`-free spaces, so write
    /// scripts with `;` or give a file.
    pub(crate) fn new(name: &str, seconds: u64, command: &str) -> Self {
        Self {
            name: name.replace(char::is_whitespace, "_"),
            limit: Duration::from_secs(seconds),
            command: command.replace('\n', " "),
        }
    }
}

/// The job file of the guest.
pub(super) fn job_file(jobs: &[Job]) -> String {
    jobs.iter().map(|job| format!("{}\t{}\t{}\n", job.name, job.limit.as_secs(), job.command)).collect()
}

/// A test executable of the host that is to run in the guest.
#[derive(Clone, Debug)]
pub(crate) struct TestBinary {
    /// Name in the tables.
    pub(crate) name: String,
    /// The executable; it has the same path in the guest.
    pub(crate) path: PathBuf,
    /// Arguments.
    pub(crate) args: Vec<String>,
    /// Environment beside the guest's own.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory: that of the package, as under `cargo test`.
    pub(crate) directory: PathBuf,
    /// Programs of the same package that its tests start.
    pub(crate) programs: Vec<PathBuf>,
}

impl TestBinary {
    /// The job that runs it, with this time limit in seconds.
    pub(crate) fn job(&self, seconds: u64) -> Job {
        let mut words = vec!["cd".to_owned(), quote(&self.directory.to_string_lossy())];
        words.extend(["&&", "exec", "env"].map(str::to_owned));
        words.extend(self.env.iter().map(|(name, value)| quote(&format!("{name}={value}"))));
        words.push(quote(&self.path.to_string_lossy()));
        words.extend(self.args.iter().map(|argument| quote(argument)));
        Job::new(&self.name, seconds, &words.join(" "))
    }

    /// What the guest needs on its disk for it.
    pub(crate) fn extras(&self) -> Vec<Extra> {
        let file = |path: &PathBuf| Extra { path: path.clone(), empty_directory: false };
        let directory = Extra { path: self.directory.clone(), empty_directory: true };
        std::iter::once(directory)
            .chain(std::iter::once(file(&self.path)))
            .chain(self.programs.iter().map(file))
            .collect()
    }
}

/// Builds the tests of these packages and finds their executables, in the order of the packages.
///
/// They run one test at a time, and their output is not captured, so that a
/// test that hangs can be seen.
pub(crate) fn test_binaries(packages: &[String], filters: &[String]) -> Result<Vec<TestBinary>> {
    // All at once: cargo would build what they share anew for each choice of features.
    let mut cargo = Cmd::cargo().args(["test", "--no-run", "--quiet", "--message-format=json"]);
    for package in packages {
        cargo = cargo.args(["-p", package]);
    }
    let said = cargo.said().context("cannot build the tests")?;
    let mut programs = Vec::new();
    let mut tests = BTreeMap::new();
    for line in said.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let Some(path) = message["executable"].as_str().map(PathBuf::from) else {
            continue;
        };
        let manifest = message["manifest_path"].as_str().unwrap_or_default();
        let directory = Path::new(manifest).parent().unwrap_or(Path::new("/"));
        let Some(at) = packages.iter().position(|package| belongs(&message, package)) else {
            continue;
        };
        let package = &packages[at];
        if message["profile"]["test"] == true {
            let target = message["target"]["name"].as_str().unwrap_or("test");
            let kind = message["target"]["kind"][0].as_str().unwrap_or("lib");
            let name = if kind == "test" { format!("{package}/{target}") } else { format!("{package}({kind})") };
            tests.insert((at, name), (path, directory.to_owned()));
        } else {
            programs.push((at, path));
        }
    }
    Ok(tests
        .into_iter()
        .filter(|(_, (path, _))| !is_empty(path))
        .map(|((at, name), (path, directory))| TestBinary {
            name,
            path,
            args: ["--nocapture", "--test-threads=1"]
                .map(str::to_owned)
                .into_iter()
                .chain(filters.iter().cloned())
                .collect(),
            env: environment(&directory),
            directory,
            programs: programs.iter().filter(|(of, _)| *of == at).map(|(_, path)| path.clone()).collect(),
        })
        .collect())
}

/// Is this artifact of that package? Its identifier ends in `/NAME#VERSION` or `#NAME@VERSION`.
fn belongs(artifact: &Value, package: &str) -> bool {
    let id = artifact["package_id"].as_str().unwrap_or_default();
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name == package,
        None => place.ends_with(&format!("/{package}")),
    }
}

/// What tests find in their environment on the host, too; and how much a test of volume shall move, since ciphers are a
/// hundred times slower under emulation.
fn environment(directory: &Path) -> Vec<(String, String)> {
    let object = paths::stage().join("libexec/bproc/bproc.bpf.o");
    let paths = [
        ("CARGO_MANIFEST_DIR", directory.to_owned()),
        ("CARGO_TARGET_DIR", paths::target()),
        ("BPROC_STAGE", paths::stage()),
        ("BPROC_BPF_OBJECT", object),
    ]
    .map(|(name, path)| (name.to_owned(), path.to_string_lossy().into_owned()));
    let less = [("BPROC_TEST_MIB", "4"), ("BPROC_TEST_QUICK", "1")];
    let passed = ["BPROC_TEST_LOG"].into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    paths.into_iter().chain(less.map(|(name, value)| (name.to_owned(), value.to_owned()))).chain(passed).collect()
}

/// True for a test program without a single test.
fn is_empty(path: &Path) -> bool {
    let listed = Cmd::new(path).args(["--list", "--format=terse"]).said();
    // Another harness than Rust's may not know these options.
    listed.is_ok_and(|text| !text.contains(": test"))
}

/// Builds the guest's init, linked statically.
pub(super) fn build_guest() -> Result<PathBuf> {
    // A directory of its own: the flag must not disturb other builds.
    let target = paths::target().join("vm/build");
    Cmd::cargo()
        .args(["rustc", "--quiet", "--release", "-p", "bproc-guest"])
        .args(["--bin", "bproc-guest", "--target-dir"])
        .arg(&target)
        .args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .env_remove("RUSTFLAGS")
        .run()?;
    Ok(target.join("release/bproc-guest"))
}

/// Quotes a word for the shell.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::{Job, job_file, quote};

    #[test]
    fn quotes_what_the_shell_would_read() {
        assert_eq!(quote("/usr/bin/x-1"), "/usr/bin/x-1");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("it's $HOME"), "'it'\\''s $HOME'");
    }

    #[test]
    fn a_job_is_one_line() {
        let text = job_file(&[Job::new("two words", 5, "echo a;\necho b")]);
        assert_eq!(text, "two_words\t5\techo a; echo b\n");
    }
}
