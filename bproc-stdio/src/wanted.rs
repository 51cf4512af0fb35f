//! Whether anybody reads a pipe now: what others may read natively is not taken for a reader that may never come.
//!
//! The kernel tells in which call each thread sleeps. Who reads or waits for the pipe wants what comes; so does, for want of
//! better knowledge, whoever never sleeps for it (O_NONBLOCK), and whoever cannot be seen.

use std::collections::HashSet;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use crate::end::Sink;

/// All processes are looked at again after so long: descriptors can be passed on. Doubled each time.
const FIRST_SCAN: Duration = Duration::from_millis(100);
const LAST_SCAN: Duration = Duration::from_secs(2);
/// The same while nobody has it.
const UNHELD: Duration = Duration::from_millis(50);
/// Most descriptors that a wait is looked through for.
const MOST: usize = 4096;

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A process of this group (0: of some) reads.
    Read(i32),
    /// Nobody does now.
    Unread,
}

/// Those who can read one pipe.
pub(crate) struct Readers {
    pipe: String,
    /// Looked at, whether they can or not.
    seen: HashSet<i32>,
    holders: HashSet<i32>,
    scanned: Instant,
    pause: Duration,
}

/// A thread's sleep.
struct Call {
    number: i64,
    args: [u64; 6],
    stack: u64,
}

impl Readers {
    /// Of the pipe that this is an end of; `None`: it is none.
    pub(crate) fn of(end: &impl AsRawFd) -> Option<Readers> {
        let link = fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).ok()?;
        let pipe = link.to_str().filter(|link| link.starts_with("pipe:["))?.to_owned();
        let (seen, holders) = (HashSet::new(), HashSet::new());
        Some(Readers { pipe, seen, holders, scanned: Instant::now(), pause: FIRST_SCAN })
    }

    /// Looks; may take a few milliseconds.
    pub(crate) fn look(&mut self) -> Look {
        if self.scanned.elapsed() > if self.holders.is_empty() { UNHELD } else { self.pause } {
            self.pause = (self.pause * 2).min(LAST_SCAN);
            (self.seen, self.holders, self.scanned) = (HashSet::new(), HashSet::new(), Instant::now());
        }
        let Ok(all) = fs::read_dir("/proc") else { return Look::Read(0) };
        let own = std::process::id() as i32;
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let now: HashSet<i32> = pids.collect();
        for pid in now.difference(&self.seen).chain([&own]) {
            if !self.ends(*pid).is_empty() {
                self.holders.insert(*pid);
            }
        }
        self.holders.retain(|pid| now.contains(pid));
        self.seen = now;
        let mut gone = Vec::new();
        let mut found = Look::Unread;
        for pid in &self.holders {
            let ends = self.ends(*pid);
            if ends.is_empty() {
                gone.push(*pid);
            } else if *pid == own {
                // It leads on to another machine, by a stream of ours that waits for what is to come.
                found = Look::Read(0);
                break;
            } else if reads(*pid, &ends) {
                found = Look::Read(group(*pid));
                break;
            }
        }
        self.holders.retain(|pid| !gone.contains(pid));
        found
    }

    /// Numbers by which a process can read it.
    fn ends(&self, pid: i32) -> Vec<i32> {
        let Ok(all) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
        let is_end = |entry: fs::DirEntry| {
            let path = entry.path();
            let is_it = fs::read_link(&path).is_ok_and(|link| link.as_os_str() == self.pipe.as_str());
            let can = is_it && fs::symlink_metadata(&path).is_ok_and(|link| link.mode() & 0o400 != 0);
            can.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
        };
        all.filter_map(|entry| is_end(entry.ok()?)).collect()
    }
}

/// Group of a process, as its space counts.
fn group(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpgid:"));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

fn reads(pid: i32, ends: &[i32]) -> bool {
    if ends.iter().any(|fd| never_waits(pid, *fd)) {
        return true;
    }
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut tids = tasks.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    tids.any(|tid| match call(pid, tid) {
        Ok(call) => call.is_some_and(|call| waits_for(pid, &call, ends)) && sleeps(pid, tid),
        // The kernel does not let us see.
        Err(error) => matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) || !can_see(),
    })
}

fn can_see() -> bool {
    fs::exists("/proc/self/syscall").unwrap_or(false)
}

/// Is it one who looks again and again?
fn never_waits(pid: i32, fd: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// The call in which a thread is; `None`: in none, or it runs.
fn call(pid: i32, tid: i32) -> std::io::Result<Option<Call>> {
    let mut text = String::new();
    fs::File::open(format!("/proc/{pid}/task/{tid}/syscall"))?.read_to_string(&mut text)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Option<Call> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
    let mut rest = words.map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = rest.next()?;
    }
    Some(Call { number, args, stack: rest.next()? })
}

/// It sleeps, and has not been stopped in its call.
fn sleeps(pid: i32, tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['S', 'D']))
}

fn waits_for(pid: i32, call: &Call, ends: &[i32]) -> bool {
    let has = |fd: u64| ends.contains(&(fd as i32));
    let Call { number, args, stack } = *call;
    // A program of 32 bits has other numbers.
    if stack < 1 << 32 {
        return true;
    }
    match number {
        libc::SYS_read | libc::SYS_readv | libc::SYS_splice | libc::SYS_tee => has(args[0]),
        libc::SYS_sendfile => has(args[1]),
        libc::SYS_ppoll => polls(pid, &args, ends),
        libc::SYS_pselect6 => selects(pid, &args, ends),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => watches(pid, args[0], ends),
        // What it waits for is not told.
        libc::SYS_io_uring_enter => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => polls(pid, &args, ends),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => selects(pid, &args, ends),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => watches(pid, args[0], ends),
        _ => false,
    }
}

/// Bytes of a process's memory; shorter, where there are no more.
fn memory(pid: i32, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let from = RemoteIoVec { base: at as usize, len };
    let got = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut bytes)], &[from]);
    bytes.truncate(got.unwrap_or(0));
    bytes
}

fn polls(pid: i32, args: &[u64; 6], ends: &[i32]) -> bool {
    let len = (args[1] as usize).min(MOST) * size_of::<libc::pollfd>();
    let memory = memory(pid, args[0], len);
    memory.chunks_exact(size_of::<libc::pollfd>()).filter_map(|one| one.first_chunk()).any(|fd| {
        let fd = i32::from_ne_bytes(*fd);
        ends.contains(&fd)
    })
}

fn selects(pid: i32, args: &[u64; 6], ends: &[i32]) -> bool {
    let most = (args[0] as usize).min(MOST);
    let mask = memory(pid, args[1], most.div_ceil(64) * 8);
    let is_in = |fd: usize| fd < most && mask.get(fd / 8).is_some_and(|byte| byte >> (fd % 8) & 1 != 0);
    ends.iter().any(|fd| usize::try_from(*fd).is_ok_and(is_in))
}

fn watches(pid: i32, epoll: u64, ends: &[i32]) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", epoll as i32)).unwrap_or_default();
    let number = |line: &str| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok();
    info.lines().filter_map(number).any(|fd: i32| ends.contains(&fd))
}

/// Chunks of so many bytes are one after the other: their reader need not be seen.
const BULK: usize = 32 * 1024;
/// A reader who has read them all may leave so much unread, and then gets as much at once.
const AHEAD: u64 = 128 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);
/// A pause is so many times as long as the look before it took, where there are many processes.
const REST: u32 = 10;

/// Whether more is wanted of a stream that ends in a pipe.
pub(crate) struct Demand {
    /// Absent while they are looked at, and of what is no pipe.
    readers: Option<Readers>,
    look: Option<JoinHandle<(Readers, Look, Duration)>>,
    asked: bool,
    /// It was asked once.
    pub(crate) ever: bool,
    next: Instant,
    pause: Duration,
    /// Bytes of the newest chunk.
    newest: u64,
    /// It has been read from as fast as it came.
    drained: bool,
}

impl Demand {
    /// Of the pipe that this is an end of.
    pub(crate) fn of(end: &impl AsRawFd) -> Demand {
        let (look, asked, ever, newest, drained) = (None, false, false, 0, false);
        Demand {
            readers: Readers::of(end),
            look,
            asked,
            ever,
            next: Instant::now(),
            pause: FIRST_PAUSE,
            newest,
            drained,
        }
    }

    /// There is more: does anybody want it?
    pub(crate) fn ask(&mut self) {
        (self.asked, self.ever) = (true, true);
        (self.next, self.pause) = (Instant::now(), FIRST_PAUSE);
    }

    /// Is it asked?
    pub(crate) fn is_asked(&self) -> bool {
        self.asked
    }

    /// It is not asked any more.
    pub(crate) fn take_back(&mut self) {
        self.asked = false;
    }

    /// So many bytes have come.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.newest = bytes as u64;
        self.drained &= bytes >= BULK;
    }

    /// How much the master may read for him.
    pub(crate) fn much(&self) -> u64 {
        if self.drained { AHEAD } else { 1 }
    }

    /// Comes back when somebody wants more: with the number of his group, or 0. May be interrupted.
    pub(crate) async fn wanted(&mut self, sink: Option<&Sink>) -> i32 {
        let waiting = || sink.map_or(0, Sink::waiting);
        loop {
            if let Some(look) = &mut self.look {
                let found = look.await;
                self.look = None;
                let Ok((readers, look, took)) = found else { return 0 };
                self.readers = Some(readers);
                self.next = self.next.max(Instant::now() + took * REST);
                if let (Look::Read(group), 0) = (look, waiting()) {
                    return group;
                }
            }
            if self.next > Instant::now() {
                tokio::time::sleep_until(self.next.into()).await;
            }
            self.next = Instant::now() + self.pause;
            self.pause = (self.pause * 3 / 2).min(LAST_PAUSE);
            let most = if self.drained { AHEAD } else { self.newest / 2 };
            if self.newest >= BULK as u64 && waiting() <= most {
                self.drained = true;
                return 0;
            }
            if waiting() > 0 {
                continue;
            }
            match self.readers.take() {
                Some(mut readers) => {
                    self.look = Some(tokio::task::spawn_blocking(move || {
                        let began = Instant::now();
                        let look = readers.look();
                        (readers, look, began.elapsed())
                    }));
                }
                None => return 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn look_until(readers: &mut Readers, wanted: bool) {
        let since = Instant::now();
        while (readers.look() != Look::Unread) != wanted {
            assert!(since.elapsed() < Duration::from_secs(20), "wanted: {wanted}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn who_reads_is_seen() {
        for (script, wanted) in [
            ("cat >/dev/null", true),
            ("read line", true),
            ("exec sleep 60", false),
            ("sleep 60; cat", false),
            ("exec 5<&0; exec </dev/null; cat <&5", true),
            ("exec python3 -c 'import select; select.select([0], [], [])'", true),
            ("exec python3 -c 'import select; p = select.poll(); p.register(0); p.poll()'", true),
            ("exec python3 -c 'import select; p = select.epoll(); p.register(0, 1); p.poll()'", true),
            ("exec python3 -c 'import select, os; os.set_blocking(0, False); select.select([], [], [], 60)'", true),
        ] {
            let (reader, writer) = std::io::pipe().unwrap();
            let mut command = Command::new("sh");
            let mut child = command.args(["-c", script]).stdin(Stdio::from(reader)).spawn().unwrap();
            // It has the pipe too, until it is dropped.
            drop(command);
            let mut readers = Readers::of(&writer).unwrap();
            if !wanted {
                std::thread::sleep(Duration::from_millis(200));
                assert_eq!(readers.look(), Look::Unread, "{script}");
            } else {
                look_until(&mut readers, true);
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn lines_of_the_kernel() {
        let call = parse("0 0x5 0x7ff0 0x1 0x0 0x0 0x0 0x7ffc00000000 0x7f0000001000\n").unwrap();
        assert_eq!((call.number, call.args[0], call.args[2], call.stack), (0, 5, 1, 0x7ffc_0000_0000));
        assert!(parse("running\n").is_none() && parse("-1 0x0 0x0\n").is_none());
    }
}
