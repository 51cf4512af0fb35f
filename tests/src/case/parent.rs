//! The parent: an ordinary process of the master, which starts its child by fork and exec here, or on a node.
//!
//! What it sees goes into a transcript, in which processes have names instead of pids. Two transcripts of a case that
//! differ are a broken promise.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bproc::{Prepared, Source, SpawnRequest, Stream};

use super::sys;
use crate::procs;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How children are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// fork and exec: the oracle.
    Native,
    /// fork, then in place on node 0.
    Remote,
}

/// The parent of a case.
pub struct Parent {
    mode: Mode,
    program: PathBuf,
    names: Vec<(i32, String)>,
    transcript: Vec<String>,
    mask: libc::sigset_t,
}

/// A child with its streams.
pub struct Child {
    /// Its pid.
    pub pid: i32,
    stdin: Option<File>,
    stdout: File,
    /// Read, and not yet taken.
    rest: Vec<u8>,
}

/// What to start.
pub struct Program<'p> {
    /// Path.
    pub path: PathBuf,
    /// Arguments, the zeroth included.
    pub argv: Vec<Vec<u8>>,
    /// Done in the forked child.
    pub prepare: &'p dyn Fn(),
    /// It dies with its parent, as everybody should who has no reason not to.
    pub tied: bool,
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    Ok((reader.into(), writer.into()))
}

impl Parent {
    /// The calling process, which becomes the leader of a session.
    pub fn new(mode: Mode) -> Result<Parent> {
        sys::setsid();
        // SIGCHLD waits until it is asked for.
        let mask = sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGCHLD]));
        sys::setrlimit(libc::RLIMIT_CORE, 0, 0);
        // Children of programs with threads find one ignored.
        for signal in [32, 33] {
            sys::raw_action(signal, libc::SIG_DFL);
        }
        let names = vec![(sys::getpid(), "parent".to_owned())];
        Ok(Parent { mode, program: std::env::current_exe()?, names, transcript: Vec::new(), mask })
    }

    /// How children are started.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The program of this process and its children.
    pub fn program(&self) -> &PathBuf {
        &self.program
    }

    /// A line for the transcript, or several with `;` between.
    pub fn note(&mut self, line: impl AsRef<str>) {
        for line in line.as_ref().split(" ; ") {
            let line = self.translate(line);
            self.transcript.push(line);
        }
    }

    /// The lines so far.
    pub fn transcript(&self) -> &[String] {
        &self.transcript
    }

    /// Gives a process a name.
    pub fn call(&mut self, pid: i32, name: &str) {
        self.names.retain(|(known, _)| *known != pid);
        self.names.push((pid, name.to_owned()));
    }

    /// Name of a process.
    pub fn who(&self, pid: i32) -> String {
        let known = self.names.iter().find(|(known, _)| *known == pid);
        known.map_or_else(|| if pid == 0 { "0".into() } else { "somebody".into() }, |(_, name)| name.clone())
    }

    /// Puts names for pids: words such as `ppid=4711`.
    fn translate(&self, line: &str) -> String {
        let word = |word: &str| match word.split_once('=') {
            Some((key @ ("pid" | "ppid" | "pgrp" | "sid" | "from"), number)) => match number.parse() {
                Ok(pid) => format!("{key}={}", self.who(pid)),
                Err(_) => word.to_owned(),
            },
            _ => word.to_owned(),
        };
        line.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }

    /// Starts the obedient child ([`super::child`]).
    pub fn start(&mut self, name: &str) -> Result<Child> {
        self.start_with(name, &|| {})
    }

    /// The same, with something done in the forked child before.
    pub fn start_with(&mut self, name: &str, prepare: &dyn Fn()) -> Result<Child> {
        self.start_as(name, prepare, true)
    }

    /// The same; the child outlives its parent unless tied.
    pub fn start_as(&mut self, name: &str, prepare: &dyn Fn(), tied: bool) -> Result<Child> {
        let program = Program {
            path: self.program.clone(),
            argv: vec![b"bproc-case".to_vec(), b"child".to_vec()],
            prepare,
            tied,
        };
        let mut child = match self.launch(&program)? {
            Ok(child) => child,
            Err(errno) => bail!("{name} does not start: {}", sys::name(errno)),
        };
        self.call(child.pid, name);
        match child.line()?.as_str() {
            "ready" => Ok(child),
            other => bail!("{name} says '{other}' instead of 'ready'"),
        }
    }

    /// For a process between the parent and the child: starts the obedient child on the standard streams that the
    /// caller has, and returns its pid.
    pub fn start_on_own_streams(&mut self, tied: bool) -> Result<i32> {
        let program = Program {
            path: self.program.clone(),
            argv: vec![b"bproc-case".to_vec(), b"child".to_vec()],
            prepare: &|| {},
            tied,
        };
        let (failure, tell) = pipe()?;
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        let (stdin, stdout) = (copy(&std::io::stdin())?, copy(&std::io::stdout())?);
        let pid = sys::fork()?;
        if pid == 0 {
            sys::mask(libc::SIG_SETMASK, &self.mask);
            let errno = become_it(self.mode, &program, &stdin, &stdout);
            let _ = File::from(tell).write_all(&errno.to_ne_bytes());
            sys::exit(127);
        }
        drop(tell);
        let mut errno = Vec::new();
        File::from(failure).read_to_end(&mut errno)?;
        if !errno.is_empty() {
            bail!("it does not start: {errno:?}");
        }
        Ok(pid)
    }

    /// Starts a program; an errno when that fails. The failed child has been reaped then.
    pub fn launch(&mut self, program: &Program<'_>) -> Result<Result<Child, i32>> {
        let (their_in, our_in) = pipe()?;
        let (our_out, their_out) = pipe()?;
        let (failure, tell) = pipe()?;
        let pid = sys::fork()?;
        if pid == 0 {
            drop((our_in, our_out, failure));
            sys::mask(libc::SIG_SETMASK, &self.mask);
            let errno = become_it(self.mode, program, &their_in, &their_out);
            // The parent learns it from the end of the pipe otherwise.
            let _ = File::from(tell).write_all(&errno.to_ne_bytes());
            sys::exit(127);
        }
        drop((their_in, their_out, tell));
        let mut errno = Vec::new();
        if !sys::readable(failure.as_raw_fd(), Duration::from_secs(20)) {
            sys::kill(pid, libc::SIGKILL);
            bail!("the start of a child hangs");
        }
        File::from(failure).read_to_end(&mut errno)?;
        if let Some(errno) = errno.first_chunk() {
            sys::waitpid(pid, 0);
            // Its SIGCHLD is none of the case's.
            sys::next_signal(&[libc::SIGCHLD], Duration::from_millis(100));
            return Ok(Err(i32::from_ne_bytes(*errno)));
        }
        Ok(Ok(Child { pid, stdin: Some(our_in.into()), stdout: our_out.into(), rest: Vec::new() }))
    }

    /// Waits as waitpid(2), no longer than the patience, and notes what came.
    pub fn wait(&mut self, pid: i32, options: i32) -> i32 {
        let (result, status) = self.wait_quietly(pid, options);
        let line = match result {
            0 => "wait: nothing".to_owned(),
            -1 => format!("wait: {}", status_or_errno(status)),
            pid => format!("wait: pid={pid} {}", sys::status(status)),
        };
        self.note(line);
        result
    }

    /// Waits as waitpid(2). With -1 the second number is the errno.
    pub fn wait_quietly(&mut self, pid: i32, options: i32) -> (i32, i32) {
        sys::interrupt_after(PATIENCE.as_secs() as u32);
        let (result, status) = sys::waitpid(pid, options);
        let errno = sys::errno();
        sys::alarm(0);
        match result {
            -1 => (-1, errno),
            pid => {
                if pid > 0 && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status)) {
                    self.must_be_gone(pid);
                }
                (pid, status)
            }
        }
    }

    /// Who has been waited for does not live on the node any more.
    fn must_be_gone(&mut self, pid: i32) {
        let behind = procs::behind(pid, Some(&self.program));
        if let Some(process) = behind.filter(|process| !matches!(process.state, 'Z' | 'X')) {
            self.note(format!("its status came before its end: {process:?}"));
        }
    }

    /// Waits as waitid(2), no longer than the patience, and notes what came.
    pub fn waitid(&mut self, kind: libc::idtype_t, id: i32, options: i32) {
        sys::interrupt_after(PATIENCE.as_secs() as u32);
        let (result, info) = sys::waitid(kind, id as u32, options);
        let errno = sys::errno();
        sys::alarm(0);
        let line = match result {
            -1 => format!("waitid: {}", status_or_errno(errno)),
            _ => format!("waitid: {}", child_info(&info)),
        };
        self.note(line);
    }

    /// Notes the SIGCHLD that comes next, if one does within the patience.
    pub fn sigchld(&mut self) {
        let line = match sys::next_signal(&[libc::SIGCHLD], PATIENCE) {
            Some(info) => format!("SIGCHLD: {}", child_info(&info)),
            None => "SIGCHLD: none".to_owned(),
        };
        self.note(line);
    }

    /// Notes that no SIGCHLD is pending now.
    pub fn no_sigchld(&mut self) {
        let line = match sys::next_signal(&[libc::SIGCHLD], Duration::ZERO) {
            Some(info) => format!("one SIGCHLD too many: {}", child_info(&info)),
            None => "no SIGCHLD".to_owned(),
        };
        self.note(line);
    }

    /// Notes whether something becomes true: the ghost follows its process, it is not asked to be ahead of it.
    pub fn eventually(&mut self, what: &str, mut test: impl FnMut(&Parent) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut good = test(self);
        while !good && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
            good = test(self);
        }
        self.note(format!("{what}: {}", if good { "yes" } else { "never" }));
    }

    /// Asks the child something and notes its answer.
    pub fn ask(&mut self, child: &mut Child, command: &str) -> Result<()> {
        let answer = child.ask(command)?;
        self.note(answer);
        Ok(())
    }

    /// Ends the child, if it lives, and reaps it without a note.
    pub fn end(&mut self, child: Child) {
        sys::kill(child.pid, libc::SIGKILL);
        self.wait_quietly(child.pid, 0);
    }
}

fn status_or_errno(errno: i32) -> String {
    if errno == libc::EINTR { "nothing for a long time".to_owned() } else { sys::name(errno) }
}

fn child_info(info: &sys::Info) -> String {
    if info.signal == 0 {
        return "nothing".to_owned();
    }
    format!("signal {} code {} pid={} uid {} status {}", info.signal, info.code, info.pid, info.uid, info.status)
}

/// In the forked child: becomes the program; an errno when that fails.
fn become_it(mode: Mode, program: &Program<'_>, stdin: &OwnedFd, stdout: &OwnedFd) -> i32 {
    (program.prepare)();
    if program.tied && mode == Mode::Native {
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as _);
    }
    let path = program.path.as_os_str().as_bytes().to_vec();
    let envp: Vec<Vec<u8>> =
        std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    match mode {
        Mode::Native => {
            // SAFETY: descriptors of our own; the originals close on exec.
            unsafe {
                libc::dup2(stdin.as_raw_fd(), 0);
                libc::dup2(stdout.as_raw_fd(), 1);
            }
            let strings =
                |list: &[Vec<u8>]| list.iter().filter_map(|s| CString::new(s.clone()).ok()).collect::<Vec<_>>();
            let pointers =
                |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
            let (argv, envp) = (strings(&program.argv), strings(&envp));
            let Ok(path) = CString::new(path) else { return libc::EINVAL };
            // SAFETY: terminated arrays of terminated strings, which live over the call.
            unsafe { libc::execve(path.as_ptr(), pointers(&argv).as_ptr(), pointers(&envp).as_ptr()) };
            sys::errno()
        }
        Mode::Remote => {
            let stderr = std::io::stderr();
            let stream = |fd, source| Stream { fd, input: fd == 0, source };
            let request = SpawnRequest {
                node: 0,
                path,
                argv: program.argv.clone(),
                envp,
                streams: vec![
                    stream(0, Source::Forward(stdin.as_fd())),
                    stream(1, Source::Forward(stdout.as_fd())),
                    stream(2, Source::Forward(stderr.as_fd())),
                ],
                terminal: None,
                pdeathsig: 0,
                die_with_parent: program.tied,
                travel: false,
                shell: false,
                report: None,
                signals: None,
            };
            let error = match Prepared::new(request) {
                Ok(prepared) => prepared.go(),
                Err(error) => error,
            };
            if std::env::var_os("BPROC_CASE_WORDS").is_some() {
                eprintln!("{error}");
            }
            error.number
        }
    }
}

impl Child {
    /// One that somebody else started.
    pub fn of(pid: i32, stdin: OwnedFd, stdout: OwnedFd) -> Child {
        Child { pid, stdin: Some(stdin.into()), stdout: stdout.into(), rest: Vec::new() }
    }

    /// Sends a command.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        stdin.write_all(format!("{command}\n").as_bytes()).context("writing to the child")
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        self.line_within(PATIENCE)
    }

    /// The next line that it prints, if it does within the limit.
    pub fn line_within(&mut self, limit: Duration) -> Result<String> {
        let limit = crate::run::patience(limit);
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !sys::readable(self.stdout.as_raw_fd(), limit) {
                bail!("the child says nothing");
            }
            let mut part = [0; 4096];
            match self.stdout.read(&mut part)? {
                0 => bail!("the child's output ended"),
                length => self.rest.extend_from_slice(&part[..length]),
            }
        }
    }

    /// Sends a command and takes the answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.line().with_context(|| format!("after '{command}'"))
    }

    /// How many bytes it still prints, to the end.
    pub fn count_rest(&mut self) -> Result<u64> {
        let mut length = self.rest.len() as u64;
        self.rest.clear();
        let mut part = vec![0; 65536];
        loop {
            if !sys::readable(self.stdout.as_raw_fd(), PATIENCE) {
                bail!("the end of the output never comes, after {length} bytes");
            }
            match self.stdout.read(&mut part)? {
                0 => return Ok(length),
                n => length += n as u64,
            }
        }
    }

    /// Closes our end of its output.
    pub fn close_stdout(&mut self) -> Result<()> {
        self.stdout = File::open("/dev/null")?;
        Ok(())
    }
}
