//! What we say a program is made of, against what the loader itself says.

use bproc_travel::resolve::{Want, bundle};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries in the order in which the loader maps them; `None` when it cannot tell.
fn told(loader: &Path, program: &Path) -> Option<Vec<PathBuf>> {
    let output = Command::new(loader).arg("--list").arg(program).env("LC_ALL", "C").output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = text.lines().filter_map(|line| {
        let path = line.split("=> ").nth(1).unwrap_or(line.trim()).split(" (0x").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Some(libraries.filter(|path| path.file_name() != loader.file_name()).collect())
}

fn ours(program: &Path) -> (Option<PathBuf>, Vec<PathBuf>) {
    let want = Want { path: program.as_os_str().as_bytes().to_vec(), cwd: b"/".to_vec(), ..Want::default() };
    let found = bundle(&want, &|path| File::open(path)).expect("the program is there");
    let mut paths: Vec<PathBuf> = found
        .parts
        .into_iter()
        .filter(|part| !part.companion && !part.path.starts_with("/etc"))
        .map(|p| p.path)
        .collect();
    paths.remove(0);
    let loader = (!paths.is_empty()).then(|| paths.remove(0));
    (loader, paths)
}

#[test]
fn every_program_of_this_machine_has_the_libraries_that_the_loader_tells() {
    let mut compared = 0;
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for dir in ["/usr/bin", "/usr/sbin", "/usr/local/bin"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().take(2000) {
            let path = entry.path();
            let Ok(real) = std::fs::canonicalize(&path) else { continue };
            let elf = File::open(&real).ok().and_then(|file| bproc_travel::elf::read(&file).ok().flatten());
            let has_loader = elf.is_some_and(|elf| elf.interpreter.is_some() && elf.wide);
            if !has_loader || !seen.insert(real) || compared >= 300 {
                continue;
            }
            let (Some(loader), libraries) = ours(&path) else { panic!("{} has no loader", path.display()) };
            let Some(told) = told(&loader, &path) else { continue };
            compared += 1;
            if told != libraries {
                wrong.push(format!("{}: the loader says {told:?}, we say {libraries:?}", path.display()));
            }
        }
    }
    println!("{compared} programs compared");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 5, "only {compared} programs to compare with");
}

/// Search paths of the program's own: of old and new kind, by its own place, through a chain of libraries.
#[test]
fn own_search_paths_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("lib/deep")).unwrap();
    let compile = |source: &str, arguments: &[&str], to: &str| {
        std::fs::write(at("source.c"), source).unwrap();
        let done =
            Command::new("cc").arg(at("source.c")).arg("-o").arg(at(to)).args(arguments).current_dir(&dir).status();
        done.is_ok_and(|status| status.success())
    };
    let shared = ["-shared", "-fPIC", "-Wl,--no-as-needed"];
    let inner = compile("int inner(void) { return 1; }", &shared, "lib/deep/libinner.so");
    if !inner {
        println!("skipped: no C compiler on this machine");
        return;
    }
    let runpath = ["-Llib/deep", "-linner", "-Wl,-rpath,$ORIGIN/deep"];
    assert!(compile(
        "int inner(void); int f(void) { return inner(); }",
        &[&shared[..], &runpath].concat(),
        "lib/libouter.so"
    ));
    for flags in ["-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"] {
        let link = ["-Llib", "-Llib/deep", "-louter", "-Wl,-rpath,$ORIGIN/lib", flags];
        assert!(compile("int f(void); int main(void) { return f(); }", &link, "program"));
        let (loader, libraries) = ours(&at("program"));
        assert_eq!(Some(libraries.clone()), told(&loader.unwrap(), &at("program")), "{flags}");
        assert!(libraries.len() >= 3, "{libraries:?}");
    }
}
