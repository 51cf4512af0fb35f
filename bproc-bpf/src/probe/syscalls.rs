//! Trials of system calls. A child that is forked here makes system calls only,
//! since the caller may have threads.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
};

use super::{About, Need, Row, row};

const PIDNS: About = ("pidns", Need::Required, "no process of the master can run on this node");
const SET_TID: About = ("clone3-set-tid", Need::Required, "processes cannot have the master's pids");
const PIDFD: About = ("pidfd", Need::Required, "signals could hit a process that got the pid anew");
const UFFD: About = ("userfaultfd", Need::Better, "no post-copy: a move waits for all memory");
const TIMENS: About = ("time-namespace", Need::Better, "the monotonic clock of a process jumps when it moves");
const SCAN: About = ("pagemap-scan", Need::Better, "dumps look at each page: large ones are slower");
const QUERY: About = ("procmap-query", Need::Better, "dumps read /proc/PID/maps as text: slower");
const DIAG: About = (
    "unix-diag",
    Need::Better,
    "a process with socket pairs of its own is taken for one with foreign sockets, and does not move (load the module unix_diag)",
);

/// `_IOWR('f', 16, struct pm_scan_arg)` and `_IOWR('f', 17, struct procmap_query)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;

pub(super) fn rows() -> Vec<Row> {
    let found = |result: io::Result<()>| match result {
        Ok(()) => Ok(String::new()),
        Err(error) => Err(error.to_string()),
    };
    vec![
        row(PIDNS, found(clone3(&[]))),
        row(SET_TID, found(clone3(&[1]))),
        row(PIDFD, found(pidfd())),
        row(UFFD, found(userfaultfd())),
        row(TIMENS, found(time_namespace())),
        row(SCAN, found(pagemap_scan())),
        row(QUERY, found(procmap_query())),
        row(DIAG, found(unix_diag())),
    ]
}

/// `uname -r`.
pub(super) fn release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether a release is 6.1 or later.
pub(super) fn recent(release: &str) -> Result<String, String> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 1) => Ok(release.into()),
        (Some(Ok(_)), Some(Ok(_))) => Err(format!("{release} is older")),
        _ => Err(format!("cannot understand {release:?}")),
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A child that is killed and reaped at the end.
pub(super) struct Child(i32);

impl Child {
    /// Forks a child that does nothing.
    pub(super) fn sleeper() -> io::Result<Child> {
        // SAFETY: the child makes system calls only and never returns.
        let pid = check(i64::from(unsafe { libc::fork() }))? as i32;
        if pid == 0 {
            // SAFETY: as above; it ends with the thread that made it.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        Ok(Child(pid))
    }

    pub(super) fn pid(&self) -> i32 {
        self.0
    }

    /// Reads a byte of its memory, which needs the right to trace it.
    pub(super) fn read(&self) -> io::Result<()> {
        static MARK: u8 = 7;
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: (&raw const MARK).cast_mut().cast(), iov_len: 1 };
        // SAFETY: one writable byte here; the child has the same static at the same address.
        let done = unsafe { libc::process_vm_readv(self.0, &local, 1, &remote, 1, 0) };
        check(done as i64).map(drop)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped yet, so the pid is still its.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Makes a pid namespace with a child that ends at once, its pids there as wished.
fn clone3(set_tid: &[i32]) -> io::Result<()> {
    // SAFETY: plain integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_NEWPID as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if !set_tid.is_empty() {
        args.set_tid = set_tid.as_ptr() as u64;
        args.set_tid_size = set_tid.len() as u64;
    }
    // SAFETY: a fork without a stack of its own; the child only exits.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        // SAFETY: ends the child at once.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    }
    drop(Child(pid as i32));
    Ok(())
}

fn pidfd() -> io::Result<()> {
    // SAFETY: no memory is involved; the descriptor is owned at once.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0))?;
        let fd = OwnedFd::from_raw_fd(fd as i32);
        let null = std::ptr::null::<u8>();
        check(libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), 0, null, 0)).map(drop)
    }
}

/// Is anything told of a unix socket? The kernel loads the module when it is asked.
fn unix_diag() -> io::Result<()> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let (socket, _other) = UnixStream::pair()?;
    let inode = File::from(OwnedFd::from(socket.try_clone()?)).metadata()?.ino() as u32;
    // SAFETY: no memory is involved; the descriptor is owned at once.
    let link = unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let fd = check(i64::from(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG)))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    // Header: length, type, flags, sequence, port. Request: family, states, inode, what to show, any cookie.
    let mut ask = Vec::new();
    ask.extend(40u32.to_ne_bytes());
    ask.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    ask.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    ask.extend([0; 8]);
    ask.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    ask.extend(u32::MAX.to_ne_bytes());
    ask.extend(inode.to_ne_bytes());
    ask.extend(0u32.to_ne_bytes());
    ask.extend([0xff; 8]);
    let mut answer = [0u8; 512];
    // SAFETY: both buffers outlive the calls. The kernel answers before send returns.
    let got = unsafe {
        check(libc::send(link.as_raw_fd(), ask.as_ptr().cast(), ask.len(), 0) as i64)?;
        check(libc::recv(link.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_DONTWAIT) as i64)?
    };
    let told = u16::from_ne_bytes([answer[4], answer[5]]);
    // An error has its number, negative, after the header.
    let number = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match told {
        SOCK_DIAG_BY_FAMILY if got >= 20 => Ok(()),
        _ if got >= 20 && number < 0 => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn userfaultfd() -> io::Result<()> {
    // SAFETY: no memory is involved; the descriptor is owned at once.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC))?;
        drop(OwnedFd::from_raw_fd(fd as i32));
    }
    Ok(())
}

fn time_namespace() -> io::Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    // SAFETY: the child makes two system calls and ends.
    let pid = check(i64::from(unsafe { libc::fork() }))? as i32;
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            let failed = libc::unshare(CLONE_NEWTIME) != 0;
            libc::_exit(if failed { *libc::__errno_location() } else { 0 });
        }
    }
    let mut status = 0;
    // SAFETY: our child and a valid place.
    check(i64::from(unsafe { libc::waitpid(pid, &mut status, 0) }))?;
    match libc::WEXITSTATUS(status) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn pagemap_scan() -> io::Result<()> {
    let file = File::open("/proc/self/pagemap")?;
    // size, flags, start, end; nothing is asked for.
    let mut args = [0u64; 12];
    args[0] = size_of_val(&args) as u64;
    args[3] = 4096;
    // SAFETY: a record of the size that the request tells.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut args) };
    check(i64::from(done)).map(drop)
}

fn procmap_query() -> io::Result<()> {
    let file = File::open("/proc/self/maps")?;
    // size, flags, address.
    let mut args = [0u64; 13];
    args[0] = size_of_val(&args) as u64;
    args[2] = (&raw const args) as u64;
    // SAFETY: a record of the size that the request tells.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), PROCMAP_QUERY as _, &raw mut args) };
    check(i64::from(done)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::recent;

    #[test]
    fn releases_are_compared_by_number() {
        for good in ["6.1.0-49-cloud-amd64", "6.18.44", "7.0-rc1", "10.0"] {
            assert!(recent(good).is_ok(), "{good}");
        }
        for bad in ["5.10.0-1", "6.0.9", "", "linux"] {
            assert!(recent(bad).is_err(), "{bad}");
        }
    }
}
