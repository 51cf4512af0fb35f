//! Output that leads back to the node from which its process came: which it is, and when it is there.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use bproc_proto::stdio::Chunk;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Answered when what is in the pipe now is written on the node; dropped when it never will be.
pub(crate) type Ask = oneshot::Sender<()>;
/// Asks the stream at the pipe's other end.
pub(crate) type Through = mpsc::UnboundedSender<Ask>;
/// What that stream is asked.
pub(crate) type Asked = mpsc::UnboundedReceiver<Ask>;

/// Pipes to nodes that processes have left, by device and inode number: whoever has such a pipe writes to the node.
#[derive(Default)]
pub(crate) struct Leading(Mutex<HashMap<(u64, u64), Through>>);

impl Leading {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, u64), Through>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the stream from this pipe is going to be asked.
    pub(crate) fn begin(&self, pipe: &impl AsRawFd) -> io::Result<Asked> {
        // Unbounded: asked as often as processes end.
        let (through, asked) = mpsc::unbounded_channel();
        let mut all = self.lock();
        all.retain(|_, through| !through.is_closed());
        all.insert(identity(pipe)?, through);
        Ok(asked)
    }

    /// The stream from this pipe, if it is one.
    pub(crate) fn of(&self, pipe: &impl AsRawFd) -> Option<Through> {
        let all = self.lock();
        if all.is_empty() { None } else { all.get(&identity(pipe).ok()?).cloned() }
    }

    /// Inode number of this pipe, if it is one.
    pub(crate) fn number(&self, pipe: &impl AsRawFd) -> Option<u64> {
        self.of(pipe)?;
        identity(pipe).ok().map(|(_, inode)| inode)
    }

    /// Comes back when what is in the pipe is on the node, or never will be.
    pub(crate) fn is_there(&self, inode: u64) -> impl Future<Output = ()> + Send + use<> {
        let (done, told) = oneshot::channel();
        if let Some((_, through)) = self.lock().iter().find(|((_, number), _)| *number == inode) {
            let _ = through.send(done);
        }
        async move { drop(told.await) }
    }
}

fn identity(fd: &impl AsRawFd) -> io::Result<(u64, u64)> {
    std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).map(|meta| (meta.dev(), meta.ino()))
}

/// Says that all that came before a mark is written; where that leads back to a node, when it is there.
pub(crate) async fn answer(through: Option<&Through>, sender: &mpsc::Sender<Result<Chunk, Status>>, chunk: Chunk) {
    let (done, told) = oneshot::channel();
    // One that has ended is through.
    if through.is_some_and(|through| through.send(done).is_ok()) {
        let sender = sender.clone();
        tokio::spawn(async move {
            let _ = told.await;
            sender.send(Ok(chunk)).await
        });
    } else {
        let _ = sender.send(Ok(chunk)).await;
    }
}

/// Keeps the call of a stream that has ended open until what came by it is on the node, too, where it leads back to one: who asks
/// for it after its end must wait as well. To be called while the pipe is open.
pub(crate) fn outlast(through: Option<&Through>, sender: mpsc::Sender<Result<Chunk, Status>>) {
    let (done, told) = oneshot::channel();
    if through.is_some_and(|through| through.send(done).is_ok()) {
        tokio::spawn(async move {
            tokio::select! {
                _ = told => {}
                () = sender.closed() => {}
            }
        });
    }
}

/// What a stream to a node was asked.
pub(crate) struct Asks {
    asked: Option<Asked>,
    /// Bytes read so far.
    pub(crate) read: u64,
    /// To be passed on when so many are.
    noted: VecDeque<(u64, Ask)>,
    /// Passed on, by number.
    sent: VecDeque<(u64, Ask)>,
    last: u64,
}

impl Asks {
    /// `asked` is absent for a stream that leads to a process.
    pub(crate) fn new(asked: Option<Asked>) -> Asks {
        Asks { asked, read: 0, noted: VecDeque::new(), sent: VecDeque::new(), last: 0 }
    }

    /// The next question; never, where nobody asks.
    pub(crate) async fn next(&mut self) -> Option<Ask> {
        let ask = match &mut self.asked {
            Some(asked) => asked.recv().await,
            None => std::future::pending().await,
        };
        if ask.is_none() {
            self.asked = None;
        }
        ask
    }

    /// It waits for what is in the pipe, so many bytes.
    pub(crate) fn note(&mut self, ask: Ask, waiting: u64) {
        self.noted.push_back((self.read + waiting, ask));
    }

    /// Those that are due are for the pipe to which all was copied.
    pub(crate) fn pass_on(&mut self, to: &Through) {
        while self.is_due()
            && let Some((_, ask)) = self.noted.pop_front()
        {
            let _ = to.send(ask);
        }
    }

    /// The same with all, at the end.
    pub(crate) fn pass_all_on(&mut self, to: &Through) {
        let late =
            self.asked.take().into_iter().flat_map(|mut asked| std::iter::from_fn(move || asked.try_recv().ok()));
        for ask in self.noted.drain(..).map(|(_, ask)| ask).chain(late) {
            let _ = to.send(ask);
        }
    }

    /// Is one to be passed on now?
    pub(crate) fn is_due(&self) -> bool {
        self.noted.front().is_some_and(|(bytes, _)| self.read >= *bytes)
    }

    /// Its number.
    pub(crate) fn send(&mut self) -> u64 {
        if let Some((_, ask)) = self.noted.pop_front() {
            self.last += 1;
            self.sent.push_back((self.last, ask));
        }
        self.last
    }

    /// The node has written all before this one.
    pub(crate) fn answered(&mut self, number: u64) {
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number)
            && let Some((_, ask)) = self.sent.pop_front()
        {
            let _ = ask.send(());
        }
    }
}
