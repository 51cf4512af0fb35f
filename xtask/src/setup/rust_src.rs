//! The source of the standard library, from which `core` is built for eBPF.
//!
//! In order: the toolchain has it; the cache has it; rustup fetches it; Debian's
//! backports have it for the same version of rustc. The last is unpacked to the
//! cache and told to cargo by an environment variable, for the eBPF build only:
//! the toolchain of the machine stays as it is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::Private;
use crate::paths;
use crate::sh::{Cmd, told, which};

/// Where the source was found.
#[derive(Debug, PartialEq, Eq)]
pub enum RustSrc {
    /// In the toolchain: cargo finds it by itself.
    Sysroot,
    /// Elsewhere: the `library` directory to tell cargo of.
    Library(PathBuf),
}

/// Finds the source without fetching anything.
pub fn rust_src() -> Result<Option<RustSrc>> {
    let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).dir(paths::root()).said()?;
    if complete(&Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library")) {
        return Ok(Some(RustSrc::Sysroot));
    }
    let library = unpacked_library(&rustc_release()?);
    Ok(complete(&library).then_some(RustSrc::Library(library)))
}

/// Fetches the source unless it is there.
pub(super) fn ensure() -> Result<()> {
    match rust_src()? {
        Some(RustSrc::Sysroot) => {
            told("rust-src", "in the toolchain");
            return Ok(());
        }
        Some(RustSrc::Library(dir)) => {
            told("rust-src", &format!("in {}", dir.display()));
            return Ok(());
        }
        None => {}
    }
    let from_rustup = match which("rustup") {
        Some(rustup) => Cmd::new(rustup).args(["component", "add", "rust-src"]).dir(paths::root()).quiet(),
        None => Err(anyhow::anyhow!("there is no rustup")),
    };
    if from_rustup.is_ok() && rust_src()?.is_some() {
        told("rust-src", "added by rustup");
        return Ok(());
    }
    told("rust-src", "not to be had from rustup: taking Debian's");
    from_debian().with_context(|| match from_rustup {
        Err(error) => {
            format!("rust-src is neither to be had by rustup ({error:#}) nor from Debian")
        }
        Ok(()) => "rust-src cannot be had from Debian".into(),
    })
}

fn from_debian() -> Result<()> {
    let release = rustc_release()?;
    let apt = Private::new("trixie-backports")?;
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| version.starts_with(&format!("{release}+")))
        .with_context(|| format!("trixie-backports has no rust-src for rustc {release}"))?;
    let package = apt.download("rust-src", &version)?;
    // Unpacked beside its place and moved there whole: a broken-off run leaves nothing half.
    let (place, fresh) = (unpacked(), unpacked().with_extension("new"));
    for dir in [&fresh, &place] {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    Cmd::new("dpkg-deb").arg("-x").args([&package, &fresh]).quiet()?;
    std::fs::rename(&fresh, &place).with_context(|| format!("cannot move {} into place", fresh.display()))?;
    std::fs::remove_file(&package).with_context(|| format!("cannot remove {}", package.display()))?;
    let library = unpacked_library(&release);
    if !complete(&library) {
        bail!("rust-src {version} holds no {}", library.display());
    }
    told("rust-src", &format!("{version} unpacked to {}", place.display()));
    Ok(())
}

/// `1.95.0` of `rustc 1.95.0 (...)`.
fn rustc_release() -> Result<String> {
    let said = Cmd::new("rustc").arg("--version").dir(paths::root()).said()?;
    said.split_whitespace().nth(1).map(str::to_owned).with_context(|| format!("rustc calls itself `{said}`"))
}

fn unpacked() -> PathBuf {
    paths::cache().join("rust-src")
}

fn unpacked_library(release: &str) -> PathBuf {
    unpacked().join(format!("usr/src/rustc-{release}/library"))
}

fn complete(library: &Path) -> bool {
    library.join("Cargo.lock").is_file() && library.join("core/src/lib.rs").is_file()
}
