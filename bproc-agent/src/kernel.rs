//! The agent's side of eBPF: load, tell the programs what to watch, pass records on.

use crate::watched::watched;
use anyhow::{Context, Result};
use bproc_bpf::{Config, Control, Monitor, Role};
use bproc_common::event::{Event, Usage};
use bproc_common::id::Pid;
use bproc_common::shown::{Numbers, Shown};
use bproc_core::lease::Block;
use bproc_core::master::Starter;
use bproc_sys::process::{FileId, Process};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// Bytes of the ring between kernel and agent: some 17,000 records.
const RING_BYTES: u32 = 2 << 20;

/// What is loaded from where.
#[derive(Debug)]
pub struct Settings {
    /// The object file.
    pub object: PathBuf,
    /// Directory for the pins.
    pub pins: PathBuf,
    /// Role master, else a node's.
    pub master: bool,
}

/// Has passed on, when it is done, all records of what happened before the call.
pub type First = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Who takes records from the ring; one at a time, so that they stay in their order.
struct Reader<T> {
    monitor: Mutex<Monitor>,
    out: mpsc::Sender<T>,
    wrap: fn(Event) -> T,
}

impl<T> Reader<T> {
    /// Passes on what is there. A full queue makes it wait, and the ring holds what comes meanwhile. False when nobody
    /// listens any more.
    async fn pass_on(&self) -> bool {
        let mut monitor = self.monitor.lock().await;
        let mut events = Vec::new();
        monitor.drain(|event| events.push(*event));
        for event in events {
            if self.out.send((self.wrap)(event)).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Asks the kernel what /proc does not tell of processes.
#[derive(Clone)]
pub struct Kin {
    control: Control,
    ghost_exe: FileId,
}

impl Kin {
    /// The nearest ancestor that gets orphans; none where that is not known.
    pub fn subreaper(&self, pid: Pid) -> Option<i32> {
        let found = self.control.subreaper(pid.get() as u32).unwrap_or_else(|error| {
            tracing::warn!(%error, "who is a subreaper");
            None
        });
        found.and_then(|number| i32::try_from(number).ok())
    }

    /// What is said of a process that is under Landlock, whose rules nobody can read and so make elsewhere.
    pub fn landlock(&self, pid: i32) -> Option<String> {
        match self.control.is_under_landlock(pid as u32) {
            Ok(false) => None,
            Ok(true) => Some("is restricted by Landlock, which cannot go along".to_owned()),
            Err(error) => Some(format!("may be restricted by Landlock, which cannot go along ({error})")),
        }
    }

    /// Whether a process holds connections, as servers do, with which it does not move. A ghost has one to us, and its process moves.
    pub fn is_connected(&self, pid: Pid) -> bool {
        let is_ghost = || Process::open(pid).and_then(|p| p.exe()).is_ok_and(|exe| exe == self.ghost_exe);
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = links.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:")) && !is_ghost()
    }
}

/// The loaded programs. Dropping it leaves them pinned: they gather records for the next agent.
pub struct Kernel {
    control: Control,
    reader: JoinHandle<()>,
    first: First,
    /// What processes used can be told to those who wait for their ghosts.
    tells_usage: bool,
    /// What processes do can be shown where their ghosts are.
    shows: bool,
}

impl Kernel {
    /// Loads the programs, or takes over those of a former agent with the records since.
    ///
    /// # Errors
    /// The kernel lacks something that is required; `bproc-agent probe` tells what.
    pub fn start<T: Send + 'static>(settings: Settings, out: mpsc::Sender<T>, wrap: fn(Event) -> T) -> Result<Kernel> {
        let role = if settings.master { Role::Master } else { Role::Node };
        let mut config = Config::new(&settings.object, role);
        config.pin_dir = Some(settings.pins);
        config.ring_bytes = Some(RING_BYTES);
        let monitor = Monitor::start(&config)
            .with_context(|| format!("eBPF programs of {} (see `bproc-agent probe`)", settings.object.display()))?;
        for feature in monitor.features().iter().filter(|f| !f.attached) {
            tracing::info!(program = feature.name, why = %feature.why, "not on this kernel");
        }
        let attached = |name: &str| monitor.features().iter().any(|f| f.name == name && f.attached);
        let tells_usage = attached("usage_release");
        let shows = attached("shown_stat") && attached("shown_read");
        let control = monitor.control();
        control.add_keeper(std::process::id()).context("eBPF maps")?;
        // What a former agent was told may be old, or of ghosts that have ended since.
        control.show_none().context("eBPF maps")?;
        let ring = monitor.as_fd().try_clone_to_owned().context("the ring of the kernel's events")?;
        let ring = watched(ring, Interest::READABLE).context("watching the kernel's events")?;
        let reading = Arc::new(Reader { monitor: Mutex::new(monitor), out, wrap });
        let first: First = {
            let reading = reading.clone();
            Arc::new(move || {
                let reading = reading.clone();
                Box::pin(async move { _ = reading.pass_on().await })
            })
        };
        let reader = tokio::spawn(async move {
            if let Err(error) = read(ring, &reading).await {
                tracing::error!(%error, "the kernel's events cannot be read any more");
            }
        });
        Ok(Kernel { control, reader, first, tells_usage, shows })
    }

    /// For those who tell of signals and children: the records of these come first.
    pub fn first(&self) -> First {
        self.first.clone()
    }

    /// To ask who is a subreaper, or under Landlock.
    pub fn kin(&self, ghost_exe: FileId) -> Kin {
        Kin { control: self.control.clone(), ghost_exe }
    }

    /// Records lost since the load; only ever grows.
    pub fn dropped(&self) -> u64 {
        self.control.dropped().unwrap_or_default()
    }

    fn noted(&self, what: &str, result: bproc_bpf::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(%error, "{what}");
        }
    }

    /// Report the processes of this pid namespace, and of no other: numbers of namespaces are used again, and a
    /// former agent may have left one.
    pub fn add_space(&self, pid_ns: u64) {
        for former in self.control.spaces().unwrap_or_default() {
            if u64::from(former) != pid_ns {
                self.noted("leaving a former space", self.control.remove_space(former));
            }
        }
        self.noted("watching a space", self.control.add_space(pid_ns as u32));
    }

    /// No more.
    pub fn remove_space(&self, pid_ns: u64) {
        self.noted("leaving a space", self.control.remove_space(pid_ns as u32));
    }

    /// Report what a ghost cannot see, and let nobody trace it.
    pub fn add_ghost(&self, pid: Pid) {
        self.noted("watching a ghost", self.control.add_ghost(pid.get() as u32));
    }

    /// Report that a `bpsh` is killed.
    pub fn add_starter(&self, pid: Pid, starter: Starter) {
        self.noted("watching a bpsh", self.control.add_starter(pid.get() as u32, starter.0));
    }

    /// It has ended.
    pub fn remove_starter(&self, pid: Pid) {
        self.noted("leaving a bpsh", self.control.remove_starter(pid.get() as u32));
    }

    /// Each `bpsh` that a former agent told of.
    pub fn starters(&self) -> Vec<(Pid, Starter)> {
        let all = self.control.starters().unwrap_or_default();
        all.into_iter().filter_map(|(pid, name)| Some((Pid::new(pid as i32)?, Starter(name)))).collect()
    }

    /// No more.
    pub fn remove_ghost(&self, pid: Pid) {
        // It is gone from the map already when its end was reported twice.
        let _ = self.control.remove_ghost(pid.get() as u32);
        if self.shows {
            let _ = self.control.show_itself(pid.get() as u32);
        }
    }

    /// Whether [`Kernel::show`] does anything.
    pub fn shows(&self) -> bool {
        self.shows
    }

    /// Show these numbers where the ghost's are asked for.
    pub fn show(&self, pid: Pid, numbers: &Numbers) {
        if self.shows {
            self.noted("what a process does", self.control.show(pid.get() as u32, &Shown::new(numbers)));
        }
    }

    /// The process of a ghost that is going to end used this (`struct rusage`).
    pub fn set_usage(&self, pid: Pid, rusage: &[u8]) {
        let mut usage = Usage::default();
        if !self.tells_usage || rusage.len() != size_of::<Usage>() {
            return;
        }
        for (number, bytes) in usage.iter_mut().zip(rusage.as_chunks().0) {
            *number = u64::from_ne_bytes(*bytes);
        }
        self.noted("what a process used", self.control.set_usage(pid.get() as u32, &usage));
    }

    /// Report local processes from this pid on.
    pub fn set_boundary(&self, boundary: i32) {
        self.noted("the boundary of local pids", self.control.set_boundary(boundary as u32));
    }

    /// Let the process trace ghosts and choose pids.
    pub fn add_keeper(&self, pid: i32) {
        self.noted("letting the keeper trace", self.control.add_keeper(pid as u32));
    }

    /// Where the kernel enforces it, forks of a space stay within these blocks' outermost pids.
    pub fn set_leases(&self, pid_ns: u64, blocks: &[Block]) {
        let first = blocks.iter().map(|b| b.start).min();
        let end = blocks.iter().map(|b| b.end()).max();
        if let (Some(first), Some(end)) = (first, end) {
            let result = self.control.set_lease(pid_ns as u32, first as u32, end as u32 - 1);
            self.noted("the limits of a space's pids", result);
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Passes events on as they come.
async fn read<T>(ring: AsyncFd<OwnedFd>, reading: &Reader<T>) -> std::io::Result<()> {
    loop {
        // What comes from here on is told anew.
        ring.readable().await?.clear_ready();
        if !reading.pass_on().await {
            return Ok(());
        }
    }
}

/// Removes what is pinned in a directory.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(pins: &Path) -> Result<()> {
    Monitor::remove(pins).with_context(|| format!("removing eBPF pins in {}", pins.display()))
}

/// Prints what the kernel allows.
///
/// # Errors
/// None but writing.
pub fn probe(json: bool) -> Result<ExitCode> {
    let own = std::env::current_exe().context("finding this program")?;
    let libexec = own.parent().and_then(Path::parent).map(|p| p.join("libexec/bproc"));
    let object = libexec.unwrap_or_default().join("bproc.bpf.o");
    let probe = bproc_bpf::Capabilities::probe(&object);
    if json {
        println!("{}", probe.json());
    } else {
        print!("{probe}");
    }
    Ok(if probe.usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Names one life of the running kernel; empty where it does not say.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Release of the running kernel.
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
