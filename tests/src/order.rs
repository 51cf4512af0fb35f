//! What is written to standard output and to standard error where both lead to one open file comes in the order in which it was
//! written. The scripts run natively, too.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bproc_common::id::Pid;
use bproc_sys::files::same_open_file;
use bproc_sys::pidfd::PidFd;

use crate::cluster::{Cluster, Role, eventually};
use crate::run::{finish, tie, wait};
use crate::shared_input::ALONE;
use crate::traveller::{compile, go};

const LIMIT: Duration = Duration::from_secs(60);
/// Writes by turns to both.
const WRITE: &str = "i=0; while [ $i -lt 1500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";
/// Where the outputs of `$RUN SHELL -c "$WRITE"` go; the last ones are two files.
const STARTS: [&str; 4] = [
    "$RUN bash -c \"$WRITE; exit 3\" >$FILE 2>&1; echo ended with $?; cat $FILE",
    "$RUN bash -c \"$WRITE\" 2>&1 | cat",
    "$RUN bash -c \"$WRITE\" 2>$FILE >&2; cat $FILE",
    "$RUN bash -c \"$WRITE\" >$FILE 2>$FILE.err; cat $FILE; cat $FILE.err",
];
/// `$MOVE PID PLACE` moves, or does nothing.
const MOVES: [&str; 4] = [
    "bash -c \"$MOVING\" >$FILE 2>&1; echo ended with $?; cat $FILE",
    "bash -c \"$MOVING\" 2>&1 | cat",
    "bash -c \"$MOVING\" >$FILE 2>$FILE.err; cat $FILE; cat $FILE.err",
    "bash -c \"exec 2>&1; $MOVING\" 2>$FILE.err; cat $FILE.err",
];
const MOVING: &str = "for place in 1 2 master 0 2 master; do $MOVE $$ $place; i=0; \
    while [ $i -lt 300 ]; do echo $place o$i; echo e$i >&2; i=$((i+1)); done; done; exit 3";

fn run(cluster: &Cluster, on: &[&str], script: &str, run: &str, r#move: &Path) -> Result<String> {
    let file = cluster.dir().join("log/order");
    let mut command = Command::new("env");
    let command = cluster.environment(&mut command).args([
        &format!("RUN={run}"),
        &format!("MOVE={}", r#move.display()),
        &format!("FILE={}", file.display()),
        &format!("WRITE={WRITE}"),
        &format!("MOVING={MOVING}"),
    ]);
    let done = finish(command.args(on).args(["bash", "-c", ALONE, script]), b"", LIMIT)?;
    ensure!(done.status == 0, "{script}: {done:?}");
    Ok(done.out() + &done.err())
}

fn compare(name: &str, far: &str, native: &str) -> Result<()> {
    if far == native {
        return Ok(());
    }
    // They are long.
    let same = far.lines().zip(native.lines()).take_while(|(far, native)| far == native).count();
    let from = |text: &str| text.lines().skip(same).take(6).map(str::to_owned).collect::<Vec<_>>();
    bail!("{name}: after {same} lines {:?}; natively: {:?}", from(far), from(native))
}

/// Of what is started on a node.
///
/// # Errors
/// It comes in another order.
pub fn of_starts(cluster: &Cluster) -> Result<()> {
    let calls = compile(cluster, "tests/programs/starts.c", &[], true)?;
    let bpsh = cluster.program("bpsh");
    let mut ways = vec![format!("{} 1", bpsh.display()), format!("{} -p 1", bpsh.display())];
    ways.extend(["execmove", "rexec", "move"].map(|call| format!("{} {call} 1", calls.display())));
    for script in STARTS {
        let native = run(cluster, &[], script, "", "true".as_ref())?;
        for way in &ways {
            let far = run(cluster, &[], script, way, "true".as_ref())?;
            let labelled = way.contains(" -p ");
            let far = if labelled { far.replace("  1: ", "") } else { far };
            compare(&format!("{way}: {script}"), &far, &native)?;
        }
    }
    cluster.quiet()
}

/// Of what moves between what it writes, from the master or from a node; and of what moves meanwhile.
///
/// # Errors
/// It comes in another order, or its outputs do not lead to one file again at home.
pub fn of_moves(cluster: &Cluster) -> Result<()> {
    let (bpsh, bpmove) = (cluster.program("bpsh"), cluster.program("bpmove"));
    let bpsh = bpsh.to_string_lossy();
    for script in MOVES {
        let native = run(cluster, &[], script, "", "true".as_ref())?;
        for on in [&[][..], &[&*bpsh, "0"]] {
            compare(&format!("{on:?}: {script}"), &run(cluster, on, script, "", &bpmove)?, &native)?;
        }
    }
    for joined in [true, false] {
        meanwhile(cluster, joined).with_context(|| format!("joined: {joined}"))?;
    }
    cluster.quiet()
}

fn meanwhile(cluster: &Cluster, joined: bool) -> Result<()> {
    let at = |name: &str| cluster.dir().join(format!("log/order-{name}"));
    let (out, err, stop) = (at("out"), at("err"), at("stop"));
    for old in [&out, &err, &stop] {
        let _ = fs::remove_file(old);
    }
    let script = format!("i=0; while [ ! -e {} ]; do echo o$i; echo e$i >&2; i=$((i+1)); done; exit 3", stop.display());
    let file = File::create(&out)?;
    let other = if joined { file.try_clone()? } else { File::create(&err)? };
    let mut command = Command::new("bash");
    let mut child =
        tie(command.args(["-c", ALONE, &script]).stdin(Stdio::null()).stdout(file).stderr(other)).spawn()?;
    let travelled: Result<()> = ["1", "2", "master", "0", "master"].into_iter().try_for_each(|place| {
        let pid = child.id() as i32;
        go(cluster, pid, place)?;
        if place == "1" {
            // The next one learns from the stdio service what the process writes to.
            cluster.stop_agent(Role::Node(1), libc::SIGKILL)?;
            cluster.start_agent(Role::Node(1))?;
            // That it is up may be said of the one that was killed.
            eventually("node 1 serves again", LIMIT, || {
                let done = cluster.bpsh(&["1", "true"])?;
                Ok(if done.status == 0 { Ok(()) } else { Err(done.err()) })
            })?;
        }
        // Where they are two, the shell leads the one to the other for a moment, and closes it before.
        if place == "master" && joined {
            let process = PidFd::open(Pid::new(pid).context("a pid")?)?;
            eventually("at home both outputs lead to one open file", LIMIT, || {
                let both = process.get_fd(1).and_then(|out| Ok((out, process.get_fd(2)?)));
                let one = both.is_ok_and(|(out, err)| same_open_file(out, err));
                Ok(one.then_some(()).ok_or_else(|| "they are two".into()))
            })?;
        }
        Ok(())
    });
    fs::write(&stop, "")?;
    let status = wait(&mut child, LIMIT)?;
    travelled?;
    ensure!(status == 3, "status {status}");
    let text = fs::read_to_string(&out)? + &fs::read_to_string(&err).unwrap_or_default();
    let turns = text.lines().count() / 2;
    let (outs, errs) = ((0..turns).map(|i| format!("o{i}\n")), (0..turns).map(|i| format!("e{i}\n")));
    let wanted: String = match joined {
        true => outs.zip(errs).flat_map(|(out, err)| [out, err]).collect(),
        false => outs.chain(errs).collect(),
    };
    compare("while it wrote", &text, &wanted)
}
