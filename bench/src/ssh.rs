//! An ssh server and clients of the benchmark's own, on loop-back, with keys and configuration in a directory that is
//! removed at the end.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sys::{self, Held};

/// The server, and one client that holds a connection which others share.
pub struct Ssh {
    dir: Directory,
    // Ended in this order, before the directory goes.
    master: Option<Held>,
    server: Option<Held>,
}

/// How the server is set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// As Debian installs it, for a new user: PAM, and what /etc/skel puts into a home.
    Debian,
    /// With nothing that takes time: no PAM, an empty home.
    Stripped,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // The client first, so that the server's part of the connection ends by itself.
        self.master = None;
        self.server = None;
    }
}

impl Ssh {
    /// Starts both and waits until a command could be sent.
    pub fn start(setting: Setting) -> Result<Self> {
        let debian = setting == Setting::Debian;
        let name = if debian { "debian" } else { "stripped" };
        let dir = Directory(PathBuf::from(format!("/tmp/bproc-bench-ssh-{}-{name}", std::process::id())));
        fs::create_dir(&dir.0).with_context(|| format!("cannot make {}", dir.0.display()))?;
        std::os::unix::fs::chown(&dir.0, Some(0), Some(0)).context("cannot own a directory")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&dir.0, mode).context("cannot close a directory to others")?;
        // Not this machine's own start-up files: some take longer than everything else here.
        fs::create_dir(dir.0.join("home")).context("cannot make a directory")?;
        if debian {
            for file in fs::read_dir("/etc/skel").context("cannot list /etc/skel")?.flatten() {
                fs::copy(file.path(), dir.0.join("home").join(file.file_name()))
                    .context("cannot copy from /etc/skel")?;
            }
        }
        for key in ["host", "user"] {
            let mut made = Command::new("ssh-keygen");
            succeed(made.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.0.join(key)))?;
        }
        fs::copy(dir.0.join("user.pub"), dir.0.join("authorized")).context("cannot copy a key")?;
        let port = free_port()?;
        let at = dir.0.display();
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\n\
             PidFile none\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n\
             MaxSessions 1000\nMaxStartups 1000\nPrintMotd no\nSetEnv HOME={at}/home\n{}",
            if debian {
                "UsePAM yes\nKbdInteractiveAuthentication no\nX11Forwarding yes\nAcceptEnv LANG LC_*\n"
            } else {
                "UsePAM no\nPrintLastLog no\n"
            }
        );
        let client = format!(
            "Host bench\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {at}/user\n  \
             IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile {at}/known\n  LogLevel ERROR\n  \
             BatchMode yes\n"
        );
        fs::write(dir.0.join("sshd_config"), server).context("cannot write a file")?;
        fs::write(dir.0.join("ssh_config"), client).context("cannot write a file")?;
        // The server wants it, and a service file would have made it.
        fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-f").arg(dir.0.join("sshd_config")).arg("-E").arg(dir.0.join("log"));
        let mut ssh = Self { dir, master: None, server: Some(Held::start(command.stdin(Stdio::null()))?) };
        ssh.wait_for_server(port)?;
        let mut master = ssh.client();
        master.arg("-S").arg(ssh.control()).args(["-o", "ControlMaster=yes", "-N", "bench"]);
        ssh.master = Some(Held::start(&mut master)?);
        ssh.wait_for_master()?;
        Ok(ssh)
    }

    /// `ssh`, with a connection of its own; the program follows.
    pub fn fresh(&self) -> Command {
        let mut command = self.client();
        command.args(["-o", "ControlPath=none", "bench"]);
        command
    }

    /// `ssh` over the connection that is there; the program follows.
    pub fn multiplexed(&self) -> Command {
        let mut command = self.client();
        command.arg("-S").arg(self.control()).args(["-o", "ControlMaster=no", "bench"]);
        command
    }

    fn client(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(self.dir.0.join("ssh_config"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn control(&self) -> PathBuf {
        self.dir.0.join("control")
    }

    fn wait_for_server(&mut self, port: u16) -> Result<()> {
        self.wait("the ssh server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    }

    fn wait_for_master(&mut self) -> Result<()> {
        let control = self.control();
        self.wait("the shared connection", || Path::new(&control).exists())
    }

    fn wait(&mut self, what: &str, there: impl Fn() -> bool) -> Result<()> {
        let end = sys::now() + 20_000_000_000;
        while !there() {
            for held in self.server.iter_mut().chain(self.master.iter_mut()) {
                let log = fs::read_to_string(self.dir.0.join("log")).unwrap_or_default();
                held.still_there().with_context(|| format!("{what} is not there: {log}"))?;
            }
            if sys::now() > end {
                bail!("{what} is not there after 20 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr().context("a socket has no address")?.port())
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if status.success() { Ok(()) } else { bail!("{:?}: {status}", command.get_program()) }
}
