//! The C library: `sys/bproc.h` over the client.
//!
//! | module | owns |
//! |---|---|
//! | `abi` | structures and numbers |
//! | `text` | strings and arrays of strings that C gives |
//! | `map` | the node map of 0.x |
//! | `nodes` | questions about nodes and processes |
//! | `sets` | node sets |
//! | `admin` | changes of nodes, the library list, errors and version |
//! | `create` | processes on nodes |
//! | `io` | what descriptors of such a process are connected to |
//! | `image` | dump, undump, and dump of a program as it begins |
//! | `moving` | the caller, or a child of its own, goes on on a node |
//!
//! Each call connects to the agent anew and keeps nothing, so it works in a process that has forked. Those that take the
//! process elsewhere wait for those of other threads ([`crate::calls`]). Nothing here
//! panics on what a caller gives: a panic would end the caller.
//!
//! The C names are jumps to Rust functions ([`export`]): rustc hands the linker an anonymous version script with the
//! names that it exports itself, and a name cannot be in it and in the script with versions (`libbproc.map`) at once.

mod abi;
mod admin;
mod create;
mod image;
mod io;
mod map;
mod moving;
mod nodes;
mod pattern;
mod sets;
mod text;

use crate::calls::Call;
use crate::error::Error;
use libc::c_int;

/// errno or one of BProc's own numbers.
type Number = c_int;
type Result<T> = std::result::Result<T, Number>;

impl From<Error> for Number {
    fn from(error: Error) -> Number {
        error.number
    }
}

fn set_errno(number: Number) {
    // SAFETY: libc gives the address of the calling thread's errno.
    unsafe { *libc::__errno_location() = number };
}

fn errno() -> Number {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Makes a call beside others of the process.
fn beside<T>(call: impl FnOnce() -> T) -> T {
    let _call = Call::beside();
    call()
}

/// What C gets: the number, or -1 with errno set.
fn told(result: Result<c_int>) -> c_int {
    result.unwrap_or_else(|number| {
        set_errno(number);
        -1
    })
}

/// Makes a call beside others: its number, or -1 with errno set.
fn answer(call: impl FnOnce() -> Result<c_int>) -> c_int {
    told(beside(call))
}

/// Makes a call beside others: 0, or -1 with errno set.
fn done(call: impl FnOnce() -> Result<()>) -> c_int {
    told(beside(call).map(|()| 0))
}

/// Makes a call that may take the process elsewhere, when no other is left: 0, or -1 with errno set.
fn alone(call: impl FnOnce() -> Result<()>) -> c_int {
    told(Call::alone().and_then(|_call| call()).map(|()| 0))
}

/// Gives Rust functions their C names.
macro_rules! export {
    ($($name:ident),* $(,)?) => {$(
        #[cfg(target_arch = "x86_64")]
        core::arch::global_asm!(
            concat!(".pushsection .text.", stringify!($name), ",\"ax\",@progbits"),
            concat!(".globl ", stringify!($name)),
            concat!(".type ", stringify!($name), ",@function"),
            concat!(stringify!($name), ":"),
            "jmp {call}",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
            call = sym $name,
        );
    )*};
}
use export;
