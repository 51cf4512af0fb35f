//! What `/proc` tells about a process.
//!
//! [`Process`] holds the directory open, so that all it reads is of one and the same process even when the number is
//! used again meanwhile. The parsers ([`Stat`], [`Status`]) take bytes; whatever they are, nothing panics.

mod parse;
mod settings;
mod tuning;

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use bproc_common::id::Pid;

use crate::error::{Error, Result, check};
use crate::pod::Zeroable;

pub use parse::{Caps, Ids, Malformed, Stat, Status};
pub use settings::Settings;
pub(crate) use tuning::limit_of;
pub use tuning::{Change, Tuning};

/// Largest `/proc` file that is read in bytes: a command line can be that long.
const MAX_FILE: u64 = 16 << 20;
/// Number of resource limits.
pub const LIMITS: usize = 16;

/// Soft and hard limit; `u64::MAX` is infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// Up to where the process itself may raise it.
    pub hard: u64,
}

/// Identity of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// A process as `/proc` shows it.
#[derive(Debug)]
pub struct Process {
    dir: OwnedFd,
    pid: Pid,
}

impl Process {
    /// Opens `/proc/PID`.
    ///
    /// # Errors
    /// ENOENT when there is no such process.
    pub fn open(pid: Pid) -> Result<Process> {
        use std::os::unix::fs::OpenOptionsExt;
        let dir = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(format!("/proc/{pid}"))
            .map_err(|e| Error::io("open of /proc entry", &e).pid(pid))?;
        Ok(Process { dir: dir.into(), pid })
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    fn read(&self, name: &CStr) -> Result<Vec<u8>> {
        // SAFETY: `name` is NUL-terminated.
        let ret = unsafe { libc::openat(self.dir.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        let fd = check("open of /proc file", ret).map_err(|e| e.pid(self.pid))?;
        // SAFETY: the call has just made the descriptor, nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut bytes = Vec::with_capacity(2048);
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| Error::io("read of /proc file", &e).pid(self.pid))?;
        Ok(bytes)
    }

    fn link(&self, name: &CStr) -> Result<PathBuf> {
        let mut bytes = vec![0u8; 4096];
        // SAFETY: `name` is NUL-terminated, the buffer has the length that is told.
        let ret =
            unsafe { libc::readlinkat(self.dir.as_raw_fd(), name.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len()) };
        if ret < 0 {
            return Err(Error::last("readlink in /proc").pid(self.pid));
        }
        bytes.truncate(ret as usize);
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }

    fn file_id(&self, name: &CStr) -> Result<FileId> {
        let mut stat = libc::stat::zeroed();
        // SAFETY: `name` is NUL-terminated, `stat` lives through the call.
        let ret = unsafe { libc::fstatat(self.dir.as_raw_fd(), name.as_ptr(), &raw mut stat, 0) };
        check("stat in /proc", ret).map_err(|e| e.pid(self.pid))?;
        Ok(FileId { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// `/proc/PID/stat`.
    ///
    /// # Errors
    /// ESRCH when it is gone, EBADMSG when the text is not what is known.
    pub fn stat(&self) -> Result<Stat> {
        let text = self.read(c"stat")?;
        Stat::try_from(text.as_slice()).map_err(|_| Error::new("parse of /proc stat", libc::EBADMSG).pid(self.pid))
    }

    /// `/proc/PID/status`.
    ///
    /// # Errors
    /// ESRCH when it is gone, EBADMSG when the text is not what is known.
    pub fn status(&self) -> Result<Status> {
        let text = self.read(c"status")?;
        Status::try_from(text.as_slice()).map_err(|_| Error::new("parse of /proc status", libc::EBADMSG).pid(self.pid))
    }

    /// Its threads, itself included, as far as they have not ended.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it is gone.
    pub fn threads(&self) -> Result<Vec<Pid>> {
        // By number, but of this process: checked afterwards.
        let entries = std::fs::read_dir(format!("/proc/{}/task", self.pid))
            .map_err(|e| Error::io("listing of threads", &e).pid(self.pid))?;
        let threads =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(Pid::new).collect();
        self.still_there("listing of threads")?;
        Ok(threads)
    }

    /// Its children, zombies too, in the order in which they were made by each of its threads.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it is gone.
    pub fn children(&self) -> Result<Vec<Pid>> {
        let mut all = Vec::new();
        for tid in self.threads()? {
            // A thread that has ended meanwhile has left its children to another one.
            let text = std::fs::read_to_string(format!("/proc/{}/task/{tid}/children", self.pid)).unwrap_or_default();
            all.extend(text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).filter_map(Pid::new));
        }
        self.still_there("listing of children")?;
        Ok(all)
    }

    /// State and signals of one thread.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it is gone, EBADMSG when the text is not what is known.
    pub fn thread(&self, tid: Pid) -> Result<(Stat, Status)> {
        let read = |file: &str| {
            let name = format!("task/{tid}/{file}\0");
            let name = CStr::from_bytes_with_nul(name.as_bytes())
                .map_err(|_| Error::new("read of thread", libc::EINVAL).pid(self.pid))?;
            self.read(name)
        };
        let bad = |_| Error::new("parse of /proc of a thread", libc::EBADMSG).pid(tid);
        let stat = Stat::try_from(read("stat")?.as_slice()).map_err(bad)?;
        let status = Status::try_from(read("status")?.as_slice()).map_err(bad)?;
        Ok((stat, status))
    }

    /// The arguments. Empty for a kernel thread, a zombie, or a process that hides them. May wait while the process
    /// is in the middle of an exec.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub fn cmdline(&self) -> Result<Vec<Vec<u8>>> {
        Ok(split_nul(&self.read(c"cmdline")?))
    }

    /// The environment that it was started with.
    ///
    /// # Errors
    /// ESRCH when it is gone, EACCES when it may not be traced.
    pub fn environ(&self) -> Result<Vec<Vec<u8>>> {
        Ok(split_nul(&self.read(c"environ")?))
    }

    /// The working directory as the kernel tells it, with ` (deleted)` at the end when it is.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it is gone, EACCES when it may not be traced.
    pub fn cwd(&self) -> Result<PathBuf> {
        self.link(c"cwd")
    }

    /// Path of the program, with ` (deleted)` at the end when it is.
    ///
    /// # Errors
    /// As [`Process::cwd`].
    pub fn exe_path(&self) -> Result<PathBuf> {
        self.link(c"exe")
    }

    /// Whether it is stopped, as its parent sees it, where this is the letter of its state. Who is traced by another than the
    /// keeper of ghosts, a mover above all, only stands still for that one.
    pub fn is_stopped(&self, state: u8) -> bool {
        const KEEPER: &[u8] = b"bproc-keeper";
        let tracer = || Pid::new(self.status().ok()?.tracer).and_then(|tracer| Process::open(tracer).ok());
        let by_keeper = || tracer().and_then(|tracer| tracer.stat().ok()).is_some_and(|stat| stat.comm == KEEPER);
        state == b'T' || state == b't' && by_keeper()
    }

    /// Identity of the program's file.
    ///
    /// # Errors
    /// As [`Process::cwd`].
    pub fn exe(&self) -> Result<FileId> {
        self.file_id(c"exe")
    }

    /// Whether its root directory is where something is mounted. chroot(2) gives a process another, as a rule.
    ///
    /// # Errors
    /// As [`Process::cwd`].
    pub fn root_is_mount(&self) -> Result<bool> {
        const MOUNT_ROOT: u64 = libc::STATX_ATTR_MOUNT_ROOT as u64;
        // SAFETY: zeros are a valid statx; it and the path outlive the call.
        let about = unsafe {
            let mut about: libc::statx = std::mem::zeroed();
            let ret = libc::statx(self.dir.as_raw_fd(), c"root".as_ptr(), 0, libc::STATX_TYPE, &raw mut about);
            check("statx of a root directory", ret).map_err(|e| e.pid(self.pid))?;
            about
        };
        // Before Linux 5.8 nothing tells.
        Ok(about.stx_attributes_mask & MOUNT_ROOT == 0 || about.stx_attributes & MOUNT_ROOT != 0)
    }

    /// Inode number of its pid namespace.
    ///
    /// # Errors
    /// As [`Process::cwd`].
    pub fn pid_ns(&self) -> Result<u64> {
        Ok(self.file_id(c"ns/pid")?.ino)
    }

    /// Whether it still is (a zombie is).
    pub fn is_there(&self) -> bool {
        self.read(c"stat").is_ok()
    }

    /// Resource limits by RLIMIT number, from the text in /proc: prlimit(2) wants CAP_SYS_RESOURCE for another
    /// user's process, which a machine may withhold from root.
    ///
    /// # Errors
    /// ESRCH when it is gone, EACCES.
    pub fn limits(&self) -> Result<[Limit; LIMITS]> {
        let text = self.read(c"limits")?;
        parse::limits(&text).map_err(|_| Error::new("reading of limits", libc::EINVAL).pid(self.pid))
    }

    /// Its nice value, -20 to 19.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub fn nice(&self) -> Result<i32> {
        // The system call gives 20 - nice, 1 to 40, so -1 is an error always, unlike from the C function.
        // SAFETY: no pointers.
        let ret = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, self.pid.get()) };
        if ret < 0 {
            return Err(Error::last("getpriority").pid(self.pid));
        }
        self.still_there("getpriority")?;
        Ok(20 - ret as i32)
    }

    /// What was asked by number was of this process if it is there afterwards.
    fn still_there(&self, op: &'static str) -> Result<()> {
        if self.is_there() { Ok(()) } else { Err(Error::new(op, libc::ESRCH).pid(self.pid)) }
    }
}

/// NUL-ended strings; the last may lack its NUL.
fn split_nul(bytes: &[u8]) -> Vec<Vec<u8>> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// Inode number of the caller's own pid namespace.
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn own_pid_ns() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata("/proc/self/ns/pid").map_err(|e| Error::io("stat of /proc/self/ns/pid", &e))?;
    Ok(meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Process {
        Process::open(Pid::new(std::process::id() as i32).unwrap()).unwrap()
    }

    #[test]
    fn tells_about_itself_what_the_calls_tell() {
        let p = me();
        let stat = p.stat().unwrap();
        assert_eq!(stat.pid, p.pid().get());
        // SAFETY: these take nothing and cannot fail.
        let (ppid, pgrp, sid) = unsafe { (libc::getppid(), libc::getpgrp(), libc::getsid(0)) };
        assert_eq!((stat.ppid, stat.pgrp, stat.session), (ppid, pgrp, sid));
        let status = p.status().unwrap();
        // SAFETY: these take nothing and cannot fail.
        assert_eq!(status.uids.real, unsafe { libc::getuid() });
        assert_eq!(status.ns_pids.last(), Some(&stat.pid));
        assert_eq!(p.cwd().unwrap(), std::env::current_dir().unwrap());
        assert_eq!(p.exe_path().unwrap(), std::env::current_exe().unwrap());
        assert_eq!(p.pid_ns().unwrap(), own_pid_ns().unwrap());
        assert_eq!(p.cmdline().unwrap().len(), std::env::args().count());
        assert!(p.limits().unwrap()[libc::RLIMIT_NOFILE as usize].soft > 0);
        assert!((-20..20).contains(&p.nice().unwrap()));
        assert!(p.is_there());
        let threads = p.threads().unwrap();
        assert!(threads.contains(&p.pid()));
        let (stat, status) = p.thread(p.pid()).unwrap();
        assert_eq!((stat.pid, status.tgid), (p.pid().get(), p.pid().get()));
    }

    #[test]
    fn an_empty_argument_is_kept() {
        assert_eq!(split_nul(b"a\0\0b\0"), [&b"a"[..], b"", b"b"]);
        assert!(split_nul(b"").is_empty());
    }

    #[test]
    fn a_missing_process_is_named() {
        let e = Process::open(Pid::new(i32::MAX).unwrap()).unwrap_err();
        assert!(e.is_gone());
        assert!(e.to_string().contains("2147483647"), "{e}");
    }
}
