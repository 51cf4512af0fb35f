//! In-place conversion: the frozen process becomes another program, keeping pid, parent, children and
//! group. Its memory is on its way elsewhere; what is left stands for it.

use super::Frozen;
use crate::batch::{Batch, Scratch, find_hole};
use crate::error::{Error, Refusal};
use crate::sys::ptrace::{self as pt, Status};
use crate::tracee::Tracee;

/// An exec that failed (missing file, no permission).
pub struct NotExecuted {
    /// Why.
    pub why: Error,
    /// The process, frozen as before; `None` if it is gone.
    pub frozen: Option<Box<Frozen>>,
}

impl Frozen {
    /// Makes the process execute `path` with `argv` and `envp`, all signals blocked, interval timers disarmed. On
    /// success it is left in the stop after its exec, traced by this thread, and is returned; the caller
    /// releases or keeps it.
    pub fn become_exec(mut self, path: &[u8], argv: &[&[u8]], envp: &[&[u8]]) -> Result<Tracee, NotExecuted> {
        match self.exec(path, argv, envp) {
            Ok(()) => {}
            Err(why @ Error::Gone(_)) => return Err(NotExecuted { why, frozen: None }),
            Err(why) => return Err(NotExecuted { why, frozen: Some(Box::new(self)) }),
        }
        // The exec ended all other threads, and the main thread's registers are the new program's.
        let pid = self.pid;
        self.threads.into_iter().for_each(Tracee::forget);
        Tracee::after_exec(pid).map_err(|why| NotExecuted { why, frozen: None })
    }

    fn exec(&mut self, path: &[u8], argv: &[&[u8]], envp: &[&[u8]]) -> Result<(), Error> {
        let mut used: Vec<(u64, u64)> = self.image.areas.iter().map(|a| (a.start, a.end)).collect();
        if let Some(vdso) = &self.image.vdso {
            used.push((vdso.data_start, vdso.start + vdso.code.len() as u64));
        }
        let text: usize = argv.iter().chain(envp).map(|t| t.len() + 80).sum::<usize>() + path.len();
        let size = (text as u64 + (64 << 10)).next_multiple_of(4096);
        let base = find_hole(&mut used, size).ok_or(Refusal::NoRoom)?;
        let scratch = Scratch { base, size };
        let (gate, pid) = (self.gate, self.pid);
        let memory = &self.source;
        let leader = &mut self.threads[0];
        leader.lay(memory.memory(), gate, &scratch)?;
        let mut batch = Batch::new(scratch.data());
        let path = batch.text(path);
        let mut table = |list: &[&[u8]]| {
            let mut words: Vec<u64> = list.iter().map(|t| batch.text(t)).collect();
            words.push(0);
            batch.words(&words)
        };
        let (argv, envp) = (table(argv), table(envp));
        let off = batch.room(32);
        for which in 0..3 {
            batch.may(libc::SYS_setitimer, &[which, off, 0], "disarm a timer");
        }
        batch.may(libc::SYS_execve, &[path, argv, envp], "execute");
        pt::set_options(pid, pt::SYSGOOD | pt::TRACEEXEC)?;
        leader.start(memory.memory(), &scratch, &batch)?;
        // A failing exec ends in the batch's own stop, a good one in the exec event, which comes only once the
        // ends of all other threads have been waited for.
        let others: Vec<i32> = self.threads[1..].iter().map(Tracee::tid).collect();
        let leader = &mut self.threads[0];
        loop {
            let status = match pt::poll(pid)? {
                Some(status) => status,
                None => {
                    for tid in &others {
                        // Not there any more, or not dead yet.
                        let _: Result<_, crate::SysError> = pt::poll(*tid);
                    }
                    std::thread::yield_now();
                    continue;
                }
            };
            match status {
                Status::Stopped(_, pt::EVENT_EXEC) => return Ok(()),
                Status::Stopped(libc::SIGSTOP, 0) => {
                    let errno = -(pt_result(memory.memory(), &batch)?) as i32;
                    leader.call(gate, "unmap the table of calls", libc::SYS_munmap, &[scratch.base, scratch.size])?;
                    leader.pristine()?;
                    pt::set_options(pid, pt::SYSGOOD)?;
                    return Err(Error::Inside {
                        op: "execute the program",
                        pid,
                        why: std::io::Error::from_raw_os_error(errno),
                    });
                }
                Status::Stopped(..) => pt::cont(pid, 0)?,
                Status::Exited(_) | Status::Killed(_) => return Err(Error::Gone(pid)),
            }
        }
    }
}

fn pt_result(memory: &crate::sys::memory::MemFile, batch: &Batch) -> Result<i64, Error> {
    // The last entry, before the end mark.
    let at = batch.at() + batch.size() - 2 * crate::sys::blob::ENTRY as u64 + crate::sys::blob::RESULT_AT as u64;
    Ok(memory.word(at)? as i64)
}
