//! Debian packages that are needed beside the Rust toolchain.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::paths;
use crate::sh::{Cmd, told, which};

/// What a package is needed for. A step installs no more than it needs: an ssh
/// server, for one, starts listening when it is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Compiling.
    Build,
    /// The tour of `cargo xtask demo`.
    Tour,
    /// Tests on this machine and in virtual ones.
    Test,
    /// Programs to compare with.
    Bench,
}

/// Purpose, package, and a file that shows that it is there on a system whose
/// packages are named otherwise.
const PACKAGES: &[(Purpose, &str, &str)] = &[
    (Purpose::Build, "gcc", "/usr/bin/gcc"),
    (Purpose::Build, "libc6-dev", "/usr/include/stdio.h"),
    (Purpose::Tour, "procps", "/usr/bin/ps"),
    (Purpose::Tour, "python3", "/usr/bin/python3"),
    (Purpose::Test, "perl", "/usr/bin/perl"),
    (Purpose::Test, "python3-numpy", "/usr/lib/python3/dist-packages/numpy/__init__.py"),
    (Purpose::Test, "busybox-static", "/bin/busybox"),
    (Purpose::Test, "qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    (Purpose::Test, "xz-utils", "/usr/bin/xz"),
    (Purpose::Bench, "openssh-server", "/usr/sbin/sshd"),
    (Purpose::Bench, "openssh-client", "/usr/bin/ssh"),
];

/// Installs what is missing, as root or through sudo.
pub(super) fn ensure(purposes: &[Purpose]) -> Result<()> {
    let dpkg = which("dpkg-query").is_some();
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(purpose, ..)| purposes.contains(purpose))
        .filter(|(_, package, file)| if dpkg { !installed(package) } else { !std::path::Path::new(file).exists() })
        .map(|(_, package, _)| *package)
        .collect();
    if missing.is_empty() {
        told("Debian packages", "all there");
        return Ok(());
    }
    let list = missing.join(" ");
    if which("apt-get").is_none() {
        bail!("these programs are missing, and this is no Debian system; install their like: {list}");
    }
    let sudo = match (paths::is_root(), which("sudo")) {
        (true, _) => None,
        (false, Some(sudo)) => Some(sudo),
        (false, None) => {
            bail!("Debian packages are missing, and this user is not root; as root: apt-get install {list}")
        }
    };
    told("Debian packages", &format!("installing {list}"));
    let apt = |arguments: &[&str]| {
        let command = match &sudo {
            Some(sudo) => Cmd::new(sudo).arg("env"),
            None => Cmd::new("env"),
        };
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]).args(arguments)
    };
    apt(&["update"]).quiet()?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install).quiet()?;
    told("Debian packages", "installed");
    Ok(())
}

fn installed(package: &str) -> bool {
    let output =
        Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}\n", package]).stderr(Stdio::null()).output();
    output.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).lines().any(|line| line == "installed"))
}
