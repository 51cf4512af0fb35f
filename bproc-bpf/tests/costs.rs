//! What watching costs those who are not watched, and those who are. Prints, decides nothing.

mod common;

use std::time::Instant;

use bproc_bpf::Role;
use common::{Space, fork, monitor, wait};

/// Median of five rounds, nanoseconds for each call.
fn median(mut each: impl FnMut(), calls: u32) -> u64 {
    let mut rounds: Vec<u64> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            (0..calls).for_each(|_| each());
            begin.elapsed().as_nanos() as u64 / u64::from(calls)
        })
        .collect();
    rounds.sort_unstable();
    rounds[2]
}

fn report(when: &str) {
    let forks = median(|| assert_eq!(wait(fork(|| 0)), 0), 200);
    let pid = std::process::id() as i32;
    // SAFETY: signal 0 to ourselves, and SIGURG, which is ignored.
    let send = || assert_eq!(unsafe { libc::kill(pid, libc::SIGURG) }, 0);
    let kill = median(send, 20_000);
    eprintln!("{when}: fork+exit+wait {} us, kill {kill} ns", forks / 1000);
}

#[test]
#[ignore = "measures only"]
fn costs() {
    // Forking costs by the size of who forks, and loading makes this process
    // large: so all who measure are made before.
    let make = |when: &'static str| {
        Space::new(move || {
            report(when);
            0
        })
    };
    let spaces = [make("without programs"), make("loaded, not watched"), make("loaded, watched")];
    for (index, space) in spaces.into_iter().enumerate() {
        let monitor = (index > 0).then(|| monitor(Role::Both)).flatten();
        if let (2, Some(monitor)) = (index, &monitor) {
            monitor.add_space(space.inum).expect("add");
        }
        space.go();
        space.end();
    }
    let rss = std::fs::read_to_string("/proc/self/status").expect("status");
    let rss = rss.lines().find(|line| line.starts_with("VmRSS"));
    eprintln!("this process: {}", rss.unwrap_or_default());
}
