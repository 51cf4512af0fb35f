//! Real programs, dumped to a file, killed and brought back with the same pid, again and again. The oracle is the
//! program itself: it checks all that it has and says so with its exit code.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{around, around_to, compile, counter, has, in_namespace};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn everything_at_once_dynamic() {
    in_namespace("everything_at_once_dynamic", LIMIT, || around(&mut Command::new(compile("all", &["-mavx2"])), 12));
}

#[test]
fn everything_at_once_static() {
    in_namespace("everything_at_once_static", LIMIT, || {
        around(&mut Command::new(compile("all", &["-static", "-mavx2"])), 12)
    });
}

#[test]
fn everything_at_once_position_dependent() {
    in_namespace("everything_at_once_position_dependent", LIMIT, || {
        around(&mut Command::new(compile("all", &["-no-pie"])), 12)
    });
}

/// A kernel with another vdso is played by facts that say so: the real one is mapped elsewhere and the image's leads
/// into it. The program reads the clock all the time.
#[test]
#[ignore = "open: dies of SIGILL once in about seven runs on a loaded machine, see docs/status.md"]
fn another_vdso() {
    in_namespace("another_vdso", LIMIT, || {
        let mut facts = vmadump::facts::Facts::here();
        let vdso = facts.vdso.as_mut().expect("a vdso");
        *vdso.code.0.last_mut().unwrap() ^= 1;
        around_to(&mut Command::new(compile("all", &[])), 6, Some(facts));
    });
}

#[test]
fn threads() {
    in_namespace("threads", LIMIT, || around(Command::new(compile("threads", &[])).arg("8"), 12));
}

#[test]
fn sixty_four_threads_static() {
    in_namespace("sixty_four_threads_static", LIMIT, || {
        around(Command::new(compile("threads", &["-static"])).arg("64"), 5)
    });
}

#[test]
fn python() {
    in_namespace("python", LIMIT, || {
        let code = "import time,sys\nfor i in range(20):\n print(i,flush=True)\n time.sleep(0.01)\nsys.exit(7)";
        if has("python3") {
            counter(Command::new("python3").args(["-c", code]), 20);
        }
    });
}

#[test]
fn perl() {
    in_namespace("perl", LIMIT, || {
        let code =
            "$| = 1; for (my $i = 0; $i < 20; $i++) { print \"$i\\n\"; select(undef, undef, undef, 0.01) } exit 7";
        if has("perl") {
            counter(Command::new("perl").args(["-e", code]), 20);
        }
    });
}

#[test]
fn awk() {
    in_namespace("awk", LIMIT, || {
        let code =
            "BEGIN { for (i = 0; i < 20; i++) { print i; fflush(); for (j = 0; j < 500000; j++) s += j } exit 7 }";
        if has("awk") {
            counter(Command::new("awk").arg(code), 20);
        }
    });
}

#[test]
fn bash_with_children_after_the_move() {
    in_namespace("bash_with_children_after_the_move", LIMIT, || {
        let code = "i=0; while [ $i -lt 20 ]; do echo $i; i=$((i + 1)); sleep 0.02; done; exit 7";
        if has("bash") {
            counter(Command::new("bash").args(["-c", code]), 20);
        }
    });
}
