//! A call that dumps another process. This agent cannot: -1 with ENOSYS, always, whatever the arguments. That it is
//! here lets programs link that call it only on some ways.

use libc::c_int;

use super::{answer, export};

macro_rules! absent {
    ($($name:ident),* $(,)?) => {
        // C's calling convention lets a function ignore arguments.
        $(unsafe extern "C" fn $name() -> c_int { answer(Err(libc::ENOSYS)) })*
        export!($($name),*);
    };
}

absent!(bproc_execdump);
