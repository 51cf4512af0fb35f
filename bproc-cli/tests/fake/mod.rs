//! A stand-in for the agent: it knows three nodes (2 is down) and runs what is spawned right here, with the
//! descriptors that came. The "ghost" is the program once more, without descriptors: a script that does not depend
//! on its input ends the same way in both.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bproc::frame::{self, Packet};
use bproc_proto::client::{self as wire, reply, request};
use bproc_proto::{Failure, SpawnSpec, stream::Kind};
use bproc_sys::seqpacket::{Conn, Listener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;

/// A directory with the agent's socket; gone when dropped.
pub(crate) struct Fake {
    pub(crate) dir: PathBuf,
}

impl Fake {
    /// Starts the agent on threads of the test.
    pub(crate) fn start(name: &str) -> Fake {
        let dir = std::env::temp_dir().join(format!("bproc-fake-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let listener = Listener::bind(&dir.join("agent.sock"), 0o600).unwrap();
        std::thread::spawn(move || {
            loop {
                let mut set = [PollFd::new(std::os::fd::AsFd::as_fd(&listener), PollFlags::POLLIN)];
                poll(&mut set, PollTimeout::NONE).unwrap();
                if let Ok(conn) = listener.accept() {
                    std::thread::spawn(move || serve(&conn));
                }
            }
        });
        Fake { dir }
    }

    /// A tool that talks to this agent, ended with the test, after a minute at the latest.
    pub(crate) fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/timeout");
        command.args(["--foreground", "--preserve-status", "60", env!("CARGO_BIN_EXE_bproc")]).args(args);
        command.env("BPROC_SOCKET", self.dir.join("agent.sock"));
        die_with_test(&mut command);
        command
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Has the kernel end the process with this test, and gives it as much room for arguments as the kernel ever does.
pub(crate) fn die_with_test(command: &mut Command) {
    // SAFETY: both calls are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let limit = libc::rlimit { rlim_cur: 60 << 20, rlim_max: libc::RLIM_INFINITY };
            libc::setrlimit(libc::RLIMIT_STACK, &raw const limit);
            Ok(())
        });
    }
}

fn serve(conn: &Conn) {
    conn.set_nonblocking(false).unwrap();
    let mut buffer = vec![0; frame::PACKET_MAX];
    let mut programs = Vec::new();
    while let Ok((payload, fds)) = frame::recv(conn, &mut buffer) {
        let body = match wire::Request::decode(payload.as_slice()).unwrap().body.unwrap() {
            request::Body::Nodes(_) => reply::Body::Nodes(wire::NodeList { nodes: nodes() }),
            request::Body::Processes(_) => {
                let one = |pid, node| wire::ProcessOnNode { pid, node, comm: "x".into(), state: "R".into() };
                reply::Body::Processes(wire::ProcessList { processes: vec![one(42, 1), one(1343000, 0)] })
            }
            request::Body::SetNode(change) if change.number == 0 => reply::Body::Done(wire::Done::default()),
            request::Body::Spawn(spawn) => run(spawn, fds, &mut programs),
            _ => fail(libc::EPERM, "only root may do this"),
        };
        let reply = wire::Reply { body: Some(body) };
        if Packet::new(&reply.encode_to_vec()).unwrap().send(conn, &[]).is_err() {
            break;
        }
    }
    // The kernel takes the end of this thread for the end of their parent.
    for mut program in programs {
        program.wait().unwrap();
    }
}

fn nodes() -> Vec<wire::Node> {
    let node = |number: i32, state: &str| wire::Node {
        number,
        state: state.into(),
        mode: if state == "up" { 0o111 } else { 0 },
        address: format!("127.0.0.{}", number + 1),
        ..Default::default()
    };
    vec![node(0, "up"), node(1, "up"), node(2, "down")]
}

fn fail(number: i32, message: &str) -> reply::Body {
    reply::Body::Failure(Failure { number, message: message.into() })
}

fn run(spawn: wire::Spawn, fds: Vec<OwnedFd>, programs: &mut Vec<Child>) -> reply::Body {
    if spawn.node > 2 {
        return fail(300, "there is no such node");
    }
    if spawn.node == 2 {
        return fail(301, "node 2 has not been seen");
    }
    assert!(spawn.die_with_parent);
    let spec: SpawnSpec = spawn.spec.unwrap();
    let os = |bytes: &Vec<u8>| std::ffi::OsString::from_vec(bytes.clone());
    let mut command = Command::new(os(&spec.path));
    command.arg0(os(&spec.argv[0])).args(spec.argv[1..].iter().map(os)).env_clear();
    for entry in &spec.envp {
        let at = entry.iter().position(|b| *b == b'=').unwrap();
        command.env(os(&entry[..at].to_vec()), os(&entry[at + 1..].to_vec()));
    }
    command.env("NODE", spawn.node.to_string());
    let mut fds = fds.into_iter();
    for stream in &spec.streams {
        let to = match stream.kind() {
            Kind::Forward => Stdio::from(fds.next().unwrap()),
            Kind::File => {
                let path = PathBuf::from(os(&stream.path));
                let file =
                    std::fs::File::options().read(stream.input).write(!stream.input).create(!stream.input).open(path);
                Stdio::from(file.unwrap())
            }
            _ => Stdio::null(),
        };
        match stream.fd {
            0 => command.stdin(to),
            1 => command.stdout(to),
            _ => command.stderr(to),
        };
    }
    // Here no connection of a stream is lost.
    assert_eq!(fds.next().is_some(), spawn.report);
    assert!(fds.next().is_none());
    die_with_test(&mut command);
    match command.spawn() {
        Ok(child) => {
            programs.push(child);
            let path = if spec.argv.iter().any(|a| a == b"no-ghost") { b"/no/ghost".to_vec() } else { spec.path };
            reply::Body::Spawned(wire::Spawned { ghost_path: path, ghost_environment: spec.envp })
        }
        Err(error) => {
            fail(error.raw_os_error().unwrap(), &format!("{}: {error}", Path::new(&os(&spec.path)).display()))
        }
    }
}
