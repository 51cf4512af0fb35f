//! Dump and undump of the calling process, and of a program as it begins.

use std::fs::File;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;
use bproc_sys::signal::AllBlocked;
use libc::{c_char, c_int};

use super::create::{Program, Strings};
use super::moving::pipe;
use super::{Number, Result, answer, errno, export};
use crate::sys;
use vmadump::capture::{Begun, DUMP_ALL, FdPolicy, Options};
use vmadump::image::{Reader, Writer};

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
    answer(|| {
        let written = vmadump::inside::dump_self(&*file(fd)?, known(flags)?).map_err(|e| e.errno())?;
        // An image of more than 2 GiB: the most that an int tells.
        Ok(c_int::try_from(written).unwrap_or(c_int::MAX))
    })
}

unsafe extern "C" fn bproc_undump(fd: c_int) -> c_int {
    answer(|| file(fd).and_then(|file| Err(vmadump::inside::undump_self(&*file).errno())))
}

/// Dumps the program as it begins, and ends the caller as if it had become it; returns only when that failed.
fn dump_program(fd: c_int, flags: c_int, program: &Program) -> Result<Number> {
    let (out, flags) = (file(fd)?, known(flags)?);
    vmadump::inside::one_thread().map_err(|e| e.errno())?;
    Between::start(&out, flags, program, None, None)?.end()?;
    sys::exit_with(0)
}

/// What exec keeps of who executes, and fork does not hand on.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pdeathsig: c_int,
    subreaper: bool,
}

impl Kept {
    /// Of the caller.
    pub(super) fn own() -> Kept {
        Kept { pdeathsig: sys::pdeathsig(), subreaper: sys::is_subreaper() }
    }

    /// Of a child that was just forked.
    pub(super) fn of_child() -> Kept {
        Kept { pdeathsig: 0, subreaper: false }
    }
}

/// The program as it begins, with all that is mapped of it, to become it elsewhere.
pub(super) fn of_program(program: &Program, kept: Kept) -> Result<Vec<u8>> {
    let (reader, writer) = pipe()?;
    let between = Between::start(&File::from(writer), DUMP_ALL, program, Some(kept), Some(reader.as_raw_fd()))?;
    let mut image = Vec::new();
    let read = File::from(reader).read_to_end(&mut image).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
    between.end().and(read).map(|_| image)
}

/// Has the machine where the caller is the same program? Then it is executed there.
pub(super) fn is_here(image: &[u8]) -> bool {
    let image = Reader::new(image).map(|reader| reader.into_parts().0);
    let program = |image: &vmadump::image::Image| image.files.get(image.mm.exe? as usize).cloned();
    image.ok().and_then(|image| program(&image)).is_some_and(|file| vmadump::inside::is_here(&file))
}

/// The image of [`of_program`] with a rank where the environment has room for one.
pub(super) fn ranked(image: &[u8], program: &Program, rank: usize) -> Result<Vec<u8>> {
    /// Of the memory's marks: where the environment begins, entry after entry.
    const ENV_START: usize = 9;
    let mut from = Reader::new(image).map_err(|_| libc::EIO)?;
    let mut into = Vec::with_capacity(image.len());
    let mut writer = Writer::new(&mut into, from.image()).map_err(|_| libc::EIO)?;
    let start = from.image().mm.marks[ENV_START];
    let (digits, mut data) = (program.digits(rank), Vec::new());
    while let Some(block) = from.block().map_err(|_| libc::EIO)? {
        from.data(&block, &mut data).map_err(|_| libc::EIO)?;
        let mut at = 0;
        for run in &block.runs {
            let bytes = data.get_mut(at..at + run.len() as usize).ok_or(libc::EIO)?;
            at += bytes.len();
            for (offset, digit) in &digits {
                let place = (start + offset).checked_sub(run.start).and_then(|place| bytes.get_mut(place as usize));
                place.into_iter().for_each(|place| *place = *digit);
            }
        }
        writer.block(&block.runs, &data).map_err(|_| libc::EIO)?;
    }
    writer.finish().map_err(|_| libc::EIO)?;
    Ok(into)
}

/// The caller becomes what [`of_program`] has made, and loses what it would lose by executing it; the number that says why
/// not is of a caller that cannot go on as it was.
pub(super) fn become_program(image: &[u8]) -> Number {
    sys::leave_program();
    vmadump::inside::undump_self(image).errno()
}

/// A process between: the caller hears nothing of the stops and the end of the one that executes.
struct Between {
    pid: c_int,
    hear: OwnedFd,
}

impl Between {
    /// It writes the image. `not_its` is the caller's only.
    fn start(out: &File, flags: u32, program: &Program, kept: Option<Kept>, not_its: Option<RawFd>) -> Result<Between> {
        let (hear, tell) = pipe()?;
        let blocked = AllBlocked::new();
        match sys::fork_without_signal() {
            Ok(0) => {
                not_its.into_iter().for_each(sys::close);
                let number = begin(program, blocked, kept).and_then(|(begun, child)| {
                    let frozen = begun.freeze(&Options { flags, fds: FdPolicy::StdioOnly, ..Options::default() });
                    let written = frozen.and_then(|frozen| frozen.write_image(out)).map_err(|e| e.errno());
                    // It never was more than an image. Who cannot execute may have been taken away already.
                    let _ = child.send_signal(libc::SIGKILL);
                    sys::reap(child.pid().get());
                    written
                });
                sys::tell_and_exit(&tell, &number.map_or_else(|number| number, |_| 0))
            }
            Ok(pid) => Ok(Between { pid, hear }),
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EAGAIN)),
        }
    }

    fn end(self) -> Result<()> {
        let told = sys::hear::<Number>(self.hear.as_raw_fd());
        sys::reap(self.pid);
        match told {
            Some(0) => Ok(()),
            Some(number) => Err(number),
            None => Err(libc::EINTR),
        }
    }
}

/// A child that is about to execute the program, with the caller's signals, and what it would keep.
fn begin(program: &Program, blocked: AllBlocked, kept: Option<Kept>) -> Result<(Begun, PidFd)> {
    let (wait, go) = pipe()?;
    let child = match sys::fork_without_signal() {
        Ok(0) => {
            drop(go);
            // Its end without a word: nobody dumps it.
            let number = match sys::hear::<u8>(wait.as_raw_fd()) {
                Some(_) => {
                    drop(blocked);
                    kept.into_iter().for_each(|kept| sys::keep_as_parent(kept.pdeathsig, kept.subreaper));
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
    answer(|| program.and_then(|program| dump_program(fd, flags, &program)))
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
