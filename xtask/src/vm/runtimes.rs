//! What tests need beside a C compiler: node and the C++ compiler as they are, and programs of compilers that guests do
//! not get, built here by the test program itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::compiler;
use super::programs::TestBinary;
use super::rootfs::Extra;
use crate::paths;
use crate::sh::{Cmd, which};

/// The test program that has others' programs go around.
const PROGRAMS: &str = "bproc-tests/programs";
/// Those that compile C++.
const CPP: [&str; 3] = ["bproc-tests/moves", "bproc-tests/spread", "bproc-tests/travel"];
/// Tells the test program where to build what it needs, and later where that is.
const BUILD: &str = "BPROC_TEST_BUILD";
const BUILT: &str = "BPROC_TEST_BUILT";
/// The loader, and C library, of programs that are linked with musl.
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// What this test program needs; its environment is told where that is.
pub(super) fn of(program: &mut TestBinary) -> Result<Vec<Extra>> {
    let files = match program.name.as_str() {
        PROGRAMS => {
            let dir = paths::target().join("vm/programs");
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            Cmd::new(&program.path).env(BUILD, &dir).dir(&program.directory).run()?;
            program.env.push((BUILT.into(), dir.to_string_lossy().into_owned()));
            let others = [Some(PathBuf::from(MUSL)), which("node")].into_iter().flatten();
            others.chain([dir]).filter(|path| path.exists()).collect()
        }
        name if CPP.contains(&name) => cpp()?,
        _ => BTreeSet::new(),
    };
    Ok(files.into_iter().map(|path| Extra { path, empty_directory: false }).collect())
}

/// The C++ compiler's own parts; the rest is the C compiler's.
fn cpp() -> Result<BTreeSet<PathBuf>> {
    let Some(compiler) = which("g++") else {
        return Ok(BTreeSet::new());
    };
    let ask = |what: &str| -> Result<PathBuf> { Ok(PathBuf::from(Cmd::new(&compiler).arg(what).said()?.trim())) };
    let multiarch = ask("-print-multiarch")?;
    let headers = [Path::new(compiler::INCLUDE).join("c++"), Path::new(compiler::INCLUDE).join(multiarch).join("c++")];
    let mut files = BTreeSet::from([ask("-print-prog-name=cc1plus")?]);
    for library in ["libstdc++.so", "libstdc++.so.6", "libstdc++.a"] {
        files.insert(ask(&format!("-print-file-name={library}"))?);
    }
    files.extend(headers.into_iter().chain([compiler]));
    Ok(files.into_iter().filter(|path| path.is_absolute() && path.exists()).collect())
}
