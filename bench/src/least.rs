//! What starting a program elsewhere cannot be quicker than: two small static programs and a local socket.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::programs::{self, Dir};
use crate::sys::Held;

/// The one that runs programs for others.
pub struct Least {
    dir: Dir,
    _server: Held,
}

impl Least {
    /// Compiles and starts it; it runs `program` for each who asks.
    pub fn start(program: &str) -> Result<Self> {
        let dir = Dir::new("least")?;
        let least = dir.path().join("least");
        programs::cc(&least, include_str!("../programs/least.c"), &["-static"])?;
        let mut command = Command::new(&least);
        command.arg(Self::socket(&dir)).arg(program).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Held::start(&mut command)?;
        let mut output = server.child().stdout.take().context("no pipe")?;
        output.read_exact(&mut [0]).context("the least server does not begin")?;
        Ok(Self { dir, _server: server })
    }

    fn socket(dir: &Dir) -> PathBuf {
        dir.path().join("socket")
    }

    /// One who asks.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.dir.path().join("least"));
        command.arg(Self::socket(&self.dir)).stdin(Stdio::null());
        command
    }
}
