//! Start of the slave role.

use super::link::Dialer;
use super::looks::Looks;
use super::space::{self, Space};
use super::spawn::{Family, Spawner};
use super::table::Table;
use super::{Actor, Fact};
use crate::awake::Awake;
use crate::former::{self, Former};
use crate::ghosts;
use crate::kernel::{self, Kernel};
use crate::mover::Movers;
use crate::owed::Owed;
use crate::stdio::Iod;
use anyhow::{Context, Result, bail};
use bproc_config::certs::files_of;
use bproc_config::net::Gate;
use bproc_config::tls::Peer;
use bproc_config::{MachineConfig, OnMasterLoss, Security};
use bproc_core::session::{Inbox, Outbox};
use bproc_core::slave::Blocks;
use bproc_stdio::Role;
use bproc_travel::fetch::Fetcher;
use bproc_travel::node::Traveller;
use bproc_travel::serve;
use bproc_travel::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Runs the slave role of node `number` until told to stop.
///
/// # Errors
/// What keeps it from starting: the first thing that is missing, in words.
pub async fn run(config: MachineConfig, number: i32, from: Option<IpAddr>, masters: Vec<String>) -> Result<()> {
    if masters.is_empty() {
        bail!("no master to serve: say it in the configuration or on the command line");
    }
    let dir = config.run_dir.join(format!("node-{number}"));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let _only = crate::only_one(&dir.join("slave.lock"), &format!("an agent of node {number}"))?;
    let config = MachineConfig { security: own_certificate(config.security, number), ..config };
    let ghost = config.libexec_dir.join("bproc-ghost");
    let ghost_exe = crate::prepare_ghost(&ghost)?;
    bproc_sys::pids::raise_max().context("raising kernel.pid_max, so that the master's pids exist here")?;
    for resource in [bproc_sys::limits::Resource::OpenFiles, bproc_sys::limits::Resource::Processes] {
        // Where the kernel does not let us, processes get what there is.
        let _ = bproc_sys::limits::raise(resource);
    }
    let gate = Gate::new(&config.security, &config.name).context("certificates")?;
    let (facts, inbox) = mpsc::channel(4096);
    let iod = Arc::new(Iod::start(&config, dir.join("iod.sock"), Role::Slave).await?);

    let traveller = travel(&config, number, from, &gate, &dir).await?;

    let patience = Duration::from_secs(config.ping_timeout_s.into());
    let title = format!("bproc-init --name {} --node {number}", config.name);
    let kernel = Kernel::start(
        kernel::Settings { object: config.libexec_dir.join("bproc.bpf.o"), pins: dir.join("bpf"), master: false },
        facts.clone(),
        Fact::Kernel,
    )?;
    // Before the space is made: its init's lease runs from the start.
    ghosts::serve(&space::socket_in(&dir), ghost_exe, None, kernel.first(), facts.clone(), Fact::Ghost).await?;
    let (space, former) =
        Space::find_or_make(&dir, &ghost, ghost_exe, &title, super::life::lease(patience).as_secs() as u32)?;
    kernel.add_space(space.record.pid_ns);
    let family = Arc::new(Family::default());
    // A fresh init connects at once; it is waited for like those of a former time.
    family.await_all(BTreeSet::from([1]));
    let mover = ghost.with_file_name("bproc-mover");
    let (mut movers, callers) = Former::find(&mover, &dir, &dir.join(former::SOCKET)).await?;
    let mut table = Table::default();
    let mut events = Outbox::default();
    let mut blocks = Blocks::default();
    let mut skeletons = HashMap::new();
    let found_ns = bproc_sys::time::monotonic_ns();
    if former {
        for block in space.blocks() {
            blocks.add(block);
        }
        let found = space::inventory(space.record.pid_ns, ghost_exe)?;
        skeletons = found.iter().filter(|f| f.ghost && !f.is_over()).map(|f| (f.pid, f.host_pid)).collect();
        for process in found.iter().filter(|f| !f.ghost) {
            let told = table.adopt(process, skeletons.contains_key(&process.ppid));
            // Of one that may run elsewhere nothing is told.
            if !callers.iter().any(|caller| caller.doubt.pid == process.pid) {
                for event in told {
                    events.push(event);
                }
            }
        }
        family.await_all(skeletons.keys().copied().collect());
        tracing::info!(processes = table.len(), "took over the space of a former agent");
    }
    let awake = Awake::new(config.keep_awake);
    let spawner = Arc::new(Spawner {
        family: family.clone(),
        iod: iod.clone(),
        node: number,
        awake: awake.clone(),
        traveller: traveller.clone(),
        pipes: Default::default(),
    });
    let mut orders = Inbox::default();
    orders.accept(space.orders_noted());
    let (deliveries, queue) = mpsc::unbounded_channel();
    tokio::spawn(super::delivery::serve(queue, family.clone(), facts.clone()));
    let halts = super::halts::Halts::new(family.clone());
    let mut actor = Actor {
        node: number,
        movers: Movers::new(mover, dir.clone(), awake.clone()),
        ghost,
        ghost_exe,
        title,
        keep_on_loss: config.on_master_loss == OnMasterLoss::Keep,
        facts: facts.clone(),
        newest_order: orders.seen(),
        orders,
        space,
        dropped: 0,
        kernel,
        family,
        spawner,
        traveller,
        init: None,
        for_init: Vec::new(),
        table,
        looks: Looks::default(),
        looked_at: 0,
        blocks,
        events,
        deliveries,
        under_way: BTreeSet::new(),
        count: 0,
        for_starting: HashMap::new(),
        named: HashMap::new(),
        ended_when_named: BTreeMap::new(),
        dead_leaders: BTreeMap::new(),
        former: skeletons,
        dismissed: if former { None } else { Some(HashMap::new()) },
        began: Instant::now(),
        found_ns,
        owed: Owed::default(),
        instance: crate::random_id()?,
        to_master: None,
        stdio_address: String::new(),
        flush_limit: Duration::from_secs(config.stdio.flush_timeout_s.into()),
        patience,
        heard: Instant::now(),
        halves: HashMap::new(),
        rooms: Vec::new(),
        streams_of_moves: HashMap::new(),
        surveys: HashMap::new(),
        departures: VecDeque::new(),
        unconnected: BTreeSet::new(),
        young: BTreeSet::new(),
        ended_early: HashMap::new(),
        kept: HashMap::new(),
        halts,
        groups: Default::default(),
        listen: from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        gate: gate.clone(),
        asks: Default::default(),
        watch: Default::default(),
        holders: HashMap::new(),
        dir,
    };
    callers.into_iter().for_each(|caller| actor.take_over(caller, false));
    movers.forward(facts.clone(), Fact::Doubt);
    actor.watch_init();
    let dialer = Dialer { masters, from, gate, facts: facts.clone() };
    let link = tokio::spawn(dialer.keep());
    crate::on_stop(facts, Fact::Stop)?;
    crate::ready("the node serves");
    actor.serve(inbox).await;
    link.abort();
    Ok(())
}

/// The cache of programs that travel, and the service that gives its files to other nodes.
async fn travel(
    config: &MachineConfig,
    number: i32,
    from: Option<IpAddr>,
    gate: &Gate,
    dir: &Path,
) -> Result<Arc<Traveller>> {
    let cache = config.cache.dir.join(format!("node-{number}"));
    let store = Store::open(&cache, config.cache.limit).with_context(|| format!("the cache {}", cache.display()))?;
    let files = serve::thread().context("starting the thread of the file service")?;
    let fetcher = Fetcher::new(store.clone(), gate.clone(), from, number);
    let address = SocketAddr::new(from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0);
    let bound = serve::serve(&files, address, gate.clone(), fetcher.clone(), None)
        .await
        .with_context(|| format!("listening for other nodes on {address}"))?;
    fetcher.serves_at(bound);
    Traveller::new(store, fetcher, files, config.root.clone(), dir.join("root")).context("programs that travel")
}

/// On a machine that plays several nodes each has its own certificate beside the configured one.
fn own_certificate(security: Security, number: i32) -> Security {
    match security {
        Security::Tls(files) => {
            let own = files.cert.parent().map(|dir| files_of(dir, Peer::Node(number)));
            Security::Tls(own.filter(|own| own.cert.is_file()).unwrap_or(files))
        }
        Security::Plaintext => Security::Plaintext,
    }
}

/// Reboots, halts or powers off this machine, by the system's own way.
pub fn power(what: &str) {
    let program = match what {
        "reboot" => "reboot",
        "halt" => "halt",
        "pwroff" => "poweroff",
        other => {
            tracing::warn!(order = other, "the master orders what this agent does not know");
            return;
        }
    };
    tracing::warn!(order = what, "the master orders this machine's end");
    if let Err(error) = std::process::Command::new(program).spawn() {
        tracing::error!(program, %error, "cannot be run");
    }
}
