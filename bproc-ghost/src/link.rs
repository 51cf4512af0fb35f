//! The connection to the agent: one SEQPACKET socket, made again whenever it breaks.

use crate::abi::Timespec;
use crate::sys::{self, Errno};
use bproc_common::ghost::Msg;
use bproc_common::wire::Record;

/// First and longest pause between two attempts, in milliseconds.
const PAUSE: (u32, u32) = (20, 500);

pub(crate) struct Link {
    path: Option<&'static [u8]>,
    up: bool,
    /// Meaningless unless up.
    socket: i32,
    /// Milliseconds between the last attempt and the next.
    pause: u32,
}

impl Link {
    pub(crate) const fn new() -> Link {
        Link { path: None, up: false, socket: 0, pause: 0 }
    }

    pub(crate) fn set_path(&mut self, path: &'static [u8]) {
        self.path = Some(path);
    }

    /// Negative while there is no connection.
    pub(crate) fn fd(&self) -> i32 {
        if self.up { self.socket } else { -1 }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// The connection has got another descriptor number.
    pub(crate) fn moved_to(&mut self, fd: i32) {
        self.socket = fd;
    }

    /// Tries to connect.
    pub(crate) fn connect(&mut self) -> Result<(), Errno> {
        match sys::connect(self.path.unwrap_or_default()) {
            Ok(fd) => {
                self.up = true;
                self.socket = fd;
                self.pause = PAUSE.0;
                Ok(())
            }
            Err(error) => {
                self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
                Err(error)
            }
        }
    }

    /// The time before the next attempt, also after a success: an agent that hangs up at once is not stormed.
    pub(crate) fn pause(&self) -> Timespec {
        Timespec::from_millis(self.pause)
    }

    pub(crate) fn close(&mut self) {
        if self.is_up() {
            sys::close(self.socket);
            self.up = false;
        }
    }

    /// Sends a packet; on failure the connection is given up. True when it went out.
    pub(crate) fn send(&mut self, msg: Msg, payload: &[u8]) -> bool {
        if !self.is_up() {
            return false;
        }
        let mut head = [0; Msg::SIZE];
        Msg { len: payload.len() as u32, ..msg }.put(&mut head);
        match sys::send(self.socket, &head, payload) {
            Ok(()) => true,
            Err(Errno(_)) => {
                self.close();
                false
            }
        }
    }
}
