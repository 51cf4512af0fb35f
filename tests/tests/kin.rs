//! Every arrangement of parent and child: one table of cases, each run natively, and with the parent, the child, or both being
//! moved at every point. What each of them says must be the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Role, eventually, signal_to};
use bproc_tests::runner::{self, Test};
use bproc_tests::traveller::{Traveller, compile, go, try_move};

const PROGRAM: &str = "tests/programs/kin.c";

/// Where a process goes at each of its points, and at those of others: in turn.
type Way = &'static [&'static str];

/// Every process of the program ends by then, and should long before.
const ALARM: Duration = Duration::from_secs(60);

/// Name; the parent's way; its children's and theirs.
const ARRANGEMENTS: [(&str, Way, Way); 7] = [
    ("natively", &[], &[]),
    ("the parent goes to a node", &["0"], &[]),
    ("the child goes to a node", &[], &["0"]),
    ("both to one node", &["0"], &["0"]),
    ("to different nodes", &["1"], &["0", "2"]),
    ("out and home", &["0", "master", "1"], &["1", "0", "master"]),
    ("the child first, and the parent after it", &["master", "0", "1"], &["0", "1", "2"]),
];

/// Nobody tells a subreaper on a node of orphans that never left the master, whose parent was not its own child.
const NOT_TOLD: (&str, &str) = ("deep_orphan", "the parent goes to a node");

/// The words that the program knows.
const CASES: [&str; 20] = [
    "exits",
    "zombie",
    "before_fork",
    "terminated",
    "sigkilled",
    "kills_parent",
    "orphan",
    "subreaper",
    "orphan_at_once",
    "deep_orphan",
    "late_subreaper",
    "parent_dies",
    "stopped",
    "two",
    "group",
    "session",
    "ignored",
    "handled",
    "blocked",
    "executes",
];

/// What each process said.
type Transcript = BTreeMap<char, Vec<String>>;

/// Words of refusals that are nobody's fault: it has ended meanwhile.
const ENDED: [&str; 6] =
    ["has ended", "ended meanwhile", "cannot be read", "has no memory", "has no ghost here", "No such process"];

fn run(cluster: &Cluster, program: &Path, case: &str, parent: Way, child: Way) -> Result<(Transcript, i32)> {
    let points = cluster.dir().join("log/points");
    fs::remove_dir_all(&points).or_else(|e| if points.exists() { Err(e) } else { Ok(()) })?;
    fs::create_dir(&points)?;
    let mut p = Traveller::start(Command::new(program).arg(case).arg(&points))?;
    let mut known: BTreeMap<char, (i32, usize)> = BTreeMap::from([('P', (p.pid(), 0))]);
    let mut said = Transcript::new();
    let mut log = Vec::new();
    loop {
        let line = match p.output_line()? {
            Some(line) => line,
            None => break,
        };
        let Some(point) = line.strip_prefix("at ") else {
            let who = line.chars().next().context("an empty line")?;
            said.entry(who).or_default().push(line);
            continue;
        };
        let (name, pid) = point.split_once(' ').context("a point without a number")?;
        let who = name.chars().next().context("a point without a name")?;
        let entry = known.entry(who).or_insert((0, 0));
        entry.0 = pid.parse()?;
        for (who, (pid, steps)) in &mut known {
            let way = if *who == 'P' { parent } else { child };
            let Some(node) = way.get(*steps % way.len().max(1)) else { continue };
            *steps += 1;
            let done = try_move(cluster, *pid, node)?;
            log.push(format!("{who} {pid} to {node}: {}", done.err().trim()));
            // Who has ended may be held by the keeper for a moment.
            let held = !name.starts_with(*who) && done.err().contains("traces it already");
            if done.status != 0 && !held && !ENDED.iter().any(|words| done.err().contains(words)) {
                bail!("at {name}: {who} to {node}: {}", done.err());
            }
        }
        fs::write(points.join(name), "")?;
    }
    let (rest, status) = p.end()?;
    ensure!(rest.is_empty(), "{rest}");
    cluster.quiet().with_context(|| log.join("; "))?;
    Ok((said, status))
}

fn compare(cluster: &Cluster, case: &str) -> Result<()> {
    let program = compile(cluster, PROGRAM, &[], false)?;
    let mut native = None;
    for (name, parent, child) in ARRANGEMENTS.into_iter().filter(|(name, ..)| (case, *name) != NOT_TOLD) {
        let began = Instant::now();
        let seen = run(cluster, &program, case, parent, child).with_context(|| name)?;
        ensure!(began.elapsed() < ALARM, "{name}: somebody lived until the alarm");
        let native = native.get_or_insert_with(|| seen.clone());
        ensure!(
            *native == seen,
            "{name}:\n{seen:?}\nnatively:\n{native:?}\nmaster: {}",
            cluster.log_tail(Role::Master, 8)
        );
    }
    Ok(())
}

/// It goes on, and its parent is told.
fn goes_on(parent: &mut Traveller, child: i32) -> Result<()> {
    signal_to(child, libc::SIGCONT)?;
    signal_to(child, libc::SIGUSR1)?;
    // Which of the two is heard first depends on where they are.
    let mut lines = [parent.line()?, parent.line()?];
    lines.sort_unstable();
    ensure!(lines == ["continued", "here"], "{lines:?}");
    Ok(())
}

fn stops(parent: &mut Traveller, child: i32) -> Result<()> {
    signal_to(child, libc::SIGTSTP)?;
    let line = parent.line()?;
    ensure!(line == "stopped 20", "{line:?}");
    Ok(())
}

/// Whoever waits for one that is stopped and moves hears nothing of that, and all that comes after it once.
fn stopped_ones_move(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/stops.c", &[], false)?;
    let start = || {
        let mut parent = Traveller::start(&mut Command::new(&program))?;
        let line = parent.line()?;
        let child = line.strip_prefix("child ").and_then(|pid| pid.parse().ok());
        child.map(|child: i32| (parent, child)).with_context(|| line)
    };
    let (mut parent, child) = start()?;
    for node in ["0", "1", "master", "2", "2", "master"] {
        stops(&mut parent, child).with_context(|| format!("before {node}"))?;
        go(cluster, child, node)?;
        // Its ghost, too, learns its name.
        eventually("its name", ALARM, || {
            let name = fs::read_to_string(format!("/proc/{child}/comm"))?;
            Ok(if name == "stops\n" { Ok(()) } else { Err(format!("{name:?} on {node}")) })
        })?;
        goes_on(&mut parent, child).with_context(|| format!("on {node}"))?;
    }
    signal_to(child, libc::SIGKILL)?;
    ensure!(parent.end()? == ("ended 9\n".into(), 0), "its end");
    // One whose parent is on a node stays stopped at home, of which that is told again, and what happens there is told, too.
    let (mut parent, child) = start()?;
    go(cluster, parent.pid(), "0")?;
    go(cluster, child, "0")?;
    stops(&mut parent, child).context("at its parent's")?;
    go(cluster, child, "master")?;
    parent.until("stopped 20")?;
    goes_on(&mut parent, child).context("at home")?;
    stops(&mut parent, child).context("at home")?;
    signal_to(child, libc::SIGKILL)?;
    ensure!(parent.end()? == ("ended 9\n".into(), 0), "its end");
    cluster.quiet()
}

/// Grandchild, child and parent go to the same node, in any order, and wait for each other as before.
fn generations(cluster: &Cluster) -> Result<()> {
    const LAST: &str = "trap 'exit 3' USR1; echo ready; while :; do sleep 0.02; done";
    for order in [[2, 1, 0], [2, 0, 1], [1, 2, 0], [1, 0, 2], [0, 2, 1], [0, 1, 2]] {
        // None of them leads the group.
        let script = r#"sh -c 'sh -c "$LAST"; exit $(($? + 1))'; exit $(($? + 1))"#;
        let mut first = Command::new("sh");
        first.args(["-c", r#"sh -c "$ALL"; exit $?"#]).envs([("ALL", script), ("LAST", LAST)]);
        let mut program = Traveller::start(&mut first)?;
        program.until("ready")?;
        let line = line_of(program.pid(), 4)?;
        for node in ["0", "1"] {
            for member in order {
                go(cluster, line[1 + member], node)?;
            }
        }
        signal_to(line[3], libc::SIGUSR1)?;
        let end = program.end()?;
        ensure!(end == (String::new(), 5 << 8), "{order:?}: {end:?}");
    }
    cluster.quiet()
}

/// The child leads a session of its own, in which its child is, and is waited for by its parent, in whatever order they go.
fn sessions(cluster: &Cluster) -> Result<()> {
    const LAST: &str = "trap 'exit 3' USR1; echo ready; while :; do sleep 0.02; done";
    const LEADER: &str = r#"sh -c "$LAST"; exit $(($? + 1))"#;
    for order in [[2, 1, 0], [2, 0, 1], [1, 2, 0], [1, 0, 2], [0, 2, 1], [0, 1, 2]] {
        let script = r#"setsid sh -c "$LEADER"; exit $(($? + 1))"#;
        let mut first = Command::new("sh");
        first.args(["-c", r#"sh -c "$ALL"; exit $?"#]).envs([("ALL", script), ("LEADER", LEADER), ("LAST", LAST)]);
        let mut program = Traveller::start(&mut first)?;
        program.until("ready")?;
        let line = line_of(program.pid(), 4)?;
        for node in ["0", "1"] {
            for member in order {
                go(cluster, line[1 + member], node)?;
            }
        }
        for member in 1..4 {
            let session = if member == 1 { None } else { Some(line[2]) };
            let seen = session_of(line[member])?;
            ensure!(session.is_none_or(|session| session == seen), "{order:?}: session {seen} of {member} in {line:?}");
        }
        signal_to(line[3], libc::SIGUSR1)?;
        let end = program.end()?;
        ensure!(end == (String::new(), 5 << 8), "{order:?}: {end:?}");
    }
    cluster.quiet()
}

fn session_of(pid: i32) -> Result<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("a line of /proc")?.1;
    Ok(fields.split_whitespace().nth(3).context("a session")?.parse()?)
}

/// Many levels deep, from the last one up.
fn many_generations(cluster: &Cluster) -> Result<()> {
    const DEPTH: usize = 14;
    // Each adds one to what the one below has ended with; the last waits for a signal.
    const SCRIPT: &str = r#"if [ $1 -gt 0 ]; then sh -c "$ALL" x $(($1 - 1)); exit $(($? + 1)); fi
        trap 'exit 3' USR1; echo ready; while :; do sleep 0.02; done"#;
    let mut first = Command::new("sh");
    let mut program = Traveller::start(first.args(["-c", SCRIPT, "x", &DEPTH.to_string()]).env("ALL", SCRIPT))?;
    program.until("ready")?;
    let line = line_of(program.pid(), DEPTH + 1)?;
    for member in line.iter().skip(1).rev() {
        go(cluster, *member, "0")?;
    }
    signal_to(line[DEPTH], libc::SIGUSR1)?;
    let end = program.end()?;
    ensure!(end == (String::new(), (3 + DEPTH as i32) << 8), "{end:?}");
    cluster.quiet()
}

/// Children end all the time, while their parent comes to where they are and goes: each end is told.
fn ends_while_it_comes(cluster: &Cluster) -> Result<()> {
    const SCRIPT: &str = r#"for i in $(seq 40); do sleep 0.06 & wait $! || exit 1; done; exit 7"#;
    let shell = Traveller::start(Command::new("bash").args(["-c", SCRIPT]))?;
    let goes = |node: &str| {
        let done = try_move(cluster, shell.pid(), node)?;
        let ended = ENDED.iter().any(|words| done.err().contains(words));
        ensure!(done.status == 0 || ended, "to {node}: {}", done.err());
        Ok(done.status == 0)
    };
    while goes("1")? && goes("0")? {}
    ensure!(shell.end()? == (String::new(), 7 << 8), "its end");
    cluster.quiet()
}

/// A parent, and its children, which fork all the time, all of them on their way at once.
fn family(cluster: &Cluster) -> Result<()> {
    const SECONDS: u64 = 12;
    let program = compile(cluster, "tests/programs/family.c", &[], false)?;
    let mut parent = Traveller::start(Command::new(&program).arg(SECONDS.to_string()))?;
    let mut all = vec![parent.pid()];
    for _ in 0..3 {
        let line = parent.line()?;
        all.push(line.strip_prefix("child ").and_then(|pid| pid.parse().ok()).with_context(|| line)?);
    }
    let end = Instant::now() + Duration::from_secs(SECONDS - 1);
    let mut moves = [0; 4];
    let mut under_way: Vec<Option<Child>> = vec![None, None, None, None];
    while Instant::now() < end || under_way.iter().any(Option::is_some) {
        for (who, slot) in under_way.iter_mut().enumerate() {
            if let Some(mover) = slot {
                match mover.try_wait()? {
                    // Who has just forked, or whose child is yet to be known, may be refused.
                    Some(_) => *slot = None,
                    None => continue,
                }
            }
            if Instant::now() < end {
                // Each in an order of its own.
                let step = moves[who];
                let node = ["0", "1", "master", "2"][(step * (who + 1) + step / 4 * who) % 4];
                let mut command = cluster.command("bpmove");
                command.args([&all[who].to_string(), node]).stdin(Stdio::null());
                *slot = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
                moves[who] += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let end = parent.end()?;
    ensure!(end == ("done\n".into(), 0), "{end:?}");
    ensure!(moves.iter().all(|moves| *moves > 1), "only {moves:?} moves");
    cluster.quiet()
}

/// A process, its child, and so on.
fn line_of(first: i32, length: usize) -> Result<Vec<i32>> {
    let mut line = vec![first];
    while line.len() < length {
        let last = line[line.len() - 1];
        let children = fs::read_to_string(format!("/proc/{last}/task/{last}/children"))?;
        line.push(children.trim().parse().with_context(|| format!("children of {last}: {children:?}"))?);
    }
    Ok(line)
}

fn main() -> ExitCode {
    let test = |case: &'static str| Test::new(case, move |cluster: &Cluster| compare(cluster, case));
    let others = [
        Test::new("stopped_ones_move", stopped_ones_move),
        Test::new("generations", generations),
        Test::new("many_generations", many_generations),
        Test::new("ends_while_it_comes", ends_while_it_comes),
        Test::new("sessions", sessions),
        Test::new("family", family),
    ];
    runner::main(|| Cluster::start(3), CASES.into_iter().map(test).chain(others).collect(), Cluster::close)
}
