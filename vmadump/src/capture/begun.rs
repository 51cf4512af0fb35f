//! A program as it begins: a child executes it, and is frozen before its first instruction.

use super::{Frozen, Options, Room, Survey, learn};
use crate::error::Error;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::{self as pt, Status};
use crate::tracee::Tracee;

/// A child of this process that is about to execute a program. It never runs it: it ends, by SIGKILL, when what is made of
/// this is dropped, and with the thread that made it.
pub struct Begun(i32);

impl Begun {
    /// Takes hold of a child that waits to be told to execute.
    ///
    /// # Errors
    /// It is nobody's to trace, or gone.
    pub fn seize(child: i32) -> Result<Begun, Error> {
        pt::seize(child, pt::SYSGOOD | pt::TRACEEXEC | pt::EXITKILL)?;
        Ok(Begun(child))
    }

    /// Waits until it executes, and freezes it there. A child that cannot execute ends with the errno as its status. After
    /// an error the caller ends it and takes it away, as after the last use of what this returns.
    ///
    /// # Errors
    /// That errno; the program is one that cannot be dumped; it has been killed.
    pub fn freeze(self, options: &Options) -> Result<Frozen, Error> {
        let pid = self.0;
        loop {
            match pt::wait(pid)? {
                Status::Stopped(_, pt::EVENT_EXEC) => break,
                Status::Stopped(signal, 0) => pt::cont(pid, signal)?,
                Status::Stopped(..) => pt::cont(pid, 0)?,
                Status::Exited(number) => {
                    let why = std::io::Error::from_raw_os_error(number);
                    return Err(Error::Inside { op: "execute the program", pid, why });
                }
                Status::Killed(_) => return Err(Error::Gone(pid)),
            }
        }
        // On from the middle of its system call, to the edge of the program.
        pt::interrupt(pid)?;
        pt::cont(pid, 0)?;
        let thread = Tracee::stopped(pid)?.ok_or(Error::Gone(pid))?.doomed();
        let survey = Survey::of_tracee(pid, options)?;
        let memory = MemFile::open(pid)?;
        learn(survey, Room::touched(), memory, vec![thread])
    }
}
