//! A skeleton becomes a program: what the program finds, and what is told when it cannot.

use bproc_common::exec::{Builder, Head, flag};
use bproc_common::ghost::{Role, ev, op};
use bproc_ghost_check::{Conn, Space, memfd, root_head, shell, siginfo};
use std::fs::File;
use std::io::{Read, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

/// Lets the skeleton become `sh -c SCRIPT` and gives what it prints; success shows as end of the connection.
fn output<'a>(conn: &mut Conn, head: Head, script: &str, change: impl FnOnce(&mut Builder<'a>)) -> String {
    output_if(conn, false, head, script, change)
}

/// [`output`]; `tried`: a child tries it before.
fn output_if<'a>(
    conn: &mut Conn,
    tried: bool,
    head: Head,
    script: &str,
    change: impl FnOnce(&mut Builder<'a>),
) -> String {
    let (mut reader, writer) = pipe().expect("a pipe");
    let block = shell(head, script, change);
    conn.send(op::EXEC, tried.into(), 0, &[], &[block.as_raw_fd(), writer.as_raw_fd()]);
    drop(writer);
    while let Some(packet) = conn.receive() {
        assert_ne!(packet.msg.op, ev::RESULT, "exec failed: {}", packet.msg.a);
    }
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    text
}

/// A block for one program without arguments but its name.
fn program(path: &str, cwd: &str, head: Head) -> File {
    let argv = [b"name".to_vec()];
    let builder = Builder { head, path: path.as_bytes(), cwd: cwd.as_bytes(), argv: &argv, ..Builder::default() };
    memfd(&builder.build().expect("a good block"))
}

#[test]
fn arguments_environment_and_descriptors() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    let text = output(&mut conn, root_head(), "echo $GREETING $# $$ $PPID; ls /proc/$$/fd; exit 42", |_| {});
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["hello", "0", "300", "1", "1"]);
    assert_eq!(space.report(ev::CHILD).msg.c, 42 << 8);
}

#[test]
fn descriptors_may_be_exchanged_and_lie_above_the_limit() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    let (mut reader, writer) = pipe().expect("a pipe");
    // The socket and the signalfd of the ghost are 0 and 1, the received ones follow: all of these collide.
    let files: Vec<_> = (0..8).map(|n| memfd(format!("file {n}").as_bytes())).collect();
    let numbers = [1, 8, 7, 6, 5, 4, 3, 0, 1500];
    let limits = [(u64::MAX, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, u64::MAX), (8 << 20, u64::MAX), (0, 0)];
    let mut limits = limits.to_vec();
    limits.extend([(u64::MAX, u64::MAX), (u64::MAX, u64::MAX), (64, 64)]);
    let script =
        "for n in 8 7 6 5 4 3 0; do cat /proc/$$/fd/$n; done; cat /proc/$$/fd/1500; set -- /proc/$$/fd/*; echo $#";
    let block = shell(root_head(), script, |b| {
        b.fds = &numbers;
        b.rlimits = &limits;
    });
    let mut fds = vec![block.as_raw_fd(), writer.as_raw_fd()];
    fds.extend(files.iter().map(AsRawFd::as_raw_fd));
    conn.send(op::EXEC, 0, 0, &[], &fds);
    drop(writer);
    assert!(conn.receive().is_none());
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    // Nine, and the directory that the shell reads to count them.
    assert_eq!(text.trim(), "file 0file 1file 2file 3file 4file 5file 6file 710");
}

#[test]
fn identity_limits_mask_and_place() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    let bit = |signal: i32| 1u64 << (signal - 1);
    let head = Head {
        ruid: 1001,
        euid: 1001,
        suid: 1001,
        rgid: 1002,
        egid: 1002,
        sgid: 1002,
        umask: 0o27,
        nice: 5,
        flags: flag::SETSID | flag::CWD_OPTIONAL,
        blocked: bit(libc::SIGUSR1) | bit(libc::SIGHUP),
        ignored: bit(libc::SIGPIPE) | bit(libc::SIGUSR2),
        cap_bounding: !(1 << 12),
        cap_inheritable: 1 << 10,
        cap_ambient: 1 << 10,
        ..root_head()
    };
    // A signal that waits in the ghost waits in the program.
    let queued = siginfo(libc::SIGHUP, libc::SI_QUEUE, 1, 0, 7);
    // The shell's own reading: to wait for a child it would unblock all.
    let script = "while read -r line; do echo $line; done </proc/$$/status; umask; pwd; ulimit -n; ulimit -Hn; ulimit -c; nice; cut -d' ' -f5,6 /proc/self/stat";
    let unlimited = (u64::MAX, u64::MAX);
    let limits = [unlimited, unlimited, unlimited, (8 << 20, u64::MAX), (512, 1024), unlimited, unlimited, (100, 200)];
    let directory = space.listener.directory().join("secret");
    std::fs::create_dir(&directory).expect("mkdir");
    let cwd = directory.to_str().expect("text").to_owned();
    assert_eq!(space.call_with(op::SIGNAL, 300, 0, &queued, &[]), 0);
    conn.report(ev::SIGNAL);
    let text = output(&mut conn, head, script, |b| {
        b.groups = &[7, 2000];
        b.rlimits = &limits;
        b.cwd = cwd.as_bytes();
    });
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_once(':').expect("a colon").1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid"), "1001 1001 1001 1001");
    assert_eq!(field("Gid"), "1002 1002 1002 1002");
    assert_eq!(field("Groups"), "7 2000");
    assert_eq!(u64::from_str_radix(&field("SigBlk"), 16).expect("hex"), head.blocked);
    assert_eq!(u64::from_str_radix(&field("SigIgn"), 16).expect("hex"), head.ignored);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).expect("hex"), 1 << 10, "{set}");
    }
    assert_eq!(u64::from_str_radix(&field("CapBnd"), 16).expect("hex") & 1 << 12, 0);
    let tail: Vec<_> = text.lines().skip_while(|l| l.contains(':')).collect();
    assert_eq!(tail, ["0027", &cwd, "100", "200", "1", "5", "300 300"]);
}

#[test]
fn settings_are_taken_over_as_far_as_the_machine_has_them() {
    const BATCH: u32 = 3;
    let mut space = Space::start();
    let script = "taskset -p $$; chrt -p $$ | head -1; cat /proc/$$/oom_score_adj /proc/$$/coredump_filter";
    let of = |space: &mut Space, pid, processors: &'static [u8]| {
        let mut conn = space.clone_child(pid, Role::Skeleton);
        let head = Head {
            flags: flag::SETTINGS,
            policy: BATCH,
            personality: u32::MAX,
            core_filter: 0x15,
            oom_score_adj: 123,
            ..root_head()
        };
        let text = output(&mut conn, head, script, |b| b.processors = processors);
        let last = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
        text.lines().map(last).collect::<Vec<_>>()
    };
    assert_eq!(of(&mut space, 300, &[1]), ["1", "SCHED_BATCH", "123", "00000015"]);
    // One that no machine has: all, as without any.
    let mut none = vec![0; 1000];
    none.push(128);
    let all = of(&mut space, 301, &[]);
    assert_eq!(of(&mut space, 302, none.leak()), all);
}

#[test]
fn a_pending_signal_goes_over_into_the_program() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    // 64 unacknowledged ones fill the ring: the next stays in the kernel.
    for value in 0..64 {
        let info = siginfo(40, libc::SI_QUEUE, 1, 0, value);
        assert_eq!(space.call_with(op::SIGNAL, 300, 0, &info, &[]), 0);
        conn.report(ev::SIGNAL);
    }
    for signal in [libc::SIGUSR1, libc::SIGWINCH] {
        let info = siginfo(signal, libc::SI_QUEUE, 1, 0, 7);
        assert_eq!(space.call_with(op::SIGNAL, 300, 0, &info, &[]), 0);
    }
    let waiting = 1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGWINCH - 1);
    let head = Head { blocked: waiting, ..root_head() };
    let text = output(&mut conn, head, "while read -r line; do echo $line; done </proc/$$/status", |_| {});
    let line = text.lines().find(|l| l.starts_with("ShdPnd")).expect("such a line");
    let pending = u64::from_str_radix(line.split_whitespace().nth(1).expect("a set"), 16).expect("hex");
    assert_eq!(pending, waiting);
}

#[test]
fn a_missing_directory_may_be_replaced_by_the_root() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    let head = Head { flags: flag::CWD_OPTIONAL, ..root_head() };
    assert_eq!(output(&mut conn, head, "pwd", |b| b.cwd = b"/no/such/place").trim(), "/");
    let mut conn = space.clone_child(301, Role::Skeleton);
    let block = program("/bin/true", "/no/such/place", root_head());
    assert_eq!(conn.call_with(op::EXEC, 0, 0, &[], &[block.as_raw_fd()]), -i64::from(libc::ENOENT));
}

#[test]
fn what_is_tried_first_and_fails_changes_nothing() {
    let mut space = Space::start();
    let mut conn = space.clone_child(300, Role::Skeleton);
    let head = || Head { flags: flag::SETSID, euid: 65534, ruid: 65534, suid: 65534, ..root_head() };
    for (path, reason) in [("/no/such/program", libc::ENOENT), ("/etc", libc::EACCES)] {
        let block = program(path, "/", head());
        assert_eq!(conn.call_with(op::EXEC, 1, 0, &[], &[block.as_raw_fd()]), -i64::from(reason), "{path}");
        let info = siginfo(libc::SIGUSR1, libc::SI_QUEUE, 1, 0, 7);
        assert_eq!(space.call_with(op::SIGNAL, 300, 0, &info, &[]), 0);
        conn.report(ev::SIGNAL);
    }
    // Only tried: nothing happens, whichever it is.
    for (path, reason) in [("/no/such/program", libc::ENOENT), ("/bin/true", 0)] {
        let block = program(path, "/", head());
        assert_eq!(conn.call_with(op::EXEC, 2, 0, &[], &[block.as_raw_fd()]), -i64::from(reason), "{path}");
    }
    assert_eq!(space.call(op::REAP, 300, 0), 0, "it lives");
    // What works is done, and once.
    let text = output_if(&mut conn, true, head(), "echo $$ $(id -u); kill -USR2 $$", |_| {});
    assert_eq!(text, "300 65534\n");
    assert_eq!(space.report(ev::CHILD).msg.c, i64::from(libc::SIGUSR2));
}

#[test]
fn failures_come_back_with_their_reason_and_end_the_process() {
    let mut space = Space::start();
    let mut pid = 300;
    let mut fails = |block: &File, reason: i32| {
        pid += 1;
        let mut conn = space.clone_child(pid, Role::Skeleton);
        assert_eq!(conn.call_with(op::EXEC, 0, 0, &[], &[block.as_raw_fd()]), -i64::from(reason));
        assert!(conn.receive().is_none());
        let end = space.report(ev::CHILD).msg;
        assert_eq!((end.a, end.c), (i64::from(pid), 127 << 8));
    };
    let text = std::env::temp_dir().join(format!("ghost-check-text-{}", std::process::id()));
    std::fs::write(&text, "no program").expect("write");
    let path = text.to_str().expect("text");
    fails(&program("/no/such/program", "/", root_head()), libc::ENOENT);
    fails(&program(path, "/", root_head()), libc::EACCES);
    std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    fails(&program(path, "/", root_head()), libc::ENOEXEC);
    std::fs::remove_file(&text).expect("remove");
    fails(&program("/bin/true", "/", Head { flags: flag::SETPGID, pgid: 4321, ..root_head() }), libc::EPERM);
    // Blocks that are no good.
    fails(&memfd(b"short"), libc::EINVAL);
    fails(&memfd(&[0; 4096]), libc::EINVAL);
    let argv = [b"a".to_vec(), b"b".to_vec()];
    let good = Builder { head: root_head(), path: b"/bin/true", cwd: b"/", argv: &argv, ..Builder::default() };
    let good = good.build().expect("a good block");
    // Every 8 bytes of head and tables in turn made absurd: refused or harmless, never a crash.
    for at in (16..232 + 32).step_by(8).filter(|at| (16..80).contains(at) || *at >= 232) {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&(u64::MAX - 3).to_ne_bytes());
        fails(&memfd(&bad), libc::EINVAL);
    }
    let mut open_end = good.clone();
    *open_end.last_mut().expect("bytes") = b'x';
    fails(&memfd(&open_end), libc::EINVAL);
    let block = program("/bin/true", "/", root_head());
    assert_eq!(space.call_with(op::EXEC, 0, 0, &[], &[block.as_raw_fd()]), -i64::from(libc::EINVAL), "init stays");
}
