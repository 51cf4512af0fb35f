//! Virtual machines: our programs and tests on other kernels than this
//! machine's, without root and without touching the host.
//!
//! A VM is a Debian kernel ([`kernels`]), a root file system made of the host's
//! own programs and the staged tree ([`rootfs`], [`cpio`]), and `bproc-guest` as
//! init, which runs a list of jobs and reports on a serial line. qemu emulates
//! the processor ([`machine`]); what comes out ([`results`]) becomes [`tables`].
//!
//! The guest has the staged tree, the tests and their programs at the same
//! paths as the host, so paths that are compiled in keep working.

mod compiler;
mod cpio;
mod kernels;
mod machine;
mod pair;
mod programs;
mod results;
mod rootfs;
mod runtimes;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use kernels::{DEFAULT_KERNELS, fetch_kernel};
use machine::{Echo, Link, Machine};
use programs::{Job, TestBinary, build_guest, job_file, quote, test_binaries};
use results::Outcome;
use rootfs::{Extra, RootFs};

/// Packages whose tests ask something of the kernel; the pure ones need no VM.
const PACKAGES: &[&str] = &[
    "bproc-sys",
    "bproc-bpf",
    "bproc-ghost-check",
    "bproc-keeper",
    "bproc-stdio",
    "vmadump",
    "bproc-agent",
    "bproc-tests",
];

/// Sources that tests compile where they run.
const SOURCES: &[&str] = &["tests/programs", "vmadump/tests/programs"];

/// Where the tour is shown to those who are not root.
const TOUR_KERNEL: &str = "6.12";

/// Time limit of one test program, in seconds; those with clusters bring many tests.
const TEST_LIMIT: u64 = 600;
const CLUSTER_LIMIT: u64 = 3600;

/// What follows `cargo xtask vm`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    /// Run a shell command in a VM; its exit code decides
    Run {
        /// Series of the kernel: 6.1, 6.12, 7.2, ... (several: one after the other)
        #[arg(long, default_value = "6.12")]
        kernel: Vec<String>,
        /// Time limit in seconds
        #[arg(long, default_value_t = 120)]
        limit: u64,
        /// Further files or directories that the guest shall have
        #[arg(long)]
        file: Vec<PathBuf>,
        /// The command
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the tests of moves between two kernels: a VM each, linked by a network card, one the master's machine, the
    /// other the node's; then the other way
    Pair {
        /// Series of the two kernels
        #[arg(long, value_delimiter = ',', num_args = 1, default_values = pair::KERNELS)]
        kernels: Vec<String>,
        /// Only with the first as the master's
        #[arg(long)]
        one_way: bool,
        /// Run only tests whose names contain one of these
        filter: Vec<String>,
    },
    /// Run a command in each of two VMs that are linked by a network card
    ///
    /// They are called vm-a and vm-b and know each other by these names.
    Link {
        /// Kernel of the first
        #[arg(long, default_value = "6.1")]
        kernel_a: String,
        /// Kernel of the second
        #[arg(long, default_value = "7.2")]
        kernel_b: String,
        /// Time limit in seconds
        #[arg(long, default_value_t = 120)]
        limit: u64,
        /// Shell command of the first
        a: String,
        /// Shell command of the second
        b: String,
    },
    /// Run tests on several kernels
    Test {
        /// Series of the kernels
        #[arg(long, default_values = DEFAULT_KERNELS)]
        kernel: Vec<String>,
        /// Packages whose tests are run
        #[arg(long, short, default_values = PACKAGES)]
        package: Vec<String>,
        /// Run only these test programs (semantics, commands, ...), in this order
        #[arg(long, short)]
        test: Vec<String>,
        /// Run only tests whose names contain one of these
        filter: Vec<String>,
    },
    /// The tour of `cargo xtask demo`, with what is staged
    Demo {
        /// Series of the kernel
        #[arg(long, default_value = TOUR_KERNEL)]
        kernel: String,
    },
    /// Fetch kernels into the cache
    Fetch {
        /// Series of the kernels
        #[arg(default_values = DEFAULT_KERNELS)]
        kernel: Vec<String>,
    },
}

/// The command.
pub fn run(args: Args) -> Result<()> {
    match args.task {
        Task::Run { kernel, limit, file, command } => {
            // One word is a shell line as it stands; more are words.
            let line = match command.as_slice() {
                [line] => line.clone(),
                words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
            };
            let extras = extras_of(&file)?;
            let jobs = [Job::new("command", limit, &line)];
            let outcomes = each(&kernel, &jobs, &extras, true)?;
            if outcomes.len() > 1 {
                tables::print(&outcomes);
            }
            verdict(&outcomes)
        }
        Task::Pair { kernels, one_way, filter } => pair::run(&kernels, !one_way, &filter),
        Task::Link { kernel_a, kernel_b, limit, a, b } => {
            let jobs = [Job::new("a", limit, &a), Job::new("b", limit, &b)].map(|job| vec![job]);
            let outcomes = pair::machines([&kernel_a, &kernel_b], jobs, &[], true)?;
            tables::print(&outcomes);
            verdict(&outcomes)
        }
        Task::Test { kernel, package, test, filter } => run_chosen(&kernel, &package, &test, &filter),
        Task::Demo { kernel } => demo(&kernel),
        Task::Fetch { kernel } => {
            for series in &kernel {
                let kernel = fetch_kernel(series)?;
                println!("{series}: {} ({})", kernel.release, kernel.vmlinuz.display());
            }
            Ok(())
        }
    }
}

/// The tests of all packages that ask something of the kernel, on these
/// kernels (none given: the matrix).
pub fn run_tests(kernels: &[String]) -> Result<()> {
    let kernels = if kernels.is_empty() {
        DEFAULT_KERNELS.iter().map(|&name| name.to_owned()).collect()
    } else {
        kernels.to_vec()
    };
    let packages: Vec<String> = PACKAGES.iter().map(|&name| name.to_owned()).collect();
    let alone = run_chosen(&kernels, &packages, &[], &[]);
    // The oldest and the newest.
    let ends = [kernels.first(), kernels.last()].map(|name| name.cloned().unwrap_or_default());
    let paired = if ends[0] == ends[1] { Ok(()) } else { pair::run(&ends, true, &[]) };
    alone.and(paired)
}

/// The tour, in a virtual machine: for those who are not root.
pub fn run_demo() -> Result<()> {
    demo(TOUR_KERNEL)
}

fn demo(series: &str) -> Result<()> {
    need_stage()?;
    let xtask = std::env::current_exe().context("where is xtask itself?")?;
    let command = format!(
        "exec env CARGO_TARGET_DIR={} {} demo --no-build",
        quote(&paths::target().to_string_lossy()),
        quote(&xtask.to_string_lossy())
    );
    let extras = [Extra { path: xtask, empty_directory: false }];
    let outcomes = each(&[series.to_owned()], &[Job::new("demo", 300, &command)], &extras, true)?;
    verdict(&outcomes)
}

fn run_chosen(kernels: &[String], packages: &[String], tests: &[String], filters: &[String]) -> Result<()> {
    let mut jobs = Vec::new();
    let mut extras = Vec::new();
    if paths::stage().join("bin/bproc-agent").exists() {
        jobs.push(Job::new("probe", 60, "exec bproc-agent probe"));
    }
    for mut program in chosen(test_binaries(packages, filters)?, tests)? {
        let cluster = program.name.starts_with("bproc-tests/");
        extras.extend(runtimes::of(&mut program)?);
        jobs.push(program.job(if cluster { CLUSTER_LIMIT } else { TEST_LIMIT }));
        extras.extend(program.extras());
    }
    extras.extend(sources()?);
    let outcomes = each(kernels, &jobs, &extras, false)?;
    tables::print(&outcomes);
    verdict(&outcomes)
}

/// What tests need to compile their programs.
fn sources() -> Result<Vec<Extra>> {
    let mut extras = compiler::files()?;
    let sources = SOURCES.iter().map(|dir| paths::root().join(dir)).filter(|dir| dir.is_dir());
    extras.extend(sources.map(|path| Extra { path, empty_directory: false }));
    Ok(extras)
}

/// Those of the test programs that are named, in the order of the names; all of them when none is.
fn chosen(mut programs: Vec<TestBinary>, names: &[String]) -> Result<Vec<TestBinary>> {
    if names.is_empty() {
        return Ok(programs);
    }
    let mut wanted = Vec::new();
    for name in names {
        let (fit, rest) = programs.into_iter().partition(|program| program.name.split('/').nth(1) == Some(name));
        programs = rest;
        if Vec::is_empty(&fit) {
            bail!("these packages have no test program `{name}`");
        }
        wanted.extend::<Vec<TestBinary>>(fit);
    }
    Ok(wanted)
}

/// Runs the same jobs on each kernel, one VM after the other.
fn each(kernels: &[String], jobs: &[Job], extras: &[Extra], echo: bool) -> Result<Vec<Outcome>> {
    let guest = build_guest()?;
    let mut outcomes = Vec::new();
    for series in kernels {
        println!("Linux {series}, emulated: it boots in ten to sixty seconds");
        let prefix = if kernels.len() > 1 { format!("{series}: ") } else { String::new() };
        let echo = if echo { Echo::All(prefix) } else { Echo::Progress(prefix) };
        let machine = prepare(&guest, series, "vm", jobs, extras, None, echo)?;
        outcomes.push(machine.run()?);
    }
    Ok(outcomes)
}

/// Fetches the kernel, writes the root file system: ready to be switched on.
fn prepare(
    guest: &Path,
    series: &str,
    host: &str,
    jobs: &[Job],
    extras: &[Extra],
    link: Option<Link>,
    echo: Echo,
) -> Result<Machine> {
    let kernel = fetch_kernel(series)?;
    let work = paths::target().join("vm");
    let logs = if link.is_some() { work.join(format!("{series}-{host}")) } else { work.join(series) };
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let lock = exclusive(&logs)?;
    let mut root = RootFs::base(guest)?;
    root.staged(&paths::stage())?;
    for extra in extras {
        let content =
            if extra.empty_directory { extra.path.clone() } else { rootfs::slim(&extra.path, &work.join("slim"))? };
        root.extra(extra, &content)?;
    }
    let hosts: String = pair::MACHINES.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
    let initramfs = logs.join("initramfs.cpio");
    let initramfs_bytes = root.write(&kernel, &job_file(jobs), &hosts, &initramfs)?;
    Ok(Machine {
        kernel,
        host: host.to_owned(),
        initramfs,
        initramfs_bytes,
        link,
        jobs_limit: jobs.iter().map(|job| job.limit).sum::<Duration>(),
        logs,
        _lock: lock,
        echo,
    })
}

/// Two runs with the same kernel take turns: they share a directory.
fn exclusive(logs: &Path) -> Result<fs::File> {
    let path = logs.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another run in {}", logs.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn extras_of(files: &[PathBuf]) -> Result<Vec<Extra>> {
    files
        .iter()
        .map(|file| {
            let path = fs::canonicalize(file).with_context(|| format!("cannot find {}", file.display()))?;
            Ok(Extra { path, empty_directory: false })
        })
        .collect()
}

fn need_stage() -> Result<()> {
    let agent = paths::stage().join("bin/bproc-agent");
    if !agent.exists() {
        bail!("{} is not there: run `cargo xtask build` first", agent.display());
    }
    Ok(())
}

/// An error that names what failed and where to read on.
fn verdict(outcomes: &[Outcome]) -> Result<()> {
    let mut failed = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        let jobs: Vec<String> = outcome
            .jobs
            .iter()
            .filter(|job| !job.passed())
            .map(|job| format!("{} ({})", job.name, job.detail()))
            .collect();
        let mut text = format!("Linux {}", outcome.series);
        if !jobs.is_empty() {
            text.push_str(&format!(": {} failed", jobs.join(", ")));
        }
        if let Some(why) = &outcome.broken {
            text.push_str(&format!(": {why}"));
        }
        text.push_str(&format!(" (logs in {})", outcome.logs.display()));
        failed.push(text);
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{}", failed.join("\n       "))
}
