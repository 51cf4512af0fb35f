//! Start of the master role.

use super::address::Address;
use super::clients::{self, Desk};
use super::following::Following;
use super::link::Links;
use super::machines::Machines;
use super::streams::HomePipes;
use super::travel::Travel;
use super::tuning::Tunings;
use super::{Actor, Fact, api};
use crate::awake::Awake;
use crate::former::{self, Former};
use crate::ghosts::{self, Barrier};
use crate::keeper::{self, Keeper};
use crate::kernel::{self, Kernel};
use crate::mover::Movers;
use crate::owed::Owed;
use crate::stdio::Iod;
use anyhow::{Context, Result, bail};
use bproc_common::ghost::ENV_SOCKET;
use bproc_common::id::{NodeId, Pid};
use bproc_config::MachineConfig;
use bproc_config::net::{Gate, PeerInfo, incoming};
use bproc_config::tls::Peer;
use bproc_core::lease::Leases;
use bproc_core::master::{Master, Node};
use bproc_proto::link::link_server::LinkServer;
use bproc_stdio::Role;
use bproc_sys::daemon::{Helper, Life, spawn_detached};
use bproc_sys::process::{FileId, Process};
use bproc_sys::queue_room::QueueRooms;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// First pid after the kernel's own on a machine: where local pids go on after the boundary.
const FIRST_LOCAL: i32 = 300;

/// Runs the master role until told to stop.
///
/// # Errors
/// What keeps it from starting: the first thing that is missing, in words.
pub async fn run(config: MachineConfig, config_path: PathBuf) -> Result<()> {
    let dir = config.run_dir.clone();
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let _only = crate::only_one(&dir.join("master.lock"), "a master")?;
    let ghost = config.libexec_dir.join("bproc-ghost");
    let ghost_exe = crate::prepare_ghost(&ghost)?;
    prepare_pids(config.pids.boundary)?;
    // Each ghost takes one, and shells give a thousand.
    match bproc_sys::limits::raise_soft(bproc_sys::limits::Resource::OpenFiles) {
        Ok(open) => tracing::debug!(open, "descriptors at most"),
        Err(error) => tracing::warn!(%error, "the limit of descriptors stays as it is; each ghost takes one"),
    }
    let gate = Gate::new(&config.security, &config.name).context("certificates")?;
    let (facts, inbox) = mpsc::channel(4096);

    let iod = Arc::new(Iod::start(&config, bproc_config::paths::iod_socket_in(&dir, "master"), Role::Master).await?);
    let stdio_address = iod.status().await?.listening;
    let kernel = Kernel::start(
        kernel::Settings { object: config.libexec_dir.join("bproc.bpf.o"), pins: dir.join("bpf-master"), master: true },
        facts.clone(),
        Fact::Kernel,
    )?;
    kernel.set_boundary(config.pids.boundary);
    let keeper_settings = keeper::Settings {
        program: config.libexec_dir.join("bproc-keeper"),
        socket: dir.join("keeper.sock"),
        name: config.name.clone(),
        log: dir.join("keeper.log"),
    };
    let keeper = Keeper::start(&keeper_settings, facts.clone(), Fact::Keeper).await?;
    kernel.add_keeper(keeper.pid);
    let barrier: Barrier = {
        let keeper = keeper.clone();
        Arc::new(move || keeper.barrier())
    };
    let ghost_socket = dir.join("ghost.sock");
    ghosts::serve(&ghost_socket, ghost_exe, Some(barrier), kernel.first(), facts.clone(), Fact::Ghost).await?;
    let mover = ghost.with_file_name("bproc-mover");
    let (mut former, callers) = Former::find(&mover, &dir.join("master"), &dir.join(former::SOCKET)).await?;
    let nursery_pid = nursery(&dir, &ghost, &ghost_socket, ghost_exe, &config.name)?;
    keeper.hold(nursery_pid);

    let listener =
        TcpListener::bind(config.bind).await.with_context(|| format!("listening for nodes on {}", config.bind))?;
    let addresses = Addresses::default();
    addresses.set(&config);
    let travel = {
        let identify = identify(addresses.clone());
        let number = move |peer: &PeerInfo| identify(peer).ok().map(|node| node.0);
        Travel::start(&config, gate.clone(), Arc::new(number)).await?
    };
    let address = Address::new(&config);
    let links = Links { facts: facts.clone(), identify: identify(addresses.clone()), address: address.clone() };
    let service = LinkServer::new(links).max_decoding_message_size(crate::MAX_MESSAGE);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming(listener, gate.clone())),
    );

    let (changes, watched) = watch::channel(0);
    let (ghost_path, socket_path) = (ghost.clone(), ghost_socket.clone());
    let machines = Machines::default();
    let awake = Awake::new(config.keep_awake);
    let desk = Desk {
        facts: facts.clone(),
        iod: iod.clone(),
        changes: watched,
        ghost,
        ghost_socket,
        awake: awake.clone(),
        travel: travel.clone(),
        machines: machines.clone(),
        address,
        kin: kernel.kin(ghost_exe),
        following: Following::default(),
    };
    api::serve(&bproc_config::paths::api_socket_in(&dir), desk.clone())?;
    clients::serve(&bproc_config::paths::agent_socket_in(&dir), desk.clone())?;

    let nodes: Vec<_> = nodes(&config).collect();
    let leases = leases(&config)?;
    let mut core = Master::new(nodes, leases, true);
    core.await_nodes(former_nodes(&config, &dir));
    core.name_moves_from(crate::random_id()?);
    for caller in callers {
        facts.send(Fact::Doubt(caller)).await.ok();
    }
    former.forward(facts.clone(), Fact::Doubt);
    for (pid, starter) in kernel.starters() {
        match super::caller::starter(pid.get()) == Some(starter) {
            true => core.starter_found(pid, starter),
            false => kernel.remove_starter(pid),
        }
    }
    let actor = Actor {
        core,
        stdio_address,
        master_epoch: crate::random_id()?,
        facts: facts.clone(),
        ghosts: HashMap::new(),
        nursery: None,
        nursery_pid: Some(nursery_pid),
        nurslings: HashMap::new(),
        for_nursery: Vec::new(),
        keeper,
        keeper_settings,
        iod: iod.clone(),
        gate,
        desk,
        kernel,
        travel,
        attributes: Default::default(),
        asks: HashMap::new(),
        next_ask: 1,
        specs: HashMap::new(),
        tunings: Tunings::default(),
        rooms: QueueRooms::default(),
        pipes: HomePipes::default(),
        moving: HashMap::new(),
        vouched: Default::default(),
        former,
        spreads: HashMap::new(),
        last_spread: 0,
        settling: Vec::new(),
        taking: HashMap::new(),
        reaps: HashMap::new(),
        watched: HashMap::new(),
        parents: HashMap::new(),
        movers: Movers::new(mover, dir.join("master"), awake),
        ghost: ghost_path,
        ghost_exe,
        ghost_socket: socket_path,
        links: HashMap::new(),
        owed: Owed::default(),
        away: HashMap::new(),
        gauges: HashMap::new(),
        machines,
        used: HashMap::new(),
        changes,
        state_files: bproc_config::paths::state_files(&config.name, &dir),
        addresses,
        config_path,
        started: Instant::now(),
        recovering: true,
        config,
    };
    on_hangup(facts.clone())?;
    crate::on_stop(facts, Fact::Stop)?;
    crate::ready("the master serves");
    actor.serve(inbox).await;
    Ok(())
}

/// The configured addresses of the nodes.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<Vec<(IpAddr, i32)>>>);

impl Addresses {
    /// Takes those of a configuration.
    pub fn set(&self, config: &MachineConfig) {
        let fresh = config.nodes.iter().map(|n| (n.addr, n.number)).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    fn find(&self, address: IpAddr) -> Option<NodeId> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(addr, _)| *addr == address).map(|(_, number)| NodeId(*number))
    }
}

/// The nodes of a configuration, down.
pub fn nodes(config: &MachineConfig) -> impl Iterator<Item = (i32, Node)> {
    let d = config.node_defaults;
    config.nodes.iter().map(move |n| (n.number, Node::new(d.mode, d.uid, d.gid)))
}

/// The nodes that were up when a former agent wrote so.
fn former_nodes(config: &MachineConfig, dir: &Path) -> Vec<NodeId> {
    let file = bproc_config::paths::state_files(&config.name, dir).into_iter().next();
    let text = file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let up = bproc_config::state_file::up(&text);
    config.nodes.iter().filter(|n| up.contains(&n.addr)).map(|n| NodeId(n.number)).collect()
}

/// SIGHUP: the configuration is to be read again.
fn on_hangup(facts: mpsc::Sender<Fact>) -> Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            facts.send(Fact::Reload).await.ok();
        }
    });
    Ok(())
}

/// Which node a peer is: what its certificate says, else the address that it dials from.
fn identify(addresses: Addresses) -> Box<super::link::Identify> {
    Box::new(move |peer: &PeerInfo| match peer.peer {
        Some(Peer::Node(number)) => Ok(NodeId(number)),
        Some(Peer::Master) => Err("a node must not use the master's certificate".into()),
        None => addresses
            .find(peer.address.ip())
            .ok_or_else(|| format!("{} is no address of a node in the master's configuration", peer.address.ip())),
    })
}

/// Room for pids of nodes above the boundary; local ones stay below it.
fn prepare_pids(boundary: i32) -> Result<()> {
    bproc_sys::pids::raise_max().context("raising kernel.pid_max, so that nodes have pids of their own")?;
    turn_cursor_back(boundary);
    Ok(())
}

/// Local processes go on from the low pids once they have come to the boundary. (A pid beyond it that was asked for, as
/// ghosts of another cluster's are, does not bring the others there.)
pub fn turn_cursor_back(boundary: i32) {
    if bproc_sys::pids::last().is_ok_and(|last| last < boundary) {
        return;
    }
    if let Err(error) = bproc_sys::pids::set_last(FIRST_LOCAL) {
        tracing::error!(%error, "local pids run into those leased to nodes: kernel.ns_last_pid cannot be set");
    }
}

/// The nursery: a ghost of nobody, which makes ghosts for processes whose parent has none any more.
pub fn nursery(dir: &Path, ghost: &Path, socket: &Path, exe: FileId, name: &str) -> Result<Pid> {
    let note = dir.join("nursery.pid");
    let former = std::fs::read_to_string(&note).ok().and_then(|t| t.trim().parse().ok()).and_then(Pid::new);
    if let Some(pid) = former.filter(|p| Process::open(*p).and_then(|p| p.exe()).is_ok_and(|e| e == exe)) {
        return Ok(pid);
    }
    let argv = ["bproc-nursery".as_ref(), "--name".as_ref(), name.as_ref()];
    let env = [(ENV_SOCKET.as_ref(), socket.as_os_str())];
    let helper = Helper { path: ghost, argv: &argv, env: &env, fds: &[], life: Life::Detached };
    let pid = spawn_detached(&helper).with_context(|| format!("starting {}", ghost.display()))?.pid();
    std::fs::write(&note, format!("{pid}\n")).with_context(|| format!("writing {}", note.display()))?;
    Ok(pid)
}

/// Blocks of pids for the nodes. Another master on this machine may lease the same ones: each begins at a place of its
/// own, and leaves out where somebody is.
fn leases(config: &MachineConfig) -> Result<Leases> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut leases = Leases::new(config.pids.boundary, bproc_sys::pids::max()?, config.pids.lease_block);
    let mut place = DefaultHasher::new();
    config.name.hash(&mut place);
    leases.begin_at(place.finish());
    for entry in std::fs::read_dir("/proc").context("reading /proc")?.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
            leases.avoid(pid);
        }
    }
    Ok(leases)
}

/// Runs the administrator's script for a node that has connected; its output is kept.
pub fn node_up(node: NodeId, config: &MachineConfig, facts: mpsc::Sender<Fact>) {
    let script = config.node_up.clone();
    let log: PathBuf = config.run_dir.join(format!("node_up.{node}.log"));
    tokio::spawn(async move {
        let ok = match run_script(&script, node, &log).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%node, script = %script.display(), error = %format!("{error:#}"), "the node's start script");
                false
            }
        };
        facts.send(Fact::NodeReady(node, ok)).await.ok();
    });
}

async fn run_script(script: &Path, node: NodeId, log: &Path) -> Result<()> {
    let out = std::fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = tokio::process::Command::new(script);
    command.arg(node.0.to_string()).stdin(std::process::Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let status = command.kill_on_drop(true).status().await.context("it cannot be run")?;
    if !status.success() {
        bail!("it failed ({status}); see {}", log.display());
    }
    Ok(())
}
