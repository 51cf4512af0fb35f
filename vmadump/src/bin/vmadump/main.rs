//! The command line tool: dump a process to a file, make a process of a file, look at one.
#![forbid(unsafe_code)]

mod output;
mod pages;
mod show;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use output::Output;

use vmadump::capture::{self, DUMP_ALL, DUMP_EXEC, DUMP_LIBS, DUMP_OTHER, FdPolicy, freeze};
use vmadump::image::{PAGE, Reader};
use vmadump::restore::{Body, RestoreOptions, Restorer};
use vmadump::{Error, Proxy, Refusal};

/// Images of processes.
#[derive(Parser)]
#[command(name = "vmadump", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a process to a file ("-": standard output).
    Dump(DumpArgs),
    /// Make a process of a file ("-": standard input) and wait for its end; its exit code becomes ours. Signals are
    /// passed on to it, and it is killed if this ends before it.
    Undump(UndumpArgs),
    /// Show what a file holds.
    Inspect {
        /// Image ("-": standard input).
        file: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// As always: all pages are verified.
        #[arg(long, hide = true)]
        verify: bool,
    },
    /// Write man pages and shell completions.
    #[command(hide = true)]
    Generate {
        /// Directory for them.
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Libs,
    Exec,
    Other,
    All,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum Files {
    /// Carry what can be carried, refuse anything else.
    Carry,
    /// Carry what can be carried, drop the rest.
    Drop,
    /// Only standard input, output and error.
    Stdio,
}

#[derive(Args)]
struct DumpArgs {
    /// Process.
    pid: i32,
    /// Image.
    file: PathBuf,
    /// Read-only mappings that travel as data; others are looked for on the target.
    #[arg(long, value_delimiter = ',', default_value = "exec,other")]
    flags: Vec<What>,
    /// Open files.
    #[arg(long, default_value = "carry")]
    files: Files,
    /// End the process once its image is written.
    #[arg(long, conflicts_with = "leave")]
    kill: bool,
    /// Let the process go on (the default).
    #[arg(long)]
    leave: bool,
}

#[derive(Args)]
struct UndumpArgs {
    /// Image.
    file: PathBuf,
    /// Give the process this pid; without a number the one that it had.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pid: Option<i32>,
    /// Do not wait: print the pid and end.
    #[arg(long)]
    detach: bool,
    /// Files that cannot be opened here are closed in the process.
    #[arg(long)]
    drop_files: bool,
    /// Map the second file where the image asks for the first: FROM=TO.
    #[arg(long, value_name = "FROM=TO", value_parser = instead)]
    instead: Vec<(PathBuf, PathBuf)>,
}

fn instead(text: &str) -> Result<(PathBuf, PathBuf), String> {
    text.split_once('=').map(|(a, b)| (a.into(), b.into())).ok_or_else(|| "give FROM=TO".into())
}

type Outcome = Result<ExitCode, String>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Dump(args) => dump(&args),
        Command::Undump(args) => undump(&args),
        Command::Inspect { file, json, verify: _ } => inspect(&file, json),
        Command::Generate { dir } => match pages::generate(&dir) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(format!("cannot write man pages and completions below {}: {error}", dir.display())),
        },
    };
    outcome.unwrap_or_else(|why| {
        eprintln!("vmadump: {why}");
        ExitCode::FAILURE
    })
}

fn bar(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(0).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn advance(bar: &ProgressBar) -> impl FnMut(u64, u64) {
    move |done, all| {
        bar.set_length(all * PAGE);
        bar.set_position(done * PAGE);
    }
}

fn dump(args: &DumpArgs) -> Outcome {
    let flags = args.flags.iter().fold(0, |all, f| {
        all | match f {
            What::Libs => DUMP_LIBS,
            What::Exec => DUMP_EXEC,
            What::Other => DUMP_OTHER,
            What::All => DUMP_ALL,
            What::None => 0,
        }
    });
    let fds = match args.files {
        Files::Carry => FdPolicy::Carry,
        Files::Drop => FdPolicy::DropOthers,
        Files::Stdio => FdPolicy::StdioOnly,
    };
    let fail = |e: &Error| format!("cannot dump process {}: {e}{}", args.pid, way_out(e));
    if !Path::new(&format!("/proc/{}", args.pid)).exists() {
        return Err(format!("cannot dump process {}: there is no such process", args.pid));
    }
    // Whatever is wrong with the file is told before the process is stopped.
    let mut output = Output::open(&args.file)?;
    vmadump::no_signal_for_large_files();
    let frozen =
        freeze(args.pid, &capture::Options { flags, fds, ..capture::Options::default() }).map_err(|e| fail(&e))?;
    let bar = bar("dump");
    let written = frozen.write_image_with(output.file(), &mut advance(&bar));
    bar.finish_and_clear();
    written.map_err(|e| fail(&e))?;
    output.keep().map_err(|e| format!("cannot keep {}: {e}", args.file.display()))?;
    let end = if args.kill { frozen.kill() } else { frozen.resume() };
    end.map_err(|e| fail(&e))?;
    Ok(ExitCode::SUCCESS)
}

fn open(file: &Path) -> Result<File, String> {
    if file == Path::new("-") {
        let fd: OwnedFd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
        return Ok(fd.into());
    }
    File::open(file).map_err(|e| format!("cannot open {}: {e}", file.display()))
}

/// Which options may help.
fn way_out(error: &Error) -> &'static str {
    let Error::Refused(refusal) = error else { return "" };
    let all = if let Refusal::Several(all) = refusal { all } else { std::slice::from_ref(refusal) };
    all.iter().map(option_for).find(|way| !way.is_empty()).unwrap_or("")
}

fn option_for(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::OpenFiles(_) => " (--files drop leaves these behind, --files stdio all but the standard streams)",
        Refusal::FileMissing { .. } | Refusal::FileDiffers { .. } => {
            " (--drop-files closes open files that are not here, --instead FROM=TO maps another file)"
        }
        _ => "",
    }
}

fn undump(args: &UndumpArgs) -> Outcome {
    let fail = |e: &dyn std::fmt::Display| format!("cannot undump {}: {e}", args.file.display());
    let body = match args.pid {
        None => Body::Any,
        Some(0) => {
            let mut front = open(&args.file)?;
            if args.file == Path::new("-") {
                return Err("give the pid as a number when the image comes from standard input".into());
            }
            Body::Pid(Reader::new(&mut front).map_err(|e| fail(&e))?.image().meta.pid)
        }
        Some(pid) => Body::Pid(pid),
    };
    let null = File::open("/dev/null").map_err(|e| e.to_string())?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let input = if args.file == Path::new("-") { null.as_fd() } else { stdin.as_fd() };
    let options = RestoreOptions {
        body,
        fds: vec![(0, input), (1, stdout.as_fd()), (2, stderr.as_fd())],
        instead: args.instead.clone(),
        drop_missing_fds: args.drop_files,
        tied: !args.detach,
        ..RestoreOptions::default()
    };
    let bar = bar("undump");
    let prepared = Restorer::prepare_with(open(&args.file)?, &options, &mut advance(&bar));
    let prepared = prepared.map_err(|e| fail(&format!("{e}{}", way_out(&e))))?;
    bar.finish_and_clear();
    for fd in prepared.dropped_fds().iter().filter(|fd| **fd > 2) {
        eprintln!("vmadump: descriptor {fd} is closed in the process");
    }
    if args.detach {
        let pid = prepared.go().map_err(|e| fail(&e))?;
        writeln!(io::stdout(), "{pid}").map_err(|e| e.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let proxy = Proxy::begin();
    let pid = prepared.go().map_err(|e| fail(&e))?;
    let status = proxy.wait(pid).map_err(|e| fail(&e))?;
    let code = if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) };
    Ok(ExitCode::from(code as u8))
}

/// Every one is read to its end: what is damaged or cut off is told, and not shown as if it were whole.
fn inspect(file: &Path, json: bool) -> Outcome {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let input: Box<dyn Read> = Box::new(io::BufReader::with_capacity(1 << 16, open(file)?));
    let mut reader = Reader::new(input).map_err(|e| fail(&e))?;
    let (mut data, mut pages) = (Vec::new(), 0);
    while let Some(block) = reader.block().map_err(|e| fail(&e))? {
        reader.data(&block, &mut data).map_err(|e| fail(&e))?;
        pages += block.len / PAGE;
    }
    let image = reader.image();
    let text = if json {
        serde_json::to_string_pretty(image).map_err(|e| fail(&e))? + "\n"
    } else {
        show::table(image, pages)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
