//! Faults at each named point of a move: whoever takes part is killed just there. The process runs on at exactly one
//! place, what its parent sees is what happened, and nothing is left. `BPROC_TEST_ALL=1` tries every fault in every
//! direction with 1 and 20 threads; else each fault is tried once at each point. `BPROC_TEST_VICTIM=SourceAgent`: only that one; `Cable` cuts
//! a node off.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Options, Role, apart, eventually, signal_to};
use bproc_tests::midway::{LIMIT, POINTS, Ticks, WAYS, Way, movers, name, stop_at};
use bproc_tests::procs::Proc;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{compile, go};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceMover,
    TargetMover,
    SourceAgent,
    TargetAgent,
    MastersAgent,
    SourceStdio,
    TargetStdio,
    /// The target's mover while the master's agent, or the source's, is gone: a source that has said the word to go does not
    /// know what became of it, and asks an agent that does not know the move.
    TargetAndMaster,
    TargetAndSource,
    /// The cable of the node that it goes to, or comes from.
    Cable,
}

use Victim::{
    Cable, MastersAgent, SourceAgent, SourceMover, SourceStdio, TargetAgent, TargetAndMaster, TargetAndSource,
    TargetMover, TargetStdio,
};

const VICTIMS: [Victim; 9] = [
    SourceMover,
    TargetMover,
    SourceAgent,
    TargetAgent,
    MastersAgent,
    SourceStdio,
    TargetStdio,
    TargetAndMaster,
    TargetAndSource,
];

/// Between the word to go and its answer.
const LAST_STEP: [&str; 6] =
    ["source-may-go", "source-leaves", "source-gone", "target-goes", "target-runs", "target-told"];

/// May the process end by this? Who holds a process at its last step, or its ghost on the master while it comes home, takes
/// it along; its parent sees it killed.
fn may_end(point: &str, victim: Victim, way: Way) -> bool {
    let after_leaving = ["source-leaves", "source-gone", "target-goes", "target-runs", "target-told", "source-knows"];
    match victim {
        SourceMover if point == "source-leaves" => true,
        SourceMover => way.from == Role::Master && after_leaving.contains(&point),
        TargetMover | TargetAndMaster | TargetAndSource => way.to == Role::Master,
        // It runs on the node that is cut off.
        Cable => way.from != Role::Master || point == "source-ends" || after_leaving.contains(&point),
        _ => false,
    }
}

/// Waits until a source's mover does: before, it may have its process run what is not its own program, which nobody else
/// could end.
fn waits_for_its_target(mover: i32) -> Result<()> {
    eventually("the source's mover waits", LIMIT, || {
        let call = std::fs::read_to_string(format!("/proc/{mover}/syscall")).unwrap_or_default();
        let number = call.split(' ').next().and_then(|number| number.parse::<i64>().ok());
        let waits = [libc::SYS_read, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_poll, libc::SYS_ppoll];
        // Gone is as good.
        Ok(match number.is_some_and(|number| waits.contains(&number)) || call.is_empty() {
            true => Ok(()),
            false => Err(call),
        })
    })
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
        let cluster = self.cluster;
        let mut child = Ticks::start(cluster, program, self.threads)?;
        let pid = child.pid();
        child.begin(self.way)?;
        let (asker, stopped) = child.hold(self.point, self.way)?;
        let struck = self.strike(&stopped);
        if struck.is_err() {
            // It would hold the process for ever.
            let _ = signal_to(stopped.pid, libc::SIGKILL);
        }
        let done = child.settle(asker)?;
        struck?;
        // One whose ghost was killed is there for another moment.
        if let Some(home) = child.place()?
            && child.goes_on()?
            && self.moves_on(&child, &home)?
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
        child.ran_once()?;
        Ticks::nothing_is_left(cluster)
    }

    /// It is whole: it moves again, unless it ends.
    fn moves_on(&self, child: &Ticks<'_>, home: &str) -> Result<bool> {
        let next = if home == "2" { "1" } else { "2" };
        // An agent that has just been started may not have told the master of itself yet.
        eventually("moving on", LIMIT, || match go(self.cluster, child.pid(), next) {
            Err(error) if !child.has_ended() => Ok(Err(format!("{error:#}"))),
            moved => Ok(Ok(moved.is_ok())),
        })
    }

    /// The fault, with the mover that stands at the point.
    fn strike(&self, stopped: &Proc) -> Result<()> {
        let other = || movers(self.cluster).into_iter().find(|m| m.pid != stopped.pid).map(|m| m.pid);
        let at_source = self.point.starts_with("source");
        let agent = match self.victim {
            SourceMover | TargetMover => {
                let own = at_source == (self.victim == SourceMover);
                if let Some(victim) = if own { Some(stopped.pid) } else { other() } {
                    if !own && !at_source {
                        waits_for_its_target(victim)?;
                    }
                    signal_to(victim, libc::SIGKILL)?;
                }
                if own {
                    return Ok(());
                }
                None
            }
            SourceAgent | TargetAndSource => Some(self.way.from),
            TargetAgent => Some(self.way.to),
            MastersAgent | TargetAndMaster => Some(Role::Master),
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
        let both = matches!(self.victim, TargetAndMaster | TargetAndSource);
        if both && let Some(target) = if at_source { other() } else { Some(stopped.pid) } {
            signal_to(target, libc::SIGKILL)?;
        }
        if at_source || !both {
            signal_to(stopped.pid, libc::SIGCONT)?;
        }
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
}

fn faults(cluster: &Cluster, point: usize) -> Result<()> {
    let program = compile(cluster, "tests/programs/ticks.c", &[], false)?;
    let all = std::env::var_os("BPROC_TEST_ALL").is_some();
    let only = std::env::var("BPROC_TEST_VICTIM").ok();
    let mut failed = Vec::new();
    // Slow, and asked for by name only.
    let cable = only.as_deref().is_some_and(|only| only == "Cable").then_some(Cable);
    for (i, victim) in VICTIMS.into_iter().chain(cable).enumerate() {
        // Before, they are no other faults than those of each alone.
        let both = matches!(victim, TargetAndMaster | TargetAndSource) && !LAST_STEP.contains(&POINTS[point]);
        if only.as_ref().is_some_and(|only| !format!("{victim:?}").contains(only)) || (both && !all) {
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
