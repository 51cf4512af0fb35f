//! Talking: to the agent over the local socket, to the other mover over the connection of the pages.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use bproc_sys::seqpacket::Conn;
use prost::Message;
use vmadump::ahead::{Answer, Question};
use vmadump::wire::{Wire, decode};

use crate::line::{Incoming, Outgoing};
use crate::wire::{Done, FromMover, Keys, MAX_PACKET, Report, Task, ToMover};

/// The connection to the agent.
#[derive(Debug)]
pub struct Agent(RefCell<Conn>);

/// Why a half of a move failed.
#[derive(Debug)]
pub struct Failure {
    /// errno, or a number of BProc's own.
    pub number: i32,
    /// In words.
    pub message: String,
}

impl Failure {
    /// With words.
    pub fn new(number: i32, message: impl Into<String>) -> Failure {
        Failure { number, message: message.into() }
    }

    /// Of the connection between the movers.
    pub fn link(what: &str, error: &io::Error) -> Failure {
        Failure::new(bproc_common::errno::BE_SLAVEDIED, format!("{what}: {error}"))
    }
}

impl From<vmadump::Error> for Failure {
    fn from(error: vmadump::Error) -> Failure {
        Failure::new(error.errno(), error.to_string())
    }
}

impl Agent {
    /// On this connection.
    pub fn new(conn: Conn) -> Agent {
        Agent(RefCell::new(conn))
    }

    /// Another one, on this connection.
    pub fn is_now(&self, conn: Conn) {
        self.0.replace(conn);
    }

    /// The next word of the agent, with descriptors; `None` when it is gone.
    ///
    /// # Errors
    /// What recvmsg says, and packets that mean nothing.
    pub fn hear(&self) -> io::Result<Option<(Task, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_PACKET];
        let got = self.0.borrow().recv(&mut buffer)?;
        if got.len == 0 {
            return Ok(None);
        }
        let message = ToMover::decode(&buffer[..got.len]).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let task = message.task.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Some((task, got.fds)))
    }

    /// Tells the agent. One that is gone hears nothing.
    pub fn tell(&self, report: Report) {
        let bytes = FromMover { report: Some(report) }.encode_to_vec();
        let _ = self.0.borrow().send(&bytes, &[]);
    }

    /// The end.
    pub fn done(&self, result: Result<Done, Failure>) {
        let done = result.unwrap_or_else(|f| Done { number: f.number.max(1), message: f.message, ..Done::default() });
        self.tell(Report::Done(done));
    }

    /// Waits for the connection to the other mover.
    ///
    /// # Errors
    /// The agent has none, or gave the move up.
    pub fn line(&self) -> Result<(Option<Keys>, OwnedFd), Failure> {
        match self.hear() {
            Ok(Some((Task::Line(line), mut fds))) => match fds.pop() {
                Some(stream) => Ok((line.keys, stream)),
                None => Err(Failure::new(libc::EPROTO, "the agent sent no connection")),
            },
            _ => Err(Failure::new(libc::ECANCELED, "the agent gave the move up")),
        }
    }

    /// Waits for Begin; anything else means no.
    pub fn may_begin(&self) -> bool {
        matches!(self.hear(), Ok(Some((Task::Begin(_), _))))
    }

    /// Source: waits for Proceed.
    ///
    /// # Errors
    /// Why not; an agent that is gone does not say.
    pub fn lets_go(&self) -> Result<(), Failure> {
        match self.hear() {
            Ok(Some((Task::Proceed(true), _))) => Ok(()),
            Ok(Some((Task::Stay(stay), _))) => Err(Failure::new(stay.number, stay.message)),
            _ => Err(Failure::new(libc::ECANCELED, "the agent gave the move up")),
        }
    }

    /// Target: waits for Proceed; an agent that is gone means no.
    pub fn may_proceed(&self) -> bool {
        matches!(self.hear(), Ok(Some((Task::Proceed(true), _))))
    }
}

/// READY, or a refusal: one byte, then for a refusal number, length, words.
const READY: u8 = b'R';
const REFUSED: u8 = b'F';
/// Then the number of a byte.
const WANTED: u8 = b'W';
const WAITING: u8 = b'P';
const SPEAK: u8 = b'S';
const GO: u8 = b'G';
const RUNNING: u8 = b'D';
const MOST_WORDS: u32 = 64 << 10;
/// Bytes that a question, or its answer, has at most.
const MOST_ASKED: usize = 16 << 20;
/// Before it: its length.
const HEAD: usize = 4;

/// Target: it is built.
///
/// # Errors
/// The connection is lost.
pub fn say_ready(to: &mut Outgoing) -> io::Result<()> {
    to.write_all(&[READY])
}

/// Target: it cannot be. What is still on its way is thrown away, so that the words arrive.
pub fn say_refused(to: &mut Outgoing, from: &mut Incoming, failure: &Failure) {
    let words = failure.message.as_bytes();
    let words = &words[..words.len().min(MOST_WORDS as usize)];
    let mut packet = vec![REFUSED];
    packet.extend(failure.number.to_le_bytes());
    packet.extend((words.len() as u32).to_le_bytes());
    packet.extend(words);
    if to.write_all(&packet).is_err() || to.end().is_err() {
        return;
    }
    let mut waste = [0; 16 << 10];
    while matches!(from.read(&mut waste), Ok(1..)) {}
}

/// What a target says before it is built, or not.
#[derive(Debug)]
pub enum Word {
    /// READY.
    Ready,
    /// It cannot be.
    Refused(Failure),
    /// The image is wanted, from this byte on.
    Wanted(u64),
    /// The image comes from elsewhere.
    Waiting,
}

/// Source: the next word of a target that builds.
///
/// # Errors
/// The connection is lost.
pub fn hear_word(from: &mut Incoming) -> io::Result<Word> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    match byte[0] {
        READY => Ok(Word::Ready),
        WAITING => Ok(Word::Waiting),
        WANTED => {
            let mut offset = [0; 8];
            from.read_exact(&mut offset)?;
            Ok(Word::Wanted(u64::from_le_bytes(offset)))
        }
        REFUSED => {
            let mut head = [0; 8];
            from.read_exact(&mut head)?;
            let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
            let len = u32::from_le_bytes(word(4)).min(MOST_WORDS);
            let mut words = vec![0; len as usize];
            from.read_exact(&mut words)?;
            Ok(Word::Refused(Failure::new(i32::from_le_bytes(word(0)), String::from_utf8_lossy(&words))))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Source: waits for READY. The outer error: the connection is lost.
///
/// # Errors
/// As told; the inner one is the target's refusal.
pub fn hear_ready(from: &mut Incoming) -> io::Result<Result<(), Failure>> {
    match hear_word(from)? {
        Word::Ready => Ok(Ok(())),
        Word::Refused(failure) => Ok(Err(failure)),
        Word::Wanted(_) | Word::Waiting => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Source: asks the target about its process. A question that is too long is not asked, but an empty one.
///
/// # Errors
/// The connection is lost.
pub fn ask(to: &mut Outgoing, question: &Question) -> io::Result<()> {
    put(to, question)
}

/// Target: what its source asks.
///
/// # Errors
/// The connection is lost; this is no question.
pub fn hear_question(from: &mut Incoming) -> io::Result<Question> {
    take(from)
}

/// Target: answers.
///
/// # Errors
/// The connection is lost.
pub fn answer(to: &mut Outgoing, answer: &Answer) -> io::Result<()> {
    put(to, answer)
}

/// Source: what the target answers.
///
/// # Errors
/// The connection is lost; this is no answer.
pub fn hear_answer(from: &mut Incoming) -> io::Result<Answer> {
    take(from)
}

/// Its length, then a value.
fn put<T: Wire + Default>(to: &mut Outgoing, value: &T) -> io::Result<()> {
    let mut packet = vec![0; HEAD];
    value.put(&mut packet);
    if packet.len() > HEAD + MOST_ASKED {
        packet.truncate(HEAD);
        T::default().put(&mut packet);
    }
    let length = (packet.len() - HEAD) as u32;
    packet[..HEAD].copy_from_slice(&length.to_le_bytes());
    to.write_all(&packet)
}

fn take<T: Wire>(from: &mut Incoming) -> io::Result<T> {
    let mut length = [0; HEAD];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_ASKED {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a question or an answer that is too long"));
    }
    let mut packet = vec![0; length];
    from.read_exact(&mut packet)?;
    decode(&packet).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Source: its process stands still, and the target may speak. (Before, its words would come into the handshake of a
/// sealed connection.)
///
/// # Errors
/// The connection is lost.
pub fn say_speak(to: &mut Outgoing) -> io::Result<()> {
    to.write_all(&[SPEAK])
}

/// Target: waits until it may.
///
/// # Errors
/// The connection is lost.
pub fn hear_speak(from: &mut Incoming) -> io::Result<()> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    if byte[0] == SPEAK { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Target: wants an image that it does not get from elsewhere, from this byte on.
///
/// # Errors
/// The connection is lost.
pub fn say_wanted(to: &mut Outgoing, offset: u64) -> io::Result<()> {
    let mut packet = [WANTED; 9];
    packet[1..].copy_from_slice(&offset.to_le_bytes());
    to.write_all(&packet)
}

/// Target: it still gets its image from elsewhere. A source that is gone is noticed later.
pub fn say_waiting(to: &mut Outgoing) {
    let _ = to.write_all(&[WAITING]);
}

/// Source: the word to go.
///
/// # Errors
/// The connection is lost.
pub fn say_go(to: &mut Outgoing) -> io::Result<()> {
    to.write_all(&[GO])
}

/// Target: waits for the word to go.
///
/// # Errors
/// It does not come.
pub fn hear_go(from: &mut Incoming) -> io::Result<()> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    if byte[0] == GO { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Target: it runs. The agent knows too, so a loss is no harm.
pub fn say_running(to: &mut Outgoing) {
    let _ = to.write_all(&[RUNNING]);
}

/// Source: waits until it runs.
///
/// # Errors
/// The word does not come: in doubt.
pub fn hear_running(from: &mut Incoming) -> io::Result<()> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    if byte[0] == RUNNING { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
