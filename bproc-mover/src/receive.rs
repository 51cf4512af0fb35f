//! The target's half.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use vmadump::Program;
use vmadump::ahead::Answer;
use vmadump::facts::Facts;
use vmadump::plan::{Owner, Rights};
use vmadump::restore::{self, Body, Filled, RestoreOptions, Restorer};

use crate::fault::point;
use crate::line::{Incoming, line};
use crate::spread::Intake;
use crate::talk::{Agent, Failure, answer, hear_go, hear_question, say_ready, say_refused, say_running};
use crate::wire::{self, Done, Empty, Receive, Report};

/// Receives a process over the first of the descriptors, and tells the agent the good end. On failure the body is what [`Receive::fallback`] says, or
/// dead.
///
/// # Errors
/// Why nothing came of it.
pub fn receive(agent: &Agent, task: &Receive, mut fds: Vec<OwnedFd>) -> Result<(), Failure> {
    let lost = |what: &'static str| move |e: std::io::Error| Failure::link(what, &e);
    if fds.is_empty() {
        return Err(Failure::new(libc::EPROTO, "the agent sent no connection"));
    }
    let stream = TcpStream::from(fds.remove(0));
    let (mut from, mut to) = line(stream, task.keys.as_ref()).map_err(lost("the connection of the pages"))?;
    if let Some(refusal) = &task.refusal {
        hear_question(&mut from).map_err(lost("the source"))?;
        let words = refusal.message.as_str().into();
        let said = Answer { number: refusal.number, words, more: true, ..Answer::default() };
        answer(&mut to, &said).map_err(lost("the source"))?;
        return Err(Failure::new(refusal.number, refusal.message.as_str()));
    }
    let user = task.owner.as_ref().map(owner);
    // Known before the process stands still.
    let facts = Facts::here();
    if !task.relay {
        // While the process runs; nothing is done to the body yet.
        let question = hear_question(&mut from).map_err(lost("the source"))?;
        let said = restoring(task, &user, &facts, &fds, |options| restore::answer(&question, options))?;
        answer(&mut to, &said).map_err(lost("the source"))?;
    }
    if task.wait && !agent.may_begin() {
        return Err(Failure::new(libc::ECANCELED, "the agent gave the move up"));
    }
    point("target-begins");
    // The last to go: others may still get from it what this process has.
    let intake;
    let (mut from, mut to, filled) = if task.relay {
        let (taken, image) = Intake::start(agent, from, to)?;
        intake = taken;
        let filled = restoring(task, &user, &facts, &fds, |options| fill(image, task, options));
        let (from, to, broken) = intake.line()?;
        (from, to, filled.map_err(|failure| broken.unwrap_or(failure)))
    } else {
        let from = from.readable().map_err(lost("the connection of the pages"))?;
        let image = from.again().map_err(lost("the connection of the pages"))?;
        (from, to, restoring(task, &user, &facts, &fds, |options| fill(image, task, options)))
    };
    let result = filled.and_then(|filled| {
        point("target-filled");
        // Answered while the rest is made.
        agent.tell(Report::Ready(Empty {}));
        let prepared = filled.finish()?;
        point("target-built");
        if agent.may_proceed() {
            Ok(prepared)
        } else {
            Err(Failure::new(libc::ECANCELED, "the agent of the target gave the move up"))
        }
    });
    let prepared = match result {
        Ok(prepared) => prepared,
        Err(failure) => {
            say_refused(&mut to, &mut from, &failure);
            return Err(failure);
        }
    };
    point("target-ready");
    say_ready(&mut to).and_then(|()| hear_go(&mut from)).map_err(lost("the source before its word to go"))?;
    point("target-goes");
    prepared.go()?;
    point("target-runs");
    // The agent first: what it knows, it can tell when this one is killed.
    agent.done(Ok(Done::default()));
    point("target-told");
    say_running(&mut to);
    Ok(())
}

/// How it is to be built.
fn restoring<T>(
    task: &Receive,
    owner: &Option<Owner>,
    facts: &Facts,
    fds: &[OwnedFd],
    with: impl FnOnce(&RestoreOptions<'_>) -> T,
) -> T {
    let mut argv = arguments(task.body);
    let argv: Vec<&[u8]> = argv.iter_mut().map(|a| a.as_slice()).collect();
    let envp = |p: &Option<wire::Program>| -> Vec<Vec<u8>> { p.as_ref().map(|p| p.envp.clone()).unwrap_or_default() };
    let (first, last) = (envp(&task.elevate), envp(&task.fallback));
    let first: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
    let last: Vec<&[u8]> = last.iter().map(Vec::as_slice).collect();
    with(&RestoreOptions {
        body: Body::Into(task.body),
        fds: task.fds.iter().copied().zip(fds.iter().map(AsFd::as_fd)).collect(),
        owner: owner.clone(),
        facts: Some(facts.clone()),
        elevate: task.elevate.as_ref().filter(|_| !is_mighty(task.body)).map(|p| Program {
            path: &p.path,
            argv: &argv,
            envp: &first,
        }),
        fallback: task.fallback.as_ref().map(|p| Program { path: &p.path, argv: &argv, envp: &last }),
        drop_missing_fds: task.drop_files,
        only_given_fds: task.only_given,
        ..RestoreOptions::default()
    })
}

fn fill(source: Incoming, task: &Receive, options: &RestoreOptions<'_>) -> Result<Filled, Failure> {
    let filled = Restorer::fill(source, options, &mut |_, _| {})?;
    if filled.image().meta.pid != task.pid {
        let came = filled.image().meta.pid;
        return Err(Failure::new(libc::EINVAL, format!("process {came} came instead of {}", task.pid)));
    }
    Ok(filled)
}

fn owner(of: &wire::Owner) -> Owner {
    let mut rights = Rights {
        uids: of.uids.clone(),
        gids: of.gids.clone(),
        caps: of.caps,
        bounding: of.bounding,
        ..Rights::default()
    };
    for (pair, most) in rights.limits.iter_mut().zip(&of.limits) {
        pair[1] = *most;
    }
    Owner { uid: of.uid, gid: of.gid, groups: of.groups.clone(), rights }
}

fn arguments(pid: i32) -> Vec<Vec<u8>> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    text.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// Has the body the rights that building a process needs?
fn is_mighty(pid: i32) -> bool {
    /// CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN.
    const NEEDED: u64 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 21;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).is_some_and(|caps| caps & NEEDED == NEEDED)
}
