//! Processes that are caught in the middle of a move: at each named point of it (`bproc-mover/src/fault.rs`) a mover
//! stops, and a test does what it likes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Role, eventually};
use crate::procs::{self, Proc};
use crate::run::{self, tie};
use crate::traveller::{go, place};

/// For each step.
pub const LIMIT: Duration = Duration::from_secs(40);

/// In the order in which a move comes by.
pub const POINTS: [&str; 16] = [
    "source-begins",
    "target-begins",
    "source-frozen",
    "source-sent",
    "target-filled",
    "target-built",
    "target-ready",
    "source-written",
    "source-may-go",
    "source-leaves",
    "source-gone",
    "target-goes",
    "target-runs",
    "target-told",
    "source-knows",
    "source-ends",
];

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Source.
    pub from: Role,
    /// Target.
    pub to: Role,
}

/// One of each kind.
pub const WAYS: [Way; 3] = [
    Way { from: Role::Master, to: Role::Node(0) },
    Way { from: Role::Node(0), to: Role::Node(1) },
    Way { from: Role::Node(0), to: Role::Master },
];

/// A place as `bpmove` is told it.
pub fn name(role: Role) -> String {
    match role {
        Role::Master => "master".into(),
        Role::Node(number) => number.to_string(),
    }
}

/// The movers of a cluster.
pub fn movers(cluster: &Cluster) -> Vec<Proc> {
    let program = cluster.dir().join("libexec/bproc/bproc-mover");
    // One that has done its work stands ready for the next.
    procs::all().into_iter().filter(|p| p.exe == program && p.comm == "bproc-moving").collect()
}

/// The file in which the point stands at which the next mover stops.
pub fn stop_at(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("libexec/bproc/bproc-mover.stop-at")
}

/// What whoever asks for a move is told.
pub fn told(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("log/asker")
}

/// Asks for a move of a process, and returns who asks and the mover that has stopped at the point.
///
/// # Errors
/// None stops.
pub fn hold(cluster: &Cluster, pid: i32, point: &str, to: Role) -> Result<(Child, Proc)> {
    fs::write(stop_at(cluster), point)?;
    let log = fs::File::create(told(cluster))?;
    let mut command = cluster.command("bpmove");
    let mut asker = tie(command.args([&pid.to_string(), &name(to)]))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let stopped = eventually("a mover stops at the point", LIMIT, || {
        if let Some(status) = asker.try_wait()? {
            let said = fs::read_to_string(told(cluster)).unwrap_or_default();
            bail!("bpmove ended before: {status} {said}");
        }
        Ok(movers(cluster).into_iter().find(|m| m.state == 'T').ok_or_else(|| "none does".to_owned()))
    })?;
    Ok((asker, stopped))
}

/// The end of whoever asked; then nobody stops any more.
///
/// # Errors
/// He does not end.
pub fn settle(cluster: &Cluster, mut asker: Child) -> Result<i32> {
    let done = run::wait(&mut asker, LIMIT).context("bpmove")?;
    let _ = fs::remove_file(stop_at(cluster));
    cluster.wait_up()?;
    Ok(done)
}

/// A running `ticks.c`. Dies with the test.
pub struct Ticks<'c> {
    cluster: &'c Cluster,
    program: PathBuf,
    child: Child,
    ticks: PathBuf,
}

impl<'c> Ticks<'c> {
    /// Starts it on the master, with so many threads.
    ///
    /// # Errors
    /// It does not run.
    pub fn start(cluster: &'c Cluster, program: &Path, threads: &str) -> Result<Ticks<'c>> {
        let ticks = cluster.dir().join("log/ticks.txt");
        let _ = fs::remove_file(&ticks);
        let mut command = Command::new(program);
        command.arg(&ticks).arg(threads).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: only sets the close-on-exec flag of what whoever started the tests left open.
        unsafe {
            command.pre_exec(|| {
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4);
                Ok(())
            });
        }
        let child = tie(&mut command).spawn()?;
        let ticks = Ticks { cluster, program: program.to_owned(), child, ticks };
        ensure!(ticks.goes_on()?, "it ended before it moved");
        Ok(ticks)
    }

    /// Its number everywhere.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until it writes on. False: it has ended instead.
    ///
    /// # Errors
    /// It stands still.
    pub fn goes_on(&self) -> Result<bool> {
        let length = || fs::metadata(&self.ticks).map_or(0, |m| m.len());
        let before = length();
        eventually("it goes on", LIMIT, || {
            Ok(match length() > before {
                true => Ok(true),
                false if self.has_ended() => Ok(false),
                false => Err("it stands still".into()),
            })
        })
    }

    /// It has, though perhaps nobody has waited for it.
    pub fn has_ended(&self) -> bool {
        Proc::read(self.pid()).is_none_or(|p| p.state == 'Z')
    }

    /// Its exit code, or minus the signal.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self) -> Result<i32> {
        run::wait(&mut self.child, LIMIT)
    }

    /// It has written each number once: it never ran twice.
    ///
    /// # Errors
    /// It did.
    pub fn ran_once(&self) -> Result<()> {
        let text = fs::read_to_string(&self.ticks)?;
        for (i, line) in text.lines().enumerate() {
            ensure!(line == i.to_string(), "it ran twice: {line} at line {i}");
        }
        Ok(())
    }

    /// Brings it to its source.
    ///
    /// # Errors
    /// It does not come there.
    pub fn begin(&self, way: Way) -> Result<()> {
        if way.from != Role::Master {
            go(self.cluster, self.pid(), &name(way.from)).context("to its source")?;
        }
        Ok(())
    }

    /// As [`hold`].
    ///
    /// # Errors
    /// None stops.
    pub fn hold(&self, point: &str, way: Way) -> Result<(Child, Proc)> {
        hold(self.cluster, self.pid(), point, way.to)
    }

    /// As [`settle`].
    ///
    /// # Errors
    /// He does not end.
    pub fn settle(&self, asker: Child) -> Result<i32> {
        settle(self.cluster, asker)
    }

    /// The one place where it runs, by what the kernel and what the master says; none when it was killed.
    ///
    /// # Errors
    /// They do not come to agree.
    pub fn place(&self) -> Result<Option<String>> {
        eventually("it is in one place", LIMIT, || {
            let there: Vec<Proc> = procs::all().into_iter().filter(|p| p.exe == self.program).collect();
            let told = place(self.cluster, self.pid())?;
            match there.as_slice() {
                [] if self.has_ended() => Ok(Ok(None)),
                [one] => {
                    let on_master = !one.is_inside();
                    let fits = one.inner() == self.pid()
                        && on_master == (told == "master")
                        && self.space_of(&told) == one.space;
                    Ok(if fits { Ok(Some(told)) } else { Err(format!("{one:?}, the master says {told}")) })
                }
                more => Ok(Err(format!("{more:?}, the master says {told}"))),
            }
        })
    }

    /// Whoever has its number at a place: itself, what is to become it, or what stands there for it.
    pub fn number_at(&self, role: Role) -> Option<Proc> {
        let space = self.space_of(&name(role));
        procs::all().into_iter().find(|p| p.space == space && p.inner() == self.pid())
    }

    /// Inode of the pid namespace of a node's processes, or the master's.
    fn space_of(&self, place: &str) -> u64 {
        let Ok(node) = place.parse::<i32>() else {
            return Proc::read(std::process::id() as i32).map_or(0, |p| p.space);
        };
        let inits = self.cluster.inits();
        let of = |p: &&Proc| {
            let line = fs::read(format!("/proc/{}/cmdline", p.pid)).unwrap_or_default();
            String::from_utf8_lossy(&line).trim_end_matches('\0').ends_with(&format!("--node {node}"))
        };
        inits.iter().find(of).map_or(0, |p| p.space)
    }

    /// Nothing of a move is left.
    ///
    /// # Errors
    /// Something is.
    pub fn nothing_is_left(cluster: &Cluster) -> Result<()> {
        eventually("no mover is left", LIMIT, || {
            let left = movers(cluster);
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })?;
        cluster.quiet()
    }
}

impl Drop for Ticks<'_> {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
