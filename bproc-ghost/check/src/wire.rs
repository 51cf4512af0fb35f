//! The agent's end of the ghost's socket.

use bproc_common::ghost::{MAX_PACKET, Msg, Role, ev, op};
use bproc_common::wire::Record;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest wait for anything, in milliseconds.
const LIMIT: i32 = 20_000;

/// A packet of the ghost.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Its head.
    pub msg: Msg,
    /// What follows the head.
    pub payload: Vec<u8>,
}

fn wait_readable(fd: RawFd) -> Result<()> {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one live entry.
    match unsafe { libc::poll(&mut entry, 1, LIMIT) } {
        0 => Err(Error::from(ErrorKind::TimedOut)),
        1 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// The socket that ghosts connect to, in a directory of its own.
pub struct Listener {
    fd: OwnedFd,
    directory: PathBuf,
    /// Connections of processes nobody has asked for yet.
    early: Vec<Conn>,
}

impl Listener {
    /// Listens in a fresh directory under /tmp that all users may enter.
    ///
    /// # Panics
    /// When the directory or the socket cannot be made.
    pub fn new() -> Listener {
        let mut template = *b"/tmp/ghost-check-XXXXXX\0";
        // SAFETY: a writable NUL-terminated template.
        assert!(!unsafe { libc::mkdtemp(template.as_mut_ptr().cast()) }.is_null());
        let directory = PathBuf::from(std::str::from_utf8(&template[..template.len() - 1]).expect("text"));
        chmod(&directory, 0o755);
        Listener { fd: bind(&directory.join("sock")), directory, early: Vec::new() }
    }

    /// Path of the socket.
    pub fn path(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// The directory of the socket, for further files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Closes the socket, as an agent that dies.
    pub fn hide(&mut self) {
        let _ = std::fs::remove_file(self.path());
        self.fd = std::fs::File::open("/dev/null").expect("/dev/null").into();
    }

    /// Listens again.
    pub fn show(&mut self) {
        self.fd = bind(&self.path());
    }

    /// The connection of the process that calls itself `pid`.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn accept(&mut self, pid: i32) -> Conn {
        if let Some(at) = self.early.iter().position(|c| c.pid() == pid) {
            return self.early.remove(at);
        }
        loop {
            let conn = self.accept_any();
            if conn.pid() == pid {
                return conn;
            }
            self.early.push(conn);
        }
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn accept_any(&mut self) -> Conn {
        wait_readable(self.fd.as_raw_fd()).expect("a ghost connects");
        // SAFETY: no address wanted.
        let fd = unsafe {
            libc::accept4(self.fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        assert!(fd >= 0, "accept: {}", Error::last_os_error());
        // SAFETY: a fresh descriptor of ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut conn = Conn { fd, hello: Msg::default(), backlog: VecDeque::new(), tag: 0 };
        let hello = conn.receive().expect("the first packet");
        assert_eq!(hello.msg.op, ev::HELLO);
        conn.hello = hello.msg;
        conn
    }
}

impl Default for Listener {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn bind(path: &Path) -> OwnedFd {
    // SAFETY: plain numbers; the descriptor is new; the address is complete and live.
    let fd = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "socket: {}", Error::last_os_error());
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
            *to = *from as libc::c_char;
        }
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), size), 0, "bind: {}", Error::last_os_error());
        assert_eq!(libc::listen(fd, 64), 0);
        OwnedFd::from_raw_fd(fd)
    };
    chmod(path, 0o666);
    fd
}

/// One ghost's connection.
pub struct Conn {
    fd: OwnedFd,
    /// Its first packet.
    pub hello: Msg,
    backlog: VecDeque<Packet>,
    tag: u32,
}

impl Conn {
    /// The pid that the ghost says it has.
    pub fn pid(&self) -> i32 {
        self.hello.a as i32
    }

    /// The role that the ghost says it plays.
    pub fn role(&self) -> i64 {
        self.hello.b
    }

    /// Its pid as this machine's own namespace counts.
    ///
    /// # Panics
    /// When the socket does not tell.
    pub fn outer_pid(&self) -> i32 {
        // SAFETY: zero is a value of this record.
        let mut cred: libc::ucred = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: a live record of this size.
        let done = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &mut len)
        };
        assert!(done == 0 && cred.pid > 1);
        cred.pid
    }

    /// Closes the connection.
    pub fn hang_up(&mut self) {
        self.fd = std::fs::File::open("/dev/null").expect("/dev/null").into();
    }

    /// The next packet; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Packet> {
        wait_readable(self.fd.as_raw_fd()).expect("the ghost says something");
        let mut bytes = [0u8; MAX_PACKET];
        // SAFETY: the buffer is writable for its length.
        let n = unsafe { libc::recv(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        let msg = Msg::get(bytes.get(..usize::try_from(n).ok()?)?)?;
        let payload = bytes[Msg::SIZE..n as usize].to_vec();
        assert_eq!(payload.len(), msg.len as usize);
        Some(Packet { msg, payload })
    }

    /// The next report of this kind. Others are kept for later.
    ///
    /// # Panics
    /// When the connection ends or the time is over.
    pub fn report(&mut self, kind: u32) -> Packet {
        if let Some(at) = self.backlog.iter().position(|p| p.msg.op == kind) {
            return self.backlog.remove(at).expect("it is there");
        }
        loop {
            let packet = self.receive().expect("the connection lasts");
            if packet.msg.op == kind {
                return packet;
            }
            self.backlog.push_back(packet);
        }
    }

    /// Reports of this kind that came before the last answer.
    pub fn kept(&self, kind: u32) -> usize {
        self.backlog.iter().filter(|p| p.msg.op == kind).count()
    }

    /// Sends a packet as it is.
    pub fn send_raw(&self, bytes: &[u8], fds: &[RawFd]) {
        let mut control = [0u64; 136];
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: zero is a value of the record; the control buffer is aligned and has room for 253 descriptors.
        let sent = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &mut part;
            message.msg_iovlen = 1;
            if !fds.is_empty() {
                let size = size_of_val(fds) as u32;
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(size) as usize;
                let head = libc::CMSG_FIRSTHDR(&message);
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(size) as usize;
                std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(head).cast(), fds.len());
            }
            libc::sendmsg(self.fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
        };
        assert_eq!(sent, bytes.len() as isize, "send: {}", Error::last_os_error());
    }

    /// Sends a command and gives its tag.
    pub fn send(&mut self, op: u32, a: i64, b: i64, payload: &[u8], fds: &[RawFd]) -> u32 {
        self.send_msg(Msg { op, a, b, ..Msg::default() }, payload, fds)
    }

    fn send_msg(&mut self, msg: Msg, payload: &[u8], fds: &[RawFd]) -> u32 {
        self.tag += 1;
        let mut bytes = vec![0; Msg::SIZE];
        Msg { tag: self.tag, len: payload.len() as u32, ..msg }.put(&mut bytes);
        bytes.extend(payload);
        self.send_raw(&bytes, fds);
        self.tag
    }

    /// Sends a command with all its arguments and waits for its result.
    pub fn call_msg(&mut self, msg: Msg, payload: &[u8]) -> i64 {
        let tag = self.send_msg(msg, payload, &[]);
        let result = self.report(ev::RESULT).msg;
        assert_eq!(result.tag, tag);
        result.a
    }

    /// Sends a command and waits for its result.
    pub fn call_with(&mut self, op: u32, a: i64, b: i64, payload: &[u8], fds: &[RawFd]) -> i64 {
        let tag = self.send(op, a, b, payload, fds);
        let result = self.report(ev::RESULT).msg;
        assert_eq!(result.tag, tag);
        result.a
    }

    /// Sends a command without payload and waits for its result.
    pub fn call(&mut self, op: u32, a: i64, b: i64) -> i64 {
        self.call_with(op, a, b, &[], &[])
    }

    /// Acknowledges signals.
    pub fn ack(&mut self, number: u32) {
        self.send(op::ACK, i64::from(number), 0, &[], &[]);
    }

    /// Makes a child with this pid and role and gives its connection.
    pub fn clone_child(&mut self, listener: &mut Listener, pid: i32, role: Role) -> Conn {
        let digit = [b'0' + role as u8];
        assert_eq!(self.call_with(op::CLONE, i64::from(pid), 0, &digit, &[]), i64::from(pid));
        listener.accept(pid)
    }
}
