//! Every system call of the ghost, and every `unsafe` that goes with them.
//!
//! The call itself is here; below are its uses by subject. Thin: a function is one call with its arguments made safe. Results are the value or
//! the kernel's error number.

use crate::abi::nr;
use core::arch::asm;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Result<T> = core::result::Result<T, Errno>;

/// Makes one system call.
///
/// # Safety
/// The arguments must be what this call expects; memory they point to must be valid for it.
unsafe fn call(number: usize, a: [usize; 6]) -> Result<usize> {
    let value: isize;
    // SAFETY: the caller vouches for the arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => value,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&value) { Err(Errno(-value as i32)) } else { Ok(value as usize) }
}

/// A system call whose arguments are numbers.
macro_rules! plain {
    ($number:expr $(, $arg:expr)*) => {
        // SAFETY: used for calls that take numbers only and touch no memory of ours.
        unsafe { call($number, padded(&[$($arg as usize),*])) }
    };
}

fn padded(numbers: &[usize]) -> [usize; 6] {
    let mut all = [0; 6];
    for (slot, number) in all.iter_mut().zip(numbers) {
        *slot = *number;
    }
    all
}

mod file;
mod identity;
mod memory;
mod process;
mod signal;
mod socket;

pub(crate) use file::*;
pub(crate) use identity::*;
pub(crate) use memory::*;
pub(crate) use process::*;
pub(crate) use signal::*;
pub(crate) use socket::*;

/// Ends the program by an illegal instruction.
pub(crate) fn trap() -> ! {
    // SAFETY: ends the program.
    unsafe { asm!("ud2", options(noreturn, nostack)) }
}

/// Ends the program.
pub(crate) fn exit(code: i32) -> ! {
    let _ = plain!(nr::EXIT_GROUP, code);
    trap()
}
