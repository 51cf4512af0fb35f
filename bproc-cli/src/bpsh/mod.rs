//! bpsh: a program on many nodes, as if it ran here.
//!
//! A child is forked for each node and becomes the ghost of the program there, in bpsh's own process group: so the
//! terminal's keys and the shell's job control reach every process without bpsh's help. bpsh carries bytes ([`pump`])
//! and waits.

mod feed;
mod outcome;
mod outlet;
mod program;
mod pump;
mod shape;
mod start;

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bproc::{Node, Signals, Terminal};
use bproc_common::id::NodeId;
use nix::sys::termios::{self, SetArg, Termios};

use crate::cli::Bpsh;
use crate::{nodes, sys};
use outcome::End;
use outlet::Outlet;
use pump::Pump;
use shape::Shaper;
use start::Program;

/// Exit status of a mistake of the user's in what to run where, and of a missing agent.
const FAILED: i32 = 1;

fn complain(words: impl std::fmt::Display) {
    eprintln!("bpsh: {words}");
}

/// The machine goes by this name, with or without its domain.
fn is_this_host(name: &OsStr) -> bool {
    let Ok(own) = nix::unistd::gethostname() else { return false };
    let short = |name: &OsStr| name.as_bytes().split(|b| *b == b'.').next().unwrap_or_default().to_vec();
    name == "localhost" || name == own || (!name.as_bytes().contains(&b'.') && short(name) == short(&own))
}

/// The nodes that the options name; a message and the exit status otherwise.
fn targets(options: &Bpsh) -> Result<Vec<NodeId>, i32> {
    let named = options.nodes.as_deref();
    if options.on_master || named.is_some_and(|name| name == "master" || is_this_host(name)) {
        return Ok(vec![NodeId::MASTER]);
    }
    let fail = |words: &dyn std::fmt::Display| {
        complain(words);
        FAILED
    };
    // The agent itself tells of a number that is no node, and bpsh has started sooner.
    let digits = named.and_then(OsStr::to_str).filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    if let Some(Ok(number)) = digits.map(str::parse) {
        return Ok(vec![NodeId(number)]);
    }
    let known: Vec<Node> = nodes::fetch().map_err(|error| fail(&error))?;
    let Some(named) = named else {
        let fits = |node: &&Node| if options.up { node.state == "up" } else { node.state != "down" };
        let chosen: Vec<NodeId> = known.iter().filter(fits).map(|node| NodeId(node.number)).collect();
        if chosen.is_empty() {
            return Err(fail(&if options.up { "no node is up" } else { "all nodes are down" }));
        }
        return Ok(chosen);
    };
    let selection = nodes::select(&named.to_string_lossy(), &known).map_err(|error| fail(&error))?;
    for unknown in &selection.unknown {
        complain(unknown);
    }
    if selection.nodes.is_empty() {
        if selection.unknown.is_empty() {
            complain(format_args!("'{}' names no node", named.to_string_lossy()));
        }
        return Err(FAILED);
    }
    Ok(selection.nodes)
}

fn program(options: &mut Bpsh) -> Result<Program, i32> {
    let cwd = std::env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned());
    let name = options.rest[0].clone();
    let path = program::find(&name, std::env::var_os("PATH").as_deref(), &cwd).map_err(|why| {
        complain(format_args!("{}: {why}", name.to_string_lossy()));
        why.status()
    })?;
    let mut envp = sys::environment();
    if let Some(label) = &options.label {
        envp.retain(|entry| !entry.starts_with(b"BPROC_LABEL="));
        envp.push(format!("BPROC_LABEL={label}").into_bytes());
    }
    let terminal = options.pty.then(|| Terminal {
        winsize: sys::window_size(sys::standard(0)),
        termios: sys::terminal_modes(sys::standard(0)),
    });
    let argv = std::mem::take(&mut options.rest).into_iter().map(OsStringExt::into_vec).collect();
    Ok(Program { path: path.into_os_string().into_vec(), argv, envp, signals: Signals::current(), terminal })
}

/// Our terminal in raw mode for as long as it lives: its keys go to the terminal on the node.
struct Raw(Termios);

impl Raw {
    fn new() -> Option<Raw> {
        let before = termios::tcgetattr(sys::standard(0)).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(sys::standard(0), SetArg::TCSADRAIN, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = termios::tcsetattr(sys::standard(0), SetArg::TCSADRAIN, &self.0);
    }
}

impl Bpsh {
    /// Files of nodes for the programs' streams.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten()
    }
}

/// Runs bpsh; returns the exit status.
pub(crate) fn run(mut options: Bpsh) -> i32 {
    let began = Instant::now();
    let program = match program(&mut options) {
        Ok(program) => program,
        Err(status) => return status,
    };
    let nodes = match targets(&options) {
        Ok(nodes) => nodes,
        Err(status) => return status,
    };
    let plain = !(options.lines || options.prefix || options.sorted || options.divider || options.time);
    if nodes == [NodeId::MASTER] && plain {
        let error = start::become_program(&options, &program);
        complain(&error);
        return outcome::start_failed(&error, options.files());
    }
    match carry(&options, &nodes, &program) {
        Ok(end) => {
            if options.time {
                eprintln!("{:.6}", began.elapsed().as_secs_f64());
            }
            match end {
                End::Exit(status) => status,
                End::Signal(signal) => sys::die_by(signal),
            }
        }
        Err(error) => {
            // The programs end with us.
            complain(error);
            FAILED
        }
    }
}

fn outlets(options: &Bpsh, nodes: &[NodeId]) -> [Outlet; 2] {
    if !(options.sorted || options.divider) {
        return [Outlet::unsorted(), Outlet::unsorted()];
    }
    let heads = nodes.iter().map(|node| if options.divider { shape::divider(node.0) } else { Vec::new() });
    [Outlet::sorted(heads.collect()), Outlet::sorted(vec![Vec::new(); nodes.len()])]
}

fn carry(options: &Bpsh, nodes: &[NodeId], program: &Program) -> std::io::Result<End> {
    let signals = pump::take_signals(program.signals, options.pty)?;
    let (children, losses) = start::start(options, nodes, program)?;
    let raw = if options.pty { Raw::new() } else { None };
    let shaper = |node| match (options.prefix, options.lines) {
        (true, _) => Shaper::lines(shape::prefix(node)),
        (false, true) => Shaper::lines(Vec::new()),
        (false, false) => Shaper::Raw,
    };
    let outlets = outlets(options, nodes);
    let mut pump = Pump::new(signals, children, outlets, options.buffer as usize, shaper, program.signals, options.pty);
    let result = pump.run();
    drop(raw);
    result?;
    let ended: Vec<_> = pump.children.iter().filter_map(|child| Some((child.node, child.status?))).collect();
    let lost = start::lost(&losses);
    let lost = pump.children.iter().filter(|child| child.pid.is_some_and(|pid| lost.contains(&pid.get())));
    let lost: Vec<i32> = lost.map(|child| child.node).collect();
    let (messages, mut end) = outcome::add_losses(&lost, outcome::conclude(&ended, pump.meanwhile));
    for message in messages {
        eprintln!("{message}");
    }
    if let Some(signal) = pump.meanwhile.interrupted.filter(|_| pump.was_asked_after_the_end()) {
        end = End::Signal(signal);
    }
    Ok(end)
}
