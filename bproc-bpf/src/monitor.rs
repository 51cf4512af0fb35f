//! The loaded programs: what they watch, and the ring that they report through.

use std::{
    ops::Deref,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{Program, links::FdLink},
};
use bproc_common::{event::Event, wire::Record};

use crate::{
    Error, Result,
    control::{Control, MAPS},
    error::chain,
    landlock::{self, Landlock},
    logs::{self, Logs},
    misses, offsets, pins, tasks,
};

/// Part of the pins' name; grows when maps or events change their meaning.
const ABI: u32 = 5;
/// The ring when nothing else is asked for: 35,000 events.
const RING_BYTES: u32 = 4 << 20;

/// What this machine is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs processes of a space.
    Node,
    /// Holds ghosts.
    Master,
    /// Both at once.
    Both,
}

impl Role {
    /// Whether a machine of this role loads what is for `others`.
    fn is(self, others: Role) -> bool {
        self == others || self == Role::Both || others == Role::Both
    }
}

/// How to load and where to keep the programs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The eBPF object file (`libexec/bproc/bproc.bpf.o`).
    pub object: PathBuf,
    /// What to load.
    pub role: Role,
    /// Where to pin, on a bpffs or to become one. `None`: all ends with the [`Monitor`].
    pub pin_dir: Option<PathBuf>,
    /// Inode number of the master's own pid namespace; `None`: that of the caller.
    pub self_pidns: Option<u32>,
    /// Bytes of the ring, a power of two of at least a page; `None`: 4 MiB.
    pub ring_bytes: Option<u32>,
}

impl Config {
    /// The usual configuration for an object and a role, without pins.
    pub fn new(object: impl Into<PathBuf>, role: Role) -> Config {
        Config { object: object.into(), role, pin_dir: None, self_pidns: None, ring_bytes: None }
    }
}

/// One program, and whether it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name of the program.
    pub name: &'static str,
    /// Whether it runs.
    pub attached: bool,
    /// Why it does not, when that is known.
    pub why: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A typed tracepoint; required.
    Trace,
    /// An LSM hook, or one that needs a trampoline; done without where the kernel refuses it.
    Better,
}

/// Every program: name, hook, kind, and who needs it.
const PROGRAMS: [(&str, &str, Kind, Role); 17] = [
    ("process_fork", "sched_process_fork", Kind::Trace, Role::Both),
    ("signal_generate", "signal_generate", Kind::Trace, Role::Both),
    ("process_exec", "sched_process_exec", Kind::Trace, Role::Node),
    ("process_exit", "sched_process_exit", Kind::Trace, Role::Node),
    ("process_free", "sched_process_free", Kind::Trace, Role::Node),
    ("process_rename", "task_rename", Kind::Trace, Role::Node),
    ("signal_deliver", "signal_deliver", Kind::Trace, Role::Node),
    ("guard_ptrace", "ptrace_access_check", Kind::Better, Role::Both),
    ("guard_lease", "task_alloc", Kind::Better, Role::Node),
    ("usage_release", "release_task", Kind::Better, Role::Master),
    ("usage_wait4", "__x64_sys_wait4", Kind::Better, Role::Master),
    ("usage_waitid", "__x64_sys_waitid", Kind::Better, Role::Master),
    ("usage_getrusage", "__x64_sys_getrusage", Kind::Better, Role::Master),
    ("usage_times", "__x64_sys_times", Kind::Better, Role::Master),
    ("shown_stat", "proc_tgid_stat", Kind::Better, Role::Master),
    ("shown_status", "proc_pid_status", Kind::Better, Role::Master),
    ("shown_read", "seq_read", Kind::Better, Role::Master),
];

/// The loaded programs and their events. What is watched is set through the
/// [`Control`] that this dereferences to.
pub struct Monitor {
    control: Control,
    events: RingBuf<MapData>,
    logs: Option<Logs>,
    features: Vec<Feature>,
    resumed: bool,
    /// Programs and links of a monitor without pins: dropped with it.
    _loaded: Option<Ebpf>,
}

impl Deref for Monitor {
    type Target = Control;
    fn deref(&self) -> &Control {
        &self.control
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Monitor {
    /// Loads and attaches the programs, or takes over those that an earlier
    /// agent left pinned, with the events that came since.
    ///
    /// # Errors
    /// When the kernel's BTF, the object, a tracepoint program or the pins fail.
    /// A refused program that is not needed is no error; see [`Monitor::features`].
    pub fn start(config: &Config) -> Result<Monitor> {
        let bytes = std::fs::read(&config.object)
            .map_err(|error| Error::Object { path: config.object.clone(), why: error.to_string() })?;
        let monitor = match &config.pin_dir {
            None => Monitor::load(config, &bytes, None)?,
            Some(dir) => {
                pins::prepare(dir)?;
                let name = set_name(config, &bytes);
                match pins::sweep(dir, &name)? {
                    Some(set) => match Monitor::reopen(config, &set) {
                        Ok(monitor) => monitor,
                        Err(error) => {
                            tracing::warn!(%error, "pinned eBPF maps are unusable, loading anew");
                            pins::remove_set(&set)?;
                            Monitor::load(config, &bytes, Some((dir, &name)))?
                        }
                    },
                    None => Monitor::load(config, &bytes, Some((dir, &name)))?,
                }
            }
        };
        let inum = match config.self_pidns {
            Some(inum) => inum,
            None => own_pidns()?,
        };
        monitor.control.set_self_pidns(inum)?;
        give_back_memory();
        Ok(monitor)
    }

    /// Removes everything that was pinned under a directory, which detaches the
    /// programs unless someone holds them open, and unmounts it if it is a mount.
    ///
    /// # Errors
    /// [`Error::Pin`] when something cannot be removed.
    pub fn remove(pin_dir: &Path) -> Result<()> {
        pins::remove(pin_dir)
    }

    /// Whether an earlier agent's programs were taken over.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Which programs run.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// A handle that sets what is watched, for other threads.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Becomes readable when there are events.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Hands over all events that are there, without waiting, and tells how many.
    pub fn drain(&mut self, mut each: impl FnMut(&Event)) -> usize {
        let mut count = 0;
        while let Some(bytes) = self.events.next() {
            if let Some(event) = Event::get(&bytes) {
                each(&event);
                count += 1;
            }
        }
        if let Some(logs) = &mut self.logs {
            logs.flush();
        }
        count
    }

    fn load(config: &Config, bytes: &[u8], pin: Option<(&Path, &str)>) -> Result<Monitor> {
        let mut ebpf = load_object(config, bytes)?;
        let btf = kernel_btf()?;
        let set = pin.map(|(dir, _)| pins::begin(dir)).transpose()?;
        if let Some(set) = &set {
            for name in MAPS {
                let map = ebpf.map(name).ok_or_else(|| no_map(name))?;
                map.pin(set.join(format!("map-{name}"))).map_err(|error| Error::Map { name, why: chain(&error) })?;
            }
        }
        let mut features = Vec::new();
        for (name, hook, kind, _) in PROGRAMS.into_iter().filter(|(.., role)| config.role.is(*role)) {
            let link = match attach(&mut ebpf, name, hook, &btf, set.is_some()) {
                Ok(link) => link,
                Err(why) if kind == Kind::Better => {
                    tracing::info!(program = name, %why, "the kernel refused a program that is not needed");
                    features.push(Feature { name, attached: false, why });
                    continue;
                }
                Err(why) => return Err(Error::Program { name, why }),
            };
            if let (Some(set), Some(link)) = (&set, link) {
                link.pin(set.join(format!("link-{name}")))
                    .map_err(|error| Error::Program { name, why: chain(&error) })?;
            }
            features.push(Feature { name, attached: true, why: String::new() });
        }
        let programs = set.as_deref().map(|set| tracing_programs(&features, set)).unwrap_or_default();
        let lookers = lookers(&mut features, |name| tasks::load(&mut ebpf, &btf, name, set.as_deref()));
        if let Some((dir, name)) = pin {
            pins::publish(dir, name)?;
        }
        let logs = logs::of_loaded(&mut ebpf);
        let mut take = |name: &'static str| ebpf.take_map(name).ok_or_else(|| no_map(name));
        Ok(Monitor {
            events: ring(take("EVENTS")?)?,
            control: Control::new(&mut take, lookers, programs)?,
            logs,
            features,
            resumed: false,
            _loaded: set.is_none().then_some(ebpf),
        })
    }

    fn reopen(config: &Config, set: &Path) -> Result<Monitor> {
        let links = pins::links(set)?;
        let mut features = Vec::new();
        for (name, _, kind, _) in PROGRAMS.into_iter().filter(|(.., role)| config.role.is(*role)) {
            let attached = links.iter().any(|link| link == name);
            if !attached && kind == Kind::Trace {
                return Err(Error::Program { name, why: "its link is missing among the pins".into() });
            }
            features.push(Feature {
                name,
                attached,
                why: if attached { String::new() } else { "refused when the programs were loaded".into() },
            });
        }
        let programs = tracing_programs(&features, set);
        let lookers = lookers(&mut features, |name| tasks::reopen(set, name));
        let mut take = |name: &'static str| {
            MapData::from_pin(set.join(format!("map-{name}")))
                .and_then(Map::from_map_data)
                .map_err(|error| Error::Map { name, why: chain(&error) })
        };
        Ok(Monitor {
            events: ring(take("EVENTS")?)?,
            control: Control::new(&mut take, lookers, programs)?,
            logs: logs::of_pinned(&set.join("link-process_fork")),
            features,
            resumed: true,
            _loaded: None,
        })
    }
}

/// Parses the object and makes its maps, with the offsets of the running kernel.
pub(crate) fn load_object(config: &Config, bytes: &[u8]) -> Result<Ebpf> {
    let mut raw = vec![0; <bproc_common::event::Offsets as Record>::SIZE];
    offsets::resolve()?.put(&mut raw);
    let processes = most_processes();
    EbpfLoader::new()
        .override_global("OFFSETS", raw.as_slice(), true)
        .map_max_entries("GHOSTS", processes)
        .map_max_entries("EXITED", processes)
        .map_max_entries("SHOWN", processes)
        .map_max_entries("EVENTS", config.ring_bytes.unwrap_or(RING_BYTES))
        .load(bytes)
        .map_err(|error| Error::Object { path: config.object.clone(), why: chain(&error) })
}

/// How many processes this machine can hold, by its memory. A hash map takes 16 bytes for each entry that it could have,
/// also without preallocation, and clearing them is most of what making it takes.
fn most_processes() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap_or_default();
    text.trim().parse().unwrap_or(1 << 18).clamp(1 << 12, 1 << 22)
}

/// The kernel's BTF as the loader wants it.
pub(crate) fn kernel_btf() -> Result<Btf> {
    Btf::from_sys_fs().map_err(|error| Error::Btf { path: offsets::BTF, why: chain(&error) })
}

/// Loads and attaches one program; gives its link away when it is to be pinned.
pub(crate) fn attach(ebpf: &mut Ebpf, name: &str, hook: &str, btf: &Btf, take: bool) -> Result<Option<FdLink>, String> {
    let program = ebpf.program_mut(name).ok_or("it is not in the object; is the object from this build?")?;
    // Their types have these methods in common, but no trait.
    macro_rules! attach {
        ($program:ident) => {{
            $program.load(hook, btf).map_err(|error| chain(&error))?;
            let id = $program.attach().map_err(|error| chain(&error))?;
            if !take {
                return Ok(None);
            }
            let link = $program.take_link(id).map_err(|error| chain(&error))?;
            Ok(Some(link.into()))
        }};
    }
    match program {
        Program::BtfTracePoint(program) => attach!(program),
        Program::FEntry(program) => attach!(program),
        Program::FExit(program) => attach!(program),
        Program::Lsm(program) => attach!(program),
        _ => Err("it is of an unexpected type".into()),
    }
}

/// The programs that look at tasks when they are asked.
fn lookers(
    features: &mut Vec<Feature>,
    mut get: impl FnMut(&'static str) -> Result<OwnedFd, String>,
) -> (Option<OwnedFd>, Option<Landlock>) {
    let mut note = |name, why: Result<(), String>| {
        features.push(Feature { name, attached: why.is_ok(), why: why.err().unwrap_or_default() });
    };
    let subreaper = get(tasks::SUBREAPER);
    note(tasks::SUBREAPER, subreaper.as_ref().map(drop).map_err(Clone::clone));
    let landlock = landlock::find(get(tasks::LANDLOCK));
    if let Err(why) = &landlock {
        tracing::warn!(%why, "nobody can tell who is under Landlock: such processes move, and leave its rules behind");
    }
    let none = || "this kernel has no Landlock".to_owned();
    note(
        tasks::LANDLOCK,
        landlock.as_ref().map_err(Clone::clone).and_then(|found| found.as_ref().map(drop).ok_or_else(none)),
    );
    (subreaper.ok(), landlock.ok().flatten())
}

/// Those whose records must not be missed.
fn tracing_programs(features: &[Feature], set: &Path) -> Vec<OwnedFd> {
    let is_traced = |feature: &&Feature| {
        feature.attached && PROGRAMS.iter().any(|(name, _, kind, _)| *name == feature.name && *kind == Kind::Trace)
    };
    let links = features.iter().filter(is_traced).map(|feature| set.join(format!("link-{}", feature.name)));
    links.filter_map(|link| misses::program_of(&link)).collect()
}

fn no_map(name: &'static str) -> Error {
    Error::Map { name, why: "it is not in the object; is the object from this build?".into() }
}

fn ring(map: Map) -> Result<RingBuf<MapData>> {
    RingBuf::try_from(map).map_err(|error| Error::Map { name: "EVENTS", why: chain(&error) })
}

/// The kernel's BTF takes tens of megabytes while it is parsed. What stays in
/// the heap makes every later fork of this process slower.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: releases free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn own_pidns() -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    let path = Path::new("/proc/self/ns/pid");
    let meta =
        std::fs::metadata(path).map_err(|source| Error::Pin { what: "examine", path: path.to_owned(), source })?;
    Ok(meta.ino() as u32)
}

/// Names a set of pins by all that went into it: another object, another ring
/// or another role is another set. A bpffs does not outlive its kernel.
fn set_name(config: &Config, bytes: &[u8]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let ring = config.ring_bytes.unwrap_or(RING_BYTES).to_ne_bytes();
    for byte in bytes.iter().chain(&ring).chain(&[config.role as u8]) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("v{ABI}-{hash:016x}")
}
