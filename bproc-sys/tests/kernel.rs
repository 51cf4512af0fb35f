//! The wrappers against the kernel. What needs root says so.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bproc_common::id::Pid;
use bproc_common::wait::Status;
use bproc_sys::pidfd::PidFd;
use bproc_sys::process::{Process, own_pid_ns};
use bproc_sys::seqpacket::{Conn, Listener, MAX_FDS};
use bproc_sys::signal::{SigInfo, SignalFd};
use bproc_sys::space::{Options, TimeOffsets, spawn_init};
use bproc_sys::{caps, memfd, signal, time};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        // SAFETY: takes a number. The whole test process ends with it.
        unsafe { libc::alarm(60) };
        let path = std::env::temp_dir().join(format!("bproc-sys-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Held by tests that start processes, and by those that watch a descriptor's last copy go: a process that is being
/// started holds copies of all until it has become its program.
static COPIES: Mutex<()> = Mutex::new(());

fn me() -> Pid {
    Pid::new(std::process::id() as i32).unwrap()
}

#[test]
fn packets_keep_their_ends_and_carry_descriptors() {
    let _copies = COPIES.lock().unwrap_or_else(|e| e.into_inner());
    let dir = Dir::new("packets");
    let path = dir.0.join("s");
    let listener = Listener::bind(&path, 0o640).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let client = Conn::connect(&path).unwrap();
    let server = listener.accept().unwrap();
    assert_eq!(server.peer().unwrap().pid, me().get());
    match server.peer_pidfd() {
        Ok(fd) => assert!(!PidFd::from_owned(fd, me()).has_exited().unwrap()),
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOPROTOOPT)),
    }
    let mut buffer = [0; 16];
    assert_eq!(server.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    client.send(b"one", &[]).unwrap();
    let (mut r, mut w) = io::pipe().unwrap();
    client.send(b"two", &[w.as_fd(), r.as_fd()]).unwrap();
    client.send(&[7; 20], &[]).unwrap();
    let got = server.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..got.len], got.fds.len(), got.truncated), (&b"one"[..], 0, false));
    let mut got = server.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..got.len], got.fds.len(), got.truncated), (&b"two"[..], 2, false));
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(got.fds[0].as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
    w.write_all(b"x").unwrap();
    drop(w);
    let through: OwnedFd = got.fds.remove(0);
    io::PipeWriter::from(through).write_all(b"y").unwrap();
    let mut text = String::new();
    r.read_to_string(&mut text).unwrap();
    assert_eq!(text, "xy");
    let got = server.recv(&mut buffer).unwrap();
    assert_eq!((got.len, got.truncated), (16, true));
    assert!(client.send(b"", &[]).is_err());
    assert!(client.send(b"x", &vec![r.as_fd(); MAX_FDS + 1]).is_err());
    client.send(b"x", &vec![r.as_fd(); MAX_FDS]).unwrap();
    assert_eq!(server.recv(&mut buffer).unwrap().fds.len(), MAX_FDS);
    drop(client);
    assert_eq!(server.recv(&mut buffer).unwrap().len, 0);
    assert_eq!(server.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_new_listener_takes_the_path() {
    let dir = Dir::new("listener");
    let path = dir.0.join("s");
    let _old = Listener::bind(&path, 0o600).unwrap();
    let new = Listener::bind(&path, 0o600).unwrap();
    let _client = Conn::connect(&path).unwrap();
    new.accept().unwrap();
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
    let long = dir.0.join("x".repeat(200));
    assert_eq!(Listener::bind(&long, 0o600).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn only_sealed_memory_is_read() {
    let sealed = memfd::seal_bytes(c"test", b"hello").unwrap();
    assert_eq!(memfd::read_all(&sealed, 5).unwrap(), b"hello");
    assert_eq!(memfd::read_all(&sealed, 4).unwrap_err().errno(), libc::EFBIG);
    let mut file = std::fs::File::from(sealed);
    assert!(file.write_all(b"x").is_err());
    assert!(file.set_len(0).is_err());
    let open = memfd::create(c"test").unwrap();
    assert_eq!(memfd::read_all(&open, 5).unwrap_err().errno(), libc::EPERM);
    let (pipe, _w) = io::pipe().unwrap();
    assert_eq!(memfd::read_all(&pipe, 5).unwrap_err().errno(), libc::EINVAL);
}

#[test]
fn siginfo_arrives_as_it_was_sent() {
    let number = libc::SIGRTMIN() + 3;
    let signals = SignalFd::block(&[number]).unwrap();
    let info = SigInfo::queued(number, 1234, 5678, 0x1_0000_0002);
    assert_eq!((info.signo(), info.code(), info.pid(), info.uid()), (number, libc::SI_QUEUE, 1234, 5678));
    assert_eq!(info.value(), 0x1_0000_0002);
    // To this thread: the others of the test process do not block it.
    // SAFETY: takes nothing, cannot fail.
    let tid = Pid::new(unsafe { libc::gettid() }).unwrap();
    signal::queue_info_thread(me(), tid, number, &info).unwrap();
    assert_eq!(signals.read().unwrap(), Some((number, 1234)));
    assert_eq!(signals.read().unwrap(), None);
    for bad in [0, -1, 65] {
        assert_eq!(signal::kill(me(), bad).unwrap_err().errno(), libc::EINVAL);
    }
    assert_eq!(signal::kill_group(Pid::new(1).unwrap(), 9).unwrap_err().errno(), libc::EINVAL);
    signal::probe(me()).unwrap();
}

#[test]
fn clocks_advance() {
    let (a, b) = (time::monotonic_ns(), time::boottime_ns());
    assert!(a > 0 && b >= a / 2 && time::monotonic_ns() >= a && time::realtime_ns() > b);
}

/// Root only.
#[test]
fn file_capabilities_are_read_back() {
    let dir = Dir::new("caps");
    let file = dir.0.join("ghost");
    std::fs::write(&file, "x").unwrap();
    let wanted = [caps::CHECKPOINT_RESTORE];
    assert!(!caps::has_file_caps(&file, &wanted).unwrap());
    caps::set_file_caps(&file, &wanted).unwrap();
    assert!(caps::has_file_caps(&file, &wanted).unwrap());
    assert!(!caps::has_file_caps(&file, &[caps::SYS_ADMIN]).unwrap());
    let error = caps::set_file_caps(&dir.0.join("none"), &wanted).unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT);
}

/// Root only.
#[test]
fn a_space_has_an_init_of_its_own() {
    let _copies = COPIES.lock().unwrap_or_else(|e| e.into_inner());
    let dir = Dir::new("space");
    let (script, out) = (dir.0.join("init"), dir.0.join("out"));
    // The shell is told nothing by arguments, as a ghost is not.
    let text = format!(
        "#!/bin/sh\n{{ echo $$ $BPROC_ROLE $BPROC_GHOST; ls -d /proc/[0-9]*; grep -c . /proc/1/environ; \
         cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets; }} > {}\nexec sleep 50\n",
        out.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    for offsets in [None, Some(TimeOffsets { monotonic: 500_000_000_250_000_000, boottime: -1_500_000_000 })] {
        let options = Options {
            lease_s: 0,
            argv0: OsStr::new("bproc-init test node 0"),
            time_offsets: offsets,
            mount_proc: true,
            oom_score_adj: Some(1),
            tied: true,
        };
        let init = spawn_init(&script, &dir.0.join("sock"), options).unwrap();
        let process = Process::open(init.pidfd.pid()).unwrap();
        assert_ne!(init.pid_ns, own_pid_ns().unwrap());
        assert_eq!(process.pid_ns().unwrap(), init.pid_ns);
        let (stat, status) = (process.stat().unwrap(), process.status().unwrap());
        assert_eq!(status.ns_pids, [stat.pid, 1]);
        assert_eq!((stat.ppid, stat.session, stat.pgrp), (me().get(), stat.pid, stat.pid));
        let adj = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", stat.pid)).unwrap();
        assert_eq!(adj.trim(), "1");
        // Its script ends by becoming sleep.
        while process.stat().unwrap().comm != b"sleep" {
            std::thread::yield_now();
        }
        let text = std::fs::read_to_string(&out).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(format!("1 2 {}", dir.0.join("sock").display()).as_str()));
        assert_eq!(lines.next(), Some("/proc/1"));
        if offsets.is_some() {
            let words: Vec<_> = text.split_whitespace().collect();
            assert!(words.windows(3).any(|w| w == ["monotonic", "500000000", "250000000"]), "{text}");
            assert!(words.windows(3).any(|w| w == ["boottime", "-2", "500000000"]), "{text}");
        }
        init.pidfd.send_signal(libc::SIGKILL).unwrap();
        assert!(init.pidfd.wait_exit(Duration::from_secs(30)).unwrap());
        assert_eq!(init.pidfd.try_reap().unwrap(), Some(Status::Killed { signal: 9, core: false }));
        let missing = spawn_init(&dir.0.join("none"), &dir.0.join("sock"), options).unwrap_err();
        assert_eq!(missing.errno(), libc::ENOENT);
        assert!(std::path::Path::new("/proc/1/environ").exists(), "the machine's /proc stays");
    }
}
