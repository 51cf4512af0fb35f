//! Two real services on loop-back with certificates of their own.
#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bproc_config::certs;
use bproc_config::tls::{Peer, TlsFiles};
use bproc_stdio::{IodClient, Kind, StreamSpec, Token};
use nix::fcntl::OFlag;

/// Longest time that anything here may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Runs `test` in a thread; fails when it does not end.
pub fn within(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(LIMIT) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end within {LIMIT:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(cause) = thread.join() {
                std::panic::resume_unwind(cause);
            }
        }
    }
}

/// A running service; ends with it.
pub struct Iod {
    pub child: Child,
    pub socket: PathBuf,
    pub address: String,
}

impl Drop for Iod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Iod {
    pub fn start(dir: &Path, name: &str, role: &str, tls: Option<&TlsFiles>) -> Iod {
        Self::start_with(dir, name, role, tls, &[])
    }

    pub fn start_with(dir: &Path, name: &str, role: &str, tls: Option<&TlsFiles>, more: &[&str]) -> Iod {
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_bproc-iod"));
        command.arg("--socket").arg(&socket).args(["--role", role, "--name", "test"]).args(more);
        if let Some(t) = tls {
            let list = [&t.ca, &t.cert, &t.key].map(|p| p.display().to_string()).join(",");
            command.args(["--tls", &list]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("bproc-iod starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("it says where").to_owned();
        Iod { child, socket, address }
    }

    /// Ends it as a crash does. When this returns its place is free.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn client(&self) -> IodClient {
        IodClient::connect(&self.socket).unwrap()
    }

    /// Peak resident memory, KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub master: Iod,
    pub slave: Iod,
}

impl Cluster {
    pub fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        certs::make_cluster_certs(dir.path(), "test", &[3, 4]).unwrap();
        let master = Iod::start(dir.path(), "master", "master", Some(&certs::files_of(dir.path(), Peer::Master)));
        let slave = Iod::start(dir.path(), "slave", "slave", Some(&certs::files_of(dir.path(), Peer::Node(3))));
        Cluster { dir, master, slave }
    }

    /// Streams of a made-up process.
    pub fn process(&self, kinds: &[Kind]) -> Process {
        let token = Token::random().unwrap();
        let (mut user, mut program) = (Vec::new(), Vec::new());
        let (mut at_master, mut at_node) = (Vec::new(), Vec::new());
        for (fd, kind) in kinds.iter().enumerate() {
            let spec = StreamSpec::new(fd as i32, *kind);
            let (master_read, master_write) = pipe();
            let (node_read, node_write) = pipe();
            match kind {
                Kind::Output => {
                    at_master.push((spec, master_write));
                    user.push(File::from(master_read));
                    at_node.push((spec, node_read));
                    program.push(File::from(node_write));
                }
                _ => {
                    at_master.push((spec, master_read));
                    user.push(File::from(master_write));
                    at_node.push((spec, node_write));
                    program.push(File::from(node_read));
                }
            }
        }
        self.connect(token, at_master, at_node);
        Process { token, user, program }
    }

    pub fn connect(&self, token: Token, at_master: Vec<(StreamSpec, OwnedFd)>, at_node: Vec<(StreamSpec, OwnedFd)>) {
        let borrow = |all: &'_ [(StreamSpec, OwnedFd)]| -> Vec<(StreamSpec, OwnedFd)> {
            all.iter().map(|(s, f)| (*s, f.try_clone().unwrap())).collect()
        };
        let (m, n) = (borrow(&at_master), borrow(&at_node));
        let m: Vec<_> = m.iter().map(|(s, f)| (*s, f.as_fd())).collect();
        let n: Vec<_> = n.iter().map(|(s, f)| (*s, f.as_fd())).collect();
        self.master.client().expect(token, &m, Some(3)).unwrap();
        self.slave.client().attach(token, &n, &self.master.address).unwrap();
    }
}

/// A made-up process: what its user holds on the master, and what it holds itself on the node, by number.
pub struct Process {
    pub token: Token,
    pub user: Vec<File>,
    pub program: Vec<File>,
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap()
}

/// Bytes that no other place in the stream has.
pub struct Pattern(u64);

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        Pattern(seed | 1)
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        for word in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_ne_bytes()[..word.len()]);
        }
    }
}

pub const BLOCK: usize = 1 << 16;

/// Writes `blocks` blocks of the pattern; returns at the first error with what was written.
pub fn pour(to: &mut File, seed: u64, blocks: usize) -> Result<(), std::io::Error> {
    let mut pattern = Pattern::new(seed);
    let mut block = vec![0; BLOCK];
    for _ in 0..blocks {
        pattern.fill(&mut block);
        to.write_all(&block)?;
    }
    Ok(())
}

/// Reads to the end and compares with the pattern; returns the number of bytes.
pub fn drink(from: &mut File, seed: u64) -> u64 {
    let mut pattern = Pattern::new(seed);
    let (mut want, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut total = 0;
    loop {
        let mut len = 0;
        while len < BLOCK {
            match from.read(&mut got[len..]).unwrap() {
                0 => break,
                n => len += n,
            }
        }
        if len == 0 {
            return total;
        }
        pattern.fill(&mut want);
        assert!(want[..len] == got[..len], "bytes differ after {total}");
        total += len as u64;
    }
}
