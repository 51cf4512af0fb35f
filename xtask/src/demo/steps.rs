//! The steps of the tour, each with what it promises.

use anyhow::{Context, Result, bail};

use super::session::{Said, Session};

/// Tries of a step that waits for what travels by itself from a node to the
/// master; each try is a round trip itself, so nothing sleeps.
const TRIES: usize = 200;

/// All of them, in order.
pub(super) fn all(shell: &mut Session) -> Result<()> {
    nodes(shell)?;
    programs(shell)?;
    a_job(shell)?;
    pipes(shell)?;
    status_and_python(shell)
}

fn nodes(shell: &mut Session) -> Result<()> {
    title("The nodes");
    let said = shell.show("bpstat")?;
    promise(&said, said.status == 0 && said.text.contains("0-2") && said.text.contains("up"), "nodes 0-2 are up")
}

fn programs(shell: &mut Session) -> Result<()> {
    title("One program on all of them");
    let said = shell.show("bpsh -a -p hostname")?;
    let all = (0..3).all(|node| said.text.lines().any(|line| line.starts_with(&format!("{node:3}: "))));
    promise(&said, said.status == 0 && all, "each node says its name")
}

/// A sleeping job: seen, stopped, continued, moved and ended from here.
fn a_job(shell: &mut Session) -> Result<()> {
    title("A job on node 1 is a process here: with its pid, in ps, for kill and wait, and it can move");
    shell.quiet("mkfifo pid")?;
    let said = shell
        .show("bpsh 1 sh -c 'echo $$; exec sleep 1000' >pid & read pid <pid; echo \"node 1 says: my pid is $pid\"")?;
    let pid: i32 = said
        .text
        .lines()
        .find_map(|line| line.strip_prefix("node 1 says: my pid is ")?.trim().parse().ok())
        .with_context(|| format!("node 1 told no pid: {}", said.text))?;
    shown_on(shell, pid, "1")?;

    let said = shell.show("kill -STOP $pid")?;
    promise(&said, said.status == 0, "kill can stop it")?;
    remote_state(shell, "T")?;
    let said = shell.show("kill -CONT $pid")?;
    promise(&said, said.status == 0, "kill can let it go on")?;
    remote_state(shell, "S")?;

    let said = shell.show("bpmove $pid 2")?;
    promise(&said, said.status == 0, "the running process goes on, on node 2")?;
    shown_on(shell, pid, "2")?;

    let said = shell.show("kill -TERM $pid; wait %1; echo \"status $?\"")?;
    promise(&said, said.text.contains("status 255"), "bpsh reports the end by a signal")?;
    let said = shell.quiet("kill -0 $pid")?;
    promise(&said, said.status != 0, "no ghost stays behind")
}

fn shown_on(shell: &mut Session, pid: i32, node: &str) -> Result<()> {
    let said = shell.show("ps xf | bpstat -P | grep -E 'PID|^[0-9]'")?;
    let seen = said.text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(node) && words.next() == Some(pid.to_string().as_str())
    });
    promise(&said, seen, "ps shows the pid here, bpstat the node that it runs on")
}

/// The state of the job as node 1 itself sees it. The signal travels there: ask until it has arrived.
fn remote_state(shell: &mut Session, wanted: &str) -> Result<()> {
    let question = "bpsh -n 1 sh -c \"grep State: /proc/$pid/status\"";
    let right = |said: &Said| said.status == 0 && said.text.split_whitespace().nth(1) == Some(wanted);
    for _ in 0..TRIES {
        if right(&shell.quiet(question)?) {
            let said = shell.show(question)?;
            return promise(&said, right(&said), "the process on the node has changed its state");
        }
    }
    let said = shell.show(question)?;
    promise(&said, right(&said), "the process on the node has changed its state")
}

fn pipes(shell: &mut Session) -> Result<()> {
    title("Pipes go there and back, and from node to node");
    let said = shell.show("printf 'pear\\napple\\nquince\\n' | bpsh 2 sort | bpsh 0 tr a-z A-Z")?;
    promise(&said, said.text == "APPLE\nPEAR\nQUINCE\n", "node 2 sorts, node 0 turns to capitals")
}

fn status_and_python(shell: &mut Session) -> Result<()> {
    title("Exit status comes home, and any program goes out");
    let said = shell.show("bpsh 2 sh -c 'exit 7'; echo \"status $?\"")?;
    promise(&said, said.text == "status 7\n", "the exit status is that of the program")?;
    let said = shell.show(
        "bpsh -a -p python3 -c 'import os; print(\"python is process\", os.getpid(), \"child of\", os.getppid())'",
    )?;
    let pids: std::collections::BTreeSet<&str> =
        said.text.lines().filter_map(|line| line.split("process ").nth(1)?.split(' ').next()).collect();
    promise(&said, said.status == 0 && pids.len() == 3, "three processes with three pids, unique in the whole cluster")
}

fn title(text: &str) {
    println!("\n# {text}");
}

fn promise(said: &Said, kept: bool, what: &str) -> Result<()> {
    if !kept {
        bail!("promised: {what}; exit status {}, output:\n{}", said.status, said.text);
    }
    Ok(())
}
