//! Pipes and socket pairs seen from outside: what waits in them, read without taking it, and who is at the other end.

use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{SysError, done};

/// Bytes that a pipe can hold.
pub(crate) fn pipe_size(pipe: BorrowedFd<'_>) -> Result<u32, SysError> {
    // SAFETY: no memory involved.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) };
    done(size.into(), "ask the size of a pipe", 0).map(|n| n as u32)
}

/// What waits in a pipe of `size` bytes, which stays there.
pub(crate) fn peek_pipe(pipe: BorrowedFd<'_>, size: u32) -> Result<Vec<u8>, SysError> {
    let mut waiting = 0i32;
    // SAFETY: one integer that outlives the call.
    done(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) }.into(), "look into a pipe", 0)?;
    let mut bytes = Vec::new();
    if waiting == 0 {
        return Ok(bytes);
    }
    let (mut copy, into) = std::io::pipe().map_err(|e| SysError::from_io("make a pipe", 0, &e))?;
    // As many slots as the other, or not all of it fits.
    // SAFETY: no memory involved.
    let sized = unsafe { libc::fcntl(into.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    done(sized.into(), "size a pipe", 0)?;
    // SAFETY: no memory involved.
    let copied = unsafe { libc::tee(pipe.as_raw_fd(), into.as_raw_fd(), size as usize, libc::SPLICE_F_NONBLOCK) };
    done(copied as i64, "look into a pipe", 0)?;
    drop(into);
    copy.read_to_end(&mut bytes).map_err(|e| SysError::from_io("look into a pipe", 0, &e))?;
    if bytes.len() == waiting as usize {
        Ok(bytes)
    } else {
        Err(SysError { op: "copy a pipe", pid: 0, errno: libc::EIO })
    }
}

/// What waits in a stream socket, which stays there; none where that is more than bytes.
pub(crate) fn peek_stream(socket: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, SysError> {
    let mut waiting = 0i32;
    // SAFETY: one integer that outlives the call (SIOCINQ has FIONREAD's number).
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut waiting) }.into(), "look into a socket", 0)?;
    let mut bytes = vec![0u8; waiting.max(0) as usize + 1];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero header is valid; the buffer outlives the call. Without room for control messages the kernel
    // installs no descriptors, and says that there were some.
    let (got, flags) = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        let got = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        (got, header.msg_flags)
    };
    if got < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
        return Ok(Some(Vec::new()));
    }
    let got = done(got as i64, "look into a socket", 0)? as usize;
    bytes.truncate(got);
    Ok((flags & libc::MSG_CTRUNC == 0 && got == waiting as usize).then_some(bytes))
}

/// An option of a socket that is a number.
pub(crate) fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Option<i32> {
    let (mut value, mut len) = (0i32, 4u32);
    // SAFETY: value and length outlive the call.
    let ret = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    (ret == 0).then_some(value)
}

/// Inode of the socket at the other end of this unix socket (by inode) of the caller's network namespace, if nobody has
/// shut a direction down.
pub(crate) fn unix_peer(inode: u32) -> Option<u32> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const SHOW_PEER: u32 = 4;
    const PEER: u16 = 2;
    const SHUTDOWN: u16 = 6;
    // SAFETY: a new descriptor of ours.
    let link = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
        if fd < 0 {
            return None;
        }
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    // Header: length, type, flags, sequence, port; request: family, states, inode, what to show, any cookie.
    let mut ask = Vec::new();
    ask.extend(40u32.to_ne_bytes());
    ask.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    ask.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    ask.extend([0; 8]);
    ask.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    ask.extend(u32::MAX.to_ne_bytes());
    ask.extend(inode.to_ne_bytes());
    ask.extend(SHOW_PEER.to_ne_bytes());
    ask.extend([0xff; 8]);
    let mut answer = [0u8; 1024];
    // SAFETY: both buffers outlive the calls.
    let got = unsafe {
        if libc::send(link.as_raw_fd(), ask.as_ptr().cast(), ask.len(), 0) < 0 {
            return None;
        }
        libc::recv(link.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    let answer = answer.get(..usize::try_from(got).ok()?)?;
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    // The message is family, type, state, padding, inode, cookie; attributes follow.
    if half(4)? != SOCK_DIAG_BY_FAMILY || word(20)? != inode {
        return None;
    }
    let (mut at, mut peer) = (32, None);
    while let (Some(len), Some(kind)) = (half(at), half(at + 2)) {
        match kind {
            PEER => peer = word(at + 4),
            SHUTDOWN if answer.get(at + 4) != Some(&0) => return None,
            _ => {}
        }
        at += usize::from(len.max(4)).next_multiple_of(4);
    }
    peer
}

/// Does the epoll descriptor `epoll` of a process, where it watches the number `watched`, watch what `fd` leads to?
pub(crate) fn watches(pid: i32, epoll: i32, watched: i32, fd: i32) -> bool {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll as u32, watched as u32, 0];
    // SAFETY: the slot outlives the call.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, slot.as_ptr()) == 0 }
}

/// Does a read of this event counter, which stands at `count`, take one of it, or all? Found by reading: nobody else may use it
/// meanwhile. It stands at `count` afterwards.
pub(crate) fn takes_one(event: BorrowedFd<'_>, count: u64) -> Result<bool, SysError> {
    let take = || -> Result<u64, SysError> {
        let mut got = 0u64;
        // SAFETY: eight bytes that outlive the call.
        let read = unsafe { libc::read(event.as_raw_fd(), (&raw mut got).cast(), 8) };
        done(read as i64, "read an event counter", 0).map(|_| got)
    };
    let add = |more: u64| -> Result<(), SysError> {
        // SAFETY: eight bytes that outlive the call.
        let wrote = unsafe { libc::write(event.as_raw_fd(), (&raw const more).cast(), 8) };
        done(wrote as i64, "add to an event counter", 0).map(drop)
    };
    let more = if count < 2 { 2 } else { 0 };
    add(more)?;
    let one = take()? == 1;
    match (one, more) {
        (true, 0) => add(1)?,
        (true, _) => drop(take()?),
        (false, _) => add(count)?,
    }
    Ok(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    fn inode(fd: BorrowedFd<'_>) -> u32 {
        std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().ino() as u32
    }

    #[test]
    fn a_counter_tells_what_a_read_takes_and_keeps_its_count() {
        for count in [0u32, 1, 2, 7] {
            for flags in [0, libc::EFD_SEMAPHORE] {
                // SAFETY: a new descriptor of ours.
                let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(count, flags | libc::EFD_NONBLOCK)) };
                assert_eq!(takes_one(event.as_fd(), count.into()).unwrap(), flags != 0, "{count}");
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd())).unwrap();
                let told = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap();
                assert_eq!(u32::from_str_radix(told.trim(), 16), Ok(count), "flags {flags}");
            }
        }
    }

    #[test]
    fn a_pipe_keeps_what_is_looked_at() {
        let (mut out, mut into) = std::io::pipe().unwrap();
        assert_eq!(peek_pipe(out.as_fd(), 65536).unwrap(), b"");
        for i in 0..10u8 {
            into.write_all(&[i; 700]).unwrap();
        }
        let size = pipe_size(out.as_fd()).unwrap();
        let seen = peek_pipe(out.as_fd(), size).unwrap();
        drop(into);
        let mut all = Vec::new();
        out.read_to_end(&mut all).unwrap();
        assert_eq!((seen.len(), &seen), (7000, &all));
    }

    #[test]
    fn a_socket_pair_knows_its_ends() {
        let (a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(unix_peer(inode(a.as_fd())), Some(inode(b.as_fd())));
        assert_eq!(peek_stream(a.as_fd()).unwrap().unwrap(), b"");
        b.write_all(b"one").unwrap();
        b.write_all(b"two").unwrap();
        assert_eq!(peek_stream(a.as_fd()).unwrap().unwrap(), b"onetwo");
        b.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(unix_peer(inode(a.as_fd())), None);
    }
}
