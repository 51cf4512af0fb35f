//! From a bare initramfs to a machine on which tests feel at home: mounts,
//! modules, limits, network, and file capabilities.
//!
//! Nothing here is fatal: what fails becomes a note in the results, and the
//! job that needed it fails with its own words.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::{net, sys};

const NOSUID_NODEV: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;
const NOTHING: libc::c_ulong = NOSUID_NODEV | libc::MS_NOEXEC;

/// What is mounted: kind, place, flags, data. /tmp stays part of the root, which
/// is a tmpfs itself: tests of the host may lie there.
const MOUNTS: &[(&str, &str, libc::c_ulong, &str)] = &[
    ("proc", "/proc", NOTHING, ""),
    ("sysfs", "/sys", NOTHING, ""),
    ("devtmpfs", "/dev", libc::MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", libc::MS_NOSUID, "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", NOSUID_NODEV, "mode=1777"),
    ("tmpfs", "/run", NOSUID_NODEV, "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", NOTHING, "nsdelegate"),
    ("securityfs", "/sys/kernel/security", NOTHING, ""),
    ("tracefs", "/sys/kernel/tracing", NOTHING, ""),
    ("bpf", "/sys/fs/bpf", NOTHING, "mode=700"),
];

/// Settings that systemd, or a distribution, makes on every ordinary machine.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/kernel/pid_max", "4194304"),
    ("/proc/sys/fs/nr_open", "1073741816"),
    ("/proc/sys/kernel/core_pattern", "core"),
    ("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids"),
];

/// Environment of the jobs.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/opt/bproc/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/bash"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    ("RUST_BACKTRACE", "1"),
    ("BPROC_VM", "1"),
];

/// `cap_checkpoint_restore=ep` as the kernel stores it: revision 2 with the
/// effective flag, then permitted and inheritable, low words and high words.
const CHECKPOINT_RESTORE: [u8; 20] = [0x01, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 0];

/// Prepares everything; returns what did not work, in words.
pub(crate) fn machine() -> Vec<String> {
    let mut complaints = Vec::new();
    let mut tell = |what: &str, result: std::io::Result<()>| {
        if let Err(error) = result {
            complaints.push(format!("{what}: {error}"));
        }
    };
    tell("leave the initial root", leave_rootfs());
    // SAFETY: one thread, and nobody reads the environment meanwhile.
    unsafe {
        for (name, value) in ENVIRONMENT {
            std::env::set_var(name, value);
        }
    }
    for (kind, place, flags, data) in MOUNTS {
        // /dev/pts and its like appear with the mount of their parent.
        let _ = fs::create_dir_all(place);
        tell(&format!("mount {kind} at {place}"), sys::mount(kind, place, kind, *flags, data));
    }
    for (link, target) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        // devtmpfs of some kernels has them already.
        let _ = symlink(target, link);
    }
    for (file, value) in SETTINGS {
        tell(&format!("write {value} to {file}"), fs::write(file, value));
    }
    sys::limit(libc::RLIMIT_NOFILE, 1024, 524_288);
    // By default they follow the memory, which is small here.
    for resource in [libc::RLIMIT_NPROC, libc::RLIMIT_SIGPENDING] {
        sys::limit(resource, 65_536, 65_536);
    }
    sys::limit(libc::RLIMIT_CORE, 0, libc::RLIM_INFINITY);
    sys::limit(libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20);
    for module in lines("/bproc-guest/modules") {
        tell(&format!("load {module}"), load(&module));
    }
    for program in lines("/bproc-guest/filecaps") {
        tell(
            &format!("file capability of {program}"),
            sys::set_attribute(&program, "security.capability", &CHECKPOINT_RESTORE),
        );
    }
    let fuse = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666));
    tell("open /dev/fuse to all", fuse);
    tell("bring lo up", net::up("lo", None));
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for word in words.split_whitespace() {
        if let Some(name) = word.strip_prefix("bproc.host=") {
            tell("set the host name", sys::set_hostname(name));
        } else if let Some(address) = word.strip_prefix("bproc.addr=") {
            tell("bring eth0 up", card(address));
        }
    }
    complaints
}

/// Makes `/` an ordinary mount: the kernel's first root cannot be pivoted away
/// from, and programs under test may want to.
fn leave_rootfs() -> std::io::Result<()> {
    fs::create_dir_all("/newroot")?;
    sys::mount("/", "/newroot", "", libc::MS_BIND, "")?;
    std::env::set_current_dir("/newroot")?;
    sys::mount(".", "/", "", libc::MS_MOVE, "")?;
    sys::chroot_here()?;
    std::env::set_current_dir("/")
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn load(path: &str) -> std::io::Result<()> {
    match sys::load_module(fs::File::open(path)?.as_raw_fd()) {
        // Built in, or pulled in by another.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn card(address: &str) -> std::io::Result<()> {
    let parsed = address
        .split_once('/')
        .and_then(|(ip, length)| Some((ip.parse().ok()?, length.parse().ok()?)))
        .ok_or_else(|| std::io::Error::other(format!("`{address}` is not A.B.C.D/LEN")))?;
    net::up("eth0", Some(parsed))
}
