//! Running a program on a node in the place of the calling process.
//!
//! The agent knows the caller from the socket, so the connection must be made by the process that is to be replaced:
//! usually a forked child. Everything that takes memory or looks at the world is done before, by [`Prepared::new`];
//! [`Prepared::go`] makes a handful of system calls, and takes memory only to read the agent's answer.

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bproc_proto::client::{self as wire, request};
use bproc_proto::stream::Kind;
use bproc_sys::files::same_open_file;
use bproc_sys::seqpacket::Conn;
use bproc_sys::signal::AllBlocked;
use prost::Message;

use crate::client::{receive, socket_path};
use crate::error::Error;
use crate::frame::{HEAD, PACKET_MAX, Packet};
use crate::reply::{self, Strings};
use crate::sys;

/// How often the same is asked again of a node whose agent was restarted in the middle of it.
const RESTARTS: u32 = 5;

/// What a standard stream of the process is connected to.
#[derive(Clone, Debug)]
pub enum Source<'fd> {
    /// To this descriptor of the caller, byte for byte. Outputs that lead to the same open file there share one stream here.
    Forward(BorrowedFd<'fd>),
    /// To `/dev/null` of the node.
    Null,
    /// To a file of the node, opened with the user's credentials.
    File {
        /// Its path on the node.
        path: Vec<u8>,
        /// open(2) flags.
        flags: u32,
        /// Mode when it is created, before the umask.
        mode: u32,
        /// Position to begin at, bytes.
        offset: i64,
    },
    /// To the same as this descriptor, which stands before it in the list (as `2>&1` says it).
    Same(i32),
    /// Not open.
    Closed,
}

/// One descriptor of the process.
#[derive(Clone, Debug)]
pub struct Stream<'fd> {
    /// Its number in the process.
    pub fd: i32,
    /// The process reads from it.
    pub input: bool,
    /// What it is connected to.
    pub source: Source<'fd>,
}

/// A pseudo terminal for the process.
#[derive(Clone, Debug, Default)]
pub struct Terminal {
    /// `struct winsize`, or empty.
    pub winsize: Vec<u8>,
    /// `struct termios`, or empty.
    pub termios: Vec<u8>,
}

/// What the process blocks and ignores; bit 0 is signal 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// Blocked.
    pub blocked: u64,
    /// Ignored.
    pub ignored: u64,
}

impl Signals {
    /// Those of the calling thread now.
    pub fn current() -> Signals {
        Signals { blocked: sys::blocked(), ignored: sys::ignored() }
    }
}

/// What to run and where. Credentials, limits, working directory, umask, processors, scheduling and the like are the calling process's.
#[derive(Clone, Debug)]
pub struct SpawnRequest<'fd> {
    /// Number of the node.
    pub node: i32,
    /// Path of the program. Of one that travels and is not named from the root, the program gets to see that name where
    /// the node has the working directory, as natively.
    pub path: Vec<u8>,
    /// Arguments, the zeroth included.
    pub argv: Vec<Vec<u8>>,
    /// Environment entries.
    pub envp: Vec<Vec<u8>>,
    /// Descriptors; none else are open in the process.
    pub streams: Vec<Stream<'fd>>,
    /// Run on a pseudo terminal of the node.
    pub terminal: Option<Terminal>,
    /// Signal when its parent dies, 0: none.
    pub pdeathsig: i32,
    /// Die by SIGKILL when the parent of the calling process dies.
    pub die_with_parent: bool,
    /// The program is this machine's and travels with its libraries; else the node's own is run.
    pub travel: bool,
    /// What the kernel takes for no program is given to a shell, as execvp(3) does.
    pub shell: bool,
    /// A pipe to be told on of streams that are lost with their connection: pid and number of the descriptor, two `int`
    /// for each.
    pub report: Option<BorrowedFd<'fd>>,
    /// What it blocks and ignores; `None`: what the thread that calls [`Prepared::new`] does.
    pub signals: Option<Signals>,
}

/// A request ready to go.
#[derive(Debug)]
pub struct Prepared<'fd> {
    packet: Packet,
    fds: Vec<BorrowedFd<'fd>>,
    // Both for exec; the pointers point into the strings.
    _argv: Vec<CString>,
    pointers: Vec<*const c_char>,
    socket: PathBuf,
}

/// Memory for [`Prepared::go_without_memory`], taken before.
#[derive(Debug)]
pub(crate) struct Scratch {
    packet: Vec<u8>,
    strings: Strings,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { packet: vec![0; PACKET_MAX], strings: Strings::new() }
    }
}

pub(crate) fn stream(from: &Stream<'_>) -> bproc_proto::Stream {
    let mut to = bproc_proto::Stream { fd: from.fd, input: from.input, ..Default::default() };
    let kind = match &from.source {
        Source::Forward(_) => Kind::Forward,
        Source::Null => Kind::Null,
        Source::Closed => Kind::Closed,
        Source::Same(fd) => {
            to.like = *fd;
            Kind::Same
        }
        Source::File { path, flags, mode, offset } => {
            to.path.clone_from(path);
            to.flags = *flags;
            to.mode = *mode;
            to.offset = *offset;
            Kind::File
        }
    };
    to.set_kind(kind);
    to
}

/// Outputs that lead to the same open file become one stream, which keeps the order of what is written to them.
fn join_outputs(streams: &mut [Stream<'_>]) {
    for at in 1..streams.len() {
        let (before, [this, ..]) = streams.split_at_mut(at) else { continue };
        let Source::Forward(fd) = this.source else { continue };
        let is_same = |s: &&Stream<'_>| {
            let Source::Forward(other) = s.source else { return false };
            !s.input && same_open_file(other, fd)
        };
        if let Some(like) = before.iter().find(is_same).filter(|_| !this.input) {
            this.source = Source::Same(like.fd);
        }
    }
}

fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::new(libc::EINVAL, format!("{what} contains a NUL byte")))
}

fn from_cwd(path: &[u8]) -> Result<Vec<u8>, Error> {
    let told =
        |e: std::io::Error| Error::new(e.raw_os_error().unwrap_or(libc::ENOENT), format!("the working directory: {e}"));
    let cwd = std::env::current_dir().map_err(told)?;
    Ok(cwd.join(std::ffi::OsStr::from_bytes(path)).into_os_string().into_encoded_bytes())
}

impl<'fd> Prepared<'fd> {
    /// Encodes the request. Nothing is sent yet.
    ///
    /// # Errors
    /// EINVAL for a NUL byte in a string, E2BIG above 64 MiB, ENOMEM.
    pub fn new(mut request: SpawnRequest<'fd>) -> Result<Prepared<'fd>, Error> {
        let has_nul = |text: &Vec<u8>| text.contains(&0);
        if has_nul(&request.path) || request.envp.iter().any(has_nul) {
            return Err(Error::new(libc::EINVAL, "path or environment contains a NUL byte"));
        }
        let argv: Vec<CString> =
            request.argv.iter().map(|a| c_string(a.clone(), "an argument")).collect::<Result<_, _>>()?;
        if request.terminal.is_none() {
            join_outputs(&mut request.streams);
        }
        let fds = request.streams.iter().filter_map(|s| match s.source {
            Source::Forward(fd) => Some(fd),
            _ => None,
        });
        let fds = fds.chain(request.report).collect();
        let signals = request.signals.unwrap_or_else(Signals::current);
        let (pty, terminal) = (request.terminal.is_some(), request.terminal.unwrap_or_default());
        let below_cwd = request.travel && !request.path.is_empty() && !request.path.starts_with(b"/");
        let path = match below_cwd {
            true => from_cwd(&request.path)?,
            false => request.path,
        };
        let spec = bproc_proto::SpawnSpec {
            path,
            below_cwd,
            argv: request.argv,
            envp: request.envp,
            streams: request.streams.iter().map(stream).collect(),
            pty,
            winsize: terminal.winsize,
            termios: terminal.termios,
            pdeathsig: request.pdeathsig,
            blocked: signals.blocked,
            ignored: signals.ignored,
            securebits: sys::securebits(),
            shell: request.shell,
            ..Default::default()
        };
        let spawn = wire::Spawn {
            node: request.node,
            spec: Some(spec),
            die_with_parent: request.die_with_parent,
            travel: request.travel,
            report: request.report.is_some(),
        };
        let request = wire::Request { body: Some(request::Body::Spawn(spawn)) };
        let packet = Packet::new(&request.encode_to_vec())
            .map_err(|e| Error::new(e.errno(), format!("cannot send the program's arguments and environment: {e}")))?;
        let pointers = sys::pointers(&argv);
        Ok(Prepared { packet, fds, _argv: argv, pointers, socket: socket_path() })
    }

    /// Starts the program on the node; the calling process becomes its ghost. Returns only on failure, with the
    /// process as it was (signal mask included).
    pub fn go(&self) -> Error {
        let _blocked = AllBlocked::new();
        let mut left = RESTARTS;
        loop {
            match self.ask() {
                Ok(never) => match never {},
                Err(error) if error.number == libc::ERESTART && left > 0 => left -= 1,
                Err(error) => return error,
            }
        }
    }

    /// As [`Prepared::go`], for a child that was cloned behind libc's back: takes no memory. The caller has blocked
    /// all signals. The number of what failed.
    pub(crate) fn go_without_memory(&self, scratch: &mut Scratch) -> i32 {
        let mut left = RESTARTS;
        loop {
            match self.ask_without_memory(scratch) {
                Ok(never) => match never {},
                Err(libc::ERESTART) if left > 0 => left -= 1,
                Err(number) => return number,
            }
        }
    }

    fn ask_without_memory(&self, scratch: &mut Scratch) -> Result<Infallible, i32> {
        let conn = Conn::connect(&self.socket).map_err(|e| Error::unreachable_number(&e))?;
        self.packet.send(&conn, &self.fds).map_err(|_| libc::EPROTO)?;
        let got = conn.recv(&mut scratch.packet).map_err(|e| e.raw_os_error().unwrap_or(libc::EPROTO))?;
        let reply = got.len.checked_sub(HEAD).filter(|_| got.fds.is_empty() && !got.truncated);
        let reply = reply.and_then(|_| scratch.packet.get(HEAD..got.len)).ok_or(libc::EPROTO)?;
        let spawned = reply::parse(reply)?;
        let program = scratch.strings.fill(spawned).ok_or(libc::EPROTO)?;
        let error = sys::exec_without_descriptors(program.path, &self.pointers, program.environment);
        Err(error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn ask(&self) -> Result<Infallible, Error> {
        let conn = Conn::connect(&self.socket).map_err(|e| Error::unreachable(&self.socket, &e))?;
        self.packet.send(&conn, &self.fds).map_err(|e| Error::broken(&self.socket, e))?;
        let wire::reply::Body::Spawned(spawned) = receive(&conn, &self.socket)? else {
            return Err(Error::broken(&self.socket, "it answers another question (another version?)"));
        };
        let path = c_string(spawned.ghost_path, "the ghost's path")?;
        let environment = spawned
            .ghost_environment
            .into_iter()
            .map(|entry| c_string(entry, "the ghost's environment"))
            .collect::<Result<Vec<_>, _>>()?;
        let error = sys::exec_without_descriptors(&path, &self.pointers, &sys::pointers(&environment));
        // The connection closes with this process's answer missing: the agent ends the program on the node.
        let path = path.to_string_lossy().into_owned();
        Err(Error::io(&format!("cannot execute the ghost {path} (is BProc installed completely?)"), &error))
    }
}

/// Prepares and goes in one: for a process that replaces itself.
///
/// # Errors
/// Those of [`Prepared::new`] and [`Prepared::go`].
pub fn spawn_in_place(request: SpawnRequest<'_>) -> Result<Infallible, Error> {
    Err(Prepared::new(request)?.go())
}
