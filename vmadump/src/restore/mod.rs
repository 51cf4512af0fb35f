//! Restoring from outside.
//!
//! ```text
//! read front of image ─▶ plan | refuse ─▶ target (new or given) ─▶ build ─▶ pages ─▶ threads, state ─▶ Prepared (READY)
//! Prepared ─▶ go (runs) | abort, drop (killed)
//! ```
//!
//! Until [`Prepared::go`] nothing of the image has run an instruction of its own.

mod fallback;
mod fds;
mod here;
mod queue;
mod target;

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::error::{Error, Refusal};
use crate::facts::Facts;
use crate::image::{Image, PAGE, Reader, read_header};
use crate::plan::{Owner, Plan, Wishes, plan};
use crate::sys::{process, ptrace as pt};
use crate::tracee::{Owed, Tracee};

use fds::Given;
pub use here::answer;
use here::are_files;
use target::Target;

/// Where an image comes from. With a plain descriptor the target reads the pages by itself, straight into place.
pub trait ImageSource: Read {
    /// A blocking descriptor whose next bytes are exactly those that `read` would give.
    fn raw(&self) -> Option<RawFd> {
        None
    }
}

impl ImageSource for std::fs::File {
    fn raw(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

impl ImageSource for TcpStream {
    fn raw(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

impl ImageSource for UnixStream {
    fn raw(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

impl ImageSource for std::io::PipeReader {
    fn raw(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

/// Any other reader (decrypting, decompressing): the restorer reads and writes the pages into the target.
pub struct Through<R>(pub R);

impl<R: Read> Read for Through<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> ImageSource for Through<R> {}

/// Which process becomes the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// A new child of the calling thread, with any pid.
    #[default]
    Any,
    /// A new child with this pid (in the caller's pid namespace). Needs CAP_CHECKPOINT_RESTORE.
    Pid(i32),
    /// An existing process, whose memory, descriptors and threads are replaced; its pid (as the caller sees it),
    /// parent, group and children stay. It must have one thread.
    Into(i32),
}

/// How to restore.
#[derive(Default)]
pub struct RestoreOptions<'a> {
    /// Which process.
    pub body: Body,
    /// Descriptors to give: number in the process, ours. They win over what the image says of that number.
    pub fds: Vec<(i32, BorrowedFd<'a>)>,
    /// Whose image this is, if the restorer has more rights than that user.
    pub owner: Option<Owner>,
    /// Keep the restorer's credentials.
    pub keep_creds: bool,
    /// For a new child: it is killed when the calling thread ends, unless it has a signal of its own for that.
    pub tied: bool,
    /// Files to map in the place of the image's, by the path in the image: verified copies from a cache, not
    /// checked again.
    pub instead: Vec<(PathBuf, PathBuf)>,
    /// Facts about this machine, if known already.
    pub facts: Option<Facts>,
    /// Other files in the image may be missing here: they are closed in the process then.
    pub drop_missing_fds: bool,
    /// The process gets the given descriptors and none of the image's.
    pub only_given_fds: bool,
    /// For [`Body::Into`]: what the body executes first, to gain the rights that building a process needs (a set-user-id
    /// program that does nothing: it never runs an instruction).
    pub elevate: Option<crate::Program<'a>>,
    /// For [`Body::Into`]: what the body executes when nothing comes of it, in the place of being killed.
    pub fallback: Option<crate::Program<'a>>,
}

/// Restores images.
pub struct Restorer;

/// A process that has its memory and none of its other properties. Dropping it does as [`Prepared`]'s does.
pub struct Filled {
    target: Target,
    image: Image,
    plan: Plan,
    given: Given,
    instead: Vec<(u32, Vec<u8>)>,
    drop_missing: bool,
}

/// A process that is complete and held, one step before it runs: READY. Dropping it kills the process, or makes it what
/// [`RestoreOptions::fallback`] says. Belongs to the thread that made it.
pub struct Prepared {
    target: Target,
    image: Image,
    /// It has yet to get its signals, and its registers after them.
    late: Option<Plan>,
    dropped: Vec<i32>,
}

impl Restorer {
    /// Builds the process of an image and holds it stopped. On error nothing is left; a process given by
    /// [`Body::Into`] goes on if it had not been touched, else it executes the fallback, or is killed.
    pub fn prepare(source: impl ImageSource, options: &RestoreOptions<'_>) -> Result<Prepared, Error> {
        Restorer::prepare_with(source, options, &mut |_, _| {})
    }

    /// [`Restorer::prepare`], telling how many pages are in, and how many there are at most.
    pub fn prepare_with(
        source: impl ImageSource,
        options: &RestoreOptions<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Prepared, Error> {
        Restorer::fill(source, options, progress)?.finish()
    }

    /// The first half of [`Restorer::prepare`], which ends when everything has come that the source has to send.
    pub fn fill(
        mut source: impl ImageSource,
        options: &RestoreOptions<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Filled, Error> {
        // Known, as far as it goes, before the image comes.
        let facts = options.facts.clone().unwrap_or_else(Facts::here);
        // A body of no particular number is made while the image is still on its way.
        let any = if options.body == Body::Any { Some(Target::new(options)?) } else { None };
        let minor = read_header(&mut source)?;
        // The header says that the rest comes soon.
        let mut target = match any {
            Some(target) => target,
            None => Target::new(options)?,
        };
        let ours: Vec<RawFd> = options.fds.iter().map(|(_, fd)| fd.as_raw_fd()).chain(source.raw()).collect();
        // What one gets that executes its program first is lost with that.
        if !target.powerless {
            target.expect(&ours)?;
        }
        let mut reader = Reader::after_header(source, minor)?;
        let mut image = reader.image().clone();
        if options.only_given_fds {
            image.fds.clear();
        }
        if let Some(first) = image.threads.first_mut().filter(|first| options.tied && first.pdeathsig == 0) {
            first.pdeathsig = libc::SIGKILL as u32;
        }
        if target.powerless {
            let exe = image.mm.exe.and_then(|i| image.files.get(i as usize)).map(|f| f.path.0.as_slice());
            let argv = options.elevate.as_ref().map_or(&[][..], |program| program.argv);
            target.do_without(&image, exe, argv)?;
        }
        let wishes = Wishes {
            owner: options.owner.clone(),
            keep_creds: options.keep_creds,
            scratch: target.early(),
            ..Wishes::default()
        };
        let mut plan = plan(&image, &facts, &wishes)?;
        plan.creds &= !target.powerless;
        let instead = instead(&image, options);
        let user = plan.creds.then(|| image.creds[image.leader().creds as usize].clone());
        are_files(target.pid, user.as_ref(), &mut image, &instead, options)?;
        let given = fill(&mut target, &image, &plan, &instead, options, &mut reader, progress)?;
        Ok(Filled { target, image, plan, given, instead, drop_missing: options.drop_missing_fds })
    }

    /// Would the image be refused here? Reads only its front.
    pub fn check(source: impl Read, options: &RestoreOptions<'_>) -> Result<Image, Error> {
        let reader = Reader::new(source)?;
        let facts = options.facts.clone().unwrap_or_else(Facts::here);
        plan(
            reader.image(),
            &facts,
            &Wishes { owner: options.owner.clone(), keep_creds: options.keep_creds, ..Wishes::default() },
        )?;
        Ok(reader.into_parts().0)
    }
}

/// Files of the image, by index, for which others stand.
fn instead(image: &Image, options: &RestoreOptions<'_>) -> Vec<(u32, Vec<u8>)> {
    let stands = |(i, f): (usize, &crate::image::FileRef)| {
        use std::os::unix::ffi::OsStrExt;
        let (_, to) = options.instead.iter().find(|(from, _)| from.as_os_str().as_bytes() == f.path.0)?;
        Some((i as u32, to.as_os_str().as_bytes().to_vec()))
    };
    image.files.iter().enumerate().filter_map(stands).collect()
}

/// Makes the memory, and takes the pages.
fn fill<S: ImageSource>(
    target: &mut Target,
    image: &Image,
    plan: &Plan,
    instead: &[(u32, Vec<u8>)],
    options: &RestoreOptions<'_>,
    reader: &mut Reader<S>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Given, Error> {
    let stream = reader.source().raw();
    target.lay(plan)?;
    let mut batch = target.batch();
    let cwd = if target.powerless { target.directory(&image.process.cwd) } else { None };
    let given = target.take_fds(image, options, stream, cwd.as_ref().map(AsRawFd::as_raw_fd), &mut batch)?;
    target.build_memory(image, plan, instead, given.memory_files, batch)?;
    let all = image.pages();
    let mut done = 0;
    let mut data = Vec::new();
    while let Some(block) = reader.block()? {
        match given.stream {
            Some(fd) => target.read_pages(fd, &block)?,
            None => {
                reader.data(&block, &mut data)?;
                target.write_pages(&block, &data)?;
            }
        }
        done += block.len / PAGE;
        progress(done, all);
    }
    Ok(given)
}

impl Filled {
    /// What the image said.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Makes everything else.
    pub fn finish(mut self) -> Result<Prepared, Error> {
        let (target, image, plan) = (&mut self.target, &self.image, &self.plan);
        let dropped = target.finish_process(image, plan, &self.given, &self.instead, self.drop_missing)?;
        target.finish_threads(image, plan)?;
        let late = match image.signals() {
            0 => {
                target.dress(image, plan)?;
                None
            }
            _ => {
                target.takes_signals(image)?;
                Some(self.plan)
            }
        };
        Ok(Prepared { target: self.target, image: self.image, late, dropped })
    }
}

impl Prepared {
    /// The process id, as the restorer sees it.
    pub fn pid(&self) -> i32 {
        self.target.pid
    }

    /// What the image said.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Descriptors of the image that the process does not have.
    pub fn dropped_fds(&self) -> &[i32] {
        &self.dropped
    }

    /// Lets it run. Its pid.
    pub fn go(mut self) -> Result<i32, Error> {
        let pid = self.target.pid;
        if let Some(plan) = &self.late {
            self.target.queue_signals(&self.image, plan)?;
            self.target.dress(&self.image, plan)?;
        }
        let owed = Tracee::owed_to_any(&self.target.threads);
        // What was pending has been taken away by the stops at the ends of the tables of calls.
        let mut pending = self.image.signals.pending.iter().chain(&self.image.threads[0].pending);
        let lost = pending.any(pt::is_continue) || owed == Some(Owed::Continue);
        let waits = pt::is_continued(pid)?;
        if owed == Some(Owed::Stop) {
            // It came last, and follows when the process is let go.
        } else if lost || waits {
            self.target.threads.iter_mut().for_each(|thread| thread.owe(None));
            if !waits {
                process::kill(pid, libc::SIGCONT)?;
            }
        } else if self.image.meta.stopped {
            process::kill(pid, libc::SIGSTOP)?;
        }
        let threads = std::mem::take(&mut self.target.threads);
        threads.into_iter().try_for_each(Tracee::release)?;
        self.target.armed = false;
        Ok(self.target.pid)
    }

    /// Gives up, as by dropping it.
    pub fn abort(self) {
        drop(self);
    }
}

/// Turns a caller's descriptor into one that [`RestoreOptions::fds`] takes.
pub fn give(number: i32, fd: &OwnedFd) -> (i32, BorrowedFd<'_>) {
    use std::os::fd::AsFd;
    (number, fd.as_fd())
}

pub(crate) fn check_file(image: &Image, file: u32, stat: &[u8], head: &[u8]) -> Result<(), Refusal> {
    let file = &image.files[file as usize];
    crate::compile::same_file(file, stat, head).map_err(|why| Refusal::FileDiffers { path: file.path.text(), why })
}
