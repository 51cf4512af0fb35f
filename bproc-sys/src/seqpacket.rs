//! AF_UNIX sockets that keep packets apart and carry descriptors: how ghosts, keeper and clients talk to an agent.

use std::ffi::OsStr;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::check;
use crate::pod::Zeroable;

/// Most descriptors that one packet carries, both ways. What comes beyond it is closed by the kernel.
pub const MAX_FDS: usize = 64;
/// `SO_PEERPIDFD`, Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// Room for the descriptors' control message, in words so that it is aligned.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>()).div_ceil(8);

/// A listening socket. Non-blocking, closed on exec.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

/// One connection, closed on exec.
#[derive(Debug)]
pub struct Conn {
    fd: OwnedFd,
}

/// What [`Conn::recv`] brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the packet that are in the buffer. 0 means that the peer closed the connection.
    pub len: usize,
    /// The descriptors that came along, closed on exec.
    pub fds: Vec<OwnedFd>,
    /// The packet was longer than the buffer, or had more descriptors than [`MAX_FDS`] or than the process may open.
    pub truncated: bool,
}

/// Who made a connection, at the time of `connect` (or `listen`, seen from the client).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Pid in the reader's pid namespace; 0 when it has none there.
    pub pid: i32,
    /// Effective uid.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check("socket", unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call has just made the descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    let mut addr = libc::sockaddr_un::zeroed();
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // One byte stays for the NUL.
    if bytes.is_empty() || bytes.len() >= addr.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((addr, len as libc::socklen_t))
}

fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: no pointers.
    let old = check("fcntl", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let new = if on { old | libc::O_NONBLOCK } else { old & !libc::O_NONBLOCK };
    // SAFETY: no pointers.
    check("fcntl", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, new) })?;
    Ok(())
}

impl Listener {
    /// Listens at `path` with permission bits `mode`. A socket that is there already is replaced in one step: nobody
    /// finds the path empty or with wider permissions meanwhile. The file stays when the listener is dropped.
    ///
    /// # Errors
    /// ENAMETOOLONG above 107 bytes (16 less are left for the temporary name), and what bind and rename say.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Listener> {
        let fd = socket()?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(OsStr::new(&format!(".{}", std::process::id())));
        let temporary = PathBuf::from(temporary);
        let (addr, len) = address(&temporary)?;
        // The inode of the path gets the mode of the socket, less the umask.
        // SAFETY: no pointers.
        check("fchmod", unsafe { libc::fchmod(fd.as_raw_fd(), mode as libc::mode_t) })?;
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // SAFETY: `addr` lives through the call and `len` does not exceed it.
        check("bind", unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) })?;
        let placed = (|| {
            std::fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            // SAFETY: no pointers.
            check("listen", unsafe { libc::listen(fd.as_raw_fd(), 4096) })?;
            set_nonblocking(fd.as_fd(), true)?;
            std::fs::rename(&temporary, path)
        })();
        if let Err(e) = placed {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&temporary);
            return Err(e);
        }
        Ok(Listener { fd, path: path.to_owned() })
    }

    /// Takes a connection. It is non-blocking and closed on exec.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits, and what accept4(2) says.
    pub fn accept(&self) -> io::Result<Conn> {
        loop {
            // SAFETY: null pointers mean that the address is not wanted.
            let ret = unsafe {
                libc::accept4(
                    self.fd.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                )
            };
            if ret >= 0 {
                // SAFETY: the call has just made the descriptor, nobody else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(ret) };
                return Ok(Conn { fd });
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) {
                return Err(error);
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Conn {
    /// Connects to a listener. The connection is blocking until [`Conn::set_nonblocking`].
    ///
    /// # Errors
    /// What connect(2) says; waits while the listener's queue is full.
    pub fn connect(path: &Path) -> io::Result<Conn> {
        let fd = socket()?;
        let (addr, len) = address(path)?;
        loop {
            // SAFETY: `addr` lives through the call and `len` does not exceed it.
            if unsafe { libc::connect(fd.as_raw_fd(), (&raw const addr).cast(), len) } == 0 {
                return Ok(Conn { fd });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }

    /// A connection that this process was started with, as descriptor `number`. To be called once, at the start.
    ///
    /// # Errors
    /// EBADF and ENOTSOCK: there is none.
    pub fn inherited(number: RawFd) -> io::Result<Conn> {
        // SAFETY: no pointers; a number that is not open is an error.
        check("F_GETFD", unsafe { libc::fcntl(number, libc::F_GETFD) })?;
        // SAFETY: it is open, and whoever started this process gave it to us alone.
        let conn = Conn { fd: unsafe { OwnedFd::from_raw_fd(number) } };
        match conn.peer() {
            Ok(_) => Ok(conn),
            Err(error) => {
                // It is somebody else's.
                std::mem::forget(conn);
                Err(error)
            }
        }
    }

    /// Two ends of one connection, both blocking.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub fn pair() -> io::Result<(Conn, Conn)> {
        let mut fds = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: `fds` has room for two.
        check("socketpair", unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
        let [a, b] = fds.map(|fd| {
            // SAFETY: the call has just made both, nobody else owns them.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Conn { fd }
        });
        Ok((a, b))
    }

    /// Blocking or not.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        set_nonblocking(self.fd.as_fd(), on)
    }

    /// Sets the send buffer to `bytes`, beyond the system's limit when the caller may (CAP_NET_ADMIN). A packet
    /// takes about 768 bytes of it at least.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let set = |option| {
            // SAFETY: `value` lives through the call and has the size that is told.
            let ret = unsafe {
                libc::setsockopt(
                    self.fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            check("setsockopt", ret)
        };
        set(libc::SO_SNDBUFFORCE).or_else(|_| set(libc::SO_SNDBUF))?;
        Ok(())
    }

    /// Sends one packet with its descriptors.
    ///
    /// # Errors
    /// EINVAL for an empty packet (it would look like the end) or more than [`MAX_FDS`] descriptors; `WouldBlock`;
    /// EPIPE (without a signal) when the peer is gone; EMSGSIZE.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || fds.len() > MAX_FDS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = [0u64; CONTROL_WORDS];
        let mut msg = libc::msghdr::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if !fds.is_empty() {
            let payload = size_of_val(fds) as libc::c_uint;
            msg.msg_control = control.as_mut_ptr().cast();
            // SAFETY: pure arithmetic; `control` has room for MAX_FDS descriptors and there are no more.
            msg.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
            // SAFETY: `msg_control` is aligned and holds at least one header; BorrowedFd is a RawFd in memory.
            unsafe {
                let head = libc::CMSG_FIRSTHDR(&raw const msg);
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(payload) as _;
                let data = libc::CMSG_DATA(head).cast::<RawFd>();
                for (i, fd) in fds.iter().enumerate() {
                    data.add(i).write_unaligned(fd.as_raw_fd());
                }
            }
        }
        loop {
            // SAFETY: `msg` points to `iov`, `bytes` and `control`, which live through the call.
            let ret = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) };
            if ret >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }

    /// Receives one packet into `buffer`.
    ///
    /// # Errors
    /// `WouldBlock`, ECONNRESET and what recvmsg(2) says.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [0u64; CONTROL_WORDS];
        let mut msg = libc::msghdr::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = size_of_val(&control) as _;
        let len = loop {
            // SAFETY: `msg` points to `iov`, `buffer` and `control`, which live through the call.
            let ret = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
            if ret >= 0 {
                break ret as usize;
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        };
        let mut fds = Vec::new();
        // SAFETY: the kernel has written well-formed control messages within msg_controllen; each descriptor in
        // them is new and belongs to nobody else.
        unsafe {
            let mut head = libc::CMSG_FIRSTHDR(&raw const msg);
            while !head.is_null() {
                if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                    let bytes = ((*head).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                    let data = libc::CMSG_DATA(head).cast::<RawFd>();
                    for i in 0..bytes / size_of::<RawFd>() {
                        fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                    }
                }
                head = libc::CMSG_NXTHDR(&raw const msg, head);
            }
        }
        let truncated = msg.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        Ok(Received { len, fds, truncated })
    }

    fn option<T>(&self, option: libc::c_int, mut value: T) -> io::Result<T> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` lives through the call and `len` is its size.
        check("getsockopt", unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
        })?;
        Ok(value)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn peer(&self) -> io::Result<PeerCred> {
        let cred = self.option(libc::SO_PEERCRED, libc::ucred::zeroed())?;
        Ok(PeerCred { pid: cred.pid, uid: cred.uid, gid: cred.gid })
    }

    /// A pidfd of the process at the other end: unlike its number it cannot come to mean another one.
    ///
    /// # Errors
    /// ENOPROTOOPT before Linux 6.5; ESRCH when it is gone already.
    pub fn peer_pidfd(&self) -> io::Result<OwnedFd> {
        let fd: RawFd = self.option(SO_PEERPIDFD, -1)?;
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
        }
        // SAFETY: the call has just made the descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl From<OwnedFd> for Conn {
    fn from(fd: OwnedFd) -> Conn {
        Conn { fd }
    }
}

impl From<Conn> for OwnedFd {
    fn from(conn: Conn) -> OwnedFd {
        conn.fd
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Conn {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
