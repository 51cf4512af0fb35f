//! Starts the service so that it outlives its agent.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bproc_config::Security;

use crate::client::{IodClient, IodError};
use crate::service::Role;

/// What the service is started with.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The binary, `bproc-iod`.
    pub program: &'a Path,
    /// Its socket; see `bproc_config::paths::iod_socket_in`.
    pub socket: PathBuf,
    /// Role.
    pub role: Role,
    /// Where the master listens.
    pub listen: SocketAddr,
    /// Certificates.
    pub security: &'a Security,
    /// Cluster.
    pub cluster: &'a str,
    /// Seconds without a word after which a machine is given up.
    pub timeout_s: u32,
}

/// Connects to the service, or starts it in a session of its own first. Blocks until it answers: within a tokio
/// runtime call it in `spawn_blocking`. The service inherits stderr for its log. The caller is its parent, so it
/// reaps it some day.
///
/// # Errors
/// It could not be started, or ended at once: its reason is in its log.
pub fn launch(how: &Launch<'_>) -> Result<IodClient, IodError> {
    if let Ok(mut client) = IodClient::connect(&how.socket)
        && client.status().is_ok()
    {
        return Ok(client);
    }
    let mut command = Command::new(how.program);
    command.arg("--socket").arg(&how.socket).args(["--role", how.role.name(), "--name", how.cluster]);
    command.args(["--timeout", &how.timeout_s.to_string()]);
    if how.role == Role::Master {
        command.args(["--listen", &how.listen.to_string()]);
    }
    if let Some(files) = how.security.tls() {
        let mut list = files.ca.clone().into_os_string();
        for file in [&files.cert, &files.key] {
            list.push(",");
            list.push(file);
        }
        command.arg("--tls").arg(list);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).current_dir("/");
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid().map_err(io::Error::from)?;
            Ok(())
        });
    }
    let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", how.program.display()));
    let mut child = command.spawn().map_err(told)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.is_empty() {
        let status = child.wait()?;
        // Another agent may have been quicker.
        return IodClient::connect(&how.socket).map_err(|_| {
            let why = format!("{} ended at once ({status}); its log tells why", how.program.display());
            IodError::Lost(io::Error::other(why))
        });
    }
    IodClient::connect(&how.socket)
}
