//! An exec made by a traced process that did not ask for it: the way in which a process that has gone elsewhere
//! becomes its stand-in, and in which a half-built one becomes what it was.

use crate::batch::{Batch, Scratch};
use crate::error::Error;
use crate::sys::blob::ENTRY;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::{self as pt, Status};
use crate::tracee::Tracee;

/// A program with its arguments and environment, for execve(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct Program<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// Arguments, the zeroth included.
    pub argv: &'a [&'a [u8]],
    /// Environment entries.
    pub envp: &'a [&'a [u8]],
}

impl Program<'_> {
    /// Bytes of text that it is given, with the words that lead there.
    pub(crate) fn text(&self) -> u64 {
        self.argv.iter().chain(self.envp).map(|t| t.len() as u64 + 9).sum::<u64>() + self.path.len() as u64
    }

    /// Bytes that the calls and their strings need. `pending`: signals that are taken before.
    pub(crate) fn room(&self, pending: usize) -> u64 {
        let text: usize = self.argv.iter().chain(self.envp).map(|t| t.len() + 80).sum::<usize>() + self.path.len();
        ((text + pending * ENTRY + (64 << 10)) as u64).next_multiple_of(4096)
    }
}

/// What came of it.
pub(crate) enum Outcome {
    /// The process stands in the event of its exec; its other threads are gone.
    Executed,
    /// execve said this; the thread stands at the end of the batch, the scratch memory is there.
    Failed(i32),
}

/// Disarms the timers, takes the pending signals with these numbers off the queue, once each, and executes. The batch
/// program must have been laid at `scratch`; `others` are the other threads, all stopped and traced by us.
pub(crate) fn exec(
    leader: &mut Tracee,
    others: &[i32],
    memory: &MemFile,
    scratch: &Scratch,
    program: &Program<'_>,
    pending: &[i32],
) -> Result<Outcome, Error> {
    let pid = leader.tid();
    let mut batch = Batch::new(scratch.data());
    let path = batch.text(program.path);
    let mut table = |list: &[&[u8]]| {
        let mut words: Vec<u64> = list.iter().map(|t| batch.text(t)).collect();
        words.push(0);
        batch.words(&words)
    };
    let (argv, envp) = (table(program.argv), table(program.envp));
    let off = batch.room(32);
    for which in 0..3 {
        batch.may(libc::SYS_setitimer, &[which, off, 0], "disarm a timer");
    }
    let sets = batch.words(&std::array::from_fn::<u64, 64, _>(|i| 1 << i));
    for signal in pending.iter().filter(|s| (1..=64).contains(*s)) {
        let set = sets + 8 * (signal - 1) as u64;
        batch.may(libc::SYS_rt_sigtimedwait, &[set, 0, off, 8], "take a pending signal");
    }
    batch.may(libc::SYS_execve, &[path, argv, envp], "execute");
    // In the middle of this it is nobody: it must not go on as that when we die.
    pt::set_options(pid, pt::SYSGOOD | pt::TRACEEXEC | pt::EXITKILL)?;
    leader.start(memory, scratch, &batch)?;
    // A failing exec ends in the batch's own stop, a good one in the exec event, which comes only once the
    // ends of all other threads have been waited for.
    loop {
        let status = match pt::poll(pid)? {
            Some(status) => status,
            None => {
                for tid in others {
                    // Not there any more, or not dead yet.
                    let _: Result<_, crate::SysError> = pt::poll(*tid);
                }
                std::thread::yield_now();
                continue;
            }
        };
        match status {
            Status::Stopped(_, pt::EVENT_EXEC) => return Ok(Outcome::Executed),
            Status::Stopped(libc::SIGSTOP, 0) if Tracee::is_end_of_batch(pid)? => {
                return Ok(Outcome::Failed(-last_result(memory, &batch)? as i32));
            }
            Status::Stopped(libc::SIGSTOP, 0) => {
                leader.note(libc::SIGSTOP, 0);
                pt::cont(pid, 0)?;
            }
            Status::Stopped(signal, event) => {
                leader.note(signal, event);
                pt::cont(pid, 0)?;
            }
            Status::Exited(_) | Status::Killed(_) => return Err(Error::Gone(pid)),
        }
    }
}

/// Of the last entry, before the end mark.
fn last_result(memory: &MemFile, batch: &Batch) -> Result<i64, Error> {
    let at = batch.at() + batch.size() - 2 * crate::sys::blob::ENTRY as u64 + crate::sys::blob::RESULT_AT as u64;
    Ok(memory.word(at)? as i64)
}
