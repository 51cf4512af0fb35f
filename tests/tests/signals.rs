//! Signals to a process in the middle of a move, at each named point, sent to its ghost or to itself on its node: it ends,
//! stops, goes on or runs its handler exactly once, at one place, its parent's wait tells the truth, and nothing is left.
//! `BPROC_TEST_ALL=1` tries every signal at every point in every direction with 1 and 20 threads; else some of them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::midway::{LIMIT, POINTS, Ticks, WAYS, Way, movers, name, stop_at};
use bproc_tests::procs::Proc;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{compile, place};

const SIGNALS: [(&str, i32); 4] =
    [("kill", libc::SIGKILL), ("stop", libc::SIGSTOP), ("continue", libc::SIGCONT), ("terminate", libc::SIGTERM)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// To its number on the master.
    Ghost,
    /// To its number where it comes from, by a process there.
    Source,
}

struct Case<'c> {
    cluster: &'c Cluster,
    point: &'c str,
    signal: i32,
    route: Route,
    way: Way,
    threads: &'static str,
}

impl Case<'_> {
    fn run(&self, program: &Path) -> Result<()> {
        let mut child = Ticks::start(self.cluster, program, self.threads)?;
        let pid = child.pid();
        child.begin(self.way)?;
        if self.signal == libc::SIGCONT {
            signal_to(pid, libc::SIGSTOP)?;
            is_stopped(self.cluster, &child).context("before its move")?;
        }
        let (asker, mover) = child.hold(self.point, self.way)?;
        let sent = self.send(&child);
        signal_to(mover.pid, libc::SIGCONT)?;
        child.settle(asker)?;
        sent?;
        match self.signal {
            libc::SIGKILL => {
                let status = child.end()?;
                ensure!(status == -libc::SIGKILL, "killed, it ended with {status}");
            }
            libc::SIGSTOP => {
                is_stopped(self.cluster, &child)?;
                signal_to(pid, libc::SIGCONT)?;
                ensure!(child.goes_on()?, "it ended, having been stopped");
            }
            libc::SIGCONT => ensure!(child.goes_on()?, "it ended"),
            _ => {}
        }
        if self.signal != libc::SIGKILL {
            if self.signal != libc::SIGTERM {
                signal_to(pid, libc::SIGTERM)?;
            }
            let status = child.end()?;
            ensure!(status == 33, "it ended with {status}");
        }
        child.ran_once()?;
        Ticks::nothing_is_left(self.cluster)
    }

    fn send(&self, child: &Ticks<'_>) -> Result<()> {
        if self.route == Route::Ghost {
            return signal_to(child.pid(), self.signal);
        }
        let line = format!("kill -{} {}", self.signal, child.pid());
        let done = self.cluster.bpsh(&[&name(self.way.from), "sh", "-c", &line])?;
        ensure!(done.status == 0, "{line} at its source: {}", done.err());
        Ok(())
    }
}

/// Its parent is told that it has stopped, and it has, where it is.
fn is_stopped(cluster: &Cluster, child: &Ticks<'_>) -> Result<()> {
    eventually("its parent is told that it has stopped", LIMIT, || {
        let mut status = 0;
        // SAFETY: a child of ours that is not waited for elsewhere now; status outlives the call.
        let told = unsafe { libc::waitpid(child.pid(), &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
        ensure!(told == 0 || libc::WIFSTOPPED(status), "instead of that it ended: {status:#x}");
        let stopped = told > 0 && libc::WSTOPSIG(status) == libc::SIGSTOP;
        Ok(if stopped { Ok(()) } else { Err(format!("waitpid said {told}")) })
    })?;
    eventually("it stands still", LIMIT, || {
        let there = place(cluster, child.pid())?;
        let role = there.parse().map_or(Role::Master, Role::Node);
        let both = [child.number_at(role), Proc::read(child.pid())];
        let stopped = |p: &Option<Proc>| p.as_ref().is_some_and(|p| matches!(p.state, 'T' | 't'));
        Ok(if both.iter().all(stopped) { Ok(()) } else { Err(format!("{both:?}")) })
    })
}

fn signals(cluster: &Cluster, point: usize) -> Result<()> {
    let program = compile(cluster, "tests/programs/ticks.c", &[], false)?;
    let all = std::env::var_os("BPROC_TEST_ALL").is_some();
    let only = std::env::var("BPROC_TEST_SIGNAL").ok();
    let mut failed = Vec::new();
    let routes = |way: Way| if way.from == Role::Master { &[Route::Ghost][..] } else { &[Route::Ghost, Route::Source] };
    let mut count = point;
    for (what, signal) in SIGNALS.into_iter().filter(|(what, _)| only.as_ref().is_none_or(|only| only == what)) {
        let ways = WAYS.into_iter().flat_map(|way| routes(way).iter().map(move |route| (way, *route)));
        let cases: Vec<_> = ways.flat_map(|way| ["1", "20"].map(|threads| (way, threads))).collect();
        // Each kind of case comes by in turn.
        let chosen = count % cases.len();
        count += 3;
        for (i, ((way, route), threads)) in cases.into_iter().enumerate() {
            if !all && i != chosen {
                continue;
            }
            let case = Case { cluster, point: POINTS[point], signal, route, way, threads };
            let began = Instant::now();
            let result = case.run(&program);
            let told = format!("{what} by {route:?}, {} to {}, {threads} threads", name(way.from), name(way.to));
            if std::env::var_os("BPROC_TEST_TELL").is_some() {
                println!("  {told}: {:.1} s", began.elapsed().as_secs_f64());
            }
            let Err(error) = result else { continue };
            println!("  {told}: {error:#}");
            failed.push(told);
            // What a failure leaves is not the next one's business.
            let _ = std::fs::remove_file(stop_at(cluster));
            for mover in movers(cluster) {
                let _ = signal_to(mover.pid, libc::SIGKILL);
            }
            cluster.wait_up()?;
            if cluster.quiet().is_err() {
                bail!("after that the cluster does not come to rest");
            }
        }
    }
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// Killed at its source in the moment in which its stand-in there runs, and its agent has not heard of that one yet.
fn killed_before_the_stand_in_is_known(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/ticks.c", &[], false)?;
    for way in WAYS.into_iter().filter(|way| way.from != Role::Master) {
        let mut child = Ticks::start(cluster, &program, "1")?;
        child.begin(way)?;
        let (asker, mover) = child.hold("source-knows", way)?;
        let agent = cluster.agent_pid(way.from)?;
        signal_to(agent, libc::SIGSTOP)?;
        let killed = signal_to(mover.pid, libc::SIGCONT).and_then(|()| {
            let stand_in = eventually("its stand-in waits", LIMIT, || {
                let there = child.number_at(way.from);
                let waits = there.as_ref().is_some_and(|p| p.exe.ends_with("bproc-ghost") && p.state == 'S');
                Ok(there.filter(|_| waits).ok_or_else(|| "it does not".to_owned()))
            })?;
            signal_to(stand_in.pid, libc::SIGKILL)
        });
        signal_to(agent, libc::SIGCONT)?;
        killed?;
        child.settle(asker)?;
        let status = child.end()?;
        ensure!(status == -libc::SIGKILL, "to {}: it ended with {status}", name(way.to));
        child.ran_once()?;
        Ticks::nothing_is_left(cluster)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let points = (0..POINTS.len()).map(|i| Test::new(POINTS[i], move |cluster| signals(cluster, i)));
    let unknown = Test::new("killed_before_the_stand_in_is_known", killed_before_the_stand_in_is_known);
    let tests = points.chain([unknown]).collect();
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
