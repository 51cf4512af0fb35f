//! `cargo xtask lint`: what keeps the house in order. Everything is checked
//! before anything is told, so that one run shows all there is to mend.

mod documents;
mod length;
mod walls;

use anyhow::{Result, bail};

use crate::build;
use crate::sh::{Cmd, told};

/// A check's name, and what it does.
type Check = (&'static str, fn() -> Result<()>);

const DENY: &[&str] = &["--", "-D", "warnings"];

/// The command.
pub fn run() -> Result<()> {
    println!("lint");
    let checks: [Check; 7] = [
        ("form", || Cmd::cargo().args(["fmt", "--all", "--check"]).run()),
        ("walls", walls::check),
        ("links in documents", documents::check),
        ("length of files", length::check),
        ("clippy", || {
            Cmd::cargo()
                .args(["clippy", "--workspace", "--exclude", "bproc-ghost", "--exclude", "bproc-ebpf"])
                .args(["--all-targets", "--keep-going"])
                .args(DENY)
                .run()
        }),
        ("clippy, ghost", || Cmd::cargo().args(["clippy", "--release", "-p", "bproc-ghost"]).args(DENY).run()),
        ("clippy, eBPF", || build::ebpf_cargo("clippy")?.args(["--release", "-p", "bproc-ebpf"]).args(DENY).run()),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        match check() {
            Ok(()) => told(name, "good"),
            Err(error) => {
                told(name, &format!("FAILED\n{error:#}"));
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{}", failed.join(", "))
}
