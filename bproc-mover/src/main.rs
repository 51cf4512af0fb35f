//! `bproc-mover`: one half of one move; started by the agent.
#![deny(unsafe_code)]

use std::process::ExitCode;

use bproc_mover::talk::Agent;
use bproc_mover::wire::Task;
use bproc_mover::{receive, send, spread};

fn main() -> ExitCode {
    let conn = match bproc_sys::seqpacket::Conn::inherited(bproc_mover::SOCKET) {
        Ok(conn) => conn,
        Err(_) => {
            eprintln!("bproc-mover: moves one process; started by bproc-agent, with a connection to it");
            return ExitCode::from(2);
        }
    };
    let agent = Agent(conn);
    let result = match agent.hear() {
        Ok(Some((Task::Receive(task), fds))) => receive::receive(&agent, &task, fds).map(|()| None),
        Ok(Some((Task::Send(task), fds))) => send::send(&agent, &task, fds).map(Some),
        Ok(Some((Task::Hold(task), _))) => spread::hold(&agent, &task).map(Some),
        _ => return ExitCode::FAILURE,
    };
    match result {
        Ok(done) => {
            done.into_iter().for_each(|done| agent.done(Ok(done)));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            agent.done(Err(failure));
            ExitCode::FAILURE
        }
    }
}
