//! Two machines with a kernel each, as `cargo xtask vm pair` makes them: programs go to the other kernel and come home,
//! several times. The program of the node's machine follows that of the master's.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::pair::{Follower, Pair};
use bproc_tests::cluster::signal_to;
use bproc_tests::run::{finish, patience};
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, compile, go, place, try_move};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;
/// There and home again. A program must see no difference the fifth time that it did not see the first.
const AROUND: [&str; 10] = ["0", "master", "0", "master", "0", "master", "0", "master", "0", "master"];
/// What bpmove says when a kernel cannot give a POSIX timer its number.
const NO_TIMERS: &str = "before Linux 6.15";

fn said(pair: &Pair, arguments: &[&str]) -> Result<String> {
    let done = pair.cluster.bpsh(arguments)?;
    ensure!(done.status == 0, "{arguments:?}: {done:?}");
    Ok(done.out().trim().to_owned())
}

/// The kernels are two, and programs run on the other as they do here.
fn programs(pair: &Pair) -> Result<()> {
    let here = finish(Command::new("uname").arg("-r"), b"", LIMIT)?.out().trim().to_owned();
    let there = said(pair, &["0", "uname", "-r"])?;
    println!("EXERCISED master on {here}, node on {there}");
    ensure!(here != there || std::env::var_os("BPROC_PAIR_SAME").is_some(), "both are {here}");
    let done = pair.cluster.bpsh(&["0", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((done.status, done.out().as_str(), done.err().as_str()) == (7, "out\n", "err\n"), "{done:?}");
    let input = vec![b'x'; 1 << 20];
    let done = pair.cluster.bpsh_with(&["0", "sha256sum"], &input)?;
    ensure!(done.stdout == finish(&mut Command::new("sha256sum"), &input, LIMIT)?.stdout, "{done:?}");
    pair.quiet()
}

/// Moves a self-checking program at each `round` line; it must end with `done` and 42.
fn around(pair: &Pair, command: &mut Command, way: &[&str]) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let mut way = way.iter();
    loop {
        let line = program.line()?;
        if !line.starts_with("round") {
            ensure!(line == "done", "{line}");
            break;
        }
        if let Some(node) = way.next() {
            go(&pair.cluster, program.pid(), node).with_context(|| format!("at {line}"))?;
        }
    }
    ensure!(way.next().is_none(), "the program ended too soon");
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

const ALL: &str = "vmadump/tests/programs/all.c";

/// Heap, stack, vectors, handlers, interval timers, pending signals, and the clock in a tight loop.
fn c_program(pair: &Pair) -> Result<()> {
    let flags = ["-DROUNDS=60", "-DNO_POSIX_TIMERS"];
    around(pair, &mut Command::new(compile(&pair.cluster, ALL, &flags, false)?), &AROUND)?;
    // Without the C library's help, and with the vector unit where there is one.
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let wide = info.contains(" avx2 ").then_some("-mavx2");
    let flags: Vec<&str> = flags.iter().copied().chain(["-no-pie"]).chain(wide).collect();
    around(pair, &mut Command::new(compile(&pair.cluster, ALL, &flags, false)?), &AROUND)
}

/// POSIX timers have numbers. A kernel that cannot give them again says so, and the process runs on where it is.
fn posix_timers(pair: &Pair) -> Result<()> {
    let mut program = Traveller::start(&mut Command::new(compile(&pair.cluster, ALL, &["-DROUNDS=60"], false)?))?;
    let pid = program.pid();
    let (mut way, mut refused) = (AROUND.iter(), 0);
    loop {
        let line = program.line()?;
        if !line.starts_with("round") {
            ensure!(line == "done", "{line}");
            break;
        }
        let Some(node) = way.next() else { continue };
        let from = place(&pair.cluster, pid)?;
        let done = try_move(&pair.cluster, pid, node)?;
        let there = place(&pair.cluster, pid)?;
        match done.status {
            0 => ensure!(there == *node, "it is on {there}"),
            _ => {
                ensure!(done.err().contains(NO_TIMERS) && there == from, "{done:?}, it is on {there}");
                refused += 1;
            }
        }
    }
    ensure!(way.next().is_none(), "the program ended too soon");
    println!("{refused} of {} moves with POSIX timers were refused in words", AROUND.len());
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

/// Threads with mutexes, condition variables, robust mutexes and their own storage.
fn threads(pair: &Pair) -> Result<()> {
    let flags = ["-DROUNDS=120", "-DPAUSE=100000"];
    let program = compile(&pair.cluster, "vmadump/tests/programs/threads.c", &flags, false)?;
    around(pair, Command::new(program).arg("8"), &AROUND)
}

/// Wherever it runs, its clocks are the master's: none goes back, none jumps.
fn clocks(pair: &Pair) -> Result<()> {
    /// As far as two machines' clocks may be apart, nanoseconds.
    const APART: i64 = 50_000_000;
    let program = compile(&pair.cluster, "tests/programs/clock.c", &[], false)?;
    let (end, mut ask) = std::io::pipe()?;
    let mut program = Traveller::start_with_input(Command::new(program).stdin(end))?;
    let read = |clock| -> i64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` outlives the call.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    let clocks = || [read(libc::CLOCK_MONOTONIC), read(libc::CLOCK_BOOTTIME)];
    for node in [""].iter().chain(&AROUND) {
        if !node.is_empty() {
            go(&pair.cluster, program.pid(), node)?;
        }
        let before = clocks();
        ask.write_all(b"\n")?;
        let line = program.line()?;
        let after = clocks();
        let told: Vec<i64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        ensure!(told.len() == 2, "{line}");
        for i in 0..2 {
            let fits = before[i] - APART <= told[i] && told[i] <= after[i] + APART;
            ensure!(fits, "on {node:?}: {told:?}, but it is {before:?} to {after:?} on the master");
        }
    }
    drop(ask);
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

/// A program that prints 0, 1, 2, .. moves at some of its lines and must print all of them once.
fn counter(pair: &Pair, command: &mut Command, upto: u32) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let mut way = AROUND.iter().take(6);
    for i in 0..upto {
        ensure!(program.line()? == i.to_string(), "line {i}");
        if let (4, Some(node)) = (i % 5, way.next()) {
            go(&pair.cluster, program.pid(), node).with_context(|| format!("at line {i}"))?;
        }
    }
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 7 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

fn interpreters(pair: &Pair) -> Result<()> {
    let python = "import time,threading,sys,random\nthreading.Thread(target=time.sleep,args=(3,)).start()\nfor i in range(40):\n \
                  print(i,flush=True); time.sleep(0.05); random.SystemRandom().random()\nsys.exit(7)";
    let perl = "$|=1; for ($i=0;$i<40;$i++) { print \"$i\\n\"; select(undef,undef,undef,0.05) } exit 7";
    let awk = "BEGIN { for (i=0;i<40;i++) { print i; fflush(); system(\"sleep 0.05\") } exit 7 }";
    let bash = "for ((i=0;i<40;i++)); do echo $i; sleep 0.05; done; exit 7";
    for (program, arguments) in
        [("python3", ["-c", python].as_slice()), ("perl", &["-e", perl]), ("awk", &[awk]), ("bash", &["-c", bash])]
    {
        if !Path::new("/usr/bin").join(program).exists() {
            println!("skipped: no {program} on this machine");
            continue;
        }
        let command = &mut Command::new(Path::new("/usr/bin").join(program));
        counter(pair, command.args(arguments), 40).with_context(|| program.to_owned())?;
    }
    Ok(())
}

/// A user's process keeps his rights, and dies as natively.
fn a_user(pair: &Pair) -> Result<()> {
    let mut program = Traveller::start(Command::new("/bin/sleep").arg("100").uid(NOBODY).gid(NOBODY))?;
    let pid = program.pid();
    let looks = || -> Result<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let names = ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "SigBlk:"];
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    };
    let before = looks()?;
    for node in ["0", "master", "0", "master"] {
        go(&pair.cluster, pid, node)?;
    }
    ensure!(looks()? == before, "{:?} became {before:?}", looks()?);
    go(&pair.cluster, pid, "0")?;
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    pair.quiet()
}

/// What a shell sees of its children and parent must be what it sees natively, whoever moves.
fn families(pair: &Pair) -> Result<()> {
    // Its children outlast the travels, also where these are slow.
    let unit = patience(Duration::from_millis(400)).as_secs_f64();
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
    for (parent, child) in
        [(&["0"][..], &[][..]), (&[], &["0", "master"]), (&["0"], &["0"]), (&["0", "master", "0"], &["0", "master"])]
    {
        let name = format!("parent to {parent:?}, child to {child:?}");
        let mut program = Traveller::start(Command::new("/bin/bash").args(["-c", &script]))?;
        let first = program.line()?;
        let numbers: Vec<i32> = first.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [me, a] = numbers[..] else { bail!("{first}") };
        for step in 0..parent.len().max(child.len()) {
            for (pid, node) in [(me, parent.get(step)), (a, child.get(step))] {
                if let Some(node) = node {
                    go(&pair.cluster, pid, node).with_context(|| name.clone())?;
                }
            }
        }
        let (rest, status) = program.end()?;
        ensure!(rest.lines().eq(wanted) && status == 6 << 8, "{name}: {rest:?}, status {status:#x}");
        pair.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// Signals reach it on either kernel; it stops, goes on and is killed as natively.
fn signals(pair: &Pair) -> Result<()> {
    let script =
        "trap 'n=$((n+1)); echo got $n' USR1; trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    let mut program = Traveller::start(Command::new("/bin/bash").args(["-c", script]))?;
    let pid = program.pid();
    program.until("ready")?;
    for (i, node) in AROUND.iter().enumerate() {
        signal_to(pid, libc::SIGUSR1)?;
        go(&pair.cluster, pid, node)?;
        program.until(&format!("got {}", 2 * i + 1))?;
        signal_to(pid, libc::SIGUSR1)?;
        program.until(&format!("got {}", 2 * i + 2))?;
    }
    go(&pair.cluster, pid, "0")?;
    signal_to(pid, libc::SIGSTOP)?;
    signal_to(pid, libc::SIGCONT)?;
    signal_to(pid, libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    ensure!(rest.lines().last() == Some("bye") && status == 9 << 8, "{rest:?}, status {status:#x}");
    for way in [&["0"][..], &["0", "master"]] {
        let program = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
        for node in way {
            go(&pair.cluster, program.pid(), node)?;
        }
        signal_to(program.pid(), libc::SIGKILL)?;
        ensure!(program.end()?.1 == libc::SIGKILL, "killed");
    }
    pair.quiet()
}

/// What is refused leaves the process where it is.
fn refusals(pair: &Pair) -> Result<()> {
    let mut sleep = Traveller::start(Command::new("/bin/sleep").arg("100").stdin(Stdio::null()))?;
    let done = try_move(&pair.cluster, sleep.pid(), "7")?;
    ensure!(done.status == 1 && done.err().contains("there is no node 7"), "{done:?}");
    if Path::new("/usr/bin/python3").exists() {
        let script = "import socket,time\na,b=socket.socketpair()\nprint('ready',flush=True)\ntime.sleep(100)";
        let mut program = Traveller::start(Command::new("/usr/bin/python3").args(["-c", script]))?;
        program.until("ready")?;
        let done = try_move(&pair.cluster, program.pid(), "0")?;
        ensure!(done.status == 1 && done.err().contains("these open files cannot be carried"), "{done:?}");
    }
    ensure!(sleep.child.try_wait()?.is_none(), "it runs on");
    sleep.child.kill()?;
    ensure!(sleep.end()?.1 == libc::SIGKILL, "killed");
    pair.quiet()
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("programs_run", programs),
        Test::new("c_program_several_times_around", c_program),
        Test::new("posix_timers", posix_timers),
        Test::new("threads_several_times_around", threads),
        Test::new("clocks", clocks),
        Test::new("interpreters", interpreters),
        Test::new("a_user_other_than_root", a_user),
        Test::new("families", families),
        Test::new("signals_on_the_way", signals),
        Test::new("refusals", refusals),
    ];
    let role = std::env::var("BPROC_PAIR").unwrap_or_default();
    let list = std::env::args().any(|word| word == "--list");
    match role.split(',').collect::<Vec<_>>()[..] {
        ["master", here, there] => runner::main(|| Pair::lead(here, there), tests, Pair::close),
        ["node", leader] => {
            let tests = vec![Test::new("the_node_follows", Follower::serve)];
            runner::main(|| Follower::follow(leader), tests, Follower::close)
        }
        _ if list => runner::main(|| Pair::lead("", ""), tests, Pair::close),
        _ => {
            println!("skipped: two kernels need two machines: cargo xtask vm pair");
            ExitCode::SUCCESS
        }
    }
}
