//! The host's C compiler, for tests that compile their programs themselves: in
//! a guest they must find it where the host has it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::rootfs::Extra;
use crate::sh::{Cmd, which};

/// Parts of the compiler's own directory. The rest is C++, Fortran, sanitizers.
const OWN: &[&str] =
    &["cc1", "collect2", "lto-wrapper", "liblto_plugin.so", "libgcc.a", "libgcc_eh.a", "libgcc_s.so", "include"];
/// Of what lies beside libc: libraries that programs are linked with, by their names before the dot.
const LIBRARIES: &[&str] = &["libc", "libc_nonshared", "libm", "libmvec", "libpthread", "libdl", "librt", "libgcc_s"];
/// Directories of headers.
const HEADERS: &[&str] = &["asm", "asm-generic", "arpa", "bits", "gnu", "linux", "net", "netinet", "sys"];
pub(super) const INCLUDE: &str = "/usr/include";

/// Its files, or nothing when this machine has no compiler.
pub(super) fn files() -> Result<Vec<Extra>> {
    let Some(gcc) = which("gcc") else {
        return Ok(Vec::new());
    };
    let ask = |what: &str| -> Result<PathBuf> { Ok(PathBuf::from(Cmd::new(&gcc).arg(what).said()?.trim())) };
    let mut files = BTreeSet::from([PathBuf::from("/usr/bin/gcc"), PathBuf::from("/usr/bin/cc")]);
    for program in ["as", "ld"] {
        files.extend(which(program));
    }
    let own = ask("-print-libgcc-file-name")?;
    let own = own.parent().context("libgcc lies in a directory")?;
    files.extend(OWN.iter().map(|name| own.join(name)));
    // cc1 and its like may lie elsewhere than the libraries.
    for part in ["cc1", "collect2"] {
        files.insert(ask(&format!("-print-prog-name={part}"))?);
    }
    files.extend(entries(own, |name| name.starts_with("crt"))?);
    let crt =
        fs::canonicalize(ask("-print-file-name=crt1.o")?).context("there is no crt1.o: is libc6-dev installed?")?;
    let libraries = crt.parent().context("crt1.o lies in a directory")?;
    files.extend(entries(libraries, |name| {
        name.ends_with("crt1.o")
            || matches!(name, "crti.o" | "crtn.o")
            || LIBRARIES.iter().any(|library| {
                name.strip_prefix(library)
                    .is_some_and(|rest| rest.starts_with(".so") || rest.starts_with(".a") || rest.starts_with('-'))
            })
    })?);
    let multiarch = Path::new(INCLUDE).join(ask("-print-multiarch")?);
    for base in [Path::new(INCLUDE), &multiarch] {
        files.extend(HEADERS.iter().map(|name| base.join(name)));
        files.extend(entries(base, |name| name.ends_with(".h"))?);
    }
    Ok(files.into_iter().filter(|path| path.exists()).map(|path| Extra { path, empty_directory: false }).collect())
}

/// Files of a directory with fitting names.
fn entries(dir: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let found = list.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&fits));
    Ok(found.map(|entry| entry.path()).filter(|path| path.is_file()).collect())
}
