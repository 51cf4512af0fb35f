//! What the tests share: a pid namespace for each test, programs, and moving a process through a file.
#![allow(dead_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use vmadump::capture::{FdPolicy, Options, freeze};
use vmadump::restore::{Body, Prepared, RestoreOptions, Restorer};

pub const INNER: &str = "VMADUMP_TEST_INNER";

/// Runs `test` as the first process of a new pid namespace with a time limit; everything in it ends with it.
pub fn in_namespace(name: &str, limit: Duration, test: impl FnOnce()) {
    if std::env::var_os(INNER).is_some() {
        // Descriptors that whoever started the tests left open must not get into programs.
        // SAFETY: only sets the close-on-exec flag.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4) };
        return test();
    }
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    // SAFETY: one system call between fork and exec: the namespace ends with this test.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut child = command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child=KILL"])
        .arg(exe)
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(INNER, name)
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{name} failed in its namespace: {status}");
            return;
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} took longer than {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory for this test binary's files.
pub fn dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("vmadump-{}", option_env!("CARGO_CRATE_NAME").unwrap_or("tests")));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Compiles tests/programs/NAME.c.
pub fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.c"));
    // Pids are the same in every test's namespace: its name tells files apart.
    let out = dir().join(format!("{name}{}-{}", flags.concat(), std::env::var(INNER).unwrap_or_default()));
    let status = Command::new("gcc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&out)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success(), "gcc {name}");
    out
}

/// A program whose standard output we read, alive in one body after the other.
pub struct Traveller {
    pub pid: i32,
    output: BufReader<ChildStdout>,
    write_end: std::os::fd::OwnedFd,
    body: Option<Child>,
    pub moves: u32,
    pub image: PathBuf,
    pub options: Options,
    /// Facts of the machine that it travels to.
    pub facts: Option<vmadump::facts::Facts>,
}

impl Traveller {
    pub fn start(command: &mut Command) -> Self {
        // Our own copy of the pipe's writing end goes to each new body.
        let (read, write) = std::io::pipe().unwrap();
        let write: std::os::fd::OwnedFd = write.into();
        let child = command.stdin(Stdio::null()).stdout(write.try_clone().unwrap()).spawn().expect("program");
        // The command would keep the writing end open.
        command.stdout(Stdio::null());
        let read: std::os::fd::OwnedFd = read.into();
        let pid = child.id() as i32;
        Traveller {
            pid,
            output: BufReader::new(read.into()),
            write_end: write,
            body: Some(child),
            moves: 0,
            image: dir().join(format!("image-{}-{pid}", std::env::var(INNER).unwrap_or_default())),
            options: Options { flags: 6, fds: FdPolicy::Carry, ..Options::default() },
            facts: None,
        }
    }

    /// Next line of output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        while self.output.buffer().is_empty() {
            let mut poll = libc::pollfd { fd: self.output.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd; one siginfo that the kernel fills.
            let dead = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                if libc::poll(&raw mut poll, 1, 100) == 1 {
                    break;
                }
                libc::waitid(libc::P_PID, self.pid as u32, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
                    == 0
                    && info.si_pid() != 0
            };
            let moves = self.moves;
            assert!(!dead, "the program ended after {moves} moves, status {:#x}", self.reap());
        }
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Dump to a file, end the old body, bring it back with the same pid.
    pub fn travel(&mut self) {
        self.dump_and_end();
        let file = File::open(&self.image).unwrap();
        let options =
            RestoreOptions { body: Body::Pid(self.pid), facts: self.facts.clone(), ..RestoreOptions::default() };
        let prepared = self.prepare(file, options);
        assert_eq!(prepared.go().unwrap(), self.pid);
        self.moves += 1;
    }

    /// As [`Self::travel`], into another process; `body` is this one, or waits for it and ends with it.
    pub fn travel_into(&mut self, body: Child, pid: i32) {
        self.dump_and_end();
        let file = File::open(&self.image).unwrap();
        let prepared = self.prepare(file, RestoreOptions { body: Body::Into(pid), ..RestoreOptions::default() });
        assert_eq!(prepared.go().unwrap(), pid);
        (self.body, self.pid) = (Some(body), pid);
        self.moves += 1;
    }

    pub fn prepare(&self, file: File, mut options: RestoreOptions<'_>) -> Prepared {
        let null = File::open("/dev/null").unwrap();
        let stderr = std::io::stderr();
        let fds = [(0, null.as_fd()), (1, self.write_end.as_fd()), (2, stderr.as_fd())];
        let mut options = RestoreOptions { fds: fds.into_iter().chain(options.fds.drain(..)).collect(), ..options };
        options.drop_missing_fds = false;
        Restorer::prepare(file, &options).unwrap_or_else(|e| panic!("move {}: {e}", self.moves))
    }

    pub fn dump_and_end(&mut self) {
        let mut tries = 100;
        let frozen = loop {
            match freeze(self.pid, &self.options) {
                Ok(frozen) => break frozen,
                // A shell in the middle of a redirection has its output under another number, too.
                Err(e) if tries > 0 && e.to_string().contains("open files cannot be carried") => tries -= 1,
                Err(e) => panic!("move {}: {e}", self.moves),
            }
            std::thread::yield_now();
        };
        frozen.write_image(File::create(&self.image).unwrap()).unwrap();
        frozen.kill().unwrap();
        self.reap();
    }

    pub fn reap(&mut self) -> i32 {
        match self.body.take() {
            Some(mut child) => {
                use std::os::unix::process::ExitStatusExt;
                child.wait().unwrap().into_raw()
            }
            None => vmadump::wait_child(self.pid).unwrap(),
        }
    }

    /// Output to the end, and the wait status.
    pub fn end(mut self) -> (String, i32) {
        let status = self.reap();
        drop(self.write_end);
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        let _ = std::fs::remove_file(&self.image);
        (rest, status)
    }
}

/// Moves a self-checking program at each `round` line; it must end with `done` and 42.
pub fn around(command: &mut Command, moves: u32) {
    around_to(command, moves, None);
}

/// [`around`] to a machine with these facts.
pub fn around_to(command: &mut Command, moves: u32, facts: Option<vmadump::facts::Facts>) {
    let mut program = Traveller::start(command);
    program.facts = facts;
    loop {
        let line = program.line();
        if line.starts_with("round") && program.moves < moves {
            program.travel();
        } else if !line.starts_with("round") {
            assert_eq!(line, "done");
            break;
        }
    }
    assert_eq!(program.moves, moves);
    let (rest, status) = program.end();
    assert_eq!((rest.as_str(), status), ("", 42 << 8));
}

/// Moves a program that prints 0, 1, 2, .. at some of its lines; it must print all of them once.
pub fn counter(command: &mut Command, upto: u32) {
    let mut program = Traveller::start(command);
    for i in 0..upto {
        assert_eq!(program.line(), i.to_string());
        // Not near its end, which it might reach before it is frozen.
        if i % 5 == 4 && i + 5 < upto {
            program.travel();
        }
    }
    assert_eq!(program.moves, (upto - 1) / 5);
    let (rest, status) = program.end();
    assert_eq!((rest.as_str(), status), ("", 7 << 8));
}

/// Has this machine the program?
pub fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status().unwrap().success()
}
