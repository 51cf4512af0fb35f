//! Processes that read what others read, too, some of them elsewhere: the same scripts natively and moved.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::run::finish;

const LIMIT: Duration = Duration::from_secs(60);

/// Pipes of whoever runs the tests do not go along.
pub(crate) const ALONE: &str =
    "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; exec sh -c \"$0\"";
/// `$MOVE PID PLACE` moves, or does nothing; `$FILE` is a file.
const SCRIPTS: [&str; 9] = [
    // Who only waits takes nothing from its child.
    "(for j in 1 2 3 4; do echo $j; sleep .1; done) |
     sh -c '(sleep .15; $MOVE $$ 0) >/dev/null 2>&1 & cat; exit 3'; echo ended with $?",
    "(for j in 1 2 3 4; do echo $j; sleep .1; done) |
     sh -c '(sleep .1; $MOVE $$ 0; $MOVE $$ 1; $MOVE $$ master) >/dev/null 2>&1 & cat; exit 3'; echo ended with $?",
    // Nor does what a loop calls.
    "(for j in 1 2 3 4; do echo $j; sleep .05; done) |
     while read line; do sh -c '$MOVE $$ 0; sleep .1'; echo got $line; done",
    "seq 9 >$FILE; while read line; do sh -c '$MOVE $$ 1; sleep .02'; echo got $line; done <$FILE",
    // What one has not read of a file others do, wherever it ends.
    "seq 9 >$FILE; (sh -c '$MOVE $$ 0; read line; echo first $line'; cat) <$FILE",
    "seq 9 >$FILE; (sh -c '$MOVE $$ 0; read line; $MOVE $$ 1; read next; $MOVE $$ master; read last; echo $line $next $last'; cat) <$FILE",
    // Those who read in turns.
    ": >$FILE; (echo 1; echo 2; until [ -s $FILE ]; do sleep .05; done; echo 3) |
     (sh -c '$MOVE $$ 0; read a; read b; echo over >$FILE; echo $a, $b'; cat)",
    // The end comes to whoever reads it.
    "echo typed | sh -c '$MOVE $$ 0; sleep .1; cat; cat; read line; echo $?'",
    // All of much.
    "head -c 50M /dev/zero | tr '\\0' x | sh -c '$MOVE $$ 0; exec cat' | md5sum",
];

/// Who shares an input with a process that has moved reads what it reads natively.
///
/// # Errors
/// It does not.
pub fn shared_input(cluster: &Cluster) -> Result<()> {
    let file = cluster.dir().join("log/shared-input");
    for script in SCRIPTS {
        let run = |r#move: &std::path::Path| {
            let mut command = Command::new("bash");
            let command = cluster.environment(&mut command).env("MOVE", r#move).env("FILE", &file);
            finish(command.args(["-c", ALONE, script]), b"", LIMIT)
        };
        let native = run("true".as_ref())?;
        for _ in 0..3 {
            let moved = run(&cluster.program("bpmove"))?;
            let same = (moved.out(), moved.err(), moved.status) == (native.out(), native.err(), native.status);
            ensure!(same, "{script}: {moved:?}; natively: {native:?}");
        }
        cluster.quiet()?;
    }
    Ok(())
}
