//! The body: set-user-id root, and does nothing but end.
//!
//! A stand-in of a user's process has that user's rights, which do not suffice to build a process in it. So whoever
//! builds has it execute this program first, by ptrace, and takes over before its first instruction: the kernel has
//! raised its rights by then. Root's tracing alone leaves them raised; whoever else executes it, traced or not, gets
//! one system call, `exit(1)`.
#![no_std]
#![no_main]

core::arch::global_asm!(".globl _start", "_start: mov edi, 1", "mov eax, 231", "syscall", "ud2",);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
