//! The connection to the agent: packets in, packets out, never waiting.
//!
//! What the socket does not take is queued, up to a bound. An agent that reads so slowly that the bound is reached is
//! cut off: it connects again and asks LIST, which tells the state of everything in less room than its history.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bproc_common::keeper::KeeperMsg;
use bproc_common::wire::Record;
use bproc_sys::seqpacket::{Conn, Listener};

/// Packets queued beyond four for each held process.
const QUEUE: usize = 16 * 1024;
/// Send buffer in the kernel: some 5,000 packets.
const BUFFER: usize = 4 << 20;
/// Packets taken in one go, so that a talkative agent does not keep the keeper from its tracees.
pub(crate) const BATCH: usize = 256;

/// The agent's connection, if there is an agent, and what it has not been told yet.
#[derive(Default)]
pub(crate) struct Link {
    conn: Option<Conn>,
    queue: VecDeque<KeeperMsg>,
}

/// What [`Link::receive`] found.
pub(crate) enum Input {
    /// A packet.
    Msg(KeeperMsg),
    /// Bytes that are no packet of the protocol.
    Garbage,
    /// No more for now, or no agent any more.
    Nothing,
}

impl Link {
    /// Takes whoever waits at the listener; the last one is the agent from now on. Others than root are refused.
    pub(crate) fn accept(&mut self, listener: &Listener) -> io::Result<()> {
        loop {
            let conn = match listener.accept() {
                Ok(conn) => conn,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            if conn.peer()?.uid == 0 {
                conn.set_send_buffer(BUFFER)?;
                self.queue.clear();
                self.conn = Some(conn);
            }
        }
    }

    /// The descriptor to wait for.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.conn.as_ref().map(AsFd::as_fd)
    }

    /// Whether to wait for room to send.
    pub(crate) fn wants_room(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Ends the connection.
    pub(crate) fn close(&mut self) {
        self.conn = None;
        self.queue = VecDeque::new();
    }

    /// The next packet, if there is one. Descriptors that come along are closed.
    pub(crate) fn receive(&mut self) -> Input {
        let Some(conn) = &self.conn else {
            return Input::Nothing;
        };
        let mut bytes = [0; KeeperMsg::SIZE];
        match conn.recv(&mut bytes) {
            Ok(got) if got.len == 0 => {
                self.close();
                Input::Nothing
            }
            Ok(got) if got.len == KeeperMsg::SIZE && !got.truncated => {
                KeeperMsg::get(&bytes).map_or(Input::Garbage, Input::Msg)
            }
            Ok(_) => Input::Garbage,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Input::Nothing,
            Err(_) => {
                self.close();
                Input::Nothing
            }
        }
    }

    /// Tells the agent, now or when it reads. `held` is the number of held processes, which sets the queue's bound.
    pub(crate) fn tell(&mut self, msg: KeeperMsg, held: usize) {
        if self.conn.is_none() {
            return;
        }
        self.queue.push_back(msg);
        if self.queue.len() == 1 {
            self.flush();
        } else if self.queue.len() > QUEUE + 4 * held {
            self.close();
        }
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) {
        let Some(conn) = &self.conn else { return };
        let mut bytes = [0; KeeperMsg::SIZE];
        while let Some(msg) = self.queue.front() {
            msg.put(&mut bytes);
            match conn.send(&bytes, &[]) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(),
            }
        }
        if self.queue.capacity() > 1024 {
            self.queue.shrink_to(64);
        }
    }
}
