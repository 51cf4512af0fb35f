//! One virtual machine: qemu started, watched and ended.
//!
//! Emulation only (`-accel tcg`), one processor: that runs wherever qemu does,
//! for every user, and is fast enough for the small guest.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::Kernel;
use super::results::{self, Outcome};
use crate::sh::which;

/// Memory beside what the root file system takes (it is there twice at boot).
const MEMORY_MIB: u64 = 2560;

/// All that the emulator can do, but: five-level page tables cost time, and
/// qemu 7.2 leaves wrong flags behind cmpxchg16b (a small program shows it each
/// time). The kernel's allocator uses that instruction: Linux 6.12 once took a
/// trap right after it, with half a pointer for flags, and oopsed. Without cx16
/// the kernel does it another way.
const PROCESSOR: &str = "max,la57=off,cx16=off";

/// Time for firmware, kernel and set-up, on a machine that is busy.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Name of the socket of a link, in the directory of the machine.
const SOCKET: &str = "link";

/// A private link to the other VM of a pair.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Directory of the other machine, seen from ours: in each of them lies the
    /// socket of that end. Relative, since socket paths must be short.
    pub(super) remote: PathBuf,
    /// Our address with the length of the prefix.
    pub(super) address: String,
    /// Last byte of our hardware address.
    pub(super) number: u8,
}

/// A machine that is ready to be switched on.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kernel: Kernel,
    pub(super) host: String,
    pub(super) initramfs: PathBuf,
    pub(super) initramfs_bytes: u64,
    pub(super) link: Option<Link>,
    /// Sum of the jobs' time limits.
    pub(super) jobs_limit: Duration,
    /// Directory for the logs, absolute, and ours as long as we hold the lock.
    pub(super) logs: PathBuf,
    /// Held against other runs in the same directory.
    pub(super) _lock: File,
    /// What is printed while it runs.
    pub(super) echo: Echo,
}

/// What is printed while a machine runs, with this before each line.
#[derive(Clone, Debug)]
pub(super) enum Echo {
    /// All that the jobs write.
    All(String),
    /// Which job runs, and each test that is done: for those who wait.
    Progress(String),
}

impl Echo {
    fn of(&self, line: &str) -> Option<String> {
        let (prefix, text) = match self {
            Echo::All(prefix) => (prefix, worth_showing(line)?.to_owned()),
            Echo::Progress(prefix) => (prefix, results::progress(line)?),
        };
        Some(format!("{prefix}{text}"))
    }
}

impl Machine {
    /// Runs the machine to its end. An error means that qemu could not be run;
    /// all that goes wrong inside is in the outcome.
    pub(super) fn run(&self) -> Result<Outcome> {
        let console = self.logs.join("console.log");
        let results = self.logs.join("results.log");
        let mut log = File::create(&results).with_context(|| format!("cannot create {}", results.display()))?;
        let mut outcome = Outcome::of(&self.kernel.series, &self.logs);
        let start = Instant::now();
        let mut child = self.start(&console)?;
        let output = child.stdout.take().context("qemu has no output")?;
        let (sender, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut input = BufReader::new(output);
            let mut line = Vec::new();
            // The end of the output is the end of qemu.
            while matches!(input.read_until(b'\n', &mut line), Ok(count) if count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        let deadline = start + BOOT_LIMIT + self.jobs_limit;
        let mut killed = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(patience) {
                Ok(line) => {
                    use std::io::Write;
                    writeln!(log, "{line}").context("cannot write the log of results")?;
                    if line.starts_with("MACHINE ") {
                        outcome.boot = start.elapsed();
                    }
                    if let Some(text) = self.echo.of(&line) {
                        println!("{text}");
                    }
                    outcome.line(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    killed = true;
                    child.kill().context("cannot end qemu")?;
                    break;
                }
            }
        }
        let status = child.wait().context("cannot wait for qemu")?;
        // After a kill the rest of the lines does not matter.
        drop(lines);
        let _ = reader.join();
        outcome.total = start.elapsed();
        let mut said = String::new();
        if let Some(mut errors) = child.stderr.take() {
            let _ = errors.read_to_string(&mut said);
        }
        let console = fs::read(&console).unwrap_or_default();
        outcome.judge(status.code(), killed, &String::from_utf8_lossy(&console));
        if let Some(why) = &mut outcome.broken
            && !said.trim().is_empty()
        {
            why.push_str(": ");
            why.push_str(said.trim());
        }
        Ok(outcome)
    }

    fn start(&self, console: &Path) -> Result<Child> {
        let qemu = which("qemu-system-x86_64").context(
            "qemu-system-x86_64 is not installed: the package is called qemu-system-x86 \
             (`cargo xtask setup` installs it)",
        )?;
        // The archive is in memory as such, and unpacked.
        let memory = MEMORY_MIB + 2 * (self.initramfs_bytes >> 20);
        let mut command = Command::new(qemu);
        command
            .args(["-accel", "tcg", "-M", "pc", "-smp", "1", "-cpu", PROCESSOR])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-m", &memory.to_string()])
            .arg("-kernel")
            .arg(&self.kernel.vmlinuz)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &self.words()])
            .args(["-serial", &format!("file:{}", option(console))])
            .args(["-chardev", "stdio,id=results,signal=off"])
            .args(["-serial", "chardev:results"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        if let Some(link) = &self.link {
            command.arg("-netdev").arg(format!(
                "dgram,id=link,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                SOCKET,
                option(&link.remote.join(SOCKET))
            ));
            command
                .arg("-device")
                .arg(format!("virtio-net-pci,netdev=link,romfile=,mac=52:54:00:b0:0c:{:02x}", link.number));
        }
        command.current_dir(&self.logs).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory.
        unsafe {
            command.pre_exec(|| {
                // No VM outlives the program that wanted it.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command.spawn().context("cannot start qemu-system-x86_64")
    }

    /// The kernel's command line.
    fn words(&self) -> String {
        let mut words = format!(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic clocksource=tsc tsc=reliable \
             mitigations=off rdinit=/init bproc.host={}",
            self.host
        );
        if self.kernel.series == "5.10" {
            words.push_str(" lsm=landlock,lockdown,yama,apparmor,bpf");
        }
        if let Some(khz) = tsc_khz() {
            words.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if let Some(link) = &self.link {
            words.push_str(&format!(" bproc.addr={}", link.address));
        }
        words
    }
}

/// How fast the counter runs that guests take their time from: the host's own. Left to find it out on a busy machine, a
/// guest once took a ninth of it (303 MHz for 2596), and its clock ran nine times too fast.
fn tsc_khz() -> Option<u64> {
    static KHZ: OnceLock<Option<u64>> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (from, to) = (tick()?, {
            std::thread::sleep(Duration::from_millis(200));
            tick()?
        });
        let micros = u64::try_from(to.0.duration_since(from.0).as_micros()).ok()?;
        to.1.checked_sub(from.1)?.checked_mul(1000)?.checked_div(micros)
    })
}

/// The time and the counter at once, or nearly so.
#[cfg(target_arch = "x86_64")]
fn tick() -> Option<(Instant, u64)> {
    let look = || {
        let before = Instant::now();
        // SAFETY: reads a counter that every x86_64 processor has.
        let count = unsafe { std::arch::x86_64::_rdtsc() };
        (before.elapsed(), before, count)
    };
    (0..100).map(|_| look()).min().map(|(_, at, count)| (at, count))
}

/// No such counter.
#[cfg(not(target_arch = "x86_64"))]
fn tick() -> Option<(Instant, u64)> {
    None
}

/// The output of jobs as it is; notes and left-overs with their key word.
fn worth_showing(line: &str) -> Option<&str> {
    results::said(line).or_else(|| (line.starts_with("NOTE ") || line.starts_with("LEFT ")).then_some(line))
}

/// A path as part of a qemu option, where a comma separates.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
