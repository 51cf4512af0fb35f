//! Two machines with a kernel each, as `cargo xtask vm pair` makes them: programs go to the other kernel and come home,
//! several times. The program of the node's machine follows that of the master's.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::pair::{Follower, Pair};
use bproc_tests::cluster::signal_to;
use bproc_tests::run::finish;
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
    println!("{}", said(pair, &["0", "sh", "-c", "cat /proc/uptime /proc/self/timens_offsets"])?);
    println!("{}", fs::read_to_string("/proc/uptime")?);
    let input = vec![b'x'; 1 << 20];
    let done = pair.cluster.bpsh_with(&["0", "sha256sum"], &input)?;
    ensure!(done.stdout == finish(&mut Command::new("sha256sum"), &input, LIMIT)?.stdout, "{done:?}");
    pair.quiet()
}

fn maps(pid: i32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/maps"))?)
}

/// Where the kernel's vdso is.
fn vdso(pid: i32) -> Result<String> {
    let maps = maps(pid)?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).context("a process has a vdso")?;
    Ok(line.split('-').next().unwrap_or_default().to_owned())
}

/// Moves a self-checking program between its `round` lines. When it is told to end, it must do so with `done` and 42.
fn travel(pair: &Pair, command: &mut Command, mut step: impl FnMut(i32, &str) -> Result<()>) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let round = |program: &mut Traveller| -> Result<bool> {
        let line = program.line()?;
        ensure!(line.starts_with("round") || line == "done", "{line}");
        Ok(line != "done")
    };
    ensure!(round(&mut program)?, "it ended by itself");
    let home = vdso(program.pid())?;
    for node in AROUND {
        ensure!(round(&mut program)?, "it ended by itself");
        if place(&pair.cluster, program.pid())? == "master" {
            let fits = vdso(program.pid())? == home && brought(program.pid())? <= 1;
            ensure!(fits, "it was {home}: {}", maps(program.pid())?);
        }
        if let Err(error) = step(program.pid(), node) {
            if !format!("{error:#}").contains("ended") {
                return Err(error);
            }
            let (rest, status) = program.end()?;
            bail!("{error:#}; its status was {status:#x}, its last words {:?}", rest.lines().last());
        }
    }
    signal_to(program.pid(), libc::SIGTERM)?;
    while round(&mut program)? {}
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

/// [`travel`], and every move succeeds.
fn around(pair: &Pair, program: &Path, arguments: &[&str]) -> Result<()> {
    travel(pair, Command::new(program).args(arguments), |pid, node| {
        let began = Instant::now();
        go(&pair.cluster, pid, node)?;
        println!("to {node} in {} ms", began.elapsed().as_millis());
        Ok(())
    })
}

const ALL: &str = "vmadump/tests/programs/all.c";

/// Heap, stack, vectors, handlers, interval timers, pending signals, and the clock in a tight loop.
fn c_program(pair: &Pair) -> Result<()> {
    let flags = ["-DUNTIL_TOLD", "-DNO_POSIX_TIMERS"];
    around(pair, &compile(&pair.cluster, ALL, &flags, false)?, &[])?;
    // At a fixed address, and with the vector unit where there is one.
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let wide = info.contains(" avx2 ").then_some("-mavx2");
    let flags: Vec<&str> = flags.iter().copied().chain(["-no-pie"]).chain(wide).collect();
    around(pair, &compile(&pair.cluster, ALL, &flags, false)?, &[])
}

/// How many vdsos it has that were brought along: code of no file that begins as a library does, beside the kernel's.
fn brought(pid: i32) -> Result<usize> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut count = 0;
    for line in maps(pid)?.lines().filter(|line| line.contains(" r-xp ") && line.trim_end().ends_with(" 0")) {
        let start = u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16)?;
        let mut magic = [0; 4];
        memory.read_exact_at(&mut magic, start)?;
        count += usize::from(magic == *b"\x7fELF");
    }
    Ok(count)
}

/// A handler of a signal that came in the other kernel's vdso returns there, wherever it is by then. At home the kernel's
/// own vdso is in its place all the same, and beside it there is one more at most, until nobody returns to it.
fn handlers(pair: &Pair) -> Result<()> {
    let program = compile(&pair.cluster, "vmadump/tests/programs/returns.c", &[], false)?;
    let mut program = Traveller::start(&mut Command::new(program))?;
    let until = |program: &mut Traveller, wanted: &str| -> Result<()> {
        loop {
            let line = program.line()?;
            ensure!(line.starts_with("round") || line == wanted, "{line}");
            if line == wanted {
                return Ok(());
            }
        }
    };
    until(&mut program, "round")?;
    let (pid, home) = (program.pid(), vdso(program.pid())?);
    let come_home = |others: usize| -> Result<()> {
        go(&pair.cluster, pid, "master")?;
        ensure!((vdso(pid)?, brought(pid)?) == (home.clone(), others), "it was {home}: {}", maps(pid)?);
        Ok(())
    };
    go(&pair.cluster, pid, "0")?;
    until(&mut program, "round inside")?;
    for _ in 0..3 {
        come_home(1)?;
        until(&mut program, "round inside")?;
        go(&pair.cluster, pid, "0")?;
    }
    come_home(1)?;
    signal_to(pid, libc::SIGUSR1)?;
    until(&mut program, "round returns")?;
    until(&mut program, "round")?;
    go(&pair.cluster, pid, "0")?;
    until(&mut program, "round")?;
    come_home(0)?;
    signal_to(pid, libc::SIGTERM)?;
    until(&mut program, "done")?;
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("", 42 << 8), "{rest:?}, status {status:#x}");
    pair.quiet()
}

/// POSIX timers have numbers. A kernel that cannot give them again says so, and the process runs on where it is.
fn posix_timers(pair: &Pair) -> Result<()> {
    let program = compile(&pair.cluster, ALL, &["-DUNTIL_TOLD"], false)?;
    let mut refused = 0;
    travel(pair, &mut Command::new(program), |pid, node| {
        let from = place(&pair.cluster, pid)?;
        let done = try_move(&pair.cluster, pid, node)?;
        let there = place(&pair.cluster, pid)?;
        if done.status == 0 {
            ensure!(there == node, "it is on {there}");
        } else {
            ensure!(done.err().contains(NO_TIMERS) && there == from, "{done:?}, it is on {there}");
            refused += 1;
        }
        Ok(())
    })?;
    println!("{refused} of {} moves with POSIX timers were refused in words", AROUND.len());
    Ok(())
}

/// Threads with mutexes, condition variables, robust mutexes and their own storage.
fn threads(pair: &Pair) -> Result<()> {
    let flags = ["-DUNTIL_TOLD", "-DPAUSE=100000"];
    around(pair, &compile(&pair.cluster, "vmadump/tests/programs/threads.c", &flags, false)?, &["8"])
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
        ask.write_all(b"\n").or_else(|_| bail!("it says {}", program.line()?))?;
        let line = program.line()?;
        let after = clocks();
        println!("{node}: {line}, {before:?} to {after:?}");
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

/// A program that counts until it is told to end misses no number, and doubles none.
fn counter(pair: &Pair, command: &mut Command) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let mut next = 0;
    for node in &AROUND[..6] {
        for _ in 0..3 {
            ensure!(program.line()? == next.to_string(), "line {next}");
            next += 1;
        }
        go(&pair.cluster, program.pid(), node).with_context(|| format!("at line {next}"))?;
    }
    signal_to(program.pid(), libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    let all = rest.lines().enumerate().all(|(i, line)| line == (next + i).to_string());
    ensure!(all && status == 7 << 8, "{rest:?} after {next}, status {status:#x}");
    pair.quiet()
}

fn interpreters(pair: &Pair) -> Result<()> {
    let python = "import itertools,os,random,signal,threading,time\n\
                  told=threading.Event(); signal.signal(signal.SIGTERM,lambda *_: told.set())\n\
                  thread=threading.Thread(target=told.wait); thread.start()\n\
                  for i in itertools.count():\n \
                  print(i,flush=True); time.sleep(0.05); random.SystemRandom().random()\n \
                  if told.is_set(): thread.join(); os._exit(7)";
    let perl = "$|=1; $SIG{TERM}=sub{$told=1}; for ($i=0;!$told;$i++) { print \"$i\n\"; select(undef,undef,undef,0.05) } exit 7";
    let bash = "trap told=1 TERM; for ((i=0;!told;i++)); do echo $i; sleep 0.05; done; exit 7";
    for (program, arguments) in
        [("python3", ["-c", python].as_slice()), ("perl", &["-e", perl]), ("bash", &["-c", bash])]
    {
        if !Path::new("/usr/bin").join(program).exists() {
            println!("skipped: no {program} on this machine");
            continue;
        }
        let command = &mut Command::new(Path::new("/usr/bin").join(program));
        counter(pair, command.args(arguments)).with_context(|| program.to_owned())?;
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
    let script = "
        (trap 'exit 3' USR1; while :; do sleep 0.1; done) & a=$!
        (sleep 0.2; exit 4) & b=$!
        sleep 1000 & c=$!
        trap told=1 USR1
        echo $BASHPID $a $c
        while ((!told)); do sleep 0.1; done
        wait $a; echo a $?; wait $b; echo b $?; wait $c; echo c $?
        (exit 5) & wait $!; echo d $?
        kill -0 $PPID && echo parent
        kill -0 $a 2>/dev/null || echo gone
        exit 6";
    let wanted = ["a 3", "b 4", "c 143", "d 5", "parent", "gone"];
    for (parent, child) in
        [(&["0"][..], &[][..]), (&[], &["0", "master"]), (&["0"], &["0"]), (&["0", "master", "0"], &["0", "master"])]
    {
        let name = format!("parent to {parent:?}, child to {child:?}");
        let mut program = Traveller::start(Command::new("/bin/bash").args(["-c", script]))?;
        let first = program.line()?;
        let numbers: Vec<i32> = first.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [me, a, c] = numbers[..] else { bail!("{first}") };
        for step in 0..parent.len().max(child.len()) {
            for (pid, node) in [(me, parent.get(step)), (a, child.get(step))] {
                if let Some(node) = node {
                    go(&pair.cluster, pid, node).with_context(|| name.clone())?;
                }
            }
        }
        for (pid, signal) in [(a, libc::SIGUSR1), (c, libc::SIGTERM), (me, libc::SIGUSR1)] {
            signal_to(pid, signal)?;
        }
        let (rest, status) = program.end()?;
        ensure!(rest.lines().eq(wanted) && status == 6 << 8, "{name}: {rest:?}, status {status:#x}");
        pair.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// Signals reach it on either kernel; it stops, goes on and is killed as natively.
fn signals(pair: &Pair) -> Result<()> {
    // It answers after the trap: bash forgets a signal that comes while that still runs, natively too.
    let script = "n=0; m=0; trap 'n=$((n+1))' USR1; trap 'echo bye; exit 9' TERM; echo ready; \
         while :; do sleep 0.02; [ $n = $m ] || { m=$n; echo got $n; }; done";
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
        let script = "import socket,time\ns=socket.socket()\ns.listen()\nprint('ready',flush=True)\ntime.sleep(100)";
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
        Test::new("handlers_return_into_the_other_vdso", handlers),
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
