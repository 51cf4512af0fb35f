//! Which programs travel: runtimes with threads and event loops of their own, C libraries, rights of every kind, large
//! memory. Each program checks itself and goes around all machines. What is not installed is skipped, and says so.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::landlock;
use bproc_tests::run::finish;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{AROUND, Traveller, around, compile, go as travel, place, try_move};

const LIMIT: Duration = Duration::from_secs(120);

fn source(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/programs")).join(name)
}

/// Is it in the path? Else says that the test is skipped.
fn has(program: &str) -> bool {
    let mut which = Command::new("sh");
    let found = which.args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: no {program} on this machine");
    }
    found
}

/// Where to build what needs other compilers, and no more: guests that lack them get it so.
const BUILD: &str = "BPROC_TEST_BUILD";
/// Where that is.
const BUILT: &str = "BPROC_TEST_BUILT";

/// A program that was built elsewhere, or is now; none: this machine has no compiler for it.
fn built(name: &str, cluster: &Cluster, build: impl FnOnce(&Path) -> Result<bool>) -> Result<Option<PathBuf>> {
    let there = std::env::var_os(BUILT).map(|dir| Path::new(&dir).join(name)).filter(|program| program.exists());
    if there.is_some() {
        return Ok(there);
    }
    let program = cluster.dir().join("log").join(name);
    Ok(build(&program)?.then_some(program))
}

fn build_all(dir: &Path) -> Result<()> {
    build_go(&dir.join("wander-go"))?;
    for (name, ..) in MUSL {
        build_musl(name, &dir.join(format!("musl-{name}.out")))?;
    }
    Ok(())
}

fn build_go(program: &Path) -> Result<bool> {
    if !has("go") {
        return Ok(false);
    }
    let cache = program.with_extension("cache");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(program).arg(source("wander.go"));
    build.env("GOCACHE", &cache).env("GO111MODULE", "off").env("CGO_ENABLED", "0");
    let built = finish(&mut build, b"", LIMIT)?;
    ensure!(built.status == 0, "{}", built.err());
    std::fs::remove_dir_all(cache)?;
    Ok(true)
}

fn go(cluster: &Cluster) -> Result<()> {
    match built("wander-go", cluster, build_go)? {
        Some(program) => around(cluster, &mut Command::new(program), &AROUND),
        None => Ok(()),
    }
}

fn tokio(cluster: &Cluster) -> Result<()> {
    let program = Path::new(env!("CARGO_BIN_EXE_bproc-wander"));
    if !program.exists() {
        println!("skipped: no {} on this machine", program.display());
        return Ok(());
    }
    around(cluster, &mut Command::new(program), &AROUND)
}

fn node(cluster: &Cluster) -> Result<()> {
    if !has("node") {
        return Ok(());
    }
    around(cluster, Command::new("node").arg(source("wander.js")), &AROUND)
}

const DEBIAN_PYTHON: &str = "/usr/bin/python3";

fn python(cluster: &Cluster) -> Result<()> {
    if !has("python3") {
        return Ok(());
    }
    let imports = |python: &str, modules: &str| -> Result<bool> {
        let mut import = Command::new(python);
        Ok(import.args(["-c", &format!("import {modules}")]).stderr(Stdio::null()).status()?.success())
    };
    // Debian's has Debian's modules; another may come before it.
    let mut python = "python3";
    if !imports(python, "numpy")? {
        if Path::new(DEBIAN_PYTHON).exists() && imports(DEBIAN_PYTHON, "numpy")? {
            python = DEBIAN_PYTHON;
        } else {
            println!("skipped: numpy, which no python here has");
        }
    }
    if !imports(python, "asyncio, concurrent.futures.thread")? {
        println!("skipped: a python without threads to wait in");
        return Ok(());
    }
    // pyenv's is a script, which executes the real one.
    let mut real = Command::new(python);
    let real = finish(real.args(["-c", "import sys; print(sys.executable)"]), b"", LIMIT)?;
    let mut program = Command::new(real.out().trim());
    around(cluster, program.env("OPENBLAS_NUM_THREADS", "3").arg(source("wander.py")), &AROUND)
}

/// Sources, flags, and what they are told.
const MUSL: [(&str, &[&str], &[&str]); 2] =
    [("all.c", &["-DUNTIL_TOLD", "-static"], &[]), ("threads.c", &["-DUNTIL_TOLD", "-DPAUSE=100000"], &["8"])];

fn build_musl(name: &str, program: &Path) -> Result<bool> {
    if !has("musl-gcc") {
        return Ok(false);
    }
    let flags = MUSL.iter().find(|(source, ..)| *source == name).map_or(&[][..], |(_, flags, _)| flags);
    let mut gcc = Command::new("musl-gcc");
    gcc.args(["-O1", "-pthread", "-D_GNU_SOURCE"]).args(flags).arg("-o").arg(program);
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../vmadump/tests/programs")).join(name);
    let done = finish(gcc.arg(source), b"", LIMIT)?;
    ensure!(done.status == 0, "musl-gcc {name}: {}", done.err());
    Ok(true)
}

fn musl(cluster: &Cluster) -> Result<()> {
    for (name, _, arguments) in MUSL {
        let program = built(&format!("musl-{name}.out"), cluster, |program| build_musl(name, program))?;
        let Some(program) = program else { return Ok(()) };
        // Before Linux 6.15 POSIX timers cannot go back to where they were.
        let way = if name == "all.c" && !timers_return() { &["0", "1", "2"][..] } else { &AROUND };
        around(cluster, Command::new(program).args(arguments), way).with_context(|| format!("musl {name}"))?;
    }
    Ok(())
}

fn timers_return() -> bool {
    // SAFETY: PR_TIMER_CREATE_RESTORE_IDS_GET takes no pointer and changes nothing.
    unsafe { libc::prctl(77, 2, 0, 0, 0) >= 0 }
}

fn descriptors(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "vmadump/tests/programs/fds.c", &["-DUNTIL_TOLD", "-DPAUSE=50000"], false)?;
    around(cluster, &mut Command::new(program), &AROUND)
}

fn memory_files(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "vmadump/tests/programs/memory.c", &["-DUNTIL_TOLD", "-DPAUSE=50000"], false)?;
    around(cluster, &mut Command::new(&program), &AROUND)?;
    around(cluster, Command::new(&program).arg("65534"), &AROUND).context("another user")
}

fn sixty_four_threads(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/sync.c", &[], false)?;
    around(cluster, &mut Command::new(program), &AROUND)
}

fn sparse(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/sparse.c", &[], false)?;
    around(cluster, &mut Command::new(program), &AROUND)
}

fn settings(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/settings.c", &[], false)?;
    around(cluster, &mut Command::new(&program), &AROUND)?;
    around(cluster, Command::new(&program).arg("65534"), &AROUND).context("another user")
}

/// What a fork and exec hands on, as natively: scheduling, processors, and all else that comes from who starts a program.
fn inherited(cluster: &Cluster) -> Result<()> {
    // What it says of itself when it may not set something natively.
    const REFUSED: i32 = 77;
    let program = compile(cluster, "tests/programs/inherited.c", &[], false)?;
    let program = program.display();
    // That a set-user-id program of the node gets no rights is not taken off silently.
    let jailed = cluster.shell(&format!("{program} set no-root user -- bpsh 1 {program}"))?;
    ensure!(jailed.status != 0 && jailed.err().contains("secure bits"), "{jailed:?}");
    for words in [
        "",
        "processor batch nice io personality oom slack core",
        "idle umask limits signals",
        "fifo slack",
        "rr io-idle",
        "reset",
        "spared",
        "bits privileges",
    ] {
        for user in ["", "user"] {
            let start = |how: &str| {
                let line = format!("{program} set {words} {user} {how} {program}");
                finish(cluster.command("sh").args(["-c", &line]), b"", LIMIT)
            };
            let native = start("fork --")?;
            if native.status == REFUSED {
                println!("skipped: {}", native.err().trim());
                continue;
            }
            let through = start("-- bpsh 1")?;
            ensure!(native.status == 0 && !native.stdout.is_empty(), "{words} {user}: natively {native:?}");
            ensure!(
                through == native,
                "{words} {user}:\n{}{}instead of\n{}",
                through.err(),
                through.out(),
                native.out()
            );
        }
    }
    cluster.quiet()
}

fn rights(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/rights.c", &[], false)?;
    for words in [
        &["nice", "batch", "slack", "processor", "reaper"][..],
        &["fifo", "filter"],
        &["user", "nice", "processor"],
        &["user", "filter", "privileges"],
        &["user", "privileges", "nice", "slack"],
        &["privileges", "filter"],
        // What somebody got from elsewhere, and keeps: capabilities, another user.
        &["user", "capabilities"],
        &["user", "capabilities", "bits", "nice"],
        &["user", "capabilities", "bounding"],
        &["user", "bounding"],
        &["user", "saved"],
        &["user", "effective", "processor"],
    ] {
        let mut command = Command::new(&program);
        around(cluster, command.args(words), &AROUND).with_context(|| words.join(" "))?;
    }
    Ok(())
}

/// What a filter forbids never works, also not while the process is being stopped.
fn filters(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/filtered.c", &["-pthread"], false)?;
    around(cluster, &mut Command::new(&program), &AROUND)?;
    around(cluster, Command::new(&program).arg("threads"), &AROUND)
}

/// What a process got while it was away it keeps there; nobody vouches for it, and it runs on.
fn rights_beyond_the_user(cluster: &Cluster) -> Result<()> {
    let gain = cluster.dir().join("log/gain");
    std::fs::copy("/bin/sleep", &gain)?;
    std::fs::set_permissions(&gain, std::fs::Permissions::from_mode(0o4755))?;
    let flag = cluster.dir().join("log/away");
    let script = format!(
        "echo ready; while [ ! -e {} ]; do sleep 0.05; done; echo gains; exec {} 100",
        flag.display(),
        gain.display()
    );
    let mut program = Command::new("/bin/bash");
    let mut program = Traveller::start(program.args(["-c", &script]).uid(65534).gid(65534))?;
    program.until("ready")?;
    travel(cluster, program.pid(), "0")?;
    std::fs::write(&flag, "")?;
    program.until("gains")?;
    let refused = eventually("it has more rights", LIMIT, || {
        let done = try_move(cluster, program.pid(), "1")?;
        ensure!(done.status == 1 || place(cluster, program.pid())? == "1", "{done:?}");
        let words = "it belongs to user 65534 and has the rights of user 0, for which nobody vouches";
        Ok(if done.err().contains(words) { Ok(()) } else { Err(format!("{done:?}")) })
    });
    refused?;
    let done = try_move(cluster, program.pid(), "master")?;
    ensure!(done.status == 1 && done.err().contains("nobody vouches"), "{done:?}");
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    // What it cannot do without where nothing can stand for it.
    let mut bare = Command::new("setpriv");
    let mut bare = Traveller::start(bare.args(["--bounding-set", "-all", "sh", "-c", "echo ready; exec sleep 100"]))?;
    bare.until("ready")?;
    let done = try_move(cluster, bare.pid(), "0")?;
    ensure!(done.status == 1 && done.err().contains("its bounding set lacks capabilities"), "{done:?}");
    bare.child.kill()?;
    ensure!(bare.end()?.1 == libc::SIGKILL, "its end");
    let program = compile(cluster, "tests/programs/rights.c", &[], false)?;
    for (word, wanted) in [("noroot", "its secure bits"), ("chown", "its bounding set lacks capabilities (0x1)")] {
        let mut program = Command::new(&program);
        let mut program = Traveller::start(program.args(["user", "capabilities", "bits", "bounding", word]))?;
        program.until("round 0")?;
        let done = try_move(cluster, program.pid(), "0")?;
        ensure!(done.status == 1 && done.err().contains(wanted), "{done:?}");
        signal_to(program.pid(), libc::SIGTERM)?;
        let (rest, status) = program.end()?;
        ensure!(rest.ends_with("done\n") && status == 42 << 8, "{rest}, status {status:#x}");
    }
    cluster.quiet()
}

/// The master's agent forgets what it has seen when it ends: who has rights of his own stays where he is.
fn rights_and_a_new_agent(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/rights.c", &[], false)?;
    let mut program = Traveller::start(Command::new(program).args(["user", "capabilities"]))?;
    program.until("round 0")?;
    travel(cluster, program.pid(), "0")?;
    cluster.stop_agent(Role::Master, libc::SIGKILL)?;
    cluster.start_agent(Role::Master)?;
    cluster.wait_up()?;
    let done = try_move(cluster, program.pid(), "1")?;
    ensure!(done.status == 1 && done.err().contains("has capabilities (0x401), for which nobody vouches"), "{done:?}");
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    cluster.quiet()
}

/// Everything that cannot be carried is told at once, before the process is stopped.
fn refusals(cluster: &Cluster) -> Result<()> {
    if !has("python3") {
        return Ok(());
    }
    let script = "import socket, time, mmap, os, sys\n\
                  s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n\
                  f = open(sys.argv[1], 'wb+'); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192)\n\
                  os.unlink(sys.argv[1]); r, w = os.pipe()\n\
                  d = os.memfd_create('common')\n\
                  if os.fork() == 0: os.close(w); os.read(r, 1); os._exit(0)\n\
                  print('ready', flush=True); time.sleep(100)";
    let mut command = Command::new("python3");
    let mut program = Traveller::start(command.args(["-c", script]).arg(cluster.dir().join("log/unlinked")))?;
    program.until("ready")?;
    let done = try_move(cluster, program.pid(), "0")?;
    for words in ["socket", "deleted file", "pipe", "shares the memory", "memfd common, which process"] {
        ensure!(done.status == 1 && done.err().contains(words), "{done:?} instead of {words}");
    }
    program.child.kill()?;
    // Its output ends with its child, which ends with the pipe between the two.
    ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    cluster.quiet()
}

/// What its place does not have by itself a process would lose: it is told so, and runs on.
fn namespaces(cluster: &Cluster) -> Result<()> {
    const SCRIPT: &str = "echo $$; exec sleep 1000";
    let refused = |pid: i32, node: &str, words: &str| -> Result<()> {
        let done = try_move(cluster, pid, node)?;
        ensure!(done.status == 1 && done.err().contains(words), "{done:?} instead of {words}");
        Ok(())
    };
    let own = |name: &str| format!("it has a namespace of its own, which it would lose: {name}");
    for (kind, name) in [("--uts", "host name"), ("--net", "network"), ("--ipc", "IPC"), ("--mount", "mount")] {
        let mut command = Command::new("unshare");
        let mut program = Traveller::start(command.args([kind, "sh", "-c", SCRIPT]))?;
        program.line()?;
        refused(program.pid(), "0", &own(name))?;
        program.child.kill()?;
        ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    }
    // On a node, also.
    let mut program = Traveller::start(cluster.command("bpsh").args(["0", "unshare", "--uts", "sh", "-c", SCRIPT]))?;
    let pid: i32 = program.line()?.trim().parse()?;
    refused(pid, "1", &own("host name"))?;
    refused(pid, "master", &own("host name"))?;
    signal_to(pid, libc::SIGKILL)?;
    program.end()?;
    // One that has no first thread any more has not ended.
    let program = compile(cluster, "vmadump/tests/programs/habits.c", &[], false)?;
    let mut program = Traveller::start(Command::new(program).arg("first"))?;
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap_or_default();
    eventually("the first thread's end", LIMIT, || {
        let stat = stat();
        Ok(if stat.contains(") Z ") { Ok(()) } else { Err(stat) })
    })?;
    refused(program.pid(), "0", "its first thread has ended")?;
    program.until("done")?;
    ensure!(program.end()?.1 == 42 << 8, "its end");
    cluster.quiet()
}

/// renice, taskset, prlimit and ionice of a ghost do to its process what they do to any other, wherever that is.
fn what_is_done_to_ghosts(cluster: &Cluster) -> Result<()> {
    let script = "while :; do echo $$ $(nice) $(nproc) $(ulimit -n) $(ionice); sleep 0.1; done";
    let mut program = Traveller::start(cluster.command("bpsh").args(["0", "sh", "-c", script]))?;
    let first = program.line()?;
    let ghost = first.split(' ').next().context("a number")?.to_owned();
    let done_to = |words: &str| -> Result<()> {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().context("a program")?);
        let done = finish(command.args(words).arg(&ghost), b"", LIMIT)?;
        ensure!(done.status == 0, "{done:?}");
        Ok(())
    };
    for (what, shown) in [
        (&["renice -n 7 -p", "taskset -p 1", "prlimit --nofile=77 -p", "ionice -c 3 -p"][..], "7 1 77 idle"),
        (&["renice -n 9 -p"][..], "9 1 77 idle"),
    ] {
        what.iter().try_for_each(|words| done_to(words))?;
        program.until(&format!("{ghost} {shown}"))?;
        let moved = try_move(cluster, ghost.parse()?, "1")?;
        ensure!(moved.status == 0, "{moved:?}");
    }
    done_to("kill -KILL")?;
    ensure!(program.end()?.1 != 0, "it was killed");
    cluster.quiet()
}

/// Limits below what any program needs: the process goes around with them, or is refused in words where the machine withholds
/// from root the right to raise those that are hard. It never ends of that, and nothing of it stays.
fn limits(cluster: &Cluster) -> Result<()> {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("it has capabilities")?;
    let may_raise = u64::from_str_radix(caps.trim(), 16)? & SYS_RESOURCE != 0;
    let program = compile(cluster, "tests/programs/limits.c", &[], false)?;
    // First those that a move would end. `=`: the hard one as it is; `exec`: only where natively a program can begin with it.
    for limits in [
        "nofile:1:=",
        "nofile:0:=",
        "nofile:1:1",
        "nofile:0:0",
        "nofile:3:3",
        "stack:8192:=",
        "stack:8192:8192",
        "as:use:=",
        "as:use:use",
        "data:1000:=",
        "data:1000:1000",
        "data:300000:=",
        "data:2000000:2000000",
        "exec fsize:0:0",
        "exec cpu:20:20",
        "exec memlock:0:0",
        "user exec nproc:1:1",
        "user exec nproc:1:=",
        "user nofile:0:=",
        "user nofile:1:1",
        "user stack:8192:=",
        "user as:use:=",
        "user data:1000:1000",
    ] {
        let mut command = Command::new(&program);
        with_limits(cluster, command.args(limits.split(' ')), limits.ends_with(":=") || may_raise)
            .with_context(|| limits.to_owned())?;
    }
    cluster.quiet()
}

/// One that says `round` in each, ends with `done` and 42 when told; `all`: it goes wherever it is sent.
fn with_limits(cluster: &Cluster, command: &mut Command, all: bool) -> Result<()> {
    let mut program = Traveller::start(command)?;
    let mut at = "master";
    for node in ["1", "2", "1", "master", "0", "master"] {
        let line = program.line()?;
        ensure!(line.starts_with("round"), "on {at}: {line} {:?}", program.end()?);
        let moved = try_move(cluster, program.pid(), node)?;
        let refused = !all && moved.status != 0 && moved.err().contains("CAP_SYS_RESOURCE");
        ensure!(moved.status == 0 || refused, "{at} to {node}: {}", moved.err());
        if moved.status == 0 {
            at = node;
        }
        let there = place(cluster, program.pid())?;
        ensure!(there == at, "it is on {there} instead of {at}");
    }
    // What it says from here on is of the last place.
    signal_to(program.pid(), libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    let good = rest.lines().all(|line| line.starts_with("round") || line == "done") && rest.ends_with("done\n");
    ensure!(good && status == 42 << 8, "{rest}, status {status:#x}");
    cluster.quiet()
}

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(BUILD) {
        let done = build_all(Path::new(&dir));
        done.as_ref().inspect_err(|error| eprintln!("{error:#}")).ok();
        return if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let tests = vec![
        Test::new("go", go),
        Test::new("rust_with_tokio", tokio),
        Test::new("node", node),
        Test::new("python_with_threads", python),
        Test::new("musl", musl),
        Test::new("descriptors_of_its_own", descriptors),
        Test::new("memory_files", memory_files),
        Test::new("sixty_four_threads", sixty_four_threads),
        Test::new("sparse", sparse),
        Test::new("settings", settings),
        Test::new("inherited", inherited),
        Test::new("rights", rights),
        Test::new("filters", filters),
        Test::new("rights_beyond_the_user", rights_beyond_the_user),
        Test::new("what_is_done_to_ghosts", what_is_done_to_ghosts),
        Test::new("limits_below_all_needs", limits),
        Test::new("rights_and_a_new_agent", rights_and_a_new_agent),
        Test::new("refusals_all_at_once", refusals),
        Test::new("namespaces_of_its_own", namespaces),
        Test::new("landlock", landlock::stays),
        Test::new("landlock_on_the_way", landlock::on_the_way),
    ];
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
