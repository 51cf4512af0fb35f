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
