//! The signals that are pending for a process: what it gets last.

use super::fds::comes_again;
use super::target::Target;
use crate::compile::{Compiler, is_queued};
use crate::error::Error;
use crate::image::Image;
use crate::plan::{Op, Plan};
use crate::procfs;
use crate::sys::files;

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
        for (i, thread) in image.threads.iter().enumerate().rev().filter(|(i, t)| *i == 0 || !t.pending.is_empty()) {
            let mut batch = self.batch();
            let mut compiler = Compiler::new(image, &mut batch, 0, &[]);
            if i == 0 {
                compiler.pending(self.ns_pid, |info| comes_again(info, &alive));
            }
            compiler.signals(thread, self.ns_pid, if i == 0 { self.ns_pid } else { thread.tid });
            if i == 0 {
                plan.ops.iter().filter(|op| matches!(op, Op::Queue(_))).for_each(|op| compiler.process(op));
            }
            self.threads[i].run(&self.memory, &self.scratch, &batch)?;
        }
        Ok(())
    }
}
