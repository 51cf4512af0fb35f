//! The service as a whole: its options, its runtime, its end.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bproc_config::Security;
use bproc_config::net::{self, Gate};
use bproc_config::tls::TlsFiles;
use bproc_proto::stdio::stdio_server::StdioServer;
use clap::Parser;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::transport::Server;

use crate::control::{self, Control, Side};
use crate::links::Links;
use crate::master::{Face, Master};
use crate::packet;
use crate::pump::{CONNECTION_WINDOW, Counters, FRAME, STREAM_WINDOW, keep_alive};
use crate::slave::Slave;

/// Descriptors that the service would like to have.
const DESCRIPTORS: u64 = 1 << 20;
/// Threads at most for descriptors that cannot be polled.
const BLOCKING_THREADS: usize = 512;
/// Calls at most on one connection; nodes use fewer.
const MAX_CALLS: u32 = 16_384;

/// Whose streams the service carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The master's.
    Master,
    /// A node's.
    Slave,
}

impl Role {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Slave => "slave",
        }
    }
}

/// Command line of `bproc-iod`.
#[derive(Clone, Debug, Parser)]
#[command(name = "bproc-iod", version, about = "Carries the standard streams of processes between master and nodes")]
pub struct Options {
    /// Socket for the agent of this machine
    #[arg(long)]
    pub socket: PathBuf,
    /// Role of this machine
    #[arg(long)]
    pub role: Role,
    /// Address and port to listen on (master); port 0 takes any
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Files CA,CERTIFICATE,KEY; without them connections are plain, on loop-back only
    #[arg(long, value_delimiter = ',', value_name = "CA,CERTIFICATE,KEY")]
    pub tls: Vec<PathBuf>,
    /// Name of the cluster
    #[arg(long, default_value = bproc_config::paths::DEFAULT_CLUSTER)]
    pub name: String,
    /// Seconds without a word after which a machine is given up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=86_400))]
    pub timeout: u32,
}

/// Runs the service until it is told to end (QUIT, SIGTERM, SIGINT). Prints `listening on ADDRESS` when it is ready.
///
/// # Errors
/// What kept it from starting.
pub fn run(options: &Options) -> anyhow::Result<()> {
    raise_descriptors();
    // One thread: hops between threads cost a short process more than others could bring a long stream, which one
    // connection carries anyway.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("runtime")?;
    let result = runtime.block_on(serve(options));
    // Threads may wait for a terminal forever.
    runtime.shutdown_background();
    result
}

fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = DESCRIPTORS.max(hard);
        if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() && soft < hard {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}

fn security(options: &Options) -> anyhow::Result<Security> {
    match &options.tls[..] {
        [ca, cert, key] => Ok(Security::Tls(TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })),
        [] if options.role == Role::Master && !options.listen.ip().is_loopback() => {
            bail!("{} is not a loop-back address: certificates (--tls) are needed there", options.listen)
        }
        [] => Ok(Security::Plaintext),
        other => bail!("--tls wants three files CA,CERTIFICATE,KEY, not {}", other.len()),
    }
}

/// The socket, and a lock that is held as long as the service lives.
fn local_socket(path: &Path) -> anyhow::Result<(std::os::fd::OwnedFd, Flock<File>)> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let file = File::create(&lock_path).with_context(|| format!("{}", Path::new(&lock_path).display()))?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err(_) => bail!("another stdio service lives at {}", path.display()),
    };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => bail!("{}: {e}", path.display()),
        _ => {}
    }
    let socket = packet::serve(path).with_context(|| format!("{}", path.display()))?;
    Ok((socket, lock))
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    let gate = Gate::new(&security(options)?, &options.name)?;
    let (socket, _lock) = local_socket(&options.socket)?;
    let counters = Arc::new(Counters::default());
    let timeout = Duration::from_secs(options.timeout.into());
    let mut listening = String::new();
    let mut network = None;
    let side = match options.role {
        Role::Master => {
            let listener =
                TcpListener::bind(options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
            listening = listener.local_addr()?.to_string();
            let master = Master::new(counters.clone());
            network = Some(tokio::spawn(forward(listener, gate, master.clone(), timeout)));
            Side::Master(master)
        }
        Role::Slave => Side::Slave(Slave::new(Links::new(gate, timeout), counters.clone())),
    };
    let (quit, mut asked_to_quit) = mpsc::channel(1);
    let control =
        Arc::new(Control { side, counters, listening: listening.clone(), cluster: options.name.clone(), quit });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A hang-up of the terminal that the agent was started from is no reason to end.
    let _hangup = signal(SignalKind::hangup())?;
    announce(if listening.is_empty() { "-" } else { &listening });
    let network = async {
        match network {
            Some(task) => task.await.map_err(anyhow::Error::from)?.context("the listener failed"),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = control::serve(socket, control) => ended.context("local socket")?,
        ended = network => ended?,
        _ = asked_to_quit.recv() => tracing::info!("told to end"),
        _ = terminate.recv() => tracing::info!("ended by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("ended by SIGINT"),
    }
    let _ = std::fs::remove_file(&options.socket);
    Ok(())
}

/// Tells whoever started the service. It may not listen; then nobody needs it.
fn announce(address: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "listening on {address}").and_then(|()| out.flush());
}

async fn forward(
    listener: TcpListener,
    gate: Gate,
    master: Arc<Master>,
    timeout: Duration,
) -> Result<(), tonic::transport::Error> {
    let (silence, patience) = keep_alive(timeout);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MAX_CALLS)
        .http2_keepalive_interval(Some(silence))
        .http2_keepalive_timeout(Some(patience))
        .add_service(StdioServer::new(Face(master)))
        .serve_with_incoming(net::incoming(listener, gate))
        .await
}
