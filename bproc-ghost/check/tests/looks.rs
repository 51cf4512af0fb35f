//! What others see of a ghost: its name and command line, its user, the siginfo of what it sends.

use bproc_common::ghost::{Role, ev, op};
use bproc_ghost_check::{Conn, Ghost, Listener, Space, binary, memfd, parts, siginfo};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn of(pid: i32, what: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/{what}")).expect("readable by root");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn line(pid: i32, name: &str) -> String {
    let status = of(pid, "status");
    let line = status.lines().find(|l| l.starts_with(name)).expect("such a line");
    line.split_once(':').expect("a colon").1.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn name_and_command_line() {
    let mut ghost = Ghost::start();
    let pid = ghost.pid();
    let conn = &mut ghost.conn;
    // Fields of stat from the third on, which comes after the name.
    let fields = || -> Vec<String> {
        let stat = of(pid, "stat");
        stat.rsplit_once(')').expect("a name").1.split_whitespace().map(String::from).collect()
    };
    let before = fields();
    assert_eq!(conn.call_with(op::NAME, 0, 0, b"a name) of 15b", &[]), 0);
    assert_eq!(of(pid, "comm"), "a name) of 15b\n");
    // With an end NUL and without, twice, by payload and by memfd.
    for _ in 0..2 {
        assert_eq!(conn.call_with(op::CMDLINE, 0, 0, b"sleep\x001000\0", &[]), 0);
        assert_eq!(of(pid, "cmdline"), "sleep\x001000\0");
    }
    assert_eq!(conn.call_with(op::CMDLINE, 0, 0, b"no end", &[]), 0);
    assert_eq!(of(pid, "cmdline"), "no end\0");
    let long: Vec<u8> = (0..50_000).flat_map(|n| format!("argument{n}\0").into_bytes()).collect();
    let file = memfd(&long);
    assert_eq!(conn.call_with(op::CMDLINE, long.len() as i64, 0, &[], &[file.as_raw_fd()]), 0);
    assert_eq!(of(pid, "cmdline").as_bytes(), long);
    let beyond = long.len() as i64 + 1;
    let invalid = -i64::from(libc::EINVAL);
    assert_eq!(conn.call_with(op::CMDLINE, beyond, 0, &[], &[file.as_raw_fd()]), invalid);
    assert_eq!(of(pid, "cmdline").len(), long.len());
    assert_eq!(conn.call_with(op::CMDLINE, -1, 0, &[], &[file.as_raw_fd()]), invalid);
    assert_eq!(conn.call(op::CMDLINE, 0, 0), 0);
    assert_eq!(of(pid, "cmdline"), "");
    assert_eq!(conn.call(op::NICE, 7, 0), 0);
    let after = fields();
    // Code, stack and data are where they were.
    for field in [26, 27, 28, 45, 46, 47] {
        assert_eq!(before[field - 3], after[field - 3], "field {field}");
    }
    assert_eq!(after[19 - 3], "7");
    // A clone inherits the looks and can change its own.
    let number = 3_900_000 + pid % 100_000;
    let mut child = ghost.conn.clone_child(&mut ghost.listener, number, Role::Ghost);
    assert_eq!(child.call_with(op::CMDLINE, 0, 0, b"child\0", &[]), 0);
    assert_eq!((of(number, "cmdline"), of(pid, "cmdline")), ("child\0".into(), String::new()));
    // Nobody else would end it.
    child.send(op::EXIT, 0, 0, &[], &[]);
    assert!(child.receive().is_none());
}

#[test]
fn holds_nothing_of_the_user() {
    let ghost = Ghost::start();
    let pid = ghost.pid();
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).expect("cwd").as_os_str(), "/");
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").count(), 2);
    assert_eq!(u64::from_str_radix(&line(pid, "SigBlk"), 16).expect("hex"), !(1 << 8 | 1 << 18));
    let kib: u64 = line(pid, "VmRSS").trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 128, "{kib} KiB resident");
}

#[test]
fn dies_with_its_parent() {
    let mut listener = Listener::new();
    let path = listener.path();
    let (program, me) = (binary(), std::process::id());
    let spawn = |parent: u32| {
        std::process::Command::new(&program)
            .env_clear()
            .env("BPROC_GHOST", &path)
            .env("BPROC_PDEATH", parent.to_string())
            .spawn()
            .expect("it starts")
    };
    // Another parent than told: at once.
    let status = spawn(me + 1).wait().expect("our child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    // The thread that started it ends.
    let mut child = std::thread::scope(|s| {
        let thread = s.spawn(|| {
            let child = spawn(me);
            (listener.accept(child.id() as i32), child)
        });
        thread.join().expect("the thread is fine").1
    });
    let status = child.wait().expect("our child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
}

#[test]
fn a_bad_environment_ends_it_and_a_false_init_does_nothing() {
    let listener = Listener::new();
    let run = |entries: &[(&str, &str)]| {
        let status = std::process::Command::new(binary()).env_clear().envs(entries.iter().copied()).status();
        status.expect("it starts").code()
    };
    let path = listener.path();
    let path = path.to_str().expect("text");
    assert_eq!(run(&[]), Some(64));
    assert_eq!(run(&[("BPROC_GHOST", "")]), Some(64));
    assert_eq!(run(&[("BPROC_GHOST", &"x".repeat(108))]), Some(64));
    assert_eq!(run(&[("BPROC_GHOST", path), ("BPROC_ROLE", "3")]), Some(64));
    assert_eq!(run(&[("BPROC_GHOST", path), ("BPROC_PDEATH", "many")]), Some(64));
    assert_eq!(run(&[("BPROC_GHOST", path), ("BPROC_ROLE", "2")]), Some(64), "init is pid 1 or nothing");
}

/// What arrives at `target` when `sender` is told to send this.
fn relayed(sender: &mut Conn, target: &mut Conn, thread: i64, info: [u8; 128]) -> (i32, i32, i32, u32, u64) {
    let pid = i64::from(target.pid());
    assert_eq!(sender.call_with(op::SIGNAL, pid, thread, &info, &[]), 0);
    let packet = target.report(ev::SIGNAL);
    target.ack(packet.msg.tag);
    parts(&packet.payload)
}

#[test]
fn a_relayed_signal_looks_as_if_sent_by_the_absent_sender() {
    let mut space = Space::start();
    let mut target = space.clone_child(500, Role::Skeleton);
    let mut other = space.clone_child(600, Role::Skeleton);
    let init = &mut space.init;
    let (user, queue, tkill, timer) = (libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL, -2);
    let term = libc::SIGTERM;
    // kill by pid 4242 of user 1234, which is not here; tgkill by the same.
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, user, 4242, 1234, 0)), (term, user, 4242, 1234, 0));
    assert_eq!(relayed(init, &mut target, 500, siginfo(term, tkill, 4242, 1234, 0)), (term, tkill, 4242, 1234, 0));
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, tkill, 4242, 1234, 0)), (term, tkill, 4242, 1234, 0));
    // SIGCHLD by a user is a signal like any other.
    let child = libc::SIGCHLD;
    assert_eq!(relayed(init, &mut target, 0, siginfo(child, user, 4242, 0, 0)), (child, user, 4242, 0, 0));
    // sigqueue and timers as they are.
    assert_eq!(relayed(init, &mut target, 0, siginfo(40, queue, 77, 5, 99)), (40, queue, 77, 5, 99));
    assert_eq!(relayed(init, &mut target, 500, siginfo(41, queue, 77, 5, 98)), (41, queue, 77, 5, 98));
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, timer, 1, 2, 3)), (term, timer, 1, 2, 3));
    // The sender is here as a skeleton: by itself. As somebody else's pid: by sigqueue.
    assert_eq!(relayed(&mut other, &mut target, 0, siginfo(term, user, 600, 0, 0)), (term, user, 600, 0, 0));
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, user, 600, 9, 0)), (term, queue, 600, 9, 0));
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, user, 0, 9, 0)), (term, queue, 0, 9, 0));
    // From the kernel: plainly.
    assert_eq!(relayed(init, &mut target, 0, siginfo(term, 0x80, 0, 0, 0)), (term, user, 1, 0, 0));
    let none = siginfo(term, user, 4242, 0, 0);
    assert_eq!(init.call_with(op::SIGNAL, 9999, 0, &none, &[]), -i64::from(libc::ESRCH));
    assert_eq!(init.call_with(op::SIGNAL, 500, 0, &siginfo(0, user, 4242, 0, 0), &[]), 0);
    assert_eq!(init.kept(ev::CHILD), 0, "the messengers are no children to tell of");
    // A skeleton with a user's identity has kept the rights for it.
    assert_eq!(other.call(op::CREDS, 1234, 1235), 0);
    assert_eq!(line(other.outer_pid(), "Uid"), "1234 1234 1234 1234");
    assert_eq!(line(other.outer_pid(), "Gid"), "1235 1235 1235 1235");
    assert_eq!(line(other.outer_pid(), "Groups"), "");
    assert_eq!(relayed(&mut other, &mut target, 0, siginfo(term, user, 4242, 77, 0)), (term, user, 4242, 77, 0));
    let mut child = other.clone_child(&mut space.listener, 700, Role::Skeleton);
    assert_eq!(child.hello.c, 600);
    assert_eq!(child.call(op::SETSID, 0, 0), 700);
}

#[test]
fn a_users_ghost_clones_by_file_capability_and_cannot_be_read() {
    const CHECKPOINT_RESTORE: u32 = 40;
    const USER: u32 = 65534;
    let listener = Listener::new();
    let program = listener.directory().join("bproc-ghost");
    // By another process: while this one has it open for writing, a child that some other test forks has too, and then
    // it cannot be executed.
    let copied = std::process::Command::new("cp").arg(binary()).arg(&program).status().expect("cp");
    assert!(copied.success(), "cp: {copied}");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    // vfs_cap_data: revision 2 and effective; permitted and inheritable, low words then high.
    let words: [u32; 5] = [0x0200_0001, 0, 0, 1 << (CHECKPOINT_RESTORE - 32), 0];
    let value: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let path = std::ffi::CString::new(program.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: path and name are NUL-terminated, the value is as long as told.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    assert_eq!(done, 0, "setxattr: {}", std::io::Error::last_os_error());
    let mut ghost = Ghost::start_as(listener, &program, Some(USER));
    let pid = ghost.pid();
    assert_eq!(line(pid, "Uid"), "65534 65534 65534 65534");
    assert_eq!(u64::from_str_radix(&line(pid, "CapEff"), 16).expect("hex"), 1 << CHECKPOINT_RESTORE);
    // ps takes the user from the directory in /proc; everything inside is root's, as the ghost is not dumpable.
    let owner = |what: &str| std::fs::metadata(format!("/proc/{pid}{what}")).expect("there").uid();
    assert_eq!(line(pid, "Uid").split(' ').nth(1), Some("65534"));
    assert_eq!(owner("/environ"), 0);
    let number = 3_800_000 + pid % 100_000;
    let mut child = ghost.conn.clone_child(&mut ghost.listener, number, Role::Ghost);
    assert_eq!((child.outer_pid(), child.hello.c), (number, i64::from(pid)));
    let mut grandchild = child.clone_child(&mut ghost.listener, number + 100_000, Role::Ghost);
    assert_eq!(line(number + 100_000, "Uid"), "65534 65534 65534 65534");
    assert_eq!(grandchild.call_with(op::CMDLINE, 0, 0, b"job\0-v\0", &[]), 0);
    assert_eq!(of(number + 100_000, "cmdline"), "job\0-v\0");
    assert_eq!(grandchild.call(op::CREDS, 0, 0), -i64::from(libc::EPERM));
    child.send(op::EXIT, 5, 0, &[], &[]);
    assert!(child.receive().is_none());
    assert_eq!(ghost.conn.call(op::WATCH_CHILDREN, 0, 0), 0);
    assert_eq!(ghost.conn.report(ev::CHILD).msg.c, 5 << 8);
    assert_eq!(ghost.conn.call(op::REAP, i64::from(number), 0), i64::from(number));
    grandchild.send(op::EXIT, 0, 0, &[], &[]);
    assert!(grandchild.receive().is_none());
}
