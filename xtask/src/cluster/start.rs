//! Starts the agents in sessions of their own and waits until each says that it
//! is ready, as a service of systemd does: one datagram to NOTIFY_SOCKET. An
//! agent that ends instead is told at once, with the last of its log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Cluster, config};

/// A node has to load its eBPF programs and make its name space; slow machines take seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// An agent that was started, and the socket on which it says that it is ready.
struct Agent {
    name: String,
    child: Child,
    ready: UnixDatagram,
}

/// Starts the master, then all nodes at once, and waits for each.
pub(super) fn all(cluster: &Cluster, nodes: u8) -> Result<()> {
    for (dir, mode) in [(cluster.run_dir(), 0o755), (cluster.log_dir(), 0o755)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let end = Instant::now() + LIMIT;
    start(cluster, "master", &["master"])?.wait(cluster, end)?;
    let started: Result<Vec<Agent>> = (0..nodes)
        .map(|number| start(cluster, &format!("node-{number}"), &["slave", "--node", &number.to_string()]))
        .collect();
    for agent in started? {
        agent.wait(cluster, end)?;
    }
    // A master without nodes has nothing to say about them.
    if nodes == 0 { Ok(()) } else { seen_up(cluster, nodes, end) }
}

fn start(cluster: &Cluster, name: &str, role: &[&str]) -> Result<Agent> {
    let socket = cluster.run_dir().join(format!(".ready-{name}"));
    let _ = fs::remove_file(&socket);
    let ready = UnixDatagram::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let path = log_file(cluster, name);
    let log: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let errors = log.try_clone().context("a descriptor cannot be doubled")?;
    let mut command = Command::new(cluster.agent());
    command
        .args(role)
        .args(["--name", &cluster.name, "--config"])
        .arg(config::file(cluster))
        .env("NOTIFY_SOCKET", &socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // SAFETY: setsid is safe between fork and exec, and touches no memory.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", cluster.agent().display()))?;
    let pid_file = cluster.run_dir().join(format!("{name}.pid"));
    fs::write(&pid_file, format!("{}\n", child.id()))
        .with_context(|| format!("cannot write {}", pid_file.display()))?;
    Ok(Agent { name: name.into(), child, ready })
}

impl Agent {
    /// Until READY=1, its end, or the end of the time.
    fn wait(mut self, cluster: &Cluster, end: Instant) -> Result<()> {
        let pidfd = pidfd(&self.child)?;
        self.ready.set_nonblocking(true).context("a socket stays blocking")?;
        loop {
            let mut text = [0; 4096];
            while let Ok(length) = self.ready.recv(&mut text) {
                if is_ready(&text[..length]) {
                    let _ = fs::remove_file(cluster.run_dir().join(format!(".ready-{}", self.name)));
                    return Ok(());
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let ended = self.child.try_wait().context("an agent cannot be waited for")?;
            if let Some(status) = ended {
                bail!("the agent of {} ended before it was ready: {status}{}", self.name, tail(cluster, &self.name));
            }
            if left.is_zero() {
                bail!(
                    "the agent of {} is not ready after {} s{}",
                    self.name,
                    LIMIT.as_secs(),
                    tail(cluster, &self.name)
                );
            }
            let mut polls = [self.ready.as_raw_fd(), pidfd.as_raw_fd()].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: two pollfds, which live over the call.
            unsafe { libc::poll(polls.as_mut_ptr(), 2, millis) };
        }
    }
}

fn pidfd(child: &Child) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("process {} has no pidfd", child.id()));
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

fn is_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

/// A ready node has yet to be greeted by the master, which is the one that will
/// be asked: bpstat tells it anew at each change, until all are up.
fn seen_up(cluster: &Cluster, nodes: u8, end: Instant) -> Result<()> {
    let wanted = nodes.to_string();
    let mut bpstat = cluster.command("bpstat").args(["-U", "-n", "allup"]).into_inner();
    // Until the first is up it complains that none is.
    let streams = bpstat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut bpstat = streams.spawn().context("cannot start bpstat")?;
    let output = bpstat.stdout.take().context("bpstat has no standard output")?;
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in io::BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut up = String::from("none");
    while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if !line.is_empty() {
            up = line;
        }
        if up == wanted {
            break;
        }
    }
    bpstat.kill().and_then(|()| bpstat.wait()).context("bpstat cannot be ended")?;
    if up != wanted {
        bail!(
            "every node says that it is ready, but the master counts {up} of {nodes} as up{}",
            tail(cluster, "master")
        );
    }
    Ok(())
}

fn log_file(cluster: &Cluster, name: &str) -> std::path::PathBuf {
    cluster.log_dir().join(format!("{name}.log"))
}

fn tail(cluster: &Cluster, name: &str) -> String {
    let path = log_file(cluster, name);
    let bytes = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(12)..];
    format!("\n{} ends with:\n  {}", path.display(), last.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::is_ready;

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(is_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!is_ready(b"STATUS=READY=1"));
    }
}
