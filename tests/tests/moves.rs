//! Running processes move: real programs around all machines, families that are torn apart, signals on the way,
//! refusals.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::run::{finish, patience};
use bproc_tests::runner::{self, Test};
use bproc_tests::shared_input::shared_input;
use bproc_tests::traveller::{AROUND, Traveller, around, compile, go, place, try_move};
use bproc_tests::{order, positions};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

fn c_program(cluster: &Cluster) -> Result<()> {
    let mut way = &AROUND[..];
    // SAFETY: PR_TIMER_CREATE_RESTORE_IDS_GET takes no pointer and changes nothing.
    if unsafe { libc::prctl(77, 2, 0, 0, 0) } < 0 {
        println!(
            "skipped: POSIX timers back to where their process was before: this kernel cannot choose their numbers"
        );
        way = &["0", "1", "2"];
    }
    around(cluster, &mut Command::new(compile(cluster, "vmadump/tests/programs/all.c", &["-DUNTIL_TOLD"], false)?), way)
}

fn threads(cluster: &Cluster) -> Result<()> {
    let flags = ["-DUNTIL_TOLD", "-DPAUSE=100000"];
    let program = compile(cluster, "vmadump/tests/programs/threads.c", &flags, false)?;
    around(cluster, Command::new(program).arg("8"), &AROUND)
}

/// A program that prints 0, 1, 2, .. moves at some of its lines and must print all of them once.
fn counter(cluster: &Cluster, command: &mut Command, upto: u32) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let mut way = AROUND.iter();
    for i in 0..upto {
        ensure!(program.line()? == i.to_string(), "line {i}");
        if let (4, Some(node)) = (i % 5, way.next()) {
            go(cluster, program.pid(), node).with_context(|| format!("at line {i}"))?;
        }
    }
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 7 << 8), "{rest:?}, status {status:#x}");
    cluster.quiet()
}

fn interpreters(cluster: &Cluster) -> Result<()> {
    let python = "import time,threading,sys\nthreading.Thread(target=time.sleep,args=(5,)).start()\nfor i in range(60):\n \
                  print(i,flush=True); time.sleep(0.1)\nsys.exit(7)";
    let perl = "$|=1; for ($i=0;$i<60;$i++) { print \"$i\\n\"; select(undef,undef,undef,0.1) } exit 7";
    let awk = "BEGIN { for (i=0;i<60;i++) { print i; fflush(); system(\"sleep 0.1\") } exit 7 }";
    let bash = "for ((i=0;i<60;i++)); do echo $i; sleep 0.1; done; exit 7";
    for (program, arguments, upto) in [
        ("python3", ["-c", python].as_slice(), 60),
        ("perl", &["-e", perl], 60),
        ("awk", &[awk], 60),
        ("bash", &["-c", bash], 60),
    ] {
        if !Path::new("/usr/bin").join(program).exists() {
            println!("skipped: no {program} on this machine");
            continue;
        }
        let command = &mut Command::new(Path::new("/usr/bin").join(program));
        counter(cluster, command.args(arguments), upto).with_context(|| program.to_owned())?;
    }
    Ok(())
}

fn field(pid: i32, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A user's process comes home with the user's rights and no others.
fn a_user(cluster: &Cluster) -> Result<()> {
    let mut sleep = Command::new("/bin/sleep");
    let mut program = Traveller::start(sleep.arg("100").uid(NOBODY).gid(NOBODY))?;
    let pid = program.pid();
    let looks = |pid: i32| -> Result<Vec<String>> {
        ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "SigBlk:"]
            .iter()
            .map(|name| field(pid, name))
            .collect()
    };
    let before = looks(pid)?;
    for node in ["0", "1", "master", "2", "master"] {
        go(cluster, pid, node)?;
    }
    ensure!(looks(pid)? == before, "{:?} became {before:?}", looks(pid)?);
    ensure!(fs::read_link(format!("/proc/{pid}/exe"))?.ends_with("sleep"), "it runs something else");
    // Another user may not move it.
    let program_move = cluster.program("bpmove");
    let mut other = Command::new(program_move);
    cluster.environment(other.args([&pid.to_string(), "0"]).uid(12345).gid(12345));
    let done = finish(&mut other, b"", LIMIT)?;
    ensure!(done.status == 1 && done.err().contains("another user"), "{done:?}");
    program.child.kill()?;
    ensure!(program.end()?.1 == 9, "its end");
    cluster.quiet()
}

/// What a shell sees of its children and parent must be what it sees natively, whoever moves.
fn families(cluster: &Cluster) -> Result<()> {
    // Its children outlast the travels, also where these are slow.
    let unit = patience(Duration::from_millis(500)).as_secs_f64();
    let (short, long, longest) = (unit * 6.0, unit * 7.0, unit * 8.0);
    let script = format!(
        "
        (sleep {longest}; exit 3) & a=$!
        (sleep 0.2; exit 4) & b=$!
        (sleep {short}; kill -TERM $BASHPID) & c=$!
        echo $BASHPID $a; sleep {long}
        wait $a; echo a $?; wait $b; echo b $?; wait $c; echo c $?
        (exit 5) & wait $!; echo d $?
        kill -0 $PPID && echo parent
        kill -0 $a 2>/dev/null || echo gone
        exit 6"
    );
    let wanted = ["a 3", "b 4", "c 143", "d 5", "parent", "gone"];
    for (parent, child) in [
        (&["0"][..], &[][..]),
        (&[], &["0"]),
        (&["0"], &["0"]),
        (&["1"], &["0"]),
        (&["0", "1"], &[]),
        (&["0", "master"], &["1"]),
        (&["2", "0", "2"], &["0", "2"]),
    ] {
        let name = format!("parent to {parent:?}, child to {child:?}");
        let mut program = Traveller::start(Command::new("/bin/bash").args(["-c", &script]))?;
        let first = program.line()?;
        let numbers: Vec<i32> = first.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [me, a] = numbers[..] else { bail!("{first}") };
        for step in 0..parent.len().max(child.len()) {
            if let Some(node) = parent.get(step) {
                go(cluster, me, node).with_context(|| name.clone())?;
            }
            if let Some(node) = child.get(step) {
                go(cluster, a, node).with_context(|| name.clone())?;
            }
        }
        let (rest, status) = program.end()?;
        ensure!(rest.lines().eq(wanted) && status == 6 << 8, "{name}: {rest:?}, status {status:#x}");
        cluster.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// Signals reach it wherever it is, with their values, and its end is told.
fn signals(cluster: &Cluster) -> Result<()> {
    // It answers after the trap: bash forgets a signal that comes while that still runs, natively too.
    let script = "n=0; m=0; trap 'n=$((n+1))' USR1; trap 'echo bye; exit 9' TERM; echo ready; \
         while :; do sleep 0.02; [ $n = $m ] || { m=$n; echo got $n; }; done";
    let mut program = Traveller::start(Command::new("/bin/bash").args(["-c", script]))?;
    let pid = program.pid();
    program.until("ready")?;
    for (i, node) in AROUND.iter().enumerate() {
        signal_to(pid, libc::SIGUSR1)?;
        go(cluster, pid, node)?;
        program.until(&format!("got {}", 2 * i + 1))?;
        signal_to(pid, libc::SIGUSR1)?;
        program.until(&format!("got {}", 2 * i + 2))?;
    }
    go(cluster, pid, "1")?;
    // Stopped, it moves stopped.
    signal_to(pid, libc::SIGSTOP)?;
    let stopped =
        |pid: i32| Ok(if field(pid, "State:")?.starts_with(['T', 't']) { Ok(()) } else { Err("runs".into()) });
    eventually("it is stopped", LIMIT, || stopped(pid))?;
    go(cluster, pid, "2")?;
    signal_to(pid, libc::SIGCONT)?;
    signal_to(pid, libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    ensure!(rest.lines().last() == Some("bye") && status == 9 << 8, "{rest:?}, status {status:#x}");
    // Killed after a move: natively so.
    for (node, back) in [("0", None), ("0", Some("1")), ("0", Some("master"))] {
        let program = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
        let pid = program.pid();
        go(cluster, pid, node)?;
        if let Some(node) = back {
            go(cluster, pid, node)?;
        }
        signal_to(pid, libc::SIGKILL)?;
        ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    }
    cluster.quiet()
}

/// What cannot move is told why, in words, and runs on.
fn refusals(cluster: &Cluster) -> Result<()> {
    let mut sleep = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let pid = sleep.pid();
    let refused = |pid: i32, node: &str, words: &str| -> Result<()> {
        let done = try_move(cluster, pid, node)?;
        ensure!(done.status == 1 && done.err().contains(words), "{node}: {done:?} instead of {words}");
        Ok(())
    };
    refused(pid, "7", "there is no node 7")?;
    refused(1, "0", "").or_else(|_| Ok::<(), anyhow::Error>(()))?;
    refused(i32::MAX - 1, "0", "cannot be read")?;
    let python = Path::new("/usr/bin/python3");
    if python.exists() {
        let script = "import socket,time\ns=socket.socket()\ns.bind(('127.0.0.1',0))\ns.listen()\n\
                      print('ready',flush=True)\ntry: s.accept()\nexcept OSError: time.sleep(100)";
        let mut program = Traveller::start(Command::new(python).args(["-c", script]))?;
        program.until("ready")?;
        refused(program.pid(), "0", "these open files cannot be carried")?;
        let done = finish(cluster.command("bpmove").args(["-d", &program.pid().to_string(), "0"]), b"", LIMIT)?;
        ensure!(done.status == 0, "{done:?}");
        signal_to(program.pid(), libc::SIGKILL)?;
        ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    }
    // What its user may not open is told, all at once, and without a stop.
    let secrets = ["one", "two"].map(|name| cluster.dir().join(format!("log/secret-{name}")));
    for secret in &secrets {
        fs::write(secret, "")?;
        fs::set_permissions(secret, fs::Permissions::from_mode(0o600))?;
    }
    let script = format!(
        "exec 5<{} 6>>{}; exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'echo ready; exec sleep 1000'",
        secrets[0].display(),
        secrets[1].display()
    );
    let mut program = Traveller::start(Command::new("/bin/sh").args(["-c", &script]))?;
    program.until("ready")?;
    for secret in &secrets {
        refused(
            program.pid(),
            "0",
            &format!("the file {} cannot be opened here: Permission denied", secret.display()),
        )?;
    }
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    // Nothing could stand for these.
    let sandbox = compile(cluster, "tests/programs/sandbox.c", &[], false)?;
    for (call, name) in [(libc::SYS_socket, "socket"), (libc::SYS_clone3, "clone3")] {
        let mut program = Traveller::start(Command::new(&sandbox).arg(call.to_string()))?;
        program.until("ready")?;
        refused(program.pid(), "0", &format!("its seccomp filter may forbid {name}, and nothing could stand for it"))?;
        program.child.kill()?;
        ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    }
    let jail = cluster.dir().join("log/jail");
    fs::create_dir_all(&jail)?;
    let mut program = Command::new(&sandbox);
    let mut program = Traveller::start(program.arg(libc::SYS_sethostname.to_string()).arg(&jail))?;
    program.until("ready")?;
    refused(program.pid(), "0", "it has a root directory of its own (chroot)")?;
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    // A file that is there on this machine until it comes to the node: the process goes on where it was.
    let program = cluster.dir().join("log/vanishes");
    fs::copy("/bin/sleep", &program)?;
    let mut vanishing = Traveller::start(Command::new(&program).arg("100"))?;
    go(cluster, vanishing.pid(), "0")?;
    refused(vanishing.pid(), "7", "there is no node 7")?;
    vanishing.child.kill()?;
    ensure!(vanishing.end()?.1 == libc::SIGKILL, "killed");
    ensure!(sleep.child.try_wait()?.is_none(), "it runs on");
    sleep.child.kill()?;
    ensure!(sleep.end()?.1 == libc::SIGKILL, "killed");
    cluster.quiet()
}

/// What one process queues comes in its order, also when the other is on its way home or out.
fn queued_signals(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/queue.c", &[], false)?;
    // A queue too long for anything of a fixed size, and one that is full, and its sender waits.
    for (rest, first, room) in [("0", 0, ""), ("300", 3000, ""), ("300", 3000, "--sigpending=200:9000")] {
        let mut limited = Command::new("prlimit");
        limited.args((!room.is_empty()).then_some(room)).arg(&program).arg(rest);
        let mut program = Traveller::start(&mut limited)?;
        program.until("under way")?;
        let pid = program.pid();
        let queue = move |value: i32| {
            let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
            // SAFETY: no memory; the pid is that of a child that has not been waited for.
            while unsafe { libc::sigqueue(pid, libc::SIGRTMIN(), value) } != 0 {
                let error = std::io::Error::last_os_error();
                ensure!(error.raw_os_error() == Some(libc::EAGAIN), "sigqueue: {error}");
                std::thread::yield_now();
            }
            Ok(())
        };
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        let (ahead, is_ahead) = std::sync::mpsc::channel::<()>();
        let sender = std::thread::spawn(move || {
            let mut sent = first;
            (0..first).try_for_each(queue)?;
            ahead.send(()).ok();
            while is_over.recv_timeout(Duration::from_micros(200)) == Err(RecvTimeoutError::Timeout) {
                queue(sent)?;
                sent += 1;
            }
            queue(-1).map(|()| sent)
        });
        is_ahead.recv().context("the sender")?;
        let moved = ["0", "master", "1", "2", "master", "0", "1", "master"].map(|node| go(cluster, pid, node));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let limit: Vec<&str> = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max pending signals"))
            .context("a limit")?
            .split_whitespace()
            .collect();
        ensure!(room.is_empty() || limit == ["200", "9000", "signals"], "its queue may have {limit:?}");
        drop(over);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender"))??;
        let (rest, status) = program.end()?;
        let right = (rest.as_str(), status) == (&*format!("took {sent}\n"), 0);
        ensure!(right, "of {sent}, {room}: {rest:?}, status {status:#x}, {moved:?}");
        moved.into_iter().collect::<Result<()>>()?;
    }
    cluster.quiet()
}

/// Standard streams stay connected over moves, in order and whole.
fn streams(cluster: &Cluster) -> Result<()> {
    const LINES: usize = 20_000;
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; exit 1");
    let err = cluster.dir().join("log/moves-err");
    let mut command = Command::new("/bin/bash");
    command.args(["-c", &script]).stderr(File::create(&err)?);
    let mut program = Traveller::start(&mut command)?;
    let pid = program.pid();
    let first = program.line()?;
    let reader = std::thread::spawn(move || program.end());
    let mut moves = 0;
    for node in ["0", "1", "2", "master", "1", "master", "0"] {
        let done = try_move(cluster, pid, node)?;
        if done.status != 0 {
            let ended = ["has ended", "cannot be read", "has no memory", "ended meanwhile"];
            ensure!(ended.iter().any(|words| done.err().contains(words)), "{done:?}");
            break;
        }
        moves += 1;
    }
    let (rest, status) = reader.join().map_err(|_| anyhow::anyhow!("the reader"))??;
    let lines: Vec<&str> = std::iter::once(first.as_str()).chain(rest.lines()).collect();
    let wrong = (0..LINES).find(|i| lines.get(*i).is_none_or(|line| *line != format!("line {i}")));
    ensure!(wrong.is_none() && lines.len() == LINES, "{} lines, wrong at {wrong:?}", lines.len());
    ensure!(status == 1 << 8 && moves > 1, "status {status:#x} after {moves} moves");
    let errors = fs::read_to_string(&err)?;
    let wanted: Vec<String> = (0..LINES).map(|i| format!("err {i}")).collect();
    ensure!(errors.lines().eq(wanted), "{} lines on the other stream", errors.lines().count());
    cluster.quiet()
}

/// A process whose output nobody reads moves all the same; when somebody reads, all is there, in order.
fn output_that_nobody_reads(cluster: &Cluster) -> Result<()> {
    const LINES: usize = 150_000;
    let script = format!("BEGIN {{ for (i = 0; i < {LINES}; i++) printf \"line %d %0100d\\n\", i, i; exit 3 }}");
    for way in [&["0", "1", "master", "2", "0"][..], &["1", "master"], &["master", "0", "master", "1", "master"]] {
        let name = || format!("to {way:?}");
        // The one that begins on a node is started there.
        let mut command = if way[0] == "master" { cluster.command("bpsh") } else { Command::new("awk") };
        if way[0] == "master" {
            command.args(["2", "awk"]);
        }
        let mut program = Traveller::start(command.arg(&script))?;
        ensure!(program.line()?.starts_with("line 0 "), "the first line");
        let mut pid = program.pid();
        if way[0] == "master" {
            let listed = cluster.client()?.processes().map_err(|e| anyhow::anyhow!("{e}"))?;
            pid = listed.first().context("it runs on no node")?.pid;
        }
        for node in way {
            go(cluster, pid, node).with_context(name)?;
        }
        let (rest, status) = program.end()?;
        let wrong = (1..LINES).zip(rest.lines()).find(|(i, line)| **line != format!("line {i} {i:0100}"));
        ensure!(wrong.is_none(), "{}: {wrong:?}", name());
        ensure!(rest.lines().count() == LINES - 1 && status == 3 << 8, "{}: status {status:#x}", name());
        cluster.quiet().with_context(name)?;
    }
    Ok(())
}

/// What a process has not read when it moves it reads where it goes, byte for byte.
fn input(cluster: &Cluster) -> Result<()> {
    let reader = compile(cluster, "tests/programs/reader.c", &[], false)?;
    let mib = std::env::var("BPROC_TEST_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(50usize).max(8);
    let mut state = 88172645463325252u64;
    let bytes: Vec<u8> = (0..mib << 17)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .chain([7; 4242])
        .collect();
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let wanted = format!("end 0 {} {sum:x}", bytes.len());
    let (file, limit) = (cluster.dir().join("log/input"), cluster.dir().join("log/limit"));
    fs::write(&file, &bytes)?;
    let allow = |most: usize| -> Result<()> {
        let fresh = limit.with_extension("new");
        fs::write(&fresh, most.to_string())?;
        Ok(fs::rename(&fresh, &limit)?)
    };
    for (from_node, pipe, way) in [
        (true, false, &["1", "2"][..]),
        (true, true, &["1", "2", "0"]),
        (false, false, &["0", "1", "master", "2"]),
        (false, true, &["0", "master", "1", "master", "0", "1"]),
        (true, true, &["master", "1"]),
        (true, false, &["master"]),
    ] {
        let name = format!("from a node: {from_node}, by a pipe: {pipe}, to {way:?}");
        let mut command = match from_node {
            true => cluster.command("bpsh"),
            false => Command::new(&reader),
        };
        if from_node {
            command.arg("0").arg(&reader);
        }
        command.arg(&limit);
        allow(1)?;
        let mut writer = None;
        if pipe {
            let (end, mut to) = std::io::pipe()?;
            let bytes = bytes.clone();
            writer = Some(std::thread::spawn(move || std::io::Write::write_all(&mut to, &bytes)));
            command.stdin(end);
        } else {
            command.stdin(File::open(&file)?);
        }
        let mut program = Traveller::start_with_input(&mut command)?;
        drop(command);
        program.until("1")?;
        let mut pid = program.pid();
        if from_node {
            let listed = cluster.client()?.processes().map_err(|e| anyhow::anyhow!("{e}"))?;
            pid = listed.first().context("it runs on no node")?.pid;
        }
        for (i, node) in way.iter().enumerate() {
            // Some moves meet it while it reads, some while it waits.
            if i % 2 == 1 {
                allow(1 + (i + 1) * mib / 8)?;
            }
            go(cluster, pid, node).with_context(|| name.clone())?;
            allow(1 + (i + 1) * mib / 8)?;
            program.until(&(1 + (i + 1) * mib / 8).to_string())?;
        }
        allow(usize::MAX)?;
        let (rest, status) = program.end()?;
        ensure!(rest.lines().last() == Some(&wanted) && status == 5 << 8, "{name}: {:?}", rest.lines().last());
        if let Some(writer) = writer {
            writer.join().map_err(|_| anyhow::anyhow!("the writer"))??;
        }
        cluster.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// The calls by C programs that check themselves, as C11, as GNU C and as C++.
fn library(cluster: &Cluster) -> Result<()> {
    let dir = cluster.dir().join("log");
    for (name, arguments) in [("moving.c", &[][..]), ("moving_io.c", &[dir]), ("forks.c", &[]), ("callers.c", &[])] {
        for dialect in ["-std=c11", "-std=gnu17", "-xc++"] {
            let source = format!("tests/programs/{name}");
            let program = compile(cluster, &source, &[dialect], true)?;
            let mut command = Command::new(&program);
            let program = Traveller::start(cluster.environment(command.args(arguments)))?;
            let (text, status) = program.end()?;
            ensure!(text.lines().last() == Some("done") && status == 0, "{name} {dialect}: {text}, status {status:#x}");
            cluster.quiet().with_context(|| format!("{name} {dialect}"))?;
        }
    }
    Ok(())
}

/// It ends in the moment in which its move is asked for, or on the way: it ends once, and nothing stands there for it.
fn the_end_meanwhile(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/ends.c", &[], false)?;
    let rounds = std::env::var("BPROC_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    for round in 0..rounds {
        let microseconds = (round * 7919 % 100_000).to_string();
        let mut command = Command::new(&program);
        let mut program = Traveller::start(command.args([&microseconds, ["0", "3"][round % 2]]))?;
        program.until("runs")?;
        let pid = program.pid();
        for node in &AROUND[..1 + round % 3] {
            // It may have moved, or ended.
            let done = try_move(cluster, pid, node)?;
            ensure!(done.status <= 1, "{done:?}");
        }
        let (rest, status) = program.end()?;
        ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest}, status {status:#x}");
    }
    cluster.quiet()
}

/// A node that goes down in the middle of a move: the process runs on where it was.
fn a_node_that_dies(cluster: &Cluster) -> Result<()> {
    let mut program = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let pid = program.pid();
    go(cluster, pid, "0")?;
    cluster.stop_agent(Role::Node(2), libc::SIGKILL)?;
    let done = try_move(cluster, pid, "2")?;
    ensure!(done.status == 1, "{done:?}");
    go(cluster, pid, "1")?;
    cluster.start_agent(Role::Node(2))?;
    cluster.wait_up()?;
    go(cluster, pid, "2")?;
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    cluster.quiet()
}

/// A target that has said where it waits, and then finds no place for the process, says why; the process runs on.
fn a_target_without_room(cluster: &Cluster) -> Result<()> {
    let mut program = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let pid = program.pid();
    let service = cluster.dir().join("libexec/bproc/bproc-iod");
    let (away, words) = (service.with_extension("away"), "node 1: the stdio service does not answer");
    for from in ["master", "0"] {
        let lost = cluster.stdio_pid(Role::Node(1))?;
        fs::rename(&service, &away)?;
        signal_to(lost, libc::SIGKILL)?;
        let refused = try_move(cluster, pid, "1");
        fs::rename(&away, &service)?;
        let refused = refused?;
        ensure!(refused.status == 1 && refused.err().contains(words), "from {from}: {refused:?}");
        ensure!(place(cluster, pid)? == from, "it is on {}, not on {from}", place(cluster, pid)?);
        go(cluster, pid, "1")?;
        go(cluster, pid, "0")?;
    }
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    cluster.quiet()
}

/// Agents have no more descriptors open after many moves of one process than after a few.
fn many_moves_of_one(cluster: &Cluster) -> Result<()> {
    let mut program = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let pid = program.pid();
    let around = |times: usize| {
        let mut way = ["0", "1", "master"].into_iter().cycle().take(3 * times);
        way.try_for_each(|node| go(cluster, pid, node))
    };
    let open = || -> Result<Vec<usize>> {
        let agents = [Role::Master, Role::Node(0), Role::Node(1)].into_iter();
        agents.map(|role| Ok(fs::read_dir(format!("/proc/{}/fd", cluster.agent_pid(role)?))?.count())).collect()
    };
    around(2)?;
    let before = open()?;
    around(10)?;
    eventually("the descriptors of agents are as many as before", LIMIT, || {
        let after = open()?;
        // What another move is about to close, and connections.
        let few = after.iter().zip(&before).all(|(after, before)| *after <= before + 6);
        Ok(if few { Ok(()) } else { Err(format!("{before:?} before, {after:?} after")) })
    })?;
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    cluster.quiet()
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("c_program_ten_times_around", c_program),
        Test::new("threads_ten_times_around", threads),
        Test::new("interpreters", interpreters),
        Test::new("a_user_other_than_root", a_user),
        Test::new("families", families),
        Test::new("signals_on_the_way", signals),
        Test::new("queued_signals_keep_their_order", queued_signals),
        Test::new("streams", streams),
        Test::new("order_of_outputs", order::of_moves),
        Test::new("output_that_nobody_reads", output_that_nobody_reads),
        Test::new("input", input),
        Test::new("shared_input", shared_input),
        Test::new("library", library),
        Test::new("refusals", refusals),
        Test::new("shared_positions", positions::shared),
        Test::new("descriptors_that_go_along", positions::goes_along),
        Test::new("the_end_meanwhile", the_end_meanwhile),
        Test::new("a_target_without_room", a_target_without_room),
        Test::new("many_moves_of_one", many_moves_of_one),
        Test::new("a_node_that_dies", a_node_that_dies),
    ];
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
