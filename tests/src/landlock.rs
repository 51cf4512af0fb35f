//! Processes under Landlock: they stay where their rules are.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Role, signal_to};
use crate::midway::{WAYS, hold, name, settle, told};
use crate::run::finish;
use crate::traveller::{Traveller, compile, go, place, try_move};

const LIMIT: Duration = Duration::from_secs(60);
const WORDS: &str = "is restricted by Landlock, which cannot go along";

struct Programs<'c> {
    cluster: &'c Cluster,
    path: PathBuf,
}

impl<'c> Programs<'c> {
    fn new(cluster: &'c Cluster) -> Result<Programs<'c>> {
        Ok(Programs { cluster, path: compile(cluster, "tests/programs/landlock.c", &[], true)? })
    }

    /// A directory that nobody can make under Landlock; then what it does.
    fn command(&self, kind: &str, what: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        self.cluster.environment(command.arg(kind).arg(self.cluster.dir().join("log/made")).args(what));
        command
    }

    /// At `place`, still free.
    fn free(&self, kind: &str, how: &str, place: Role) -> Result<Traveller> {
        let mut program = Traveller::start(&mut self.command(kind, &["outside", how]))?;
        program.until("ready")?;
        if place != Role::Master {
            go(self.cluster, program.pid(), &name(place))?;
        }
        Ok(program)
    }
}

/// Puts it under Landlock. False: this kernel does not know this kind. What the master is asked to send waits while a process
/// moves.
fn restrict(program: &mut Traveller, cluster: &Cluster, place: Role) -> Result<bool> {
    if place == Role::Master {
        signal_to(program.pid(), libc::SIGUSR1)?;
    } else {
        let done = cluster.bpsh(&[&name(place), "kill", "-USR1", &program.pid().to_string()])?;
        ensure!(done.status == 0, "{done:?}");
    }
    let line = program.line()?;
    if line.starts_with("skipped") {
        println!("{line}");
        return Ok(false);
    }
    ensure!(line == "restricted", "{line}");
    Ok(true)
}

/// It runs on, held or free.
fn is(program: &mut Traveller, what: &str) -> Result<()> {
    signal_to(program.pid(), libc::SIGUSR2)?;
    let line = program.line()?;
    ensure!(line == what, "{line} instead of {what}");
    Ok(())
}

fn end(cluster: &Cluster, program: Traveller) -> Result<()> {
    signal_to(program.pid(), libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    ensure!(rest.is_empty() && status == libc::SIGTERM, "{rest:?}, status {status:#x}");
    cluster.quiet()
}

/// Who is under Landlock does not move, nobody moves him, and what he starts stays with him, whatever the rules are about; the same
/// program without them moves.
///
/// # Errors
/// He gets away.
pub fn stays(cluster: &Cluster) -> Result<()> {
    let programs = Programs::new(cluster)?;
    for (kind, how) in [("files", "itself"), ("files", "thread"), ("network", "itself"), ("signals", "itself")] {
        for from in [Role::Master, Role::Node(0)] {
            let context = || format!("{kind}, {how}, at {from:?}");
            let mut program = programs.free(kind, how, from)?;
            is(&mut program, "free").with_context(context)?;
            if !restrict(&mut program, cluster, from).with_context(context)? {
                program.end()?;
                cluster.quiet()?;
                break;
            }
            for to in ["1", "master"].into_iter().filter(|to| *to != name(from)) {
                let done = try_move(cluster, program.pid(), to)?;
                ensure!(done.status == 1 && done.err().contains(WORDS), "{} to {to}: {done:?}", context());
                ensure!(place(cluster, program.pid())? == name(from), "{}", context());
            }
            is(&mut program, if (kind, how) == ("files", "itself") { "held" } else { "free" }).with_context(context)?;
            end(cluster, program).with_context(context)?;
        }
        if how == "itself" {
            by_itself(&programs, kind).with_context(|| kind.to_owned())?;
        }
    }
    let done = finish(&mut programs.command("files", &["run", "bpsh", "0-1", "echo", "it is out"]), b"", LIMIT)?;
    if done.out().starts_with("skipped") {
        return cluster.quiet();
    }
    ensure!(done.status == 1 && done.out().is_empty(), "{done:?}");
    ensure!(done.err().lines().count() == 2 && done.err().lines().all(|line| line.contains(WORDS)), "{done:?}");
    cluster.quiet()
}

/// By the calls of the library, on the master and on a node.
fn by_itself(programs: &Programs<'_>, kind: &str) -> Result<()> {
    const EPERM: i32 = libc::EPERM;
    for node in ["-1", "0", "1"] {
        let program = Traveller::start(&mut programs.command(kind, &["inside", node]))?;
        let (text, status) = program.end()?;
        if text.starts_with("skipped") {
            println!("{text}");
            return programs.cluster.quiet();
        }
        let calls = ["move", "move", "rexec", "execmove", "rfork"].map(|call| format!("{call} -1: {EPERM}\n")).concat();
        let wanted = format!(
            "restricted\n{calls}vrfork 2 -{EPERM} -{EPERM}\n{}\n",
            if kind == "files" { "held" } else { "free" }
        );
        ensure!((text.as_str(), status) == (wanted.as_str(), 5 << 8), "from {node}: {text}, status {status:#x}");
    }
    programs.cluster.quiet()
}

/// One that puts itself under Landlock when it has been found free and is about to be stopped does not go.
///
/// # Errors
/// It goes.
pub fn on_the_way(cluster: &Cluster) -> Result<()> {
    let programs = Programs::new(cluster)?;
    for way in WAYS {
        let context = || format!("{way:?}");
        let mut program = programs.free("files", "itself", way.from)?;
        let (asker, mover) = hold(cluster, program.pid(), "source-begins", way.to).with_context(context)?;
        let is_known = restrict(&mut program, cluster, way.from).with_context(context);
        signal_to(mover.pid, libc::SIGCONT)?;
        let status = settle(cluster, asker).with_context(context)?;
        if !is_known? {
            program.end()?;
            return cluster.quiet();
        }
        let said = fs::read_to_string(told(cluster))?;
        ensure!(status == 1 && said.contains(WORDS), "{way:?}: {status} {said}");
        ensure!(place(cluster, program.pid())? == name(way.from), "{way:?}");
        is(&mut program, "held").with_context(context)?;
        end(cluster, program).with_context(context)?;
    }
    Ok(())
}
