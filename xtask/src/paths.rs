//! Where things are: the checkout, what cargo builds, what is staged, and the
//! cache outside of the checkout that survives `cargo clean`.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the checkout").to_path_buf()
}

/// Cargo's target directory: `CARGO_TARGET_DIR` or `target` in the checkout.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// The staged tree, laid out as it is installed: bin, libexec/bproc, lib, include, share.
pub fn stage() -> PathBuf {
    target().join("bproc")
}

/// What is fetched once and kept: tools, the standard library's source, kernels.
pub fn cache() -> PathBuf {
    if let Some(dir) = env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        return PathBuf::from(dir).join("bproc");
    }
    let home = env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
    home.join(".cache/bproc")
}

/// Is this user root?
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
