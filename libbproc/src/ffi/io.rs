//! What the descriptors of a process on a node are connected to.
//!
//! A socket of an `io` list is connected from here, where the caller is, and its bytes are forwarded as those of any
//! other descriptor: towards the process for descriptor 0, away from it for all others. The socket must be connected
//! by the process that is to be replaced (its pid is what `BPROC_IO_SEND_INFO` tells), so its place is held by a
//! descriptor on `/dev/null` until then.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, sockaddr, sockaddr_in};

use super::abi::{IO_DELAY, IO_FILE, IO_MAX_LEN, IO_MEMFILE, IO_SEND_INFO, IO_SOCKET, Io, IoFile};
use super::{Number, Result, errno};
use crate::{Source, Stream};

/// Where a descriptor comes from.
#[derive(Debug)]
enum Origin {
    Null,
    Own(BorrowedFd<'static>),
    Closed,
    File { path: Vec<u8>, flags: u32, mode: u32, offset: i64 },
    Socket(usize),
}

/// A socket that is to be connected.
#[derive(Debug)]
struct Socket {
    /// Its number in the process.
    fd: c_int,
    place: OwnedFd,
    to: sockaddr_in,
    send_info: bool,
}

/// All descriptors of the process.
pub(super) struct Setup {
    all: Vec<(c_int, Origin)>,
    listed: bool,
    sockets: Vec<Socket>,
}

/// A standard stream of the caller, if it is open.
fn own(fd: c_int) -> Origin {
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Origin::Closed;
    }
    // SAFETY: it is open. The caller of the C function keeps it so while the call lasts.
    Origin::Own(unsafe { BorrowedFd::borrow_raw(fd) })
}

impl Setup {
    /// As the calls without a list have it: input from `/dev/null`, output to where the caller's goes.
    pub(super) fn plain() -> Setup {
        Setup { all: vec![(0, Origin::Null), (1, own(1)), (2, own(2))], listed: false, sockets: Vec::new() }
    }

    /// As a list says.
    ///
    /// # Safety
    /// `list` is null or has `len` entries.
    pub(super) unsafe fn listed(list: *const Io, len: c_int) -> Result<Setup> {
        let mut setup = Setup { all: Vec::new(), listed: true, sockets: Vec::new() };
        if !(0..=IO_MAX_LEN).contains(&len) {
            return Err(libc::EINVAL);
        }
        if list.is_null() && len > 0 {
            return Err(libc::EFAULT);
        }
        for i in 0..len as usize {
            // SAFETY: the caller gives `len` entries.
            let io = unsafe { &*list.add(i) };
            if io.fd < 0 || setup.all.iter().any(|(fd, _)| *fd == io.fd) || io.flags & !(IO_SEND_INFO | IO_DELAY) != 0 {
                return Err(libc::EINVAL);
            }
            let origin = match io.kind {
                // SAFETY: every pattern of bytes is a value of it.
                IO_FILE => file(unsafe { &io.d.file })?,
                // SAFETY: as above.
                IO_SOCKET => setup.socket(io, unsafe { &io.d.addr })?,
                IO_MEMFILE => return Err(libc::EPERM),
                _ => return Err(libc::EINVAL),
            };
            setup.all.push((io.fd, origin));
        }
        Ok(setup)
    }

    fn socket(&mut self, io: &Io, to: &sockaddr) -> Result<Origin> {
        if c_int::from(to.sa_family) != libc::AF_INET {
            return Err(libc::EAFNOSUPPORT);
        }
        // SAFETY: both have 16 bytes and every pattern of bytes is a value of either.
        let mut to: sockaddr_in = unsafe { std::mem::transmute(*to) };
        if to.sin_addr.s_addr == libc::INADDR_ANY {
            to.sin_addr.s_addr = libc::INADDR_LOOPBACK.to_be();
        }
        let place = null()?;
        self.sockets.push(Socket { fd: io.fd, place, to, send_info: io.flags & IO_SEND_INFO != 0 });
        Ok(Origin::Socket(self.sockets.len() - 1))
    }

    /// Descriptors that go along with a request.
    pub(super) fn forwarded(&self) -> Vec<BorrowedFd<'_>> {
        let fd = |s: Stream<'_>| if let Source::Forward(_) = s.source { Some(s.fd) } else { None };
        let numbers: Vec<c_int> = self.streams().into_iter().filter_map(fd).collect();
        let place = |fd: c_int| self.sockets.iter().find(|s| s.fd == fd).map(|s| s.place.as_fd());
        numbers.into_iter().filter_map(place).collect()
    }

    /// The highest number in it.
    pub(super) fn highest(&self) -> c_int {
        self.all.iter().map(|(fd, _)| *fd).max().unwrap_or(0)
    }

    /// A list was given, if an empty one.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Are there sockets to be connected?
    pub(super) fn connects(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// As a request has them.
    pub(super) fn streams(&self) -> Vec<Stream<'_>> {
        let stream = |(fd, origin): &(c_int, Origin)| {
            let source = match origin {
                Origin::Null => Source::Null,
                Origin::Own(own) => Source::Forward(*own),
                Origin::Closed => Source::Closed,
                Origin::File { path, flags, mode, offset } => {
                    Source::File { path: path.clone(), flags: *flags, mode: *mode, offset: *offset }
                }
                Origin::Socket(at) => match self.sockets.get(*at) {
                    Some(socket) => Source::Forward(socket.place.as_fd()),
                    None => Source::Closed,
                },
            };
            let reads = |flags: u32| flags as c_int & libc::O_ACCMODE == libc::O_RDONLY;
            let input = match origin {
                Origin::File { flags, .. } => reads(*flags),
                _ => *fd == 0,
            };
            Stream { fd: *fd, input, source }
        };
        self.all.iter().map(stream).collect()
    }

    /// Connects the sockets. Takes no memory, so it may run in a child that was cloned.
    pub(super) fn connect(&self) -> std::result::Result<(), Number> {
        self.sockets.iter().try_for_each(Socket::connect)
    }
}

/// A list ready for a process that stays here: its descriptors, above all of its numbers.
pub(super) struct Ready {
    all: Vec<(c_int, OwnedFd)>,
    /// Those to whom it tells its pid.
    told: Vec<c_int>,
}

impl Setup {
    /// Opens everything in the list, then connects the sockets: for a file that is not there nobody calls.
    pub(super) fn ready(&self) -> Result<Ready> {
        let mut ready = Ready { all: Vec::new(), told: Vec::new() };
        let (sockets, others): (Vec<_>, Vec<_>) = self.all.iter().partition(|(_, o)| matches!(o, Origin::Socket(_)));
        for (fd, origin) in others.into_iter().chain(sockets) {
            let opened = match origin {
                Origin::File { path, flags, mode, offset } => open(path, *flags, *mode, *offset)?,
                Origin::Socket(at) => match self.sockets.get(*at) {
                    Some(socket) => {
                        socket.connect_as(None)?;
                        if socket.send_info {
                            ready.told.push(*fd);
                        }
                        duplicate(socket.place.as_raw_fd(), self.highest())?
                    }
                    None => continue,
                },
                Origin::Null => duplicate(null()?.as_raw_fd(), self.highest())?,
                Origin::Own(own) => duplicate(own.as_raw_fd(), self.highest())?,
                Origin::Closed => continue,
            };
            ready.all.push((*fd, duplicate(opened.as_raw_fd(), self.highest())?));
        }
        Ok(ready)
    }
}

impl Ready {
    /// In a child that was forked: it has these and no others.
    pub(super) fn take(self) {
        // SAFETY: no pointers, but for two numbers that live through the call. All descriptors are replaced; whoever
        // owns one in this copy of the caller's memory must not be dropped.
        unsafe {
            for (fd, opened) in &self.all {
                libc::dup2(opened.as_raw_fd(), *fd);
                if self.told.contains(fd) {
                    let info = [libc::getpid(), *fd];
                    libc::send(*fd, info.as_ptr().cast(), size_of_val(&info), libc::MSG_NOSIGNAL);
                }
            }
            let mut kept: Vec<u32> = self.all.iter().map(|(fd, _)| *fd as u32).collect();
            kept.sort_unstable();
            let mut from = 0;
            for fd in kept {
                if fd > from {
                    libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
                }
                from = fd + 1;
            }
            libc::syscall(libc::SYS_close_range, from, u32::MAX, 0);
        }
        std::mem::forget(self);
    }
}

fn null() -> Result<OwnedFd> {
    let place = File::options().read(true).write(true).open("/dev/null");
    Ok(place.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))?.into())
}

/// The same on a number above this one.
fn duplicate(fd: c_int, above: c_int) -> Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is ours.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above.saturating_add(1)) {
            -1 => Err(errno()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn open(path: &[u8], flags: u32, mode: u32, offset: i64) -> Result<OwnedFd> {
    let path = std::ffi::CString::new(path).map_err(|_| libc::ENOENT)?;
    // SAFETY: the path lives through the call; the descriptor is new.
    let file = unsafe {
        match libc::open(path.as_ptr(), flags as c_int | libc::O_CLOEXEC | libc::O_NOCTTY, mode) {
            -1 => return Err(errno()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    // SAFETY: no pointers.
    if offset != 0 && unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_SET) } < 0 {
        return Err(errno());
    }
    Ok(file)
}

impl Socket {
    fn connect(&self) -> std::result::Result<(), Number> {
        // SAFETY: no pointers.
        self.connect_as(Some(unsafe { libc::getpid() }).filter(|_| self.send_info))
    }

    /// Connects it; and tells it of this process first.
    fn connect_as(&self, pid: Option<c_int>) -> std::result::Result<(), Number> {
        // SAFETY: `to` lives through the call and has the size that is told; `info` likewise. The descriptor is new;
        // after dup3 it is closed, and `place` is the socket.
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(errno());
            }
            let size = size_of::<sockaddr_in>() as libc::socklen_t;
            let mut connected = libc::connect(fd, (&raw const self.to).cast(), size);
            if let (0, Some(pid)) = (connected, pid) {
                let info = [pid, self.fd];
                let sent = libc::send(fd, info.as_ptr().cast(), size_of_val(&info), libc::MSG_NOSIGNAL);
                connected = if sent == size_of_val(&info) as isize { 0 } else { -1 };
            }
            if connected < 0 || libc::dup3(fd, self.place.as_raw_fd(), libc::O_CLOEXEC) < 0 {
                let number = errno();
                libc::close(fd);
                return Err(number);
            }
            libc::close(fd);
        }
        Ok(())
    }
}

fn file(file: &IoFile) -> Result<Origin> {
    let path: Vec<u8> = file.name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    if path.is_empty() {
        return Err(libc::ENOENT);
    }
    if path.len() == file.name.len() {
        return Err(libc::ENAMETOOLONG);
    }
    if file.offset < 0 {
        return Err(libc::EINVAL);
    }
    Ok(Origin::File { path, flags: file.flags as u32, mode: file.mode as u32, offset: file.offset })
}
