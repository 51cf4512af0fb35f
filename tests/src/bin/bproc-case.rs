//! The program of the semantics test: parent and child of each case, and the guard of a cluster.

use std::process::ExitCode;

use anyhow::{Result, bail};
use bproc_tests::case::{self, parent::Mode};
use bproc_tests::cluster;

fn run(words: &[&str]) -> Result<i32> {
    match words {
        ["child"] => Ok(case::child::run()),
        ["parent", "native", name] => case::run(Mode::Native, name),
        ["parent", "remote", name] => case::run(Mode::Remote, name),
        ["crowd", count] => case::crowd::run(count.parse()?),
        ["burden", bytes] => case::crowd::burden(bytes.parse()?),
        ["guard", name] => cluster::guard(name).map(|()| 0),
        _ => bail!("usage: bproc-case child | parent native|remote CASE | crowd COUNT | burden BYTES | guard CLUSTER"),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
