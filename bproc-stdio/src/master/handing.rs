//! Streams of processes that move: from one name to the next, and back to where they came from.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{End, Master, Past, Report};
use crate::turn::{Behind, Turn, is_channel, is_full};
use crate::wire::{Kind, StreamSpec, Token};

/// What a stream leads to, for those who come after its process.
pub(super) struct Kept {
    pub(super) fd: OwnedFd,
    pub(super) turn: Turn,
    pub(super) past: Past,
    /// It is the far end, and goes to the first who comes.
    pub(super) once: bool,
}

/// What a stream leads to, for one who comes after its process.
pub(crate) struct HandedOn {
    pub(crate) fd: OwnedFd,
    pub(crate) turn: Turn,
    /// An output: behind what its process has written.
    pub(crate) behind: Option<Behind>,
    /// Nobody reads it now.
    pub(crate) stalls: bool,
}

impl Master {
    /// Pipes that lead back to a node, which calls for their other ends. False: the token is in use.
    pub(crate) fn back(self: &Arc<Self>, token: Token, streams: &[StreamSpec]) -> std::io::Result<bool> {
        let processes = self.lock();
        if processes.contains_key(&token) {
            return Ok(false);
        }
        let (mut ends, mut kept) = (Vec::new(), HashMap::new());
        for spec in streams {
            let (reader, writer) = std::io::pipe()?;
            let (kind, fd, far, asked) = match spec.kind() {
                Kind::Input => (Kind::Output, writer.into(), OwnedFd::from(reader), None),
                _ => {
                    let asked = self.leading.begin(&writer)?;
                    (Kind::Input, reader.into(), OwnedFd::from(writer), Some(asked))
                }
            };
            let end = End { asked, ..End::new(StreamSpec::new(spec.fd, kind), fd) };
            kept.insert(spec.fd, Kept { fd: far, turn: Turn::default(), past: Past::default(), once: true });
            ends.push(end);
        }
        Ok(self.expect_kept(processes, token, ends, kept, (None, 0, false), None))
    }

    /// What these streams lead to, for a process that goes on elsewhere as `successor`, and whose turn it is to read there. One
    /// that has ended leads to nobody, or to the end.
    pub(crate) fn hand_on(&self, streams: &[(Token, i32, Kind)], successor: Token) -> std::io::Result<Vec<HandedOn>> {
        let mut processes = self.lock();
        let one = |(token, fd, kind): &(Token, i32, Kind)| {
            let process = processes.get_mut(token);
            if let Some(kept) = process.and_then(|p| p.kept.extract_if(|n, kept| n == fd && kept.once).next()) {
                let (_, Kept { fd, turn, .. }) = kept;
                let stalls = *kind == Kind::Output && is_full(&fd);
                return Ok(HandedOn { fd, turn, behind: None, stalls });
            }
            let kept = processes.get(token).and_then(|p| p.kept.get(fd));
            let (fd, turn, past) = match (kept, kind) {
                (Some(kept), _) => (kept.fd.try_clone()?, kept.turn.clone(), Some(&kept.past)),
                (None, Kind::Input) => (std::fs::File::open("/dev/null")?.into(), Turn::default(), None),
                (None, _) => std::io::pipe().map(|(_, writer)| (writer.into(), Turn::default(), None))?,
            };
            let past = past.filter(|_| *kind == Kind::Output);
            let behind = past.map(|past| Behind::new(&past.gone, successor));
            let stalls =
                past.is_some_and(|past| is_channel(&fd) && (is_full(&fd) || past.writing.load(Ordering::Relaxed)));
            Ok(HandedOn { fd, turn, behind, stalls })
        };
        streams.iter().map(one).collect()
    }

    /// Who is told of the losses of these streams.
    pub(crate) fn report_of(&self, streams: &[(Token, i32, Kind)]) -> Option<Arc<Report>> {
        let processes = self.lock();
        streams.iter().find_map(|(token, ..)| processes.get(token)?.report.clone())
    }
}
