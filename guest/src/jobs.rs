//! Runs the jobs one after the other, each with its time limit, and leaves a
//! clean machine between them: what a job leaves behind is told and killed.
//!
//! As process 1 it also reaps every orphan while a job runs.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::Report;
use crate::sys;

/// How long the output pipe is read on after the job's own process has ended.
const LINGER: Duration = Duration::from_millis(300);

/// One line of the job file.
pub(crate) struct Job {
    name: String,
    limit: Duration,
    command: String,
}

/// Reads the job file; tells which line is wrong and why.
pub(crate) fn read(path: &str) -> Result<Vec<Job>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            parse(line).ok_or_else(|| format!("{path} line {}: not `name TAB seconds TAB command`", index + 1))
        })
        .collect()
}

fn parse(line: &str) -> Option<Job> {
    let mut fields = line.splitn(3, '\t');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let seconds: u64 = fields.next()?.trim().parse().ok()?;
    Some(Job { name: name.replace(' ', "_"), limit: Duration::from_secs(seconds), command: fields.next()?.to_owned() })
}

/// Runs one job to its end or time limit; true if it exited with 0.
pub(crate) fn run(job: &Job, report: &mut Report) -> bool {
    report.begin(&job.name);
    let start = Instant::now();
    let outcome = match start_job(job) {
        Ok((pid, pipe)) => watch(job, pid, &pipe, start, report),
        Err(why) => format!("error:{}", why.to_string().replace(' ', "_")),
    };
    report.end(&job.name, &outcome, start.elapsed());
    outcome == "exit:0"
}

fn start_job(job: &Job) -> io::Result<(i32, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(&job.command)
        .current_dir("/root")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // SAFETY: both calls are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(|| {
            sys::unblock_signals();
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    // `command` keeps the write ends until it is dropped at the end of this
    // function; the child is reaped by `sys::reap`, hence no `wait` on it.
    let child = command.spawn()?;
    let reader = OwnedFd::from(reader);
    sys::set_nonblocking(reader.as_raw_fd());
    Ok((i32::try_from(child.id()).unwrap_or(i32::MAX), reader))
}

/// Follows a running job: output, orphans, time limit; returns the outcome.
fn watch(job: &Job, pid: i32, pipe: &OwnedFd, start: Instant, report: &mut Report) -> String {
    let signals = sys::child_signals();
    let deadline = start + job.limit;
    let mut status = None;
    let mut late = false;
    while status.is_none() {
        let now = Instant::now();
        if now >= deadline && !late {
            late = true;
            describe_hang(report);
            sys::kill_all();
        }
        let patience = if late { Duration::from_millis(500) } else { (deadline - now).min(Duration::from_millis(500)) };
        wait_for(&[pipe.as_raw_fd(), signals.as_raw_fd()], patience);
        sys::clear(signals.as_raw_fd());
        pump(pipe, report);
        while let Some((dead, how)) = sys::reap() {
            if dead == pid {
                status = Some(how);
            }
        }
    }
    let linger = Instant::now() + LINGER;
    while pump(pipe, report) && Instant::now() < linger && !processes().is_empty() {
        wait_for(&[pipe.as_raw_fd()], Duration::from_millis(50));
        while sys::reap().is_some() {}
    }
    clean_up(job, report);
    pump(pipe, report);
    match status {
        _ if late => "timeout".to_owned(),
        Some(how) if libc::WIFEXITED(how) => format!("exit:{}", libc::WEXITSTATUS(how)),
        Some(how) => format!("signal:{}", libc::WTERMSIG(how)),
        None => "error:no_status".to_owned(),
    }
}

/// Reads what is there; false at the end of the output.
fn pump(pipe: &OwnedFd, report: &mut Report) -> bool {
    let mut buffer = [0u8; 16384];
    loop {
        match sys::read(pipe.as_raw_fd(), &mut buffer) {
            Ok(0) => return false,
            Ok(count) => report.output(&buffer[..count]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn wait_for(fds: &[RawFd], patience: Duration) {
    let mut list: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    sys::poll(&mut list, patience);
    // At the end of the output the pipe is readable for ever: do not spin.
    if list[0].revents & libc::POLLIN == 0 && list[0].revents & libc::POLLHUP != 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tells which processes the job left behind, then kills and reaps them.
fn clean_up(job: &Job, report: &mut Report) {
    while sys::reap().is_some() {}
    for process in processes() {
        report.left(&job.name, process.pid, process.state, &process.comm);
    }
    let end = Instant::now() + Duration::from_secs(5);
    while !processes().is_empty() && Instant::now() < end {
        sys::kill_all();
        std::thread::sleep(Duration::from_millis(2));
        while sys::reap().is_some() {}
    }
}

/// What a hang looks like from inside: each process with its kernel stack.
fn describe_hang(report: &mut Report) {
    report.note("time limit reached; processes and their kernel stacks:");
    for process in processes() {
        let stack = fs::read_to_string(format!("/proc/{}/stack", process.pid)).unwrap_or_default();
        let calls: Vec<&str> = stack.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        report.note(&format!("pid {} {} {}: {}", process.pid, process.state, process.comm, calls.join(" < ")));
    }
}

struct Process {
    pid: i32,
    state: char,
    comm: String,
}

/// Every process of user space but ourselves.
fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| pid != 1)
        .filter_map(process)
        .collect()
}

/// Reads `/proc/PID/stat`; None for kernel threads and for what has gone.
fn process(pid: i32) -> Option<Process> {
    /// Flag of kernel threads in field 9 of `/proc/PID/stat`.
    const PF_KTHREAD: u64 = 0x0020_0000;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (head, tail) = stat.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    if flags & PF_KTHREAD != 0 {
        return None;
    }
    Some(Process { pid, state: fields.first()?.chars().next()?, comm })
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass a descriptor fresh from the kernel, owned by
    // nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
