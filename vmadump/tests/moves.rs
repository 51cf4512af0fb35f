//! Real programs, dumped to a file, killed and brought back with the same pid, again and again. The oracle is the
//! program itself: it checks all that it has and says so with its exit code.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Traveller, around, around_to, compile, counter, has, in_namespace};

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
fn another_vdso() {
    in_namespace("another_vdso", LIMIT, || {
        let mut facts = vmadump::facts::Facts::here();
        let vdso = facts.vdso.as_mut().expect("a vdso");
        *vdso.code.0.last_mut().unwrap() ^= 1;
        around_to(&mut Command::new(compile("all", &[])), 6, Some(facts));
    });
}

/// Where the kernel's vdso is, and how much code of no file there is beside it.
fn looks(program: &Traveller) -> (String, usize) {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid)).unwrap();
    let brought = maps.lines().filter(|line| line.contains(" r-xp ") && line.trim_end().ends_with(" 0"));
    let own = maps.lines().find(|line| line.ends_with("[vdso]"));
    let own = own.unwrap_or_else(|| panic!("it is dead after {} moves", program.moves));
    (own.split('-').next().unwrap().to_owned(), brought.count())
}

/// However often it goes there and comes home, it has one vdso too many at most; at home it has the kernel's own, where
/// it always was.
#[test]
fn another_vdso_and_home() {
    in_namespace("another_vdso_and_home", LIMIT, || {
        let mut facts = vmadump::facts::Facts::here();
        *facts.vdso.as_mut().expect("a vdso").code.0.last_mut().unwrap() ^= 1;
        let mut program = Traveller::start(&mut Command::new(compile("all", &["-DROUNDS=200"])));
        assert_eq!(program.line(), "round 0");
        let (home, _) = looks(&program);
        let mut there = false;
        while program.line().starts_with("round") {
            if program.moves < 9 || there {
                there = !there;
                program.facts = there.then(|| facts.clone());
                program.travel();
                let (own, brought) = looks(&program);
                // The program's own code is one.
                assert_eq!((own == home, brought), if there { (false, 2) } else { (true, 1) });
            }
        }
        assert!(program.moves >= 9 && !there);
        assert_eq!(program.end(), (String::new(), 42 << 8));
        // There, too, it can become a stand-in: nothing is laid where the kernel's own is.
        let mut program = Traveller::start(&mut Command::new(compile("all", &["-DROUNDS=200"])));
        assert_eq!(program.line(), "round 0");
        program.facts = Some(facts);
        program.travel();
        let frozen = vmadump::capture::freeze(program.pid, &program.options).unwrap();
        let stand_in = frozen.become_exec(b"/bin/true", &[b"true"], &[]).map_err(|e| e.why).unwrap();
        stand_in.release().unwrap();
        assert_eq!(program.end().1, 0);
    });
}

/// A handler that interrupted the other kernel's vdso returns into it at home, and wherever else it has gone meanwhile. The
/// kernel's own is in its place all the same, and the other goes when nobody returns there any more. An address that
/// lies on the stack and is no signal's frame is not taken for one.
#[test]
fn a_handler_returns_into_the_vdso_of_another_kernel() {
    in_namespace("a_handler_returns_into_the_vdso_of_another_kernel", LIMIT, || {
        let mut there = vmadump::facts::Facts::here();
        *there.vdso.as_mut().expect("a vdso").code.0.last_mut().unwrap() ^= 1;
        let mut program = Traveller::start(&mut Command::new(compile("returns", &[])));
        assert_eq!(program.line(), "round");
        let (home, _) = looks(&program);
        let go = |program: &mut Traveller, away: bool| {
            program.facts = away.then(|| there.clone());
            program.travel();
            let (own, brought) = looks(program);
            assert_eq!(own == home, !away, "after {} moves", program.moves);
            assert!(program.line().starts_with("round"));
            brought
        };
        let signal = |program: &Traveller, signal| {
            // SAFETY: our own child, which has not been waited for.
            assert_eq!(unsafe { libc::kill(program.pid, signal) }, 0);
        };
        go(&mut program, true);
        while program.line() != "round inside" {}
        let inside = go(&mut program, false);
        for _ in 0..3 {
            assert_eq!(go(&mut program, true), inside + 1);
            assert_eq!(go(&mut program, false), inside);
        }
        signal(&program, libc::SIGUSR1);
        while program.line() != "round returns" {}
        assert_eq!(program.line(), "round");
        assert_eq!(go(&mut program, true), inside);
        assert_eq!(go(&mut program, false), inside - 1);
        signal(&program, libc::SIGTERM);
        while program.line() != "done" {}
        assert_eq!(program.end(), (String::new(), 42 << 8));
    });
}

#[test]
fn threads() {
    in_namespace("threads", LIMIT, || around(Command::new(compile("threads", &[])).arg("8"), 12));
}

#[test]
fn descriptors_of_its_own() {
    in_namespace("descriptors_of_its_own", LIMIT, || around(&mut Command::new(compile("fds", &[])), 10));
}

#[test]
fn memory_files() {
    in_namespace("memory_files", LIMIT, || {
        let program = compile("memory", &[]);
        around(&mut Command::new(&program), 10);
        around(Command::new(&program).arg("65534"), 4);
    });
}

/// Whoever is moved in the middle of reading the clock reads the right one, in a time namespace with another clock or out of it:
/// the kernel's data for that lie elsewhere there.
#[test]
fn clocks_of_time_namespaces() {
    const OFFSET: &str = "1000000";
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return;
    }
    in_namespace("clocks_of_time_namespaces", LIMIT, || {
        let mut program = Traveller::start(Command::new(compile("clocks", &["-O2"])).arg(OFFSET));
        for r#move in 0..60 {
            program.line();
            let mut body = match r#move % 2 {
                0 => Command::new("unshare"),
                _ => Command::new("sleep"),
            };
            if r#move % 2 == 0 {
                body.args(["--time", "--monotonic", OFFSET, "--fork", "sleep"]);
            }
            let body = body.arg("60").spawn().unwrap();
            let (pid, of) = (body.id() as i32, format!("/proc/{0}/task/{0}/children", body.id()));
            let child = || std::fs::read_to_string(&of).unwrap().trim().parse().ok();
            let is_ready = |pid: &i32| std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == b"sleep\n");
            let its_own = || if r#move % 2 == 0 { child() } else { Some(pid) };
            let pid = loop {
                if let Some(pid) = its_own().filter(is_ready) {
                    break pid;
                }
                std::thread::yield_now();
            };
            program.travel_into(body, pid);
        }
        program.line();
        // SAFETY: plain numbers; it runs, or is a zombie of ours.
        unsafe { libc::kill(program.pid, libc::SIGKILL) };
        assert_eq!(program.end().1, libc::SIGKILL);
    });
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
