//! In-place conversion: the frozen process becomes another program, keeping pid, parent, children and
//! group. Its memory is on its way elsewhere; what is left stands for it.

use super::Frozen;
use crate::batch::{Scratch, find_hole};
use crate::error::{Error, Refusal};
use crate::inject::{Outcome, Program, exec};
use crate::limits::{self, Lifted};
use crate::sys::ptrace as pt;
use crate::tracee::{Owed, Tracee};

/// An exec that failed (missing file, no permission).
pub struct NotExecuted {
    /// Why.
    pub why: Error,
    /// The process, frozen as before (pending signals that the image has are gone); `None` if it is gone.
    pub frozen: Option<Box<Frozen>>,
}

impl Frozen {
    /// Makes the process execute `path` with `argv` and `envp`, all signals blocked, interval timers disarmed. Pending
    /// signals that the image has are taken off its queue, for they travel with it; later ones stay pending. On
    /// success it has its own limits, or as much as what stands for it needs ([`crate::limits::of_stand_in`]), and is
    /// left in the stop after its exec, traced by this thread, and is returned; the caller releases or keeps it. A
    /// SIGSTOP that came since it was frozen stops what it has become.
    pub fn become_exec(mut self, path: &[u8], argv: &[&[u8]], envp: &[&[u8]]) -> Result<Tracee, NotExecuted> {
        match self.exec(&Program { path, argv, envp }) {
            Ok(()) => {}
            Err(why @ Error::Gone(_)) => return Err(NotExecuted { why, frozen: None }),
            Err(why) => return Err(NotExecuted { why, frozen: Some(Box::new(self)) }),
        }
        // The exec ended all other threads, and the main thread's registers are the new program's.
        // A SIGCONT is in the image, or waits in its queue still.
        let owed = Tracee::owed_to_any(&self.threads).filter(|owed| *owed == Owed::Stop);
        let pid = self.pid;
        self.threads.into_iter().for_each(Tracee::forget);
        Tracee::after_exec(pid, owed).map_err(|why| NotExecuted { why, frozen: None })
    }

    fn exec(&mut self, program: &Program<'_>) -> Result<(), Error> {
        let (gate, pid) = (self.gate, self.pid);
        let memory = self.source.memory();
        let pending: Vec<i32> = (self.image.signals.pending.iter())
            .chain(&self.image.threads[0].pending)
            .filter_map(|info| info.0.first_chunk().map(|b| i32::from_ne_bytes(*b)))
            .collect();
        let mut used = self.mapped.clone();
        let size = program.room(pending.len());
        let base = find_hole(&mut used, size).ok_or(Refusal::NoRoom)?;
        let scratch = Scratch { base, size };
        let others: Vec<i32> = self.threads[1..].iter().map(Tracee::tid).collect();
        let leader = &mut self.threads[0];
        // It has gone, or is as good as gone: none of this is what it would go on with.
        let lifted = Lifted::for_exec(leader, gate, memory, program.text())?;
        limits::lay(leader, gate, memory, &scratch)?;
        match exec(leader, &others, memory, &scratch, program, &pending)? {
            Outcome::Executed => {
                limits::set(pid, &limits::of_stand_in(lifted.own(), program.text()));
                Ok(())
            }
            Outcome::Failed(errno) => {
                leader.call(gate, "unmap the table of calls", libc::SYS_munmap, &[scratch.base, scratch.size])?;
                lifted.put_back(leader, gate, memory);
                leader.pristine()?;
                pt::set_options(pid, pt::SYSGOOD)?;
                let why = std::io::Error::from_raw_os_error(errno);
                Err(Error::Inside { op: "execute the program", pid, why })
            }
        }
    }
}
