//! A stopped thread as a type. Only it can be read, written, made to call the
//! kernel, or resumed; at the end of its scope it gives itself back: its own
//! registers and signal mask, and lets go.
//!
//! ```text
//! seize ──▶ Tracee(stopped) ──call/run──▶ Tracee ──pristine──▶ Tracee(as found) ──release──▶ runs
//!                │ drop at any time: pristine, detach
//! ```

use std::time::Duration;

use crate::batch::{Batch, Results, Scratch};
use crate::error::Error;
use crate::image::Rseq;
use crate::sys::SysError;
use crate::sys::blob;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::{self as pt, Regs, Status, reg};

/// How long a thread may take to stop.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A signal from outside that came while the thread was ours, and got lost by what we did with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// SIGSTOP: taken at its delivery, which nothing blocks.
    Stop,
    /// SIGCONT: the SIGSTOP at the end of a table of calls takes it from the queue.
    Continue,
}

/// What its own tgkill(2) has as `si_code`.
const SI_TKILL: i32 = -6;

/// Of a user who has as many signals queued as he may, or nearly: the kernel has no siginfo for what a batch sends then.
fn has_full_queue(tid: i32) -> bool {
    std::fs::read(format!("/proc/{tid}/status")).is_ok_and(|status| {
        let (queued, most) = crate::procfs::status(&status).queued;
        queued >= most - most / 10
    })
}

/// A traced thread that is stopped.
pub struct Tracee {
    tid: i32,
    regs: Regs,
    mask: u64,
    /// Registers or mask are not its own at the moment.
    borrowed: bool,
    /// It stands at the delivery of a signal that must not be delivered.
    at_signal: bool,
    /// Stopped by job control when it was found.
    group_stop: bool,
    /// What came in between, and does not act by itself: the latest of the two.
    owed: Option<Owed>,
    /// It is killed instead of being given back.
    doomed: bool,
    gone: bool,
}

impl Tracee {
    /// Waits for the stop of a seized and interrupted thread. `None`: it ended instead.
    pub fn stopped(tid: i32) -> Result<Option<Self>, Error> {
        let mut group_stop = false;
        loop {
            let status = match pt::wait_at_most(tid, STOP_LIMIT) {
                // It is ours: its end was told while another thread of its process was waited for.
                Err(e) if e.errno == libc::ECHILD => return Ok(None),
                other => other?,
            };
            match status {
                Status::Stopped(sig, pt::EVENT_STOP) => {
                    group_stop |= sig != libc::SIGTRAP;
                    break;
                }
                // A signal on its way: let it through, the stop comes next.
                Status::Stopped(sig, 0) => pt::cont(tid, sig)?,
                Status::Stopped(..) => pt::cont(tid, 0)?,
                Status::Exited(_) | Status::Killed(_) => return Ok(None),
            }
        }
        let (regs, mask) = (pt::regs(tid)?, pt::mask(tid)?);
        Ok(Some(Tracee {
            tid,
            regs,
            mask,
            borrowed: false,
            at_signal: false,
            group_stop,
            owed: None,
            doomed: false,
            gone: false,
        }))
    }

    /// A thread that has just executed another program and stands in the event of it. `owed`: see there.
    pub(crate) fn after_exec(tid: i32, owed: Option<Owed>) -> Result<Self, Error> {
        let (regs, mask) = (pt::regs(tid)?, pt::mask(tid)?);
        let (borrowed, at_signal, group_stop, doomed, gone) = (false, false, false, false, false);
        Ok(Tracee { tid, regs, mask, borrowed, at_signal, group_stop, owed, doomed, gone })
    }

    /// It never goes on: whoever would give it back ends its process, by SIGKILL.
    pub(crate) fn doomed(mut self) -> Self {
        self.doomed = true;
        self
    }

    /// Its id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Its own registers.
    pub fn regs(&self) -> &Regs {
        &self.regs
    }

    /// Its own blocked signals.
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Was it stopped by job control?
    pub fn in_group_stop(&self) -> bool {
        self.group_stop
    }

    /// Was it sent a SIGSTOP since? It will get it when it is released.
    pub fn is_owed_a_stop(&self) -> bool {
        self.owed == Some(Owed::Stop)
    }

    /// It will get this when it is released, or nothing.
    pub(crate) fn owe(&mut self, owed: Option<Owed>) {
        self.owed = owed;
    }

    /// Of all threads of a process.
    pub(crate) fn owed_to_any(threads: &[Tracee]) -> Option<Owed> {
        let is = |owed| threads.iter().any(|thread| thread.owed == Some(owed));
        [Owed::Stop, Owed::Continue].into_iter().find(|owed| is(*owed))
    }

    /// What is owed to one process comes once: with the last of its threads that is let go.
    pub(crate) fn owe_once(threads: &mut [Tracee]) {
        let owed = Tracee::owed_to_any(threads);
        threads.iter_mut().for_each(|thread| thread.owed = None);
        if let Some(last) = threads.last_mut() {
            last.owed = owed;
        }
    }

    /// It stopped, and neither we nor what it was made to do is the reason.
    pub(crate) fn note(&mut self, signal: i32, event: i32) {
        match (signal, event) {
            (libc::SIGSTOP, 0) => self.owed = Some(Owed::Stop),
            // Its process is in no stop, and it was not interrupted: so the kernel tells of each SIGCONT.
            (libc::SIGTRAP, pt::EVENT_STOP) => self.owed = Some(Owed::Continue),
            _ => {}
        }
    }

    /// It stands at the delivery of a SIGSTOP: is that the end of a batch, or somebody else's?
    pub(crate) fn is_end_of_batch(tid: i32) -> Result<bool, Error> {
        let (_, code, sender) = pt::stop_info(tid)?;
        let regs = pt::regs(tid)?;
        let is_own = code == SI_TKILL || (code == libc::SI_USER && sender == 0 && has_full_queue(tid));
        Ok(is_own && regs[reg::RAX] == 0 && regs[reg::RDX] == 19)
    }

    /// Changes the registers that it will be given back.
    pub fn set_own(&mut self, regs: Regs, mask: u64) {
        self.regs = regs;
        self.mask = mask;
        self.borrowed = true;
    }

    fn borrow(&mut self) -> Result<(), Error> {
        if !self.borrowed {
            pt::set_mask(self.tid, !0)?;
            self.borrowed = true;
        }
        Ok(())
    }

    fn lost(&mut self) -> Error {
        self.gone = true;
        Error::Gone(self.tid)
    }

    /// Its next change. Its end may have been told while another thread of its process was waited for.
    fn wait(&mut self) -> Result<Status, Error> {
        match pt::wait(self.tid) {
            Err(e) if e.errno == libc::ECHILD => Err(self.lost()),
            other => Ok(other?),
        }
    }

    /// One system call, made by the `syscall` instruction at `gate`.
    pub fn call(&mut self, gate: u64, what: &'static str, nr: i64, args: &[u64]) -> Result<u64, Error> {
        let ret = self.raw_call(gate, nr, args)?;
        if (-4095..0).contains(&ret) {
            return Err(Error::Inside { op: what, pid: self.tid, why: std::io::Error::from_raw_os_error(-ret as i32) });
        }
        Ok(ret as u64)
    }

    /// [`Self::call`] with the kernel's plain return value.
    pub fn raw_call(&mut self, gate: u64, nr: i64, args: &[u64]) -> Result<i64, Error> {
        self.borrow()?;
        let mut regs = self.regs;
        regs[reg::RAX] = nr as u64;
        regs[reg::ORIG_RAX] = u64::MAX;
        regs[reg::RIP] = gate;
        // rdi, rsi, rdx, r10, r8, r9
        for (slot, arg) in [14, 13, 12, 7, 9, 8].into_iter().zip(args.iter().chain(std::iter::repeat(&0))) {
            regs[slot] = *arg;
        }
        pt::set_regs(self.tid, &regs)?;
        let mut exits = false;
        loop {
            pt::cont_syscall(self.tid)?;
            self.at_signal = false;
            match self.wait()? {
                Status::Stopped(sig, 0) if sig == libc::SIGTRAP | 0x80 => {
                    if exits {
                        return Ok(pt::regs(self.tid)?[reg::RAX] as i64);
                    }
                    exits = true;
                }
                // Only SIGSTOP comes through a full mask.
                Status::Stopped(sig, event) => self.note(sig, event),
                Status::Exited(_) | Status::Killed(_) => return Err(self.lost()),
            }
        }
    }

    /// Right after [`Self::call`]: what [`Self::pristine`] does, without a further stop.
    pub fn end_calls(&mut self) -> Result<(), Error> {
        // At the end of a call: what is pending is looked at when it goes on, and with these registers.
        pt::set_regs(self.tid, &self.regs)?;
        pt::set_mask(self.tid, self.mask)?;
        self.borrowed = false;
        Ok(())
    }

    /// Has it run on, instruction by instruction and without signals, as long as it is inside. False: it still is after
    /// so many, or it ignores the signal of steps, and would ignore it no longer.
    pub(crate) fn leave(&mut self, inside: impl Fn(u64) -> bool, steps: usize) -> Result<bool, Error> {
        let trap = 1 << (libc::SIGTRAP - 1);
        for i in 0..steps {
            if !inside(self.regs[reg::RIP]) {
                break;
            }
            if i == 0 {
                let status = std::fs::read(format!("/proc/{}/status", self.tid)).unwrap_or_default();
                if crate::procfs::status(&status).ignored & trap != 0 {
                    return Ok(false);
                }
                self.borrow()?;
                // Blocked, it would lose its handler.
                pt::set_mask(self.tid, !trap)?;
            }
            loop {
                pt::step(self.tid)?;
                match self.wait()? {
                    Status::Stopped(libc::SIGTRAP, 0) => break,
                    Status::Stopped(sig, event) => self.note(sig, event),
                    Status::Exited(_) | Status::Killed(_) => return Err(self.lost()),
                }
            }
            self.at_signal = true;
            self.regs = pt::regs(self.tid)?;
        }
        if self.borrowed {
            pt::set_mask(self.tid, !0)?;
        }
        Ok(!inside(self.regs[reg::RIP]))
    }

    /// Writes a batch into the target and starts it; [`Self::finish`] waits for its end.
    pub fn start(&mut self, memory: &MemFile, scratch: &Scratch, batch: &Batch) -> Result<(), Error> {
        self.borrow()?;
        if batch.at() + batch.size() > scratch.end() {
            return Err(Error::Unexpected { pid: self.tid, what: "the table of calls is too large".into() });
        }
        memory.write(batch.at(), &batch.bytes())?;
        let mut regs = self.regs;
        regs[reg::ORIG_RAX] = u64::MAX;
        regs[reg::RIP] = scratch.base;
        regs[reg::RBX] = batch.entry();
        regs[reg::R14] = 0;
        pt::set_regs(self.tid, &regs)?;
        pt::cont(self.tid, 0)?;
        self.at_signal = false;
        Ok(())
    }

    /// Waits for the end of a started batch. `threads` collects ids of threads that it made.
    pub fn finish(&mut self, memory: &MemFile, batch: &Batch, threads: &mut Vec<i32>) -> Result<Results, Error> {
        loop {
            match self.wait()? {
                Status::Stopped(libc::SIGSTOP, 0) => {
                    if Tracee::is_end_of_batch(self.tid)? {
                        self.at_signal = true;
                        break;
                    }
                    self.note(libc::SIGSTOP, 0);
                    pt::cont(self.tid, 0)?;
                }
                Status::Stopped(sig, 0)
                    if sig == libc::SIGSEGV || sig == libc::SIGBUS || sig == libc::SIGILL || sig == libc::SIGSYS =>
                {
                    self.at_signal = true;
                    return Err(Error::Unexpected {
                        pid: self.tid,
                        what: format!("signal {sig} in the table of calls"),
                    });
                }
                Status::Stopped(sig, event) => {
                    self.note(sig, event);
                    if event == pt::EVENT_CLONE {
                        threads.push(pt::event_message(self.tid)? as i32);
                    }
                    pt::cont(self.tid, 0)?;
                }
                Status::Exited(_) | Status::Killed(_) => return Err(self.lost()),
            }
        }
        let mut back = vec![0; batch.size() as usize];
        memory.read(batch.at(), &mut back)?;
        let tid = self.tid;
        batch.results(back).map_err(|(op, errno)| Error::Inside {
            op,
            pid: tid,
            why: std::io::Error::from_raw_os_error(errno),
        })
    }

    /// [`Self::start`] and [`Self::finish`].
    pub fn run(&mut self, memory: &MemFile, scratch: &Scratch, batch: &Batch) -> Result<Results, Error> {
        self.start(memory, scratch, batch)?;
        self.finish(memory, batch, &mut Vec::new())
    }

    /// Maps the scratch area and puts the batch program there.
    pub fn lay(&mut self, memory: &MemFile, gate: u64, scratch: &Scratch) -> Result<(), Error> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        let got = self.call(
            gate,
            "map room for the table of calls",
            libc::SYS_mmap,
            &[scratch.base, scratch.size, 7, flags as u64, u64::MAX, 0],
        )?;
        if got != scratch.base {
            return Err(Error::Unexpected {
                pid: self.tid,
                what: "the kernel chose another place for the table of calls".into(),
            });
        }
        memory.write(scratch.base, blob::code())?;
        Ok(())
    }

    /// Puts registers and mask back and leaves it in a plain stop, from which it goes on by itself when
    /// its tracer dies.
    pub fn pristine(&mut self) -> Result<(), Error> {
        if !self.borrowed || self.gone {
            return Ok(());
        }
        pt::set_regs(self.tid, &self.regs)?;
        // Not at a signal's delivery, where a dying tracer would leave the signal to act: one step further on.
        pt::interrupt(self.tid)?;
        loop {
            pt::cont(self.tid, 0)?;
            match self.wait()? {
                Status::Stopped(_, pt::EVENT_STOP) => break,
                Status::Stopped(sig, event) => self.note(sig, event),
                Status::Exited(_) | Status::Killed(_) => return Err(self.lost()),
            }
        }
        // The stop may have come after the kernel's own adjustment for restarted calls.
        pt::set_regs(self.tid, &self.regs)?;
        pt::set_mask(self.tid, self.mask)?;
        self.at_signal = false;
        self.borrowed = false;
        Ok(())
    }

    /// Lets go as it was found.
    pub fn release(mut self) -> Result<(), Error> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), Error> {
        if self.gone {
            return Ok(());
        }
        if self.doomed {
            self.gone = true;
            // Its number is its own as long as we trace it.
            return Ok(crate::sys::process::kill(self.tid, libc::SIGKILL)?);
        }
        self.pristine()?;
        self.gone = true;
        let signal = match self.owed {
            // One that waits is newer than the stop, which would take it away.
            Some(Owed::Stop) if !pt::is_continued(self.tid)? => libc::SIGSTOP,
            Some(Owed::Continue) => libc::SIGCONT,
            _ => 0,
        };
        pt::detach(self.tid, 0)?;
        if signal != 0 {
            crate::sys::process::kill(self.tid, signal)?;
        }
        Ok(())
    }

    /// Lets the only thread of a process go. False: it was killed before that, and its end has been waited for, or it would
    /// stay a zombie as long as we live. Not for children of the caller, whose status this would take.
    pub fn release_or_bury(mut self) -> bool {
        let released = self.let_go().is_ok();
        if !released {
            self.bury();
        }
        released
    }

    /// Forgets the thread without touching it: whoever else handles it, or it is dead.
    pub fn forget(mut self) {
        self.gone = true;
    }

    /// Waits for the end of a thread that was killed: a traced thread that nobody waits for keeps its process
    /// from ever being reaped.
    pub fn bury(mut self) {
        self.gone = true;
        while let Ok(status) = pt::wait(self.tid) {
            match status {
                Status::Exited(_) | Status::Killed(_) => break,
                // Already dying; nothing to deliver.
                Status::Stopped(..) => {
                    if pt::cont(self.tid, 0).is_err() {
                        continue;
                    }
                }
            }
        }
    }

    /// Registration of restartable sequences.
    pub fn rseq(&self) -> Rseq {
        pt::rseq(self.tid)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // The thread may be dead, then there is nothing to give back.
        let _: Result<(), Error> = self.let_go();
    }
}

/// Registers as they must be for a thread that was interrupted in a system call and goes on elsewhere: restarted
/// calls are made again from the start, a call that would go on with the rest of its time returns EINTR. Calls
/// whose time-out is absolute, or whose interruption programs do not expect (poll), are made again; so is a sleep that has
/// the rest of its time where it read the whole (`sleep`), or whose caller could not learn of the rest (`usleep`).
pub(crate) fn leave_call(mut regs: Regs) -> Regs {
    const RESTARTSYS: i64 = -512;
    const RESTARTNOINTR: i64 = -513;
    const RESTARTNOHAND: i64 = -514;
    const RESTART_BLOCK: i64 = -516;
    let nr = regs[reg::ORIG_RAX] as i64;
    if nr >= 0 {
        let again = match regs[reg::RAX] as i64 {
            RESTARTSYS | RESTARTNOINTR | RESTARTNOHAND => true,
            // FUTEX_WAIT_BITSET and FUTEX_WAIT_REQUEUE_PI take absolute times.
            RESTART_BLOCK => match nr {
                libc::SYS_poll => true,
                libc::SYS_futex => matches!(regs[reg::RSI] & 0x7f, 9 | 11),
                libc::SYS_nanosleep => [0, regs[reg::RDI]].contains(&regs[reg::RSI]),
                libc::SYS_clock_nanosleep => [0, regs[reg::RDX]].contains(&regs[reg::R10]),
                _ => false,
            },
            _ => false,
        };
        if again {
            regs[reg::RAX] = nr as u64;
            // An image may say anything.
            regs[reg::RIP] = regs[reg::RIP].wrapping_sub(2);
        } else if regs[reg::RAX] as i64 == RESTART_BLOCK {
            regs[reg::RAX] = -i64::from(libc::EINTR) as u64;
        }
    }
    regs[reg::ORIG_RAX] = u64::MAX;
    regs
}

/// Leaves a restartable sequence at its abort address, as the kernel does when it is interrupted.
/// Returns the new rip, if the thread is inside of one.
pub(crate) fn leave_rseq(memory: &MemFile, rseq: &Rseq, rip: u64) -> Result<Option<u64>, SysError> {
    const CS_AT: u64 = 8;
    if rseq.address == 0 {
        return Ok(None);
    }
    let cs = memory.word(rseq.address + CS_AT)?;
    if cs == 0 {
        return Ok(None);
    }
    let (start, len, abort) = (memory.word(cs + 8)?, memory.word(cs + 16)?, memory.word(cs + 24)?);
    if rip.wrapping_sub(start) >= len {
        return Ok(None);
    }
    memory.write(rseq.address + CS_AT, &[0; 8])?;
    Ok(Some(abort))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(owed: Option<Owed>) -> Tracee {
        let (borrowed, at_signal, group_stop, doomed) = (false, false, false, false);
        // Gone: nothing is done to it.
        Tracee { tid: 0, regs: Regs::default(), mask: 0, borrowed, at_signal, group_stop, owed, doomed, gone: true }
    }

    #[test]
    fn a_process_is_sent_once_what_each_thread_was_told_of() {
        let owed = |all: [Option<Owed>; 3]| {
            let mut threads = all.map(thread);
            Tracee::owe_once(&mut threads);
            threads.map(|thread| thread.owed)
        };
        let (stop, go_on) = (Some(Owed::Stop), Some(Owed::Continue));
        assert_eq!(owed([go_on, go_on, go_on]), [None, None, go_on]);
        assert_eq!(owed([stop, None, None]), [None, None, stop]);
        assert_eq!(owed([None, None, None]), [None, None, None]);
    }
}
