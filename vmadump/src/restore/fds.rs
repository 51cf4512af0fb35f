//! Descriptors of the target: those given are put out of the way first, then every number gets what the
//! image or the restorer says.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::RestoreOptions;
use super::target::Target;
use crate::batch::{Batch, Results};
use crate::compile::{Compiler, as_root, as_user};
use crate::error::{Error, Refusal};
use crate::image::{FdKind, Image};
use crate::sys::process;

/// TFD_IOC_SET_TICKS.
const SET_TICKS: u64 = 0x4008_5400;

/// Where given descriptors wait in the target.
pub(super) struct Given {
    /// Number in the image, waiting place.
    fds: Vec<(i32, i32)>,
    /// Page stream.
    pub(super) stream: Option<i32>,
    /// Working directory.
    pub(super) cwd: Option<i32>,
    /// First waiting place.
    high: i32,
    /// First place for the ends of pipes and pairs of sockets.
    free: i32,
    /// First place of memory files.
    pub(super) memory_files: i32,
}

impl Target {
    /// Brings the given descriptors and the page stream into the target; `batch` puts them above all numbers of
    /// the image and closes everything else.
    pub(super) fn take_fds(
        &mut self,
        image: &Image,
        options: &RestoreOptions<'_>,
        stream: Option<RawFd>,
        cwd: Option<RawFd>,
        batch: &mut Batch,
    ) -> Result<Given, Error> {
        let ours: Vec<RawFd> = options.fds.iter().map(|(_, fd)| fd.as_raw_fd()).chain(stream).chain(cwd).collect();
        // A child of ours was born with them.
        let theirs = match self.handed() {
            Some(handed) => handed,
            None if ours.is_empty() || self.child => ours,
            None => self.hand_over(&ours)?,
        };
        let top = image
            .fds
            .iter()
            .map(|f| f.fd)
            .chain(theirs.iter().copied())
            .chain(options.fds.iter().map(|f| f.0))
            .max()
            .unwrap_or(0);
        let high = top + 1;
        // The soft limit may be too low for so many; the hard one must not be lowered, for there is no way back up.
        let ends = image.fds.iter().filter(|f| matches!(f.kind, FdKind::Pipe { .. } | FdKind::Socket { .. })).count();
        let least = high as u64 + (theirs.len() + ends + image.memory_files.len()) as u64;
        let need = least + 8;
        // Descriptors may be above it, if it was lowered after they were opened. The image's own comes after all of them.
        let nofile = libc::RLIMIT_NOFILE as usize;
        let [soft, hard] = match process::limit(self.pid, nofile) {
            Ok(limit) => limit,
            // It is another user's.
            Err(_) => self.own_limit(nofile)?,
        };
        if need > soft {
            // The body may lack the right to it that we have, or have the one that we lack; up to the hard one none is needed.
            if process::set_limit(self.pid, nofile, [need, need.max(hard)]).is_err() {
                let most = least.max(need.min(hard));
                let room = batch.words(&[most, most.max(hard)]);
                batch.must(libc::SYS_prlimit64, &[0, nofile as u64, room, 0], "raise the limit of descriptors");
            }
        }
        for (i, fd) in theirs.iter().enumerate() {
            batch.must(
                libc::SYS_dup3,
                &[*fd as u64, high as u64 + i as u64, libc::O_CLOEXEC as u64],
                "place a descriptor",
            );
        }
        batch.must(libc::SYS_close_range, &[0, high as u64 - 1, 0], "close descriptors");
        batch.must(
            libc::SYS_close_range,
            &[high as u64 + theirs.len() as u64, u32::MAX.into(), 0],
            "close descriptors",
        );
        let fds = options.fds.iter().enumerate().map(|(i, (n, _))| (*n, high + i as i32)).collect();
        let free = high + theirs.len() as i32;
        let cwd = cwd.map(|_| free - 1);
        let memory_files = free + ends as i32;
        Ok(Given { fds, stream: stream.map(|_| high + options.fds.len() as i32), cwd, high, free, memory_files })
    }

    /// What it says itself.
    fn own_limit(&mut self, which: usize) -> Result<[u64; 2], Error> {
        let mut batch = self.batch();
        let room = batch.room(16);
        batch.must(libc::SYS_prlimit64, &[0, which as u64, 0, room], "read its limits");
        let got = self.run(&batch)?;
        Ok([got.word(room), got.word(room + 8)])
    }

    /// Our descriptors, received by the target over a socket pair that it makes itself.
    pub(super) fn hand_over(&mut self, ours: &[RawFd]) -> Result<Vec<i32>, Error> {
        let mut batch = self.batch();
        let pair = batch.room(8);
        batch.must(
            libc::SYS_socketpair,
            &[libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, pair],
            "make a socket pair",
        );
        let got = self.run(&batch)?;
        let (a, b) = (got.half(pair) as i32, got.half(pair + 4) as i32);
        let end = process::get_fd(self.pid, b)?;
        let mut all = Vec::new();
        for part in ours.chunks(200) {
            process::send_fds(end.as_fd(), part)?;
            let mut batch = self.batch();
            let byte = batch.room(8);
            let iov = batch.words(&[byte, 1]);
            let space = 16 + part.len() * 4;
            let control = batch.room(space.next_multiple_of(8) + 16);
            let message = batch.words(&[0, 0, iov, 1, control, space.next_multiple_of(8) as u64, 0]);
            batch.must(libc::SYS_recvmsg, &[a as u64, message, 0], "receive descriptors");
            let got = self.run(&batch)?;
            let len = (got.word(control) as usize).saturating_sub(16) / 4;
            if len != part.len() {
                return Err(Error::Unexpected { pid: self.pid, what: "not all descriptors arrived".into() });
            }
            all.extend((0..len as u64).map(|i| got.half(control + 16 + 4 * i) as i32));
        }
        Ok(all)
    }
}

impl Compiler<'_> {
    /// All descriptors of the process. Returns the numbers that stay closed for want of a way to make them.
    pub(super) fn fds(&mut self, given: &Given, user: bool) -> Vec<i32> {
        let image = self.image;
        let mut dropped = Vec::new();
        // Number 0 is where every open lands: what belongs there comes last.
        let mut order: Vec<_> = image.fds.iter().filter(|f| !given.fds.iter().any(|(n, _)| *n == f.fd)).collect();
        order.sort_by_key(|f| (f.fd == 0, f.fd));
        // With root's rights where there are these: whoever had them open may not be able to open them again.
        let mut used = Vec::new();
        for fd in &order {
            if let FdKind::Memory { file, offset } = fd.kind {
                let fresh = !used.contains(&file);
                self.memory_descriptor(fd.fd, fd.flags, (file, offset), fresh, given);
                used.push(file);
            }
        }
        if user {
            as_user(self.batch, &image.creds[image.leader().creds as usize]);
        }
        self.pairs(given);
        let made_here = |kind: &FdKind| !matches!(kind, FdKind::SameAs { .. } | FdKind::Memory { .. });
        for fd in order.iter().filter(|f| made_here(&f.kind)) {
            if !self.open(fd.fd, fd.flags, &fd.kind, given) {
                dropped.push(fd.fd);
            }
        }
        if user {
            as_root(self.batch);
        }
        for (n, from) in &given.fds {
            let cloexec = image.fds.iter().find(|f| f.fd == *n).map_or(0, |f| f.flags & libc::O_CLOEXEC as u32);
            self.batch.must(libc::SYS_dup3, &[*from as u64, *n as u64, cloexec.into()], "place a descriptor");
        }
        for fd in &order {
            if let FdKind::SameAs { fd: of } = fd.kind {
                self.batch.may(
                    libc::SYS_dup3,
                    &[of as u64, fd.fd as u64, (fd.flags & libc::O_CLOEXEC as u32).into()],
                    "duplicate a descriptor",
                );
            }
        }
        self.batch.must(libc::SYS_close_range, &[given.high as u64, u32::MAX.into(), 0], "close descriptors");
        for fd in &order {
            if let FdKind::Epoll { watches } = &fd.kind {
                self.watch(fd.fd, watches);
            }
        }
        dropped
    }

    /// The first one that may both read and write is the one that made the file, others open it again.
    fn memory_descriptor(&mut self, number: i32, flags: u32, of: (u32, u64), fresh: bool, given: &Given) {
        let (place, number) = (given.memory_files + of.0 as i32, number as u64);
        let cloexec = u64::from(flags & libc::O_CLOEXEC as u32);
        let keep = flags & !((libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC) as u32);
        if fresh && flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32 {
            self.batch.must(libc::SYS_dup3, &[place as u64, number, cloexec], "place a descriptor");
            let keep = u64::from(keep & !libc::O_ACCMODE as u32);
            self.batch.may(libc::SYS_fcntl, &[number, libc::F_SETFL as u64, keep], "set flags of a descriptor");
        } else {
            let path = self.batch.text(format!("/proc/self/fd/{place}").as_bytes());
            let args = [libc::AT_FDCWD as u64, path, keep.into()];
            self.batch.must(libc::SYS_openat, &args, "open a memory file once more");
            if number != 0 {
                self.batch.must(libc::SYS_dup3, &[0, number, cloexec], "place a descriptor");
                self.batch.must(libc::SYS_close, &[0], "close a descriptor");
            }
        }
        self.batch.must(libc::SYS_lseek, &[number, of.1, 0], "set the position of a file");
    }

    /// Pipes and pairs of sockets, filled, at places of their own: while nothing is open below these, a fresh pair is 0 and 1.
    fn pairs(&mut self, given: &Given) {
        let image = self.image;
        let mut pairs: Vec<_> = image
            .fds
            .iter()
            .filter_map(|fd| match &fd.kind {
                FdKind::Pipe { pair, writes: false, size, data } => Some((*pair, None, *size, [data, data])),
                FdKind::Socket { pair, second: false, kind, data } => {
                    let other = image.fds.iter().find_map(|other| match &other.kind {
                        FdKind::Socket { pair: of, second: true, data, .. } if of == pair => Some(data),
                        _ => None,
                    })?;
                    Some((*pair, Some(*kind), 0, [data, other]))
                }
                _ => None,
            })
            .collect();
        pairs.sort_by_key(|p| p.0);
        for (pair, kind, size, data) in pairs {
            let ends = self.batch.room(8);
            match kind {
                None => {
                    let batch = &mut *self.batch;
                    batch.must(libc::SYS_pipe2, &[ends, libc::O_NONBLOCK as u64], "make a pipe");
                    batch.must(libc::SYS_fcntl, &[1, libc::F_SETPIPE_SZ as u64, size.into()], "size a pipe");
                    self.fill(libc::SYS_write, 1, data[0]);
                }
                Some(kind) => {
                    self.batch.must(
                        libc::SYS_socketpair,
                        &[libc::AF_UNIX as u64, kind.into(), 0, ends],
                        "make a pair of sockets",
                    );
                    self.fill(libc::SYS_sendto, 1, data[0]);
                    self.fill(libc::SYS_sendto, 0, data[1]);
                }
            }
            for end in 0..2u64 {
                let place = given.free as u64 + 2 * u64::from(pair) + end;
                self.batch.must(libc::SYS_dup3, &[end, place, libc::O_CLOEXEC as u64], "place a descriptor");
                self.batch.must(libc::SYS_close, &[end], "close a descriptor");
            }
        }
    }

    /// Writes what waited in a pipe or socket; where there is no room for it, it fails instead of waiting.
    fn fill(&mut self, call: i64, end: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let (at, len) = (self.batch.data(data), data.len() as u64);
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
        let index = self.batch.must(call, &[end, at, len, flags, 0, 0], "fill a pipe or socket");
        self.filled.push((index, len));
    }

    /// All that an epoll descriptor watched. What cannot be watched here is left out: a standard stream, for example,
    /// that is a file where it was a pipe.
    fn watch(&mut self, epoll: i32, watches: &[[u64; 3]]) {
        for [fd, events, data] in watches {
            let mut event = (*events as u32).to_ne_bytes().to_vec();
            event.extend(data.to_ne_bytes());
            let event = self.batch.data(&event);
            let add = libc::EPOLL_CTL_ADD as u64;
            self.batch.may(libc::SYS_epoll_ctl, &[epoll as u64, add, *fd, event], "watch a descriptor");
        }
    }

    fn open(&mut self, number: i32, flags: u32, kind: &FdKind, given: &Given) -> bool {
        let keep = flags & !((libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC) as u32);
        let cloexec = flags & libc::O_CLOEXEC as u32;
        let nonblock = u64::from(flags & libc::O_NONBLOCK as u32);
        match kind {
            FdKind::Pipe { pair, writes: second, .. } | FdKind::Socket { pair, second, .. } => {
                let place = given.free as u64 + 2 * u64::from(*pair) + u64::from(*second);
                self.batch.must(libc::SYS_dup3, &[place, number as u64, cloexec.into()], "place a descriptor");
                let keep = u64::from(keep & !libc::O_ACCMODE as u32);
                self.batch.may(
                    libc::SYS_fcntl,
                    &[number as u64, libc::F_SETFL as u64, keep],
                    "set flags of a descriptor",
                );
                return true;
            }
            FdKind::Timerfd { clock, interval_ns, left_ns, ticks } => {
                self.batch.may(libc::SYS_timerfd_create, &[*clock as u64, nonblock], "make a timerfd");
                let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
                let ([a, b], [c, d]) = (split(*interval_ns), split(*left_ns));
                let at = self.batch.words(&[a, b, c, d]);
                self.batch.may(libc::SYS_timerfd_settime, &[0, 0, at, 0], "set a timerfd");
                if *ticks > 0 {
                    let at = self.batch.words(&[*ticks]);
                    self.batch.may(libc::SYS_ioctl, &[0, SET_TICKS, at], "set a timerfd");
                }
            }
            FdKind::Signalfd { mask } => {
                let mask = self.batch.words(&[*mask]);
                self.batch.may(libc::SYS_signalfd4, &[u64::MAX, mask, 8, nonblock], "make a signalfd");
            }
            FdKind::Epoll { .. } => {
                self.batch.may(libc::SYS_epoll_create1, &[0], "make an epoll descriptor");
            }
            FdKind::Regular { file, offset } => {
                let path = self.batch.text(&self.image.files[*file as usize].path);
                self.batch.may(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, keep.into()], "open a file");
                self.batch.may(libc::SYS_lseek, &[0, *offset, 0], "set the position of a file");
            }
            FdKind::Directory { path } | FdKind::Device { path } => {
                let path = self.batch.text(path);
                self.batch.may(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, keep.into()], "open a file");
            }
            FdKind::Eventfd { count, semaphore } => {
                let more = u64::from(*semaphore) | nonblock;
                self.batch.may(libc::SYS_eventfd2, &[*count & 0xffff_ffff, more], "make an eventfd");
            }
            _ => return false,
        }
        if number != 0 {
            self.batch.may(libc::SYS_dup3, &[0, number as u64, cloexec.into()], "place a descriptor");
            self.batch.may(libc::SYS_close, &[0], "close a descriptor");
        }
        true
    }
}

/// SIGCHLD for the end of a child that has a stand-in here: that will end the same way, and tells of it. `alive`: children of
/// the body that have not ended.
pub(super) fn comes_again(info: &[u8], alive: &[i32]) -> bool {
    let word = |at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    let ended = matches!(word(8), libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    word(0) == libc::SIGCHLD && ended && alive.contains(&word(16))
}

/// Files that could not be opened: added to `dropped`; the first as a refusal.
pub(super) fn lost(
    image: &Image,
    given: &Given,
    got: &Results,
    batch: &Batch,
    dropped: &mut Vec<i32>,
) -> Option<Refusal> {
    let mut first = None;
    let wanted: Vec<_> = {
        let mut order: Vec<_> = image.fds.iter().filter(|f| !given.fds.iter().any(|(n, _)| *n == f.fd)).collect();
        order.sort_by_key(|f| (f.fd == 0, f.fd));
        order
            .into_iter()
            .filter(|f| matches!(f.kind, FdKind::Regular { .. } | FdKind::Directory { .. } | FdKind::Device { .. }))
            .collect()
    };
    for (fd, index) in wanted.iter().zip(batch.named("open a file")) {
        let ret = got.ret(index);
        if ret < 0 {
            dropped.push(fd.fd);
            // Standard streams are whoever restores's to give.
            if fd.fd <= 2 {
                continue;
            }
            let path = match &fd.kind {
                FdKind::Regular { file, .. } => &image.files[*file as usize].path,
                FdKind::Directory { path } | FdKind::Device { path } => path,
                _ => continue,
            };
            let why = std::io::Error::from_raw_os_error(-ret as i32).to_string();
            first = first.or(Some(Refusal::FileMissing { path: path.text(), why }));
        }
    }
    first
}
