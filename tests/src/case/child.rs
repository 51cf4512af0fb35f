//! The obedient child: does what the lines on its standard input say, and answers each with a line.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use super::sys;

/// Where the handler writes what it got.
static RECORDS: AtomicI32 = AtomicI32::new(-1);
/// A child that nobody ends must not stay.
const LIFE: u32 = 120;
const PATIENCE: Duration = Duration::from_secs(10);

extern "C" fn record(_: i32, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a whole record to a handler with SA_SIGINFO; write(2) may be called in one, and less
    // than a page goes into a pipe at once.
    unsafe {
        let saved = *libc::__errno_location();
        libc::write(RECORDS.load(Ordering::Relaxed), info.cast(), size_of::<libc::siginfo_t>());
        *libc::__errno_location() = saved;
    }
}

/// Runs until told to end.
pub fn run() -> i32 {
    // Rust's runtime has ideas of its own about these.
    for signal in [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS] {
        sys::action(signal, libc::SIG_DFL, 0);
    }
    sys::alarm(LIFE);
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return 98;
    }
    // SAFETY: integers. Room for thousands: a handler that waits would wait for ever.
    unsafe { libc::fcntl(pipe[1], libc::F_SETPIPE_SZ, 1 << 20) };
    RECORDS.store(pipe[1], Ordering::Relaxed);
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return 97 };
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<i32> = words.iter().filter_map(|word| word.parse().ok()).collect();
        say(&obey(words[0], &words[1..], &numbers, pipe[0]));
    }
    96
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody there any more: the status tells enough.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        sys::exit(95);
    }
}

fn obey(command: &str, words: &[&str], numbers: &[i32], records: i32) -> String {
    let first = numbers.first().copied().unwrap_or(0);
    let second = numbers.get(1).copied().unwrap_or(0);
    match command {
        "echo" => words.join(" "),
        "exit" => sys::exit(first),
        "ids" => ids(),
        "handle" => {
            for signal in numbers {
                handle(*signal);
            }
            "handling".into()
        }
        "ignore" => sys::said(sys::action(first, libc::SIG_IGN, 0)),
        "signals" => (0..first).map(|_| next_record(records, words_of)).collect::<Vec<_>>().join(" ; "),
        "exactly" => (0..first).map(|_| next_record(records, exact_words_of)).collect::<Vec<_>>().join(" ; "),
        "more" => {
            let mut count = 0;
            while sys::readable(records, Duration::ZERO) {
                next_record(records, words_of);
                count += 1;
            }
            format!("{count}")
        }
        "block" | "unblock" => {
            let how = if command == "block" { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
            sys::mask(how, &sys::set(numbers));
            command.into()
        }
        "take" => take(first),
        "take-all-until" => take_all_until(first),
        "setpgid" => format!("setpgid {}", sys::said(sys::setpgid(first, second))),
        "setsid" => format!("setsid {}", if sys::setsid() < 0 { sys::name(sys::errno()) } else { "done".into() }),
        "setuid" => format!("setuid {}", sys::said(sys::setuid(first as u32))),
        "kill" => format!("kill {}", sys::said(sys::kill(first, second))),
        "killpg" => format!("killpg {}", sys::said(sys::killpg(first, second))),
        "sigqueue" => format!("sigqueue {}", sys::said(sys::sigqueue(first, second, 4711))),
        "pdeathsig" => format!("prctl {}", sys::said(sys::prctl(libc::PR_SET_PDEATHSIG, first as _))),
        "name" => {
            let name = std::ffi::CString::new(words.concat()).unwrap_or_default();
            // SAFETY: a terminated string that lives over the call.
            sys::said(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })
        }
        "fork-exit" => fork_exit(first),
        "vfork-exit" => vfork_exit(first),
        "fork-pause" => fork_pause(),
        "double-fork" => double_fork(),
        "wait" => {
            sys::interrupt_after(PATIENCE.as_secs() as u32);
            let (pid, status) = sys::waitpid(-1, first);
            sys::alarm(LIFE);
            if pid < 0 { sys::name(sys::errno()) } else { format!("pid={pid} {}", sys::status(status)) }
        }
        "orphaned" => orphaned(first),
        "exec" => {
            let error = Command::new("/proc/self/exe").arg0(words.concat()).arg("child").exec();
            format!("exec: {error}")
        }
        "exec-in-thread" => {
            let name = words.concat();
            let thread = std::thread::spawn(move || Command::new("/proc/self/exe").arg0(name).arg("child").exec());
            format!("exec: {:?}", thread.join().map(|error| error.kind()).ok())
        }
        "exit-in-thread" => {
            std::thread::spawn(move || sys::exit(first));
            loop {
                sys::pause();
            }
        }
        "main-thread-ends" => {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                sys::exit(first)
            });
            // With the process's own code: older kernels put that of the first thread into the parent's siginfo, and
            // a ghost has but one thread.
            // SAFETY: ends this thread alone, which holds nothing that the other one needs.
            unsafe { libc::syscall(libc::SYS_exit, first) };
            unreachable!("a thread lives after its exit")
        }
        "write" => {
            let mut out = std::io::stdout().lock();
            let part = vec![b'x'; 65536];
            for _ in 0..first {
                if out.write_all(&part).and_then(|()| out.flush()).is_err() {
                    sys::exit(94);
                }
            }
            "written".into()
        }
        "view" => view(),
        "file" => {
            let read = std::fs::read_to_string(words.concat());
            read.map_or_else(|error| error.kind().to_string(), |text| text.trim().replace('\n', ";"))
        }
        "environment" => std::env::var(words.concat()).unwrap_or_else(|error| error.to_string()),
        other => format!("unknown command '{other}'"),
    }
}

fn ids() -> String {
    let (pid, ppid, pgrp, sid) = (sys::getpid(), sys::getppid(), sys::getpgrp(), sys::getsid(0));
    format!("pid={pid} ppid={ppid} pgrp={pgrp} sid={sid}")
}

fn handle(signal: i32) {
    sys::action(signal, record as *const () as usize, libc::SA_SIGINFO | libc::SA_RESTART);
}

/// Without the code: that of kill(2) is compared in cases of its own.
fn words_of(info: &sys::Info) -> String {
    let value =
        if info.code == libc::SI_QUEUE && info.value != 0 { format!(" value {}", info.value) } else { String::new() };
    format!("got {} from={} uid {}{value}", info.signal, info.pid, info.uid)
}

fn exact_words_of(info: &sys::Info) -> String {
    let value = if info.code == libc::SI_QUEUE { format!(" value {}", info.value) } else { String::new() };
    format!("got {} code {} from={} uid {}{value}", info.signal, info.code, info.pid, info.uid)
}

fn next_record(records: i32, words: fn(&sys::Info) -> String) -> String {
    if !sys::readable(records, PATIENCE) {
        return "no signal came".into();
    }
    // SAFETY: a zeroed record is a valid one, and the handler writes whole ones.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::read(records, (&raw mut info).cast(), size_of::<libc::siginfo_t>());
        info
    };
    words(&sys::Info::of(&info))
}

fn take(signal: i32) -> String {
    sys::next_signal(&[signal], PATIENCE).map_or_else(|| "no signal came".into(), |info| words_of(&info))
}

/// Waits until the signal is pending: then all that its sender sent before it are. Takes them all, by number.
fn take_all_until(last: i32) -> String {
    let end = std::time::Instant::now() + PATIENCE;
    while !sys::is_pending(last) && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let all: Vec<i32> = (1..=64).filter(|n| !matches!(*n, libc::SIGKILL | libc::SIGSTOP | 32 | 33)).collect();
    let mut took = Vec::new();
    while let Some(info) = sys::next_signal(&all, Duration::ZERO) {
        took.push(format!("{}:{}", info.signal, if info.code == libc::SI_QUEUE { info.value } else { 0 }));
    }
    took.join(" ")
}

fn forked(child: impl FnOnce()) -> i32 {
    match sys::fork() {
        Ok(0) => {
            child();
            sys::exit(0)
        }
        Ok(pid) => pid,
        Err(_) => -1,
    }
}

fn wait_for(pid: i32) -> String {
    let (result, status) = sys::waitpid(pid, 0);
    if result == pid { sys::status(status) } else { format!("wait: {}", sys::said(result)) }
}

fn fork_exit(code: i32) -> String {
    let me = sys::getpid();
    let pid = forked(|| {
        let good = sys::getppid() == me && sys::getpgid(0) == sys::getpgid(me) && sys::getsid(0) == sys::getsid(me);
        sys::exit(if good { code } else { 99 })
    });
    wait_for(pid)
}

fn vfork_exit(code: i32) -> String {
    let status = Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).status();
    status.map_or_else(|error| error.to_string(), |status| format!("{status}"))
}

fn fork_pause() -> String {
    let pid = forked(|| {
        sys::alarm(LIFE);
        loop {
            sys::pause();
        }
    });
    pid.to_string()
}

/// The grandchild loses its parent and says to whom it came.
fn double_fork() -> String {
    let Ok((mut reader, writer)) = std::io::pipe() else { return "no pipe".into() };
    let pid = forked(|| {
        let parent = sys::getpid();
        forked(|| {
            while sys::getppid() == parent {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Nobody of ours.
            let adopted = sys::getppid() < parent;
            let _ = (&writer).write_all(if adopted { b"adopted" } else { b"strange" });
        });
    });
    let middle = wait_for(pid);
    drop(writer);
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut reader, &mut text);
    format!("{middle}, {text}")
}

/// Waits until the parent is another than that one.
fn orphaned(parent: i32) -> String {
    let end = std::time::Instant::now() + PATIENCE;
    while sys::getppid() == parent {
        if std::time::Instant::now() > end {
            return "my parent does not change".into();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    "orphaned".into()
}

/// What was inherited.
fn view() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let wanted = ["Umask:", "Uid:", "Gid:", "Groups:", "SigBlk:", "SigIgn:", "SigCgt:", "NoNewPrivs:"];
    let mut lines: Vec<String> = wanted
        .iter()
        .filter_map(|name| status.lines().find(|line| line.starts_with(name)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let cwd = std::env::current_dir().map_or_else(|error| error.to_string(), |dir| dir.display().to_string());
    lines.push(format!("cwd {cwd}"));
    // SAFETY: integers.
    lines.push(format!("nice {}", unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }));
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    lines.extend(limits.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    let mut open: Vec<i32> = (0..64).filter(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok()).collect();
    // Two are this program's own.
    open.truncate(3);
    lines.push(format!("descriptors {open:?}"));
    lines.push(format!("arguments {:?}", std::env::args().collect::<Vec<_>>()));
    lines.join(" ; ")
}
