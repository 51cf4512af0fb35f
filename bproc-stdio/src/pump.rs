//! What the two ends of a call share: the sending side of a call, and its counters.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bproc_proto::stdio::Chunk;
use tokio::sync::mpsc;

/// Chunks that wait to be sent, in each call.
pub(crate) const QUEUE: usize = 2;
/// Window of each call in bytes: what may be under way to a reader that stalls.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection: so large that the windows of [`CALLS_PER_CONNECTION`] calls fit in. Then no stalled call
/// can hold up another.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Calls on a connection; beyond that another one is opened.
pub(crate) const CALLS_PER_CONNECTION: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;
/// Largest HTTP/2 frame in bytes.
pub(crate) const FRAME: u32 = 256 * 1024;

/// When a silent connection is given up: asked after so long, and then as long without an answer. The agents judge
/// whether a machine lives, and have its streams ended; this only finds connections that died without a word. A
/// service that has no processor for a while must not lose the streams of a node that is up.
pub(crate) fn keep_alive(timeout: Duration) -> (Duration, Duration) {
    (timeout, (3 * timeout).max(Duration::from_secs(60)))
}

/// Bytes carried since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) output: AtomicU64,
    pub(crate) input: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All bytes are through.
    Whole,
    /// The reader closed.
    Broken,
    /// The connection was lost, or the other side gave up.
    Lost,
}

/// Where a call takes its chunks from: a place is asked for before anything is read, so that nothing read is left
/// over when the other side breaks off.
pub(crate) trait Place {
    type Item;
    fn put(self, chunk: Chunk);
}

impl Place for mpsc::OwnedPermit<Chunk> {
    type Item = Chunk;
    fn put(self, chunk: Chunk) {
        self.send(chunk);
    }
}

impl<E> Place for mpsc::OwnedPermit<Result<Chunk, E>> {
    type Item = Result<Chunk, E>;
    fn put(self, chunk: Chunk) {
        self.send(Ok(chunk));
    }
}

/// True when an error of a terminal's master side only says that nobody has the terminal open any more.
pub(crate) fn is_hangup(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EIO)
}
