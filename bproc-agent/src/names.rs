//! `bpmaster` and `bpslave`: the names and options that administrators of BProc know, for the roles of the agent.

use crate::{Cli, Command, Common};
use anyhow::{Context, Result};
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use clap::Parser;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(name = "bpmaster", version, about = "The master's agent")]
struct Bpmaster {
    /// Stay in the foreground
    #[arg(short)]
    debug: bool,
    /// Say more
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Kept for old scripts: versions are compared when a node attaches
    #[arg(short)]
    ignore_version: bool,
    /// Configuration
    #[arg(short)]
    config: Option<PathBuf>,
    /// Write the log, with every message of the protocols, to this file
    #[arg(short)]
    message_trace: Option<PathBuf>,
}

#[derive(Parser)]
#[command(name = "bpslave", version, about = "A node's agent")]
struct Bpslave {
    /// Kept for old scripts: systemd and RUST_LOG say where logs go
    #[arg(short)]
    log_facility: Option<String>,
    /// Kept for old scripts: a node always dials again
    #[arg(short)]
    reconnect: bool,
    /// Kept for old scripts: versions are compared when a node attaches
    #[arg(short)]
    ignore_version: bool,
    /// Stay in the foreground
    #[arg(short)]
    debug: bool,
    /// Local address to dial from; it also says which node this is
    #[arg(short)]
    source: Option<IpAddr>,
    /// Kept for old scripts
    #[arg(short)]
    exit_on_error: bool,
    /// Say more
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Write the log, with every message of the protocols, to this file
    #[arg(short)]
    message_trace: Option<PathBuf>,
    /// Master
    master: String,
    /// Its port
    port: Option<u16>,
}

/// What an old name means; `None` under the agent's own.
///
/// # Errors
/// The agent cannot be started in the background.
pub fn old_name() -> Result<Option<Command>> {
    let called = std::env::args_os().next().unwrap_or_default();
    let (command, foreground, verbose, trace) = match Path::new(&called).file_name().and_then(OsStr::to_str) {
        Some("bpmaster") => {
            let cli = Bpmaster::parse();
            let command = Command::Master(Common { config: cli.config, name: None });
            (command, cli.debug, cli.verbose, cli.message_trace)
        }
        Some("bpslave") => {
            let cli = Bpslave::parse();
            let master = cli.port.map_or(cli.master.clone(), |port| format!("{}:{port}", cli.master));
            let common = Common { config: None, name: None };
            let command = Command::Slave { common, node: None, address: cli.source, master: Some(master) };
            (command, cli.debug, cli.verbose, cli.message_trace)
        }
        _ => return Ok(None),
    };
    if foreground {
        return Ok(Some(command));
    }
    let level = match (trace.is_some(), verbose) {
        (true, _) => "trace",
        (_, 0) => "info",
        (_, 1) => "debug",
        _ => "trace",
    };
    background(&command, level, trace.as_deref().unwrap_or(Path::new("/var/log/bproc-agent.log")))?;
    Ok(Some(Command::Nothing))
}

fn background(command: &Command, level: &str, log: &Path) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut argv: Vec<OsString> = vec!["bproc-agent".into()];
    match command {
        Command::Master(common) => {
            argv.push("master".into());
            argv.extend(common.config.iter().flat_map(|c| ["--config".into(), c.clone().into_os_string()]));
        }
        Command::Slave { address, master, .. } => {
            argv.push("slave".into());
            argv.extend(address.iter().flat_map(|a| ["--address".into(), a.to_string().into()]));
            argv.extend(master.iter().map(OsString::from));
        }
        _ => {}
    }
    // What cannot be read now would be told to a log that nobody reads yet.
    Cli::try_parse_from(&argv)?;
    let out =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let argv: Vec<&OsStr> = argv.iter().map(OsString::as_os_str).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let env = [(OsStr::new("RUST_LOG"), OsStr::new(level)), (OsStr::new("PATH"), path.as_os_str())];
    let fds = [(out.as_fd(), 1), (out.as_fd(), 2)];
    spawn_detached(&Helper { path: &own, argv: &argv, env: &env, fds: &fds, life: Life::Detached })
        .with_context(|| format!("starting {}", own.display()))?;
    Ok(())
}
