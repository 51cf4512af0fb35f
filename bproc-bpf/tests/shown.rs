//! What `/proc` shows of ghosts: their processes' numbers, to each reader, and of others nothing but what is so.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use bproc_bpf::Role;
use bproc_common::shown::{Numbers, Shown};
use common::{fork, kill, monitor, pipe, read_byte, wait};

const BUSY: Numbers =
    Numbers { state: b'R', utime: 123_456, stime: 789, threads: 12, vsize: 9_876_543_488, rss: 654_321 * 4096 };

/// What `ps` would read: all at once.
fn text(pid: i32, name: &str) -> String {
    let mut bytes = [0; 4096];
    let file = File::open(format!("/proc/{pid}/{name}")).expect("open");
    let length = (&file).read(&mut bytes).expect("read");
    assert_eq!((&file).read(&mut [0; 10]).expect("read on"), 0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Fields from the state on, which is the first.
fn stat(pid: i32) -> Vec<String> {
    let text = text(pid, "stat");
    let (_, rest) = text.rsplit_once(") ").expect("name");
    rest.split_whitespace().map(str::to_owned).collect()
}

fn status(pid: i32, name: &str) -> String {
    let text = text(pid, "status");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

/// State, times, threads and sizes.
fn numbers(pid: i32) -> [String; 6] {
    let fields = stat(pid);
    [3, 14, 15, 20, 23, 24].map(|field| fields[field - 3].clone())
}

#[test]
fn readers_are_shown_the_process() {
    let Some(monitor) = monitor(Role::Master) else { return };
    if let Some(missing) = monitor.features().iter().find(|f| f.name.starts_with("shown_") && !f.attached) {
        // A refusal by the verifier is no property of the kernel.
        assert!(!missing.why.contains("processed "), "{}", missing.why);
        eprintln!("skipped: this kernel refuses {}", missing.name);
        return;
    }
    let control = monitor.control();
    let (stay, _go) = pipe();
    let pid = fork(|| {
        read_byte(&stay);
        0
    });
    while stat(pid)[0] != "S" {
        std::thread::yield_now();
    }
    let own = stat(pid);
    let host = pid as u32;
    control.show(host, &Shown::new(&BUSY)).expect("show");
    // Nobody said that it is a ghost.
    assert_eq!(stat(pid), own);
    control.add_ghost(host).expect("ghost");
    let expected = ["R", "123456", "789", "12", "9876543488", "654321"].map(str::to_owned);
    assert_eq!(numbers(pid), expected);
    let shown = stat(pid);
    assert_eq!(shown.len(), own.len());
    for kept in [4, 5, 6, 7, 8, 9, 18, 19, 22, 38, 52] {
        assert_eq!(shown[kept - 3], own[kept - 3], "field {kept}");
    }
    assert_eq!(["State:", "VmSize:", "VmRSS:"].map(|name| status(pid, name)), ["R", "9645062", "2617284"]);
    assert_eq!(status(pid, "Pid:"), pid.to_string());
    // A part of it: as it is, or of the process, but never another length.
    let file = File::open(format!("/proc/{pid}/stat")).expect("open");
    let mut part = [0; 20];
    assert_eq!((&file).read(&mut part).expect("read"), 20);
    assert!(part.starts_with(pid.to_string().as_bytes()));
    let mut all = [0; 4096];
    let length = file.read_at(&mut all, 0).expect("read again");
    assert_eq!(&all[..part.len()], &part);
    assert!(all[..length].ends_with(b"\n"));
    // Others are as they are, also right after.
    let mine = stat(std::process::id() as i32);
    assert_ne!(mine[14 - 3], "123456");
    // Stopped here is stopped.
    kill(pid, libc::SIGSTOP);
    while numbers(pid)[0] != "T" {
        std::thread::yield_now();
    }
    assert_eq!(numbers(pid)[1..], expected[1..]);
    assert_eq!(status(pid, "State:"), "T");
    control.show_itself(host).expect("itself");
    assert_eq!(stat(pid)[23 - 3], own[23 - 3]);
    control.show(host, &Shown::new(&BUSY)).expect("show");
    control.show_none().expect("none");
    assert_eq!(stat(pid)[23 - 3], own[23 - 3]);
    kill(pid, libc::SIGKILL);
    wait(pid);
    eprintln!("EXERCISED eBPF: fexit shows processes of nodes in /proc");
}
