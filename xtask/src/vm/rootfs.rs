//! The guest's root file system: a small Debian-like machine put together from
//! the host's own programs and the libraries they need, plus the staged tree.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernels::{Kernel, unpack};
use crate::paths;
use crate::setup::apt::Private;
use crate::sh::{Cmd, which as find_program};

/// Programs taken from the host when it has them; busybox stands in for the
/// rest. What tests compare with a real machine should be the real thing.
const PROGRAMS: &[&str] = &[
    "bash",
    "dash",
    "perl",
    "ps",
    "pgrep",
    "top",
    "kill",
    "sort",
    "cat",
    "ls",
    "sleep",
    "true",
    "false",
    "env",
    "dd",
    "seq",
    "head",
    "tail",
    "wc",
    "md5sum",
    "sha256sum",
    "id",
    "stty",
    "tty",
    "nice",
    "renice",
    "nohup",
    "timeout",
    "mkfifo",
    "stat",
    "chmod",
    "chown",
    "cp",
    "mv",
    "rm",
    "cut",
    "tr",
    "tee",
    "yes",
    "date",
    "uname",
    "grep",
    "sed",
    "setsid",
    "setpriv",
    "unshare",
    "nsenter",
    "prlimit",
    "taskset",
    "script",
    "ip",
    "ss",
    "strace",
    "mount",
    "umount",
    "runuser",
    "ldd",
];

/// Python modules that programs under test may import.
const PYTHON: &str = "import argparse,array,asyncio,collections,concurrent.futures.thread,contextlib,ctypes,\
    encodings.idna,errno,fcntl,functools,hashlib,itertools,json,logging,math,mmap,multiprocessing,os,pty,queue,\
    random,re,resource,select,shutil,signal,socket,struct,subprocess,sys,tempfile,termios,threading,time,\
    traceback,unicodedata";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
    daemon:x:1:1:daemon:/:/bin/false\n\
    user:x:1000:1000:user:/home/user:/bin/bash\n\
    other:x:1001:1001:other:/home/other:/bin/bash\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nbproc:x:900:user\nuser:x:1000:\nother:x:1001:\nnogroup:x:65534:\n";

/// A file or directory of the host that the guest gets at the same path.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// Where it is on both machines.
    pub(crate) path: PathBuf,
    /// Only needed to be there and empty: the working directory of a test.
    pub(crate) empty_directory: bool,
}

/// A root file system in the making.
pub(super) struct RootFs {
    archive: Archive,
    /// Programs whose libraries are still to be found.
    linked: BTreeSet<PathBuf>,
    library_path: Option<PathBuf>,
}

impl RootFs {
    /// The part that every guest has.
    pub(super) fn base(guest: &Path) -> Result<Self> {
        let mut archive = Archive::default();
        for name in ["bin", "sbin", "lib", "lib64"] {
            archive.directory(&format!("/usr/{name}"), 0o755);
            archive.link(&format!("/{name}"), &format!("usr/{name}"));
        }
        for name in ["dev", "proc", "sys", "run", "etc", "var/log", "var/lib", "opt"] {
            archive.directory(&format!("/{name}"), 0o755);
        }
        // Closed to others, as everywhere.
        archive.directory("/root", 0o700);
        for name in ["mnt", "srv", "home/user", "home/other"] {
            archive.directory(&format!("/{name}"), 0o777);
        }
        archive.directory("/tmp", 0o1777);
        archive.directory("/var/tmp", 0o1777);
        archive.device("/dev/console", 0o600, 5, 1);
        archive.device("/dev/null", 0o666, 1, 3);
        archive.link("/var/run", "/run");
        archive.link("/etc/mtab", "/proc/mounts");
        archive.bytes("/etc/passwd", 0o644, PASSWD);
        archive.bytes("/etc/group", 0o644, GROUP);
        archive.bytes("/etc/shadow", 0o600, "root:*:20000::::::\n");
        archive.bytes("/etc/hosts", 0o644, "127.0.0.1 localhost\n");
        archive.bytes("/etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n");
        archive.bytes("/etc/machine-id", 0o644, format!("{:032x}\n", 0xb0_u8));
        archive.copy("/init", guest)?;
        let mut root = Self { archive, linked: BTreeSet::new(), library_path: None };
        root.busybox()?;
        root.programs()?;
        Ok(root)
    }

    fn busybox(&mut self) -> Result<()> {
        let busybox = static_busybox()?;
        for applet in Cmd::new(&busybox).arg("--list").said()?.lines() {
            self.archive.link(&format!("/usr/bin/{applet}"), "busybox");
        }
        // Last: it lists itself too.
        self.archive.copy("/usr/bin/busybox", &busybox)?;
        Ok(())
    }

    fn programs(&mut self) -> Result<()> {
        for name in PROGRAMS {
            if let Some(path) = find_program(name) {
                self.program(&format!("/usr/bin/{name}"), &path)?;
            }
        }
        for shell in ["dash", "bash"] {
            let path = format!("/usr/bin/{shell}");
            if self.archive.has(&path) && find_program(shell).is_some() {
                self.archive.link("/usr/bin/sh", shell);
                break;
            }
        }
        let locale = Path::new("/usr/lib/locale/C.utf8");
        if locale.is_dir() {
            self.add_tree("/usr/lib/locale/C.utf8", locale)?;
        }
        self.python()?;
        self.perl()?;
        for entry in ["l/linux", "x/xterm", "d/dumb", "v/vt100"] {
            for base in ["/lib/terminfo", "/usr/share/terminfo"] {
                let path = PathBuf::from(base).join(entry);
                if path.exists() {
                    self.archive.copy(&path.to_string_lossy(), &path)?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// A program or library of the host, with all that it is linked to.
    fn program(&mut self, place: &str, from: &Path) -> Result<()> {
        // An ordinary user may not read some of them; busybox has them too.
        if File::open(from).is_err() {
            return Ok(());
        }
        self.archive.copy(place, from)?;
        if is_elf(from) {
            self.linked.insert(from.to_owned());
        }
        Ok(())
    }

    fn python(&mut self) -> Result<()> {
        let system = PathBuf::from("/usr/bin/python3");
        let Some(python) = Some(system).filter(|path| path.exists()).or_else(|| find_program("python3")) else {
            return Ok(());
        };
        let script = format!(
            "{PYTHON}\nprint(sys.executable)\nprint(sys.prefix)\n\
             print('python%d.%d' % sys.version_info[:2])\n\
             for m in list(sys.modules.values()):\n\
             \x20 for f in (getattr(m,'__file__',None), getattr(m,'__cached__',None)):\n\
             \x20   if f and os.path.exists(f): print(f)\n"
        );
        let text = Cmd::new(python).args(["-I", "-c", &script]).said()?;
        let mut lines = text.lines();
        let (Some(binary), Some(prefix), Some(version)) = (lines.next(), lines.next(), lines.next()) else {
            bail!("python told nothing about itself: {text}");
        };
        self.program(binary, Path::new(binary))?;
        if binary != "/usr/bin/python3" {
            self.archive.link("/usr/bin/python3", binary);
        }
        self.archive.directory(&format!("{prefix}/lib/{version}/lib-dynload"), 0o755);
        for file in lines {
            self.program(file, Path::new(file))?;
        }
        Ok(())
    }

    fn perl(&mut self) -> Result<()> {
        let Some(perl) = find_program("perl") else {
            return Ok(());
        };
        let script = "use strict; use warnings; use POSIX; use Socket; use Fcntl; use IO::Handle; \
             use IO::Socket; use Time::HiRes; \
             print join(\"\\n\", values %INC, @DynaLoader::dl_shared_objects)";
        for file in Cmd::new(perl).args(["-e", script]).said()?.lines() {
            if Path::new(file).is_file() {
                self.program(file, Path::new(file))?;
            }
        }
        Ok(())
    }

    /// The tree that `cargo xtask build` stages, at its own path, with a link
    /// `/opt/bproc` to it. Without a staged tree the guest is bare.
    pub(super) fn staged(&mut self, stage: &Path) -> Result<()> {
        if !stage.is_dir() {
            return Ok(());
        }
        let place = stage.to_string_lossy().into_owned();
        self.add_tree(&place, stage)?;
        self.archive.link("/opt/bproc", &place);
        self.library_path = Some(stage.join("lib"));
        let ghost = format!("{place}/libexec/bproc/bproc-ghost");
        if self.archive.has(&ghost) {
            self.archive.bytes("/bproc-guest/filecaps", 0o644, format!("{ghost}\n"));
        }
        Ok(())
    }

    fn add_tree(&mut self, place: &str, from: &Path) -> Result<()> {
        let files = self.archive.tree(place, from)?;
        self.linked.extend(files.into_iter().filter(|file| is_elf(file)));
        Ok(())
    }

    /// Adds a file (a test's executable, say) or directory at its own path.
    /// `content` may be a smaller copy of it, without symbols for debuggers.
    pub(super) fn extra(&mut self, extra: &Extra, content: &Path) -> Result<()> {
        let place = extra.path.to_string_lossy().into_owned();
        if extra.empty_directory {
            if !self.archive.has(&place) {
                self.archive.directory(&place, 0o755);
            }
            return Ok(());
        }
        if content.is_dir() {
            return self.add_tree(&place, content);
        }
        self.archive.copy(&place, content)?;
        if is_elf(content) {
            self.linked.insert(content.to_owned());
        }
        Ok(())
    }

    /// Adds kernel modules, jobs and names; finds all libraries; writes the
    /// archive and returns its size in bytes.
    pub(super) fn write(mut self, kernel: &Kernel, jobs: &str, hosts: &str, path: &Path) -> Result<u64> {
        self.libraries()?;
        let mut list = String::new();
        for module in &kernel.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            let place = format!("/bproc-guest/ko/{name}");
            self.archive.copy(&place, module)?;
            list.push_str(&place);
            list.push('\n');
        }
        self.archive.bytes("/bproc-guest/modules", 0o644, list);
        self.archive.bytes("/bproc-guest/job", 0o644, jobs);
        self.archive.bytes("/etc/hosts", 0o644, format!("127.0.0.1 localhost\n{hosts}"));
        self.archive.write(path)
    }

    /// Follows `ldd` from everything that was added.
    fn libraries(&mut self) -> Result<()> {
        let mut command = Command::new("ldd");
        command.args(&self.linked).env("LC_ALL", "C");
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        // It complains about static programs among them, which is no failure.
        let found = command.output().context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&found.stdout);
        let mut missing = Vec::new();
        for line in text.lines() {
            let line = line.trim();
            if line.ends_with("not found") {
                missing.push(line.to_owned());
                continue;
            }
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            let Some((path, _)) = path.split_once(" (0x") else {
                continue;
            };
            if path.starts_with('/') && !self.archive.has(path) {
                self.archive.copy(path, Path::new(path))?;
            }
        }
        if !missing.is_empty() {
            bail!("libraries that programs for the VM need: {}", missing.join(", "));
        }
        Ok(())
    }
}

/// A statically linked busybox: the host's, else Debian's from the cache.
fn static_busybox() -> Result<PathBuf> {
    if let Some(path) = find_program("busybox")
        && is_static(&path)?
    {
        return Ok(path);
    }
    let home = paths::cache().join("tools/busybox-static");
    for place in ["bin/busybox", "usr/bin/busybox"] {
        if home.join(place).exists() {
            return Ok(home.join(place));
        }
    }
    Private::new("bookworm")
        .and_then(|apt| unpack(&apt, "busybox-static", &home))
        .context("the VMs need a static busybox: install the package busybox-static")?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|place| home.join(place))
        .find(|path| path.exists())
        .context("the package busybox-static holds no busybox")
}

fn is_static(path: &Path) -> Result<bool> {
    let found = Command::new("ldd").arg(path).output().context("cannot start ldd")?;
    Ok(!String::from_utf8_lossy(&found.stdout).contains("=>"))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"\x7fELF"
}

/// A copy without symbols for debuggers, which are most of a test's size; the
/// file itself where there is no `strip`.
pub(super) fn slim(path: &Path, dir: &Path) -> Result<PathBuf> {
    /// Smaller files are not worth the work.
    const LARGE: u64 = 4 << 20;
    let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if meta.len() < LARGE || !is_elf(path) {
        return Ok(path.to_owned());
    }
    let Some(strip) = find_program("strip") else {
        return Ok(path.to_owned());
    };
    fs::create_dir_all(dir)?;
    let slim = dir.join(path.file_name().unwrap_or_default());
    let fresh = fs::metadata(&slim)
        .and_then(|copy| copy.modified())
        .is_ok_and(|time| meta.modified().is_ok_and(|source| time > source));
    if !fresh {
        Cmd::new(strip).arg("--strip-debug").arg("-o").arg(&slim).arg(path).quiet()?;
    }
    Ok(slim)
}
