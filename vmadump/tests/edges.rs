//! Refusals with their reasons, other bodies, other users, and ways back.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Traveller, compile, dir, in_namespace};
use vmadump::capture::{Options, freeze};
use vmadump::restore::{Body, RestoreOptions, Restorer, Through};
use vmadump::{Error, Refusal};

const LIMIT: Duration = Duration::from_secs(30);

fn counting() -> Traveller {
    let mut program = Traveller::start(Command::new(compile("count", &[])).arg("30"));
    assert_eq!(program.line(), "0");
    program
}

fn rest(mut program: Traveller, from: u32) {
    for i in from..30 {
        assert_eq!(program.line(), i.to_string());
    }
    let (rest, status) = program.end();
    assert_eq!((rest.as_str(), status), ("", 7 << 8));
}

#[test]
fn a_freeze_leaves_no_trace() {
    in_namespace("a_freeze_leaves_no_trace", LIMIT, || {
        let try_it = |program: &Traveller| {
            let frozen = freeze(program.pid, &Options::default()).unwrap();
            let maps = std::fs::read(format!("/proc/{}/maps", program.pid)).unwrap();
            assert!(frozen.write_image(std::io::sink()).unwrap() > 0);
            frozen.resume().unwrap();
            assert_eq!(std::fs::read(format!("/proc/{}/maps", program.pid)).unwrap(), maps);
        };
        // One that never ends, and one that is counted.
        let mut program = Traveller::start(Command::new("sh").args(["-c", "echo 0; while :; do :; done"]));
        assert_eq!(program.line(), "0");
        (0..100).for_each(|_| try_it(&program));
        let program = counting();
        try_it(&program);
        rest(program, 1);
    });
}

/// Threads end in every moment of a stop, also while another one is waited for.
#[test]
fn threads_that_end_while_it_is_stopped() {
    in_namespace("threads_that_end_while_it_is_stopped", 2 * LIMIT, || {
        let mut program = Traveller::start(&mut Command::new(compile("brief", &["-DUNTIL_TOLD"])));
        assert_eq!(program.line(), "round 0");
        // As often as there is time for.
        let (began, mut frozen) = (Instant::now(), 0);
        while frozen < 100 && began.elapsed() < LIMIT / 2 {
            match freeze(program.pid, &Options::default()) {
                Ok(process) => process.resume().unwrap(),
                // Seen in the middle of a vfork.
                Err(Error::Refused(_)) => continue,
                Err(error) => panic!("after {frozen}: {error}"),
            }
            frozen += 1;
        }
        // SAFETY: our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(program.pid, libc::SIGTERM) }, 0);
        assert_eq!(program.end(), (String::new(), 42 << 8));
    });
}

/// It is in the middle of one call when it travels, and makes it again for the rest of its time.
#[test]
fn a_sleep_goes_on_to_its_end() {
    in_namespace("a_sleep_goes_on_to_its_end", LIMIT, || {
        let script = "$| = 1; print \"ready\\n\"; $t = time; sleep 2; print time - $t, \"\\n\"";
        let mut program = Traveller::start(Command::new("perl").args(["-e", script]));
        assert_eq!(program.line(), "ready");
        let call = || std::fs::read_to_string(format!("/proc/{}/syscall", program.pid)).unwrap_or_default();
        let sleeps = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].map(|number| format!("{number} "));
        while !sleeps.iter().any(|number| call().starts_with(number)) {
            std::thread::yield_now();
        }
        program.travel();
        let slept: u32 = program.line().parse().unwrap();
        assert!((2..10).contains(&slept), "{slept} s");
        assert_eq!(program.end(), (String::new(), 0));
    });
}

/// The tool writes into what is there already, and replaces files only, readable for their owner alone.
#[test]
fn an_image_goes_where_its_name_leads() {
    in_namespace("an_image_goes_where_its_name_leads", LIMIT, || {
        let program = counting();
        let place = dir().join("names");
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let path = |name: &str| place.join(name);
        let dump = |name: &str| {
            let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
            tool.arg("dump").arg(program.pid.to_string()).arg(path(name)).output().unwrap()
        };
        let kind = |name: &str| std::fs::symlink_metadata(path(name)).unwrap();
        assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
        let reader = {
            let fifo = path("fifo");
            std::thread::spawn(move || std::fs::read(fifo).unwrap())
        };
        assert!(dump("fifo").status.success());
        assert!(kind("fifo").file_type().is_fifo() && reader.join().unwrap().len() > 10_000);
        std::os::unix::fs::symlink("whole", path("link")).unwrap();
        std::fs::write(path("whole"), "former").unwrap();
        assert!(dump("link").status.success());
        assert!(kind("link").is_symlink() && kind("whole").len() > 10_000);
        assert_eq!(kind("whole").mode() & 0o777, 0o600);
        std::fs::create_dir(path("directory")).unwrap();
        let refused = dump("directory");
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("it is a directory"));
        assert!(!path("directory.partial").exists());
        rest(program, 1);
    });
}

#[test]
fn a_failing_writer_leaves_the_process_running() {
    in_namespace("a_failing_writer_leaves_the_process_running", LIMIT, || {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0 = self.0.checked_sub(buf.len()).ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(buf.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let program = counting();
        for room in [0, 100, 10_000, 50_000] {
            let frozen = freeze(program.pid, &Options::default()).unwrap();
            assert!(matches!(frozen.write_image(Full(room)), Err(Error::Io { .. })));
        }
        rest(program, 1);
    });
}

/// It has a descriptor above its limit, and so have the bodies, of which one may not even have so many as that.
#[test]
fn descriptors_above_the_limit() {
    in_namespace("descriptors_above_the_limit", LIMIT, || {
        let script = "exec 120</dev/zero; ulimit -Sn 100; echo 0; while :; do :; done";
        let mut program = Traveller::start(Command::new("bash").args(["-c", script]));
        assert_eq!(program.line(), "0");
        program.dump_and_end();
        let null = File::open("/dev/null").unwrap();
        for limit in [60, 100, 1000] {
            let command = format!("ulimit -Sn {limit}; exec sleep 60");
            let mut body = Command::new("bash").args(["-c", &command]).spawn().unwrap();
            let pid = body.id() as i32;
            while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
                std::thread::yield_now();
            }
            let fds = vec![(0, null.as_fd()), (1, null.as_fd())];
            let options = RestoreOptions { body: Body::Into(pid), fds, ..RestoreOptions::default() };
            let prepared = Restorer::prepare(File::open(&program.image).unwrap(), &options).unwrap();
            prepared.go().unwrap();
            assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/120")).unwrap(), Path::new("/dev/zero"));
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
            assert_eq!(line.split_whitespace().nth(3), Some("100"), "{line}");
            body.kill().unwrap();
            body.wait().unwrap();
        }
    });
}

#[test]
fn into_another_process_through_a_reader() {
    in_namespace("into_another_process_through_a_reader", LIMIT, || {
        let mut program = counting();
        program.dump_and_end();
        let mut body = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = body.id() as i32;
        let options = RestoreOptions { body: Body::Into(pid), ..RestoreOptions::default() };
        let mut image = File::open(&program.image).unwrap();
        let null = File::open("/dev/null").unwrap();
        let out = File::create(dir().join("into")).unwrap();
        let options = RestoreOptions { fds: vec![(0, null.as_fd()), (1, out.as_fd())], ..options };
        let prepared = Restorer::prepare(Through(&mut image), &options).unwrap();
        assert_eq!(prepared.go().unwrap(), pid);
        assert_eq!(body.wait().unwrap().code(), Some(7));
        let text = std::fs::read_to_string(dir().join("into")).unwrap();
        assert!(text.ends_with("28\n29\n"), "{text}");
        // And by the target itself, from a descriptor that is handed over.
        let mut body = Command::new("sleep").arg("60").spawn().unwrap();
        let options = RestoreOptions { body: Body::Into(body.id() as i32), ..options };
        Restorer::prepare(File::open(&program.image).unwrap(), &options).unwrap().go().unwrap();
        assert_eq!(body.wait().unwrap().code(), Some(7));
    });
}

/// An image on its way; in the middle its body gets signals.
struct Signalled {
    image: File,
    body: i32,
    reads: u32,
    at: u32,
    signals: &'static [i32],
}

impl Read for Signalled {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.reads += 1;
        if self.reads == self.at {
            for signal in self.signals {
                // SAFETY: plain numbers; a child of ours that was not reaped.
                unsafe { libc::kill(self.body, *signal) };
            }
        }
        // In small pieces, so that there are many.
        let most = buf.len().min(4096);
        self.image.read(&mut buf[..most])
    }
}

/// Stops and continuations act on what is half built as on any process: the latest counts.
#[test]
fn stopped_and_continued_while_it_is_built() {
    in_namespace("stopped_and_continued_while_it_is_built", LIMIT, || {
        const CONT: i32 = libc::SIGCONT;
        const STOP: i32 = libc::SIGSTOP;
        for stopped in [false, true] {
            let mut program = counting();
            if stopped {
                // SAFETY: plain numbers; a child of ours that was not reaped.
                unsafe { libc::kill(program.pid, STOP) };
                assert!(stops_first(program.pid));
            }
            program.dump_and_end();
            let mut reads = 1;
            let cases: [(&'static [i32], bool); 5] =
                [(&[], stopped), (&[CONT], false), (&[STOP], true), (&[STOP, CONT], false), (&[CONT, STOP], true)];
            for (signals, stops) in cases {
                for part in 0..if signals.is_empty() { 1 } else { 2 } {
                    let mut body = Command::new("sleep").arg("60").spawn().unwrap();
                    let pid = body.id() as i32;
                    // Not with the first: nothing is done to the body before the header has come.
                    let at = (reads * (part + 1) / 3).max(2);
                    let image = File::open(&program.image).unwrap();
                    let mut image = Signalled { image, body: pid, reads: 0, at, signals };
                    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
                    let fds = vec![(0, null.as_fd()), (1, null.as_fd()), (2, null.as_fd())];
                    let options = RestoreOptions { body: Body::Into(pid), fds, ..RestoreOptions::default() };
                    Restorer::prepare(Through(&mut image), &options).unwrap().go().unwrap();
                    reads = image.reads;
                    assert!(reads > 8 && at <= reads);
                    let what = format!("stopped {stopped}, {signals:?} at {at} of {reads}");
                    assert_eq!(stops_first(pid), stops, "{what}");
                    if stops {
                        // SAFETY: plain numbers; a child of ours that was not reaped.
                        unsafe { libc::kill(pid, CONT) };
                    }
                    assert_eq!(body.wait().unwrap().code(), Some(7), "{what}");
                }
            }
        }
    });
}

/// A SIGCONT that its body has not taken when it is seized acts on the process.
#[test]
fn continued_before_it_is_built() {
    in_namespace("continued_before_it_is_built", LIMIT, || {
        let mut program = counting();
        // SAFETY: plain numbers; a child of ours that was not reaped.
        unsafe { libc::kill(program.pid, libc::SIGSTOP) };
        assert!(stops_first(program.pid));
        program.dump_and_end();
        let mut body = Command::new("sleep");
        // SAFETY: sets the mask of the child only.
        unsafe {
            body.arg("60").pre_exec(|| {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
                Ok(())
            });
        }
        let mut body = body.spawn().unwrap();
        let pid = body.id() as i32;
        // SAFETY: plain numbers; a child of ours that was not reaped.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let fds = vec![(0, null.as_fd()), (1, null.as_fd()), (2, null.as_fd())];
        let options = RestoreOptions { body: Body::Into(pid), fds, ..RestoreOptions::default() };
        Restorer::prepare(File::open(&program.image).unwrap(), &options).unwrap().go().unwrap();
        assert!(!stops_first(pid));
        assert_eq!(body.wait().unwrap().code(), Some(7));
    });
}

/// Whether this child of ours stops rather than ends; it is left to be waited for.
fn stops_first(pid: i32) -> bool {
    // SAFETY: a siginfo is plain numbers, and outlives the call that fills it.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
        assert_eq!(libc::waitid(libc::P_PID, pid as u32, &raw mut info, options), 0);
        info
    };
    info.si_code == libc::CLD_STOPPED
}

#[test]
fn becomes_another_program_in_place() {
    in_namespace("becomes_another_program_in_place", LIMIT, || {
        for (name, arg) in [("count", "1000"), ("threads", "6")] {
            let mut program = Traveller::start(Command::new(compile(name, &[])).arg(arg));
            program.line();
            let frozen = freeze(program.pid, &program.options).unwrap();
            let failed = frozen.become_exec(b"/no/such/ghost", &[b"x"], &[]).err().unwrap();
            assert_eq!(failed.why.errno(), libc::ENOENT);
            let argv: [&[u8]; 3] = [b"sh", b"-c", b"echo $0 $GHOST; exit 5"];
            let ghost = failed.frozen.unwrap().become_exec(b"/bin/sh", &argv, &[b"GHOST=yes"]).map_err(|e| e.why);
            ghost.unwrap().release().unwrap();
            let status = program.reap();
            assert_eq!(status, 5 << 8, "{name}");
            let mut line = program.line();
            while line.chars().next().is_some_and(|c| c.is_ascii_digit() || c == 'r') {
                line = program.line();
            }
            assert_eq!(line, "sh yes");
        }
    });
}

#[test]
fn aborted_before_it_runs() {
    in_namespace("aborted_before_it_runs", LIMIT, || {
        let mut program = counting();
        program.dump_and_end();
        let options = RestoreOptions { body: Body::Pid(program.pid), ..RestoreOptions::default() };
        let prepared = program.prepare(File::open(&program.image).unwrap(), options);
        prepared.abort();
        assert!(!std::path::Path::new(&format!("/proc/{}", program.pid)).exists());
        // A damaged image leaves nothing behind either.
        let mut bytes = std::fs::read(&program.image).unwrap();
        let at = bytes.len() - 5000;
        bytes[at] ^= 1;
        std::fs::write(&program.image, &bytes).unwrap();
        let options = RestoreOptions { body: Body::Pid(program.pid), ..RestoreOptions::default() };
        assert!(matches!(Restorer::prepare(File::open(&program.image).unwrap(), &options), Err(Error::Format(_))));
        assert!(!std::path::Path::new(&format!("/proc/{}", program.pid)).exists());
    });
}

#[test]
fn another_user_keeps_what_he_is() {
    in_namespace("another_user_keeps_what_he_is", LIMIT, || {
        let bin = "/tmp/vmadump-test-count";
        std::fs::copy(compile("count", &[]), bin).unwrap();
        let command = format!(
            "umask 027; ulimit -Sn 77; cd /usr; exec setpriv --reuid=1234 --regid=2345 --groups=11,12 --no-new-privs --bounding-set=-sys_admin nice -n 5 {bin} 30"
        );
        let mut program = Traveller::start(Command::new("sh").args(["-c", &command]));
        program.line();
        let look = |pid: i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let keys = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Umask", "Sig", "Name"];
            let kept: Vec<&str> =
                status.lines().filter(|l| keys.iter().any(|k| l.starts_with(k)) && !l.starts_with("SigQ")).collect();
            let nice =
                std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().split(' ').nth(18).unwrap().to_owned();
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let links = ["cwd", "exe"].map(|l| std::fs::read_link(format!("/proc/{pid}/{l}")).unwrap());
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            format!("{kept:?} {nice} {limits} {links:?} {cmdline:?}")
        };
        let before = look(program.pid);
        program.travel();
        assert_eq!(look(program.pid), before);
        std::fs::remove_file(bin).unwrap();
        for i in 1..30 {
            assert_eq!(program.line(), i.to_string());
        }
        assert_eq!(program.end().1, 7 << 8);
    });
}

#[test]
fn an_image_gives_nobody_more_than_he_has() {
    in_namespace("an_image_gives_nobody_more_than_he_has", LIMIT, || {
        let mut program = counting();
        program.dump_and_end();
        let owner = vmadump::plan::Owner { uid: 1234, gid: 1234, groups: vec![], rights: Default::default() };
        let options = RestoreOptions { owner: Some(owner), ..RestoreOptions::default() };
        let refused = Restorer::prepare(File::open(&program.image).unwrap(), &options).err().unwrap();
        assert!(matches!(refused, Error::Refused(Refusal::Rights(_))), "{refused}");
        // Somebody vouches for what root is, but for one capability.
        let check = |caps: u64| {
            let rights = vmadump::plan::Rights { uids: vec![0], gids: vec![0], caps, ..Default::default() };
            let owner = vmadump::plan::Owner { uid: 1234, gid: 1234, groups: (0..100).collect(), rights };
            let options = RestoreOptions { owner: Some(owner), ..RestoreOptions::default() };
            Restorer::check(File::open(&program.image).unwrap(), &options)
        };
        assert!(check(!0).is_ok());
        let refused = check(!1).err().unwrap();
        assert!(matches!(&refused, Error::Refused(Refusal::Rights(what)) if what == "capabilities 0x1"), "{refused}");
    });
}

#[test]
fn open_files_go_along_or_are_named() {
    in_namespace("open_files_go_along_or_are_named", LIMIT, || {
        let file = dir().join("carried");
        std::fs::write(&file, "").unwrap();
        let code = format!(
            "exec 5>>{f} 6</dev/null 7>&5; i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; echo $i >&5; echo $i >&7; sleep 0.02; done",
            f = file.display()
        );
        let mut program = Traveller::start(Command::new("bash").args(["-c", &code]));
        for i in 1..=20 {
            assert_eq!(program.line(), i.to_string());
            if i % 6 == 0 {
                program.travel();
            }
        }
        assert_eq!(program.end().1, 0);
        let expected: String = (1..=20).flat_map(|i| [format!("{i}\n"), format!("{i}\n")]).collect();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        let program = Traveller::start(Command::new("bash").args(["-c", "exec 9< <(sleep 60); sleep 60"]));
        let refused = loop {
            match freeze(program.pid, &program.options).map_err(|e| e.to_string()) {
                Err(why) if why.contains("(pipe)") => break why,
                // Still on its way there: its loader has other files open.
                Err(_) => std::thread::yield_now(),
                Ok(frozen) => frozen.resume().unwrap(),
            }
        };
        assert!(refused.contains("cannot be carried"), "{refused}");
    });
}

#[test]
fn a_changed_file_is_refused() {
    in_namespace("a_changed_file_is_refused", LIMIT, || {
        let bin = dir().join("changing");
        std::fs::copy(compile("count", &[]), &bin).unwrap();
        let mut program = Traveller::start(Command::new(&bin).arg("30"));
        program.options.flags = 0;
        program.line();
        program.dump_and_end();
        std::fs::remove_file(&bin).unwrap();
        let options = RestoreOptions::default();
        let refused = Restorer::prepare(File::open(&program.image).unwrap(), &options).err().unwrap();
        assert!(
            matches!(&refused, Error::Refused(Refusal::FileMissing { path, .. }) if path.ends_with("changing")),
            "{refused}"
        );
        std::fs::copy(compile("count", &["-g0"]), &bin).unwrap();
        let refused = Restorer::prepare(File::open(&program.image).unwrap(), &options).err().unwrap();
        assert!(matches!(refused, Error::Refused(Refusal::FileDiffers { .. })), "{refused}");
    });
}

#[test]
fn a_body_is_given_back_when_nothing_comes_of_it() {
    in_namespace("a_body_is_given_back_when_nothing_comes_of_it", LIMIT, || {
        for (name, arg) in [("count", "1000"), ("threads", "6")] {
            let mut program = Traveller::start(Command::new(compile(name, &[])).arg(arg));
            program.line();
            program.dump_and_end();
            let mut bytes = std::fs::read(&program.image).unwrap();
            let null = File::open("/dev/null").unwrap();
            let body = || Command::new("sleep").arg("60").spawn().unwrap();
            let argv: [&[u8]; 3] = [b"sh", b"-c", b"exit $BACK"];
            let fallback = vmadump::Program { path: b"/bin/sh", argv: &argv, envp: &[b"BACK=9"] };
            let elevate = vmadump::Program { path: b"/bin/true", argv: &[b"true"], envp: &[] };
            let options = |pid: i32| RestoreOptions {
                body: Body::Into(pid),
                fds: vec![(0, null.as_fd()), (1, null.as_fd())],
                elevate: Some(elevate),
                fallback: Some(fallback),
                ..RestoreOptions::default()
            };
            // Complete, and given up in the last moment.
            let mut first = body();
            let prepared = Restorer::prepare(File::open(&program.image).unwrap(), &options(first.id() as i32)).unwrap();
            prepared.abort();
            assert_eq!(first.wait().unwrap().code(), Some(9), "{name}");
            // Broken off in the middle.
            bytes.truncate(bytes.len() / 2);
            std::fs::write(&program.image, &bytes).unwrap();
            let mut second = body();
            assert!(Restorer::prepare(File::open(&program.image).unwrap(), &options(second.id() as i32)).is_err());
            assert_eq!(second.wait().unwrap().code(), Some(9), "{name}");
            // Refused before it was touched.
            std::fs::write(&program.image, b"no image").unwrap();
            let mut third = body();
            assert!(Restorer::prepare(File::open(&program.image).unwrap(), &options(third.id() as i32)).is_err());
            assert!(third.try_wait().unwrap().is_none());
            third.kill().unwrap();
            third.wait().unwrap();
        }
    });
}
