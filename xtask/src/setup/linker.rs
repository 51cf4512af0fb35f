//! bpf-linker: links Rust's bitcode into an eBPF object. 0.10.4 is the last
//! version that needs no LLVM beside the one in rustc 1.95.

use std::path::PathBuf;

use anyhow::Result;

use crate::paths;
use crate::sh::{Cmd, told};

const VERSION: &str = "0.10.4";

/// Where the linker is, or will be.
pub fn bpf_linker() -> PathBuf {
    paths::cache().join("tools/bin/bpf-linker")
}

/// Compiles it into the cache unless it is there.
pub(super) fn ensure() -> Result<()> {
    let linker = bpf_linker();
    let have = linker.is_file() && Cmd::new(&linker).arg("--version").said().is_ok_and(|said| said.contains(VERSION));
    if have {
        told("bpf-linker", &format!("{VERSION} there"));
        return Ok(());
    }
    told("bpf-linker", &format!("compiling {VERSION} (about two minutes)"));
    Cmd::cargo()
        .args(["install", "--quiet", "--locked", "--force", "--root"])
        .arg(paths::cache().join("tools"))
        .args(["bpf-linker", "--version", VERSION])
        // A directory of its own: the checkout's must not fill with it.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .run()?;
    told("bpf-linker", &format!("{VERSION} installed"));
    Ok(())
}
