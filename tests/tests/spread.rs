//! One process on many nodes at once: bproc_vrfork and bproc_vexecmove. What each rank sees; nodes that are down, that die
//! in the middle, that hang; lists with anything in them.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_common::errno::{BE_INVALIDNODE, BE_NODEDOWN};
use bproc_tests::cluster::{Cluster, Options, Role, apart, eventually, signal_to};
use bproc_tests::corners::corners;
use bproc_tests::leading::{lists_of_a_node, outputs_that_stay};
use bproc_tests::midway::movers;
use bproc_tests::procs::{self, Proc};
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, compile, from_anywhere, what_they_became};

const LIMIT: Duration = Duration::from_secs(60);
const NODES: i32 = 8;
const EVERYWHERE: [i32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// Enough that a tree is worth it.
const MIB: &str = "16";

/// A program that is on its way to many nodes.
struct Spread {
    program: Traveller,
    nodes: Vec<i32>,
}

impl Spread {
    fn start(cluster: &Cluster, what: &str, dialect: &str, mib: &str, nodes: &[i32]) -> Result<Spread> {
        let path = compile(cluster, "tests/programs/spread.c", &[dialect], true)?;
        let mut command = Command::new(path);
        command.args([what, mib]).args(nodes.iter().map(i32::to_string));
        let program = Traveller::start(cluster.environment(&mut command))?;
        Ok(Spread { program, nodes: nodes.to_vec() })
    }

    /// What the parent got: pids and negative numbers, as `wanted` says by rank; 1 for any pid. The pids.
    fn pids(&mut self, wanted: impl Fn(usize, i32) -> i32) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for (rank, node) in self.nodes.iter().enumerate() {
            let line = loop {
                let line = self.program.line()?;
                // What the children write is theirs.
                if !line.contains(" on ") {
                    break line;
                }
            };
            let pid: i32 = line.parse().with_context(|| line.clone())?;
            let wanted = wanted(rank, *node);
            ensure!(pid.min(1) == wanted, "rank {rank} to {node}: {pid} instead of {wanted}");
            pids.push(pid);
        }
        let mut different: Vec<i32> = pids.iter().copied().filter(|pid| *pid > 0).collect();
        different.sort_unstable();
        different.dedup();
        ensure!(different.len() == pids.iter().filter(|pid| **pid > 0).count(), "{pids:?}");
        Ok(pids)
    }

    /// Their ends: exit code 100 + rank, or what `other` says.
    fn end(self, pids: &[i32], other: &BTreeMap<usize, i32>) -> Result<()> {
        let (text, status) = self.program.end()?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" on ") && *line != "waiting").collect();
        let came = pids.iter().enumerate().filter(|(_, pid)| **pid > 0).map(|(rank, _)| rank);
        let wanted =
            came.map(|rank| format!("{rank} {}", other.get(&rank).copied().unwrap_or((100 + rank as i32) << 8)));
        ensure!(
            lines.iter().copied().eq(wanted.chain(["done".to_owned()])) && status == 0,
            "{text}, status {status:#x}"
        );
        Ok(())
    }
}

fn all_come(_: usize, node: i32) -> i32 {
    if node >= NODES { -BE_INVALIDNODE } else { 1 }
}

/// All nodes, some twice, some that are none, and where the caller is.
fn everywhere(cluster: &Cluster) -> Result<()> {
    for (dialect, mib, nodes) in [
        ("-std=c11", MIB, &EVERYWHERE[..]),
        ("-std=gnu17", MIB, &[7, 3, 3, 99, 0, -1, 1, 3, 2, 0, 5]),
        ("-xc++", MIB, &[2, 2, 2, 2]),
        ("-std=gnu17", "0", &EVERYWHERE),
        ("-std=gnu17", "0", &[4, 99]),
        ("-std=gnu17", MIB, &[99, 98, 97, 96]),
    ] {
        let name = format!("{dialect}, {mib} MiB to {nodes:?}");
        let mut spread = Spread::start(cluster, "fork", dialect, mib, nodes)?;
        let pids = spread.pids(all_come).with_context(|| name.clone())?;
        spread.end(&pids, &BTreeMap::new()).with_context(|| name.clone())?;
        cluster.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// From a node: to all, to some twice, to the master, and where the caller is.
fn from_a_node(cluster: &Cluster) -> Result<()> {
    for nodes in [&EVERYWHERE[..], &[7, 3, 3, 99, 0, -1, 1, 3, 2, 0, 5]] {
        let mut spread = Spread::start(cluster, "away", "-std=gnu17", MIB, nodes)?;
        let pids = spread.pids(all_come)?;
        spread.end(&pids, &BTreeMap::new())?;
        cluster.quiet()?;
    }
    Ok(())
}

/// A program, with its rank in its environment.
fn programs(cluster: &Cluster) -> Result<()> {
    let nodes = [5, 1, 99, 1, 0, 7, 6];
    let path = compile(cluster, "tests/programs/spread.c", &["-std=gnu17"], true)?;
    let mut command = Command::new(&path);
    command.args(["exec", "1"]).args(nodes.iter().map(i32::to_string));
    let (text, status) = Traveller::start(cluster.environment(&mut command))?.end()?;
    let mut told: Vec<&str> = text.lines().filter(|line| line.contains(" on ")).collect();
    told.sort_unstable();
    let here = nodes.iter().enumerate().filter(|(_, node)| **node < NODES);
    let wanted: Vec<String> = here.clone().map(|(rank, node)| format!("{rank:07} on {node}")).collect();
    ensure!(told == wanted, "{text}");
    for (rank, _) in here {
        let line = format!("{rank} {}", (100 + rank as i32) << 8);
        ensure!(text.lines().any(|l| l == line), "no {line}: {text}");
    }
    ensure!(text.lines().any(|l| l == format!("{}", -BE_INVALIDNODE)) && status == 0, "{text}, {status:#x}");
    cluster.quiet()
}

/// The program that a process on a node executes elsewhere is that of its node.
fn programs_of_a_node(cluster: &Cluster) -> Result<()> {
    let path = compile(cluster, "tests/programs/carried.c", &[], true)?;
    let dir = cluster.dir().join("log/mine");
    std::fs::create_dir_all(&dir)?;
    for (nodes, said) in [("1", "there\n"), ("master", "there\n"), ("1 master 0 2 1 7", "everywhere\n")] {
        let mut command = Command::new(&path);
        let program = Traveller::start(cluster.environment(command.arg(&dir).args(nodes.split(' '))))?;
        let (text, status) = program.end()?;
        ensure!(text == said && status == 42 << 8, "{nodes}: {text}, status {status:#x}");
        cluster.quiet().context(nodes)?;
    }
    Ok(())
}

/// A program that cannot be executed on the node where the caller's parent is: the call says so, and the parent hears nothing of it,
/// as natively.
fn programs_that_fail(cluster: &Cluster) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = compile(cluster, "tests/programs/fails.c", &[], true)?;
    let text = |name: &str, mode: u32| -> Result<String> {
        let file = cluster.dir().join(format!("log/{name}"));
        fs::write(&file, "no program")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        Ok(file.to_string_lossy().into_owned())
    };
    let run = |words: &[&str]| {
        let mut command = Command::new(&path);
        Traveller::start(cluster.environment(command.args(words)))?.end()
    };
    for file in ["/does/not/exist".to_owned(), "/etc".to_owned(), text("data", 0o644)?, text("words", 0o755)?] {
        // The two write at the same time.
        let sorted = |(text, status): (String, i32)| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            (lines, status)
        };
        let native = sorted(run(&["-9", "-9", "0", &file])?);
        ensure!(native.1 == 0 && native.0.contains(&"status 1280".to_owned()), "natively: {native:?}");
        for arrangement in [
            ["3", "3", "0"],
            ["3", "3", "1"],
            ["3", "3", "2"],
            ["-1", "3", "0"],
            ["-1", "3", "1"],
            ["3", "3", "11"],
            ["2", "3", "11"],
            ["-1", "3", "11"],
        ] {
            for _ in 0..3 {
                let words: Vec<&str> = arrangement.iter().copied().chain([file.as_str()]).collect();
                let seen = sorted(run(&words)?);
                ensure!(seen == native, "{words:?}: {seen:?}, natively {native:?}");
                cluster.quiet().with_context(|| format!("{words:?}"))?;
            }
        }
    }
    Ok(())
}

fn down(cluster: &Cluster, node: i32) -> Result<()> {
    let is_down = |states: &[String]| states.get(node as usize).is_some_and(|s| s == "down");
    cluster.wait_states("the node is down", is_down)
}

fn up_again(cluster: &Cluster, node: i32) -> Result<()> {
    cluster.start_agent(Role::Node(node))?;
    cluster.wait_up()
}

/// A node that is down costs its own rank.
fn one_is_down(cluster: &Cluster) -> Result<()> {
    cluster.stop_agent(Role::Node(1), libc::SIGKILL)?;
    down(cluster, 1)?;
    for what in ["fork", "exec"] {
        let mut spread = Spread::start(cluster, what, "-std=gnu17", MIB, &EVERYWHERE)?;
        let pids = spread.pids(|_, node| if node == 1 { -BE_NODEDOWN } else { 1 })?;
        spread.end(&pids, &BTreeMap::new()).context(what)?;
    }
    up_again(cluster, 1)?;
    cluster.quiet()
}

fn stop_at(cluster: &Cluster) -> std::path::PathBuf {
    cluster.dir().join("libexec/bproc/bproc-mover.stop-at")
}

/// The node whose mover this is.
fn node_of(mover: &Proc) -> Result<i32> {
    let line = fs::read(format!("/proc/{}/cmdline", mover.pid))?;
    let text = String::from_utf8_lossy(&line).into_owned();
    let digits = text.trim_end_matches('\0').rsplit('-').next().context("no node")?;
    digits.parse().with_context(|| text.clone())
}

/// Stops one node's mover in the middle of the image.
fn stopped_in_the_middle(cluster: &Cluster, what: &str, point: &str) -> Result<(Spread, Proc, i32)> {
    fs::write(stop_at(cluster), point)?;
    let spread = Spread::start(cluster, what, "-std=gnu17", MIB, &EVERYWHERE)?;
    let stopped = eventually("a mover stops at the point", LIMIT, || {
        Ok(movers(cluster).into_iter().find(|m| m.state == 'T').ok_or_else(|| "none does".to_owned()))
    })?;
    let node = node_of(&stopped)?;
    Ok((spread, stopped, node))
}

/// A node that fails in the middle costs itself: its mover is killed, its agent, or both.
fn one_dies(cluster: &Cluster) -> Result<()> {
    for (what, point, agent, mover) in [
        ("fork", "target-begins", false, true),
        ("fork", "target-relays", false, true),
        ("fork", "target-relays", true, true),
        ("fork", "target-relays", true, false),
        ("fork", "target-built", true, true),
        ("away", "target-relays", false, true),
        ("away", "target-relays", true, true),
    ] {
        let name = format!("{what}, {point}, agent {agent}, mover {mover}");
        let (mut spread, stopped, node) = stopped_in_the_middle(cluster, what, point).with_context(|| name.clone())?;
        if agent {
            cluster.stop_agent(Role::Node(node), libc::SIGKILL)?;
        }
        signal_to(stopped.pid, if mover { libc::SIGKILL } else { libc::SIGCONT })?;
        let mut failed = 0;
        let pids = {
            let mut pids = Vec::new();
            for rank in 0..EVERYWHERE.len() {
                let pid: i32 = spread.program.line()?.parse()?;
                if rank as i32 == node {
                    failed = pid;
                } else {
                    ensure!(pid > 0, "{name}: rank {rank} failed with {pid} though {node} was struck");
                }
                pids.push(pid);
            }
            pids
        };
        ensure!(failed < 0, "{name}: rank {node} is there");
        spread.end(&pids, &BTreeMap::new()).with_context(|| name.clone())?;
        if agent {
            up_again(cluster, node)?;
        }
        cluster.quiet().with_context(|| name.clone())?;
    }
    Ok(())
}

/// A node that hangs in the middle keeps the others waiting for some seconds, and comes when it goes on.
fn one_hangs(cluster: &Cluster) -> Result<()> {
    let (spread, stopped, node) = stopped_in_the_middle(cluster, "fork", "target-relays")?;
    let others = eventually("the others run", LIMIT, || {
        let listed = cluster.client()?.processes().map_err(|e| anyhow::anyhow!("{e}"))?;
        // Those that came have ended with their work, or are at it: what is left is the one that hangs.
        let left: Vec<i32> = movers(cluster).iter().filter_map(|m| node_of(m).ok()).collect();
        Ok(if left == [node] { Ok(listed.len()) } else { Err(format!("movers on {left:?}")) })
    });
    signal_to(stopped.pid, libc::SIGCONT)?;
    others?;
    let mut spread = spread;
    let pids = spread.pids(all_come)?;
    spread.end(&pids, &BTreeMap::new())?;
    cluster.quiet()
}

/// Whoever asked is killed: nothing is left of it.
fn the_caller_dies(cluster: &Cluster) -> Result<()> {
    for what in ["fork", "away"] {
        let (spread, stopped, _) = stopped_in_the_middle(cluster, what, "target-relays")?;
        signal_to(spread.program.pid(), libc::SIGKILL)?;
        drop(spread);
        signal_to(stopped.pid, libc::SIGCONT)?;
        eventually("no mover is left", LIMIT, || {
            let left = movers(cluster);
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })?;
        eventually("its children have ended", LIMIT, || {
            let left: Vec<Proc> =
                procs::all().into_iter().filter(|p| p.exe.starts_with(cluster.dir().join("log"))).collect();
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })?;
        cluster.quiet().context(what)?;
    }
    Ok(())
}

/// How long 64 MiB take to 16 machines through cables of so many megabits a second, from call to return: with two that
/// each gives to, with one, and from the master to each. No test, but figures.
fn narrow_cables(megabits: u32) -> Result<()> {
    for fan_out in [65_536, 2, 1] {
        ensure!(apart::leave()?, "networks of one's own need root, `ip` and veth");
        let settings = format!("cache.fan_out = {fan_out}\n");
        let cluster = Cluster::start_with(&Options { nodes: 16, apart: true, settings, ..Options::default() })?;
        let calls = compile(&cluster, "bench/programs/calls.c", &["-O2"], true)?;
        let measure = |words: [&str; 4]| -> Result<String> {
            let (text, status) = Traveller::start(cluster.environment(Command::new(&calls).args(words)))?.end()?;
            ensure!(status == 0, "{text}");
            let ms = |line: &str| line.parse::<f64>().map_or(0, |ns| (ns / 1e6) as u64).to_string();
            Ok(text.lines().map(ms).collect::<Vec<_>>().join(" "))
        };
        measure(["vrfork", "2", "0", "16"])?;
        println!("each gives to {fan_out}, wide cables: {} ms", measure(["vrfork", "5", "64", "16"])?);
        cluster.narrow(megabits)?;
        println!("each gives to {fan_out}, {megabits} Mbit/s: {} ms", measure(["vrfork", "5", "64", "16"])?);
        cluster.close()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Some(megabits) = std::env::var("BPROC_TEST_MBIT").ok().and_then(|n| n.parse().ok()) {
        return match narrow_cables(megabits) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let tests = vec![
        Test::new("everywhere", everywhere),
        Test::new("from_a_node", from_a_node),
        Test::new("programs", programs),
        Test::new("from_anywhere", |cluster| from_anywhere(cluster, &["-std=c11", "-std=gnu17", "-xc++"])),
        Test::new("programs_of_a_node", programs_of_a_node),
        Test::new("programs_that_fail", programs_that_fail),
        Test::new("what_they_became", what_they_became),
        Test::new("outputs_that_stay", outputs_that_stay),
        Test::new("node_maps", |cluster| corners(cluster, "map", &["-1", "1"])),
        Test::new("closed_streams", |cluster| corners(cluster, "closed", &["-1", "1"])),
        Test::new("few_descriptors", |cluster| corners(cluster, "limits", &["-1"])),
        Test::new("nobody_connects_in_vain", |cluster| corners(cluster, "sockets", &["-1", "1"])),
        Test::new("no_arguments", |cluster| corners(cluster, "arguments", &["-1", "1"])),
        Test::new("lists_of_a_node", |cluster| lists_of_a_node(cluster, false)),
        Test::new("one_is_down", one_is_down),
        Test::new("one_dies", one_dies),
        Test::new("one_hangs", one_hangs),
        Test::new("the_caller_dies", the_caller_dies),
    ];
    let options = Options { nodes: NODES, ..Options::default() };
    runner::main(|| Cluster::start_with(&options), tests, Cluster::close)
}
