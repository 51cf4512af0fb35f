//! One image for many: a process is held still and read once for each of the few who ask its machine, and whoever gets
//! the image passes it on while it comes.
//!
//! ```text
//!  holder ──socket──▶ source 0 ──line──▶ target 0 ──▶ target 2 ──▶ target 6
//!                                              └────▶ target 3
//!         ──socket──▶ source 1 ──line──▶ target 1 ──▶ ...
//! ```
//!
//! Each target has its own line to its own source, on which READY, GO and RUNNING pass as in any move. If whoever gives
//! it the image fails, it asks its source for the rest, by the number of the first byte that it lacks: the held process
//! has not changed, so the same bytes come. Nobody keeps an image; a frame at a time is in memory.
//!
//! On all these connections the image goes in frames: a length (u32, little endian), and as many bytes. Length 0 is the
//! end. From one target to the next there are frames of no content beside, while nothing comes: so that those behind one
//! that is silent have patience as long as those before them have.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bproc_common::errno::BE_SLAVEDIED;
use vmadump::capture::{FdPolicy, Frozen, Options, check, freeze};

use crate::fault::point;
use crate::line::{Incoming, Outgoing, line_within};
use crate::send::patiently;
use crate::talk::{Agent, Failure, Word, hear_speak, hear_word, say_speak, say_waiting, say_wanted};
use crate::wire::{Done, Empty, Hold, Report, Task};

/// Most bytes of a frame.
const FRAME: usize = 256 << 10;
const HEAD: usize = 4;
/// Length that tells that nothing comes at the moment.
const NOTHING: u32 = u32::MAX;
/// Silence of one that gives the image after which the source is asked. More than [`PATIENCE`]: it may wait for another.
const GIVER: Duration = Duration::from_secs(5);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// How long one that gets it may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes frames, from some byte on.
struct Framed {
    out: UnixStream,
    skip: u64,
    frame: Vec<u8>,
}

impl Framed {
    fn new(out: UnixStream, skip: u64) -> Framed {
        let mut frame = Vec::with_capacity(HEAD + FRAME);
        frame.extend([0; HEAD]);
        Framed { out, skip, frame }
    }

    fn send(&mut self) -> io::Result<()> {
        let length = (self.frame.len() - HEAD) as u32;
        if length > 0 {
            self.frame[..HEAD].copy_from_slice(&length.to_le_bytes());
            self.out.write_all(&self.frame)?;
            self.frame.truncate(HEAD);
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.send()?;
        self.out.write_all(&[0; HEAD])
    }
}

impl Write for Framed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.skip > 0 {
            let skipped = self.skip.min(data.len() as u64);
            self.skip -= skipped;
            return Ok(skipped as usize);
        }
        let data = &data[..data.len().min(HEAD + FRAME - self.frame.len())];
        self.frame.extend_from_slice(data);
        if self.frame.len() == HEAD + FRAME {
            self.send()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a frame, head and all, into the buffer; the bytes in it, 0 at the end. `idle` is called while nothing comes.
fn frame(from: &mut impl Read, buffer: &mut Vec<u8>, idle: &mut impl FnMut()) -> io::Result<usize> {
    let mut head = [0; HEAD];
    patient(from, &mut head, idle)?;
    while u32::from_le_bytes(head) == NOTHING {
        idle();
        patient(from, &mut head, idle)?;
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame of an image"));
    }
    buffer.resize(HEAD + length, 0);
    buffer[..HEAD].copy_from_slice(&head);
    patient(from, &mut buffer[HEAD..], idle)?;
    Ok(length)
}

fn patient(from: &mut impl Read, mut into: &mut [u8], idle: &mut impl FnMut()) -> io::Result<()> {
    let mut heard = Instant::now();
    while !into.is_empty() {
        match from.read(into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                into = &mut into[got..];
                heard = Instant::now();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && heard.elapsed() < GIVER => idle(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Holds a process still and gives its image to whoever the agent says, until the agent is gone. The process ends with this
/// one.
///
/// # Errors
/// Why it cannot be held.
pub fn hold(agent: &Agent, task: &Hold) -> Result<Done, Failure> {
    let options = Options { flags: task.flags, fds: FdPolicy::StdioOnly, ..Options::default() };
    patiently(|| check(task.pid, &options))?;
    let frozen = patiently(|| freeze(task.pid, &options))?;
    frozen.bind()?;
    agent.tell(Report::Held(Empty {}));
    let frozen = &frozen;
    std::thread::scope(|threads| {
        loop {
            match agent.hear() {
                Ok(Some((Task::Feed(offset), mut fds))) => {
                    let Some(out) = fds.pop() else { continue };
                    // Who cannot be fed finds the end of the socket.
                    threads.spawn(move || drop(feed(frozen, offset, out)));
                }
                // Nobody waits for those who are still fed: a move that is over, or without an agent.
                _ => std::process::exit(0),
            }
        }
    })
}

fn feed(frozen: &Frozen, offset: u64, out: OwnedFd) -> Result<(), vmadump::Error> {
    let mut out = Framed::new(out.into(), offset);
    frozen.write_image(&mut out)?;
    out.end().map_err(|why| vmadump::Error::Io { op: "write", why })
}

/// The source's part: waits until the target has the image, from elsewhere or from here. Bytes that were sent from here.
///
/// # Errors
/// Why it has not.
pub fn pass_on(agent: &Agent, from: &mut Incoming, to: &mut Outgoing) -> Result<u64, Failure> {
    let lost = |e| Failure::link("the target while it built the process", &e);
    say_speak(to).map_err(lost)?;
    let mut bytes = 0;
    loop {
        match hear_word(from).map_err(lost)? {
            Word::Ready => return Ok(bytes),
            Word::Refused(failure) => return Err(failure),
            Word::Waiting => {}
            Word::Wanted(offset) => {
                agent.tell(Report::Wanted(offset));
                let Ok(Some((Task::Feed(_), mut fds))) = agent.hear() else {
                    return Err(Failure::new(libc::ECANCELED, "the agent gave the move up"));
                };
                let fed = fds.pop().ok_or_else(|| Failure::new(libc::EPROTO, "the agent sent no socket"))?;
                bytes += copy(&mut UnixStream::from(fed), to)?;
            }
        }
    }
}

fn copy(from: &mut UnixStream, to: &mut Outgoing) -> Result<u64, Failure> {
    let mut buffer = Vec::with_capacity(HEAD + FRAME);
    let mut bytes = 0;
    loop {
        let gone = |e| Failure::new(BE_SLAVEDIED, format!("the process whose image all get is gone: {e}"));
        let length = frame(from, &mut buffer, &mut || ()).map_err(gone)?;
        // What the target says about a connection that it has closed tells more.
        if to.write_all(&buffer).is_err() || length == 0 {
            return Ok(bytes);
        }
        bytes += length as u64;
    }
}

/// At a target: an image on its way through.
pub struct Intake {
    thread: Option<JoinHandle<()>>,
    line: Receiver<(Incoming, Outgoing, Option<Failure>)>,
}

impl Intake {
    /// Waits for the agent's word from whom it comes, and begins. The second is the image for this machine.
    ///
    /// # Errors
    /// The agent gave the move up; no thread.
    pub fn start(agent: &Agent, mut from: Incoming, to: Outgoing) -> Result<(Intake, Incoming), Failure> {
        let Ok(Some((Task::Relay(task), fds))) = agent.hear() else {
            return Err(Failure::new(libc::ECANCELED, "the agent gave the move up"));
        };
        hear_speak(&mut from).map_err(|e| Failure::link("the source before it stood still", &e))?;
        let failed = |e: io::Error| Failure::link("passing the image on", &e);
        let (mut giver, mut next) = (None, Vec::new());
        for (i, (fd, seal)) in fds.into_iter().zip(&task.lines).enumerate() {
            let gives = task.fed && i == 0;
            let patience = if gives { LOOK } else { PATIENCE };
            let (from, to) = line_within(TcpStream::from(fd), seal.keys.as_ref(), patience).map_err(failed)?;
            if gives {
                giver = Some((from, to));
            } else {
                next.push(to);
            }
        }
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (back, line) = channel();
        let way = Way { giver, next, here: Some(ours), from, to, had: 0 };
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || way.go(&back)).map_err(failed)?;
        Ok((Intake { thread: Some(thread), line }, Incoming::Opened(theirs)))
    }

    /// The line to the source again, when all of the image is here, or no more of it comes; then why.
    ///
    /// # Errors
    /// It broke.
    pub fn line(&self) -> Result<(Incoming, Outgoing, Option<Failure>), Failure> {
        self.line.recv().map_err(|_| Failure::new(libc::EIO, "passing the image on failed"))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // Others may still get what is here.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The way of an image through this machine.
struct Way {
    giver: Option<(Incoming, Outgoing)>,
    next: Vec<Outgoing>,
    here: Option<UnixStream>,
    from: Incoming,
    to: Outgoing,
    had: u64,
}

impl Way {
    fn go(mut self, back: &Sender<(Incoming, Outgoing, Option<Failure>)>) {
        let ended = self.all();
        // The end of what comes, for those here.
        self.here = None;
        let _ = back.send((self.from, self.to, ended.err().map(|e| Failure::link("the image from elsewhere", &e))));
        // Those who have not heard the end ask their own sources.
        for mut next in self.next {
            let _ = next.write_all(&[0; HEAD]);
        }
    }

    fn all(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(HEAD + FRAME);
        let mut told = Instant::now();
        let mut asked = false;
        loop {
            let Way { giver, next, from, to, .. } = self;
            let got = match giver {
                Some((giver, _)) => frame(giver, &mut buffer, &mut || {
                    next.retain_mut(|next| next.write_all(&NOTHING.to_le_bytes()).is_ok());
                    say_waiting(to);
                }),
                None => {
                    if !std::mem::replace(&mut asked, true) {
                        say_wanted(to, self.had)?;
                    }
                    frame(from, &mut buffer, &mut || ())
                }
            };
            let length = match got {
                Err(_) if self.giver.is_some() => {
                    self.giver = None;
                    continue;
                }
                got => got.inspect_err(|_| self.next.clear())?,
            };
            if length == 0 {
                return Ok(());
            }
            self.had += length as u64;
            if self.here.as_mut().is_some_and(|here| here.write_all(&buffer[HEAD..]).is_err()) {
                // It cannot be built here: that is no reason for others to wait.
                self.here = None;
            }
            self.next.retain_mut(|next| next.write_all(&buffer).is_ok());
            if self.here.is_none() && self.next.is_empty() {
                return Ok(());
            }
            point("target-relays");
            if self.giver.is_some() && told.elapsed() > LOOK {
                say_waiting(&mut self.to);
                told = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames from some byte on are the same bytes, cut elsewhere.
    #[test]
    fn frames_begin_anywhere() {
        let image: Vec<u8> = (0..3 * FRAME + 77).map(|i| (i * 7 + i / 251) as u8).collect();
        for skip in [0, 1, FRAME, FRAME + 1, image.len() - 1, image.len()] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let bytes = image.clone();
            let writer = std::thread::spawn(move || {
                let mut out = Framed::new(ours, skip as u64);
                bytes.chunks(100_003).for_each(|chunk| out.write_all(chunk).unwrap());
                out.end().unwrap();
            });
            let (mut got, mut buffer) = (Vec::<u8>::new(), Vec::new());
            while frame(&mut theirs, &mut buffer, &mut || ()).unwrap() > 0 {
                got.extend(&buffer[HEAD..]);
            }
            writer.join().unwrap();
            assert!(got == image[skip..], "from {skip}");
            assert!(frame(&mut theirs, &mut buffer, &mut || ()).is_err(), "nothing follows");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut buffer = Vec::new();
        assert!(frame(&mut &[0xfe; 100][..], &mut buffer, &mut || ()).is_err());
        assert!(frame(&mut &[5, 0, 0, 0, 1][..], &mut buffer, &mut || ()).is_err());
        assert!(frame(&mut &[][..], &mut buffer, &mut || ()).is_err());
        assert_eq!(frame(&mut &[0; 4][..], &mut buffer, &mut || ()).unwrap(), 0);
        let mut idle = 0;
        assert_eq!(
            frame(&mut &[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 7][..], &mut buffer, &mut || idle += 1).unwrap(),
            1
        );
        assert_eq!(idle, 1);
    }
}
