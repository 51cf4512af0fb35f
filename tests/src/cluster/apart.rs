//! Machines of their own, as far as one kernel allows it: each node has its own network, joined to the master's by a
//! cable, and its own `/run/bproc.d`. Nothing has a name outside of them, and all goes with the last process in them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::LIMIT;
use crate::run::finish;

/// The network of all: the master is the first, node N has the address 2 + N.
const NETWORK: &str = "10.213.0";

/// The address of the master.
pub(super) fn master() -> String {
    format!("{NETWORK}.1")
}

/// The address of a node.
pub(super) fn node(number: i32) -> String {
    format!("{NETWORK}.{}", 2 + number)
}

/// What makes a node a machine.
pub(super) struct Machine {
    net: File,
    mounts: File,
}

fn ip(arguments: &str) -> Result<()> {
    let done = finish(Command::new("ip").args(arguments.split(' ')), b"", LIMIT)?;
    ensure!(done.status == 0, "ip {arguments}: {}", done.err());
    Ok(())
}

fn checked(what: &str, result: i32) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()).with_context(|| what.to_owned()) }
}

/// Puts this process, which must have one thread, on a network of its own. False where that cannot be.
///
/// # Errors
/// It can, but fails half way.
pub fn leave() -> Result<bool> {
    let tool = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    // SAFETY: no pointers.
    if !tool.is_ok_and(|status| status.success()) || unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Ok(false);
    }
    ip("link set lo up")?;
    if ip("link add br0 type bridge").is_err() {
        return Ok(false);
    }
    ip(&format!("addr add {}/24 dev br0", master()))?;
    ip("link set br0 up")?;
    Ok(true)
}

/// Makes the machine of a node, on the network of whoever calls.
pub(super) fn machine(number: i32) -> Result<Machine> {
    let (tell, hear) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    // Namespaces of a thread alone become those of whom it starts.
    let thread = thread::spawn(move || -> Result<Machine> {
        // SAFETY: no pointers.
        checked("unshare", unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) })?;
        private_run()?;
        // SAFETY: no pointers, cannot fail.
        tell.send(unsafe { libc::gettid() })?;
        gone.recv().context("the cable was not laid")?;
        ip("link set lo up")?;
        ip(&format!("addr add {}/24 dev eth0", node(number)))?;
        ip("link set eth0 up")?;
        Ok(Machine { net: File::open("/proc/thread-self/ns/net")?, mounts: File::open("/proc/thread-self/ns/mnt")? })
    });
    let laid = hear.recv().context("a machine was not made").and_then(|tid: i32| {
        ip(&format!("link add cable{number} type veth peer name eth0 netns {tid}"))?;
        ip(&format!("link set cable{number} master br0 up"))
    });
    if laid.is_ok() {
        go.send(())?;
    }
    drop(go);
    let machine = thread.join().map_err(|_| anyhow::anyhow!("a machine's thread panicked"))?;
    laid.and(machine)
}

/// A `/run/bproc.d` of its own for this thread.
fn private_run() -> Result<()> {
    let (none, root, run) = (c"none", c"/", c"/run/bproc.d");
    std::fs::create_dir_all(Path::new("/run/bproc.d"))?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: terminated strings that live over the calls; no data.
    unsafe {
        checked("private mounts", libc::mount(none.as_ptr(), root.as_ptr(), none.as_ptr(), flags, std::ptr::null()))?;
        let tmpfs = c"tmpfs".as_ptr();
        checked("a directory of its own", libc::mount(tmpfs, run.as_ptr(), tmpfs, 0, c"mode=0755".as_ptr().cast()))
    }
}

impl Machine {
    /// Has the command run there.
    pub(super) fn inhabit<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let (net, mounts): (RawFd, RawFd) = (self.net.as_raw_fd(), self.mounts.as_raw_fd());
        let enter = move |fd, kind| {
            // SAFETY: no pointers; the descriptors are those of this machine, which outlives the start of its commands.
            if unsafe { libc::setns(fd, kind) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: setns is safe between fork and exec, and touches no memory.
        unsafe {
            command.pre_exec(move || enter(net, libc::CLONE_NEWNET).and_then(|()| enter(mounts, libc::CLONE_NEWNS)))
        }
    }
}

/// Lets no more than so many megabits a second through the cable of a machine, in either direction; none: the master's.
pub(super) fn narrow(machine: Option<(i32, &Machine)>, megabits: u32) -> Result<()> {
    let tc = |device: &str, there: Option<&Machine>| -> Result<()> {
        let mut command = Command::new("tc");
        let words = format!("qdisc add dev {device} root tbf rate {megabits}mbit burst 256k latency 50ms");
        command.args(words.split(' '));
        if let Some(machine) = there {
            machine.inhabit(&mut command);
        }
        let done = finish(&mut command, b"", LIMIT)?;
        ensure!(done.status == 0, "tc {words}: {}", done.err());
        Ok(())
    };
    match machine {
        None => tc("br0", None),
        Some((number, there)) => tc(&format!("cable{number}"), None).and_then(|()| tc("eth0", Some(there))),
    }
}

/// Cuts the cable of a node, or joins it again.
pub(super) fn cable(number: i32, joined: bool) -> Result<()> {
    ip(&format!("link set cable{number} {}", if joined { "up" } else { "down" }))
}
