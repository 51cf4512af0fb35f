//! Calls that move a running process, or dump another one. This agent cannot: -1 with ENOSYS, always, whatever the
//! arguments. That they are here lets programs link that call them only on some ways.

use libc::c_int;

use super::{answer, export};

macro_rules! absent {
    ($($name:ident),* $(,)?) => {
        // C's calling convention lets a function ignore arguments.
        $(unsafe extern "C" fn $name() -> c_int { answer(Err(libc::ENOSYS)) })*
        export!($($name),*);
    };
}

absent!(
    bproc_move,
    _bproc_move,
    bproc_move_io,
    _bproc_move_io,
    bproc_rfork,
    _bproc_rfork,
    bproc_rfork_io,
    _bproc_rfork_io,
    bproc_vrfork,
    _bproc_vrfork,
    bproc_vrfork_io,
    _bproc_vrfork_io,
    bproc_execdump,
);
