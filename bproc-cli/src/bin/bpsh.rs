//! bpsh alone, to be linked statically.
#![no_main]

/// The program.
///
/// # Safety
/// Called by the C runtime, once, with `argc` strings in `argv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: as the caller's promise.
    unsafe { bproc_cli::bpsh_alone(argc, argv) }
}
