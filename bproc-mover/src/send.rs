//! The source's half.

use std::io::{BufWriter, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bproc_common::errno::BE_SLAVEDIED;
use bproc_common::ghost::ENV_NAME;
use bproc_common::id::Pid;
use bproc_sys::process::Process;
use vmadump::ahead::Answer;
use vmadump::capture::{FdPolicy, Frozen, NotExecuted, Options, Surveyed, survey};
use vmadump::image::{FdKind, Image, header};

use crate::doubt::decision;
use crate::fault::point;
use crate::filters;
use crate::line::{Incoming, Outgoing, line};
use crate::spread;
use crate::talk::{Agent, Failure, ask, hear_answer, hear_ready, hear_running, say_go};
use crate::wire::{Done, Empty, Report, Send};

/// Tries, a millisecond apart, of what may be otherwise in a moment.
const TRIES: u32 = 20;

/// Sends a process away over the connection that the agent gives. On failure it runs on here.
///
/// # Errors
/// Why it does.
pub fn send(agent: &Agent, task: &Send) -> Result<Done, Failure> {
    let fds = match task.files {
        0 => FdPolicy::Carry,
        1 => FdPolicy::DropOthers,
        _ => FdPolicy::StdioOnly,
    };
    let options = Options { flags: task.flags, fds, positions: true };
    // The agents connect meanwhile.
    let mut surveyed = patiently(|| survey(task.pid, &options))?;
    let (keys, stream) = agent.line()?;
    let line = line(TcpStream::from(stream), keys.as_ref());
    let (mut from, mut to) = line.map_err(|e| Failure::link("the connection of the pages", &e))?;
    let arguments = arguments(task.pid);
    if let Some(program) = &task.stand_in {
        let text = arguments.iter().chain(&program.envp).map(|t| t.len() as u64 + 9).sum();
        vmadump::limits::can_leave(task.pid, text)?;
    }
    // An image that many get is the same for all.
    if !task.spread {
        let answer = ask(&mut to, &surveyed.question()).and_then(|()| hear_answer(&mut from));
        // Of a process that ends the target is told, and waits no more.
        let answer = answer.map_err(|error| match is_over(task.pid) {
            true => Failure::new(libc::ESRCH, "it has ended meanwhile"),
            false => Failure::link("the target, asked before the stop", &error),
        })?;
        may_come(&surveyed, &answer)?;
        surveyed.found(&answer.there)?;
    }
    point("source-begins");

    let start = Instant::now();
    let stopped = surveyed.stop()?;
    // A shell in the middle of a redirection, for example.
    let other_files = || Failure::new(libc::EAGAIN, "it opened or closed files in this moment");
    if task.stdio != stdio(task.pid) {
        return Err(other_files());
    }
    let changed = !knows_children(task);
    agent.tell(Report::Frozen(changed));
    point("source-frozen");
    if changed && !agent.may_begin() {
        return Err(Failure::new(libc::ECANCELED, "the agent gave the move up"));
    }
    let (bytes, frozen) = if task.spread {
        let frozen = stopped.learn()?;
        can_return(frozen.image())?;
        let bytes = spread::pass_on(agent, &mut from, &mut to)?;
        point("source-written");
        agent.tell(Report::Committing(Empty {}));
        (bytes, frozen)
    } else {
        // The target makes itself ready while the process is asked.
        to.write_all(&header()).map_err(|e| Failure::link("the target", &e))?;
        let frozen = stopped.learn()?;
        if task.files == 0 && leaves_files(frozen.image()) {
            return Err(other_files());
        }
        can_return(frozen.image())?;
        (transfer(agent, &frozen, &mut from, &mut to)?, frozen)
    };
    agent.lets_go()?;
    point("source-may-go");
    frozen.bind()?;
    agent.tell(Report::Leaving(Empty {}));
    point("source-leaves");
    // What could not be said, the target has not heard.
    say_go(&mut to).map_err(|e| Failure::link("the target before the word to go", &e))?;
    point("source-gone");
    let moved = match hear_running(&mut from) {
        Ok(()) => true,
        Err(_) => decision(agent, task.doubt.as_ref(), || is_over(task.pid)),
    };
    point("source-knows");
    if !moved {
        return Err(Failure::new(BE_SLAVEDIED, "the target was lost in the last step"));
    }
    let frozen_ns = start.elapsed().as_nanos() as u64;
    let stopped = frozen.image().meta.stopped;
    let Left { nothing: no_stand_in, signal, why: message } = stand_in(frozen, task, &arguments);
    point("source-ends");
    Ok(Done { frozen_ns, bytes, no_stand_in, signal, message, stopped, ..Done::default() })
}

/// Does the target refuse the process before it is stopped? A file that is missing there may be closed in a moment.
fn may_come(surveyed: &Surveyed, answer: &Answer) -> Result<(), Failure> {
    if answer.number == 0 {
        return Ok(());
    }
    let passes = || {
        (0..TRIES).any(|round| {
            if round > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            !surveyed.has_open(&answer.missing)
        })
    };
    if !answer.more && passes() { Ok(()) } else { Err(Failure::new(answer.number, answer.words.text())) }
}

/// Writes the image and waits for READY; the agent prepares its answer meanwhile.
fn transfer(agent: &Agent, frozen: &Frozen, from: &mut Incoming, to: &mut Outgoing) -> Result<u64, Failure> {
    let mut out = BufWriter::with_capacity(32 << 10, to);
    let written = frozen.write_rest(&mut out);
    let flushed = out.flush().map_err(|e| Failure::link("sending the pages", &e));
    drop(out.into_parts());
    point("source-sent");
    let written = match written {
        // The target has something to say perhaps.
        Err(error @ vmadump::Error::Io { op: "write", .. }) => Err(Failure::from(error)),
        // It was killed. The target waits for the rest, and sees the end when this one ends.
        Err(error) => return Err(error.into()),
        Ok(bytes) => Ok(bytes),
    };
    let result = written.and_then(|bytes| flushed.map(|()| bytes));
    if result.is_ok() {
        point("source-written");
        agent.tell(Report::Committing(Empty {}));
    }
    match (result, hear_ready(from)) {
        (Ok(bytes), Ok(Ok(()))) => Ok(bytes),
        // The target's own words tell more than a broken connection.
        (_, Ok(Err(refusal))) => Err(refusal),
        (Err(failure), _) => Err(failure),
        (Ok(_), Err(e)) => Err(Failure::link("the target while it built the process", &e)),
    }
}

/// Tries again what a process refuses that could be moved a moment ago: a shell has copies of its descriptors elsewhere
/// while it redirects, a child executes a program soon.
pub(crate) fn patiently<T>(mut what: impl FnMut() -> Result<T, vmadump::Error>) -> Result<T, Failure> {
    use vmadump::{Error, Refusal};
    let mut left = TRIES;
    loop {
        match what() {
            Err(
                error @ Error::Refused(
                    Refusal::OpenFiles(_) | Refusal::VforkParent(_) | Refusal::SharedSpace | Refusal::Executing,
                ),
            ) => {
                left -= 1;
                if left == 0 {
                    return Err(Failure::new(libc::EAGAIN, error.to_string()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return Ok(done?),
        }
    }
}

/// What the descriptors 0 to 2 of a process lead to; empty for closed ones.
pub fn stdio(pid: i32) -> Vec<Vec<u8>> {
    let link =
        |fd: i32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).map(|l| l.into_os_string().into_encoded_bytes());
    (0..3).map(|fd| link(fd).unwrap_or_default()).collect()
}

/// Has it files that would be closed on the way?
fn leaves_files(image: &Image) -> bool {
    let stays = |kind: &FdKind| matches!(kind, FdKind::NotCarried { .. } | FdKind::Terminal { .. });
    image.fds.iter().any(|f| f.fd > 2 && stays(&f.kind))
}

/// What stands here for it keeps its filters and secure bits, has to live with these, and to be built into a process again
/// by rights that root has.
fn can_return(image: &Image) -> Result<(), Failure> {
    let filters = image.threads.iter().flat_map(|thread| thread.filters.iter().map(|filter| filter.0.as_slice()));
    let forbidden = filters::forbidden(filters);
    if !forbidden.is_empty() {
        let why = format!("its seccomp filter may forbid {}, and nothing could stand for it", forbidden.join(", "));
        return Err(Failure::new(libc::EPERM, why));
    }
    /// SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP.
    const BITS: u32 = 1 | 4;
    match image.creds.iter().find(|creds| creds.securebits & BITS != 0) {
        None => Ok(()),
        Some(creds) => {
            let why =
                format!("its secure bits ({:#x}) leave root no rights, and nothing can stand for it", creds.securebits);
            Err(Failure::new(libc::EPERM, why))
        }
    }
}

/// All its children, zombies too.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let all: Vec<i32> = texts
        .flat_map(|t| t.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|n| n.parse().ok())
        .collect();
    sorted(&all)
}

/// Does the target know how all of them are?
fn knows_children(task: &Send) -> bool {
    let children = children(task.pid);
    let are = |how: fn(i32, char, i32) -> bool| {
        let so = |pid: &i32| state(*pid).is_some_and(|(state, code)| how(*pid, state, code));
        children.iter().copied().filter(so).collect::<Vec<_>>()
    };
    children == sorted(&task.children)
        && are(|_, state, _| state == 'Z') == sorted(&task.ended)
        && are(|pid, state, code| code == 0 && is_stopped(pid, state)) == sorted(&task.halted)
}

fn is_stopped(pid: i32, state: char) -> bool {
    let process = Pid::new(pid).and_then(|pid| Process::open(pid).ok());
    process.is_some_and(|process| process.is_stopped(state as u8))
}

/// Letter and exit code of a process: of one that has stopped the signal, until its parent has been told.
fn state(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    // proc(5) counts from 1, and the state as 3.
    Some((fields.next()?.chars().next()?, fields.nth(48)?.parse().ok()?))
}

fn sorted(numbers: &[i32]) -> Vec<i32> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers
}

fn arguments(pid: i32) -> Vec<Vec<u8>> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    if text.is_empty() {
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        return vec![name.strip_suffix(b"\n").unwrap_or(&name).to_vec()];
    }
    text.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// It is dead, whoever has yet to reap it.
fn is_over(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// What a process that has gone leaves behind.
#[derive(Debug, Default)]
struct Left {
    /// No stand-in.
    nothing: bool,
    /// That somebody sent it meanwhile, if it cannot be read.
    signal: i32,
    /// Why there is no stand-in, if there was to be one.
    why: String,
}

/// How long a stand-in may take to give itself its name, and how often is looked whether it has.
const NAMING: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// The process has gone; what is here becomes its stand-in.
fn stand_in(frozen: Frozen, task: &Send, arguments: &[Vec<u8>]) -> Left {
    let nothing = Left { nothing: true, ..Left::default() };
    let Some(program) = &task.stand_in else {
        // Nothing shall stand here. One that was killed meanwhile is gone already.
        let _ = frozen.kill();
        return nothing;
    };
    let argv: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
    // The exec gives it that of its program. Whoever looks when the move is told shall see that of the process.
    let called = || std::fs::read(format!("/proc/{}/comm", task.pid)).unwrap_or_default();
    let comm = called();
    let name = [ENV_NAME.as_bytes(), b"=", comm.strip_suffix(b"\n").unwrap_or(&comm)].concat();
    let envp: Vec<&[u8]> = program.envp.iter().chain([&name]).map(Vec::as_slice).collect();
    match frozen.become_exec(&program.path, &argv, &envp) {
        Ok(tracee) => {
            let signal = if tracee.is_owed_a_stop() { libc::SIGSTOP } else { 0 };
            match tracee.release_or_bury() {
                true => {
                    let limit = Instant::now() + NAMING;
                    while signal == 0 && Instant::now() < limit && called() != comm {
                        std::thread::sleep(LOOK_AGAIN);
                    }
                    Left { signal, ..Left::default() }
                }
                false => Left { signal: libc::SIGKILL, ..nothing },
            }
        }
        Err(NotExecuted { frozen, why }) => {
            let killed = frozen.is_none() || is_over(task.pid);
            if let Some(frozen) = frozen {
                let _ = frozen.kill();
            }
            match killed {
                true => Left { signal: libc::SIGKILL, ..nothing },
                false => Left { why: format!("what it left cannot stand for it: {why}"), ..nothing },
            }
        }
    }
}
