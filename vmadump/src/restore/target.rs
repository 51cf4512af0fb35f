//! The process that becomes the image: a stopped body without a soul until the last step.

use std::os::fd::RawFd;

use super::{Body, RestoreOptions, check_file};
use crate::batch::{Batch, Scratch, find_hole};
use crate::capture::gate;
use crate::compile::{Compiler, HEAD, as_root, as_user, maps_files};
use crate::crc::PageSum;
use crate::error::{Error, Refusal};
use crate::image::{Creds, FormatError, Image, PageBlock, TASK_END};
use crate::inject::{Outcome, Program, exec};
use crate::limits::{self, Lifted};
use crate::plan::{Op, Plan};
use crate::procfs;
use crate::sys::files;
use crate::sys::memory::MemFile;
use crate::sys::ptrace::Status;
use crate::sys::{process, ptrace as pt};
use crate::tracee::{Owed, Tracee};

use super::fallback::Fallback;
use super::fds::Given;

/// Bytes of scratch memory that is laid before the image is known: enough for most.
pub(super) const EARLY: u64 = 16 << 20;

/// The process being built. Dropping it while armed kills it, or gives it back as it can be.
pub(super) struct Target {
    pub(super) pid: i32,
    pub(super) threads: Vec<Tracee>,
    pub(super) armed: bool,
    pub(super) child: bool,
    pub(super) memory: MemFile,
    pub(super) scratch: Scratch,
    pub(super) gate: u64,
    /// pid in its own namespace.
    pub(super) ns_pid: i32,
    options: u64,
    /// It is not what it was.
    touched: bool,
    /// Numbers in it of the descriptors that were handed over before the image came.
    handed: Option<Vec<i32>>,
    /// It can gain no rights.
    no_new_privs: bool,
    /// It has not the rights that building needs, and cannot gain them.
    pub(super) powerless: bool,
    /// Its limits, which are lifted while it is built.
    pub(super) lifted: Option<Lifted>,
    /// Seccomp filters that it has, and every thread that it makes.
    present: usize,
    pub(super) fallback: Option<Fallback>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if !self.child && (if self.touched { self.fall_back().is_ok() } else { self.put_limits_back() }) {
            // What is left of the threads lets itself go.
            return;
        }
        // It may have died by itself.
        let _: Result<(), _> = process::kill(self.pid, libc::SIGKILL);
        for tracee in self.threads.drain(..).rev() {
            if tracee.tid() == self.pid && self.child { tracee.forget() } else { tracee.bury() }
        }
        if self.child {
            let _: std::io::Result<i32> = process::reap(self.pid);
        }
    }
}

/// What a body that can gain no rights cannot become.
pub(super) fn powerless(has: &procfs::Status, wants: &Creds, threads: usize) -> Option<&'static str> {
    if threads > 1 {
        return Some("threads get their numbers from those who have rights");
    }
    let same = has.uids == wants.uids && has.gids == wants.gids && has.groups == wants.groups;
    let same = same && has.caps == wants.caps && wants.no_new_privs;
    (!same).then_some("has another user, other groups or capabilities than it")
}

pub(super) fn maps_of(pid: i32) -> Result<Vec<procfs::Map>, Error> {
    let text = files::read(&format!("/proc/{pid}/maps")).map_err(|_| Error::Gone(pid))?;
    Ok(procfs::maps(&text))
}

impl Target {
    pub(super) fn new(options: &RestoreOptions<'_>) -> Result<Self, Error> {
        let (pid, child) = match options.body {
            Body::Any => (process::blank(None)?, true),
            Body::Pid(pid) => (process::blank(Some(pid))?, true),
            Body::Into(pid) => {
                if crate::capture::tids(pid)?.len() != 1 {
                    return Err(Refusal::Target(pid).into());
                }
                (pid, false)
            }
        };
        match Target::seize(pid, child) {
            Ok(mut target) => {
                target.fallback = options.fallback.as_ref().map(Fallback::of);
                // If this one dies from now on, it ends, and goes on with none of them.
                target.lifted = Some(Lifted::for_all(&mut target.threads[0], target.gate, &target.memory)?);
                match &options.elevate {
                    // It would gain nothing.
                    Some(_) if target.no_new_privs => target.powerless = true,
                    Some(program) if !child => target.elevate(program)?,
                    _ => {}
                }
                Ok(target)
            }
            Err(e) => {
                if child {
                    let _: Result<(), _> = process::kill(pid, libc::SIGKILL);
                    let _: std::io::Result<i32> = process::reap(pid);
                }
                Err(e)
            }
        }
    }

    fn seize(pid: i32, child: bool) -> Result<Self, Error> {
        let mut options = pt::SYSGOOD | pt::TRACECLONE;
        pt::seize(pid, options)?;
        pt::interrupt(pid)?;
        let Some(mut leader) = Tracee::stopped(pid)? else { return Err(Error::Gone(pid)) };
        if pt::is_continued(pid)? {
            // The end of the first table of calls takes it away.
            leader.owe(Some(Owed::Continue));
        }
        let memory = MemFile::open(pid)?;
        let gate = gate(&maps_of(pid)?, &memory, pid)?;
        let status = procfs::status(&files::read_record(&format!("/proc/{pid}/status")).map_err(|_| Error::Gone(pid))?);
        let ns_pid = status.ns_pid.last().copied().unwrap_or(pid);
        options |= pt::EXITKILL;
        if status.seccomp != 0 {
            // What it was once has left its filters in it; they must not get in the way.
            options |= pt::SUSPEND_SECCOMP;
        }
        pt::set_options(pid, options)?;
        Ok(Target {
            pid,
            threads: vec![leader],
            armed: true,
            child,
            memory,
            scratch: Scratch { base: 0, size: 0 },
            gate,
            ns_pid,
            options,
            touched: false,
            handed: None,
            no_new_privs: status.no_new_privs,
            powerless: false,
            lifted: None,
            present: 0,
            fallback: None,
        })
    }

    /// The body executes a program, and stands before its first instruction.
    fn elevate(&mut self, program: &Program<'_>) -> Result<(), Error> {
        self.touched = true;
        self.execute(program, &[])?;
        // It stands in the middle of execve; calls can be made from its end on.
        pt::cont_syscall(self.pid)?;
        loop {
            match pt::wait(self.pid)? {
                Status::Stopped(sig, 0) if sig == libc::SIGTRAP | 0x80 => break,
                Status::Stopped(sig, event) => {
                    self.threads[0].note(sig, event);
                    pt::cont_syscall(self.pid)?;
                }
                Status::Exited(_) | Status::Killed(_) => return Err(Error::Gone(self.pid)),
            }
        }
        let owed = Tracee::owed_to_any(&self.threads);
        self.threads.drain(..).for_each(Tracee::forget);
        self.threads.push(Tracee::after_exec(self.pid, owed)?);
        pt::set_options(self.pid, self.options)
            .map_err(Error::from)
            .and_then(|()| MemFile::open(self.pid).map_err(Error::from))
            .and_then(|memory| {
                self.memory = memory;
                self.gate = gate(&maps_of(self.pid)?, &self.memory, self.pid)?;
                Ok(())
            })
    }

    /// Does without rights: what it may be it must be already, and its program it gets by executing it.
    pub(super) fn do_without(&mut self, image: &Image, path: Option<&[u8]>, argv: &[&[u8]]) -> Result<(), Error> {
        let refuse = |what| Error::Refused(Refusal::NoNewPrivs { pid: self.pid, what });
        let text = std::fs::read(format!("/proc/{}/status", self.pid)).map_err(|_| Error::Gone(self.pid))?;
        let (has, wants) = (procfs::status(&text), &image.creds[image.leader().creds as usize]);
        if let Some(what) = powerless(&has, wants, image.threads.len()) {
            return Err(refuse(what));
        }
        let Some(path) = path else { return Err(refuse("its program is unknown")) };
        self.elevate(&Program { path, argv, envp: &[] })
    }

    /// Children of the body that have not ended, by their numbers in the namespace.
    pub(super) fn living_children(&self) -> Vec<i32> {
        let status = |pid: i32| Some(procfs::status(&std::fs::read(format!("/proc/{pid}/status")).ok()?));
        let alive = |pid: i32| status(pid).filter(|s| s.state != b'Z').and_then(|s| s.ns_pid.last().copied());
        crate::capture::children(self.pid).into_iter().filter_map(alive).collect()
    }

    /// A directory as the process sees it, for one that has no right to the way there: it was in it before.
    pub(super) fn directory(&self, path: &[u8]) -> Option<std::fs::File> {
        use std::os::unix::ffi::OsStringExt;
        use std::os::unix::fs::OpenOptionsExt;
        let mut at = format!("/proc/{}/root", self.pid).into_bytes();
        at.extend_from_slice(path);
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let path = std::ffi::OsString::from_vec(at);
        std::fs::File::options().read(true).custom_flags(flags).open(path).ok()
    }

    /// Executes a program in the place of whatever there is; the only thread left is the first one, in its exec stop.
    pub(super) fn execute(&mut self, program: &Program<'_>, others: &[i32]) -> Result<(), Error> {
        let size = program.room(0);
        let maps = maps_of(self.pid)?;
        if !maps.iter().any(|m| m.start == self.scratch.base && m.end >= self.scratch.base + size) {
            let mut used: Vec<(u64, u64)> = maps.iter().map(|m| (m.start, m.end)).collect();
            let base = find_hole(&mut used, size).ok_or(Refusal::NoRoom)?;
            self.scratch = Scratch { base, size };
            let place = gate(&maps, &self.memory, self.pid)?;
            limits::lay(&mut self.threads[0], place, &self.memory, &self.scratch)?;
        }
        match exec(&mut self.threads[0], others, &self.memory, &self.scratch, program, &[])? {
            Outcome::Executed => {}
            Outcome::Failed(errno) => {
                let why = std::io::Error::from_raw_os_error(errno);
                return Err(Error::Inside { op: "execute the program", pid: self.pid, why });
            }
        }
        let owed = Tracee::owed_to_any(&self.threads);
        self.threads.drain(..).for_each(Tracee::forget);
        self.threads.push(Tracee::after_exec(self.pid, owed)?);
        self.scratch = Scratch { base: 0, size: 0 };
        Ok(())
    }

    pub(super) fn leader(&mut self) -> &mut Tracee {
        &mut self.threads[0]
    }

    /// What can be done before the image is known: room for the batch program where most images have nothing, and the
    /// descriptors. Nothing is done to a body that would have to be killed if no image came.
    pub(super) fn expect(&mut self, ours: &[RawFd]) -> Result<(), Error> {
        if self.child || self.fallback.is_none() {
            return Ok(());
        }
        let mut used: Vec<(u64, u64)> = maps_of(self.pid)?.iter().map(|m| (m.start, m.end)).collect();
        let base = find_hole(&mut used, EARLY).ok_or(Refusal::NoRoom)?;
        self.put(Scratch { base, size: EARLY })?;
        if !ours.is_empty() {
            self.handed = Some(self.hand_over(ours)?);
        }
        Ok(())
    }

    /// Numbers in it of the descriptors that [`Self::expect`] handed over.
    pub(super) fn handed(&mut self) -> Option<Vec<i32>> {
        self.handed.take()
    }

    /// The scratch memory that there is.
    pub(super) fn early(&self) -> Option<(u64, u64)> {
        (self.scratch.size > 0).then_some((self.scratch.base, self.scratch.size))
    }

    /// Puts the batch program where neither the image nor the present memory is.
    pub(super) fn lay(&mut self, plan: &Plan) -> Result<(), Error> {
        let (base, size) = plan.scratch;
        if let Some(early) = self.early() {
            if early == plan.scratch {
                return Ok(());
            }
            let gate = self.gate;
            self.leader().call(gate, "unmap the table of calls", libc::SYS_munmap, &[early.0, early.1])?;
        }
        let present = maps_of(self.pid)?;
        if present.iter().any(|m| m.start < base + size && m.end > base) {
            // The image has room there, the body has not: what it has goes first, but for its vdso.
            for map in present.iter().filter(|m| m.start < base + size && m.end > base && m.name != b"[vdso]") {
                let (gate, start, len) = (self.gate, map.start, map.end - map.start);
                self.leader().call(gate, "make room", libc::SYS_munmap, &[start, len])?;
            }
        }
        self.put(Scratch { base, size })
    }

    fn put(&mut self, scratch: Scratch) -> Result<(), Error> {
        self.touched = true;
        let rseq = self.leader().rseq();
        let gate = self.gate;
        if rseq.address != 0 {
            let args = [rseq.address, rseq.size.into(), 1, rseq.signature.into()];
            self.leader().call(gate, "unregister rseq", libc::SYS_rseq, &args)?;
        }
        self.threads[0].lay(&self.memory, gate, &scratch)?;
        self.scratch = scratch;
        Ok(())
    }

    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.scratch.data())
    }

    pub(super) fn run(&mut self, batch: &Batch) -> Result<crate::batch::Results, Error> {
        self.threads[0].run(&self.memory, &self.scratch, batch)
    }

    /// Empties the address space and makes the areas; files are opened with the user's rights and compared.
    pub(super) fn build_memory(
        &mut self,
        image: &Image,
        plan: &Plan,
        instead: &[(u32, Vec<u8>)],
        memory_files: i32,
        mut batch: Batch,
    ) -> Result<(), Error> {
        let scratch = self.scratch;
        batch.must(libc::SYS_munmap, &[0, scratch.base], "empty the address space");
        batch.must(libc::SYS_munmap, &[scratch.end(), TASK_END - scratch.end()], "empty the address space");
        let user = plan.creds && maps_files(image);
        if user {
            as_user(&mut batch, &image.creds[image.leader().creds as usize]);
        }
        let mut compiler = Compiler::new(image, &mut batch, 0, instead);
        compiler.memory_files = memory_files;
        plan.ops.iter().take_while(|op| **op != Op::Pages).for_each(|op| compiler.memory(op));
        let opened = compiler.opened;
        if user {
            as_root(&mut batch);
        }
        let got = self.run(&batch).map_err(|e| self.explain(e, image, &batch))?;
        for file in opened.iter().filter(|f| !instead.iter().any(|(i, _)| *i == f.file)) {
            if got.ret(file.open) != 0 {
                return Err(Error::Unexpected { pid: self.pid, what: "descriptors are not as expected".into() });
            }
            let head = got.ret(file.read).clamp(0, HEAD as i64) as usize;
            check_file(image, file.file, got.bytes(file.stat, 144), got.bytes(file.head, head))?;
        }
        if let (Some(Op::Vdso(at)), Some(kernel)) =
            (plan.ops.iter().find(|op| matches!(op, Op::Vdso(_))), crate::sys::own::vdso())
        {
            // Nothing else is there that could begin like it.
            let mut magic = [0; 4];
            let there = self.memory.read(at + (kernel.start - kernel.data_start), &mut magic).is_ok();
            if !there || magic != *b"\x7fELF" {
                return Err(Error::Unexpected { pid: self.pid, what: "the kernel put the vdso elsewhere".into() });
            }
        }
        Ok(())
    }

    /// A file that could not be opened deserves its name.
    fn explain(&self, e: Error, image: &Image, batch: &Batch) -> Error {
        let Error::Inside { op: "open a mapped file", why, .. } = &e else { return e };
        let mut memory = vec![0; batch.size() as usize];
        let path =
            match self.memory.read(batch.at(), &mut memory).ok().and_then(|()| batch.first_failed_argument(&memory, 1))
            {
                Some(at) => {
                    let from = (at - batch.at()) as usize;
                    let text: Vec<u8> =
                        memory[from.min(memory.len())..].iter().copied().take_while(|b| *b != 0).collect();
                    crate::wire::Bytes(text).text()
                }
                None => image.command(),
            };
        Refusal::FileMissing { path, why: why.to_string() }.into()
    }

    /// The target reads a block straight into place and sums it up.
    pub(super) fn read_pages(&mut self, fd: i32, block: &PageBlock) -> Result<(), Error> {
        let mut batch = self.batch();
        let lanes = batch.words(&[0xffff_ffff; 4]);
        for run in &block.runs {
            batch.read(fd, run.start, run.len());
        }
        for run in &block.runs {
            batch.sum(run.start, run.len(), lanes);
        }
        let got = match self.run(&batch) {
            Err(Error::Inside { why, .. }) if why.raw_os_error() == Some(libc::ENODATA) => {
                return Err(FormatError::Truncated("the pages").into());
            }
            other => other?,
        };
        let sum = PageSum::from_lanes([0, 8, 16, 24].map(|o| got.word(lanes + o))).finish();
        if sum == block.sum { Ok(()) } else { Err(FormatError::Checksum("a block of pages").into()) }
    }

    /// Writes verified pages into the target.
    pub(super) fn write_pages(&mut self, block: &PageBlock, mut data: &[u8]) -> Result<(), Error> {
        for run in &block.runs {
            let (now, rest) = data.split_at((run.len() as usize).min(data.len()));
            self.memory.write(run.start, now)?;
            data = rest;
        }
        Ok(())
    }

    /// Everything of the process as a whole, the other threads, and what is the first one's own. Returns descriptors that could not be made.
    pub(super) fn finish_process(
        &mut self,
        image: &Image,
        plan: &Plan,
        given: &Given,
        instead: &[(u32, Vec<u8>)],
        drop_missing: bool,
    ) -> Result<Vec<i32>, Error> {
        self.present = self.present_filters(image)?;
        let filtered = image.threads.iter().any(|t| !t.filters.is_empty());
        if filtered {
            self.options |= pt::SUSPEND_SECCOMP;
            pt::set_options(self.pid, self.options)?;
        }
        let own_oom = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", self.pid));
        let own_oom: i32 = own_oom.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let mut batch = self.batch();
        let mut compiler = Compiler::new(image, &mut batch, 0, instead);
        compiler.memory_files = given.memory_files;
        let mut dropped = Vec::new();
        for op in plan.ops.iter().skip_while(|op| **op != Op::Pages).skip(1) {
            match op {
                Op::Fds => dropped = compiler.fds(given, plan.creds),
                Op::Threads => {}
                Op::WideQueue(_) if image.signals() == 0 => {}
                // They come last: see `queue.rs`.
                Op::Pending | Op::Queue(_) => {}
                Op::Surroundings => {
                    compiler.process(op);
                    // A user may be spared no more than what stands for him is.
                    let oom = image.process.oom_score_adj;
                    let oom = if plan.modest { oom.max(own_oom) } else { oom };
                    if oom != own_oom {
                        compiler.tell_kernel(b"/proc/self/oom_score_adj", &oom.to_string());
                    }
                    if let Some(cwd) = given.cwd {
                        compiler.batch.may(libc::SYS_fchdir, &[cwd as u64], "change the directory");
                    }
                }
                // Timers may name threads.
                Op::Timers(_) => {}
                op => compiler.process(op),
            }
        }
        let filled = compiler.filled;
        for thread in &image.threads[1..] {
            let tid = batch.data(&thread.tid.to_ne_bytes());
            let args = batch.data(&process::thread_args(tid));
            batch.must(libc::SYS_clone3, &[args, process::CLONE_ARGS as u64], "make a thread");
        }
        let mut timers = Compiler::new(image, &mut batch, 0, instead);
        plan.ops.iter().filter(|op| matches!(op, Op::Timers(_))).for_each(|op| timers.process(op));
        // Privileges end here, for this thread.
        self.thread(image, plan, 0, &mut batch)?;
        let mut fresh = Vec::new();
        self.threads[0].start(&self.memory, &self.scratch, &batch)?;
        let got = self.threads[0].finish(&self.memory, &batch, &mut fresh);
        for tid in fresh {
            match Tracee::stopped(tid)? {
                Some(tracee) => self.threads.push(tracee),
                None => return Err(Error::Gone(tid)),
            }
        }
        let got = got.map_err(|e| self.taken(e, image.threads.get(self.threads.len())))?;
        if self.threads.len() != image.threads.len() {
            return Err(Error::Unexpected { pid: self.pid, what: "a new thread did not show up".into() });
        }
        if filled.iter().any(|(index, len)| got.ret(*index) != *len as i64) {
            return Err(Error::Unexpected {
                pid: self.pid,
                what: "a pipe or socket took less than it held before".into(),
            });
        }
        let lost = super::fds::lost(image, given, &got, &batch, &mut dropped);
        if let (Some(refusal), false) = (lost, drop_missing) {
            return Err(refusal.into());
        }
        Ok(dropped)
    }

    /// What each other thread must do itself.
    pub(super) fn finish_threads(&mut self, image: &Image, plan: &Plan) -> Result<(), Error> {
        for i in 1..image.threads.len() {
            let mut batch = self.batch();
            self.thread(image, plan, i, &mut batch)?;
            self.threads[i].run(&self.memory, &self.scratch, &batch)?;
        }
        Ok(())
    }

    fn thread(&self, image: &Image, plan: &Plan, i: usize, batch: &mut Batch) -> Result<(), Error> {
        let thread = &image.threads[i];
        let tid = if i == 0 { self.ns_pid } else { thread.tid };
        if tid != thread.tid && thread.tid_address != 0 {
            // A C library keeps the thread's id at the address that the kernel clears at its end.
            let mut word = [0; 4];
            if self.memory.read(thread.tid_address, &mut word).is_ok() && i32::from_ne_bytes(word) == thread.tid {
                self.memory.write(thread.tid_address, &tid.to_ne_bytes())?;
            }
        }
        let mut compiler = Compiler::new(image, batch, 0, &[]);
        compiler.thread(thread);
        compiler.thread_habits(i);
        if !plan.modest {
            compiler.scheduling(thread, image.io_priority(i), &plan.processors[i]);
        }
        if plan.creds {
            compiler.creds(&image.creds[thread.creds as usize], self.permitted()?, plan.bounding);
        }
        if plan.modest {
            compiler.scheduling(thread, image.io_priority(i), &plan.processors[i]);
        }
        compiler.after_creds(thread);
        if i + 1 == image.threads.len() {
            compiler.late_limits(plan);
        }
        if i == 0 {
            compiler.told(self.ns_pid);
        }
        compiler.filters(&thread.filters[self.present.min(thread.filters.len())..]);
        Ok(())
    }

    /// Capabilities that it may use while it is built.
    fn permitted(&self) -> Result<u64, Error> {
        let text = files::read_record(&format!("/proc/{}/status", self.threads[0].tid()))
            .map_err(|_| Error::Gone(self.pid))?;
        Ok(procfs::status(&text).caps[1])
    }

    /// How many filters the body has already, and every thread that it makes: nobody gets rid of one. They must be the
    /// first of all threads of the image.
    fn present_filters(&self, image: &Image) -> Result<usize, Error> {
        let status = procfs::status(&std::fs::read(format!("/proc/{}/status", self.pid)).unwrap_or_default());
        if status.seccomp == 0 {
            return Ok(0);
        }
        let present = pt::filters(self.pid)?;
        if image.threads.iter().all(|thread| thread.filters.starts_with(&present)) {
            Ok(present.len())
        } else {
            Err(Refusal::OtherFilters(self.pid).into())
        }
    }

    /// Takes the scratch memory away and puts the registers in.
    pub(super) fn dress(&mut self, image: &Image, plan: &Plan) -> Result<(), Error> {
        let gate = match plan.gate {
            Some(gate) => gate,
            None => gate(&maps_of(self.pid)?, &self.memory, self.pid)?,
        };
        let scratch = [self.scratch.base, self.scratch.size];
        // The first one last: the others stand in the table of calls.
        for (i, thread) in image.threads.iter().enumerate().rev() {
            let tracee = &mut self.threads[i];
            if i == 0 {
                tracee.call(gate, "unmap the table of calls", libc::SYS_munmap, &scratch)?;
            }
            tracee.set_own(plan.regs[i], thread.blocked);
            match i {
                0 => tracee.end_calls()?,
                _ => tracee.pristine()?,
            }
            pt::set_xstate(tracee.tid(), &plan.xstate[i])?;
        }
        Ok(())
    }
}
