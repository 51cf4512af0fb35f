//! `bproc-agent`: the agent of every machine, in the role of master or of a node.
#![deny(unsafe_code)]

mod awake;
mod block;
mod checked;
mod cleanup;
mod former;
mod ghosts;
mod keeper;
mod kernel;
mod kin;
mod local;
mod master;
mod mover;
mod names;
mod owed;
mod pages;
mod pattern;
mod relay;
mod rights;
mod slave;
mod stdio;
mod survey;
mod trial;
mod watched;

use anyhow::{Context, Result, bail};
use bproc_config::{MachineConfig, paths};
use bproc_sys::process::FileId;
use clap::{Args, Parser, Subcommand};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Longest message between agents in bytes: room for any argument list and environment that exec takes.
const MAX_MESSAGE: usize = 64 << 20;

#[derive(Parser)]
#[command(name = "bproc-agent", version, about = "One process space over many machines: the agent of each")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the master: keep ghosts, serve local programs, order nodes
    Master(Common),
    /// Serve as a node: run processes for the master
    Slave {
        #[command(flatten)]
        common: Common,
        /// Number of this node; found by its address where the configuration has it
        #[arg(long)]
        node: Option<i32>,
        /// Local address to dial from
        #[arg(short = 's', long)]
        address: Option<IpAddr>,
        /// Master to dial, HOST[:PORT]; the configuration's otherwise
        master: Option<String>,
    },
    /// Tell what this kernel allows, and what each gap means
    Probe {
        /// Machine-readable
        #[arg(long)]
        json: bool,
    },
    /// Tell every mistake in a configuration, with file and line
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Make a small CA and certificates of a master and its nodes
    Certs {
        /// Directory for the files
        #[arg(long)]
        dir: PathBuf,
        /// Name of the cluster
        #[arg(long, default_value = paths::DEFAULT_CLUSTER)]
        name: String,
        /// How many nodes
        #[arg(long)]
        nodes: i32,
    },
    /// Done already
    #[command(skip)]
    Nothing,
    /// End everything of a cluster on this machine that outlives its agents
    Cleanup {
        /// Name of the cluster
        #[arg(long, default_value = paths::DEFAULT_CLUSTER)]
        name: String,
    },
    /// Write man pages and shell completions
    #[command(hide = true)]
    Generate {
        /// Directory for them
        dir: PathBuf,
    },
}

#[derive(Args)]
struct Common {
    /// Configuration: our TOML, /etc/bproc.conf or /etc/clustermatic/config
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Name of the cluster, as the configuration has it; shows in the list of processes
    #[arg(long)]
    name: Option<String>,
}

fn main() -> ExitCode {
    let command = match names::old_name() {
        Ok(Some(command)) => command,
        Ok(None) => Cli::parse().command,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    log();
    match perform(command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// To the journal where systemd listens, else to stderr. RUST_LOG says how much.
fn log() {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(journal).init();
        return;
    }
    registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init();
}

fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::Master(common) => {
            let (config, path) = configuration(&common)?;
            runtime()?.block_on(master::run::run(config, path))?;
        }
        Command::Slave { common, node, address, master } => {
            let (config, _) = configuration(&common)?;
            let number = node
                .or_else(|| own_number(&config, address))
                .context("which node is this? No address of this machine is in the configuration; say --node NUMBER")?;
            let address = address.or_else(|| config.nodes.iter().find(|n| n.number == number).map(|n| n.addr));
            let masters = match master {
                Some(master) if master.contains(':') => vec![master],
                Some(master) => vec![format!("{master}:{}", config.bind.port())],
                None if config.masters.is_empty() => vec![config.bind.to_string()],
                None => config.masters.iter().flatten().map(|m| format!("{}:{}", m.host, m.port)).collect(),
            };
            runtime()?.block_on(slave::run::run(config, number, address, masters))?;
        }
        Command::Probe { json } => return kernel::probe(json),
        Command::CheckConfig { file } => {
            let report = bproc_config::check(&file);
            print!("{report}");
            return Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Certs { dir, name, nodes } => {
            let numbers: Vec<i32> = (0..nodes).collect();
            bproc_config::certs::make_cluster_certs(&dir, &name, &numbers)
                .with_context(|| format!("making certificates in {}", dir.display()))?;
        }
        Command::Nothing => {}
        Command::Generate { dir } => pages::generate(&dir)
            .with_context(|| format!("writing man pages and completions below {}", dir.display()))?,
        Command::Cleanup { name } => return runtime()?.block_on(cleanup::run(&name)),
    }
    Ok(ExitCode::SUCCESS)
}

/// One thread serves all: measured, hops between threads cost more than a second core brings. What blocks has threads
/// of its own.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

/// The configuration, and where it was read from.
fn configuration(common: &Common) -> Result<(MachineConfig, PathBuf)> {
    let path = match &common.config {
        Some(path) => path.clone(),
        None => bproc_config::default_path().context(
            "no configuration: neither /etc/bproc/agent.toml nor /etc/bproc.conf nor /etc/clustermatic/config is there",
        )?,
    };
    let (mut config, warnings) = MachineConfig::load(&path).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Some(name) = &common.name
        && *name != config.name
    {
        if !paths::is_cluster_name(name) {
            bail!("`{name}` is no name of a cluster: lower-case letters, digits and `-`");
        }
        config.run_dir = paths::run_dir(name);
        config.name.clone_from(name);
    }
    Ok((config, path))
}

/// The node that has an address of this machine.
fn own_number(config: &MachineConfig, address: Option<IpAddr>) -> Option<i32> {
    let local = |ip: IpAddr| std::net::UdpSocket::bind((ip, 0)).is_ok();
    config.nodes.iter().find(|n| address.map_or_else(|| local(n.addr), |a| a == n.addr)).map(|n| n.number)
}

/// Makes sure that no other agent of the same role works here. The lock ends with the process.
fn only_one(path: &Path, what: &str) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    file.try_lock().with_context(|| format!("{what} runs here already: {}", path.display()))?;
    Ok(file)
}

/// The ghost binary must be there, with the capability that lets a user's ghost clone its children's ghosts.
fn prepare_ghost(path: &Path) -> Result<FileId> {
    use bproc_sys::caps::{CHECKPOINT_RESTORE, has_file_caps, set_file_caps};
    let meta = std::fs::metadata(path).with_context(|| format!("the ghost binary {}", path.display()))?;
    if !has_file_caps(path, &[CHECKPOINT_RESTORE])? {
        set_file_caps(path, &[CHECKPOINT_RESTORE]).context("giving the ghost binary its capability")?;
    }
    prepare_body(&path.with_file_name("bproc-body"))?;
    Ok(FileId { dev: meta.dev(), ino: meta.ino() })
}

/// The body must be root's and set-user-id, so that users' stand-ins can become processes again.
fn prepare_body(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).with_context(|| format!("the body binary {}", path.display()))?;
    if meta.uid() == 0 && meta.mode() & 0o7777 != 0o4755 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755))
            .with_context(|| format!("making {} set-user-id", path.display()))?;
    }
    Ok(())
}

/// A number that no other life has.
fn random_id() -> Result<u64> {
    use std::io::Read;
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// Tells systemd, or whoever else listens.
fn ready(status: &str) {
    tracing::info!("{status}");
    // Nobody listens on an ordinary start.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
}

/// SIGTERM and SIGINT end the agent; what it keeps lives on.
fn on_stop<T: Send + 'static>(facts: mpsc::Sender<T>, stop: T) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("ending; processes, ghosts and their keeper live on");
        facts.send(stop).await.ok();
    });
    Ok(())
}
