//! What few programs set, and what nobody sees from outside: it is there again in the next body, or the process is refused.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Traveller, around, compile, in_namespace};
use vmadump::capture::freeze;

const LIMIT: Duration = Duration::from_secs(60);

fn habit(what: &str) {
    around(Command::new(compile("habits", &[])).arg(what), 3);
}

#[test]
fn memory_barriers_stay_registered() {
    in_namespace("memory_barriers_stay_registered", LIMIT, || habit("barriers"));
}

#[test]
fn memory_is_locked_as_it_was() {
    in_namespace("memory_is_locked_as_it_was", LIMIT, || {
        ["late", "future", "futurelate"].map(habit).into_iter().collect()
    });
}

#[test]
fn memory_faults_are_told_as_before() {
    in_namespace("memory_faults_are_told_as_before", LIMIT, || habit("faults"));
}

/// It runs on.
fn is_refused(what: &str, why: &str) {
    let mut program = Traveller::start(Command::new(compile("habits", &[])).arg(what));
    let mut line = program.line();
    let known = line.starts_with("round");
    if known {
        let refused = freeze(program.pid, &program.options).map(drop).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    while line != "done" {
        line = program.line();
    }
    assert_eq!(program.end(), (String::new(), 42 << 8));
}

#[test]
fn what_may_never_change_is_refused() {
    in_namespace("what_may_never_change_is_refused", LIMIT, || {
        is_refused("sealed", "sealed memory");
        is_refused("strict", "PR_SET_MDWE");
    });
}

#[test]
fn memory_policies() {
    in_namespace("memory_policies", LIMIT, || habit("policy"));
}

#[test]
fn whoever_is_told_of_a_pipe() {
    in_namespace("whoever_is_told_of_a_pipe", LIMIT, || habit("told"));
}

/// By whoever asks, and not for a zombie.
#[test]
fn a_first_thread_that_has_ended() {
    in_namespace("a_first_thread_that_has_ended", LIMIT, || {
        let mut program = Traveller::start(Command::new(compile("habits", &[])).arg("first"));
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", program.pid)).unwrap();
        while !state().contains(") Z ") {
            std::thread::yield_now();
        }
        let refused = freeze(program.pid, &program.options).map(drop).unwrap_err().to_string();
        assert!(refused.contains("its first thread has ended"), "{refused}");
        assert_eq!(program.line(), "done");
        assert_eq!(program.end(), (String::new(), 42 << 8));
    });
}
/// One that began it, and one that came to it.
#[test]
fn whoever_traces_another_is_refused() {
    in_namespace("whoever_traces_another_is_refused", LIMIT, || {
        let program = compile("tracer", &[]);
        for of in ["child", "sibling"] {
            let mut program = Traveller::start(Command::new(&program).arg(of));
            let traced = program.line();
            // One may have to be seen while it waits.
            while std::fs::read_to_string(format!("/proc/{}/stat", program.pid)).unwrap().contains(") R ") {
                std::thread::yield_now();
            }
            let refused = freeze(program.pid, &program.options).map(drop).unwrap_err().to_string();
            assert!(refused.contains(&format!("it traces process {traced}")), "{refused}");
            let traced: i32 = traced.parse().unwrap();
            assert!(traced > 1, "no process: {traced}");
            // SAFETY: whom our own child traces, and this waits for.
            unsafe { libc::kill(traced, libc::SIGKILL) };
            assert_eq!(program.end(), (String::new(), 42 << 8));
        }
    });
}
