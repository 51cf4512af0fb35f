//! Which pipe is which stream: a process that moves has pipes, and its streams go with it. Agents come and go; the service
//! remembers, also of streams that have ended, since their pipes may be open still.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use crate::wire::{Kind, StreamName, StreamSpec, Token};

/// Pipes that are remembered. Their numbers do not come again soon.
const MOST: usize = 16384;

/// By inode number, oldest first.
#[derive(Default)]
pub(crate) struct Pipes(Mutex<VecDeque<(u64, StreamName)>>);

impl Pipes {
    /// A stream begins; `fd` is our end of its pipe.
    pub(crate) fn note(&self, token: Token, spec: StreamSpec, fd: &OwnedFd) {
        if !matches!(spec.kind(), Kind::Input | Kind::Output) {
            return;
        }
        let Ok(meta) = std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())) else { return };
        let name = StreamName { token: token.as_bytes().to_vec(), fd: spec.fd, kind: spec.kind };
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.push_back((meta.ino(), name));
        if pipes.len() > MOST {
            pipes.pop_front();
        }
    }

    /// The stream of a pipe; the newest, should a number have come again.
    pub(crate) fn stream(&self, inode: u64) -> Option<StreamName> {
        let pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.iter().rev().find(|(number, _)| *number == inode).map(|(_, name)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_pipe_are_one() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (pipes, token) = (Pipes::default(), Token::random().unwrap());
        pipes.note(token, StreamSpec::new(2, Kind::Output), &reader.into());
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap().ino();
        let name = pipes.stream(inode).unwrap();
        assert_eq!((name.token.as_slice(), name.fd), (token.as_bytes().as_slice(), 2));
        assert_eq!(pipes.stream(inode + 1), None);
    }
}
