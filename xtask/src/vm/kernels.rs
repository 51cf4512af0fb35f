//! Kernels for the VMs: Debian's cloud flavour, found by series at run time,
//! unpacked once into a cache outside the checkout.
//!
//! Cache: `~/.cache/bproc/kernels/SERIES/RELEASE_VERSION/{vmlinuz,modules/NN-NAME.ko}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::setup::apt::Private;
use crate::sh::Cmd;

/// The kernels that the tests must pass on.
pub(crate) const DEFAULT_KERNELS: &[&str] = &["6.1", "6.12", "7.2"];

/// Loaded in the guest if the kernel has them as modules.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "overlay", "fuse", "loop", "tun", "veth", "unix_diag"];

/// How long a kernel is used before a newer one of its series is looked for.
const REFRESH: Duration = Duration::from_secs(7 * 86_400);

/// A kernel in the cache, ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// What was asked for, such as `6.12`.
    pub(crate) series: String,
    /// What `uname -r` will say.
    pub(crate) release: String,
    /// The image for qemu.
    pub(crate) vmlinuz: PathBuf,
    /// Uncompressed modules in the order of loading.
    pub(crate) modules: Vec<PathBuf>,
}

/// The newest kernel of a series (`6.1`, `6.12`, `7.2`, ...), from the cache or
/// from Debian.
pub(crate) fn fetch_kernel(series: &str) -> Result<Kernel> {
    let plain = series.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !plain || !series.contains('.') {
        bail!("`{series}` is not a kernel series: say for example 6.1, 6.12 or 7.2");
    }
    let dir = paths::cache().join("kernels").join(series);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the cache of kernels")?;

    let cached = newest_cached(series, &dir)?;
    if let Some(kernel) = &cached
        && younger(&dir.join("checked"), REFRESH)
    {
        return Ok(kernel.clone());
    }
    match download(series, &dir) {
        Ok(()) => fs::write(dir.join("checked"), "")?,
        Err(why) => {
            let Some(kernel) = cached else {
                return Err(why);
            };
            eprintln!("note: cannot look for a newer kernel {series} ({why:#}); using {}", kernel.release);
            return Ok(kernel);
        }
    }
    newest_cached(series, &dir)?.with_context(|| format!("no kernel {series} in the cache"))
}

/// Suites of Debian that may hold a series.
fn suites(series: &str) -> &'static [&'static str] {
    match series {
        "5.10" => &["bullseye"],
        "6.1" => &["bookworm"],
        "6.12" => &["trixie"],
        _ => &["trixie-backports", "sid", "experimental"],
    }
}

/// What one release of the kernel consists of, in one suite.
#[derive(Debug, Default)]
struct Candidate {
    image: Option<String>,
    unsigned: Option<String>,
    modules: Option<String>,
    split: bool,
}

impl Candidate {
    fn packages(&self) -> Option<Vec<String>> {
        let image = self.image.clone().or_else(|| self.unsigned.clone())?;
        if self.split && self.modules.is_none() {
            return None;
        }
        Some(std::iter::once(image).chain(self.modules.clone()).collect())
    }
}

/// Sorts package names into releases; `linux-image-*` is a mere meta package
/// where `linux-binary-*` is there (from 6.19 on).
fn candidates(names: &[String]) -> BTreeMap<String, Candidate> {
    let mut found: BTreeMap<String, Candidate> = BTreeMap::new();
    let mut old_style: BTreeMap<String, String> = BTreeMap::new();
    for name in names {
        if name.ends_with("-dbg") {
            continue;
        }
        if let Some(release) = name.strip_prefix("linux-binary-unsigned-") {
            let entry = found.entry(release.to_owned()).or_default();
            entry.unsigned = Some(name.clone());
            entry.split = true;
        } else if let Some(release) = name.strip_prefix("linux-binary-") {
            let entry = found.entry(release.to_owned()).or_default();
            entry.image = Some(name.clone());
            entry.split = true;
        } else if let Some(release) = name.strip_prefix("linux-modules-") {
            found.entry(release.to_owned()).or_default().modules = Some(name.clone());
        } else if let Some(release) = name.strip_prefix("linux-image-") {
            if let Some(release) = release.strip_suffix("-unsigned") {
                found.entry(release.to_owned()).or_default().unsigned = Some(name.clone());
            } else {
                old_style.insert(release.to_owned(), name.clone());
            }
        }
    }
    for (release, name) in old_style {
        let entry = found.entry(release).or_default();
        if !entry.split {
            entry.image = Some(name);
        }
    }
    found.retain(|_, candidate| candidate.packages().is_some());
    found
}

/// Orders releases by their numbers: 6.1.0-9 comes before 6.1.0-50.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn download(series: &str, dir: &Path) -> Result<()> {
    let pattern =
        format!("^linux-(image|binary|binary-unsigned|modules)-{}[.].*cloud-amd64", series.replace('.', "[.]"));
    let mut best: Option<(Vec<u64>, String, Vec<String>, Private)> = None;
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for suite in suites(series) {
        let apt = match Private::new(suite) {
            Ok(apt) => apt,
            Err(why) => {
                // One suite may be gone (archived, renamed); another may serve.
                problems.push(format!("{why:#}"));
                continue;
            }
        };
        let newest = candidates(&apt.names(&pattern)?)
            .into_iter()
            .inspect(|(release, _)| {
                seen.insert(release.clone());
            })
            .max_by_key(|(release, _)| numbers(release));
        let Some((release, candidate)) = newest else {
            continue;
        };
        let rank = numbers(&release);
        if best.as_ref().is_none_or(|(other, ..)| rank > *other)
            && let Some(packages) = candidate.packages()
        {
            best = Some((rank, release, packages, apt));
        }
    }
    let Some((_, release, packages, apt)) = best else {
        bail!(
            "no kernel {series} (cloud flavour, amd64) in Debian {}. {}\nChoose another series \
             with --kernel (6.1 and 6.12 are in stable releases and stay), or put a kernel of \
             your own into {}/NAME/ as `vmlinuz`, `modules/NN-NAME.ko` and an empty file `{}`",
            suites(series).join(", "),
            problems.join(". "),
            dir.display(),
            stamp()
        );
    };
    let version = newest_version(&apt, &packages[0])?;
    let home = dir.join(format!("{release}_{version}"));
    if home.join(stamp()).exists() {
        return Ok(());
    }
    eprintln!("fetching kernel {release} ({version})");
    let scratch = dir.join("unpack");
    let _ = fs::remove_dir_all(&scratch);
    for package in &packages {
        unpack(&apt, package, &scratch)?;
    }
    let _ = fs::remove_dir_all(&home);
    keep(&scratch, &release, &home)?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn newest_version(apt: &Private, package: &str) -> Result<String> {
    apt.versions(package)?.into_iter().next().with_context(|| format!("Debian has no version of {package}"))
}

/// Downloads the newest version of a package, which apt checks against the
/// archive's signature, and unpacks it.
pub(super) fn unpack(apt: &Private, package: &str, into: &Path) -> Result<()> {
    let deb = apt.download(package, &newest_version(apt, package)?)?;
    fs::create_dir_all(into)?;
    Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(into).quiet()?;
    fs::remove_file(&deb)?;
    Ok(())
}

/// True if the file was written less than `age` ago.
fn younger(file: &Path, age: Duration) -> bool {
    let written = fs::metadata(file).and_then(|meta| meta.modified());
    written.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|passed| passed < age))
}

/// Name of the file that says: this directory is complete, with these modules.
fn stamp() -> String {
    format!("complete-{}", MODULES.join("-"))
}

/// Copies what the VM needs out of unpacked packages.
fn keep(scratch: &Path, release: &str, home: &Path) -> Result<()> {
    fs::create_dir_all(home.join("modules"))?;
    let images = [
        scratch.join(format!("boot/vmlinuz-{release}")),
        scratch.join(format!("usr/lib/modules/{release}/vmlinuz")),
        scratch.join(format!("lib/modules/{release}/vmlinuz")),
    ];
    let image = images
        .iter()
        .find(|path| path.exists())
        .with_context(|| format!("the packages of {release} hold no vmlinuz"))?;
    fs::copy(image, home.join("vmlinuz"))?;
    let mut index = BTreeMap::new();
    for tree in ["usr/lib/modules", "lib/modules"] {
        index_modules(&scratch.join(tree).join(release), &mut index)?;
    }
    let mut order = Vec::new();
    for name in MODULES {
        load_order(name, &index, &mut order)?;
    }
    for (number, (name, bytes)) in order.iter().enumerate() {
        fs::write(home.join(format!("modules/{number:02}-{name}.ko")), bytes)?;
    }
    fs::write(home.join(stamp()), "")?;
    Ok(())
}

/// Finds every module below a directory, by name.
fn index_modules(dir: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index_modules(&path, index)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            index.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Appends a module after all that it depends on. A name that is no module is
/// built into the kernel, or the kernel lacks it: the guest will find out.
fn load_order(name: &str, index: &BTreeMap<String, PathBuf>, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let Some(path) = index.get(name) else {
        return Ok(());
    };
    let bytes = decompress(path)?;
    for other in dependencies(&bytes) {
        load_order(&other, index, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let result = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {tool}, which unpacks kernel modules"))?;
    if !result.status.success() {
        bail!("{tool} cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&result.stderr).trim());
    }
    Ok(result.stdout)
}

/// Names in the `depends=` entry of a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The newest complete kernel of a series in the cache.
fn newest_cached(series: &str, dir: &Path) -> Result<Option<Kernel>> {
    let mut homes: Vec<(Vec<u64>, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.join(stamp()).exists() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            homes.push((numbers(&name), path.clone()));
        }
    }
    let Some((_, home)) = homes.into_iter().max() else {
        return Ok(None);
    };
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    let release = name.split('_').next().unwrap_or_default().to_owned();
    let mut modules = Vec::new();
    if home.join("modules").is_dir() {
        for entry in fs::read_dir(home.join("modules"))? {
            modules.push(entry?.path());
        }
    }
    modules.sort();
    Ok(Some(Kernel { series: series.to_owned(), release, vmlinuz: home.join("vmlinuz"), modules }))
}

#[cfg(test)]
mod tests {
    use super::{candidates, dependencies, numbers};

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn split_packages_need_their_modules() {
        let found = candidates(&names(&[
            "linux-image-7.2.9+deb13-cloud-amd64",
            "linux-binary-7.2.9+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
            "linux-binary-unsigned-7.2.12+deb13-cloud-amd64",
            "linux-modules-7.2.12+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64-dbg",
        ]));
        assert_eq!(found.len(), 1);
        assert_eq!(
            found["7.2.12+deb13-cloud-amd64"].packages(),
            Some(names(&["linux-binary-unsigned-7.2.12+deb13-cloud-amd64", "linux-modules-7.2.12+deb13-cloud-amd64"]))
        );
    }

    #[test]
    fn whole_packages_are_taken_signed() {
        let found =
            candidates(&names(&["linux-image-6.1.0-50-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64-unsigned"]));
        assert_eq!(found["6.1.0-50-cloud-amd64"].packages(), Some(names(&["linux-image-6.1.0-50-cloud-amd64"])));
    }

    #[test]
    fn releases_are_ordered_by_number() {
        assert!(numbers("6.1.0-9-cloud-amd64") < numbers("6.1.0-50-cloud-amd64"));
        assert!(numbers("7.2.9+deb13") < numbers("7.2.13+deb14"));
    }

    #[test]
    fn reads_what_a_module_depends_on() {
        let text = b"x\0license=GPL\0depends=net-failover,virtio\0name=virtio_net\0";
        assert_eq!(dependencies(text), ["net_failover", "virtio"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
