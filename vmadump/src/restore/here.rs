//! What can be said of a process that is to come while it still runs: which of its files are here already, and what
//! stands against it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::target::{EARLY, Target, powerless};
use super::{Body, RestoreOptions};
use crate::ahead::{Answer, OpenFile, Question};
use crate::compile::{HEAD, NO_FILE, is_same};
use crate::error::{Error, Refusal};
use crate::facts::{Facts, cap};
use crate::image::{Creds, FdKind, FileRef, Image, Thread};
use crate::limits::can_come;
use crate::plan::{timer_ids, within};
use crate::procfs;
use crate::sys::rights::{Lent, find_below, is_noexec, may_open, open_below};
use crate::wire::Bytes;

/// Answers for a [`Body::Into`], to which nothing is done. Of each mapped file, whether the same one (by size, and build id
/// or time) is there for a process that has the root directory of the body, and may be mapped by its user; without an owner by
/// root. Open files are those that the process itself may open.
///
/// # Errors
/// The body is gone; this program may not try what its user may.
pub fn answer(question: &Question, options: &RestoreOptions<'_>) -> Result<Answer, Error> {
    let Body::Into(body) = options.body else { return Ok(Answer::default()) };
    let root = root_of(body)?;
    let there = {
        let user = options.owner.as_ref().filter(|u| u.uid != 0);
        let _lent = user.map(|u| Lent::of(u.uid, u.gid, &u.groups)).transpose()?;
        question.mapped.iter().map(|file| is_there(&root, file).unwrap_or(false)).collect()
    };
    let facts = options.facts.clone().unwrap_or_else(Facts::here);
    let mut why = against(body, question, &facts, options)?;
    let more = !why.is_empty();
    let lost = match &question.creds {
        Some(creds) if !options.drop_missing_fds && !options.only_given_fds => {
            missing(&root, question, creds, &facts, options)?
        }
        _ => Vec::new(),
    };
    let missing = lost.iter().map(|(fd, _)| *fd).collect();
    why.extend(lost.into_iter().map(|(_, refusal)| refusal));
    let refused = Refusal::all(why).map(Error::Refused);
    Ok(Answer {
        there,
        missing,
        more,
        number: refused.as_ref().map_or(0, Error::errno),
        words: refused.map(|error| error.to_string().into_bytes()).unwrap_or_default().into(),
    })
}

fn root_of(pid: i32) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    options.open(format!("/proc/{pid}/root")).map_err(|_| Error::Gone(pid))
}

/// Where the image has files, do regular files stand in the body, as far as `user` sees them? They are only looked at: to open
/// some devices does something, and others make one wait. Descriptors that need not be made stay behind then.
pub(super) fn are_files(
    pid: i32,
    user: Option<&Creds>,
    image: &mut Image,
    instead: &[(u32, Vec<u8>)],
    options: &RestoreOptions<'_>,
) -> Result<(), Error> {
    let root = root_of(pid)?;
    let _lent = user.map(|u| Lent::of(u.uids[3], u.gids[3], &u.groups)).transpose()?;
    // Of what cannot be found the body will tell.
    let is_other =
        |path: &[u8]| find_below(&root, path).and_then(|found| found.metadata()).is_ok_and(|meta| !meta.is_file());
    let differs = |path: &[u8]| Refusal::FileDiffers { path: Bytes::from(path).text(), why: NO_FILE.into() };
    let mapped = image.mapped_files().map(|(i, _)| i).chain(image.mm.exe);
    for index in mapped {
        let stands = instead.iter().find(|(i, _)| *i == index).map(|(_, path)| path.as_slice());
        let path = stands.or_else(|| image.files.get(index as usize).map(|file| &file.path[..]));
        if let Some(path) = path.filter(|path| is_other(path)) {
            return Err(differs(path).into());
        }
    }
    for fd in image.fds.iter_mut().filter(|fd| !options.fds.iter().any(|(n, _)| *n == fd.fd)) {
        let FdKind::Regular { file, .. } = fd.kind else { continue };
        let Some(path) = image.files.get(file as usize).map(|file| &file.path[..]).filter(|path| is_other(path)) else {
            continue;
        };
        // Standard streams are whoever restores's to give.
        if !options.drop_missing_fds && fd.fd > 2 {
            return Err(differs(path).into());
        }
        fd.kind = FdKind::NotCarried { what: Bytes::from(path) };
    }
    Ok(())
}

impl Target {
    /// Who has the id of the thread that could not be made?
    pub(super) fn taken(&self, error: Error, thread: Option<&Thread>) -> Error {
        let (Error::Inside { op: "make a thread", why, .. }, Some(thread)) = (&error, thread) else { return error };
        if why.raw_os_error() != Some(libc::EEXIST) {
            return error;
        }
        let tid = thread.tid;
        // Where the body has other numbers than we see, nobody is found by this one.
        let status = std::fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
        let by = if self.ns_pid == self.pid { procfs::status(&status).tgid } else { 0 };
        Refusal::ThreadTaken { tid, by }.into()
    }
}

/// What stands against the process itself.
fn against(body: i32, question: &Question, facts: &Facts, options: &RestoreOptions<'_>) -> Result<Vec<Refusal>, Error> {
    let threads = question.threads as usize;
    let mut why = Vec::new();
    if threads > 1 && !facts.can_choose_pids() {
        why.push(Refusal::ThreadIds(threads));
    }
    if question.filtered && !facts.can(cap::SYS_ADMIN) {
        why.push(Refusal::Seccomp);
    }
    why.extend(can_come(body, EARLY).err());
    why.extend(timer_ids(question.timers.iter().copied(), facts.timer_ids).err());
    let Some(creds) = &question.creds else { return Ok(why) };
    why.extend(options.owner.as_ref().and_then(|owner| within(creds, owner).err()));
    if options.elevate.is_some() {
        let text = std::fs::read(format!("/proc/{body}/status")).map_err(|_| Error::Gone(body))?;
        let status = procfs::status(&text);
        let what = status.no_new_privs.then(|| powerless(&status, creds, threads)).flatten();
        why.extend(what.map(|what| Refusal::NoNewPrivs { pid: body, what }));
    }
    Ok(why)
}

/// Open files that the process could not open again.
fn missing(
    root: &File,
    question: &Question,
    creds: &Creds,
    facts: &Facts,
    options: &RestoreOptions<'_>,
) -> Result<Vec<(i32, Refusal)>, Error> {
    let ([.., uid], [.., gid]) = (creds.uids, creds.gids);
    let mut rest = question.open.iter().filter(|file| !options.fds.iter().any(|(n, _)| *n == file.fd)).peekable();
    if rest.peek().is_none() {
        return Ok(Vec::new());
    }
    // Who has no right to be another opens them as he is.
    let _lent = if uid == 0 || !facts.can(cap::SETUID) { None } else { Some(Lent::of(uid, gid, &creds.groups)?) };
    Ok(rest.filter_map(|file| Some((file.fd, lacks(root, file)?))).collect())
}

fn lacks(root: &File, file: &OpenFile) -> Option<Refusal> {
    // What is to be seen there depends on who looks.
    if file.path.starts_with(b"/proc/") {
        return None;
    }
    let found = find_below(root, &file.path).and_then(|found| may_open(&found, file.flags as i32));
    found.err().map(|why| Refusal::FileMissing { path: file.path.text(), why: why.to_string() })
}

fn is_there(root: &File, wanted: &FileRef) -> std::io::Result<bool> {
    let mut file = open_below(root, &wanted.path)?;
    let meta = file.metadata()?;
    if is_noexec(&file) {
        return Ok(false);
    }
    let mut head = [0; HEAD];
    let mut length = 0;
    while length < HEAD {
        match file.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    let time = (meta.mtime(), meta.mtime_nsec() as u32);
    Ok(is_same(wanted, meta.len(), time, &head[..length]).is_ok())
}
