//! What is learnt before the process is stopped: everything that could refuse it, and the
//! slow facts (flags of areas, build ids) so that the stop stays short.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::areas::Layout;
use super::fds::Channels;
use super::state::{MOST_TIMERS, carries};
use super::{DUMP_ALL, FdPolicy, Options, fds, tids};
use crate::ahead::{OpenFile, Question};
use crate::error::{Error, Refusal};
use crate::image::{Creds, FileRef};
use crate::procfs::{self, Map, Status};
use crate::sys::{SysError, files};
use crate::wire::Bytes;
use crate::{elf, sys};

/// A process seen from outside while it runs.
pub(crate) struct Survey {
    pub(crate) pid: i32,
    pub(crate) options: Options,
    pub(crate) status: Status,
    pub(crate) exe: Vec<u8>,
    /// Has a seccomp filter.
    pub(crate) filtered: bool,
    /// Mapped and open files by path.
    pub(crate) known: HashMap<Vec<u8>, FileRef>,
    /// Of these, whether the target has the same, as far as it was asked.
    there: HashMap<Vec<u8>, bool>,
    layout: Layout,
    /// Pipes and pairs of sockets that are its own.
    pub(crate) channels: Channels,
    /// Files that must be where it goes.
    open: Vec<OpenFile>,
    /// Ids of its POSIX timers.
    timers: Vec<u32>,
    /// Where areas begin that may have memory policies of their own, ascending.
    pub(crate) placed: Vec<u64>,
}

/// Reads a file of /proc/PID.
pub(crate) fn proc_file(pid: i32, name: &str) -> Result<Vec<u8>, Error> {
    files::read(&format!("/proc/{pid}/{name}")).map_err(|e| unreadable(pid, &e))
}

/// Reads a file of /proc/PID that is written in one piece.
pub(crate) fn proc_record(pid: i32, name: &str) -> Result<Vec<u8>, Error> {
    files::read_record(&format!("/proc/{pid}/{name}")).map_err(|e| unreadable(pid, &e))
}

/// Has another of its threads a seccomp filter?
fn is_filtered(pid: i32) -> Result<bool, Error> {
    let has = |tid: &i32| {
        let status = files::read_record(&format!("/proc/{pid}/task/{tid}/status"));
        // One that has ended has none.
        status.is_ok_and(|text| procfs::status(&text).seccomp != 0)
    };
    Ok(tids(pid)?.iter().filter(|tid| **tid != pid).any(has))
}

fn unreadable(pid: i32, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone(pid),
        _ => SysError::from_io("read /proc of", pid, error).into(),
    }
}

impl Survey {
    /// Looks at `pid`; refusals first.
    pub(crate) fn of(pid: i32, options: &Options) -> Result<Self, Error> {
        Survey::look(pid, options, false)
    }

    /// [`Self::of`], of a process that this thread traces already.
    pub(crate) fn of_tracee(pid: i32, options: &Options) -> Result<Self, Error> {
        Survey::look(pid, options, true)
    }

    fn look(pid: i32, options: &Options, ours: bool) -> Result<Self, Error> {
        // Slow the first time, and wanted while the process is stopped.
        crate::cpu::here();
        let status = procfs::status(&proc_record(pid, "status")?);
        if status.tgid != pid {
            return Err(Error::Gone(pid));
        }
        if status.tracer != 0 && !ours {
            return Err(Refusal::Traced(status.tracer).into());
        }
        let exe = fs::read_link(format!("/proc/{pid}/exe"))
            .map(|p| p.into_os_string().into_encoded_bytes())
            .unwrap_or_default();
        let maps = procfs::maps(&proc_file(pid, "smaps")?);
        if status.state == b'Z' && tids(pid)?.len() > 1 {
            return Err(Refusal::FirstThreadEnded.into());
        }
        if matches!(status.state, b'Z' | b'X') || (maps.is_empty() && exe.is_empty()) {
            return Err(Refusal::NoMemory.into());
        }
        if maps.is_empty() {
            return Err(Refusal::Executing.into());
        }
        let mut why = Vec::new();
        let filtered = status.seccomp != 0 || is_filtered(pid)?;
        if filtered && sys::own::effective_caps() >> 21 & 1 == 0 {
            why.push(Refusal::Seccomp);
        }
        if head_of(&root_path(pid, &exe)).is_some_and(|head| elf::is_elf32(&head)) {
            why.push(Refusal::Architecture);
        }
        let timers = String::from_utf8_lossy(&proc_file(pid, "timers").unwrap_or_default()).into_owned();
        let timers = procfs::timers(&timers);
        if timers.len() > MOST_TIMERS || !timers.iter().all(carries) {
            why.push(Refusal::Timer);
        }
        // With whom it shares for that moment alone.
        why.extend(waits_for_vfork(pid)?.or_else(|| shares_space(pid, status.ppid)));
        why.extend(traces(pid)?.map(Refusal::Traces));
        let mut timers: Vec<u32> = timers.iter().map(|timer| timer.id).collect();
        timers.sort_unstable();
        let mut survey = Survey {
            pid,
            options: *options,
            status,
            exe,
            filtered,
            known: HashMap::new(),
            there: HashMap::new(),
            layout: Layout::default(),
            channels: Channels::default(),
            open: Vec::new(),
            timers,
            placed: Vec::new(),
        };
        match survey.lay_out(maps) {
            Ok(layout) => {
                why.extend(layout.alone(pid).err());
                survey.layout = layout;
            }
            Err(Error::Refused(refusal)) => why.push(refusal),
            Err(error) => return Err(error),
        }
        if options.fds != FdPolicy::StdioOnly {
            survey.channels = Channels::of(pid, options.positions)?;
            let (refused, open) = fds::look(pid, options.fds, &survey.channels)?;
            why.extend(refused);
            survey.open = open;
        }
        why.extend(fds::refused_kinds(pid)?);
        match Refusal::all(why) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(survey),
        }
    }

    /// The calling process, before it forks its twin.
    pub(crate) fn of_own(pid: i32, options: &Options) -> Result<Self, Error> {
        let status = procfs::status(&proc_record(pid, "status")?);
        let exe = fs::read_link("/proc/self/exe").map(|p| p.into_os_string().into_encoded_bytes()).unwrap_or_default();
        let mut survey = Survey {
            pid,
            options: *options,
            status,
            exe,
            filtered: false,
            known: HashMap::new(),
            there: HashMap::new(),
            layout: Layout::default(),
            channels: Channels::default(),
            open: Vec::new(),
            timers: Vec::new(),
            placed: Vec::new(),
        };
        if let Some(refusal) = Refusal::all(fds::refused_kinds(pid)?) {
            return Err(refusal.into());
        }
        survey.layout = survey.lay_out(procfs::maps(&proc_file(pid, "smaps")?))?;
        survey.layout.alone(pid)?;
        Ok(survey)
    }

    /// Which areas may have memory policies of their own. Slow where there is much memory.
    pub(crate) fn look_where(&mut self) {
        self.placed = procfs::placed(&proc_file(self.pid, "numa_maps").unwrap_or_default());
        self.placed.sort_unstable();
    }

    /// The layout of a twin of the surveyed process.
    pub(crate) fn layout_of(&self, twin: i32) -> Result<Layout, Error> {
        self.again(&procfs::maps(&proc_file(twin, "maps")?), twin).map(|l| l.0)
    }

    fn lay_out(&mut self, maps: Vec<Map>) -> Result<Layout, Error> {
        for map in maps.iter().filter(|m| m.name.first() == Some(&b'/') && !m.deleted) {
            if !self.known.contains_key(&map.name)
                && let Some(file) = file_ref(self.pid, &map.name, map.inode)
            {
                self.known.insert(map.name.clone(), file);
            }
        }
        if !self.exe.is_empty()
            && !self.known.contains_key(&self.exe)
            && let Some(file) = file_ref(self.pid, &self.exe, 0)
        {
            self.known.insert(self.exe.clone(), file);
        }
        Layout::new(maps, &self.known, |file, class| self.travels(file, class), &self.exe).map_err(Error::from)
    }

    /// Does what is mapped of a file, and cannot be written, travel as data?
    fn travels(&self, file: &FileRef, class: u32) -> bool {
        self.there.get(&file.path.0).map_or(self.options.flags & class != 0, |there| !there)
    }

    /// Files that need not travel where the target has the same. None if everything is to travel.
    fn files(&self) -> Vec<FileRef> {
        if self.options.flags & DUMP_ALL == DUMP_ALL {
            return Vec::new();
        }
        let read_only = self.layout.maps.iter().filter(|m| m.prot & 2 == 0 && !m.deleted && m.inode != 0);
        let mut paths: Vec<&[u8]> = read_only.map(|m| m.name.as_slice()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths.into_iter().filter_map(|path| self.known.get(path)).cloned().collect()
    }

    /// What whoever is to restore it can be asked before it is stopped.
    pub(crate) fn question(&self) -> Question {
        let of = &self.status;
        let creds = Creds {
            uids: of.uids,
            gids: of.gids,
            groups: of.groups.clone(),
            caps: of.caps,
            securebits: 0,
            no_new_privs: of.no_new_privs,
        };
        Question {
            mapped: self.files(),
            open: self.open.clone(),
            creds: Some(creds),
            threads: tids(self.pid).map_or(1, |all| all.len() as u32),
            filtered: self.filtered,
            timers: self.timers.clone(),
        }
    }

    /// Has it one of these still open?
    pub(crate) fn has_open(&self, numbers: &[i32]) -> bool {
        let is = |file: &OpenFile| {
            let link = fs::read_link(format!("/proc/{}/fd/{}", self.pid, file.fd));
            link.is_ok_and(|link| link.as_os_str().as_encoded_bytes() == file.path.0)
        };
        self.open.iter().any(|file| numbers.contains(&file.fd) && is(file))
    }

    /// Which of [`Self::files`] the target has.
    pub(crate) fn found(&mut self, there: &[bool]) -> Result<(), Error> {
        let paths = self.files().into_iter().map(|file| file.path.0);
        self.there = paths.zip(there.iter().copied()).collect();
        let maps = std::mem::take(&mut self.layout.maps);
        self.layout = self.lay_out(maps)?;
        Ok(())
    }

    /// The layout of the stopped process: what was surveyed, unless it changed since.
    pub(crate) fn layout_now(&self) -> Result<Layout, Error> {
        let (layout, changed) = self.again(&procfs::maps(&proc_file(self.pid, "maps")?), self.pid)?;
        if changed {
            layout.alone(self.pid)?;
        } else if layout.shares() {
            // Forked since.
            layout.alone_among(children(self.pid).into_iter())?;
        }
        Ok(layout)
    }

    /// The layout of `pid`, whose mappings are `now`, and whether it is another than surveyed.
    fn again(&self, now: &[Map], pid: i32) -> Result<(Layout, bool), Error> {
        let same = now.len() == self.layout.maps.len()
            && now.iter().zip(&self.layout.maps).all(|(a, b)| {
                (a.start, a.end, a.prot, a.shared, a.offset, a.inode, a.deleted)
                    == (b.start, b.end, b.prot, b.shared, b.offset, b.inode, b.deleted)
                    && a.name == b.name
            });
        if same {
            return Ok((self.layout.clone(), false));
        }
        let mut again = Survey {
            pid: self.pid,
            options: self.options,
            status: self.status.clone(),
            exe: self.exe.clone(),
            filtered: self.filtered,
            known: self.known.clone(),
            there: self.there.clone(),
            layout: Layout::default(),
            channels: Channels::default(),
            open: Vec::new(),
            timers: Vec::new(),
            placed: Vec::new(),
        };
        let layout = again.lay_out(procfs::maps(&proc_file(pid, "smaps")?))?;
        Ok((layout, true))
    }
}

/// How to know the file again; `None` if the path leads to another file (or none) by now.
pub(crate) fn file_ref(pid: i32, path: &[u8], inode: u64) -> Option<FileRef> {
    let at = root_path(pid, path);
    let meta = fs::metadata(&at).ok()?;
    if !meta.is_file() || (inode != 0 && meta.ino() != inode) {
        return None;
    }
    let build_id = head_of(&at).as_deref().and_then(elf::build_id).map(<[u8]>::to_vec).unwrap_or_default();
    Some(FileRef {
        path: Bytes(path.to_vec()),
        size: meta.len(),
        mtime_s: meta.mtime(),
        mtime_ns: meta.mtime_nsec() as u32,
        build_id: build_id.into(),
    })
}

/// A path of the process's, as this process opens it.
fn root_path(pid: i32, path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut at = format!("/proc/{pid}/root").into_bytes();
    at.extend_from_slice(path);
    std::ffi::OsString::from_vec(at).into()
}

/// First page of a file.
fn head_of(path: &std::path::Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut head = Vec::with_capacity(4096);
    fs::File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    Some(head)
}

/// A parent between vfork and the child's exec cannot be stopped, and its memory is in use.
fn waits_for_vfork(pid: i32) -> Result<Option<Refusal>, Error> {
    for tid in tids(pid)? {
        let Ok(stat) = proc_record(pid, &format!("task/{tid}/stat")) else { continue };
        let after = stat.iter().rposition(|b| *b == b')').map_or(0, |p| p + 2);
        if stat.get(after) != Some(&b'D') {
            continue;
        }
        let call = proc_file(pid, &format!("task/{tid}/syscall")).unwrap_or_default();
        let nr = std::str::from_utf8(&call).ok().and_then(|t| t.split(' ').next()?.parse::<i64>().ok());
        if matches!(nr, Some(libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3)) {
            return Ok(Some(Refusal::VforkParent(tid)));
        }
    }
    Ok(None)
}

/// Children of all threads; zombies too.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for tid in tids(pid).unwrap_or_default() {
        let text = proc_file(pid, &format!("task/{tid}/children")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        all.extend(text.split_ascii_whitespace().filter_map(|w| w.parse::<i32>().ok()));
    }
    all
}

/// Whom it traces. It is asked of its children, and of all where it waits for somebody and has no children: those whom it traces
/// it waits for as if they were.
fn traces(pid: i32) -> Result<Option<i32>, Error> {
    let (children, threads) = (children(pid), tids(pid)?);
    let traced = |other: &i32| {
        let text = files::read_record(&format!("/proc/{other}/status")).unwrap_or_default();
        let tracer = procfs::status(&text).tracer;
        tracer != 0 && threads.contains(&tracer)
    };
    if !children.is_empty() {
        return Ok(children.into_iter().find(traced));
    }
    let waits = |tid: &i32| {
        let call = files::read(&format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        let number = call.split(|b| *b == b' ').next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        matches!(number, Some(libc::SYS_wait4 | libc::SYS_waitid))
    };
    if !threads.iter().any(waits) {
        return Ok(None);
    }
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut others = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(others.find(traced))
}

/// Address space or descriptors shared with a parent or child.
fn shares_space(pid: i32, ppid: i32) -> Option<Refusal> {
    let shares = |other: &i32| *other > 0 && sys::process::shares_space(pid, *other);
    children(pid).iter().chain([&ppid]).any(shares).then_some(Refusal::SharedSpace)
}
