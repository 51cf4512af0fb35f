//! `cargo xtask build`: compiles every part with the flags it needs and lays
//! the result out as it is installed, under `target/bproc`.
//!
//! Three builds: the ordinary crates; the ghost, which has no std and must not
//! share features with the others; the eBPF programs, for another target and
//! with a `core` built from source.

pub mod capability;
pub mod stage;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths;
use crate::setup::{self, Purpose, RustSrc};
use crate::sh::{Cmd, told};

/// What `cargo xtask build` is asked for.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct BuildArgs {
    /// Optimized, as for installation: takes minutes. Without it: what demo, tests and lint share
    #[arg(long)]
    release: bool,
}

impl BuildArgs {
    /// As it is installed, and measured.
    pub const RELEASE: Self = Self { release: true };

    /// Cargo's directory for it.
    fn profile(self) -> &'static str {
        if self.release { "release" } else { "debug" }
    }
}

/// Packages with something to stage that cargo builds in one go.
const ORDINARY: &[&str] = &["bproc-agent", "bproc-keeper", "bproc-stdio", "bproc-mover", "bproc-cli", "vmadump"];
/// The library for C.
const LIBRARY: &str = "bproc";
const GHOST: &str = "bproc-ghost";
/// Built with it.
const BODY: &str = "bproc-body";
const EBPF: &str = "bproc-ebpf";

/// The command: fetches what building needs, builds, stages.
pub fn run(args: BuildArgs) -> Result<()> {
    setup::for_purposes(&[Purpose::Build])?;
    all(args)
}

/// Builds and stages.
pub fn all(args: BuildArgs) -> Result<()> {
    let profile = args.profile();
    println!("build");
    let there = packages()?;
    // The small ones first: what is wrong with them shows before the long part.
    ghost()?;
    ebpf()?;
    ordinary(&there, profile)?;
    stage::all(profile)
}

/// Names of the packages in this checkout.
pub fn packages() -> Result<BTreeSet<String>> {
    let said = Cmd::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).said()?;
    let metadata: serde_json::Value = serde_json::from_str(&said).context("cargo metadata wrote no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(packages.iter().filter_map(|package| package["name"].as_str()).map(str::to_owned).collect())
}

fn ordinary(there: &BTreeSet<String>, profile: &str) -> Result<()> {
    let absent: Vec<&str> = ORDINARY.iter().copied().chain([LIBRARY]).filter(|name| !there.contains(*name)).collect();
    if !absent.is_empty() {
        bail!("this checkout lacks the packages {}", absent.join(", "));
    }
    let mut cargo = Cmd::cargo().arg("build");
    if profile == "release" {
        cargo = cargo.arg("--release");
    }
    for name in ORDINARY {
        cargo = cargo.args(["-p", name]);
    }
    cargo.run()?;
    told("agent, tools", profile);
    library(profile)?;
    bpsh_alone(profile)
}

/// By itself: built beside the agent it would be made of what the agent's parts ask for, too, and a static program that is
/// linked with it would get a piece of the agent's runtime.
fn library(profile: &str) -> Result<()> {
    let mut cargo = Cmd::cargo().args(["build", "-p", LIBRARY]);
    if profile == "release" {
        cargo = cargo.arg("--release");
    }
    cargo.run()?;
    told("library", profile);
    Ok(())
}

/// bpsh is started more often than anything else, and half of the time until it does something would go into shared
/// libraries. Only its own crate knows of it: what it is made of is built already.
fn bpsh_alone(profile: &str) -> Result<()> {
    let built = paths::target().join(profile).join("bpsh");
    let mut cargo = Cmd::cargo().args(["rustc", "-p", "bproc-cli", "--bin", "bpsh", "--features", "bpsh-alone"]);
    if profile == "release" {
        cargo = cargo.arg("--release");
    }
    match cargo.args(["--", "-C", "target-feature=+crt-static"]).run() {
        Ok(()) => told("bpsh", "static"),
        // Where the C library comes without a static one, the other binary plays bpsh.
        Err(error) => {
            let _ = std::fs::remove_file(built);
            told("bpsh", &format!("not static: {error:#}"));
        }
    }
    Ok(())
}

fn ghost() -> Result<()> {
    Cmd::cargo().args(["build", "--release", "-p", GHOST]).run()?;
    told("ghost", "built");
    Ok(())
}

fn ebpf() -> Result<()> {
    let cargo = ebpf_cargo("build")?;
    cargo.args(["--release", "-p", EBPF, "--bin", EBPF]).run()?;
    told("eBPF programs", "built");
    Ok(())
}

/// `cargo COMMAND` for the eBPF target. It has a target directory of its own: with
/// RUSTC_BOOTSTRAP set, cargo would build shared build scripts anew each time.
pub fn ebpf_cargo(command: &str) -> Result<Cmd> {
    let Some(source) = setup::rust_src()? else {
        bail!("the standard library's source is missing: run `cargo xtask setup`");
    };
    let linker = setup::bpf_linker();
    let linker_dir = linker.parent().context("bpf-linker lies in a directory")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(linker_dir.to_path_buf()).chain(std::env::split_paths(&path));
    let flags = ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf"];
    let cargo = Cmd::cargo()
        .args([command, "--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(paths::target().join("ebpf"))
        .env("PATH", std::env::join_paths(dirs).context("PATH cannot be extended")?)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(match source {
        RustSrc::Sysroot => cargo,
        RustSrc::Library(library) => cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library),
    })
}
