//! bproc-keeper: holds ghosts by ptrace, so that their end is seen only when it has happened on the node.
//!
//! `bproc-keeper --socket PATH [--name TEXT]`
//!
//! A ghost that gets SIGKILL, or is told to exit, stops at its exit (`t` in `ps`) and stays until the agent says
//! RELEASE. The keeper does nothing else, has one thread and no runtime, and outlives agents: who connects last to
//! its socket (root only) is its agent, and learns by LIST what it missed. SIGTERM, SIGINT and SIGHUP end it only
//! while it holds nothing: a keeper that died would open all gates. `op::QUIT` ends it always.
//!
//! The parts: [`gate`] is the table of held processes and what each ptrace stop means for them; [`link`] the
//! connection to the agent; [`serve`] the loop over both.
#![forbid(unsafe_code)]

mod gate;
mod link;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: bproc-keeper --socket PATH [--name TEXT]

Holds the ghosts of a BProc master. Started by bproc-agent.
  --socket PATH  where the agent connects
  --name TEXT    no effect; shows in ps whose keeper it is
";

/// What the command line asks for.
enum Command {
    Serve(PathBuf),
    Help,
    Version,
}

fn parse(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<Command, String> {
    let mut socket = None;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--socket") => socket = Some(args.next().ok_or("--socket needs a path")?),
            Some("--name") => drop(args.next().ok_or("--name needs a text")?),
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--version" | "-V") => return Ok(Command::Version),
            _ => return Err(format!("unknown argument {}", arg.display())),
        }
    }
    socket.map(|path| Command::Serve(path.into())).ok_or_else(|| "--socket is missing".to_owned())
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            println!("bproc-keeper {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(path)) => match serve::run(&path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bproc-keeper: {}: {error}", path.display());
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("bproc-keeper: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
