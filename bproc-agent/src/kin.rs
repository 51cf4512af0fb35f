//! What a parent knows of how its children are: it goes along when the parent moves.

use bproc_proto::Relative;

/// A child with what /proc tells of it: letter of its state and exit code, which is the signal of a stop until its parent has
/// been told of that.
pub fn with_state(child: Relative, state: u8, exit_code: i32) -> Relative {
    Relative {
        ended: (state == b'Z').then_some(exit_code),
        halted: matches!(state, b'T' | b't') && exit_code == 0,
        ..child
    }
}
