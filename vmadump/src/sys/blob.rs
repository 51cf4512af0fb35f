//! The batch program: a few hundred position-independent bytes that run a table
//! of system calls (and reads, copies, checksums) wherever they are put: in a
//! traced process, or in our own when it replaces itself. It needs no stack.
//!
//! rbx points to the first entry. An entry is 72 bytes:
//! kind u32, must u32, number u64, six arguments u64, result i64.

use std::arch::global_asm;

/// Bytes of an entry.
pub(crate) const ENTRY: usize = 72;
/// Offset of the result in an entry.
pub(crate) const RESULT_AT: usize = 64;

/// End of the table: SIGSTOP to the own thread.
pub(crate) const END: u32 = 0;
/// A system call.
pub(crate) const CALL: u32 = 1;
/// Read exactly: fd, address, bytes.
pub(crate) const READ: u32 = 2;
/// Copy: to, from, bytes.
pub(crate) const COPY: u32 = 3;
/// Page checksum: address, bytes, address of the four lanes.
pub(crate) const SUM: u32 = 4;
/// Go on with the entry at the first argument.
pub(crate) const JUMP: u32 = 6;
/// rt_sigreturn with the frame at the first argument.
pub(crate) const SIGRETURN: u32 = 5;

global_asm!(
    ".pushsection .text.vmadump_blob,\"ax\",@progbits",
    ".globl vmadump_blob_start",
    ".globl vmadump_blob_end",
    ".hidden vmadump_blob_start",
    ".hidden vmadump_blob_end",
    "vmadump_blob_start:",
    "2:",
    "mov eax, [rbx]",
    "cmp eax, 1",
    "je 10f",
    "cmp eax, 2",
    "je 20f",
    "cmp eax, 3",
    "je 30f",
    "cmp eax, 4",
    "je 40f",
    "cmp eax, 5",
    "je 50f",
    "cmp eax, 6",
    "je 55f",
    "jmp 60f",
    "3:",
    "add rbx, 72",
    "jmp 2b",
    // A system call.
    "10:",
    "mov rax, [rbx + 8]",
    "mov rdi, [rbx + 16]",
    "mov rsi, [rbx + 24]",
    "mov rdx, [rbx + 32]",
    "mov r10, [rbx + 40]",
    "mov r8, [rbx + 48]",
    "mov r9, [rbx + 56]",
    "syscall",
    "mov [rbx + 64], rax",
    "cmp dword ptr [rbx + 4], 0",
    "je 3b",
    "cmp rax, -4095",
    "jb 3b",
    "jmp 60f",
    // Read exactly.
    "20:",
    "mov r12, [rbx + 24]",
    "mov r13, [rbx + 32]",
    "21:",
    "test r13, r13",
    "jz 23f",
    "xor eax, eax",
    "mov rdi, [rbx + 16]",
    "mov rsi, r12",
    "mov rdx, r13",
    "mov ecx, 0x40000000",
    "cmp rdx, rcx",
    "cmova rdx, rcx",
    "syscall",
    "cmp rax, -4",
    "je 21b",
    "test rax, rax",
    "jg 22f",
    "mov [rbx + 64], rax",
    "jnz 60f",
    "mov qword ptr [rbx + 64], -61",
    "jmp 60f",
    "22:",
    "add r12, rax",
    "sub r13, rax",
    "jmp 21b",
    "23:",
    "mov qword ptr [rbx + 64], 0",
    "jmp 3b",
    // Copy.
    "30:",
    "mov rdi, [rbx + 16]",
    "mov rsi, [rbx + 24]",
    "mov rcx, [rbx + 32]",
    "rep movsb",
    "mov qword ptr [rbx + 64], 0",
    "jmp 3b",
    // Page checksum.
    "40:",
    "mov rdi, [rbx + 16]",
    "mov rcx, [rbx + 24]",
    "mov rdx, [rbx + 32]",
    "mov r8, [rdx]",
    "mov r9, [rdx + 8]",
    "mov r10, [rdx + 16]",
    "mov r11, [rdx + 24]",
    "shr rcx, 5",
    "jz 42f",
    "41:",
    "crc32 r8, qword ptr [rdi]",
    "crc32 r9, qword ptr [rdi + 8]",
    "crc32 r10, qword ptr [rdi + 16]",
    "crc32 r11, qword ptr [rdi + 24]",
    "add rdi, 32",
    "dec rcx",
    "jnz 41b",
    "42:",
    "mov [rdx], r8",
    "mov [rdx + 8], r9",
    "mov [rdx + 16], r10",
    "mov [rdx + 24], r11",
    "mov qword ptr [rbx + 64], 0",
    "jmp 3b",
    // Become someone else.
    "50:",
    "mov rsp, [rbx + 16]",
    "mov eax, 15",
    "syscall",
    "ud2",
    // Go on elsewhere.
    "55:",
    "mov rbx, [rbx + 16]",
    "jmp 2b",
    // Stop; whoever traces us goes on from here. Untraced, after a failure: there is nothing left to return to.
    "60:",
    "mov eax, 39",
    "syscall",
    "mov r12, rax",
    "mov eax, 186",
    "syscall",
    "mov rsi, rax",
    "mov rdi, r12",
    "mov edx, 19",
    "test r14, r14",
    "jz 61f",
    "mov edx, 9",
    "61:",
    "mov eax, 234",
    "syscall",
    "jmp 60b",
    "vmadump_blob_end:",
    ".popsection",
);

unsafe extern "C" {
    static vmadump_blob_start: u8;
    static vmadump_blob_end: u8;
}

/// The program's bytes.
pub(crate) fn code() -> &'static [u8] {
    // SAFETY: both symbols bound the assembly above, which is never written.
    unsafe {
        let (start, end) = (&raw const vmadump_blob_start, &raw const vmadump_blob_end);
        std::slice::from_raw_parts(start, end as usize - start as usize)
    }
}
