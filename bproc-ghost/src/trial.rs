//! Whether a program can be executed, before the one who stands in its place gives up what it is: a child tries all of it, and
//! is ended before the program's first instruction.
//!
//! ```text
//! child: traced, stops ─▶ goes on, gives up what it is, execs ─▶ stopped by that: killed. It can.
//!                                    └─ a step fails ─▶ exits with the error number. It cannot.
//! ```
//!
//! The child tells nobody of its end, and dies with its tracer. Where it cannot be made or traced, nothing is known.

use crate::abi::{SigInfo, cld, errno, sig, wait};
use crate::command::Fds;
use crate::exec;
use crate::ghost::Ghost;
use crate::sys::{self, Errno, Whose};

/// The child is not the tracee of who traces this: the keeper of the master's ghosts would have it.
const UNTRACED: u64 = 0x80_0000;

/// Why the program cannot be executed; `None` if it can, or if that is not known.
pub(crate) fn refusal(ghost: &mut Ghost, fds: &Fds) -> Option<Errno> {
    match sys::clone_process(UNTRACED, 0, None) {
        Ok(0) => run(ghost, fds),
        Ok(child) => outcome(child),
        Err(_) => None,
    }
}

/// What the child does. Its signals stay blocked to the end.
fn run(ghost: &mut Ghost, fds: &Fds) -> ! {
    if sys::trace_me().is_err() {
        sys::exit(0);
    }
    sys::raise(sig::STOP);
    match exec::attempt(ghost, fds, true) {
        Ok(Errno(number)) | Err(Errno(number)) => sys::exit(number),
    }
}

fn outcome(child: i32) -> Option<Errno> {
    const STOPS: i32 = wait::EXITED | wait::STOPPED | wait::ALL_KINDS;
    let mut first = true;
    loop {
        let mut info = SigInfo::ZERO;
        match sys::waitid(Whose::Pid(child), STOPS, &mut info, None) {
            Err(Errno(errno::EINTR)) => continue,
            Err(_) => return None,
            Ok(()) => {}
        }
        let going_on = match (info.code(), info.status()) {
            // That many processes of its user are perhaps too many only with this one.
            (cld::EXITED, 0 | errno::EAGAIN) | (cld::KILLED | cld::DUMPED, _) => return None,
            (cld::EXITED, number) => return Some(Errno(number)),
            (_, sys::EXEC_STOP) => Err(Errno(0)),
            _ if first => sys::bind_tracee(child).and_then(|()| sys::let_go_on(child)),
            // Somebody stops its group: the stop is not its own.
            _ => sys::let_go_on(child),
        };
        first = false;
        if going_on.is_err() {
            let _ = sys::kill(child, sig::KILL);
        }
    }
}
