//! `bproc-iod`: the stdio service of a machine. See the library for what it does.

use bproc_stdio::{Options, run};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> std::process::ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // An error in writing the log would be told by a write to the same place, whose failure ends the program.
    let log = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    log.with_writer(std::io::stderr).with_ansi(false).init();
    match run(&Options::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bproc-iod: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
