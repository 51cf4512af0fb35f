//! Files at whose position several processes write: whoever cannot go along with them is refused in words, and what is refused
//! nobody loses a line of. The scripts are what users write.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::run::finish;
use crate::traveller::{Traveller, go, try_move};

const LIMIT: Duration = Duration::from_secs(60);
/// Lines of each of two processes.
const LINES: usize = 300;

/// Two that write by one descriptor, from when `$1` is there; the first one tells its number and the other's.
fn two(open: &str, descriptor: u32, file: &Path, go: &Path) -> String {
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let write = |who: &str| format!("for ((i = 0; i < {LINES}; i++)); do echo {who} $i >&{descriptor}; done");
    format!(
        "echo here; {open}{}; ({wait}; {}) & other=$!; echo $BASHPID $other >&2; {wait}; {}; wait $other; exit 3",
        file.display(),
        write("other"),
        write("one")
    )
}

/// All lines of both, and those of each in order.
fn whole(file: &Path, of: &[&str]) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let wanted = |who: &str| (0..LINES).map(|i| format!("{who} {i}")).collect::<Vec<_>>();
    for who in of {
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(who)).collect();
        ensure!(lines == wanted(who), "{}: lines of {who}: {}", file.display(), lines.len());
    }
    ensure!(text.lines().count() == of.len() * LINES, "{}: {} lines", file.display(), text.lines().count());
    Ok(())
}

/// Its number, once it says so.
fn number(said: &Path) -> Result<i32> {
    for _ in 0..1000 {
        let text = fs::read_to_string(said).unwrap_or_default();
        if let Some(first) = text.strip_suffix('\n').and_then(|line| line.split(' ').next()) {
            return Ok(first.parse()?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("it does not tell its number")
}

/// Starts them on the master or a node, moves the first one as told, and lets both write.
fn write_together(
    cluster: &Cluster,
    (node, open, descriptor): (Option<&str>, &str, u32),
    of: &[&str],
    travel: impl FnOnce(i32, &Path) -> Result<()>,
) -> Result<()> {
    let at = |name: &str| cluster.dir().join(format!("log/positions-{name}"));
    let (file, begin, said) = (at("file"), at("begin"), at("said"));
    for old in [&file, &begin, &said] {
        let _ = fs::remove_file(old);
    }
    fs::write(&file, "")?;
    let script = two(open, descriptor, &file, &begin);
    let mut command = cluster.command(if node.is_some() { "bpsh" } else { "bash" });
    if let Some(node) = node {
        command.args([node, "bash"]);
    }
    command.args(["-c", &script]).stderr(fs::File::create(&said)?);
    let mut program = Traveller::start(&mut command)?;
    program.until("here")?;
    let travelled = travel(number(&said)?, &file);
    fs::write(&begin, "")?;
    let (_, status) = program.end()?;
    travelled?;
    ensure!(status == 3 << 8, "status {status:#x}, {}", fs::read_to_string(&said)?);
    whole(&file, of)?;
    cluster.quiet()
}

/// Is refused in words: which descriptor, which file, whose it is besides, what is to be done.
fn refused(cluster: &Cluster, pid: i32, file: &Path, to: &str) -> Result<()> {
    let done = try_move(cluster, pid, to)?;
    let words = format!("5 (file {}, open for writing at a position that process ", file.display());
    let err = done.err();
    let other = err.split_once(&words).and_then(|(_, rest)| rest.split(' ').next()?.parse::<i32>().ok());
    let right = done.status == 1 && other.is_some_and(|other| other > 1 && other != pid) && err.contains("bpmove -d");
    ensure!(right, "to {to}: {done:?}");
    Ok(())
}

/// Descriptors beyond the standard ones, and standard output, that another process writes by, too.
///
/// # Errors
/// One moves away from it, or a line is lost.
pub fn shared(cluster: &Cluster) -> Result<()> {
    let both = ["one", "other"];
    for (node, to) in [(None, "0"), (Some("0"), "1"), (Some("0"), "master")] {
        let case = format!("from {node:?} to {to}");
        write_together(cluster, (node, "exec 5>", 5), &both, |pid, file| refused(cluster, pid, file, to))
            .with_context(|| case.clone())?;
        let elsewhere = if node.is_some() { "2" } else { "1" };
        let there = |pid, _: &Path| go(cluster, pid, to).and_then(|()| go(cluster, pid, elsewhere));
        write_together(cluster, (node, "exec 5>>", 5), &both, there).with_context(|| format!("{case}, at its end"))?;
        write_together(cluster, (node, "exec >", 1), &both, there).with_context(|| format!("{case}, output"))?;
        let dropped = |pid: i32, _: &Path| {
            let done = finish(cluster.command("bpmove").args(["-d", &pid.to_string(), to]), b"", LIMIT)?;
            ensure!(done.status == 0, "{done:?}");
            Ok(())
        };
        write_together(cluster, (node, "exec 5>", 5), &["other"], dropped)
            .with_context(|| format!("{case}, dropped"))?;
    }
    Ok(())
}

/// What is read only, or nobody else has, or leads where standard output does, goes along.
///
/// # Errors
/// It does not, or leads elsewhere.
pub fn goes_along(cluster: &Cluster) -> Result<()> {
    let file = cluster.dir().join("log/positions-along");
    let script = "exec >$0.out 5<$0 3>&1; sleep 1000 2>/dev/null & other=$!; trap 'kill $other' EXIT\n\
        exec 6>$0.own; echo first; echo second >&3; echo own >&6\n\
        for place in 0 1 master 2 master; do\n\
        bpmove $$ $place || exit 1; echo 1 $place; echo 3 $place >&3; echo own $place >&6; done\n\
        read -u 5 line; echo $line; exit 3";
    fs::write(&file, "line\n")?;
    let mut command = Command::new("bash");
    let end = Traveller::start(cluster.environment(command.args(["-c", script]).arg(&file)))?.end()?;
    ensure!(end == (String::new(), 3 << 8), "{end:?}");
    let places = ["0", "1", "master", "2", "master"];
    let wanted: String = places.iter().map(|place| format!("1 {place}\n3 {place}\n")).collect();
    let text = fs::read_to_string(format!("{}.out", file.display()))?;
    ensure!(text == format!("first\nsecond\n{wanted}line\n"), "{text}");
    let own: String = places.iter().map(|place| format!("own {place}\n")).collect();
    let text = fs::read_to_string(format!("{}.own", file.display()))?;
    ensure!(text == format!("own\n{own}"), "{text}");
    cluster.quiet()
}
