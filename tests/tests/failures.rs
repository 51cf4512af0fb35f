//! What remains when a part of the system is killed in the middle of a hundred running processes.

use std::io::Read;
use std::process::{Child as Process, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::case::parent::Child;
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::procs::Proc;
use bproc_tests::run;
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, go};

const SOON: Duration = Duration::from_secs(60);
/// Long enough for a hundred answers on a busy machine.
const ANSWER: Duration = Duration::from_secs(120);
const COUNT: usize = 100;
const NODE: Role = Role::Node(0);

/// A parent on the master with a hundred children on node 0.
struct Crowd {
    process: Process,
    lines: Child,
}

impl Crowd {
    fn start(cluster: &Cluster) -> Result<Crowd> {
        let mut command = cluster.command("bproc-case");
        run::tie(command.args(["crowd", &COUNT.to_string()])).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().context("no input")?;
        let stdout = process.stdout.take().context("no output")?;
        let mut lines = Child::of(process.id() as i32, stdin.into(), stdout.into());
        let said = lines.line_within(ANSWER)?;
        ensure!(said == "started", "the crowd says {said}");
        Ok(Crowd { process, lines })
    }

    fn must(&mut self, command: &str) -> Result<()> {
        self.lines.tell(command)?;
        let said = self.lines.line_within(ANSWER).with_context(|| format!("'{command}'"))?;
        ensure!(said == "good", "'{command}': {said}");
        Ok(())
    }

    fn all_exit(&mut self) -> Result<()> {
        self.must("exit")?;
        self.must("reap")
    }

    fn end(mut self, cluster: &Cluster) -> Result<()> {
        self.lines.close_stdin();
        let status = run::wait(&mut self.process, SOON)?;
        ensure!(status == 0, "the crowd ends with {status}");
        cluster.quiet()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Its children on nodes die with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn crash(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    roles.iter().try_for_each(|role| cluster.stop_agent(*role, libc::SIGKILL))
}

fn revive(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    roles.iter().try_for_each(|role| cluster.start_agent(*role))?;
    cluster.wait_up()
}

/// Signals before, between and after arrive once each and in their order, and so do the statuses.
fn signals_between(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    crowd.must("queue 1")?;
    crowd.must("expect 1")?;
    crowd.must("queue 2")?;
    crash(cluster, roles)?;
    crowd.must("queue 3")?;
    crowd.must("queue 4")?;
    revive(cluster, roles)?;
    crowd.must("queue 5")?;
    crowd.must("expect 2 3 4 5")?;
    crowd.must("echo")?;
    crowd.all_exit()?;
    crowd.end(cluster)
}

/// Who ends while nobody looks has his own status all the same.
fn statuses_between(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    crash(cluster, roles)?;
    // The streams do not need the agents.
    crowd.must("exit")?;
    eventually("all have ended on the node", SOON, || {
        let alive = cluster.programs().into_iter().filter(|p| p.comm == "bproc-case" && p.state != 'Z').count();
        Ok(if alive == 0 { Ok(()) } else { Err(format!("{alive} live")) })
    })?;
    revive(cluster, roles)?;
    crowd.must("reap")?;
    crowd.end(cluster)
}

/// SIGKILL between: kill has returned 0, so they die.
fn kills_between(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    crash(cluster, roles)?;
    crowd.must("kill")?;
    revive(cluster, roles)?;
    crowd.must("killed")?;
    crowd.end(cluster)
}

/// More than fits anywhere is under way when the agents die.
fn output_between(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let wanted: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    let mut command = cluster.command("bpsh");
    run::tie(command.args(["0", "seq", "1000000"])).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut bpsh = command.spawn()?;
    let mut output = bpsh.stdout.take().context("no output")?;
    let mut got = vec![0; 4096];
    output.read_exact(&mut got)?;
    cluster.start_is_answered()?;
    crash(cluster, roles)?;
    revive(cluster, roles)?;
    output.read_to_end(&mut got)?;
    let status = run::wait(&mut bpsh, SOON)?;
    ensure!(got == wanted.as_bytes(), "{} bytes instead of {}, or others", got.len(), wanted.len());
    ensure!(status == 0, "bpsh ends with {status}");
    cluster.quiet()
}

fn bpsh_dies(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command("bpsh");
    let nodes = vec!["0"; COUNT].join(",");
    run::tie(command.args([&nodes, "sleep", "1000"])).stdin(Stdio::null());
    let mut bpsh = command.spawn()?;
    let started = eventually("all run", SOON, || {
        let count = cluster.programs().iter().filter(|p| p.comm == "sleep").count();
        Ok(if count == COUNT { Ok(()) } else { Err(format!("{count} run")) })
    });
    bpsh.kill()?;
    bpsh.wait()?;
    started?;
    cluster.quiet()
}

/// What the sleepers on nodes are told, if each has its ghost and nobody else has one.
fn sleepers(cluster: &Cluster) -> std::result::Result<Vec<String>, String> {
    let (programs, ghosts) = (cluster.programs(), cluster.ghosts());
    let told = |process: &Proc| {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").trim().strip_prefix("sleep ").map(str::to_owned)
    };
    let mut here: Vec<i32> = ghosts.iter().map(|ghost| ghost.pid).collect();
    let mut there: Vec<i32> = programs.iter().map(Proc::inner).collect();
    here.sort_unstable();
    there.sort_unstable();
    let mut all: Vec<String> = programs.iter().filter_map(told).collect();
    all.sort();
    if here == there { Ok(all) } else { Err(format!("{programs:?} {ghosts:?}")) }
}

/// A bpsh that is killed takes all along that its programs have started, and nothing else, also when agents are gone just then.
fn offspring(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let start = |line: &str| -> Result<Process> {
        let mut command = cluster.command("bpsh");
        Ok(run::tie(command.args(["0", "sh", "-c", line])).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
    };
    let these = |wanted: &[&str]| {
        eventually("the right ones sleep", SOON, || {
            let now = sleepers(cluster);
            Ok(if now.as_ref().is_ok_and(|now| now == wanted) { Ok(()) } else { Err(format!("{now:?}")) })
        })
    };
    let in_its_own_time = cluster.bpsh(&["0", "sh", "-c", "sleep 2000 </dev/null >/dev/null 2>&1 &"])?;
    ensure!(in_its_own_time.status == 0, "{in_its_own_time:?}");
    let lines = [
        "sleep 2001 & (setsid sleep 2002 &); sh -c 'sleep 2003 & exec sleep 2004' & exec sleep 2005",
        // It has ended, and bpsh reads the output of what it left behind.
        "sleep 2006 &",
        "(sleep 2010 &); exec sleep 2011",
    ];
    let mut all = lines.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let result = (|| {
        these(&["2000", "2001", "2002", "2003", "2004", "2005", "2006", "2010", "2011"])?;
        crash(cluster, roles)?;
        all[..2].iter_mut().try_for_each(Process::kill)?;
        revive(cluster, roles)?;
        these(&["2000", "2010", "2011"])?;
        all[2].kill()?;
        these(&["2000"])
    })();
    for bpsh in &mut all {
        bpsh.kill()?;
        bpsh.wait()?;
    }
    result?;
    for ghost in cluster.ghosts() {
        signal_to(ghost.pid, libc::SIGKILL)?;
    }
    cluster.quiet()
}

/// Whoever was to be started meanwhile runs and ends well, or his bpsh says why not; nothing is left in between.
fn starts_between(cluster: &Cluster, roles: &[Role]) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..COUNT / 2 {
        let mut command = cluster.command("bpsh");
        run::tie(command.args(["0", "sh", "-c", "echo $((6 * 7))"])).stdin(Stdio::null());
        all.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        if all.len() == COUNT / 4 {
            crash(cluster, roles)?;
        }
    }
    revive(cluster, roles)?;
    for mut bpsh in all {
        let status = run::wait(&mut bpsh, SOON)?;
        let (mut out, mut err) = (String::new(), String::new());
        bpsh.stdout.take().context("no output")?.read_to_string(&mut out)?;
        bpsh.stderr.take().context("no messages")?.read_to_string(&mut err)?;
        let good = status == 0 && out == "42\n" && err.is_empty();
        // It may have come before the node did.
        let told = status != 0 && (err.contains("agent") || err.contains("Node is down"));
        ensure!(good || told, "bpsh ends with {status}, prints {out:?} and says {err:?}");
    }
    cluster.quiet()?;
    let done = cluster.bpsh(&["0-1", "echo", "fine"])?;
    ensure!(done.out() == "fine\nfine\n", "{done:?}");
    cluster.quiet()
}

/// A process is stopped here, and forks before it hears of that: the child has its ghost, and its parent's stays stopped.
fn stopped_one_forks(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command("bpsh");
    let script = "read go; sleep 1000 & echo $!; read end; wait";
    run::tie(command.args(["0", "sh", "-c", script])).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut bpsh = command.spawn()?;
    let (stdin, stdout) = (bpsh.stdin.take().context("no input")?, bpsh.stdout.take().context("no output")?);
    let mut lines = Child::of(bpsh.id() as i32, stdin.into(), stdout.into());
    let ghost = eventually("its ghost is there", SOON, || {
        let ghosts = cluster.ghosts();
        Ok(if let [ghost] = &ghosts[..] { Ok(ghost.pid) } else { Err(format!("there are {ghosts:?}")) })
    })?;
    let agent = cluster.agent_pid(NODE)?;
    signal_to(agent, libc::SIGSTOP)?;
    // Its streams need no agent.
    let forked = signal_to(ghost, libc::SIGSTOP).and_then(|()| lines.ask("go"));
    signal_to(agent, libc::SIGCONT)?;
    let child: i32 = forked?.parse()?;
    eventually("the child has its ghost, and the parent stands still", SOON, || {
        let ghosts = cluster.ghosts();
        let made = ghosts.iter().any(|g| g.pid == child && g.ppid == ghost);
        let stopped = ghosts.iter().any(|g| g.pid == ghost && matches!(g.state, 't' | 'T'));
        Ok(if made && stopped { Ok(()) } else { Err(format!("of {ghost} and {child} there are {ghosts:?}")) })
    })?;
    signal_to(child, libc::SIGTERM)?;
    signal_to(ghost, libc::SIGCONT)?;
    lines.tell("end")?;
    lines.close_stdin();
    let status = run::wait(&mut bpsh, SOON)?;
    ensure!(status == 0, "bpsh ends with {status}");
    cluster.quiet()
}

fn ghosts_die(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    crowd.must("kill")?;
    crowd.must("killed")?;
    crowd.end(cluster)
}

fn keeper_dies(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    let keeper = cluster.keeper_pid()?;
    signal_to(keeper, libc::SIGKILL)?;
    crowd.must("queue 1")?;
    crowd.must("expect 1")?;
    eventually("there is another keeper", SOON, || match cluster.keeper_pid() {
        Ok(pid) if pid != keeper => Ok(Ok(())),
        _ => Ok(Err("none".into())),
    })?;
    crowd.must("echo")?;
    crowd.must("kill")?;
    crowd.must("killed")?;
    crowd.end(cluster)?;
    let mut crowd = Crowd::start(cluster)?;
    crowd.all_exit()?;
    crowd.end(cluster)
}

fn wait_down(cluster: &Cluster) -> Result<()> {
    cluster.wait_states("node 0 is down", |states| states.first().is_some_and(|state| state == "down"))
}

/// Nobody of the old life runs on.
fn nobody_runs(cluster: &Cluster) -> Result<()> {
    eventually("no process of the old life runs", SOON, || {
        let alive: Vec<_> = cluster.programs().into_iter().filter(|p| p.comm == "bproc-case").collect();
        Ok(if alive.is_empty() { Ok(()) } else { Err(format!("there are {alive:?}")) })
    })
}

fn slave_stays_away(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    cluster.stop_agent(NODE, libc::SIGKILL)?;
    wait_down(cluster)?;
    crowd.must("killed")?;
    nobody_runs(cluster)?;
    let refused = cluster.bpsh(&["0", "true"])?;
    ensure!(refused.status != 0 && refused.err().starts_with("0: "), "{refused:?}");
    revive(cluster, &[NODE])?;
    crowd.end(cluster)?;
    let done = cluster.bpsh(&["0", "echo", "a new life"])?;
    ensure!(done.out() == "a new life\n", "{done:?}");
    cluster.quiet()
}

/// As if it were cut off: it lives, and hears nothing.
fn slave_is_cut_off(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    let agent = cluster.agent_pid(NODE)?;
    signal_to(agent, libc::SIGSTOP)?;
    let down = wait_down(cluster).and_then(|()| crowd.must("killed")).and_then(|()| nobody_runs(cluster));
    signal_to(agent, libc::SIGCONT)?;
    down?;
    cluster.wait_up()?;
    crowd.end(cluster)?;
    let done = cluster.bpsh(&["0", "echo", "back"])?;
    ensure!(done.out() == "back\n", "{done:?}");
    cluster.quiet()
}

fn space_dies(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    let agent = cluster.agent_pid(NODE)?;
    let init = cluster.inits().into_iter().find(|init| init.ppid == agent).context("no init is the agent's child")?;
    signal_to(init.pid, libc::SIGKILL)?;
    crowd.must("killed")?;
    nobody_runs(cluster)?;
    crowd.end(cluster)?;
    cluster.wait_up()?;
    eventually("the node has a new life", SOON, || {
        let done = cluster.bpsh(&["0", "echo", "a new life"])?;
        Ok(if done.out() == "a new life\n" { Ok(()) } else { Err(format!("{done:?}")) })
    })?;
    cluster.quiet()
}

fn master_stays_away(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    cluster.stop_agent(Role::Master, libc::SIGKILL)?;
    // As configured by default: nodes end what they have.
    nobody_runs(cluster)?;
    revive(cluster, &[Role::Master])?;
    crowd.must("killed")?;
    crowd.end(cluster)?;
    let done = cluster.bpsh(&["0-1", "true"])?;
    ensure!(done.status == 0, "{done:?}");
    cluster.quiet()
}

fn again_and_again(cluster: &Cluster) -> Result<()> {
    let mut crowd = Crowd::start(cluster)?;
    let rounds: [&[Role]; 6] =
        [&[Role::Master], &[NODE], &[Role::Master, NODE], &[NODE, Role::Master], &[NODE], &[Role::Master]];
    for (round, roles) in (1..).zip(rounds) {
        crash(cluster, roles)?;
        crowd.must(&format!("queue {round}"))?;
        revive(cluster, roles)?;
    }
    crowd.must("expect 1 2 3 4 5 6")?;
    crowd.all_exit()?;
    crowd.end(cluster)
}

/// It dies before it first pings, each time, for longer than a node goes on without a master.
fn master_dies_young(cluster: &Cluster) -> Result<()> {
    let mut bpsh =
        run::tie(cluster.command("bpsh").args(["0", "sh", "-c", "read end; exit 7"])).stdin(Stdio::piped()).spawn()?;
    cluster.start_is_answered()?;
    for _ in 0..6 {
        crash(cluster, &[Role::Master])?;
        revive(cluster, &[Role::Master])?;
        // The time itself is what is tested: a third of the ping time-out is between two pings.
        std::thread::sleep(run::patience(Duration::from_secs(1)));
    }
    drop(bpsh.stdin.take());
    let status = run::wait(&mut bpsh, SOON)?;
    ensure!(status == 7, "bpsh ends with {status}");
    cluster.quiet()
}

/// For longer than machines may be silent; while the agents answer, nothing is lost by that.
fn services_have_no_processor(cluster: &Cluster) -> Result<()> {
    let wanted: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    for role in [Role::Master, NODE] {
        let mut command = cluster.command("bpsh");
        run::tie(command.args(["0", "seq", "1000000"])).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut bpsh = command.spawn()?;
        let mut output = bpsh.stdout.take().context("no output")?;
        let mut got = vec![0; 4096];
        output.read_exact(&mut got)?;
        let service = cluster.stdio_pid(role)?;
        signal_to(service, libc::SIGSTOP)?;
        // The time itself is what is tested.
        std::thread::sleep(run::patience(Duration::from_secs(5) * 3 / 2));
        signal_to(service, libc::SIGCONT)?;
        output.read_to_end(&mut got)?;
        let status = run::wait(&mut bpsh, SOON)?;
        ensure!(got == wanted.as_bytes(), "{role:?}: {} bytes instead of {}, or others", got.len(), wanted.len());
        ensure!(status == 0, "{role:?}: bpsh ends with {status}");
    }
    cluster.quiet()
}

/// The streams of a process are known to the agent that comes after the one that made them.
fn moves_after_restarts(cluster: &Cluster) -> Result<()> {
    const SCRIPT: &str = "$| = 1; for ($n = 0; ; $n++) { print \"$n\\n\"; select(undef, undef, undef, 0.005) }";
    let mut counter = Traveller::start(Command::new("perl").args(["-e", SCRIPT]))?;
    let pid = counter.pid();
    let mut next = 0;
    for (from, to) in [("0", "1"), ("1", "0"), ("0", "master")] {
        go(cluster, pid, from)?;
        let role = Role::Node(from.parse()?);
        cluster.stop_agent(role, libc::SIGKILL)?;
        cluster.start_agent(role)?;
        cluster.wait_up()?;
        eventually("it moves on", SOON, || Ok(go(cluster, pid, to).map_err(|error| format!("{error:#}"))))?;
        for _ in 0..100 {
            let line = counter.line()?;
            ensure!(line == next.to_string(), "to {to}: {line} instead of {next}");
            next += 1;
        }
    }
    signal_to(pid, libc::SIGTERM)?;
    let (_, status) = counter.end()?;
    ensure!(status == libc::SIGTERM, "it ended with {status}");
    cluster.quiet()
}

/// What a program read or wrote is not whole when its connection breaks, though the program may not notice.
fn connection_is_lost(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command("bpsh");
    run::tie(command.args(["0", "sh", "-c", "echo begun; cat > /dev/null; exit 0"])).stdin(Stdio::piped());
    let mut bpsh = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let _input = bpsh.stdin.take();
    let (mut output, mut messages) = (bpsh.stdout.take().context("no output")?, String::new());
    let mut got = [0; 6];
    output.read_exact(&mut got)?;
    signal_to(cluster.stdio_pid(NODE)?, libc::SIGKILL)?;
    let status = run::wait(&mut bpsh, SOON)?;
    bpsh.stderr.take().context("no messages")?.read_to_string(&mut messages)?;
    ensure!(status == 255, "bpsh ends with {status}");
    let told = messages.lines().filter(|line| line.contains("connection to node 0 was lost")).count();
    ensure!(told == 1, "bpsh says {messages:?}");
    let done = cluster.bpsh(&["0", "echo", "fine"])?;
    ensure!(done.status == 0 && done.out() == "fine\n" && done.err().is_empty(), "{done:?}");
    cluster.quiet()
}

/// A master that is started with fewer descriptors than its ghosts take.
fn few_descriptors(cluster: &Cluster) -> Result<()> {
    crash(cluster, &[Role::Master])?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let few = libc::rlimit { rlim_cur: limit.rlim_cur.min(128), ..limit };
    // SAFETY: `few` lives through the call. What is open stays open.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) };
    ensure!((got, set) == (0, 0), "no other limit of descriptors");
    let started = cluster.start_agent(Role::Master);
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    started?;
    cluster.wait_up()?;
    let mut crowd = Crowd::start(cluster)?;
    crowd.all_exit()?;
    crowd.end(cluster)
}

/// What was forked before the node's agent was killed may still have ghosts: its numbers are not given again at once.
fn forks_go_on(cluster: &Cluster) -> Result<()> {
    // Blocks have 4096 numbers; after three quarters of one, forks go on in another.
    let may_change = |last: i32| last % 4096 > 2500;
    let end = cluster.dir().join("log/forks-end");
    let line = format!("while [ ! -e {} ]; do sh -c 'echo $$'; sleep 0.02; done; exit 7", end.display());
    let mut program = Traveller::start(cluster.command("bpsh").args(["0", "sh", "-c", &line]))?;
    let mut next = || -> Result<i32> { Ok(program.line()?.parse()?) };
    let mut last = 0;
    for round in 0..3 {
        if round > 0 {
            crash(cluster, &[Role::Node(0)])?;
            revive(cluster, &[Role::Node(0)])?;
        }
        for _ in 0..20 {
            let pid = next()?;
            ensure!(pid > last || may_change(last), "a process got the number {pid} after {last}, in round {round}");
            last = pid;
        }
    }
    std::fs::write(&end, "")?;
    let (_, status) = program.end()?;
    ensure!(status == 7 << 8, "status {status:#x}");
    cluster.quiet()
}

fn main() -> ExitCode {
    const MASTER: &[Role] = &[Role::Master];
    const SLAVE: &[Role] = &[NODE];
    const BOTH: &[Role] = &[Role::Master, NODE];
    let mut tests = vec![
        Test::new("bpsh_is_killed", bpsh_dies),
        Test::new("bpsh_is_killed_with_offspring", |c: &Cluster| offspring(c, &[])),
        Test::new("ghosts_are_killed", ghosts_die),
        Test::new("the_keeper_is_killed", keeper_dies),
        Test::new("a_stopped_one_forks", stopped_one_forks),
    ];
    for (name, roles) in [("slave_agent", SLAVE), ("master_agent", MASTER), ("both_agents", BOTH)] {
        tests.push(Test::new(format!("{name}_restarts_signals"), move |c: &Cluster| signals_between(c, roles)));
        tests.push(Test::new(format!("{name}_restarts_statuses"), move |c: &Cluster| statuses_between(c, roles)));
        tests.push(Test::new(format!("{name}_restarts_kills"), move |c: &Cluster| kills_between(c, roles)));
        tests.push(Test::new(format!("{name}_restarts_output"), move |c: &Cluster| output_between(c, roles)));
        tests.push(Test::new(format!("{name}_restarts_offspring"), move |c: &Cluster| offspring(c, roles)));
        tests.push(Test::new(format!("{name}_restarts_starts"), move |c: &Cluster| starts_between(c, roles)));
    }
    tests.extend([
        Test::new("agents_restart_again_and_again", again_and_again),
        Test::new("the_master_dies_young", master_dies_young),
        Test::new("a_connection_is_lost", connection_is_lost),
        Test::new("a_process_moves_after_restarts", moves_after_restarts),
        Test::new("forks_go_on_after_restarts", forks_go_on),
        Test::new("a_master_has_few_descriptors", few_descriptors),
        Test::new("the_slave_agent_stays_away", slave_stays_away),
        Test::new("the_node_is_cut_off", slave_is_cut_off),
        Test::new("a_stdio_service_has_no_processor", services_have_no_processor),
        Test::new("the_space_dies", space_dies),
        Test::new("the_master_stays_away", master_stays_away),
    ]);
    runner::main(|| Cluster::start(2), tests, Cluster::close)
}
