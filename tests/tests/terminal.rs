//! A person at a terminal with job control: keys, jobs, and the end of the session.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::cluster::{Cluster, eventually};
use bproc_tests::procs::Proc;
use bproc_tests::pty::{END, INTERRUPT, PROMPT, QUIT, SUSPEND, Session};
use bproc_tests::runner::{self, Test};

const SOON: Duration = Duration::from_secs(20);

fn session(cluster: &Cluster) -> Result<Session> {
    Session::start(&mut cluster.command("bash"))
}

/// Waits until so many programs of this name are on the nodes, all in one of these states, and are seen on the master: what comes to
/// a group while one of it is being made there may miss that (docs/status.md).
fn programs(cluster: &Cluster, name: &str, count: usize, states: &str) -> Result<()> {
    eventually(&format!("{count} times {name} in state {states}"), SOON, || {
        let all: Vec<_> = cluster.programs().into_iter().filter(|p| p.comm == name).collect();
        let seen = |p: &Proc| Proc::read(p.inner()).is_some_and(|ghost| ghost.comm == name);
        let good = all.len() == count && all.iter().all(|p| states.contains(p.state) && seen(p));
        Ok(if good { Ok(()) } else { Err(format!("there are {all:?}")) })
    })
}

fn jobs_on_three_nodes(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.type_in("bpsh 0-2 sleep 100\n")?;
    programs(cluster, "sleep", 3, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    person.expect(PROMPT)?;
    programs(cluster, "sleep", 3, "T")?;
    let said = person.line("jobs")?;
    ensure!(said.contains("Stopped") && said.contains("bpsh 0-2 sleep 100"), "jobs says {said:?}");
    person.line("bg")?;
    programs(cluster, "sleep", 3, "S")?;
    let said = person.line("jobs")?;
    ensure!(said.contains("Running"), "jobs says {said:?}");
    person.type_in("fg\n")?;
    person.expect("bpsh 0-2 sleep 100")?;
    programs(cluster, "sleep", 3, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    person.expect(PROMPT)?;
    programs(cluster, "sleep", 3, "T")?;
    person.type_in("fg\n")?;
    programs(cluster, "sleep", 3, "S")?;
    person.type_in(INTERRUPT)?;
    person.expect(PROMPT)?;
    let said = person.line("echo status $?")?;
    ensure!(said.contains("status 130"), "after ^C: {said:?}");
    cluster.quiet()
}

fn quit_key(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.line("ulimit -c 0")?;
    person.type_in("bpsh 1 sleep 100\n")?;
    programs(cluster, "sleep", 1, "S")?;
    person.type_in(QUIT)?;
    person.expect(PROMPT)?;
    let said = person.line("echo status $?")?;
    ensure!(said.contains("status 131"), "after ^\\: {said:?}");
    cluster.quiet()
}

fn many_stops(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.type_in("bpsh 0-1 sleep 100\n")?;
    for _ in 0..5 {
        programs(cluster, "sleep", 2, "S")?;
        person.type_in(SUSPEND)?;
        person.expect("Stopped")?;
        person.expect(PROMPT)?;
        programs(cluster, "sleep", 2, "T")?;
        person.type_in("fg\n")?;
    }
    programs(cluster, "sleep", 2, "S")?;
    person.type_in(INTERRUPT)?;
    person.expect(PROMPT)?;
    cluster.quiet()
}

fn kill_a_stopped_job(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.type_in("bpsh 0-1 sleep 100\n")?;
    programs(cluster, "sleep", 2, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    person.expect(PROMPT)?;
    programs(cluster, "sleep", 2, "T")?;
    person.line("kill -9 %1; wait")?;
    cluster.quiet()
}

fn pipeline(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    let said = person.line("bpsh 0 seq 1000000 | bpsh 1 tail -1")?;
    ensure!(said.lines().any(|line| line == "1000000"), "it says {said:?}");
    person.type_in("bpsh 0 sleep 100 | bpsh 1 cat\n")?;
    programs(cluster, "sleep", 1, "S")?;
    programs(cluster, "cat", 1, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    person.expect(PROMPT)?;
    programs(cluster, "sleep", 1, "T")?;
    programs(cluster, "cat", 1, "T")?;
    person.type_in("fg\n")?;
    programs(cluster, "cat", 1, "S")?;
    person.type_in(INTERRUPT)?;
    person.expect(PROMPT)?;
    cluster.quiet()
}

fn input_and_its_end(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.type_in("bpsh 0 cat\n")?;
    programs(cluster, "cat", 1, "S")?;
    person.type_in("a line for the node\n")?;
    person.expect("a line for the node")?;
    person.type_in(END)?;
    person.expect(PROMPT)?;
    let said = person.line("echo status $?")?;
    ensure!(said.contains("status 0"), "after ^D: {said:?}");
    cluster.quiet()
}

fn background(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.line("bpsh 0-2 sleep 100 &")?;
    programs(cluster, "sleep", 3, "S")?;
    person.line("kill -STOP %1")?;
    programs(cluster, "sleep", 3, "T")?;
    person.line("kill -CONT %1")?;
    programs(cluster, "sleep", 3, "S")?;
    person.line("kill %1; wait %1; echo status $?")?;
    cluster.quiet()
}

fn hang_up(cluster: &Cluster) -> Result<()> {
    let dir = cluster.dir().join("log");
    let mut person = session(cluster)?;
    // The handler may run twice, natively too: the shell hangs its jobs up, and so does the kernel when the shell ends.
    let script = format!(
        "sub note {{ open F, '>>', '{}/'.shift(); print F \\$\\$, chr 10; close F }}; \
         \\$SIG{{HUP}} = sub {{ note('hung-up'); exit }}; note('ready'); sleep 1000",
        dir.display()
    );
    let both = |file: &str| {
        eventually(&format!("both programs are in the file {file}"), SOON, || {
            let said = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
            let both: std::collections::BTreeSet<&str> = said.lines().collect();
            Ok(if both.len() == 2 { Ok(()) } else { Err(format!("it has {said:?}")) })
        })
    };
    person.type_in(&format!("bpsh 0-1 perl -e \"{script}\"\n"))?;
    both("ready")?;
    person.hang_up()?;
    both("hung-up")?;
    cluster.quiet()
}

fn hang_up_of_stopped(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    person.type_in("bpsh 0-1 sleep 100\n")?;
    programs(cluster, "sleep", 2, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    programs(cluster, "sleep", 2, "T")?;
    person.hang_up()?;
    cluster.quiet()
}

fn a_terminal_on_the_node(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    let said = person.line("bpsh --pty 0 sh -c 'tty; stty size'")?;
    ensure!(said.contains("/dev/pts/") && said.contains("40 200"), "it says {said:?}");
    person.type_in("bpsh --pty 0 bash --norc --noprofile\n")?;
    // The prompt is in its environment.
    person.expect(PROMPT)?;
    person.type_in("stty -echo; PS1='node: '\n")?;
    person.expect("node: ")?;
    person.type_in("trap 'stty size; trap - WINCH' WINCH; echo set\n")?;
    person.expect("set")?;
    person.expect("node: ")?;
    person.resize(33, 111)?;
    person.type_in("\n")?;
    person.expect("33 111")?;
    person.type_in("sleep 100\n")?;
    programs(cluster, "sleep", 1, "S")?;
    person.type_in(SUSPEND)?;
    person.expect("Stopped")?;
    programs(cluster, "sleep", 1, "T")?;
    person.type_in("fg\n")?;
    programs(cluster, "sleep", 1, "S")?;
    person.type_in(INTERRUPT)?;
    person.expect("node: ")?;
    person.type_in("exit 5\n")?;
    person.expect(PROMPT)?;
    let said = person.line("echo status $?")?;
    ensure!(said.contains("status 5"), "it ended with {said:?}");
    cluster.quiet()
}

/// A program that closes its terminal's descriptors lives on with its terminal, and has its own status.
fn closes_its_streams(cluster: &Cluster) -> Result<()> {
    let mut person = session(cluster)?;
    for (script, word, status) in [
        ("exec <&- >&- 2>&-; sleep 0.3; exit 4", "", 4),
        ("exec <&- >&- 2>&-; sleep 0.3; exec </dev/tty >/dev/tty; read x; test a$x = aword", "word\n", 0),
    ] {
        person.type_in(&format!("bpsh --pty 1 sh -c '{script}'\n"))?;
        programs(cluster, "sh", 1, "S")?;
        person.type_in(word)?;
        person.expect(PROMPT)?;
        let said = person.line("echo status $?")?;
        ensure!(said.contains(&format!("status {status}")), "{script}: {said:?}");
    }
    for round in 0..20 {
        person.type_in("bpsh --pty 1 cat\n")?;
        programs(cluster, "cat", 1, "S")?;
        person.type_in(END)?;
        person.expect(PROMPT)?;
        let said = person.line("echo status $?")?;
        ensure!(said.contains("status 0"), "round {round}: {said:?}");
    }
    cluster.quiet()
}

/// bpsh leads the session, or its programs have terminals of their own: nobody but bpsh hears that the terminal is gone.
fn closed_under_bpsh_alone(cluster: &Cluster) -> Result<()> {
    for (options, script) in [("", "sleep 100"), ("--pty", "sleep 100"), ("--pty", "kill -STOP $$; sleep 100")] {
        for shell in [None, Some("true")] {
            let mut command = cluster.command("bash");
            let line = format!("exec bpsh {options} 1 sh -c '{script}'");
            let line = shell.map_or(line.clone(), |after| format!("{}; {after}", &line[5..]));
            let person = Session::run(command.args(["-c", &line]))?;
            let (name, state) = if script.starts_with("kill") { ("sh", "Tt") } else { ("sleep", "S") };
            programs(cluster, name, 1, state)?;
            person.hang_up().with_context(|| line.clone())?;
            cluster.quiet().with_context(|| line)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("stop_jobs_bg_fg_and_interrupt_on_three_nodes", jobs_on_three_nodes),
        Test::new("quit_key", quit_key),
        Test::new("stopped_and_continued_many_times", many_stops),
        Test::new("a_stopped_job_is_killed", kill_a_stopped_job),
        Test::new("pipeline_of_two_nodes", pipeline),
        Test::new("input_and_its_end", input_and_its_end),
        Test::new("a_background_job", background),
        Test::new("closing_the_terminal_hangs_up", hang_up),
        Test::new("closing_the_terminal_with_a_stopped_job", hang_up_of_stopped),
        Test::new("a_terminal_on_the_node", a_terminal_on_the_node),
        Test::new("closes_its_streams", closes_its_streams),
        Test::new("closed_under_bpsh_alone", closed_under_bpsh_alone),
    ];
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
