//! Whether a process that is going to come can execute there what it comes for: its ghost, or the body that is made for it, has a
//! child try it. So the process is told while it stands where it is, and goes on.

use crate::block::block;
use crate::ghosts::Ghost;
use crate::stdio::words;
use bproc_common::ghost::op;
use bproc_proto::{Failure, SpawnSpec};
use bproc_sys::memfd;
use bproc_travel::node::Place;
use std::os::fd::OwnedFd;

/// [`op::EXEC`]: no more than tried.
const ONLY_TRIED: i64 = 2;

/// Tries the program of the spec, if it has one. `node`: for messages.
///
/// # Errors
/// Why it cannot be executed. A ghost that is gone by now is no reason.
pub async fn can_execute(ghost: &Ghost, spec: &SpawnSpec, place: Option<&Place>, node: i32) -> Result<(), Failure> {
    let failed = |number: i32, message: String| Failure { number, message };
    // A group of its own, of which nobody is: it need not be in that of the process, or in its session. And its files do not matter.
    let spec = SpawnSpec { pgid: spec.pid, sid: 0, pty: false, streams: Vec::new(), ..spec.clone() };
    let too_long = || failed(libc::E2BIG, "an argument contains a NUL byte, or they are too long".into());
    let block = block(&spec, place).ok_or_else(too_long)?;
    let io = |e: bproc_sys::Error| failed(e.errno(), format!("node {node}: the exec block: {e}"));
    let mut fds: Vec<OwnedFd> = vec![memfd::seal_bytes(c"bproc-exec", &block).map_err(io)?];
    if let Some(place) = place {
        let copy = place.mounts.try_clone();
        fds.push(
            copy.map_err(|e| {
                failed(e.raw_os_error().unwrap_or(libc::EMFILE), format!("node {node}: its mounts: {e}"))
            })?,
        );
    }
    match ghost.ask(op::EXEC, ONLY_TRIED, 0, vec![], fds).await {
        Ok(value) if value < 0 => {
            let number = -value as i32;
            let why = std::io::Error::from_raw_os_error(number);
            Err(failed(number, format!("{}: {}", String::from_utf8_lossy(&spec.path), words(&why))))
        }
        _ => Ok(()),
    }
}
