//! The loop: tracees' reports, the agent's commands, new agents, signals.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use bproc_common::id::Pid;
use bproc_common::keeper::{KeeperMsg, op};
use bproc_sys::limits;
use bproc_sys::poll::{self, Interest};
use bproc_sys::seqpacket::Listener;
use bproc_sys::signal::SignalFd;

use crate::gate::Gate;
use crate::link::{BATCH, Input};

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Quit,
}

/// Serves at `path` until told to quit.
pub(crate) fn run(path: &Path) -> io::Result<()> {
    let signals = SignalFd::block(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let _lock = lock(path)?;
    let listener = Listener::bind(path, 0o600)?;
    // Its death would open all gates. Refused without CAP_SYS_RESOURCE, where the agent's own rank stays.
    let _ = limits::set_oom_score_adj(None, -1000);
    let mut gate = Gate::default();
    loop {
        let room = if gate.link.wants_room() { Interest::ReadWrite } else { Interest::Read };
        let [new, signal, agent] = poll::wait([
            (Some(listener.as_fd()), Interest::Read),
            (Some(signals.as_fd()), Interest::Read),
            (gate.link.fd(), room),
        ])?;
        if signal.ready() && take_signals(&signals, &mut gate)? == Next::Quit {
            break;
        }
        if agent.writable {
            gate.link.flush();
        }
        if agent.ready() && take_commands(&mut gate) == Next::Quit {
            break;
        }
        if new.ready() {
            // Out of descriptors or memory: the next round tries again, what is held stays held.
            let _ = gate.link.accept(&listener);
        }
    }
    std::fs::remove_file(path)
}

/// Makes sure that one keeper serves a path: a second one would take the socket but not the ghosts.
fn lock(path: &Path) -> io::Result<std::fs::File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another keeper serves here"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}

fn take_signals(signals: &SignalFd, gate: &mut Gate) -> io::Result<Next> {
    while let Some((signal, pid)) = signals.read()? {
        if signal == libc::SIGCHLD {
            gate.reap(Pid::new(pid));
        } else if gate.len() == 0 {
            return Ok(Next::Quit);
        }
    }
    Ok(Next::GoOn)
}

fn take_commands(gate: &mut Gate) -> Next {
    for _ in 0..BATCH {
        match gate.link.receive() {
            Input::Nothing => break,
            Input::Garbage => {}
            Input::Msg(msg) => {
                if command(gate, msg) == Next::Quit {
                    return Next::Quit;
                }
            }
        }
    }
    Next::GoOn
}

fn command(gate: &mut Gate, msg: KeeperMsg) -> Next {
    let answer = |gate: &mut Gate, value| gate.done(msg.tag, msg.pid, value);
    let about = match msg.op {
        op::SEIZE | op::RELEASE | op::DETACH | op::THAW | op::FREEZE => Pid::new(msg.pid),
        op::LIST | op::PING => {
            gate.reap(None);
            if msg.op == op::LIST {
                gate.freeze_all();
                gate.sweep();
                gate.list();
            }
            answer(gate, 0);
            return Next::GoOn;
        }
        op::QUIT => {
            // The tracees go free with the tracer.
            answer(gate, 0);
            return Next::Quit;
        }
        _ => {
            answer(gate, -libc::ENOSYS);
            return Next::GoOn;
        }
    };
    let Some(pid) = about else {
        answer(gate, -libc::ESRCH);
        return Next::GoOn;
    };
    match msg.op {
        op::SEIZE => {
            let value = gate.seize(pid).map_or_else(|e| -e.errno(), |()| 0);
            answer(gate, value);
        }
        op::THAW | op::FREEZE => {
            let value = if gate.thaw(pid, msg.op == op::THAW) { 0 } else { -libc::ESRCH };
            answer(gate, value);
        }
        op::RELEASE => {
            let value = if gate.release(pid) { 0 } else { -libc::ESRCH };
            answer(gate, value);
        }
        _ => {
            if !gate.detach(pid, msg.tag) {
                answer(gate, -libc::ESRCH);
            }
        }
    }
    Next::GoOn
}
