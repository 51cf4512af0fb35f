//! Programs whose output a test reads while they move.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, eventually, signal_to};
use crate::run::{Finished, finish, tie};

const LIMIT: Duration = Duration::from_secs(60);

/// A program that moves, or not.
pub struct Traveller {
    /// Itself.
    pub child: Child,
    output: BufReader<ChildStdout>,
}

impl Traveller {
    /// Starts it, without input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Traveller> {
        Traveller::start_with_input(command.stdin(Stdio::null()))
    }

    /// Starts it with the input that the command has.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_with_input(command: &mut Command) -> Result<Traveller> {
        // SAFETY: only sets the close-on-exec flag of what whoever started the tests left open.
        unsafe {
            command.pre_exec(|| {
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4);
                Ok(())
            });
        }
        let mut child = tie(command).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("it has an output")?);
        Ok(Traveller { child, output })
    }

    /// Its number, everywhere.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of its output.
    ///
    /// # Errors
    /// It has ended.
    pub fn line(&mut self) -> Result<String> {
        match self.output_line()? {
            Some(line) => Ok(line),
            None => bail!("the program ended: {:?}", self.child.try_wait()?),
        }
    }

    /// The next line of its output, or the end.
    ///
    /// # Errors
    /// No UTF-8.
    pub fn output_line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok((!line.is_empty()).then(|| line.trim_end().to_owned()))
    }

    /// Lines up to this one.
    ///
    /// # Errors
    /// It does not come.
    pub fn until(&mut self, wanted: &str) -> Result<()> {
        while self.line()? != wanted {}
        Ok(())
    }

    /// The rest of its output, and its wait status.
    ///
    /// # Errors
    /// No UTF-8.
    pub fn end(mut self) -> Result<(String, i32)> {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest)?;
        Ok((rest, self.child.wait()?.into_raw()))
    }
}

impl Drop for Traveller {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for a move: `node` is a number, or `master`.
///
/// # Errors
/// The command does not end.
pub fn try_move(cluster: &Cluster, pid: i32, node: &str) -> Result<Finished> {
    finish(cluster.command("bpmove").args([&pid.to_string(), node]), b"", LIMIT)
}

/// Where a process is: the number of a node, or `master`.
///
/// # Errors
/// The agent does not answer.
pub fn place(cluster: &Cluster, pid: i32) -> Result<String> {
    let listed = cluster.client()?.processes().map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(listed.iter().find(|p| p.pid == pid).map_or("master".to_owned(), |p| p.node.to_string()))
}

/// Moves a process, and looks where it is.
///
/// # Errors
/// It did not move.
pub fn go(cluster: &Cluster, pid: i32, node: &str) -> Result<()> {
    let done = try_move(cluster, pid, node)?;
    ensure!(done.status == 0, "to {node}: {}", done.err());
    let there = place(cluster, pid)?;
    ensure!(there == node, "it is on {there} instead of {node}");
    Ok(())
}

/// The way around: to nodes, between them, home, and out again.
pub const AROUND: [&str; 10] = ["0", "1", "master", "2", "0", "master", "1", "2", "1", "master"];

/// Moves a program that checks itself at each line `round ..`, until it is told to end by SIGTERM; it must end with the line
/// `done` and the exit code 42.
///
/// # Errors
/// It did not go on right, or something of it is left.
pub fn around(cluster: &Cluster, command: &mut Command, way: &[&str]) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let (mut way, mut told) = (way.iter(), false);
    loop {
        let line = program.line()?;
        if !line.starts_with("round") {
            if line == "done" {
                break;
            }
            bail!("{line}\n{}", program.end()?.0);
        }
        let Some(node) = way.next() else {
            if !std::mem::replace(&mut told, true) {
                signal_to(program.pid(), libc::SIGTERM)?;
            }
            continue;
        };
        let name = || std::fs::read_to_string(format!("/proc/{}/comm", program.child.id()));
        let (before, gone) = (name()?, go(cluster, program.pid(), node));
        let now = name()?;
        ensure!(now == before || gone.is_err(), "to {node}: it is called {now:?} instead of {before:?}");
        if let Err(error) = gone {
            // What it says itself tells more, if that is why.
            let ended = eventually("its end", Duration::from_secs(2), || {
                Ok(program.child.try_wait()?.map_or(Err("it runs".into()), |_| Ok(())))
            });
            let last = if ended.is_ok() { program.end()? } else { Default::default() };
            bail!("at {line}: {error:#} {last:x?}");
        }
    }
    ensure!(told, "the program ended too soon");
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    cluster.quiet()
}

/// Compiles a C program of this checkout into the cluster's directory; with `library`, against the cluster's C library.
///
/// # Errors
/// What the compiler says.
pub fn compile(cluster: &Cluster, source: &str, flags: &[&str], library: bool) -> Result<PathBuf> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let name = Path::new(source).file_stem().context("a source has a name")?.to_string_lossy().into_owned();
    let program = cluster.dir().join(format!("log/{name}{}", flags.concat()));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-Wall", "-Wextra", "-pthread", "-D_GNU_SOURCE"]).args(flags);
    gcc.arg("-o").arg(&program).arg(root.join(source));
    if library {
        let stage = root.join("target/bproc");
        gcc.arg("-I").arg(stage.join("include")).arg("-L").arg(stage.join("lib")).arg("-lbproc");
        gcc.arg(format!("-Wl,-rpath,{}", stage.join("lib").display()));
    }
    let done = finish(&mut gcc, b"", LIMIT)?;
    ensure!(done.status == 0, "gcc {name}: {}", done.err());
    Ok(program)
}

/// Processes on nodes that lead a session, a group, or are another user's since a moment, and shells with a job: they move at once, and
/// where they come to they are what they have become.
///
/// # Errors
/// They are not.
pub fn what_they_became(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/becomes.c", &[], true)?;
    for node in ["1", "0"] {
        let done = cluster.bpsh(&[node, &program.to_string_lossy(), "5", "0", "1", "2", "-1"])?;
        ensure!((done.out().as_str(), done.status) == ("done\n", 0), "from {node}: {done:?}");
    }
    cluster.quiet()
}

/// Programs and children by the library, from the master and from a node, to where one is and elsewhere, with and without lists of
/// descriptors.
///
/// # Errors
/// They are not as asked for.
pub fn from_anywhere(cluster: &Cluster, dialects: &[&str]) -> Result<()> {
    for dialect in dialects {
        let path = compile(cluster, "tests/programs/anywhere.c", &[dialect], true)?;
        let mut command = Command::new(&path);
        let program = Traveller::start(cluster.environment(command.arg(cluster.dir().join("log"))))?;
        let (text, status) = program.end()?;
        ensure!(text.lines().last() == Some("done") && status == 0, "{dialect}: {text}, status {status:#x}");
        cluster.quiet().with_context(|| (*dialect).to_owned())?;
    }
    Ok(())
}
