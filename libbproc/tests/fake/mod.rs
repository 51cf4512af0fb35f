//! A stand-in for the agent: nodes 0 and 1 are up, 5 is down. What it is asked to run it lets the caller run in its
//! own place, after a byte into each descriptor that came. Who wants to move to node 1 hears that he is there;
//! who waits for its reboot hears of it when somebody has it reboot without waiting.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use bproc::frame::{self, Packet};
use bproc_proto::Failure;
use bproc_proto::client::{self as wire, change_libraries::How, reply::Body, request};
use bproc_sys::seqpacket::{Conn, Listener};
use prost::Message;

/// A directory with the agent's socket and a home; gone when dropped.
pub(crate) struct Fake {
    pub(crate) dir: PathBuf,
}

/// Connections that are to be answered later.
#[derive(Default)]
struct Waiting {
    /// Of those who watch.
    watchers: Mutex<Vec<Conn>>,
    /// Of those who wait for the reboot of node 1.
    reboots: Mutex<Vec<Conn>>,
    /// One more.
    came: Condvar,
}

impl Fake {
    /// Starts the agent on threads of the test that has this name.
    pub(crate) fn start(name: &str) -> Fake {
        let dir = std::env::temp_dir().join(format!("libbproc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(".bprocnodes"), "1 0\n").unwrap();
        let listener = Listener::bind(&dir.join("agent.sock"), 0o600).unwrap();
        let waiting = Arc::<Waiting>::default();
        std::thread::spawn(move || {
            loop {
                let mut set = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry that lives through the call.
                assert!(unsafe { libc::poll(&raw mut set, 1, -1) } == 1);
                if let Ok(conn) = listener.accept() {
                    let waiting = waiting.clone();
                    std::thread::spawn(move || serve(conn, &waiting));
                }
            }
        });
        Fake { dir }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn serve(conn: Conn, waiting: &Waiting) {
    conn.set_nonblocking(false).unwrap();
    let mut buffer = vec![0; frame::PACKET_MAX];
    while let Ok((payload, fds)) = frame::recv(&conn, &mut buffer) {
        let request = wire::Request::decode(payload.as_slice()).unwrap().body.unwrap();
        if let request::Body::Watch(_) = request {
            send(&conn, Body::Done(wire::Done::default()));
            waiting.watchers.lock().unwrap().push(conn);
            return;
        }
        match &request {
            request::Body::Power(wire::Power { number: 1, wait: true, .. }) => {
                waiting.reboots.lock().unwrap().push(conn);
                waiting.came.notify_all();
                return;
            }
            request::Body::Power(wire::Power { number: 1, .. }) => {
                let done = |conn: Conn| send(&conn, Body::Done(wire::Done::default()));
                waiting.reboots.lock().unwrap().drain(..).for_each(done);
            }
            request::Body::GetAttribute(get) if get.name == "bproc.waiting" => {
                drop(waiting.came.wait_while(waiting.reboots.lock().unwrap(), |all| all.is_empty()).unwrap());
            }
            _ => {}
        }
        if let request::Body::SetNode(wire::SetNode { state: Some(state), .. }) = &request
            && state == "change"
        {
            waiting
                .watchers
                .lock()
                .unwrap()
                .iter()
                .for_each(|conn| send(conn, Body::Changed(wire::Changed::default())));
        }
        for fd in fds {
            let _ = File::from(fd).write_all(b"!");
        }
        send(&conn, answer(request));
    }
}

fn send(conn: &Conn, body: Body) {
    let reply = wire::Reply { body: Some(body) };
    let _ = Packet::new(&reply.encode_to_vec()).unwrap().send(conn, &[]);
}

fn fail(number: i32) -> Body {
    Body::Failure(Failure { number, message: "no".into() })
}

fn nodes() -> Vec<wire::Node> {
    let node = |number: i32, state: &str| wire::Node {
        number,
        state: state.into(),
        mode: if state == "up" { 0o111 } else { 0 },
        user: 10,
        group: 20,
        address: format!("127.0.0.{}", number + 1),
        ..Default::default()
    };
    // Not in their order.
    vec![node(5, "down"), node(0, "up"), node(1, "up")]
}

fn answer(request: request::Body) -> Body {
    use request::Body::*;
    let done = Body::Done(wire::Done::default());
    match request {
        Nodes(_) => Body::Nodes(wire::NodeList { nodes: nodes() }),
        Processes(_) => {
            let one = |pid, node| wire::ProcessOnNode { pid, node, comm: "x".into(), state: "R".into() };
            Body::Processes(wire::ProcessList { processes: vec![one(42, 1), one(1343000, 0)] })
        }
        Whoami(_) => {
            Body::Self_(wire::Self_ { node: -1, version: "x".into(), master_address: b"127.0.0.100".to_vec() })
        }
        SetNode(wire::SetNode { mode: Some(0o111) | None, number: 0, .. }) => done,
        SetAttribute(set) if set.value.as_deref() == Some(b"blue") => done,
        GetAttribute(get) if get.name == "bproc.colour" => Body::Attribute(wire::Attribute { value: b"blue".to_vec() }),
        GetAttribute(get) if get.name == "bproc.waiting" => Body::Attribute(wire::Attribute { value: b"yes".to_vec() }),
        GetAttribute(_) => fail(libc::ENODATA),
        Libraries(_) => Body::Libraries(wire::LibraryList { paths: vec![b"/lib/a".to_vec(), b"/lib/b".to_vec()] }),
        ChangeLibraries(change) if change.how() == How::Delete => fail(libc::ENOENT),
        ChangeLibraries(_) => done,
        Power(wire::Power { number: 0 | 1, .. }) => done,
        Chroot(chroot) if chroot.path == b"/nfs" => done,
        Reconnect(to) if to.remote == "10.0.0.1:2223" && to.local.is_empty() => done,
        Move(wire::Move { node: 1, .. }) => Body::Moved(wire::Moved { arrived: true, ..Default::default() }),
        Spawn(spawn) => match (spawn.node, spawn.spec) {
            (5, _) => fail(301),
            (0 | 1, Some(spec)) if std::path::Path::new(std::str::from_utf8(&spec.path).unwrap()).exists() => {
                Body::Spawned(wire::Spawned { ghost_path: spec.path, ghost_environment: spec.envp })
            }
            (0 | 1, Some(_)) => fail(libc::ENOENT),
            _ => fail(300),
        },
        _ => fail(libc::EPERM),
    }
}
