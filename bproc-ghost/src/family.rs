//! The command that makes a child: another ghost, with the pid that the agent chose.

use crate::abi::{CLONE_PARENT, sig};
use crate::command::{Answer, INVALID, int};
use crate::entry::role_of;
use crate::ghost::Ghost;
use crate::sys;
use bproc_common::ghost::{Msg, Role};

/// Clones itself. In the parent the answer is the child's pid; the child starts anew and connects by itself.
pub(crate) fn clone(ghost: &mut Ghost, msg: &Msg, payload: &[u8]) -> sys::Result<Answer> {
    let role = match payload {
        [] if ghost.role == Role::Init => Role::Skeleton,
        [] => ghost.role,
        text => role_of(text).filter(|role| *role != Role::Init).ok_or(INVALID)?,
    };
    let pid = match int(msg.a)? {
        0 => None,
        pid @ 1.. => Some(pid),
        _ => return Err(INVALID),
    };
    // A sibling takes over our own exit signal; the kernel wants none given.
    let (flags, exit_signal) = if msg.b & 1 != 0 { (CLONE_PARENT, 0) } else { (0, sig::CHLD) };
    match sys::clone_process(flags, exit_signal, pid)? {
        0 => {
            ghost.begin_anew(role);
            Ok(Answer::None)
        }
        child => Ok(child.into()),
    }
}
