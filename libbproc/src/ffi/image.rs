//! Dump and undump of the calling process, and of a program as it begins.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};

use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;
use bproc_sys::signal::AllBlocked;
use libc::{c_char, c_int};

use super::create::{Program, Strings, pipe};
use super::{Number, Result, answer, errno, export};
use crate::sys;
use vmadump::capture::{Begun, DUMP_ALL, FdPolicy, Options};

/// The caller's descriptor as a file that is not closed.
fn file(fd: c_int) -> Result<ManuallyDrop<File>> {
    // SAFETY: no pointers.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(libc::EBADF);
    }
    // SAFETY: it is open, and never closed through this.
    Ok(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}

fn known(flags: c_int) -> Result<u32> {
    u32::try_from(flags).ok().filter(|flags| flags & !DUMP_ALL == 0).ok_or(libc::EINVAL)
}

unsafe extern "C" fn bproc_dump(fd: c_int, flags: c_int) -> c_int {
    answer((|| {
        let written = vmadump::inside::dump_self(&*file(fd)?, known(flags)?).map_err(|e| e.errno())?;
        // An image of more than 2 GiB: the most that an int tells.
        Ok(c_int::try_from(written).unwrap_or(c_int::MAX))
    })())
}

unsafe extern "C" fn bproc_undump(fd: c_int) -> c_int {
    answer(file(fd).and_then(|file| Err(vmadump::inside::undump_self(&*file).errno())))
}

/// Dumps the program as it begins, and ends the caller as if it had become it; returns only when that failed.
fn dump_program(fd: c_int, flags: c_int, program: &Program) -> Result<Number> {
    let (out, flags) = (file(fd)?, known(flags)?);
    vmadump::inside::one_thread().map_err(|e| e.errno())?;
    let (hear, tell) = pipe()?;
    let blocked = AllBlocked::new();
    // A process between: the caller hears nothing of the stops and the end of the one that executes.
    let between = match sys::fork_without_signal() {
        Ok(0) => {
            let number = begin(program, blocked).and_then(|(begun, child)| {
                let frozen = begun.freeze(&Options { flags, fds: FdPolicy::StdioOnly });
                let written = frozen.and_then(|frozen| frozen.write_image(&*out)).map_err(|e| e.errno());
                // It never was more than an image. Who cannot execute may have been taken away already.
                let _ = child.send_signal(libc::SIGKILL);
                sys::reap(child.pid().get());
                written
            });
            sys::tell_and_exit(&tell, &number.map_or_else(|number| number, |_| 0))
        }
        Ok(between) => between,
        Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    };
    drop(tell);
    let told = sys::hear::<Number>(hear.as_raw_fd());
    sys::reap(between);
    match told {
        Some(0) => sys::exit_with(0),
        Some(number) => Err(number),
        None => Err(libc::EINTR),
    }
}

/// A child that is about to execute the program, with the caller's signals.
fn begin(program: &Program, blocked: AllBlocked) -> Result<(Begun, PidFd)> {
    let (wait, go) = pipe()?;
    let child = match sys::fork_without_signal() {
        Ok(0) => {
            drop(go);
            // Its end without a word: nobody dumps it.
            let number = match sys::hear::<u8>(wait.as_raw_fd()) {
                Some(_) => {
                    drop(blocked);
                    program.exec()
                }
                None => libc::EINTR,
            };
            sys::exit_with(number)
        }
        Ok(child) => child,
        Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    };
    drop(wait);
    let held = Pid::new(child).ok_or(libc::EAGAIN).and_then(|pid| PidFd::open(pid).map_err(|e| e.errno()))?;
    let begun = Begun::seize(child).map_err(|e| e.errno())?;
    if !sys::tell(&go, &1u8) {
        return Err(errno());
    }
    Ok((begun, held))
}

unsafe extern "C" fn bproc_execdump(
    fd: c_int,
    flags: c_int,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as the caller promises.
    let program = unsafe { Program::new(cmd, argv, envp) };
    answer(program.and_then(|program| dump_program(fd, flags, &program)))
}

/// The name in 0.x.
unsafe extern "C" fn bproc_vmadump(fd: c_int, flags: c_int) -> c_int {
    // SAFETY: no pointers.
    unsafe { bproc_dump(fd, flags) }
}

/// The name in 0.x.
unsafe extern "C" fn bproc_vmaundump(fd: c_int) -> c_int {
    // SAFETY: no pointers.
    unsafe { bproc_undump(fd) }
}

export!(bproc_dump, bproc_undump, bproc_execdump, bproc_vmadump, bproc_vmaundump);
