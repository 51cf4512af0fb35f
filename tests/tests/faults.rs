//! Faults at each named point of a move: whoever takes part is killed just there. The process runs on at exactly one
//! place, what its parent sees is what happened, and nothing is left. `BPROC_TEST_ALL=1` tries every fault in every
//! direction with 1 and 20 threads; else each fault is tried once at each point. `BPROC_TEST_VICTIM=SourceAgent`: only that one; `Cable` cuts
//! a node off.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Options, Role, apart, eventually, signal_to};
use bproc_tests::procs::{self, Proc};
use bproc_tests::run::{self, tie};
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{compile, go, place};

const LIMIT: Duration = Duration::from_secs(40);

/// In the order in which a move comes by.
const POINTS: [&str; 15] = [
    "source-begins",
    "target-begins",
    "source-frozen",
    "source-sent",
    "target-built",
    "target-ready",
    "source-written",
    "source-may-go",
    "source-leaves",
    "source-gone",
    "target-goes",
    "target-runs",
    "target-told",
    "source-knows",
    "source-ends",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceMover,
    TargetMover,
    SourceAgent,
    TargetAgent,
    MastersAgent,
    SourceStdio,
    TargetStdio,
    /// The cable of the node that it goes to, or comes from.
    Cable,
}

use Victim::{Cable, MastersAgent, SourceAgent, SourceMover, SourceStdio, TargetAgent, TargetMover, TargetStdio};

const VICTIMS: [Victim; 7] =
    [SourceMover, TargetMover, SourceAgent, TargetAgent, MastersAgent, SourceStdio, TargetStdio];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    from: Role,
    to: Role,
}

const WAYS: [Way; 3] = [
    Way { from: Role::Master, to: Role::Node(0) },
    Way { from: Role::Node(0), to: Role::Node(1) },
    Way { from: Role::Node(0), to: Role::Master },
];

fn name(role: Role) -> String {
    match role {
        Role::Master => "master".into(),
        Role::Node(number) => number.to_string(),
    }
}

fn movers(cluster: &Cluster) -> Vec<Proc> {
    let program = cluster.dir().join("libexec/bproc/bproc-mover");
    procs::all().into_iter().filter(|p| p.exe == program).collect()
}

fn stop_at(cluster: &Cluster) -> std::path::PathBuf {
    cluster.dir().join("libexec/bproc/bproc-mover.stop-at")
}

/// May the process end by this? Who holds a process at its last step, or its ghost on the master while it comes home, takes
/// it along; its parent sees it killed.
fn may_end(point: &str, victim: Victim, way: Way) -> bool {
    let after_leaving = ["source-leaves", "source-gone", "target-goes", "target-runs", "target-told", "source-knows"];
    match victim {
        SourceMover if point == "source-leaves" => true,
        SourceMover => way.from == Role::Master && after_leaving.contains(&point),
        TargetMover => way.to == Role::Master,
        Cable => way.from != Role::Master || after_leaving.contains(&point),
        _ => false,
    }
}

/// Dies with the test.
struct Tied(Child);

impl Tied {
    /// Its exit code, or minus the signal.
    fn end(&mut self) -> Result<i32> {
        run::wait(&mut self.0, LIMIT)
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Case<'c> {
    cluster: &'c Cluster,
    point: &'c str,
    victim: Victim,
    way: Way,
    threads: &'static str,
}

impl Case<'_> {
    fn run(&self, program: &Path) -> Result<()> {
        let (cluster, ticks) = (self.cluster, self.cluster.dir().join("log/ticks.txt"));
        let _ = fs::remove_file(&ticks);
        let mut command = Command::new(program);
        command.arg(&ticks).arg(self.threads).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: only sets the close-on-exec flag of what whoever started the tests left open.
        unsafe {
            command.pre_exec(|| {
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4);
                Ok(())
            });
        }
        let mut child = Tied(tie(&mut command).spawn()?);
        let pid = child.0.id() as i32;
        ensure!(goes_on(&ticks, pid)?, "it ended before it moved");
        if self.way.from != Role::Master {
            go(cluster, pid, &name(self.way.from)).context("to its source")?;
        }
        fs::write(stop_at(cluster), self.point)?;
        let mut asker = self.ask(pid)?;
        let stopped = eventually("a mover stops at the point", LIMIT, || {
            if let Some(status) = asker.try_wait()? {
                bail!("bpmove ended before: {status}");
            }
            Ok(movers(cluster).into_iter().find(|m| m.state == 'T').ok_or_else(|| "none does".to_owned()))
        })?;
        let struck = self.strike(&stopped);
        if struck.is_err() {
            // It would hold the process for ever.
            let _ = signal_to(stopped.pid, libc::SIGKILL);
        }
        let done = self.settle(asker)?;
        struck?;
        let home = self.where_it_runs(program, pid)?;
        // One whose ghost was killed is there for another moment.
        if let Some(home) = home
            && goes_on(&ticks, pid)?
            && self.moves_on(pid, &home)?
        {
            ensure!(done != 0 || home == name(self.way.to), "bpmove says that it moved, but it runs on {home}");
            signal_to(pid, libc::SIGTERM)?;
            let status = child.end()?;
            ensure!(status == 33, "it ended with {status}");
        } else {
            let status = child.end()?;
            ensure!(status == -libc::SIGKILL, "it ended with {status}");
            ensure!(may_end(self.point, self.victim, self.way), "it was killed");
        }
        let text = fs::read_to_string(&ticks)?;
        for (i, line) in text.lines().enumerate() {
            ensure!(line == i.to_string(), "it ran twice: {line} at line {i}");
        }
        eventually("no mover is left", LIMIT, || {
            let left = movers(cluster);
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })?;
        cluster.quiet()
    }

    /// It is whole: it moves again, unless it ends.
    fn moves_on(&self, pid: i32, home: &str) -> Result<bool> {
        let next = if home == "2" { "1" } else { "2" };
        // An agent that has just been started may not have told the master of itself yet.
        eventually("moving on", LIMIT, || match go(self.cluster, pid, next) {
            Err(error) if !ended(pid) => Ok(Err(format!("{error:#}"))),
            moved => Ok(Ok(moved.is_ok())),
        })
    }

    fn ask(&self, pid: i32) -> Result<Child> {
        let log = fs::File::create(self.cluster.dir().join("log/asker"))?;
        let mut command = self.cluster.command("bpmove");
        let to = name(self.way.to);
        Ok(tie(command.args([&pid.to_string(), &to]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?)
    }

    /// The fault, with the mover that stands at the point.
    fn strike(&self, stopped: &Proc) -> Result<()> {
        let other = || movers(self.cluster).into_iter().find(|m| m.pid != stopped.pid).map(|m| m.pid);
        let at_source = self.point.starts_with("source");
        let agent = match self.victim {
            SourceMover | TargetMover => {
                let own = at_source == (self.victim == SourceMover);
                if let Some(victim) = if own { Some(stopped.pid) } else { other() } {
                    signal_to(victim, libc::SIGKILL)?;
                }
                if own {
                    return Ok(());
                }
                None
            }
            SourceAgent => Some(self.way.from),
            TargetAgent => Some(self.way.to),
            MastersAgent => Some(Role::Master),
            SourceStdio | TargetStdio => {
                let role = if self.victim == SourceStdio { self.way.from } else { self.way.to };
                // One that was killed before is started when it is needed.
                if let Ok(service) = self.cluster.stdio_pid(role) {
                    signal_to(service, libc::SIGKILL)?;
                }
                None
            }
            Cable => {
                self.cluster.cable(self.cut(), false)?;
                None
            }
        };
        if let Some(role) = agent {
            self.cluster.stop_agent(role, libc::SIGKILL)?;
        }
        signal_to(stopped.pid, libc::SIGCONT)?;
        if let Some(role) = agent {
            self.cluster.start_agent(role)?;
        }
        if self.victim == Cable {
            let node = self.cut() as usize;
            self.cluster.wait_states("the node is down", |states| states.get(node).is_some_and(|s| s == "down"))?;
            self.cluster.cable(self.cut(), true)?;
        }
        Ok(())
    }

    fn cut(&self) -> i32 {
        match (self.way.to, self.way.from) {
            (Role::Node(node), _) | (Role::Master, Role::Node(node)) => node,
            _ => 0,
        }
    }

    /// The end of whoever asked, and of what was started anew.
    fn settle(&self, mut asker: Child) -> Result<i32> {
        let done = run::wait(&mut asker, LIMIT).context("bpmove")?;
        let _ = fs::remove_file(stop_at(self.cluster));
        self.cluster.wait_up()?;
        Ok(done)
    }

    /// The one place where it runs, by what the kernel and what the master says; none when it was killed.
    fn where_it_runs(&self, program: &Path, pid: i32) -> Result<Option<String>> {
        eventually("it is in one place", LIMIT, || {
            let there: Vec<Proc> = procs::all().into_iter().filter(|p| p.exe == program).collect();
            let told = place(self.cluster, pid)?;
            match there.as_slice() {
                [] if ended(pid) => Ok(Ok(None)),
                [one] => {
                    let on_master = !one.is_inside();
                    let fits =
                        one.inner() == pid && on_master == (told == "master") && self.space_of(&told) == one.space;
                    Ok(if fits { Ok(Some(told)) } else { Err(format!("{one:?}, the master says {told}")) })
                }
                more => Ok(Err(format!("{more:?}, the master says {told}"))),
            }
        })
    }

    /// Inode of the pid namespace of a node's processes, or the master's.
    fn space_of(&self, place: &str) -> u64 {
        let Ok(node) = place.parse::<i32>() else {
            return Proc::read(std::process::id() as i32).map_or(0, |p| p.space);
        };
        let inits = self.cluster.inits();
        let of = |p: &&Proc| {
            let line = fs::read(format!("/proc/{}/cmdline", p.pid)).unwrap_or_default();
            String::from_utf8_lossy(&line).trim_end_matches('\0').ends_with(&format!("--node {node}"))
        };
        inits.iter().find(of).map_or(0, |p| p.space)
    }
}

fn ended(pid: i32) -> bool {
    Proc::read(pid).is_none_or(|p| p.state == 'Z')
}

/// Waits until it writes on, or has ended: then false.
fn goes_on(ticks: &Path, pid: i32) -> Result<bool> {
    let length = || fs::metadata(ticks).map_or(0, |m| m.len());
    let before = length();
    eventually("it goes on", LIMIT, || {
        let ended = ended(pid);
        Ok(if ended || length() > before { Ok(!ended) } else { Err("it stands still".into()) })
    })
}

fn faults(cluster: &Cluster, point: usize) -> Result<()> {
    let program = compile(cluster, "tests/programs/ticks.c", &[], false)?;
    let all = std::env::var_os("BPROC_TEST_ALL").is_some();
    let only = std::env::var("BPROC_TEST_VICTIM").ok();
    let mut failed = Vec::new();
    // Slow, and asked for by name only.
    let cable = only.as_deref().is_some_and(|only| only == "Cable").then_some(Cable);
    for (i, victim) in VICTIMS.into_iter().chain(cable).enumerate() {
        if only.as_ref().is_some_and(|only| !format!("{victim:?}").contains(only)) {
            continue;
        }
        for (j, way) in WAYS.into_iter().enumerate() {
            for (k, threads) in ["1", "20"].into_iter().enumerate() {
                if !all && ((i + point) % WAYS.len() != j || (i + j + point) % 2 != k) {
                    continue;
                }
                let case = Case { cluster, point: POINTS[point], victim, way, threads };
                let began = Instant::now();
                let result = case.run(&program);
                if std::env::var_os("BPROC_TEST_TELL").is_some() {
                    println!(
                        "  {victim:?} {} to {} {threads}: {:.1} s",
                        name(way.from),
                        name(way.to),
                        began.elapsed().as_secs_f64()
                    );
                }
                if let Err(error) = result {
                    println!("  {victim:?} from {} to {}, {threads} threads: {error:#}", name(way.from), name(way.to));
                    failed.push(victim);
                    // What a failure leaves is not the next one's business.
                    let _ = fs::remove_file(stop_at(cluster));
                    for mover in movers(cluster) {
                        let _ = signal_to(mover.pid, libc::SIGKILL);
                    }
                    cluster.wait_up()?;
                    if cluster.quiet().is_err() {
                        bail!("after {victim:?} the cluster does not come to rest");
                    }
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

fn main() -> ExitCode {
    let options = Options { nodes: 3, apart: true, ..Options::default() };
    let tests = (0..POINTS.len()).map(|i| Test::new(POINTS[i], move |cluster| faults(cluster, i))).collect();
    if !std::env::args().any(|word| word == "--list") && !matches!(apart::leave(), Ok(true)) {
        println!("skipped: networks of one's own need root, `ip` and veth");
        return ExitCode::SUCCESS;
    }
    runner::main(|| Cluster::start_with(&options), tests, Cluster::close)
}
