//! Two movers carry a real process over a real connection, plain and sealed. `cargo test -p bproc-mover --test pages --
//! --ignored --nocapture` measures 1 GiB (or `BPROC_TEST_MIB`). Needs root.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bproc_mover::wire::{
    AES_256_GCM, Done, FromMover, Key, Keys, Line, MAX_PACKET, Owner, Program, Receive, Report, Send, Task, ToMover,
};
use bproc_sys::seqpacket::Conn;
use prost::Message;

const LIMIT: Duration = Duration::from_secs(120);

/// Dies with this test, or when dropped.
struct Tied(Child);

impl Tied {
    fn spawn(command: &mut Command) -> Tied {
        // SAFETY: prctl takes no memory and no lock.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Tied(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Mover {
    _process: Tied,
    conn: Conn,
}

impl Mover {
    fn start() -> Mover {
        let (ours, theirs) = Conn::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bproc-mover"));
        let raw = theirs.as_fd().as_raw_fd();
        // SAFETY: dup2 takes no memory; the descriptor is open until after the spawn.
        unsafe {
            command
                .pre_exec(move || if libc::dup2(raw, 3) == 3 { Ok(()) } else { Err(std::io::Error::last_os_error()) });
        }
        let process = Tied::spawn(&mut command);
        Mover { _process: process, conn: ours }
    }

    fn tell(&self, task: Task, fds: &[BorrowedFd<'_>]) {
        self.conn.send(&ToMover { task: Some(task) }.encode_to_vec(), fds).unwrap();
    }

    fn hear(&self) -> Report {
        let mut fd = libc::pollfd { fd: self.conn.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, LIMIT.as_millis() as i32) };
        assert_eq!(ready, 1, "a mover says nothing");
        let mut buffer = vec![0; MAX_PACKET];
        let got = self.conn.recv(&mut buffer).unwrap();
        FromMover::decode(&buffer[..got.len]).unwrap().report.expect("a word")
    }
}

fn key(seed: u8) -> Option<Key> {
    Some(Key { key: vec![seed; 32], iv: vec![seed; 12], sequence: 1 })
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

/// Python that holds so much memory, and says its sum once a line comes.
fn holder(mib: usize) -> (Tied, BufReader<ChildStdout>) {
    let script = format!(
        "import os,sys,zlib\nm=bytearray(b''.join(os.urandom(1<<20) for i in range(4))*({mib}//4))\n\
         for i in range(0,len(m),4096): m[i:i+8]=i.to_bytes(8,'little')\n\
         print(zlib.crc32(m),flush=True)\nsys.stdin.readline()\nprint(zlib.crc32(m),flush=True)"
    );
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tied = Tied::spawn(&mut command);
    let output = BufReader::new(tied.0.stdout.take().unwrap());
    (tied, output)
}

/// Moves it. What the source says at the end.
fn carry(mib: usize, sealed: bool) -> Done {
    let (mut holder, mut output) = holder(mib);
    let mut before = String::new();
    output.read_line(&mut before).unwrap();
    let body = Tied::spawn(Command::new("/bin/sleep").arg("1000").stdin(Stdio::null()).stdout(Stdio::null()));
    let (near, far) = pair();
    let keys = |send, receive| Keys { suite: AES_256_GCM, send: key(send), receive: key(receive) };
    let target = Mover::start();
    let stdin = holder.0.stdin.take().unwrap();
    // What the process has as its streams, it gets as its streams.
    let open = |fd: i32, write: bool| {
        let path = format!("/proc/{}/fd/{fd}", holder.pid());
        std::fs::File::options().read(!write).write(write).open(path).unwrap()
    };
    let (input, writer) = (open(0, false), open(1, true));
    let receive = Receive {
        body: body.pid(),
        pid: holder.pid(),
        keys: sealed.then(|| keys(1, 2)),
        fds: vec![0, 1],
        ..Receive::default()
    };
    target.tell(Task::Receive(receive), &[far.as_fd(), input.as_fd(), writer.as_fd()]);
    let source = Mover::start();
    let stdio = bproc_mover::send::stdio(holder.pid());
    let keys = sealed.then(|| keys(2, 1));
    let send = Send { pid: holder.pid(), files: 2, stdio, ..Send::default() };
    source.tell(Task::Send(send), &[]);
    source.tell(Task::Line(Line { keys }), &[near.as_fd()]);
    drop((near, far));
    let expect = |mover: &Mover, what: fn(&Report) -> bool| {
        let report = mover.hear();
        assert!(what(&report), "{report:?}");
    };
    expect(&source, |r| matches!(r, Report::Frozen(_)));
    expect(&target, |r| matches!(r, Report::Ready(_)));
    target.tell(Task::Proceed(true), &[]);
    expect(&source, |r| matches!(r, Report::Committing(_)));
    source.tell(Task::Proceed(true), &[]);
    expect(&source, |r| matches!(r, Report::Leaving(_)));
    let Report::Done(arrived) = target.hear() else { panic!("not the end") };
    let Report::Done(done) = source.hear() else { panic!("not the end") };
    assert_eq!((arrived.number, done.number), (0, 0), "{} {}", arrived.message, done.message);
    drop((input, writer));
    let mut stdin = stdin;
    stdin.write_all(b"\n").unwrap();
    let mut after = String::new();
    output.read_line(&mut after).unwrap();
    assert_eq!(before, after, "its memory");
    drop(body);
    done
}

fn can() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    let can = root && std::path::Path::new("/usr/bin/python3").exists();
    if !can {
        println!("skipped: needs root and python3");
    }
    can
}

#[test]
fn a_process_goes_plain_and_sealed() {
    if can() {
        for sealed in [false, true] {
            assert!(carry(16, sealed).bytes > 16 << 20);
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    if !can() {
        return;
    }
    let mib = std::env::var("BPROC_TEST_MIB").ok().and_then(|m| m.parse().ok()).unwrap_or(1024);
    for round in 0..3 {
        let (mut a, mut b) = pair();
        let start = Instant::now();
        let writer = std::thread::spawn(move || {
            let chunk = vec![7; 1 << 20];
            (0..mib).for_each(|_| a.write_all(&chunk).unwrap());
        });
        let mut chunk = vec![0; 1 << 20];
        while b.read(&mut chunk).unwrap() > 0 {}
        writer.join().unwrap();
        let raw = start.elapsed().as_secs_f64();
        let [plain, sealed] = [false, true].map(|sealed| carry(mib, sealed).frozen_ns as f64 / 1e9);
        println!("round {round}: {mib} MiB: socket {raw:.3} s, plain {plain:.3} s, sealed {sealed:.3} s");
    }
}

/// A program that waits; compiled by the test.
fn compile(name: &str, flags: &[&str]) -> std::path::PathBuf {
    let program = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/programs/hold.c");
    let status = Command::new("cc").arg("-O2").args(flags).arg("-o").arg(&program).arg(source).status().unwrap();
    assert!(status.success());
    program
}

/// Moves a program that says a byte and waits into a body: what the source says at the end, and the mappings then.
fn moved(line: &[&str], program: &str, body: &mut Command) -> (Done, String) {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = Tied::spawn(&mut command);
    holder.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let body = Tied::spawn(body.stdin(Stdio::null()).stdout(Stdio::null()));
    let (near, far) = pair();
    let (target, source) = (Mover::start(), Mover::start());
    std::thread::sleep(Duration::from_millis(30));
    let fallback = Some(Program { path: program.as_bytes().to_vec(), envp: Vec::new() });
    let receive = Receive { body: body.pid(), pid: holder.pid(), fallback, ..Receive::default() };
    target.tell(Task::Receive(receive), &[far.as_fd()]);
    let stdio = bproc_mover::send::stdio(holder.pid());
    let send = Send { pid: holder.pid(), files: 1, flags: 6, stdio, ..Send::default() };
    source.tell(Task::Send(send), &[]);
    source.tell(Task::Line(Line::default()), &[near.as_fd()]);
    drop((near, far));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match target.hear() {
                    Report::Ready(_) => target.tell(Task::Proceed(true), &[]),
                    Report::Done(done) => return assert_eq!(done.number, 0, "{}", done.message),
                    _ => {}
                }
            }
        });
        loop {
            match source.hear() {
                Report::Committing(_) => source.tell(Task::Proceed(true), &[]),
                Report::Done(done) => {
                    assert_eq!(done.number, 0, "{}", done.message);
                    return done;
                }
                _ => {}
            }
        }
    });
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", body.pid())).unwrap();
    (done, maps)
}

#[test]
fn what_the_target_has_need_not_come() {
    if !can() {
        return;
    }
    let (fixed, dynamic) = (compile("at-home-static", &["-static"]), compile("at-home", &[]));
    let root = std::env::temp_dir().join(format!("nothing-at-home-{}", std::process::id()));
    // What the program opens for itself.
    std::fs::create_dir_all(root.join("dev")).unwrap();
    std::fs::write(root.join("dev/null"), "").unwrap();
    std::fs::copy(&fixed, root.join("body")).unwrap();
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    for program in [&fixed, &dynamic] {
        let line = [program.to_str().unwrap()];
        let (there, maps) = moved(&line, line[0], &mut Command::new(&fixed));
        assert!(maps.contains(&name(program)), "{maps}");
        // The same without any file of its own.
        let jail = root.clone();
        let mut body = Command::new("/body");
        // SAFETY: chroot takes no memory and no lock.
        unsafe {
            body.pre_exec(move || std::os::unix::fs::chroot(&jail).and_then(|()| std::env::set_current_dir("/")));
        }
        let (alone, maps) = moved(&line, "/body", &mut body);
        assert!(!maps.contains(&name(program)) && !maps.contains("libc"), "{maps}");
        assert!(there.bytes + (400 << 10) < alone.bytes, "{} and {} bytes", there.bytes, alone.bytes);
    }
    for program in [fixed, dynamic] {
        std::fs::remove_file(program).unwrap();
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// Everything that the target can know is told before the process is stopped, all at once.
#[test]
fn what_the_target_lacks_is_told_while_the_process_runs() {
    if !can() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("lacking-{}", std::process::id()));
    // What the body opens for itself, in a place of its own.
    std::fs::create_dir_all(dir.join("mine/dev")).unwrap();
    std::fs::write(dir.join("mine/dev/null"), "").unwrap();
    std::fs::write(dir.join("secret"), "").unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let hold = compile("lacks", &["-static"]);
    let script = format!(
        "import os, time\nos.closerange(3, 1000)\nos.chdir('{}')\nos.open('secret', os.O_RDWR); os.open('mine', os.O_RDONLY)\n\
         os.setgroups([12]); os.setgid(34); os.setuid(65534)\nos.write(1, b'r')\ntime.sleep(1000)",
        dir.display()
    );
    for (number, groups, root, wanted) in [
        (libc::ENOENT, vec![12], false, &["secret cannot be opened here: Permission denied"][..]),
        (libc::EOPNOTSUPP, vec![], false, &["secret cannot be opened here", "group 12"]),
        (
            libc::ENOENT,
            vec![12],
            true,
            &["secret cannot be opened here: No such", "mine cannot be opened here: No such"],
        ),
    ] {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = Tied::spawn(&mut command);
        holder.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let mut body = Command::new(&hold);
        let jail = dir.join("mine");
        if root {
            std::fs::copy(&hold, jail.join("body")).unwrap();
            body = Command::new("/body");
            // SAFETY: chroot takes no memory and no lock.
            unsafe {
                body.pre_exec(move || std::os::unix::fs::chroot(&jail).and_then(|()| std::env::set_current_dir("/")));
            }
        }
        let body = Tied::spawn(body.stdin(Stdio::null()).stdout(Stdio::null()));
        let (near, far) = pair();
        let (target, source) = (Mover::start(), Mover::start());
        let owner = Some(Owner { uid: 65534, gid: 34, groups, bounding: !0, ..Owner::default() });
        let receive = Receive { body: body.pid(), pid: holder.pid(), owner, ..Receive::default() };
        target.tell(Task::Receive(receive), &[far.as_fd()]);
        let stdio = bproc_mover::send::stdio(holder.pid());
        source.tell(Task::Send(Send { pid: holder.pid(), stdio, ..Send::default() }), &[]);
        source.tell(Task::Line(Line::default()), &[near.as_fd()]);
        drop((near, far));
        // The first word is the last one: it never stood still.
        let Report::Done(done) = source.hear() else { panic!("it was stopped") };
        assert!(wanted.iter().all(|words| done.message.contains(words)), "{done:?} instead of {wanted:?}");
        assert_eq!(done.number, number, "{done:?}");
        let Report::Done(done) = target.hear() else { panic!("it did something") };
        assert_ne!(done.number, 0);
    }
    std::fs::remove_file(hold).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
#[ignore = "a measurement"]
fn stands_still() {
    if !can() {
        return;
    }
    let runs = std::env::var("BPROC_TEST_RUNS").ok().and_then(|m| m.parse().ok()).unwrap_or(31);
    let (fixed, dynamic) = (compile("hold-static", &["-static"]), compile("hold", &[]));
    let (fixed, dynamic) = (fixed.to_str().unwrap(), dynamic.to_str().unwrap());
    let python =
        "import os, time\nos.write(1, b'r')\nn = os.open('/dev/null', 2)\nos.dup2(n, 1)\nos.close(n)\ntime.sleep(1000)";
    for (name, line) in
        [("static", &[fixed][..]), ("dynamic", &[dynamic]), ("python3", &["/usr/bin/python3", "-c", python])]
    {
        let mut all: Vec<u64> = (0..runs).map(|_| moved(line, fixed, &mut Command::new(fixed)).0.frozen_ns).collect();
        all.sort_unstable();
        let at = |part: usize| all[all.len() * part / 100] as f64 / 1e6;
        println!("{name}: {:.2} ms, {:.2} to {:.2} (10 % to 90 %) of {runs}", at(50), at(10), at(90));
    }
    std::fs::remove_file(fixed).unwrap();
    std::fs::remove_file(dynamic).unwrap();
}
