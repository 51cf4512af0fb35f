//! What `ps` and `top` on the master show of programs on nodes, where the kernel takes the eBPF programs for it.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::run::finish;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, go};

const LIMIT: Duration = Duration::from_secs(30);
const BUSY: &str = "while :; do :; done";
/// KiB that one with some memory has, at least.
const SOME: u64 = 30_000;

/// Whether this kernel shows anything; else says that the test is skipped.
fn shows(cluster: &Cluster) -> bool {
    let attached = cluster.attached();
    let missing = ["shown_stat", "shown_status", "shown_read"].into_iter().find(|name| !attached.contains(*name));
    if let Some(name) = missing {
        println!("skipped: this kernel refuses the fexit program {name}");
    }
    missing.is_none()
}

/// What `ps` says.
#[derive(Debug)]
struct Line {
    state: String,
    /// CPU time.
    seconds: u64,
    /// Memory, KiB: resident, and virtual.
    rss: u64,
    vsz: u64,
}

/// `None`: there is no such process.
fn ps(pid: i32) -> Result<Option<Line>> {
    let mut ps = Command::new("ps");
    let done = finish(ps.args(["-o", "state=,cputimes=,rss=,vsz=", "-p", &pid.to_string()]), b"", LIMIT)?;
    let out = done.out();
    let words: Vec<&str> = out.split_whitespace().collect();
    let [state, seconds, rss, vsz] = words[..] else { return Ok(None) };
    Ok(Some(Line { state: state.to_owned(), seconds: seconds.parse()?, rss: rss.parse()?, vsz: vsz.parse()? }))
}

/// Waits until `ps` shows it so. CPU time never goes back.
fn until(what: &str, pid: i32, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
    let mut before = 0;
    eventually(what, LIMIT, || {
        let shown = ps(pid)?.context("ps does not show it")?;
        ensure!(shown.seconds >= before, "{} s after {before}", shown.seconds);
        before = shown.seconds;
        Ok(if wanted(&shown) { Ok(shown) } else { Err(format!("ps shows {shown:?}")) })
    })
}

/// Ends it, and looks that nothing of it is shown any more.
fn end(cluster: &Cluster, program: Traveller, pid: i32) -> Result<()> {
    signal_to(pid, libc::SIGKILL)?;
    let status = program.end()?.1;
    ensure!(status == libc::SIGKILL || libc::WEXITSTATUS(status) == 255, "it, or bpsh, ended by {status:#x}");
    ensure!(ps(pid)?.is_none(), "ps shows it still");
    cluster.quiet()
}

/// Starts a script on a node, and gives its number, too.
fn bpsh(cluster: &Cluster, node: &str, script: &str) -> Result<(Traveller, i32)> {
    let mut command = cluster.command("bpsh");
    let program = Traveller::start_with_input(command.args([node, "sh", "-c", script]).stdin(Stdio::piped()))?;
    let ghost = eventually("its ghost is there", LIMIT, || {
        let ghosts = cluster.ghosts();
        let found = ghosts.iter().find(|ghost| ghost.ppid == program.pid()).map(|ghost| ghost.pid);
        Ok(found.ok_or_else(|| format!("there are {ghosts:?}")))
    })?;
    Ok((program, ghost))
}

fn busy(cluster: &Cluster) -> Result<()> {
    if !shows(cluster) {
        return Ok(());
    }
    let (program, pid) = bpsh(cluster, "0", BUSY)?;
    let first = until("it runs and uses time", pid, |line| line.state == "R" && line.seconds >= 1)?.seconds;
    until("it uses more", pid, |line| line.state == "R" && line.seconds > first + 1)?;
    let top = finish(Command::new("top").args(["-b", "-n1", "-p", &pid.to_string()]).env("TERM", "dumb"), b"", LIMIT)?;
    let out = top.out();
    let line = out.lines().find(|line| line.split_whitespace().next() == Some(&pid.to_string())).context("no line")?;
    // PID USER PR NI VIRT RES SHR S %CPU %MEM TIME+ COMMAND
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words.len() >= 12 && words[7] == "R" && !words[10].starts_with("0:00"), "top shows {line}");
    signal_to(pid, libc::SIGSTOP)?;
    let stopped = until("it is stopped", pid, |line| line.state == "T")?.seconds;
    signal_to(pid, libc::SIGCONT)?;
    until("it goes on", pid, |line| line.state == "R" && line.seconds > stopped)?;
    println!("EXERCISED cluster: ps and top show state and CPU time of a program on a node");
    end(cluster, program, pid)
}

fn memory(cluster: &Cluster) -> Result<()> {
    if !shows(cluster) {
        return Ok(());
    }
    // The shell itself has it, and waits for input.
    let script = "x=12345678; i=0; while [ $i -lt 22 ]; do x=$x$x; i=$((i+1)); done; echo ready; read y; echo $x";
    let (mut program, pid) = bpsh(cluster, "1", script)?;
    program.until("ready")?;
    until("it sleeps with it", pid, |line| line.state == "S" && line.rss >= SOME && line.vsz >= line.rss)?;
    println!("EXERCISED cluster: ps shows the memory of a program on a node");
    end(cluster, program, pid)
}

/// What it used before is in the sum, on the master and on each node; at home it is itself.
fn moved(cluster: &Cluster) -> Result<()> {
    if !shows(cluster) {
        return Ok(());
    }
    let program = Traveller::start(Command::new("sh").args(["-c", BUSY]))?;
    let pid = program.pid();
    let mut seconds = until("it uses time here", pid, |line| line.seconds >= 2)?.seconds;
    for node in ["0", "1"] {
        go(cluster, pid, node)?;
        let before = seconds;
        seconds = until("it goes on", pid, |line| line.state == "R" && line.seconds >= before + 2)?.seconds;
    }
    go(cluster, pid, "master")?;
    until("it is at home", pid, |line| line.state == "R")?;
    end(cluster, program, pid)
}

/// A new agent is told anew.
fn new_agent(cluster: &Cluster) -> Result<()> {
    if !shows(cluster) {
        return Ok(());
    }
    let (program, pid) = bpsh(cluster, "0", BUSY)?;
    until("it runs", pid, |line| line.state == "R" && line.seconds >= 1)?;
    cluster.stop_agent(Role::Master, libc::SIGKILL)?;
    cluster.start_agent(Role::Master)?;
    cluster.wait_up()?;
    eventually("it runs", LIMIT, || {
        let shown = ps(pid)?.context("ps does not show it")?;
        Ok(if shown.state == "R" && shown.seconds >= 1 { Ok(()) } else { Err(format!("ps shows {shown:?}")) })
    })?;
    end(cluster, program, pid)
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("busy", busy),
        Test::new("memory", memory),
        Test::new("moved", moved),
        Test::new("new_agent", new_agent),
    ];
    runner::main(|| Cluster::start(2), tests, Cluster::close)
}
