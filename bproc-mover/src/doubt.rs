//! A source that has said the word to go and hears nothing: its agent, or the next one, is told what became of the move.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bproc_sys::seqpacket::Conn;

use crate::talk::Agent;
use crate::wire::{Doubt, Empty, Report, Task};

/// How long a next agent is waited for. A node's space ends before; on the master nobody else ends the process.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits for the agent's word: does it run at the target? While nobody can tell, the process must not run: it might run
/// twice. Where nobody ever tells, it ends here. `ended`: it has anyway.
pub(crate) fn decision(agent: &Agent, doubt: Option<&Doubt>, ended: impl Fn() -> bool) -> bool {
    agent.tell(Report::InDoubt(Empty {}));
    loop {
        match agent.hear() {
            Ok(Some((Task::Decide(moved), _))) => return moved,
            // Late words.
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => {}
        }
        if !doubt.is_some_and(|doubt| tell_next(agent, doubt, &ended)) {
            return true;
        }
    }
}

/// Finds the next agent. False when none comes, or nothing is left to decide.
fn tell_next(agent: &Agent, doubt: &Doubt, ended: impl Fn() -> bool) -> bool {
    let socket = Path::new(OsStr::from_bytes(&doubt.socket));
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit && !ended() {
        if let Ok(conn) = Conn::connect(socket) {
            agent.is_now(conn);
            agent.tell(Report::Doubt(doubt.clone()));
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}
