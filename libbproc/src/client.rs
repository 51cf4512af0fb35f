//! One connection to the agent: a request, then its reply.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use bproc_common::id::NodeId;
use bproc_proto::client::{self as wire, reply, request};
use bproc_sys::seqpacket::Conn;
use prost::Message;

use crate::error::Error;
use crate::frame::{self, FrameError, Packet};
use crate::{Node, ProcessOnNode, SetNode, sys};

/// Where the agent of the default cluster listens.
const DEFAULT_SOCKET: &str = "/run/bproc.d/default/agent.sock";

/// Where the agent listens: what `BPROC_SOCKET` says, else the default cluster's socket.
pub fn socket_path() -> PathBuf {
    let named: Option<OsString> = std::env::var_os("BPROC_SOCKET").filter(|path| !path.is_empty());
    named.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}

/// A connection. The agent takes its user from the process that connected.
#[derive(Debug)]
pub struct Client {
    conn: Conn,
    path: PathBuf,
}

/// Where the caller is and whom it talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Node that the caller is on.
    pub node: NodeId,
    /// Version of the agent.
    pub version: String,
    /// Address of the master as text, as the caller's machine reaches it; empty when none is known yet.
    pub master_address: Vec<u8>,
}

/// What becomes of open files other than the standard streams when a process moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Files {
    /// They go along if they can; if any cannot, the move is refused.
    #[default]
    Carry,
    /// They go along if they can, else they are closed.
    DropOthers,
    /// They are closed.
    StdioOnly,
}

/// A move that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveRequest {
    /// The process.
    pub pid: i32,
    /// Number of the node; -1 is the master.
    pub node: i32,
    /// Which read-only mappings travel as data: 1 libraries, 2 program, 4 others.
    pub flags: u32,
    /// Its files.
    pub files: Files,
}

impl MoveRequest {
    /// The flags of calls that have none: program and others.
    pub const FLAGS: u32 = 6;
}

/// A move that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the stop at the old place to running at the new one, nanoseconds; 0 when it was there already.
    pub frozen_ns: u64,
    /// Size of its image in bytes.
    pub bytes: u64,
}

impl Client {
    /// Connects to the agent at [`socket_path`].
    ///
    /// # Errors
    /// ENOSYS when nobody listens there; else what connect(2) says.
    pub fn connect() -> Result<Client, Error> {
        Client::connect_to(&socket_path())
    }

    /// Connects to the agent that listens at `path`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(path: &Path) -> Result<Client, Error> {
        let conn = Conn::connect(path).and_then(|conn| sys::raised(conn.into()));
        let conn = conn.map_err(|e| Error::unreachable(path, &e))?.into();
        Ok(Client { conn, path: path.to_owned() })
    }

    fn call(&mut self, body: request::Body) -> Result<reply::Body, Error> {
        let request = wire::Request { body: Some(body) };
        let packet = Packet::new(&request.encode_to_vec()).map_err(|e| Error::new(e.errno(), e.to_string()))?;
        packet.send(&self.conn, &[]).map_err(|e| Error::broken(&self.path, e))?;
        receive(&self.conn, &self.path)
    }

    fn unexpected<T>(&self) -> Result<T, Error> {
        Err(Error::broken(&self.path, "it answers another question (another version?)"))
    }

    /// All configured nodes, by number.
    ///
    /// # Errors
    /// EPROTO when the agent breaks off; what the agent says.
    pub fn nodes(&mut self) -> Result<Vec<Node>, Error> {
        match self.call(request::Body::Nodes(wire::Nodes {}))? {
            reply::Body::Nodes(list) => Ok(list.nodes),
            _ => self.unexpected(),
        }
    }

    /// The processes of the space that are on nodes.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn processes(&mut self) -> Result<Vec<ProcessOnNode>, Error> {
        match self.call(request::Body::Processes(wire::Processes {}))? {
            reply::Body::Processes(list) => Ok(list.processes),
            _ => self.unexpected(),
        }
    }

    /// Changes what is given of a node's state, mode, user and group; all or nothing.
    ///
    /// # Errors
    /// `BE_INVALIDNODE`, EPERM, EINVAL; as [`Client::nodes`].
    pub fn set_node(&mut self, change: SetNode) -> Result<(), Error> {
        self.order(request::Body::SetNode(change))
    }

    fn order(&mut self, body: request::Body) -> Result<(), Error> {
        match self.call(body)? {
            reply::Body::Done(_) => Ok(()),
            _ => self.unexpected(),
        }
    }

    /// Moves a running process.
    ///
    /// # Errors
    /// Why it runs on where it was: EPERM, ESRCH, EBUSY, EOPNOTSUPP for what cannot move, ENOENT for a file that the
    /// node lacks, `BE_INVALIDNODE`, `BE_NODEDOWN`, `BE_SLAVEDIED`; as [`Client::nodes`].
    pub fn move_process(&mut self, request: &MoveRequest) -> Result<Moved, Error> {
        let files = match request.files {
            Files::Carry => wire::r#move::Files::Carry,
            Files::DropOthers => wire::r#move::Files::DropOthers,
            Files::StdioOnly => wire::r#move::Files::StdioOnly,
        };
        let body = wire::Move {
            pid: request.pid,
            node: request.node,
            flags: request.flags,
            files: files.into(),
            ..wire::Move::default()
        };
        match self.call(request::Body::Move(body))? {
            reply::Body::Moved(moved) => Ok(Moved { frozen_ns: moved.frozen_ns, bytes: moved.bytes }),
            _ => self.unexpected(),
        }
    }

    /// Has a child of the caller's held still, as the pattern of so many others; the number of the pattern.
    ///
    /// # Errors
    /// Why it cannot be; as [`Client::nodes`].
    pub(crate) fn hold(&mut self, pid: i32, ranks: u32, flags: u32) -> Result<u64, Error> {
        match self.call(request::Body::Hold(wire::Hold { pid, ranks, flags }))? {
            reply::Body::Held(held) => Ok(held.spread),
            _ => self.unexpected(),
        }
    }

    /// The pattern is not needed any more.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub(crate) fn release(&mut self, spread: u64) -> Result<(), Error> {
        self.order(request::Body::Release(spread))
    }

    /// The value of a node's attribute.
    ///
    /// # Errors
    /// ENODATA when it has none of this name; `BE_INVALIDNODE`; as [`Client::nodes`].
    pub fn attribute(&mut self, number: i32, name: String) -> Result<Vec<u8>, Error> {
        match self.call(request::Body::GetAttribute(wire::GetAttribute { number, name }))? {
            reply::Body::Attribute(attribute) => Ok(attribute.value),
            _ => self.unexpected(),
        }
    }

    /// Sets an attribute of a node, or takes it away.
    ///
    /// # Errors
    /// EPERM for all but root, ENOSPC; `BE_INVALIDNODE`; as [`Client::nodes`].
    pub fn set_attribute(&mut self, number: i32, name: String, value: Option<Vec<u8>>) -> Result<(), Error> {
        self.order(request::Body::SetAttribute(wire::SetAttribute { number, name, value }))
    }

    /// The files that nodes keep at hand for programs that travel.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn libraries(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        match self.call(request::Body::Libraries(wire::Libraries {}))? {
            reply::Body::Libraries(list) => Ok(list.paths),
            _ => self.unexpected(),
        }
    }

    /// Changes that list. What whoever does so should know all the same; mostly nothing.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, ENOENT for a path to delete that is not in it; as [`Client::nodes`].
    pub fn change_libraries(&mut self, how: wire::change_libraries::How, path: Vec<u8>) -> Result<String, Error> {
        match self.call(request::Body::ChangeLibraries(wire::ChangeLibraries { how: how.into(), path }))? {
            reply::Body::Done(done) => Ok(done.remark),
            _ => self.unexpected(),
        }
    }

    /// Ends a node's machine: `reboot`, `halt` or `pwroff`. With `wait` it returns when the node is down.
    ///
    /// # Errors
    /// EPERM for all but root; `BE_INVALIDNODE`, `BE_NODEDOWN`; as [`Client::nodes`].
    pub fn power(&mut self, number: i32, what: String, wait: bool) -> Result<(), Error> {
        self.order(request::Body::Power(wire::Power { number, what, wait }))
    }

    /// Gives processes that start on a node from now on another root directory.
    ///
    /// # Errors
    /// As [`Client::power`].
    pub fn chroot(&mut self, number: i32, path: Vec<u8>) -> Result<(), Error> {
        self.order(request::Body::Chroot(wire::Chroot { number, path }))
    }

    /// Has a node's agent connect to another master, from the address `local` if that is not empty.
    ///
    /// # Errors
    /// As [`Client::power`].
    pub fn reconnect(&mut self, number: i32, remote: String, local: String) -> Result<(), Error> {
        self.order(request::Body::Reconnect(wire::Reconnect { number, remote, local }))
    }

    /// Gives the pseudo terminal of a child of the caller's another size (`struct winsize`).
    ///
    /// # Errors
    /// ESRCH when it is no child of the caller's that runs on a node; as [`Client::nodes`].
    pub fn resize(&mut self, pid: i32, winsize: Vec<u8>) -> Result<(), Error> {
        self.order(request::Body::Resize(wire::Resize { pid, winsize }))
    }

    /// Where the caller is.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn whoami(&mut self) -> Result<Identity, Error> {
        self.settled(0)
    }

    /// The master as a node: always up, open to all.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn master(&mut self) -> Result<Node, Error> {
        let address = String::from_utf8(self.whoami()?.master_address).unwrap_or_default();
        Ok(Node { number: NodeId::MASTER.0, state: "up".into(), mode: 0o111, address, ..Node::default() })
    }

    /// Where a process is (0: the caller), told when no move of it is under way. One that nobody knows is on the master.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn settled(&mut self, pid: i32) -> Result<Identity, Error> {
        match self.call(request::Body::Whoami(wire::Whoami { pid }))? {
            reply::Body::Self_(me) => {
                Ok(Identity { node: NodeId(me.node), version: me.version, master_address: me.master_address })
            }
            _ => self.unexpected(),
        }
    }

    /// Turns the connection into a stream of changes: one item for each time that nodes changed. Changes after this
    /// call has returned are told; several may be told as one.
    ///
    /// # Errors
    /// As [`Client::nodes`].
    pub fn watch(mut self) -> Result<Watch, Error> {
        match self.call(request::Body::Watch(wire::Watch {}))? {
            reply::Body::Done(_) => Ok(Watch { conn: Some(self.conn), path: self.path }),
            _ => self.unexpected(),
        }
    }
}

/// Receives one reply; a failure becomes an error.
pub(crate) fn receive(conn: &Conn, path: &Path) -> Result<reply::Body, Error> {
    let mut buffer = vec![0; frame::PACKET_MAX];
    let (payload, _fds) = frame::recv(conn, &mut buffer).map_err(|e| match e {
        FrameError::Closed => Error::broken(path, "it closed the connection"),
        e => Error::broken(path, e),
    })?;
    let reply = wire::Reply::decode(payload.as_slice()).map_err(|e| Error::broken(path, e))?;
    match reply.body {
        Some(reply::Body::Failure(failure)) => Err(Error::new(failure.number, failure.message)),
        Some(body) => Ok(body),
        None => Err(Error::broken(path, "it answers in a way that this version does not know")),
    }
}

/// Changes of the machine, as an iterator that waits for the next one. Ends after the first error. Its descriptor
/// polls readable when the next item is there.
#[derive(Debug)]
pub struct Watch {
    conn: Option<Conn>,
    path: PathBuf,
}

impl Iterator for Watch {
    type Item = Result<(), Error>;

    fn next(&mut self) -> Option<Result<(), Error>> {
        let result = match receive(self.conn.as_ref()?, &self.path) {
            Ok(reply::Body::Changed(_)) => return Some(Ok(())),
            Ok(_) => Err(Error::broken(&self.path, "it tells something else than a change")),
            Err(error) => Err(error),
        };
        self.conn = None;
        Some(result)
    }
}

impl Watch {
    /// The descriptor to poll; `None` after the end.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.conn.as_ref().map(AsFd::as_fd)
    }
}
