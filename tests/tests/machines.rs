//! Nodes that are machines of their own as far as one kernel allows it: other networks, joined by cables with
//! certificates at both ends, and no directory of agents in common. Needs `ip` and a kernel with veth.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::cluster::{Cluster, Options, Role, apart, signal_to};
use bproc_tests::leading::{lists_of_a_node, outputs_that_stay};
use bproc_tests::run::finish;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{AROUND, Traveller, around, compile, from_anywhere, go, place, what_they_became};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

fn said(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let done = cluster.bpsh(arguments)?;
    ensure!(done.status == 0, "{arguments:?}: {done:?}");
    Ok(done.out())
}

/// They are apart indeed.
fn separation(cluster: &Cluster) -> Result<()> {
    let own = fs::read_link("/proc/self/ns/net")?.to_string_lossy().into_owned();
    for node in ["0", "1", "2"] {
        let there = said(cluster, &[node, "readlink", "/proc/self/ns/net"])?;
        ensure!(there.trim() != own, "node {node} is on the master's network");
        let addresses = said(cluster, &[node, "ip", "-o", "-4", "addr", "show", "dev", "eth0"])?;
        ensure!(addresses.contains(&format!("10.213.0.{}/", 2 + node.parse::<i32>()?)), "{addresses}");
        let run = said(cluster, &[node, "ls", &cluster.run_dir().to_string_lossy()])?;
        ensure!(!run.contains("master.lock") && run.contains(&format!("node-{node}")), "{run}");
    }
    Ok(())
}

/// Programs, their streams, statuses and signals.
fn programs(cluster: &Cluster) -> Result<()> {
    for node in ["0", "1", "2"] {
        let done = cluster.bpsh(&[node, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
        ensure!((done.status, done.out().as_str(), done.err().as_str()) == (7, "out\n", "err\n"), "{done:?}");
        let input = vec![b'x'; 3 << 20];
        let done = cluster.bpsh_with(&[node, "sha256sum"], &input)?;
        let native = finish(&mut Command::new("sha256sum"), &input, LIMIT)?;
        ensure!(done.stdout == native.stdout, "{done:?}");
    }
    let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    let mut command = cluster.command("bpsh");
    let mut program = Traveller::start(command.args(["1", "sh", "-c", script]))?;
    program.until("ready")?;
    // The shell is bpsh's child: its ghost.
    let ghost = cluster.client()?.processes().map_err(|e| anyhow::anyhow!("{e}"))?;
    let pid = ghost.iter().map(|p| p.pid).min().context("a process on a node")?;
    signal_to(pid, libc::SIGSTOP)?;
    signal_to(pid, libc::SIGCONT)?;
    signal_to(pid, libc::SIGTERM)?;
    let (rest, status) = program.end()?;
    ensure!((rest.as_str(), status) == ("got\n", 9 << 8), "{rest:?}, status {status:#x}");
    cluster.quiet()
}

fn moves(cluster: &Cluster) -> Result<()> {
    around(
        cluster,
        &mut Command::new(compile(cluster, "vmadump/tests/programs/all.c", &["-DUNTIL_TOLD"], false)?),
        &AROUND,
    )
}

fn threads(cluster: &Cluster) -> Result<()> {
    let flags = ["-DUNTIL_TOLD", "-DPAUSE=100000"];
    around(
        cluster,
        Command::new(compile(cluster, "vmadump/tests/programs/threads.c", &flags, false)?).arg("8"),
        &AROUND,
    )
}

/// A user's process, killed at last.
fn a_user(cluster: &Cluster) -> Result<()> {
    let mut program = Traveller::start(Command::new("/bin/sleep").arg("100").uid(NOBODY).gid(NOBODY))?;
    let pid = program.pid();
    for node in ["0", "1", "master", "2", "0"] {
        go(cluster, pid, node)?;
    }
    program.child.kill()?;
    ensure!(program.end()?.1 == libc::SIGKILL, "its end");
    cluster.quiet()
}

/// Root of a node's machine, who is no process of the space, moves what is there and nothing else.
fn root_of_a_node(cluster: &Cluster) -> Result<()> {
    let outside = |node, arguments: &[&str]| finish(cluster.command_on(node, "bpmove")?.args(arguments), b"", LIMIT);
    let control = |mode| -> Result<()> {
        let done = finish(cluster.command("bpctl").args(["-S", "0", "-m", mode]), b"", LIMIT)?;
        ensure!(done.status == 0, "{done:?}");
        Ok(())
    };
    let homebody = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let user = Traveller::start(Command::new("/bin/sleep").arg("100").uid(NOBODY).gid(NOBODY))?;
    let (home, away) = (homebody.pid().to_string(), user.pid().to_string());
    for node in ["0", "1"] {
        let done = outside(0, &[&home, node])?;
        ensure!(done.status == 1 && done.err().contains("ask on the master"), "{done:?}");
    }
    go(cluster, user.pid(), "1")?;
    let done = outside(0, &[&away, "0"])?;
    ensure!(done.status == 1 && done.err().contains("speaks for its own only"), "{done:?}");
    let done = outside(1, &[&away, "2"])?;
    ensure!(done.status == 0 && place(cluster, user.pid())? == "2", "{done:?}");
    // Not where its user may not be.
    control("100")?;
    let done = outside(2, &[&away, "0"])?;
    ensure!(done.status == 1 && place(cluster, user.pid())? == "2", "{done:?}");
    control("111")?;
    for mut one in [homebody, user] {
        one.child.kill()?;
        ensure!(one.end()?.1 == libc::SIGKILL, "its end");
    }
    cluster.quiet()
}

/// What is asked on a node's machine: of the processes there, by them, and by others there.
fn calls(cluster: &Cluster) -> Result<()> {
    let mut here = Traveller::start(Command::new("/bin/sleep").arg("100"))?;
    let pid = here.pid();
    go(cluster, pid, "2")?;
    let listed = said(cluster, &["0", "bpstat"])?;
    ensure!(listed == finish(&mut cluster.command("bpstat"), b"", LIMIT)?.out(), "{listed}");
    let listed = said(cluster, &["1", "bpstat", "-p"])?;
    ensure!(listed.lines().any(|line| line.split_whitespace().eq([&pid.to_string(), "2"])), "{listed}");
    // The master's address, which each of them reaches.
    let addresses = finish(cluster.command("bpstat").args(["--address", "master"]), b"", LIMIT)?.out();
    ensure!(addresses.trim().parse::<std::net::Ipv4Addr>().is_ok_and(|ip| !ip.is_loopback()), "{addresses:?}");
    for node in ["0", "2"] {
        let listed = said(cluster, &[node, "bpstat", "--address", "master"])?;
        ensure!(listed == addresses, "{listed:?}, not {addresses:?}");
    }
    // From a third machine, between two others, home, and out.
    for node in ["1", "master", "0"] {
        said(cluster, &["0", "bpmove", &pid.to_string(), node])?;
        ensure!(place(cluster, pid)? == node, "{node}");
    }
    // A shell has its child move it.
    let script = "bpmove $$ 1 && echo moved $? && readlink /proc/self/ns/net && bpmove $$ 7; echo $?";
    let done = cluster.bpsh(&["0", "sh", "-c", script])?;
    let there = said(cluster, &["1", "readlink", "/proc/self/ns/net"])?;
    ensure!(done.out() == format!("moved 0\n{there}1\n") && done.err().contains("no node 7"), "{done:?}");
    // The rights are those of who asks, as the kernel there says.
    let done =
        cluster.bpsh(&["0", "setpriv", "--reuid", "12345", "--clear-groups", "bpmove", &pid.to_string(), "1"])?;
    ensure!(done.status == 1 && done.err().contains("another user"), "{done:?}");
    // Numbers of other spaces are nobody's.
    let library = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bproc/lib/libbproc.so"));
    let script = format!(
        "import ctypes,errno; l=ctypes.CDLL('{}',use_errno=True)\n\
         print(l.bproc_move(1), errno.errorcode.get(ctypes.get_errno(), 'errno'), l.bproc_currnode())",
        library.display()
    );
    if Path::new("/usr/bin/python3").exists() {
        let text = said(cluster, &["0", "unshare", "-pf", "python3", "-c", &script])?;
        ensure!(text == "-1 EINVAL 0\n", "{text}");
        let text = said(cluster, &["0", "python3", "-c", &script])?;
        ensure!(text == "0 errno 1\n", "{text}");
    }
    let done = cluster.bpsh(&["0", "bpctl", "-S", "1", "-s", "down"])?;
    ensure!(done.status == 1 && done.err().contains("on the master's machine"), "{done:?}");
    ensure!(place(cluster, pid)? == "0", "it was moved");
    here.child.kill()?;
    ensure!(here.end()?.1 == libc::SIGKILL, "its end");
    cluster.quiet()
}

/// Notifiers on nodes tell of each change, several on one machine, and of those while the master's agent was away.
fn notifiers(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/notified.c", &["-std=gnu17"], true)?.display().to_string();
    let control = |mode| -> Result<()> {
        let done = finish(cluster.command("bpctl").args(["-S", "1", "-m", mode]), b"", LIMIT)?;
        ensure!(done.status == 0, "{done:?}");
        Ok(())
    };
    let watchers = ["0", "0", "2"].map(|node| Traveller::start(cluster.command("bpsh").args([node, &program, "1"])));
    let mut watchers = watchers.into_iter().collect::<Result<Vec<_>>>()?;
    watchers.iter_mut().try_for_each(|one| one.until("watching"))?;
    for mode in ["110", "101", "110", "100"] {
        control(mode)?;
        watchers.iter_mut().try_for_each(|one| one.until(&format!("mode {mode}")))?;
    }
    cluster.stop_agent(Role::Master, libc::SIGKILL)?;
    cluster.start_agent(Role::Master)?;
    cluster.wait_up()?;
    for mode in ["111", "0"] {
        control(mode)?;
        watchers.iter_mut().try_for_each(|one| one.until(&format!("mode {mode}")))?;
    }
    for one in watchers {
        ensure!(one.end()?.1 == 0, "its end");
    }
    control("111")?;
    cluster.quiet()
}

/// One process on all of them at once: its image goes from machine to machine, sealed.
fn many_at_once(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/spread.c", &["-std=c11"], true)?;
    for nodes in ["0 1 2", "2 1 0 0 1 2 2"] {
        let mut command = Command::new(&program);
        command.args(["fork", "24"]).args(nodes.split(' '));
        let (text, status) = Traveller::start(cluster.environment(&mut command))?.end()?;
        ensure!(text.lines().last() == Some("done") && status == 0, "{nodes}: {text}, status {status:#x}");
        let came = text.lines().skip_while(|line| *line != "waiting").filter(|line| line.contains(' '));
        let wanted = (0..nodes.split(' ').count()).map(|rank| format!("{rank} {}", (100 + rank) << 8));
        ensure!(came.eq(wanted), "{nodes}: {text}");
    }
    cluster.quiet()
}

fn main() -> ExitCode {
    let options = Options { nodes: 3, apart: true, ..Options::default() };
    let tests = vec![
        Test::new("many_at_once", many_at_once),
        Test::new("nodes_are_apart", separation),
        Test::new("programs_run", programs),
        Test::new("moves_ten_times_around", moves),
        Test::new("threads_ten_times_around", threads),
        Test::new("a_user_other_than_root", a_user),
        Test::new("calls_from_nodes", calls),
        Test::new("notifiers", notifiers),
        Test::new("from_anywhere", |cluster| from_anywhere(cluster, &["-std=gnu17"])),
        Test::new("what_they_became", what_they_became),
        Test::new("outputs_that_stay", outputs_that_stay),
        Test::new("lists_of_a_node", |cluster| lists_of_a_node(cluster, true)),
        Test::new("root_of_a_node", root_of_a_node),
    ];
    if !std::env::args().any(|word| word == "--list") && !matches!(apart::leave(), Ok(true)) {
        println!("skipped: networks of one's own need root, `ip` and veth");
        return ExitCode::SUCCESS;
    }
    runner::main(|| Cluster::start_with(&options), tests, Cluster::close)
}
