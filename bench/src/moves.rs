//! Running processes go elsewhere: small ones and a large one, beside CRIU and a bare connection; and what the calls
//! of the library take beside the system's own.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bproc::{Client, Files, MoveRequest};

use crate::Setup;
use crate::cluster::Cluster;
use crate::criu::Criu;
use crate::measure::Samples;
use crate::programs::{self, Dir};
use crate::report::Report;
use crate::sys;

/// Node 0, node 1, and home.
const ROUND: [i32; 3] = [0, 1, -1];
const PYTHON: &str = "import os, time
os.write(1, b'r')
null = os.open('/dev/null', os.O_RDWR)
os.dup2(null, 1)
os.close(null)
time.sleep(1000000)";

/// Programs to move, compiled for the benchmark.
pub struct Programs {
    _dir: Dir,
    /// Measures calls of the library.
    pub calls: PathBuf,
    calls_static: PathBuf,
    small_static: PathBuf,
    small: PathBuf,
}

impl Programs {
    /// Compiles them.
    pub fn compile() -> Result<Self> {
        let dir = Dir::new("moves")?;
        let at = |name| dir.path().join(name);
        let programs = Self {
            calls: at("calls"),
            calls_static: at("calls-static"),
            small_static: at("hold-static"),
            small: at("hold"),
            _dir: dir,
        };
        let stage = Path::new("target/bproc");
        let hold = include_str!("../programs/hold.c");
        programs::cc(&programs.small_static, hold, &["-static"])?;
        programs::cc(&programs.small, hold, &[])?;
        let (include, lib) = (stage.join("include"), fs::canonicalize(stage.join("lib"))?);
        let calls = include_str!("../programs/calls.c");
        let (include, path) = (format!("-I{}", include.display()), format!("-Wl,-rpath,{}", lib.display()));
        let (shared, archive) = (format!("-L{}", lib.display()), lib.join("libbproc.a").display().to_string());
        programs::cc(&programs.calls, calls, &[&include, &shared, &path, "-lbproc"])?;
        programs::cc(&programs.calls_static, calls, &["-static", &include, &archive])?;
        Ok(programs)
    }
}

/// A child that stands ready, in a session of its own; ended and reaped with this value.
struct Ready {
    pid: i32,
}

impl Ready {
    fn start(line: &[&OsStr]) -> Result<Self> {
        let (program, arguments) = line.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        sys::tie(&mut command, true);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let ready = Self { pid: child.id() as i32 };
        let mut word = [0];
        child.stdout.take().context("no pipe")?.read_exact(&mut word).context("the program did not begin")?;
        Ok(ready)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // A child that was not reaped: the number is its own.
        if sys::kill(self.pid, libc::SIGKILL).is_ok() {
            let _ = sys::wait(self.pid);
        }
    }
}

/// Moves it this many times: milliseconds of standing still, and of the whole call.
fn moved(cluster: &Cluster, pid: i32, runs: usize) -> Result<(Samples, Samples)> {
    let mut client = Client::connect_to(&cluster.socket()).map_err(|e| anyhow::anyhow!("{e}"))?;
    let (mut still, mut whole) = (Samples::new(), Samples::new());
    for node in ROUND.into_iter().cycle().take(runs) {
        let request = MoveRequest { pid, node, flags: MoveRequest::FLAGS, files: Files::Carry };
        let start = sys::now();
        let moved = client.move_process(&request).map_err(|e| anyhow::anyhow!("process {pid} to {node}: {e}"))?;
        whole.add((sys::now() - start) as f64 / 1e6);
        still.add(moved.frozen_ns as f64 / 1e6);
    }
    Ok((still, whole))
}

fn by_criu(criu: &Criu, line: &[&OsStr], runs: usize) -> Result<Samples> {
    let mut both = Samples::new();
    for _ in 0..runs {
        let ready = Ready::start(line)?;
        let (dump, restore) = criu.dump_and_restore(ready.pid)?;
        both.add(dump + restore);
    }
    Ok(both)
}

fn calls(cluster: &Cluster, program: &Path, what: &str, runs: usize) -> Result<Samples> {
    let mut command = Command::new(program);
    command.args([what, &runs.to_string()]).env("BPROC_SOCKET", cluster.socket()).stdin(Stdio::null());
    let output = command.output()?;
    if !output.status.success() {
        bail!("calls {what}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| Ok(line.parse::<f64>()? / 1e6)).collect::<Result<Vec<f64>>>().map(Samples::from_iter)
}

/// As many bytes over a connection of this machine, into fresh memory or always the same. Milliseconds.
fn bare_connection(mib: usize, fresh: bool) -> Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let source = vec![1u8; mib << 20];
    std::thread::scope(|threads| {
        let start = sys::now();
        let sender = threads.spawn(move || TcpStream::connect(address)?.write_all(&source));
        let (mut stream, _) = listener.accept()?;
        if fresh {
            // Zero pages of the kernel's, as those of a new process are.
            let mut memory = vec![0; mib << 20];
            stream.read_exact(&mut memory)?;
        } else {
            let mut memory = vec![0; 1 << 20];
            for _ in 0..mib {
                stream.read_exact(&mut memory)?;
            }
        }
        let end = sys::now();
        sender.join().ok().context("the sender")??;
        Ok((end - start) as f64 / 1e6)
    })
}

fn small(setup: &Setup, cluster: &Cluster, programs: &Programs, criu: Option<&Criu>) -> Result<()> {
    let runs = setup.runs.unwrap_or(60);
    let mut report = Report::new("moves", "ms");
    let cases: [(&str, &[&OsStr]); 3] = [
        ("static C", &[programs.small_static.as_os_str()]),
        ("dynamic C", &[programs.small.as_os_str()]),
        ("python3", &["python3".as_ref(), "-c".as_ref(), PYTHON.as_ref()]),
    ];
    for (name, line) in cases {
        let ready = Ready::start(line)?;
        let (still, whole) = moved(cluster, ready.pid, runs)?;
        drop(ready);
        report.row(format!("{name}, stands still"), still);
        report.row(format!("{name}, bpmove's call"), whole);
        if let Some(criu) = criu {
            report.row(format!("{name}, CRIU {} dump and restore", criu.version()), by_criu(criu, line, runs / 6 + 1)?);
        }
    }
    if criu.is_none() {
        report.note("No CRIU in PATH runs on this kernel.");
    }
    report.finish(setup)
}

fn large(setup: &Setup, cluster: &Cluster, programs: &Programs, criu: Option<&Criu>) -> Result<()> {
    let runs = setup.runs.unwrap_or(6).min(12);
    let mib = setup.mib;
    let mut report = Report::new("large-move", "ms");
    let size = mib.to_string();
    let line = [programs.small_static.as_os_str(), size.as_ref()];
    let ready = Ready::start(&line)?;
    let (still, whole) = moved(cluster, ready.pid, runs)?;
    drop(ready);
    report.row(format!("{mib} MiB, bpmove's call"), whole);
    report.row("the same, stands still", still);
    for (name, fresh) in [("into fresh memory", true), ("into one buffer", false)] {
        let times: Result<Vec<f64>> = (0..runs).map(|_| bare_connection(mib as usize, fresh)).collect();
        report.row(format!("as many bytes over TCP, {name}"), Samples::from_iter(times?));
    }
    if let Some(criu) = criu {
        report.row(format!("CRIU {}, dump and restore, tmpfs", criu.version()), by_criu(criu, &line, 3)?);
    }
    report.finish(setup)
}

fn library(setup: &Setup, cluster: &Cluster, programs: &Programs) -> Result<()> {
    let runs = setup.runs.unwrap_or(60);
    let mut report = Report::new("calls", "ms");
    let (shared, archive) = (&programs.calls, &programs.calls_static);
    let cases = [
        ("fork, until it returns", shared, "fork"),
        ("bproc_rfork, until it returns", shared, "rfork"),
        ("fork, exec of /bin/true, wait", shared, "exec"),
        ("fork, bproc_execmove of /bin/true, wait", shared, "execmove"),
        ("bproc_move of a dynamic C program, until it returns, at once again", shared, "move"),
        ("the same, 20 ms after the one before", shared, "calm"),
        ("bproc_move of a static C program, until it returns, at once again", archive, "move"),
        ("the same, 20 ms after the one before", archive, "calm"),
    ];
    for (name, program, what) in cases {
        report.row(name, calls(cluster, program, what, runs)?);
    }
    report.finish(setup)
}

/// Everything with one cluster.
pub fn run(setup: &Setup) -> Result<()> {
    let programs = Programs::compile()?;
    let criu = Criu::find();
    let cluster = Cluster::up(setup, 2)?;
    small(setup, &cluster, &programs, criu.as_ref())?;
    large(setup, &cluster, &programs, criu.as_ref())?;
    library(setup, &cluster, &programs)
}
