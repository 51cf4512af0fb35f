//! Programs in C and C++ against the header and both libraries.
//!
//! Those of `live.c` run only when `BPROC_SOCKET` names the socket of a real agent with nodes.

mod fake;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo puts what it builds for this test: beside it, or one up.
fn library(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let near = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    near.unwrap_or_else(|| panic!("{name} was not built beside {}", own.display()))
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A compiled program; its directory goes when it is dropped.
struct Program {
    dir: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    Shared,
    Static,
}

fn run(command: &mut Command) -> (bool, String) {
    let out = command.output().unwrap();
    let text = format!("{command:?}\n{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), text)
}

fn compile(source: &str, compiler: &[&str], link: Link) -> Program {
    let name = format!("libbproc-{source}-{}-{link:?}-{}", compiler.join(""), std::process::id());
    let dir = std::env::temp_dir().join(name.replace(['+', '=', '/'], "_"));
    std::fs::create_dir_all(&dir).unwrap();
    let program = Program { dir };
    let mut command = Command::new(compiler[0]);
    command.args(&compiler[1..]).args(["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread", "-g"]);
    command.arg("-I").arg(here("include")).arg(here("tests/c").join(source));
    command.args(["-x", "none", "-o"]).arg(program.dir.join("program"));
    match link {
        Link::Shared => {
            let so = library("libbproc.so");
            // Under the name by which it is asked for.
            std::os::unix::fs::symlink(&so, program.dir.join("libbproc.so.4")).unwrap();
            command.arg(so).arg(format!("-Wl,-rpath,{}", program.dir.display()));
        }
        Link::Static => {
            command.arg(library("libbproc.a")).args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]);
        }
    }
    let (ok, text) = run(&mut command);
    assert!(ok, "{text}");
    program
}

const C11: &[&str] = &["gcc", "-std=c11", "-pedantic"];
const CXX: &[&str] = &["g++", "-x", "c++", "-std=c++11", "-pedantic"];

fn passes(program: &Program, socket: &Path, home: &Path) {
    let mut command = Command::new("/usr/bin/timeout");
    command.args(["-k", "1", "55"]).arg(program.dir.join("program"));
    let (ok, text) = run(command.env("BPROC_SOCKET", socket).env("HOME", home));
    assert!(ok, "{text}");
}

fn without_agent(source: &str) {
    let nowhere = Path::new("/nonexistent");
    for (compiler, link) in [(C11, Link::Shared), (CXX, Link::Shared), (C11, Link::Static)] {
        passes(&compile(source, compiler, link), nowhere, nowhere);
    }
}

fn with_a_stand_in(source: &str) {
    let fake = fake::Fake::start(source);
    for (compiler, link) in [(C11, Link::Shared), (CXX, Link::Shared), (C11, Link::Static)] {
        passes(&compile(source, compiler, link), &fake.dir.join("agent.sock"), &fake.dir);
    }
}

#[test]
fn layout_of_structures_and_numbers() {
    without_agent("layout.c");
}

#[test]
fn old_programs_compile_and_run_unchanged() {
    without_agent("old.c");
    let nowhere = Path::new("/nonexistent");
    for standard in ["-std=gnu89", "-std=gnu99", "-std=gnu17"] {
        passes(&compile("old.c", &["gcc", standard], Link::Shared), nowhere, nowhere);
    }
}

#[test]
fn calls_without_an_agent() {
    without_agent("noagent.c");
}

#[test]
fn calls_with_a_stand_in_for_the_agent() {
    with_a_stand_in("fake.c");
}

#[test]
fn forks_of_processes_with_threads() {
    with_a_stand_in("forks.c");
}

#[test]
fn calls_of_several_threads() {
    with_a_stand_in("threads.c");
}

#[test]
fn calls_on_a_real_cluster() {
    let Some(socket) = std::env::var_os("BPROC_SOCKET").map(PathBuf::from).filter(|path| path.exists()) else {
        eprintln!("skipped: BPROC_SOCKET names no agent");
        return;
    };
    for (compiler, link) in [(C11, Link::Shared), (CXX, Link::Static)] {
        passes(&compile("live.c", compiler, link), &socket, Path::new("/nonexistent"));
    }
}

/// Names in the header, in the linker's map and in the library are the same, all with a version and a manual page.
#[test]
fn names_of_the_library() {
    let words = |text: &str| -> BTreeSet<String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(|c| !is_word(c))
            .filter(|w| w.trim_start_matches('_').starts_with("bproc_"))
            .map(Into::into)
            .collect()
    };
    let map = words(&std::fs::read_to_string(here("libbproc.map")).unwrap());
    let (ok, text) = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library("libbproc.so")));
    assert!(ok, "{text}");
    let defined = text.lines().skip(1).filter_map(|line| line.split(' ').nth(2)).filter(|name| *name != "BPROC_4.0");
    let defined: BTreeSet<String> = defined.map(Into::into).collect();
    let wanted: BTreeSet<String> = map.iter().map(|name| format!("{name}@@BPROC_4.0")).collect();
    assert_eq!(defined, wanted);
    let header = std::fs::read_to_string(here("include/sys/bproc.h")).unwrap();
    let is_declaration = |line: &&str| line.ends_with(");") || line.ends_with(',');
    let is_declared = |line: &&str| ["int ", "void ", "const char *"].iter().any(|ty| line.starts_with(ty));
    let declared = header.lines().filter(is_declaration).filter(is_declared);
    let declared: BTreeSet<String> = declared
        .filter_map(|line| {
            let name = line.split('(').next()?.rsplit([' ', '*']).next()?;
            Some(name.to_owned())
        })
        .collect();
    assert_eq!(declared, map);
    for name in &map {
        let page = here("../deploy/man/man3").join(format!("{name}.3"));
        assert!(page.is_file(), "no manual page {}", page.display());
    }
    let (ok, text) = run(Command::new("readelf").args(["-dW"]).arg(library("libbproc.so")));
    assert!(ok && text.contains("[libbproc.so.4]"), "{text}");
}
