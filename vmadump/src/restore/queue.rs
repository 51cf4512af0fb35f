//! The signals that are pending for a process: what it gets last.

use super::fds::comes_again;
use super::target::Target;
use crate::compile::{Compiler, is_queued};
use crate::error::Error;
use crate::image::Image;
use crate::plan::{Op, Plan};
use crate::procfs;
use crate::sys::{files, ptrace as pt};
use crate::wire::Bytes;

/// So many queued signals are brought before those that the body got.
const FEW: usize = 64;
/// Looks at whether no other came between.
const LOOKS: usize = 4;

/// Do the ones that the image has of each number come first?
fn come_first(ours: &[&Bytes], present: &[Bytes]) -> bool {
    ours.iter().all(|signal| {
        let ours = ours.iter().filter(|other| other[0] == signal[0]).copied();
        let mut present = present.iter().filter(|other| other[0] == signal[0]);
        ours.into_iter().all(|signal| present.next() == Some(signal))
    })
}

/// All of `present` but `ours`; nothing if not all of these are there.
fn others(ours: &[&Bytes], present: &[Bytes]) -> Option<Vec<Bytes>> {
    let mut rest = present.to_vec();
    for signal in ours {
        rest.remove(rest.iter().position(|other| other == *signal)?);
    }
    Some(rest)
}

/// A timer's signal is not what a copy of it is: taking it sets the timer going.
fn is_timer(info: &[u8]) -> bool {
    info.get(8..12).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) == Some(libc::SI_TIMER)
}

impl Target {
    /// Is there room for the signals that count for their user?
    pub(super) fn takes_signals(&self, image: &Image) -> Result<(), Error> {
        let pending = image.threads.iter().flat_map(|thread| &thread.pending).chain(&image.signals.pending);
        let signals = pending.filter(|info| is_queued(info)).count();
        let text = files::read_record(&format!("/proc/{}/status", self.pid)).map_err(|_| Error::Gone(self.pid))?;
        let (queued, most) = procfs::status(&text).queued;
        if queued.saturating_add(signals as u64) > most {
            let why = std::io::Error::from_raw_os_error(libc::EAGAIN);
            return Err(Error::Inside { op: "have the signals that wait for it", pid: self.pid, why });
        }
        Ok(())
    }

    /// The last step that can fail: what is pending for the process and its threads. A body that went back to what it was would have
    /// it, and pass it on to a process that has it, too.
    pub(super) fn queue_signals(&mut self, image: &Image, plan: &Plan) -> Result<(), Error> {
        let alive = self.living_children();
        // Of several threads another may be the one that takes them.
        let only = image.threads.len() == 1;
        let first = only && self.queue_first(image)?;
        for (i, thread) in image.threads.iter().enumerate().rev().filter(|(i, t)| *i == 0 || !t.pending.is_empty()) {
            let mut batch = self.batch();
            let mut compiler = Compiler::new(image, &mut batch, 0, &[]);
            if i == 0 {
                compiler.pending(self.ns_pid, |info| comes_again(info, &alive) || only && is_queued(info));
            }
            compiler.signals(thread, self.ns_pid, if i == 0 { self.ns_pid } else { thread.tid }, only && !first);
            if i == 0 {
                plan.ops.iter().filter(|op| matches!(op, Op::Queue(_))).for_each(|op| compiler.process(op));
            }
            self.threads[i].run(&self.memory, &self.scratch, &batch)?;
        }
        Ok(())
    }

    /// Queued signals of the process, before those that the body got meanwhile: these are taken, and queued again behind them.
    /// False: there are too many, and nothing was done.
    fn queue_first(&mut self, image: &Image) -> Result<bool, Error> {
        let ours: Vec<&Bytes> = image.signals.pending.iter().filter(|info| is_queued(info)).collect();
        if ours.is_empty() || ours.len() > FEW {
            return Ok(ours.is_empty());
        }
        for look in 0..LOOKS {
            let mut present = pt::pending(self.pid, true)?;
            present.retain(|info| is_queued(info) && ours.iter().any(|signal| signal[0] == info[0]));
            let mut batch = self.batch();
            let mut compiler = Compiler::new(image, &mut batch, 0, &[]);
            if look == 0 {
                if present.len() > FEW || present.iter().any(|info| is_timer(info)) {
                    return Ok(false);
                }
                ours.iter().for_each(|info| compiler.queue(self.ns_pid, info));
                present.iter().for_each(|info| {
                    compiler.take(info[0]);
                    compiler.queue(self.ns_pid, info);
                });
            } else {
                if come_first(&ours, &present) {
                    break;
                }
                // Others came between the look and the calls.
                let Some(rest) = others(&ours, &present).filter(|rest| !rest.iter().any(|info| is_timer(info))) else {
                    break;
                };
                for (old, new) in present.iter().zip(ours.iter().copied().chain(&rest)) {
                    compiler.take(old[0]);
                    compiler.queue(self.ns_pid, new);
                }
            }
            self.run(&batch)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_come_first() {
        let signal = |number: u8, value: u8| Bytes(vec![number, value]);
        let (a, b, c, d) = (signal(34, 1), signal(34, 2), signal(35, 1), signal(34, 3));
        let ours = [&a, &b, &c];
        assert!(come_first(&ours, &[c.clone(), a.clone(), b.clone(), d.clone()]));
        assert!(!come_first(&ours, &[d.clone(), a.clone(), b.clone(), c.clone()]));
        assert!(!come_first(&ours, &[a.clone(), d.clone(), b.clone(), c.clone()]));
        assert_eq!(others(&ours, &[d.clone(), a.clone(), b.clone(), c.clone()]), Some(vec![d.clone()]));
        assert_eq!(others(&ours, &[d.clone(), a.clone(), b.clone()]), None);
    }
}
