//! What the programs watch: the maps that user space writes.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use bproc_common::event::Usage;
use bproc_common::shown::{SHOWN, Shown};

use crate::landlock::Landlock;
use crate::tasks::{self, Of};
use crate::{Error, Result, error::chain, misses};

/// Every map that must outlive the agent.
pub(crate) const MAPS: [&str; 15] = [
    "EVENTS", "DROPPED", "SPACES", "GHOSTS", "KEEPERS", "LEASES", "SETTINGS", "EXITED", "REMOTE", "CHILDREN", "REAPED",
    "CALLS", "REAPER", "SHOWN", "STARTERS",
];

const BOUNDARY: u32 = 0;
const SELF_PIDNS: u32 = 1;

struct Maps {
    spaces: HashMap<MapData, u32, u8>,
    ghosts: HashMap<MapData, u32, u8>,
    keepers: HashMap<MapData, u32, u8>,
    starters: HashMap<MapData, u32, u64>,
    leases: HashMap<MapData, u32, u64>,
    settings: Array<MapData, u32>,
    dropped: PerCpuArray<MapData, u64>,
    remote: HashMap<MapData, u32, Usage>,
    reaper: Array<MapData, u32>,
    /// The program that fills the one above, where the kernel has taken it.
    subreaper: Option<OwnedFd>,
    shown: HashMap<MapData, u32, [u8; SHOWN]>,
    /// The tracing programs, where they are pinned.
    programs: Vec<OwnedFd>,
    /// Held so that a monitor without pins keeps them, too.
    _others: [Map; 4],
}

/// Sets what is watched; cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct Control {
    maps: Arc<Mutex<Maps>>,
    /// Where the kernel has it and has taken the program that looks.
    landlock: Option<Arc<Landlock>>,
}

fn fault(name: &'static str) -> impl FnOnce(MapError) -> Error {
    move |error| Error::Map { name, why: chain(&error) }
}

/// An entry that is not there is as good as removed.
fn gone(result: Result<(), MapError>, name: &'static str) -> Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(fault(name)(error)),
    }
}

impl Control {
    pub(crate) fn new(
        take: &mut impl FnMut(&'static str) -> Result<Map>,
        (subreaper, landlock): (Option<OwnedFd>, Option<Landlock>),
        programs: Vec<OwnedFd>,
    ) -> Result<Control> {
        macro_rules! open {
            ($name:literal) => {
                take($name)?.try_into().map_err(fault($name))?
            };
        }
        let maps = Maps {
            spaces: open!("SPACES"),
            ghosts: open!("GHOSTS"),
            keepers: open!("KEEPERS"),
            starters: open!("STARTERS"),
            leases: open!("LEASES"),
            settings: open!("SETTINGS"),
            dropped: open!("DROPPED"),
            remote: open!("REMOTE"),
            reaper: open!("REAPER"),
            subreaper,
            programs,
            shown: open!("SHOWN"),
            _others: [take("EXITED")?, take("CHILDREN")?, take("REAPED")?, take("CALLS")?],
        };
        Ok(Control { maps: Arc::new(Mutex::new(maps)), landlock: landlock.map(Arc::new) })
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the processes of a pid namespace from now on (`stat` of `/proc/PID/ns/pid` gives its inode number).
    /// Remove it before the namespace ends, or hold the namespace open: the
    /// kernel gives the number to the next one.
    ///
    /// # Errors
    /// [`Error::Map`], here and below, when the kernel refuses the change.
    pub fn add_space(&self, inum: u32) -> Result<()> {
        let done = self.maps().spaces.insert(inum, 1, 0);
        done.map_err(fault("SPACES"))
    }

    /// Forgets a pid namespace.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn remove_space(&self, inum: u32) -> Result<()> {
        gone(self.maps().spaces.remove(&inum), "SPACES")
    }

    /// The pid namespaces that are reported.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn spaces(&self) -> Result<Vec<u32>> {
        let maps = self.maps();
        maps.spaces.keys().map(|key| key.map_err(fault("SPACES"))).collect()
    }

    /// Reports SIGKILL, SIGSTOP and SIGCONT to a ghost (pid in the initial namespace), and guards it.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn add_ghost(&self, host_pid: u32) -> Result<()> {
        let done = self.maps().ghosts.insert(host_pid, 1, 0);
        done.map_err(fault("GHOSTS"))
    }

    /// Forgets a ghost; do so before it is reaped, or its number may be another's.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn remove_ghost(&self, host_pid: u32) -> Result<()> {
        gone(self.maps().ghosts.remove(&host_pid), "GHOSTS")
    }

    /// Reports SIGKILL to a process (pid in the initial namespace) with this name.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn add_starter(&self, host_pid: u32, name: u64) -> Result<()> {
        let done = self.maps().starters.insert(host_pid, name, 0);
        done.map_err(fault("STARTERS"))
    }

    /// Forgets one; do so soon after its end.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn remove_starter(&self, host_pid: u32) -> Result<()> {
        gone(self.maps().starters.remove(&host_pid), "STARTERS")
    }

    /// Those that are registered, and their names.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn starters(&self) -> Result<Vec<(u32, u64)>> {
        let maps = self.maps();
        maps.starters.iter().map(|entry| entry.map_err(fault("STARTERS"))).collect()
    }

    /// Lets a process of ours (agent, keeper, init of a space) trace ghosts and choose pids.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn add_keeper(&self, host_pid: u32) -> Result<()> {
        let done = self.maps().keepers.insert(host_pid, 1, 0);
        done.map_err(fault("KEEPERS"))
    }

    /// Takes that right back.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn remove_keeper(&self, host_pid: u32) -> Result<()> {
        gone(self.maps().keepers.remove(&host_pid), "KEEPERS")
    }

    /// Reports processes of the master's own from this pid on as BEYOND; 0 switches it off.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn set_boundary(&self, first_foreign: u32) -> Result<()> {
        let done = self.maps().settings.set(BOUNDARY, first_foreign, 0);
        done.map_err(fault("SETTINGS"))
    }

    pub(crate) fn set_self_pidns(&self, inum: u32) -> Result<()> {
        let done = self.maps().settings.set(SELF_PIDNS, inum, 0);
        done.map_err(fault("SETTINGS"))
    }

    /// Refuses forks in a pid namespace (EAGAIN) while its next pid is not in `first..=last`.
    /// Works only where `guard_lease` is attached.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn set_lease(&self, inum: u32, first: u32, last: u32) -> Result<()> {
        let lease = u64::from(first) | u64::from(last) << 32;
        let done = self.maps().leases.insert(inum, lease, 0);
        done.map_err(fault("LEASES"))
    }

    /// Refuses no forks any more in a pid namespace.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn remove_lease(&self, inum: u32) -> Result<()> {
        gone(self.maps().leases.remove(&inum), "LEASES")
    }

    /// What the process of a ghost (pid in the initial namespace) used, for whoever waits for the ghost; say it before
    /// the ghost ends. It is forgotten when the ghost is reaped, which works only where `usage_release` is attached.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn set_usage(&self, host_pid: u32, usage: &Usage) -> Result<()> {
        let done = self.maps().remote.insert(host_pid, usage, 0);
        done.map_err(fault("REMOTE"))
    }

    /// The nearest ancestor of a process (numbers of the caller's pid namespace) that is a subreaper, as far as it looks: 16
    /// generations. `None` where there is none, and where the kernel has not taken the program.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn subreaper(&self, pid: u32) -> Result<Option<u32>> {
        let mut maps = self.maps();
        if maps.subreaper.is_none() {
            return Ok(None);
        }
        // Of one that has ended nothing is noted: what was there is not to be taken for its.
        maps.reaper.set(0, 0, 0).map_err(fault("REAPER"))?;
        let look = |program| tasks::look(program, Of::Thread(pid))?.read(&mut [0; 8]);
        if maps.subreaper.as_ref().is_none_or(|program| look(program).is_err()) {
            return Ok(None);
        }
        let found = maps.reaper.get(&0, 0).map_err(fault("REAPER"))?;
        Ok(Some(found).filter(|number| *number > 0))
    }

    /// Whether a thread of a process (number of the caller's pid namespace) is under Landlock, as far as that can be known: see
    /// the feature `landlock`. One that has ended is not.
    ///
    /// # Errors
    /// When the kernel could not look.
    pub fn is_under_landlock(&self, pid: u32) -> io::Result<bool> {
        self.landlock.as_ref().map_or(Ok(false), |landlock| landlock.holds(pid))
    }

    /// Shows this in `/proc` instead of what a ghost (pid in the initial namespace) does itself. It works only where
    /// `shown_stat`, `shown_status` and `shown_read` are attached.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn show(&self, host_pid: u32, shown: &Shown) -> Result<()> {
        let done = self.maps().shown.insert(host_pid, shown.bytes(), 0);
        done.map_err(fault("SHOWN"))
    }

    /// Shows a ghost as it is again.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn show_itself(&self, host_pid: u32) -> Result<()> {
        gone(self.maps().shown.remove(&host_pid), "SHOWN")
    }

    /// Shows all ghosts as they are again.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn show_none(&self) -> Result<()> {
        let mut maps = self.maps();
        let all: Vec<u32> = maps.shown.keys().filter_map(|key| key.ok()).collect();
        all.into_iter().try_for_each(|pid| gone(maps.shown.remove(&pid), "SHOWN"))
    }

    /// Events lost since the load because nobody read in time, or a program missed them: never 0 again
    /// once it is not, so compare with the value before.
    ///
    /// # Errors
    /// As [`Control::add_space`].
    pub fn dropped(&self) -> Result<u64> {
        let counts = self.maps().dropped.get(&0, 0).map_err(fault("DROPPED"))?;
        Ok(counts.iter().sum::<u64>() + misses::count(&self.maps().programs))
    }
}
