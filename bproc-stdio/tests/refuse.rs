//! What must not work, and what must end cleanly.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use bproc_config::certs;
use bproc_config::tls::Peer;
use bproc_stdio::{AsyncIodClient, IodError, Kind, StreamSpec, Token};
use common::{Cluster, Iod, drink, pipe, pour, within};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};

/// Attaches an output stream at `slave` and returns what the program gets when it writes until it fails.
fn attach_and_fail(slave: &Iod, token: Token, master: &str) -> Option<i32> {
    let (read, write) = pipe();
    let spec = StreamSpec::new(1, Kind::Output);
    slave.client().attach(token, &[(spec, read.as_fd())], master).unwrap();
    drop(read);
    pour(&mut File::from(write), 1, 1 << 20).unwrap_err().raw_os_error()
}

#[test]
fn unknown_token() {
    within(|| {
        let cluster = Cluster::start();
        let error = attach_and_fail(&cluster.slave, Token::random().unwrap(), &cluster.master.address);
        assert_eq!(error, Some(libc::EPIPE));
    });
}

#[test]
fn node_may_be_quicker_than_the_agent() {
    within(|| {
        let cluster = Cluster::start();
        let token = Token::random().unwrap();
        let (node_read, node_write) = pipe();
        let (user_read, user_write) = pipe();
        let spec = StreamSpec::new(1, Kind::Output);
        let address = cluster.master.address.clone();
        cluster.slave.client().attach(token, &[(spec, node_read.as_fd())], &address).unwrap();
        let mut program = File::from(node_write);
        program.write_all(b"early").unwrap();
        drop(program);
        cluster.master.client().expect(token, &[(spec, user_write.as_fd())], Some(3)).unwrap();
        drop(user_write);
        let mut text = String::new();
        File::from(user_read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    });
}

#[test]
fn another_node_does_not_get_the_streams() {
    within(|| {
        let cluster = Cluster::start();
        let files = certs::files_of(cluster.dir.path(), Peer::Node(4));
        let other = Iod::start(cluster.dir.path(), "other", "slave", Some(&files));
        let token = Token::random().unwrap();
        let (_user, write) = pipe();
        let spec = StreamSpec::new(1, Kind::Output);
        cluster.master.client().expect(token, &[(spec, write.as_fd())], Some(3)).unwrap();
        assert_eq!(attach_and_fail(&other, token, &cluster.master.address), Some(libc::EPIPE));
        assert_eq!(cluster.master.client().status().unwrap().unclaimed, 1, "still there for node 3");
    });
}

#[test]
fn certificates_of_another_authority() {
    within(|| {
        let cluster = Cluster::start();
        let foreign = tempfile::tempdir().unwrap();
        certs::make_cluster_certs(foreign.path(), "test", &[3]).unwrap();
        let files = certs::files_of(foreign.path(), Peer::Node(3));
        let slave = Iod::start(cluster.dir.path(), "foreign", "slave", Some(&files));
        let token = Token::random().unwrap();
        let (_user, write) = pipe();
        let spec = StreamSpec::new(1, Kind::Output);
        cluster.master.client().expect(token, &[(spec, write.as_fd())], Some(3)).unwrap();
        assert_eq!(attach_and_fail(&slave, token, &cluster.master.address), Some(libc::EPIPE));
        // No certificate at all.
        let bare = Iod::start(cluster.dir.path(), "bare", "slave", None);
        assert_eq!(attach_and_fail(&bare, token, &cluster.master.address), Some(libc::EPIPE));
        // A node that poses as the master.
        let files = certs::files_of(cluster.dir.path(), Peer::Node(4));
        let poser = Iod::start(cluster.dir.path(), "poser", "master", Some(&files));
        poser.client().expect(token, &[(spec, write.as_fd())], None).unwrap();
        assert_eq!(attach_and_fail(&cluster.slave, token, &poser.address), Some(libc::EPIPE));
        assert_eq!(poser.client().status().unwrap().unclaimed, 1);
    });
}

#[test]
fn death_of_either_service_ends_the_streams() {
    within(|| {
        let mut cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Input, Kind::Output]);
        p.program[1].write_all(b"last words").unwrap();
        assert!(cluster.slave.client().flush(p.token).unwrap());
        cluster.slave.kill();
        let mut text = String::new();
        p.user[1].read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
        assert_eq!(pour(&mut p.user[0], 1, 1 << 20).unwrap_err().raw_os_error(), Some(libc::EPIPE));
        let files = certs::files_of(cluster.dir.path(), Peer::Node(3));
        cluster.slave = Iod::start(cluster.dir.path(), "slave", "slave", Some(&files));
        let mut p = cluster.process(&[Kind::Input, Kind::Output]);
        p.program[1].write_all(b"again").unwrap();
        let mut word = [0; 5];
        p.user[1].read_exact(&mut word).unwrap();
        cluster.master.kill();
        assert_eq!(drink(&mut p.program[0], 1), 0, "end of input");
        assert_eq!(pour(&mut p.program[1], 1, 1 << 20).unwrap_err().raw_os_error(), Some(libc::EPIPE));
        // The node's service serves the master's next one.
        let files = certs::files_of(cluster.dir.path(), Peer::Master);
        cluster.master = Iod::start(cluster.dir.path(), "master", "master", Some(&files));
        let mut p = cluster.process(&[Kind::Output]);
        p.program[0].write_all(b"back").unwrap();
        p.program.clear();
        let mut text = String::new();
        p.user[0].read_to_string(&mut text).unwrap();
        assert_eq!(text, "back");
    });
}

#[test]
fn sever_and_forget_close_the_ends() {
    within(|| {
        let cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Output]);
        p.program[0].write_all(b"x").unwrap();
        let mut byte = [0];
        p.user[0].read_exact(&mut byte).unwrap();
        cluster.master.client().sever(3).unwrap();
        assert_eq!(p.user[0].read(&mut byte).unwrap(), 0);
        let (user, write) = pipe();
        let token = Token::random().unwrap();
        let spec = StreamSpec::new(1, Kind::Output);
        cluster.master.client().expect(token, &[(spec, write.as_fd())], Some(3)).unwrap();
        drop(write);
        cluster.master.client().forget(token).unwrap();
        assert_eq!(File::from(user).read(&mut byte).unwrap(), 0);
    });
}

#[test]
fn garbage_on_both_sockets() {
    within(|| {
        let cluster = Cluster::start();
        let mut pattern = common::Pattern::new(77);
        for round in 0..200 {
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            connect(fd.as_raw_fd(), &UnixAddr::new(&cluster.master.socket).unwrap()).unwrap();
            let mut junk = vec![0; 1 + round * 37];
            pattern.fill(&mut junk);
            let _ = send(fd.as_raw_fd(), &junk, MsgFlags::MSG_NOSIGNAL);
            let mut tcp = std::net::TcpStream::connect(&cluster.master.address).unwrap();
            let _ = tcp.write_all(&junk);
        }
        let mut client = cluster.master.client();
        // More than one stream of one number; too few descriptors; a token of the wrong length has no constructor.
        let (read, _write) = pipe();
        let spec = StreamSpec::new(1, Kind::Output);
        let twice = [(spec, read.as_fd()), (spec, read.as_fd())];
        match client.expect(Token::random().unwrap(), &twice, None) {
            Err(IodError::Refused { errno, .. }) => assert_eq!(errno, libc::EINVAL),
            other => panic!("{other:?}"),
        }
        match client.attach(Token::random().unwrap(), &[(spec, read.as_fd())], "127.0.0.1:1") {
            Err(IodError::Refused { errno, .. }) => assert_eq!(errno, libc::EINVAL),
            other => panic!("{other:?}"),
        }
        assert_eq!(client.status().unwrap().processes, 0);
    });
}

#[test]
fn a_second_service_at_the_same_socket_is_refused() {
    within(|| {
        let cluster = Cluster::start();
        let second = std::process::Command::new(env!("CARGO_BIN_EXE_bproc-iod"))
            .arg("--socket")
            .arg(&cluster.slave.socket)
            .args(["--role", "slave"])
            .output()
            .unwrap();
        assert!(!second.status.success());
        assert!(String::from_utf8_lossy(&second.stderr).contains("another stdio service"), "{second:?}");
        assert_eq!(cluster.slave.client().status().unwrap().pid, cluster.slave.child.id() as i32);
    });
}

#[test]
fn plaintext_beyond_loop_back_is_refused() {
    within(|| {
        let dir = tempfile::tempdir().unwrap();
        let bare = std::process::Command::new(env!("CARGO_BIN_EXE_bproc-iod"))
            .arg("--socket")
            .arg(dir.path().join("s"))
            .args(["--role", "master", "--listen", "0.0.0.0:0"])
            .output()
            .unwrap();
        assert!(!bare.status.success());
        assert!(String::from_utf8_lossy(&bare.stderr).contains("certificates"), "{bare:?}");
    });
}

#[test]
fn asynchronous_client_runs_calls_beside_each_other() {
    within(|| {
        let mut cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Output]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = AsyncIodClient::connect(&cluster.slave.socket).unwrap();
            // More than all windows and pipes hold: the flush cannot end yet.
            let mut out = p.program.remove(0);
            let writer = std::thread::spawn(move || {
                pour(&mut out, 1, 100).unwrap();
            });
            let flush = tokio::spawn({
                let (client, token) = (client.clone(), p.token);
                async move { client.flush(token).await }
            });
            assert_eq!(client.status().await.unwrap().processes, 1);
            let mut user = p.user.remove(0);
            let reader = std::thread::spawn(move || drink(&mut user, 1));
            assert!(flush.await.unwrap().unwrap());
            writer.join().unwrap();
            assert_eq!(reader.join().unwrap(), 100 * common::BLOCK as u64);
            cluster.slave.kill();
            while client.status().await.is_ok() {}
            assert!(client.is_lost());
        });
    });
}
