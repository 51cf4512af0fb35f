//! A parent of many, driven by lines on its standard input: for tests in which parts of the system die meanwhile.

use std::io::BufRead;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, bail};
use bproc::{Prepared, Source, SpawnRequest, Stream};

use super::parent::{Child, Mode, Parent};
use super::sys;

/// The signal that is queued: one that keeps its order and its values.
const SIGNAL: i32 = 40;
/// A node counts as lost only after its time-out.
const PATIENCE: u32 = 60;

/// Starts so many children on node 0, and obeys until the end of the input.
pub fn run(count: usize) -> Result<i32> {
    let mut parent = Parent::new(Mode::Remote)?;
    let mut children = Vec::new();
    for at in 0..count {
        let mut child = parent.start(&format!("child {at}"))?;
        child.ask(&format!("handle {SIGNAL}"))?;
        children.push(child);
    }
    println!("started");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
        let failures = match words[0] {
            "queue" => each(&mut children, |at, child| queue(at, child, numbers[0])),
            "expect" => each(&mut children, |at, child| expect(at, child, &numbers)),
            "exit" => each(&mut children, |at, child| child.tell(&format!("exit {}", code(at)))),
            "echo" => each(&mut children, |_, child| match child.ask("echo here")?.as_str() {
                "here" => Ok(()),
                other => bail!("says {other}"),
            }),
            "kill" => each(&mut children, |_, child| match sys::kill(child.pid, libc::SIGKILL) {
                0 => Ok(()),
                _ => bail!("kill: {}", sys::name(sys::errno())),
            }),
            "reap" => each(&mut children, |at, child| reaped(child, &format!("exit {}", code(at)))),
            "killed" => each(&mut children, |_, child| reaped(child, "signal 9")),
            other => bail!("unknown command '{other}'"),
        };
        println!("{}", if failures.is_empty() { "good".to_owned() } else { failures.join(" ; ") });
    }
    Ok(0)
}

fn code(at: usize) -> usize {
    at % 200 + 1
}

/// Does it with each; tells the failures of the first few.
fn each(children: &mut [Child], mut what: impl FnMut(usize, &mut Child) -> Result<()>) -> Vec<String> {
    let mut failures: Vec<String> = Vec::new();
    for (at, child) in children.iter_mut().enumerate() {
        if let Err(error) = what(at, child) {
            failures.push(format!("child {at} ({}): {error:#}", child.pid));
            // Each one may have waited as long as it could.
            if failures.len() == 3 {
                failures.push("and perhaps more".to_owned());
                break;
            }
        }
    }
    failures
}

fn value(at: usize, number: usize) -> usize {
    number * 1000 + at + 1
}

fn queue(at: usize, child: &mut Child, number: usize) -> Result<()> {
    if sys::sigqueue(child.pid, SIGNAL, value(at, number)) < 0 {
        bail!("sigqueue: {}", sys::name(sys::errno()));
    }
    Ok(())
}

/// It got exactly these, in this order, and no more.
fn expect(at: usize, child: &mut Child, numbers: &[usize]) -> Result<()> {
    let answer = child.ask(&format!("signals {}", numbers.len()))?;
    let got: Vec<&str> = answer.split(" ; ").map(|one| one.rsplit(' ').next().unwrap_or_default()).collect();
    let wanted: Vec<String> = numbers.iter().map(|number| value(at, *number).to_string()).collect();
    if got != wanted {
        bail!("got {answer} instead of {wanted:?}");
    }
    match child.ask("more")?.as_str() {
        "0" => Ok(()),
        more => bail!("got {more} signals too many"),
    }
}

fn reaped(child: &mut Child, wanted: &str) -> Result<()> {
    sys::interrupt_after(PATIENCE);
    let (pid, status) = sys::waitpid(child.pid, 0);
    let errno = sys::errno();
    sys::alarm(0);
    let said = if pid < 0 { sys::name(errno) } else { sys::status(status) };
    sys::next_signal(&[libc::SIGCHLD], Duration::ZERO);
    if said != wanted { bail!("ends with {said} instead of {wanted}") } else { Ok(()) }
}

/// Goes on on node 0 as a shell with that many bytes of arguments, and prints how many came. The exit status is the
/// errno when that fails.
pub fn burden(bytes: usize) -> Result<i32> {
    const PIECE: usize = 100_000;
    let script = b"n=0; for a; do n=$((n + ${#a})); done; echo $n";
    let mut argv: Vec<Vec<u8>> = [&b"sh"[..], b"-c", script, b"sh"].map(<[u8]>::to_vec).into();
    argv.extend((0..bytes.div_ceil(PIECE)).map(|_| vec![b'x'; PIECE]));
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let forward = |fd: i32, source| Stream { fd, input: false, source: Source::Forward(source) };
    let request = SpawnRequest {
        node: 0,
        path: b"/bin/sh".to_vec(),
        argv,
        envp: Vec::new(),
        streams: vec![forward(1, stdout.as_fd()), forward(2, stderr.as_fd())],
        terminal: None,
        pdeathsig: 0,
        die_with_parent: true,
        travel: false,
        shell: false,
        report: None,
        signals: None,
    };
    let error = match Prepared::new(request) {
        Ok(prepared) => prepared.go(),
        Err(error) => error,
    };
    eprintln!("{error}");
    Ok(error.number)
}
