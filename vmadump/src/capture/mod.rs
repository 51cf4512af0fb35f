//! Images of running processes, taken from outside.
//!
//! ```text
//! Surveyed (runs) ─▶ stop all threads ─▶ Stopped ─▶ ask from inside (one batch) ─▶ pristine ─▶ Frozen
//! Frozen ─▶ write_image ─▶ resume | become_exec
//! ```
//!
//! Whatever can be refused is refused in the survey, while the process runs. While [`Stopped`] or [`Frozen`] exists the
//! process is stopped but its own: if this program dies, it goes on.

mod areas;
mod begun;
mod contents;
mod fds;
mod frames;
mod ghost;
mod habits;
mod pages;
mod positions;
mod state;
mod survey;
mod vdsos;

use std::io::Write;

pub(crate) use areas::Layout;
pub use begun::Begun;
pub use ghost::NotExecuted;
pub(crate) use pages::{Room, Source};
pub use positions::who_shares_position;
pub(crate) use survey::{Survey, children};

use crate::ahead::Question;
use crate::batch::{Scratch, find_hole};
use crate::error::{Error, Refusal};
use crate::image::{self, Image, PAGE, Writer};
use crate::sys::memory::MemFile;
use crate::sys::ptrace as pt;
use crate::sys::{self, SysError};
use crate::tracee::Tracee;
use crate::{elf, procfs};

/// What to do with open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FdPolicy {
    /// Carry what can be carried, refuse the process if there is anything else (standard streams excepted:
    /// whoever restores gives new ones).
    #[default]
    Carry,
    /// Carry what can be carried, drop the rest.
    DropOthers,
    /// Carry none but the standard streams.
    StdioOnly,
}

/// How to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Which read-only file mappings travel as data: LIBS 1, EXEC 2, OTHER 4.
    pub flags: u32,
    /// Open files.
    pub fds: FdPolicy,
    /// Descriptors beyond 2 by which it writes to a regular file, not at its end, where another process has got the same
    /// open file, cannot be carried: each of the two would have a position of its own, and write over the other's output.
    pub positions: bool,
}

/// Read-only mappings of files below /lib and /usr/lib travel as data.
pub const DUMP_LIBS: u32 = 1;
/// Read-only mappings of the program file travel as data.
pub const DUMP_EXEC: u32 = 2;
/// Other read-only mappings travel as data.
pub const DUMP_OTHER: u32 = 4;
/// All of them.
pub const DUMP_ALL: u32 = 7;

/// A process that is stopped and known. Dropping it resumes the process. Belongs to the thread that made it.
pub struct Frozen {
    pid: i32,
    threads: Vec<Tracee>,
    image: Image,
    source: Source,
    gate: u64,
    /// All its mappings: more than the image has.
    mapped: Vec<(u64, u64)>,
}

/// A process that runs, and that was not refused.
pub struct Surveyed(Survey, Room);

/// A process that is stopped and its own: if this program dies, it goes on. Dropping it resumes the process. Belongs to
/// the thread that made it.
pub struct Stopped {
    survey: Survey,
    room: Room,
    memory: MemFile,
    threads: Vec<Tracee>,
}

/// Would the process be refused? Does not stop it.
pub fn check(pid: i32, options: &Options) -> Result<(), Error> {
    Survey::of(pid, options).map(drop)
}

/// [`check`], keeping what was seen for the stop that follows.
pub fn survey(pid: i32, options: &Options) -> Result<Surveyed, Error> {
    Survey::of(pid, options).map(|survey| Surveyed(survey, Room::touched()))
}

/// Stops a process with all its threads and learns everything about it but its pages.
/// On error the process runs on unharmed.
pub fn freeze(pid: i32, options: &Options) -> Result<Frozen, Error> {
    survey(pid, options)?.stop()?.learn()
}

impl Surveyed {
    /// What can be asked where it is to go. No files that are mapped ([`Self::found`]), if [`Options::flags`] wants all of
    /// them as data.
    pub fn question(&self) -> Question {
        self.0.question()
    }

    /// Has it one of the files of the question with these numbers still open?
    pub fn has_open(&self, numbers: &[i32]) -> bool {
        self.0.has_open(numbers)
    }

    /// Which of [`Question::mapped`] the target has: these are named in the image, the others travel as data, whatever
    /// [`Options::flags`] says.
    pub fn found(&mut self, there: &[bool]) -> Result<(), Error> {
        self.0.found(there)
    }

    /// Stops all threads. On error the process runs on.
    pub fn stop(self) -> Result<Stopped, Error> {
        let Surveyed(mut survey, room) = self;
        survey.look_where();
        let memory = MemFile::open(survey.pid)?;
        let threads = stop(survey.pid)?;
        Ok(Stopped { survey, room, memory, threads })
    }
}

impl Stopped {
    /// Learns everything about the process but its pages. On error it runs on unharmed.
    pub fn learn(self) -> Result<Frozen, Error> {
        learn(self.survey, self.room, self.memory, self.threads).map_err(|error| match error {
            // The memory that was opened, or a thread that was stopped, is that of the program before.
            Error::Sys(e) if e.errno == libc::EIO => Refusal::Executing.into(),
            other => other,
        })
    }
}

fn learn(mut survey: Survey, room: Room, memory: MemFile, mut threads: Vec<Tracee>) -> Result<Frozen, Error> {
    let pid = survey.pid;
    let mut layout = survey.layout_now()?;
    let vdsos = vdsos::settle(&mut layout, &memory, &mut threads)?;
    // One that it has since it was looked at goes along, too.
    survey.filtered |= threads.iter().any(|thread| pt::is_filtered(thread.tid()));
    if survey.filtered {
        // Not while they run, be it a step: from here on all calls are ours.
        threads.iter().try_for_each(|thread| pt::set_options(thread.tid(), pt::SYSGOOD | pt::SUSPEND_SECCOMP))?;
    }
    let gate = gate(&layout.maps, &memory, pid)?;
    let mapped: Vec<(u64, u64)> = layout.maps.iter().map(|m| (m.start, m.end)).collect();
    let mut used = mapped.clone();
    let size = state::room(threads.len(), survey.placed.len());
    let base = find_hole(&mut used, size).ok_or(Refusal::NoRoom)?;
    let scratch = Scratch { base, size };
    // Threads that are left in the middle of anything are put right by Tracee's drop.
    let asked = state::ask(pid, &survey, &layout, vdsos, &mut threads, &memory, gate, &scratch);
    let laid = asked.is_ok() || state::laid(pid, &scratch);
    // The others stand in the table of calls.
    let place = [scratch.base, scratch.size];
    let cleared = threads[1..].iter_mut().try_for_each(Tracee::pristine).and_then(|()| match laid {
        true => {
            threads[0].call(gate, "unmap the table of calls", libc::SYS_munmap, &place)?;
            threads[0].end_calls()
        }
        false => threads[0].pristine(),
    });
    let mut image = asked?;
    cleared?;
    layout.tell_readable(&mut image);
    let contents = contents::lay(pid, &mut image, &mut used)?;
    let source = Source::new(pid, memory, room, &mut image, contents)?;
    Ok(Frozen { pid, threads, image, source, gate, mapped })
}

/// Stops every thread, the main one first in the result.
fn stop(pid: i32) -> Result<Vec<Tracee>, Error> {
    let mut threads: Vec<Tracee> = Vec::new();
    let mut seen: Vec<i32> = Vec::new();
    loop {
        let mut fresh = Vec::new();
        for tid in tids(pid)? {
            if seen.contains(&tid) {
                continue;
            }
            match pt::seize(tid, pt::SYSGOOD) {
                Ok(()) => fresh.push(tid),
                // One that is at its very end is listed, and cannot be attached to any more.
                Err(_) if tid != pid && procfs::is_over(pid, tid) => continue,
                Err(e) => {
                    abandon(&fresh);
                    return Err(if procfs::is_over(pid, tid) { Error::Gone(pid) } else { e.into() });
                }
            }
        }
        if fresh.is_empty() {
            break;
        }
        let mut waiting = fresh.as_slice();
        for tid in &fresh {
            // A thread that ends meanwhile is found out by the wait.
            let _: Result<(), SysError> = pt::interrupt(*tid);
        }
        while let Some((tid, rest)) = waiting.split_first() {
            match Tracee::stopped(*tid) {
                Ok(Some(tracee)) => threads.push(tracee),
                Ok(None) if *tid == pid => {
                    abandon(rest);
                    return Err(Error::Gone(pid));
                }
                Ok(None) => {}
                Err(e) => {
                    abandon(waiting);
                    return Err(e);
                }
            }
            waiting = rest;
        }
        seen.extend(fresh);
    }
    let Some(leader) = threads.iter().position(|t| t.tid() == pid) else { return Err(Error::Gone(pid)) };
    threads.swap(0, leader);
    Ok(threads)
}

/// Lets threads go that were seized but whose stop was not seen.
fn abandon(tids: &[i32]) {
    for tid in tids {
        // Only a stopped thread can be let go; one that cannot be stopped is let go by our own end.
        if let Ok(Some(tracee)) = Tracee::stopped(*tid) {
            drop(tracee);
        }
    }
}

/// Thread ids of a process, ascending.
pub(crate) fn tids(pid: i32) -> Result<Vec<i32>, Error> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Error::Gone(pid))?;
    let mut all: Vec<i32> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    Ok(all)
}

/// Address of a `syscall` instruction in the process.
pub(crate) fn gate(maps: &[procfs::Map], memory: &MemFile, pid: i32) -> Result<u64, Error> {
    if let Some((_, code)) = procfs::vdso_of(maps) {
        let mut bytes = vec![0; (code.end - code.start) as usize];
        memory.read(code.start, &mut bytes)?;
        if let Some(at) = elf::syscall_instruction(&bytes) {
            return Ok(code.start + at as u64);
        }
    }
    for map in maps.iter().filter(|m| m.prot & 4 != 0 && m.start < crate::image::TASK_END) {
        let mut bytes = vec![0; (map.end - map.start).min(4 << 20) as usize];
        if memory.read(map.start, &mut bytes).is_ok()
            && let Some(at) = elf::syscall_instruction(&bytes)
        {
            return Ok(map.start + at as u64);
        }
    }
    Err(Error::Unexpected { pid, what: "no system call instruction in its memory".into() })
}

/// How far [`Frozen::write_image`] is: pages done, pages in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Frozen {
    /// Everything but the pages.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// [`Self::write_image`] without the header, which was written before.
    pub fn write_rest(&self, out: impl Write) -> Result<u64, Error> {
        self.write(out, false, &mut |_, _| {})
    }

    /// Writes the image; the process stays stopped. Returns the bytes written.
    pub fn write_image(&self, out: impl Write) -> Result<u64, Error> {
        self.write_image_with(out, &mut |_, _| {})
    }

    /// [`Self::write_image`], telling how far it is.
    pub fn write_image_with(&self, out: impl Write, progress: Progress<'_>) -> Result<u64, Error> {
        self.write(out, true, progress)
    }

    fn write(&self, mut out: impl Write, header: bool, progress: Progress<'_>) -> Result<u64, Error> {
        let failed = |why| Error::Io { op: "write", why };
        if header {
            out.write_all(&image::header()).map_err(failed)?;
        }
        let mut writer = Writer::after_header(out, &self.image).map_err(failed)?;
        self.source.stream(&mut writer, progress)?;
        writer.finish().map_err(failed)
    }

    /// From now on the process dies with its tracer, by SIGKILL; before, it goes on then.
    pub fn bind(&self) -> Result<(), Error> {
        self.threads.iter().try_for_each(|t| pt::set_options(t.tid(), pt::SYSGOOD | pt::EXITKILL).map_err(Error::from))
    }

    /// Lets the process go on as if nothing had been.
    pub fn resume(self) -> Result<(), Error> {
        self.threads.into_iter().try_for_each(Tracee::release)
    }

    /// Bytes of pages that the image has at most.
    pub fn page_bytes(&self) -> u64 {
        self.image.pages() * PAGE
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn own_child(&self) -> bool {
        let text = std::fs::read(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        procfs::status(&text).ppid == std::process::id() as i32
    }

    /// Ends the process by SIGKILL (its image has gone elsewhere and nothing may stand in its place).
    pub fn kill(self) -> Result<(), Error> {
        sys::process::kill(self.pid, libc::SIGKILL)?;
        let own_child = self.own_child();
        for tracee in self.threads.into_iter().rev() {
            // The status of our own child is for whoever waits for it.
            if tracee.tid() == self.pid && own_child { tracee.forget() } else { tracee.bury() }
        }
        Ok(())
    }
}
