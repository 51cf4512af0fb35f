//! The command line tools of BProc: one binary, called by the name of the tool or as `bproc TOOL`; and bpsh alone, which
//! is linked statically because it starts in half the time then.
//!
//! There is no Rust runtime around `main`: it would set SIGPIPE to ignored, and what bpsh was started with is what
//! the remote processes must get.

mod bpctl;
mod bplib;
mod bpmove;
mod bpsh;
mod bpstat;
mod cli;
mod generate;
mod nodes;
mod owner;
mod sys;

use std::ffi::OsString;
use std::path::Path;

use clap::Parser;

/// The tools by name.
pub(crate) const TOOLS: [(&str, &str); 5] = [
    ("bpsh", "run a program on nodes"),
    ("bpstat", "show nodes and the processes on them"),
    ("bpctl", "change the state, owner and permissions of nodes"),
    ("bpmove", "have running processes go on on another node"),
    ("bplib", "change or show the files that nodes keep at hand"),
];

fn overview() -> String {
    let mut text = String::from("Usage: bproc TOOL [arguments]\n\nTools, also to be called by their own names:\n");
    for (name, about) in TOOLS {
        text += &format!("  {name:8} {about}\n");
    }
    text + "\n'TOOL --help' tells more about each.\n"
}

/// Runs the tool that `args` names; returns the exit status.
fn run(mut args: Vec<OsString>) -> i32 {
    let base = |arg: &OsString| Path::new(arg).file_name().map(|name| name.to_string_lossy().into_owned());
    let mut name = args.first().and_then(base).unwrap_or_default();
    if !TOOLS.iter().any(|(tool, _)| *tool == name) && !matches!(name.as_str(), "rsh" | "bprsh" | "vmadlib") {
        if args.is_empty() || args.len() == 1 {
            eprint!("{}", overview());
            return 2;
        }
        args.remove(0);
        name = args[0].to_string_lossy().into_owned();
        if name == "move" {
            // So that it is called in its help and errors.
            args[0] = "bproc move".into();
        }
    }
    match name.as_str() {
        "bpsh" | "rsh" | "bprsh" => run_bpsh(args),
        "bpstat" => match cli::Bpstat::try_parse_from(args) {
            Ok(options) => bpstat::run(&options),
            Err(error) => usage(&error),
        },
        "bpctl" => match cli::Bpctl::try_parse_from(&args) {
            Ok(options) => bpctl::run(&options, &args),
            Err(error) => usage(&error),
        },
        "bplib" | "vmadlib" => match cli::Bplib::try_parse_from(args) {
            Ok(options) => bplib::run(&options),
            Err(error) => usage(&error),
        },
        "bpmove" | "move" => match cli::Bpmove::try_parse_from(args) {
            Ok(options) => bpmove::run(&options),
            Err(error) => usage(&error),
        },
        "generate" => generate::run(args.get(1)),
        "help" | "--help" | "-h" => {
            print!("{}", overview());
            0
        }
        "version" | "--version" | "-v" | "-V" => {
            println!("bproc {}", env!("CARGO_PKG_VERSION"));
            0
        }
        other => {
            eprint!("bproc: there is no tool '{other}'\n\n{}", overview());
            2
        }
    }
}

/// Runs bpsh; returns the exit status.
fn run_bpsh(args: Vec<OsString>) -> i32 {
    match cli::parse_bpsh(args) {
        Ok(options) => bpsh::run(options),
        Err(error) => usage(&error),
    }
}

/// Help and version go to stdout with 0, mistakes to stderr with 2.
fn usage(error: &clap::Error) -> i32 {
    // Nobody is left to tell when the terminal is gone.
    let _ = error.print();
    error.exit_code()
}

/// Every tool, for `main`; returns the exit status.
///
/// # Safety
/// To be called once, with what the C runtime passes: `argc` strings in `argv`.
pub unsafe fn all_tools(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: as the caller's promise.
    unsafe { called(argc, argv, run) }
}

/// bpsh alone, for `main`; returns the exit status.
///
/// # Safety
/// As [`all_tools`].
pub unsafe fn bpsh_alone(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: as the caller's promise.
    unsafe { called(argc, argv, run_bpsh) }
}

unsafe fn called(argc: libc::c_int, argv: *const *const libc::c_char, run: fn(Vec<OsString>) -> i32) -> libc::c_int {
    use std::os::unix::ffi::OsStringExt;
    sys::open_standard_streams();
    let args = (0..usize::try_from(argc).unwrap_or(0)).map(|i| {
        // SAFETY: the C runtime passes `argc` pointers to NUL-terminated strings that stay.
        let arg = unsafe { std::ffi::CStr::from_ptr(*argv.add(i)) };
        OsString::from_vec(arg.to_bytes().to_vec())
    });
    let status = run(args.collect());
    // What print! holds back is not flushed by anybody else.
    if std::io::Write::flush(&mut std::io::stdout()).is_err() && status == 0 {
        return 1;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_mistakes_have_their_status() {
        let call = |words: &[&str]| run(words.iter().map(OsString::from).collect());
        assert_eq!(call(&["bproc", "help"]), 0);
        assert_eq!(call(&["bproc"]), 2);
        assert_eq!(call(&["bproc", "nonsense"]), 2);
        assert_eq!(call(&[]), 2);
        assert_eq!(call(&["/usr/bin/bpstat", "--no-such-option"]), 2);
        assert_eq!(call(&["bproc", "bpstat", "--version"]), 0);
    }
}
