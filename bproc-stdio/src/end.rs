//! The local end of a stream: a descriptor that is read or written without ever holding up a thread of the runtime
//! and without touching what others share.
//!
//! O_NONBLOCK belongs to the open file description, which a user's shell may hold too. So a shared pipe or terminal
//! is opened anew through /proc/self/fd, a socket is asked with MSG_DONTWAIT, and whatever else there is (files,
//! /dev/null, odd devices) is left to blocking threads. A shared file must keep its description: its offset is shared.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, major};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::watched::watch;

/// Bytes that one read asks for.
const CHUNK: usize = 128 * 1024;
/// A buffer with less room is replaced.
const LEAST_ROOM: usize = 32 * 1024;
/// Capacity that our own pipes get, bytes.
const PIPE_SIZE: i32 = 256 * 1024;

/// Milliseconds after which a thread that waits for a descriptor looks whether anyone still wants it.
const LOOK_UP_MS: u16 = 1000;

/// How often an odd device is looked at.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// Whose the open file description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Others have it too.
    Shared,
    /// Ours alone.
    Ours,
}

enum How {
    /// Non-blocking and pollable.
    Polled(AsyncFd<OwnedFd>),
    /// A socket, asked with MSG_DONTWAIT.
    Socket(AsyncFd<OwnedFd>),
    /// Anything else, left to threads.
    Blocking(Arc<OwnedFd>),
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Terminals that may be opened anew: pts (136-143), consoles and serial lines (4). A ptmx would be another terminal.
fn is_reopenable_tty(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && matches!(major(stat.st_rdev), 4 | 136..=143)
}

fn take(fd: OwnedFd, held: Held, interest: Interest) -> io::Result<How> {
    let writes = interest.is_writable();
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    let mode = flags & OFlag::O_ACCMODE;
    let fits = mode == OFlag::O_RDWR || mode == if writes { OFlag::O_WRONLY } else { OFlag::O_RDONLY };
    // Opening anew would grant what the holder never had.
    if !fits || flags.contains(OFlag::O_PATH) {
        return Err(Errno::EBADF.into());
    }
    let stat = fstat(&fd)?;
    match kind(&stat) {
        SFlag::S_IFSOCK => Ok(How::Socket(watch(fd, interest)?)),
        SFlag::S_IFIFO | SFlag::S_IFCHR if held == Held::Ours => {
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            if kind(&stat) == SFlag::S_IFIFO {
                // Larger is faster, not needed: a limit on pipe memory may forbid it.
                let _ = fcntl(&fd, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
            }
            polled(fd, interest)
        }
        SFlag::S_IFIFO => {
            let ours = reopen(&fd, mode)?;
            drop(fd);
            polled(ours, interest)
        }
        SFlag::S_IFCHR if is_reopenable_tty(&stat) => match reopen(&fd, mode) {
            Ok(ours) if fstat(&ours)?.st_rdev == stat.st_rdev => polled(ours, interest),
            _ => Ok(How::Blocking(Arc::new(fd))),
        },
        SFlag::S_IFDIR | SFlag::S_IFLNK => Err(Errno::EISDIR.into()),
        _ => Ok(How::Blocking(Arc::new(fd))),
    }
}

fn reopen(fd: &OwnedFd, mode: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match open(path.as_str(), mode | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(ours) => Ok(ours),
        // A pipe without a reader cannot be opened for writing.
        Err(Errno::ENXIO) => Err(Errno::EPIPE.into()),
        Err(e) => Err(e.into()),
    }
}

fn polled(fd: OwnedFd, interest: Interest) -> io::Result<How> {
    match watch(fd, interest) {
        Ok(fd) => Ok(How::Polled(fd)),
        // epoll takes no /dev/null.
        Err(e) => Ok(How::Blocking(Arc::new(e.into_parts().0))),
    }
}

/// In a thread: waits until `fd` is ready. False when nobody waits for the result any more.
fn wait_ready(fd: &Arc<OwnedFd>, events: PollFlags) -> io::Result<bool> {
    loop {
        // The stream's own reference is gone: it has ended.
        if Arc::strong_count(fd) == 1 {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(fd.as_fd(), events)], LOOK_UP_MS) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Appends what one `read` gives. 0: the end.
fn read_into(buffer: &mut BytesMut, read: impl FnOnce(*mut libc::c_void, usize) -> isize) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    let len = room.len().min(CHUNK);
    let got = read(room.as_mut_ptr().cast(), len);
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    debug_assert!(got <= len);
    // SAFETY: the call has filled `got` bytes of the spare room, which holds `len` at least.
    unsafe { buffer.set_len(buffer.len() + got) };
    Ok(got)
}

fn waiting(how: &How) -> u64 {
    let (How::Polled(fd) | How::Socket(fd)) = how else {
        return 0;
    };
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to a valid place.
    let failed = unsafe { libc::ioctl(fd.get_ref().as_raw_fd(), libc::FIONREAD, &mut bytes) } != 0;
    if failed { 0 } else { u64::try_from(bytes).unwrap_or(0) }
}

/// Where bytes come from.
pub(crate) struct Source {
    how: How,
    buffer: BytesMut,
    /// A read in a thread, kept so that nothing is lost when whoever awaits it is interrupted.
    pending: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Source {
    pub(crate) fn new(fd: OwnedFd, held: Held) -> io::Result<Source> {
        Ok(Source { how: take(fd, held, Interest::READABLE)?, buffer: BytesMut::new(), pending: None })
    }

    /// The next bytes; empty at the end. May be interrupted without loss.
    pub(crate) async fn read(&mut self) -> io::Result<Bytes> {
        if self.buffer.capacity() < LEAST_ROOM {
            self.buffer.reserve(2 * CHUNK);
        }
        let buffer = &mut self.buffer;
        match &self.how {
            How::Polled(fd) => {
                fd.async_io(Interest::READABLE, |fd| {
                    // SAFETY: pointer and length describe spare room of the buffer.
                    read_into(buffer, |at, len| unsafe { libc::read(fd.as_raw_fd(), at, len) })
                })
                .await?;
            }
            How::Socket(fd) => {
                fd.async_io(Interest::READABLE, |fd| {
                    // SAFETY: pointer and length describe spare room of the buffer.
                    read_into(buffer, |at, len| unsafe { libc::recv(fd.as_raw_fd(), at, len, libc::MSG_DONTWAIT) })
                })
                .await?;
            }
            How::Blocking(fd) => {
                if self.pending.is_none() {
                    let fd = fd.clone();
                    self.pending = Some(tokio::task::spawn_blocking(move || {
                        if !wait_ready(&fd, PollFlags::POLLIN)? {
                            return Ok(Bytes::new());
                        }
                        let mut buffer = BytesMut::with_capacity(CHUNK);
                        // SAFETY: pointer and length describe spare room of the buffer.
                        read_into(&mut buffer, |at, len| unsafe { libc::read(fd.as_raw_fd(), at, len) })?;
                        Ok(buffer.freeze())
                    }));
                }
                let Some(task) = &mut self.pending else {
                    return Ok(Bytes::new());
                };
                let got = task.await;
                self.pending = None;
                return got.map_err(io::Error::other)?;
            }
        }
        Ok(self.buffer.split().freeze())
    }

    /// Comes back when a read would not wait; nothing is read.
    pub(crate) async fn ready(&self) {
        while !self.is_ready() {
            match &self.how {
                How::Polled(fd) | How::Socket(fd) => {
                    let Ok(mut ready) = fd.readable().await else { return };
                    // Somebody else may have read it.
                    if !self.is_ready() {
                        ready.clear_ready();
                    }
                }
                How::Blocking(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Would a read not wait?
    pub(crate) fn is_ready(&self) -> bool {
        let fd = match &self.how {
            How::Polled(fd) | How::Socket(fd) => fd.get_ref(),
            How::Blocking(fd) => fd.as_ref(),
        };
        self.pending.is_some() || poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], 0u8) != Ok(0)
    }

    /// What was read may be in a thread's hands when whoever awaits it is ended.
    pub(crate) fn reads_in_threads(&self) -> bool {
        matches!(self.how, How::Blocking(_))
    }

    /// What a read that was interrupted has brought in the meantime.
    pub(crate) async fn pending(&mut self) -> Option<Bytes> {
        // Only a thread reads on: from files, which never keep it waiting, and odd devices, which may.
        let task = self.pending.take()?;
        let limit = std::time::Duration::from_millis(u64::from(LOOK_UP_MS));
        tokio::time::timeout(limit, task).await.ok()?.ok()?.ok().filter(|bytes| !bytes.is_empty())
    }

    /// Bytes that wait to be read; 0 where the kernel does not tell.
    pub(crate) fn waiting(&self) -> u64 {
        waiting(&self.how)
    }

    /// Whether it is the master side of a terminal that a session has as its own.
    pub(crate) fn has_session(&self) -> bool {
        let (How::Polled(fd) | How::Socket(fd)) = &self.how else {
            return false;
        };
        let mut session: libc::pid_t = 0;
        // SAFETY: TIOCGSID writes one pid to a valid place.
        unsafe { libc::ioctl(fd.get_ref().as_raw_fd(), libc::TIOCGSID, &mut session) == 0 }
    }
}

/// A way back to a pipe whose ends are closed here, as long as others have it: neither a reader nor a writer of it.
pub(crate) struct WayBack(OwnedFd);

impl WayBack {
    pub(crate) fn to(fd: &OwnedFd) -> io::Result<WayBack> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok(WayBack(open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// What is in the pipe.
    pub(crate) fn drain(&self) -> io::Result<Bytes> {
        let reader = reopen(&self.0, OFlag::O_RDONLY)?;
        let mut all = BytesMut::new();
        loop {
            all.reserve(CHUNK);
            // SAFETY: pointer and length describe spare room of the buffer.
            match read_into(&mut all, |at, len| unsafe { libc::read(reader.as_raw_fd(), at, len) }) {
                // Empty, and nobody writes.
                Ok(0) => return Ok(all.freeze()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(all.freeze()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes to it again. EPIPE: nobody reads it any more.
    pub(crate) fn sink(&self) -> io::Result<Sink> {
        Sink::new(reopen(&self.0, OFlag::O_WRONLY)?, Held::Ours)
    }
}

/// Where bytes go.
pub(crate) struct Sink {
    how: How,
}

impl Sink {
    pub(crate) fn new(fd: OwnedFd, held: Held) -> io::Result<Sink> {
        Ok(Sink { how: take(fd, held, Interest::WRITABLE | Interest::ERROR)? })
    }

    /// Writes all of it. Interrupted, an unknown part is written.
    pub(crate) async fn write_all(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(&bytes).await?;
            bytes = bytes.slice(written..);
        }
        Ok(())
    }

    /// Writes some of it. May be interrupted; then nothing is written.
    pub(crate) async fn write(&self, bytes: &Bytes) -> io::Result<usize> {
        let told = |n: isize| usize::try_from(n).map_err(|_| io::Error::last_os_error());
        match &self.how {
            How::Polled(fd) => {
                fd.async_io(Interest::WRITABLE, |fd| {
                    // SAFETY: pointer and length describe `bytes`.
                    told(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
                })
                .await
            }
            How::Socket(fd) => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                fd.async_io(Interest::WRITABLE, |fd| {
                    // SAFETY: pointer and length describe `bytes`.
                    told(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
                })
                .await
            }
            How::Blocking(fd) => {
                let (fd, bytes) = (fd.clone(), bytes.clone());
                tokio::task::spawn_blocking(move || {
                    if !wait_ready(&fd, PollFlags::POLLOUT)? {
                        return Err(Errno::EPIPE.into());
                    }
                    // SAFETY: pointer and length describe `bytes`.
                    told(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
                })
                .await
                .map_err(io::Error::other)?
            }
        }
    }

    /// Comes back when the reader of a pipe is gone; never, where that cannot be seen without writing.
    pub(crate) async fn broken(&self) {
        if let How::Polled(fd) = &self.how
            && fd.ready(Interest::ERROR).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Bytes in a pipe that nobody has read.
    pub(crate) fn waiting(&self) -> u64 {
        waiting(&self.how)
    }

    /// Is the reader of a pipe gone?
    pub(crate) fn is_broken(&self) -> bool {
        let (How::Polled(fd) | How::Socket(fd)) = &self.how else { return false };
        let mut polled = [PollFd::new(fd.get_ref().as_fd(), PollFlags::empty())];
        poll(&mut polled, 0u8).is_ok_and(|n| n > 0)
    }

    /// The end of a terminal's input: its end-of-file character, twice when the line has begun (`in_line`), as a
    /// user would type it. Nothing in raw mode.
    pub(crate) async fn terminal_eof(&self, in_line: bool) -> io::Result<()> {
        use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
        let How::Polled(fd) = &self.how else {
            return Ok(());
        };
        let modes = tcgetattr(fd.get_ref())?;
        if !modes.local_flags.contains(LocalFlags::ICANON) {
            return Ok(());
        }
        let eof = modes.control_chars[SpecialCharacterIndices::VEOF as usize];
        self.write_all(Bytes::from(vec![eof; if in_line { 2 } else { 1 }])).await
    }

    /// Sets a terminal's size; those on it get SIGWINCH.
    pub(crate) fn set_winsize(&self, raw: [u8; 8]) -> io::Result<()> {
        let How::Polled(fd) = &self.how else {
            return Ok(());
        };
        let word = |i: usize| u16::from_ne_bytes([raw[i], raw[i + 1]]);
        let size = libc::winsize { ws_row: word(0), ws_col: word(2), ws_xpixel: word(4), ws_ypixel: word(6) };
        // SAFETY: TIOCSWINSZ reads one winsize from a valid place.
        let failed = unsafe { libc::ioctl(fd.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
