//! Processes that leave a node, and write to what stays there: pipes to others, files. The script runs natively, too.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;
use crate::run::finish;
use crate::traveller::compile;

const LIMIT: Duration = Duration::from_secs(60);

/// `$PLACES` is where the program goes, `$*` where a shell is moved to.
const SCRIPT: &str = "leads=$0 file=$1 move=$2; shift 2\n\
    $leads 3000 $PLACES | cat\n\
    $leads 3000 $PLACES >$file; echo ended with $?; cat $file; $leads 5 $PLACES >>$file; wc -l <$file\n\
    ($leads 100000 $PLACES 2>/dev/null; echo ended with $? >&2) | head -n 5\n\
    sh -c 'move=$0; for place; do $move $$ $place && echo goes on; done' $move $* 2>&1 | cat\n\
    $leads 10 $PLACES 2>&1 >&- | sed 's/:.*//'";
/// What a process that moves itself does not take along.
const INPUT: &[u8] = b"typed\n";
const PLACES: [&str; 2] = ["1 master 2 0 1", "1 2 master"];

/// What they write after they have left comes to where it is natively, all of it before they end.
///
/// # Errors
/// It does not.
pub fn outputs_that_stay(cluster: &Cluster) -> Result<()> {
    let program = compile(cluster, "tests/programs/leads.c", &[], true)?;
    let (program, dir) = (program.to_string_lossy(), cluster.dir().join("log"));
    let words = |file: &str, r#move: &str, places: &str| {
        let file = dir.join(file).to_string_lossy().into_owned();
        let words = ["env", &format!("PLACES={places}"), "sh", "-c", SCRIPT, &program, &file, r#move];
        words.into_iter().chain(PLACES[0].split(' ')).map(str::to_owned).collect::<Vec<_>>()
    };
    let here = words("leads-here", "true", "");
    let (first, rest) = here.split_first().context("no words")?;
    let native = finish(cluster.environment(Command::new(first).args(rest)), INPUT, LIMIT)?;
    for (node, places) in [("0", PLACES[0]), ("2", PLACES[0]), ("0", PLACES[1])] {
        let there = words("leads-there", "bpmove", places);
        let there: Vec<&str> = [node].into_iter().chain(there.iter().map(String::as_str)).collect();
        let far = finish(cluster.command("bpsh").args(&there), INPUT, LIMIT)?;
        let same = (far.err(), far.status) == (native.err(), native.status);
        ensure!(same, "from node {node} to {places}: {far:?}; natively: {native:?}");
        let (far, native) = (far.out(), native.out());
        if far != native {
            // They are long.
            let same = far.lines().zip(native.lines()).take_while(|(far, native)| far == native).count();
            let from = |text: &str| text.lines().skip(same).take(6).map(str::to_owned).collect::<Vec<_>>();
            let (far, native) = (from(&far), from(&native));
            bail!("from node {node} to {places}: after {same} lines {far:?}; natively: {native:?}");
        }
    }
    cluster.quiet()
}

/// A list of descriptors of a process on a node: files, and sockets that are connected where the caller is, and what is written to
/// them is there before the end of who wrote it is told. `apart`: nodes are other
/// machines.
///
/// # Errors
/// They are others.
pub fn lists_of_a_node(cluster: &Cluster, apart: bool) -> Result<()> {
    let program = compile(cluster, "tests/programs/moving_io.c", &[], true)?;
    let dir = cluster.dir().join("log");
    let (program, dir) = (program.to_string_lossy(), dir.to_string_lossy());
    let words: Vec<&str> = ["2", &program, &dir].into_iter().chain(apart.then_some("apart")).collect();
    let done = cluster.bpsh(&words)?;
    ensure!((done.out().as_str(), done.status) == ("done\n", 0), "{done:?}");
    let told = compile(cluster, "tests/programs/told.c", &[], true)?;
    let done = cluster.bpsh(&["2", &told.to_string_lossy(), "40"])?;
    ensure!((done.out().as_str(), done.status) == ("done\n", 0), "{done:?}");
    cluster.quiet()
}
