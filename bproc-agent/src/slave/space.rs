//! The space: the pid namespace of one life of the node, and the record of it that an agent's successor finds.

use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_core::lease::Block;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::{FileId, Process};
use bproc_sys::space::{Options, TimeOffsets, spawn_init};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The kernel's PF_FORKNOEXEC: has executed no program since it was forked.
const FORKED_NO_EXEC: u32 = 0x40;

/// A running space.
#[derive(Debug)]
pub struct Space {
    /// Its init as seen from here.
    pub init: PidFd,
    /// What is written down of it.
    pub record: Record,
    path: PathBuf,
    orders: File,
}

/// What an agent's successor needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Init's pid here.
    pub init_pid: i32,
    /// Init's start in clock ticks after boot.
    pub init_start: u64,
    /// Inode number of the pid namespace.
    pub pid_ns: u64,
    /// Life of the node.
    pub epoch: u64,
    /// Blocks of pids: start and length.
    pub blocks: Vec<(i32, i32)>,
    /// Life of the master's agent whose orders are counted.
    pub master_epoch: u64,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME in the space against the machine's, nanoseconds.
    #[serde(default)]
    pub clocks: (i64, i64),
}

impl Record {
    /// Of the space's clocks.
    pub fn offsets(&self) -> TimeOffsets {
        TimeOffsets { monotonic: self.clocks.0, boottime: self.clocks.1 }
    }

    /// For the next life.
    pub fn set_offsets(&mut self, offsets: TimeOffsets) {
        self.clocks = (offsets.monotonic, offsets.boottime);
    }
}

impl Space {
    /// Takes over the space that a former agent left in `dir`, or makes a new one. The flag is true for a former one.
    pub fn find_or_make(
        dir: &Path,
        ghost: &Path,
        ghost_exe: FileId,
        title: &str,
        lease_s: u32,
    ) -> Result<(Space, bool)> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        if let Some(space) = Space::find(dir, ghost_exe) {
            return Ok((space, true));
        }
        // Before a master is known nobody knows better clocks.
        Ok((Space::make(dir, ghost, title, lease_s, TimeOffsets { monotonic: 0, boottime: 0 })?, false))
    }

    fn find(dir: &Path, ghost_exe: FileId) -> Option<Space> {
        let path = dir.join("space.json");
        let record: Record = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let pid = Pid::new(record.init_pid)?;
        let process = Process::open(pid).ok()?;
        let same = process.stat().ok()?.starttime == record.init_start && process.exe().ok()? == ghost_exe;
        let init = PidFd::open(pid).ok().filter(|_| same)?;
        let orders = open_orders(dir).ok()?;
        Some(Space { init, record, path, orders })
    }

    /// A new life: a namespace with nothing but init.
    pub fn make(dir: &Path, ghost: &Path, title: &str, lease_s: u32, clocks: TimeOffsets) -> Result<Space> {
        let title = OsString::from(title);
        let options = Options {
            argv0: &title,
            time_offsets: Some(clocks).filter(|c| (c.monotonic, c.boottime) != (0, 0)),
            mount_proc: true,
            oom_score_adj: Some(-900),
            lease_s,
            tied: false,
        };
        let socket = socket_in(dir);
        let init = spawn_init(ghost, &socket, options).or_else(|error| {
            if options.time_offsets.is_none() || ![libc::EINVAL, libc::ENOSYS, libc::EPERM].contains(&error.errno()) {
                return Err(error);
            }
            tracing::warn!(%error, "no time namespace: processes that move here see another CLOCK_MONOTONIC");
            spawn_init(ghost, &socket, Options { time_offsets: None, ..options })
        });
        let init = init.context("making the space's pid namespace")?;
        let pid = init.pidfd.pid();
        let mut epoch = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut epoch)?;
        let record = Record {
            init_pid: pid.get(),
            init_start: Process::open(pid)?.stat()?.starttime,
            pid_ns: init.pid_ns,
            epoch: u64::from_ne_bytes(epoch).max(1),
            blocks: Vec::new(),
            master_epoch: 0,
            clocks: (clocks.monotonic, clocks.boottime),
        };
        let orders = open_orders(dir)?;
        orders.write_all_at(&0u64.to_ne_bytes(), 0)?;
        let space = Space { init: init.pidfd, record, path: dir.join("space.json"), orders };
        space.save()?;
        Ok(space)
    }

    /// Writes the record, in one piece.
    pub fn save(&self) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&self.record)?)
            .and_then(|()| std::fs::rename(&new, &self.path))
            .with_context(|| format!("writing {}", self.path.display()))
    }

    /// Notes that orders up to `number` were carried out.
    pub fn note_orders(&self, number: u64) {
        if let Err(error) = self.orders.write_all_at(&number.to_ne_bytes(), 0) {
            tracing::warn!(%error, "noting the orders carried out; after a restart some may be repeated");
        }
    }

    /// Newest order noted.
    pub fn orders_noted(&self) -> u64 {
        let mut bytes = [0; 8];
        self.orders.read_exact_at(&mut bytes, 0).map_or(0, |()| u64::from_ne_bytes(bytes))
    }

    /// Blocks of pids.
    pub fn blocks(&self) -> Vec<Block> {
        self.record.blocks.iter().map(|(start, length)| Block { start: *start, length: *length }).collect()
    }

    /// Kills every process of the space and waits until it is gone.
    pub fn end(&self) -> Result<()> {
        match self.init.send_signal(libc::SIGKILL) {
            Err(error) if !error.is_gone() => return Err(error).context("ending the space"),
            _ => {}
        }
        self.init.wait_exit(std::time::Duration::from_secs(10)).context("waiting for the end of the space")?;
        // It is this agent's child only if this agent made it.
        let _ = self.init.try_reap();
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }
}

fn open_orders(dir: &Path) -> Result<File> {
    let path = dir.join("orders");
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Where the ghosts of a node connect.
pub fn socket_in(dir: &Path) -> PathBuf {
    dir.join("ghost.sock")
}

/// A process found in the namespace.
#[derive(Clone, Debug)]
pub struct Found {
    /// In the space.
    pub pid: i32,
    /// Here.
    pub host_pid: i32,
    /// Parent in the space.
    pub ppid: i32,
    /// Group in the space.
    pub pgid: i32,
    /// Session in the space.
    pub sid: i32,
    /// State letter.
    pub state: u8,
    /// Its program is the ghost's: a skeleton or init. Or was, of a zombie: a start that failed.
    pub ghost: bool,
    /// Owner.
    pub uid: u32,
    /// Group of the owner.
    pub gid: u32,
    /// Name.
    pub comm: Vec<u8>,
    /// Wait status of a zombie.
    pub status: i32,
}

impl Found {
    /// It has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// All processes of a pid namespace, parents before children as far as pids tell.
pub fn inventory(pid_ns: u64, ghost_exe: FileId) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::new) else { continue };
        // Whoever ends meanwhile is not there.
        if let Some(found) = look_at(pid, Some(pid_ns), ghost_exe) {
            all.push(found);
        }
    }
    all.sort_by_key(|f| f.host_pid);
    Ok(all)
}

/// One process; `None` when it is gone, or not in the namespace asked for. A zombie has no namespace any more: it is
/// where its parent is.
pub fn look_at(host: Pid, pid_ns: Option<u64>, ghost_exe: FileId) -> Option<Found> {
    let process = Process::open(host).ok()?;
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    let parent = Pid::new(stat.ppid).and_then(|p| Process::open(p).ok());
    if let Some(wanted) = pid_ns {
        let of_parent = || parent.as_ref().and_then(|p| p.pid_ns().ok());
        if process.pid_ns().ok().or_else(of_parent) != Some(wanted) {
            return None;
        }
    }
    if status.ns_pids.len() < 2 {
        return None;
    }
    let inner = |all: &[i32]| all.last().copied().unwrap_or(0);
    let is_ghost = |process: &Process| process.exe().is_ok_and(|exe| exe == ghost_exe);
    let of_skeleton = parent.as_ref().is_some_and(is_ghost);
    let ppid = parent.and_then(|p| p.status().ok());
    let ppid = ppid.filter(|p| p.ns_pids.len() == status.ns_pids.len()).map_or(0, |p| inner(&p.ns_pids));
    // The child of a skeleton, and not left to init by its own parent: it has executed nothing, so it was never a program.
    let never_execed = stat.state == b'Z' && stat.flags & FORKED_NO_EXEC != 0 && of_skeleton && ppid > 1;
    Some(Found {
        pid: inner(&status.ns_pids),
        host_pid: host.get(),
        ppid,
        pgid: inner(&status.ns_pgids),
        sid: inner(&status.ns_sids),
        state: stat.state,
        ghost: never_execed || is_ghost(&process),
        uid: status.uids.real,
        gid: status.gids.real,
        comm: stat.comm,
        status: stat.exit_code,
    })
}
