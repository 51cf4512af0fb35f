//! `bproc-mover`: halves of moves, one at a time; started by the agent.
#![deny(unsafe_code)]

use std::process::ExitCode;

use bproc_mover::talk::Agent;
use bproc_mover::wire::Task;
use bproc_mover::{BUSY, receive, send, spread};

fn main() -> ExitCode {
    let conn = match bproc_sys::seqpacket::Conn::inherited(bproc_mover::SOCKET) {
        Ok(conn) => conn,
        Err(_) => {
            eprintln!("bproc-mover: moves one process; started by bproc-agent, with a connection to it");
            return ExitCode::from(2);
        }
    };
    let agent = Agent::new(conn);
    // One move after the other; none after one that has failed.
    loop {
        let result = match agent.hear() {
            Ok(Some((Task::Receive(task), fds))) => busy(|| receive::receive(&agent, &task, fds).map(|()| None)),
            Ok(Some((Task::Send(task), _))) => busy(|| send::send(&agent, &task).map(Some)),
            Ok(Some((Task::Hold(task), _))) => busy(|| spread::hold(&agent, &task).map(Some)),
            // Late words of the last move.
            Ok(Some(_)) => continue,
            Ok(None) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        };
        match result {
            Ok(done) => done.into_iter().for_each(|done| agent.done(Ok(done))),
            Err(failure) => {
                agent.done(Err(failure));
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Under another name, for people.
fn busy<T>(work: impl FnOnce() -> T) -> T {
    let _ = std::fs::write("/proc/self/comm", BUSY);
    let done = work();
    let _ = std::fs::write("/proc/self/comm", "bproc-mover");
    done
}
