//! What a parent knows of how its children are: it goes along when the parent moves.

use bproc_proto::Relative;

/// A child with what /proc tells of it: letter of its state and exit code, which is the signal of a stop until its parent has
/// been told of that. `stopped`: it is, and does not only stand still for a moment, in the hands of a mover.
pub fn with_state(child: Relative, state: u8, exit_code: i32, stopped: bool) -> Relative {
    Relative { ended: (state == b'Z').then_some(exit_code), halted: stopped && exit_code == 0, ..child }
}
