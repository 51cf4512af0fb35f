//! Starting: pipes and one child a node. A child becomes the ghost of its program, or says why not and ends.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bproc::{Client, Prepared, Signals, Source, SpawnRequest, Stream, Terminal};
use bproc_common::errno::BE_INVALIDNODE;
use bproc_common::id::{NodeId, Pid};
use bproc_common::nodeset::Unknown;
use bproc_common::wait::Status;
use bproc_sys::files::same_open_file;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::outcome;
use crate::cli::Bpsh;
use crate::sys;

/// Who runs what the kernel takes for no program.
const SHELL: &CStr = c"/bin/sh";

/// What to run.
#[derive(Debug)]
pub(crate) struct Program {
    /// As a shell gives it to exec.
    pub(crate) path: Vec<u8>,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) envp: Vec<Vec<u8>>,
    /// What bpsh was started with.
    pub(crate) signals: Signals,
    /// Terminal that the program gets on the node.
    pub(crate) terminal: Option<Terminal>,
}

/// One program on one node.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) node: i32,
    pub(crate) pid: Option<Pid>,
    pub(crate) status: Option<Status>,
    /// Our ends of its standard streams.
    pub(crate) ends: [Option<OwnedFd>; 3],
}

/// Where one standard stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Pipe,
    Null,
    /// Not open, as bpsh's own.
    Closed,
    /// Where standard output goes.
    Output,
    /// Path on the node, open(2) flags.
    File(Vec<u8>, OFlag),
}

/// A standard stream of ours that is /dev/null.
fn is_null(number: i32) -> bool {
    let null = libc::makedev(1, 3);
    nix::sys::stat::fstat(sys::standard(number))
        .is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFCHR && s.st_rdev == null)
}

fn routes(options: &Bpsh) -> [Route; 3] {
    let both = options.stdout.is_some() && options.stdout == options.stderr;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | if both { OFlag::O_APPEND } else { OFlag::O_TRUNC };
    let file = |path: &Path, flags| Route::File(path.as_os_str().as_bytes().to_vec(), flags);
    // What is /dev/null here may be that of the node.
    let other = |number| match () {
        () if options.no_io => Route::Null,
        () if options.pty => Route::Pipe,
        () if sys::was_closed(number) => Route::Closed,
        () if is_null(number) => Route::Null,
        () => Route::Pipe,
    };
    // What is written to one open file stays in order in one pipe only.
    let is_one =
        || [other(1), other(2)] == [Route::Pipe, Route::Pipe] && same_open_file(sys::standard(1), sys::standard(2));
    let joined = options.pty || (options.stdout.is_none() && is_one());
    let stdin = if options.no_stdin { Route::Null } else { other(0) };
    [
        options.stdin.as_deref().map_or(stdin, |path| file(path, OFlag::O_RDONLY)),
        options.stdout.as_deref().map_or_else(|| other(1), |path| file(path, write)),
        // On a terminal there is one output only.
        options
            .stderr
            .as_deref()
            .map_or_else(|| if joined { Route::Output } else { other(2) }, |path| file(path, write)),
    ]
}

/// A pipe: the child's end, then ours, which does not block.
fn pipe(input: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (theirs, ours) = if input { (read, write) } else { (write, read) };
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((theirs, ours))
}

fn tell(node: i32, reason: &str) {
    // In one write, so that the lines of many children do not mix.
    let _ = io::stderr().write_all(format!("{node}: {reason}\n").as_bytes());
}

/// Starts the program on every node. Nodes on which it could not even be tried have a status already.
///
/// With them comes a descriptor that tells of streams that were lost.
///
/// # Errors
/// No more pipes or processes; children that were started end with bpsh.
pub(crate) fn start(options: &Bpsh, nodes: &[NodeId], program: &Program) -> io::Result<(Vec<Child>, OwnedFd)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Three pipes a node. The processes get the limit as it was.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let parent = std::process::id();
    let routes = routes(options);
    let (losses, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut children: Vec<Child> = Vec::with_capacity(nodes.len());
    for node in nodes.iter().map(|node| node.0) {
        let (mut theirs, mut ours) = ([None, None, None], [None, None, None]);
        for (i, _) in routes.iter().enumerate().filter(|(_, route)| **route == Route::Pipe) {
            let (a, b) = pipe(i == 0)?;
            (theirs[i], ours[i]) = (Some(a), Some(b));
        }
        let mut child = Child { node, pid: None, status: None, ends: ours };
        let prepared = if node == NodeId::MASTER.0 {
            Ok(None)
        } else {
            Prepared::new(request(node, program, &routes, &theirs, report.as_fd())).map(Some)
        };
        match prepared {
            Err(error) => {
                tell(node, &outcome::reason(&error));
                child.status = Some(Status::Exited(outcome::start_failed(&error, options.files()) as u8));
                child.ends = [None, None, None];
            }
            Ok(prepared) => {
                child.pid = sys::fork()?;
                if child.pid.is_none() {
                    // Our ends would keep other nodes' pipes open while this child waits for the agent.
                    drop((children, child));
                    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
                    let error = match prepared {
                        Some(prepared) => prepared.go(),
                        None => {
                            sys::die_with(parent);
                            run_with(options, program, &theirs)
                        }
                    };
                    match error.number {
                        BE_INVALIDNODE => super::complain(Unknown::Nodes(node, node)),
                        libc::EREMOTE => tell(node, &on_a_node()),
                        _ => tell(node, &outcome::reason(&error)),
                    }
                    sys::exit_child(outcome::start_failed(&error, options.files()));
                }
            }
        }
        children.push(child);
    }
    Ok((children, losses))
}

/// Why bpsh starts nothing from where it runs.
fn on_a_node() -> String {
    // The agent has just answered; if it is gone now, the rest is true all the same.
    let here = Client::connect().and_then(|mut agent| agent.whoami()).map(|me| format!("on node {}", me.node));
    let here = here.unwrap_or_else(|_| "on a node".into());
    format!("bpsh runs {here} and starts programs from the master only: run it there (bproc_rexec works on nodes)")
}

fn request<'fd>(
    node: i32,
    program: &Program,
    routes: &[Route; 3],
    theirs: &'fd [Option<OwnedFd>; 3],
    report: BorrowedFd<'fd>,
) -> SpawnRequest<'fd> {
    let streams = routes.iter().zip(theirs).enumerate().map(|(i, (route, end))| {
        let source = match (route, end) {
            (Route::Pipe, Some(end)) => Source::Forward(end.as_fd()),
            (Route::File(path, flags), _) => {
                Source::File { path: path.clone(), flags: flags.bits() as u32, mode: 0o666, offset: 0 }
            }
            (Route::Output, _) => Source::Same(1),
            (Route::Closed, _) => Source::Closed,
            _ => Source::Null,
        };
        Stream { fd: i as i32, input: i == 0, source }
    });
    SpawnRequest {
        node,
        path: program.path.clone(),
        argv: program.argv.clone(),
        envp: program.envp.clone(),
        streams: streams.collect(),
        terminal: program.terminal.clone(),
        pdeathsig: 0,
        die_with_parent: true,
        travel: true,
        shell: true,
        report: Some(report),
        signals: Some(program.signals),
    }
}

fn to_error(what: &str, error: &io::Error) -> bproc::Error {
    bproc::Error::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {error}"))
}

/// The processes, by number here, of which streams were lost.
pub(crate) fn lost(losses: &OwnedFd) -> Vec<i32> {
    let mut all = Vec::new();
    let mut record = [0; 8];
    // Records are written whole.
    while let Ok(8) = nix::unistd::read(losses, &mut record) {
        all.push(i32::from_ne_bytes([record[0], record[1], record[2], record[3]]));
    }
    all
}

/// Connects the standard streams. A stream to be forwarded that has no pipe stays as it is.
fn redirect(routes: &[Route; 3], theirs: &[Option<OwnedFd>; 3]) -> io::Result<()> {
    let open = |path: &[u8], flags| nix::fcntl::open(path, flags, nix::sys::stat::Mode::from_bits_truncate(0o666));
    for (number, (route, end)) in (0..).zip(routes.iter().zip(theirs)) {
        let file = match (route, end) {
            (Route::Pipe, None) | (Route::Closed, _) => continue,
            (Route::Pipe, Some(end)) => end.try_clone()?,
            (Route::File(path, flags), _) => open(path, *flags)?,
            (Route::Output, _) => sys::standard(1).try_clone_to_owned()?,
            (Route::Null, _) => open(b"/dev/null", if number == 0 { OFlag::O_RDONLY } else { OFlag::O_WRONLY })?,
        };
        sys::redirect(file.as_fd(), number)?;
    }
    Ok(())
}

fn exec(program: &Program) -> bproc::Error {
    let attempt = || -> io::Result<Infallible> {
        let path = CString::new(program.path.clone())?;
        let argv = sys::c_strings(program.argv.iter().cloned())?;
        let envp = sys::c_strings(program.envp.iter().cloned())?;
        sys::restore_signals(program.signals);
        let error = nix::unistd::execve(&path, &argv, &envp).err().unwrap_or(Errno::EINVAL);
        if error != Errno::ENOEXEC {
            return Err(error.into());
        }
        // No program to the kernel: a shell's, as to execvp.
        let rest = argv.iter().skip(1).map(CString::as_c_str);
        let argv: Vec<&CStr> = [SHELL, &path].into_iter().chain(rest).collect();
        Err(nix::unistd::execve(SHELL, &argv, &envp).err().unwrap_or(error).into())
    };
    let path = String::from_utf8_lossy(&program.path);
    match attempt() {
        Err(error) => to_error(&path, &error),
        Ok(never) => match never {},
    }
}

/// Becomes the program on this machine, with the streams that bpsh has unless options say otherwise. Returns only
/// on failure.
pub(crate) fn become_program(options: &Bpsh, program: &Program) -> bproc::Error {
    run_with(options, program, &[None, None, None])
}

fn run_with(options: &Bpsh, program: &Program, theirs: &[Option<OwnedFd>; 3]) -> bproc::Error {
    match redirect(&routes(options), theirs) {
        Ok(()) => exec(program),
        Err(error) => to_error("cannot connect the standard streams", &error),
    }
}
