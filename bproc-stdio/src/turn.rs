//! Who reads an input: one stream at a time. When a process moves, what was sent ahead to its old place and not read there
//! comes back, and the stream to its new place begins with it.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::{major, minor};
use nix::unistd::{Pid, Whence, getpgid, lseek};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::end::{Held, Sink, Source, WayBack};
use crate::through::{Asks, Leading};
use crate::wanted::Demand;
use crate::wire::Token;

/// When it is tried again to read what another one has read, or may read now.
pub(crate) const NOT_YET: Duration = Duration::from_millis(20);

/// What was read from a descriptor and has reached no process.
#[derive(Default)]
pub(crate) struct Ahead {
    unread: VecDeque<Bytes>,
    /// The descriptor is at its end.
    ended: bool,
}

/// The right to read a descriptor, in the order in which it was asked for.
pub(crate) type Turn = Arc<Mutex<Ahead>>;
/// It is mine.
pub(crate) type MyTurn = OwnedMutexGuard<Ahead>;

/// Reads a descriptor in its turn.
pub(crate) struct Reader {
    turn: MyTurn,
    source: Option<Source>,
    /// Of a file: to go back in it, and to begin again.
    file: Option<OwnedFd>,
    /// The device of a terminal.
    terminal: Option<libc::dev_t>,
}

impl Reader {
    pub(crate) fn new(turn: MyTurn, fd: OwnedFd) -> io::Result<Reader> {
        let file = is_file(&fd).then(|| fd.try_clone()).transpose()?;
        let terminal = nix::unistd::isatty(&fd).unwrap_or(false).then(|| nix::sys::stat::fstat(&fd));
        let terminal = terminal.and_then(Result::ok).map(|stat| stat.st_rdev);
        let source = if turn.ended { None } else { Some(Source::new(fd, Held::Shared)?) };
        Ok(Reader { turn, source, file, terminal })
    }

    /// See [`Source::reads_in_threads`].
    pub(crate) fn reads_in_threads(&self) -> bool {
        self.source.as_ref().is_some_and(Source::reads_in_threads)
    }

    /// See [`Source::waiting`].
    pub(crate) fn waiting(&self) -> u64 {
        self.source.as_ref().map_or(0, Source::waiting)
    }

    /// Comes back when there is something, or the end; nothing is read.
    pub(crate) async fn ready(&self) {
        if let (true, Some(source)) = (self.turn.unread.is_empty(), &self.source) {
            source.ready().await;
        }
    }

    /// Is there something, or the end?
    pub(crate) fn is_ready(&self) -> bool {
        !self.turn.unread.is_empty() || self.source.as_ref().is_none_or(Source::is_ready)
    }

    /// May a process of this group read it now? One that has it as its terminal, only in the foreground.
    pub(crate) fn is_for(&self, group: i32) -> bool {
        let Some(terminal) = self.terminal.filter(|_| group > 0) else { return true };
        // Its ghost tells, or that of its leader.
        let stat = std::fs::read_to_string(format!("/proc/{group}/stat")).unwrap_or_default();
        let words = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>()).unwrap_or_default();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<i32>().ok());
        let (Some(device), Some(foreground)) = (number(4), number(5)) else { return true };
        let device = device.cast_unsigned();
        let same = (major(terminal), minor(terminal))
            == (u64::from(device >> 8 & 0xfff), u64::from(device & 0xff | device >> 12 & 0xf_ff00));
        // A shell that is elsewhere cannot give it to anybody: it is left to a group that is no more.
        let is_there = || foreground > 0 && getpgid(Some(Pid::from_raw(foreground))).is_ok();
        !same || foreground == group || !is_there()
    }

    /// The next bytes; empty at the end. May be interrupted without loss.
    pub(crate) async fn read(&mut self) -> io::Result<Bytes> {
        if let Some(bytes) = self.turn.unread.pop_front() {
            return Ok(bytes);
        }
        let Some(source) = &mut self.source else { return Ok(Bytes::new()) };
        let got = source.read().await;
        if !matches!(&got, Ok(bytes) if !bytes.is_empty()) {
            self.source = None;
            self.turn.ended = true;
        }
        got
    }

    /// Takes back what was sent ahead. A file is gone back in, so that whoever comes next finds it as it left it.
    pub(crate) async fn take_back(&mut self, returned: Vec<Bytes>) {
        if let Some(source) = &mut self.source
            && let Some(read) = source.pending().await
        {
            self.turn.unread.push_back(read);
        }
        for bytes in returned.into_iter().rev().filter(|b| !b.is_empty()) {
            self.turn.unread.push_front(bytes);
        }
        let Some(file) = &self.file else { return };
        let all: usize = self.turn.unread.iter().map(Bytes::len).sum();
        if all == 0 || lseek(file, -(all as libc::off_t), Whence::SeekCur).is_err() {
            return;
        }
        self.turn.unread.clear();
        self.turn.ended = false;
        if self.source.is_none() {
            self.source = file.try_clone().and_then(|fd| Source::new(fd, Held::Shared)).ok();
        }
    }
}

fn is(fd: &OwnedFd, kinds: &[libc::mode_t]) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|stat| kinds.contains(&(stat.st_mode & libc::S_IFMT)))
}

fn is_file(fd: &OwnedFd) -> bool {
    is(fd, &[libc::S_IFREG])
}

/// An input for a process that comes home. What a pipe or a socket has given already cannot be put back: it gets a pipe
/// of its own, with a task that fills it.
pub(crate) fn come_home(turn: Turn, fd: OwnedFd) -> io::Result<OwnedFd> {
    if !is(&fd, &[libc::S_IFIFO, libc::S_IFSOCK]) {
        return Ok(fd);
    }
    let (reader, writer) = io::pipe()?;
    let mut demand = Demand::of(&writer);
    let writer = OwnedFd::from(writer);
    let way_back = WayBack::to(&writer)?;
    let sink = Sink::new(writer, Held::Ours)?;
    tokio::spawn(async move {
        let turn = tokio::select! {
            turn = turn.lock_owned() => turn,
            () = sink.broken() => return,
        };
        let mut reader = match Reader::new(turn, fd) {
            Ok(reader) => reader,
            Err(error) => return tracing::debug!(%error, "the input of a process that came home"),
        };
        loop {
            let wanted = async {
                reader.ready().await;
                demand.ask();
                demand.wanted(Some(&sink)).await
            };
            let group = tokio::select! {
                group = wanted => group,
                // Whose turn is next begins with what was not read.
                () = sink.broken() => return reader.take_back(vec![way_back.drain().unwrap_or_default()]).await,
            };
            if !reader.is_ready() || !reader.is_for(group) {
                tokio::time::sleep(NOT_YET).await;
                continue;
            }
            match reader.read().await {
                Ok(data) if !data.is_empty() => {
                    demand.came(data.len());
                    if sink.write_all(data).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    });
    Ok(reader.into())
}

/// Whom a stream has let go: tokens of those whose last output here is written. Closed when the stream has ended.
pub(crate) type Gone = watch::Sender<HashSet<Token>>;

/// What comes after the output of another stream waits for that.
pub(crate) struct Behind {
    gone: watch::Receiver<HashSet<Token>>,
    me: Token,
}

impl Behind {
    pub(crate) fn new(before: &Gone, me: Token) -> Behind {
        Behind { gone: before.subscribe(), me }
    }

    /// All that was to come before is written, or never will be.
    pub(crate) async fn wait(&mut self) {
        let me = self.me;
        let _ = self.gone.wait_for(|gone| gone.contains(&me)).await;
    }
}

/// An output for a process that comes home, before all that it wrote elsewhere is written: a pipe, with a task that empties it
/// when its time has come. If it leads back to a node, so does the pipe.
pub(crate) fn write_later(fd: OwnedFd, mut behind: Behind, leading: &Leading) -> io::Result<OwnedFd> {
    let (reader, writer) = io::pipe()?;
    let through = leading.of(&fd);
    let asked = through.as_ref().map(|_| leading.begin(&writer)).transpose()?;
    let sink = Sink::new(fd, Held::Shared)?;
    let mut source = Source::new(reader.into(), Held::Ours)?;
    tokio::spawn(async move {
        let (mut asks, mut its_turn) = (Asks::new(asked), false);
        loop {
            if let Some(through) = &through {
                asks.pass_on(through);
            }
            tokio::select! {
                () = behind.wait(), if !its_turn => its_turn = true,
                Some(ask) = asks.next() => asks.note(ask, source.waiting()),
                () = sink.broken() => return,
                data = source.read(), if its_turn => match data {
                    Ok(data) if !data.is_empty() => {
                        asks.read += data.len() as u64;
                        if sink.write_all(data).await.is_err() {
                            return;
                        }
                    }
                    _ => break,
                },
            }
        }
        if let Some(through) = &through {
            asks.pass_all_on(through);
        }
    });
    Ok(writer.into())
}

/// May a write to it have to wait for somebody who reads?
pub(crate) fn is_channel(fd: &OwnedFd) -> bool {
    is(fd, &[libc::S_IFIFO, libc::S_IFSOCK])
}

/// Is there no room in it now?
pub(crate) fn is_full(fd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, 0u8).is_ok_and(|n| n == 0)
}
