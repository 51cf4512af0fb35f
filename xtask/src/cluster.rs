//! Clusters on this machine: agents of several nodes on loop-back addresses.
//!
//! A cluster NAME owns four places and nothing else: `/var/lib/bproc/NAME`
//! (programs and configuration; a user's process must be able to execute the
//! ghost there), `/run/bproc.d/NAME` (sockets, pid files, eBPF pins),
//! `/var/log/bproc/NAME`, and the processes whose program lies in the first.

mod address;
mod config;
mod down;
mod install;
mod leftover;
mod process;
mod start;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths;
use crate::sh::Cmd;

pub use leftover::Leftover;

/// The cluster that is meant when none is named.
const DEFAULT: &str = "default";
const LIB: &str = "/var/lib/bproc";
const RUN: &str = "/run/bproc.d";
const LOG: &str = "/var/log/bproc";

/// Which cluster is meant.
#[derive(Args, Debug)]
pub struct Named {
    /// Name of the cluster
    #[arg(long, default_value = DEFAULT, value_parser = parse_name)]
    name: String,
}

/// What `cargo xtask up` is asked for.
#[derive(Args, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    named: Named,
    /// Number of nodes, on 127.0.0.1, 127.0.0.2, ...
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=250))]
    nodes: u8,
    /// Settings (agent.toml) that override those made here
    #[arg(long)]
    config: Option<PathBuf>,
    /// Take what is staged as it is
    #[arg(long)]
    no_build: bool,
}

/// A cluster of this machine, by its name.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
}

impl Cluster {
    /// The cluster of this name, running or not.
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { name: parse_name(name).map_err(anyhow::Error::msg)? })
    }

    fn lib(&self) -> PathBuf {
        Path::new(LIB).join(&self.name)
    }

    fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// Where its agents write what they have to say.
    pub fn log_dir(&self) -> PathBuf {
        Path::new(LOG).join(&self.name)
    }

    fn etc(&self) -> PathBuf {
        self.lib().join("etc")
    }

    fn agent(&self) -> PathBuf {
        self.lib().join("bin/bproc-agent")
    }

    /// Variables for a shell that is to use this cluster.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let stage = paths::stage();
        let joined = |name: &str, first: PathBuf, last: &str| {
            let rest = std::env::var(name).unwrap_or_else(|_| last.to_owned());
            if rest.is_empty() { first.display().to_string() } else { format!("{}:{rest}", first.display()) }
        };
        vec![
            ("PATH", joined("PATH", self.lib().join("bin"), "/usr/bin:/bin")),
            ("LD_LIBRARY_PATH", joined("LD_LIBRARY_PATH", self.lib().join("lib"), "")),
            ("CPATH", joined("CPATH", stage.join("include"), "")),
            ("LIBRARY_PATH", joined("LIBRARY_PATH", stage.join("lib"), "")),
            // An empty last part means: and the system's own.
            (
                "MANPATH",
                format!("{}:{}", stage.join("share/man").display(), std::env::var("MANPATH").unwrap_or_default()),
            ),
            ("BPROC_SOCKET", self.run_dir().join("agent.sock").display().to_string()),
        ]
    }

    /// One of its commands, with its environment.
    fn command(&self, program: &str) -> Cmd {
        let command = Cmd::new(self.lib().join("bin").join(program));
        self.environment().into_iter().fold(command, |command, (key, value)| command.env(key, value))
    }

    /// Starts it and waits until every node is up.
    pub fn up(&self, nodes: u8, settings: Option<&Path>) -> Result<()> {
        need_root("a cluster")?;
        let _lock = self.lock()?;
        let there = Leftover::of(self)?;
        if !there.is_nothing() {
            bail!(
                "something of the cluster {} is there already ({there}): `cargo xtask down --name {}`",
                self.name,
                self.name
            );
        }
        let port = address::port(&self.name)?;
        let started = install::all(self)
            .and_then(|()| config::write(self, nodes, port, settings))
            .and_then(|()| start::all(self, nodes));
        if let Err(error) = started {
            // What has started must not stay without its other half.
            let after = down::all(self).err().map(|more| format!("; taking it down failed too: {more:#}"));
            bail!("{error:#}{}", after.unwrap_or_default());
        }
        Ok(())
    }

    /// Ends it. Returns what its own clean-up had left, which was then removed.
    pub fn down(&self) -> Result<Leftover> {
        need_root("a cluster")?;
        let _lock = self.lock()?;
        let left = down::all(self)?;
        fs::remove_file(self.lock_file()).with_context(|| format!("cannot remove {}", self.lock_file().display()))?;
        Ok(left)
    }

    /// One at a time: the lock is gone with the process that held it, the file with the cluster.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(RUN).with_context(|| format!("cannot make {RUN}"))?;
        let path = self.lock_file();
        loop {
            let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
            if file.try_lock().is_err() {
                bail!("another xtask is busy with the cluster {}", self.name);
            }
            let ours = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
            // Its former holder may have removed it after we had opened it: then a third may hold another.
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(file);
            }
        }
    }

    fn lock_file(&self) -> PathBuf {
        Path::new(RUN).join(format!(".{}.lock", self.name))
    }
}

/// `cargo xtask up`.
pub fn up(args: &UpArgs) -> Result<()> {
    let cluster = Cluster::named(&args.named.name)?;
    need_root("a cluster")?;
    if !args.no_build {
        crate::build::run(crate::build::BuildArgs::default())?;
    }
    cluster.up(args.nodes, args.config.as_deref())?;
    print!("{}", cluster.command("bpstat").said()?);
    let option = if cluster.name == DEFAULT { String::new() } else { format!(" --name {}", cluster.name) };
    println!("to use it:  eval \"$(cargo xtask env{option})\"\nto end it:  cargo xtask down{option}");
    Ok(())
}

/// `cargo xtask down`.
pub fn down(args: &Named) -> Result<()> {
    let cluster = Cluster::named(&args.name)?;
    let left = cluster.down()?;
    if left.is_nothing() {
        println!("cluster {}: down, nothing left", args.name);
    } else {
        println!("cluster {}: down; its own clean-up had left {left}, ended now", args.name);
    }
    Ok(())
}

/// `cargo xtask env`.
pub fn env(args: &Named) -> Result<()> {
    for (key, value) in Cluster::named(&args.name)?.environment() {
        println!("export {key}={}", quoted(&value));
    }
    Ok(())
}

/// `cargo xtask status`.
pub fn status() -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(LIB)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| parse_name(name).is_ok())
        .collect();
    names.sort();
    if names.is_empty() {
        println!("no cluster on this machine; `cargo xtask up` starts one");
    }
    for name in names {
        let cluster = Cluster::named(&name)?;
        let agents = process::agents(&cluster)?;
        println!("cluster {name}: {} agents running; logs in {}", agents.len(), cluster.log_dir().display());
        if !agents.is_empty() {
            match cluster.command("bpstat").said() {
                Ok(table) => print!("{table}"),
                Err(error) => println!("  {error:#}"),
            }
        }
    }
    Ok(())
}

fn need_root(what: &str) -> Result<()> {
    if !paths::is_root() {
        bail!(
            "{what} on this machine needs root (the agents load eBPF programs and make namespaces); without root: cargo xtask vm"
        );
    }
    Ok(())
}

/// As the agents accept it: these names stand in paths and certificates.
fn parse_name(name: &str) -> Result<String, String> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if letters && (1..=40).contains(&name.len()) && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(name.to_owned());
    }
    Err("1 to 40 lower-case letters, digits and inner hyphens are wanted".into())
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::{Cluster, parse_name, quoted};

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-a", "a-", "A", "a b", &"a".repeat(41)] {
            assert!(parse_name(bad).is_err(), "{bad:?}");
        }
        assert!(parse_name("demo-2").is_ok());
    }

    #[test]
    fn the_header_is_found_by_all_compilers() {
        // C_INCLUDE_PATH would be for C alone.
        let environment = Cluster { name: "x".into() }.environment();
        let found = environment.iter().find(|(name, _)| *name == "CPATH").map(|(_, value)| value.as_str());
        let first = found.and_then(|value| value.split(':').next());
        assert!(first.is_some_and(|first| first.ends_with("/include")), "{found:?}");
    }

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quoted("it's; $HOME"), r"'it'\''s; $HOME'");
    }
}
