//! Signals to whole groups: nobody of a group that forks all the time is left, and each member gets a signal once, also when an
//! agent is killed meanwhile. First natively.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually};
use bproc_tests::procs::Proc;
use bproc_tests::pty::{INTERRUPT, PROMPT, QUIT, Session};
use bproc_tests::run::patience;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, compile};

const PROGRAM: &str = "tests/programs/groups.c";
const SOON: Duration = Duration::from_secs(20);
const ROUNDS: usize = 5;
/// Counting processes, on each node.
const COUNT: usize = 6;

/// It leads a group of its own, as all programs of tests do.
fn signal_group(leader: &Traveller, signal: i32) -> Result<()> {
    let group = leader.pid();
    ensure!(group > 1, "no group {group}");
    // SAFETY: no memory; the group's leader is a child that has not been waited for, so the number is nobody else's.
    let sent = unsafe { libc::kill(-group, signal) };
    ensure!(sent == 0, "kill(-{group}, {signal}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// Processes of the program, here or in any space, that have not ended.
fn alive(cluster: &Cluster) -> usize {
    let program = cluster.dir().join("log/groups");
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Proc::read).filter(|p| p.exe == program && p.state != 'Z').count()
}

fn all_have_ended(cluster: &Cluster, what: &str) -> Result<()> {
    eventually(what, SOON, || Ok(if alive(cluster) == 0 { Ok(()) } else { Err(format!("{} live", alive(cluster))) }))
}

/// Waits until so many programs have their ghosts: a group of which one is being started is signalled one by one.
fn are_answered(cluster: &Cluster, count: usize) -> Result<()> {
    eventually("their starts are answered", SOON, || {
        let of_bpsh = |ghost: &&Proc| Proc::read(ghost.ppid).is_some_and(|parent| parent.comm == "bpsh");
        let ghosts = cluster.ghosts().iter().filter(of_bpsh).count();
        Ok(if ghosts == count { Ok(()) } else { Err(format!("there are {ghosts}")) })
    })
}

/// How long a process of a bomb lives. An emulated processor makes ghosts for a few dozen a second only, and what is started
/// then waits behind thousands.
fn pace() -> String {
    patience(Duration::from_millis(50)).as_micros().to_string()
}

fn bombs(cluster: &Cluster, signal: i32) -> Result<()> {
    let program = compile(cluster, PROGRAM, &[], false)?;
    let bomb = |nodes: Option<&str>| match nodes {
        None => Command::new(&program),
        Some(nodes) => {
            let mut bpsh = cluster.command("bpsh");
            bpsh.arg(nodes).arg(&program);
            bpsh
        }
    };
    for (on, nodes, rounds) in [(None, 1, 2), (Some("0"), 1, ROUNDS), (Some("0-2"), 3, ROUNDS)] {
        for round in 0..rounds {
            let mut bomb = Traveller::start(bomb(on).arg("bomb").env("PACE_US", pace()))?;
            for _ in 0..nodes {
                bomb.until("under way")?;
            }
            are_answered(cluster, on.map_or(0, |_| nodes))?;
            // It is all there, and has forked for a while.
            std::thread::sleep(Duration::from_millis(20 + 7 * round as u64));
            signal_group(&bomb, signal)?;
            let (_, status) = bomb.end()?;
            ensure!(status & 0x7f == signal, "on {on:?} it ended with {status:#x}");
            all_have_ended(cluster, "the end of all")?;
        }
    }
    cluster.quiet()
}

fn keys(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, PROGRAM, &[], false)?;
    let mut person = Session::start(cluster.command("bash").env("PACE_US", pace()))?;
    person.line("ulimit -c 0")?;
    for round in 0..ROUNDS {
        let key = if round % 2 == 0 { INTERRUPT } else { QUIT };
        person.type_in(&format!("bpsh 0 {} bomb\n", program.display()))?;
        person.expect("under way")?;
        are_answered(cluster, 1)?;
        person.type_in(key)?;
        person.expect(PROMPT)?;
        all_have_ended(cluster, "the end of all")?;
    }
    cluster.quiet()
}

/// What each that counts has got.
fn counts(counting: Traveller) -> Result<Vec<String>> {
    let (said, _) = counting.end()?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Started each by itself: what a node's program forks has no ghost for a moment, and is missed while the master's agent is away.
fn counted(cluster: &Cluster) -> Result<(Traveller, usize)> {
    let program = compile(cluster, PROGRAM, &[], false)?;
    let nodes = ["0,1"; COUNT].join(",");
    // bpsh itself has to live.
    let mut shell = cluster.command("sh");
    shell.arg("-c").arg(format!("trap '' 34 35; exec bpsh {nodes} {} count", program.display()));
    let mut counting = Traveller::start(&mut shell)?;
    for _ in 0..2 * COUNT {
        counting.until("under way")?;
    }
    are_answered(cluster, 2 * COUNT)?;
    Ok((counting, 2 * COUNT))
}

fn each_once(cluster: &Cluster) -> Result<()> {
    let (counting, all) = counted(cluster)?;
    for _ in 0..10 {
        signal_group(&counting, libc::SIGRTMIN())?;
    }
    signal_group(&counting, libc::SIGRTMIN() + 1)?;
    let got = counts(counting)?;
    ensure!(got == vec!["got 10"; all], "{got:?}");
    cluster.quiet()
}

/// Before, while and after agents are away. Where both are killed at once it is not certain whether a node has had what the master
/// had sent: it comes again rather than not.
fn agents_die(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    for pause in [0, 1, 5] {
        let (counting, all) = counted(cluster)?;
        signal_group(&counting, libc::SIGRTMIN())?;
        std::thread::sleep(Duration::from_millis(pause));
        roles.iter().try_for_each(|role| cluster.stop_agent(*role, libc::SIGKILL))?;
        signal_group(&counting, libc::SIGRTMIN())?;
        roles.iter().try_for_each(|role| cluster.start_agent(*role))?;
        signal_group(&counting, libc::SIGRTMIN())?;
        cluster.wait_up()?;
        signal_group(&counting, libc::SIGRTMIN())?;
        signal_group(&counting, libc::SIGRTMIN() + 1)?;
        let got = counts(counting)?;
        let good = |line: &String| line == "got 4" || (roles.len() > 1 && line == "got 5");
        ensure!(got.len() == all && got.iter().all(good), "{pause} ms: {got:?}");
    }
    cluster.quiet()
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("terminated_while_it_forks", |cluster: &Cluster| bombs(cluster, libc::SIGTERM)),
        Test::new("hung_up_while_it_forks", |cluster: &Cluster| bombs(cluster, libc::SIGHUP)),
        Test::new("killed_while_it_forks", |cluster: &Cluster| bombs(cluster, libc::SIGKILL)),
        Test::new("keys_while_it_forks", keys),
        Test::new("each_member_once", each_once),
        Test::new("a_master_dies", |cluster: &Cluster| agents_die(cluster, &[Role::Master])),
        Test::new("a_node_dies", |cluster: &Cluster| agents_die(cluster, &[Role::Node(0)])),
        Test::new("both_die", |cluster: &Cluster| agents_die(cluster, &[Role::Master, Role::Node(0)])),
    ];
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
