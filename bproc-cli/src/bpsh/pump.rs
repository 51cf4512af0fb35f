//! The loop that carries bytes and signals while the programs run. One thread, poll(2), nothing that blocks: a slow
//! reader of our output, a node that does not read its input and a terminal that is another job's hold back only what
//! depends on them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::feed::Feed;
use super::outcome::Meanwhile;
use super::outlet::Outlet;
use super::shape::Shaper;
use super::start::Child;
use crate::sys;

/// Bytes that a pipe that polls writable takes without blocking.
const PIPE_BUF: usize = 4096;
/// Bytes of our input that are read at once.
const INPUT: usize = 64 << 10;
/// Reads and writes of one descriptor before others have their turn.
const TURNS: usize = 16;
/// Milliseconds until we look again whether the terminal is ours; no event tells.
const LOOK_AGAIN_MS: u16 = 250;

/// Signals that ask bpsh to end.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP];

/// Takes over the signals that matter (those of a `terminal` too, if the programs have one each), from before the first fork on; those that were ignored or blocked stay so.
///
/// # Errors
/// What signalfd(2) says.
pub(crate) fn take_signals(before: bproc::Signals, terminal: bool) -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    if terminal {
        set.add(Signal::SIGWINCH);
    }
    let untouched = |signal: Signal| (before.ignored | before.blocked) & (1 << (signal as i32 - 1)) == 0;
    for signal in ENDING.into_iter().filter(|signal| untouched(*signal)) {
        set.add(signal);
    }
    // Ignored, children would vanish without a status.
    sys::set_ignored(libc::SIGCHLD, false);
    set.add(Signal::SIGCHLD);
    set.add(Signal::SIGCONT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// One output of one program.
struct Source {
    fd: Option<OwnedFd>,
    writer: usize,
    outlet: usize,
    shaper: Shaper,
}

/// What a descriptor in the poll set is.
#[derive(Clone, Copy)]
enum Tag {
    Signals,
    Input,
    Reader(usize),
    Source(usize),
    Outlet(usize),
}

/// Everything that moves.
pub(crate) struct Pump {
    signals: SignalFd,
    pub(crate) children: Vec<Child>,
    feed: Feed,
    readers: Vec<Option<OwnedFd>>,
    sources: Vec<Source>,
    outlets: [Outlet; 2],
    whole_writes: [bool; 2],
    buffer: Vec<u8>,
    /// Bytes of a program's output that are read at once.
    piece: usize,
    pub(crate) meanwhile: Meanwhile,
    sigpipe_kills: bool,
    asked_after_the_end: bool,
    /// Each program has a terminal of its own: what ours sends comes to us alone.
    apart: bool,
}

impl Pump {
    /// Sets up for these children. `shaper` makes the shaper of a node's output. `apart`: each has a terminal of its own.
    pub(crate) fn new(
        signals: SignalFd,
        mut children: Vec<Child>,
        outlets: [Outlet; 2],
        piece: usize,
        shaper: impl Fn(i32) -> Shaper,
        before: bproc::Signals,
        apart: bool,
    ) -> Pump {
        sys::set_ignored(libc::SIGPIPE, true);
        let mut outlets = outlets;
        let mut sources = Vec::new();
        let mut readers = Vec::new();
        for (writer, child) in children.iter_mut().enumerate() {
            let [stdin, stdout, stderr] = std::mem::take(&mut child.ends);
            readers.push(stdin);
            for (outlet, fd) in [stdout, stderr].into_iter().enumerate() {
                match fd {
                    Some(fd) => sources.push(Source { fd: Some(fd), writer, outlet, shaper: shaper(child.node) }),
                    None => outlets[outlet].end(writer),
                }
            }
        }
        let mut feed = Feed::new(readers.len());
        for (i, reader) in readers.iter().enumerate() {
            if reader.is_none() {
                feed.drop_reader(i);
            }
        }
        let is_file = |fd| nix::sys::stat::fstat(fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFREG);
        Pump {
            signals,
            children,
            feed,
            readers,
            sources,
            outlets,
            whole_writes: [is_file(sys::standard(1)), is_file(sys::standard(2))],
            buffer: vec![0; piece.max(INPUT)],
            meanwhile: Meanwhile::default(),
            sigpipe_kills: before.ignored & (1 << (libc::SIGPIPE - 1)) == 0,
            asked_after_the_end: false,
            apart,
            piece,
        }
    }

    /// Runs until all children have ended and all that they wrote is written.
    ///
    /// # Errors
    /// The temporary file of sorted output, poll(2).
    pub(crate) fn run(&mut self) -> io::Result<()> {
        self.reap();
        loop {
            for outlet in &mut self.outlets {
                outlet.refill()?;
            }
            let over = self.all_ended()
                && self.sources.iter().all(|s| s.fd.is_none())
                && self.outlets.iter().all(Outlet::is_empty);
            if over || self.asked_after_the_end {
                return Ok(());
            }
            for (tag, events) in self.wait()? {
                match tag {
                    Tag::Signals => self.take_signal()?,
                    Tag::Input => self.read_input(),
                    Tag::Reader(i) => self.write_reader(i, events),
                    Tag::Source(i) => self.read_source(i)?,
                    Tag::Outlet(i) => self.write_outlet(i),
                }
            }
            self.feed.trim();
            for i in 0..self.readers.len() {
                if self.readers[i].is_some() && self.feed.is_done(i) {
                    self.drop_reader(i);
                }
            }
        }
    }

    /// A signal asked to end when only the output of processes left behind was waited for.
    pub(crate) fn was_asked_after_the_end(&self) -> bool {
        self.asked_after_the_end
    }

    fn all_ended(&self) -> bool {
        self.children.iter().all(|child| child.status.is_some())
    }

    /// Waits until something can be done.
    fn wait(&self) -> io::Result<Vec<(Tag, PollFlags)>> {
        let mut set = vec![(Tag::Signals, PollFd::new(self.signals.as_fd(), PollFlags::POLLIN))];
        let mut timeout = PollTimeout::NONE;
        if self.feed.wants() {
            if may_read(sys::standard(0)) {
                set.push((Tag::Input, PollFd::new(sys::standard(0), PollFlags::POLLIN)));
            } else {
                timeout = PollTimeout::from(LOOK_AGAIN_MS);
            }
        }
        for (i, reader) in self.readers.iter().enumerate() {
            let Some(fd) = reader else { continue };
            // Without a wish, poll still tells that the other end is closed.
            let idle = self.feed.pending(i).is_empty();
            let events = if idle { PollFlags::empty() } else { PollFlags::POLLOUT };
            set.push((Tag::Reader(i), PollFd::new(fd.as_fd(), events)));
        }
        for (i, source) in self.sources.iter().enumerate() {
            let Some(fd) = &source.fd else { continue };
            if self.outlets[source.outlet].has_room(source.writer) {
                set.push((Tag::Source(i), PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            }
        }
        for (i, outlet) in self.outlets.iter().enumerate() {
            if !outlet.pending().is_empty() {
                set.push((Tag::Outlet(i), PollFd::new(sys::standard(1 + i as i32), PollFlags::POLLOUT)));
            }
        }
        let (tags, mut fds): (Vec<Tag>, Vec<PollFd<'_>>) = set.into_iter().unzip();
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(tags.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    fn reap(&mut self) {
        while let Some((pid, status)) = sys::reap_any() {
            let child = self.children.iter_mut().find(|child| child.pid == Some(pid));
            if let Some(child) = child.filter(|_| status.is_end()) {
                // Its input stays open until the other end closes: a process that it left may read it.
                child.status = Some(status);
            }
        }
    }

    fn take_signal(&mut self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = info.ssi_signo as i32;
            match signal {
                libc::SIGCHLD => self.reap(),
                libc::SIGCONT => {}
                libc::SIGWINCH => self.resize(),
                // What we told our whole group.
                libc::SIGHUP if info.ssi_pid == std::process::id() => {}
                _ => {
                    self.meanwhile.interrupted = Some(signal);
                    // Only pipes that somebody else keeps open are left to wait for.
                    self.asked_after_the_end = self.all_ended();
                    let (hung_up, by_terminal) = (signal == libc::SIGHUP, info.ssi_code == libc::SI_KERNEL);
                    // What the terminal sends has reached the children already: they are in our process group.
                    if !by_terminal || self.apart {
                        self.send(signal);
                        if hung_up && self.apart {
                            // As the kernel does for who has stopped.
                            self.send(libc::SIGCONT);
                        }
                    } else if hung_up {
                        sys::hang_up_session();
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&self, signal: i32) {
        let living = self.children.iter().filter(|child| child.status.is_none());
        living.filter_map(|child| child.pid).for_each(|pid| sys::kill_child(pid, signal));
    }

    /// Our terminal has another size, so the programs' have.
    fn resize(&self) {
        let size = sys::window_size(sys::standard(0));
        // Without an agent the size stays: nothing is lost by that, and there is nobody to tell on this screen.
        let Ok(mut client) = bproc::Client::connect() else { return };
        for pid in self.children.iter().filter(|child| child.status.is_none()).filter_map(|child| child.pid) {
            let _ = client.resize(pid.get(), size.clone());
        }
    }

    fn read_input(&mut self) {
        // It may have become another job's since poll was called.
        if !may_read(sys::standard(0)) {
            return;
        }
        match nix::unistd::read(sys::standard(0), &mut self.buffer[..INPUT]) {
            Ok(0) => self.feed.end(),
            Ok(n) => self.feed.push(&self.buffer[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.feed.end(),
        }
    }

    fn drop_reader(&mut self, i: usize) {
        self.readers[i] = None;
        self.feed.drop_reader(i);
    }

    fn write_reader(&mut self, i: usize, events: PollFlags) {
        if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return self.drop_reader(i);
        }
        let Some(fd) = &self.readers[i] else { return };
        match nix::unistd::write(fd, self.feed.pending(i)) {
            Ok(n) => self.feed.take(i, n),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.drop_reader(i),
        }
    }

    fn read_source(&mut self, i: usize) -> io::Result<()> {
        let source = &mut self.sources[i];
        let outlet = &mut self.outlets[source.outlet];
        let mut shaped = Vec::new();
        for _ in 0..TURNS {
            let Some(fd) = source.fd.as_ref().filter(|_| outlet.has_room(source.writer)) else { break };
            shaped.clear();
            match nix::unistd::read(fd, &mut self.buffer[..self.piece]) {
                Ok(n) if n > 0 => source.shaper.push(&self.buffer[..n], &mut shaped),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // The end; a pipe has no other errors.
                _ => {
                    source.shaper.finish(&mut shaped);
                    source.fd = None;
                }
            }
            outlet.push(source.writer, &shaped)?;
            if source.fd.is_none() {
                outlet.end(source.writer);
            }
        }
        Ok(())
    }

    fn write_outlet(&mut self, i: usize) {
        let fd = sys::standard(1 + i as i32);
        for turn in 0..TURNS {
            let outlet = &mut self.outlets[i];
            if outlet.pending().is_empty() || (turn > 0 && !is_writable(fd)) {
                return;
            }
            let most = if self.whole_writes[i] { usize::MAX } else { PIPE_BUF };
            let n = outlet.pending().len().min(most);
            match nix::unistd::write(fd, &outlet.pending()[..n]) {
                Ok(n) => outlet.wrote(n),
                Err(Errno::EINTR | Errno::EAGAIN) => return,
                Err(error) => return self.break_off(i, error),
            }
        }
    }

    /// Our output takes no more: those who write to it are to learn it as they would natively.
    fn break_off(&mut self, i: usize, error: Errno) {
        self.outlets[i].break_off();
        for source in self.sources.iter_mut().filter(|source| source.outlet == i) {
            source.fd = None;
        }
        if error == Errno::EPIPE && self.sigpipe_kills {
            self.meanwhile.broken_pipe = true;
        } else {
            self.meanwhile.write_failed = true;
            let name = ["standard output", "standard error"][i];
            // When standard error itself fails there is nobody to tell.
            let _ = nix::unistd::write(
                sys::standard(2),
                format!("bpsh: cannot write to {name}: {}\n", error.desc()).as_bytes(),
            );
        }
    }
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut set = [PollFd::new(fd, PollFlags::POLLOUT)];
    matches!(poll(&mut set, PollTimeout::ZERO), Ok(1))
}

/// Reading our terminal from the background would stop us, and with us the output.
fn may_read(fd: BorrowedFd<'_>) -> bool {
    nix::unistd::tcgetpgrp(fd).map_or(true, |foreground| foreground == nix::unistd::getpgrp())
}
