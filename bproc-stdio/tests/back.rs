//! Streams that lead back to the node that a process has left.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bproc_stdio::{AsyncIodClient, IodError, Kind, StreamName, StreamSpec, Token};
use common::{Cluster, pipe, within};

/// What the process writes to from now on, and what reads where it wrote before.
fn leave(cluster: &Cluster) -> (Token, File, File) {
    let (stays, wrote) = pipe();
    let (node, process) = pipe();
    let (back, there) = (Token::random().unwrap(), Token::random().unwrap());
    let spec = StreamSpec::new(1, Kind::Output);
    let asked = async {
        let (master, slave) =
            (AsyncIodClient::connect(&cluster.master.socket)?, AsyncIodClient::connect(&cluster.slave.socket)?);
        slave.attach_back(back, &[(spec, wrote.as_fd())], &cluster.master.address).await?;
        master.back(back, vec![spec]).await?;
        let name = StreamName { token: back.as_bytes().to_vec(), fd: 1, kind: Kind::Output as i32 };
        master.share(vec![name], there, vec![7]).await?;
        let spec = StreamSpec::new(7, Kind::Output);
        slave.attach(there, &[(spec, node.as_fd())], &cluster.master.address).await?.await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { asked.await.map_err(|e: IodError| e.to_string()) }).unwrap();
    (there, process.into(), stays.into())
}

#[test]
fn a_flush_waits_until_it_is_there() {
    within(|| {
        let cluster = Cluster::start();
        let (token, mut process, mut stays) = leave(&cluster);
        for round in 0..200u32 {
            process.write_all(&round.to_ne_bytes()).unwrap();
            assert!(cluster.slave.client().flush(token).unwrap());
            let mut waiting: libc::c_int = 0;
            // SAFETY: FIONREAD writes one int.
            assert_eq!(unsafe { libc::ioctl(stays.as_raw_fd(), libc::FIONREAD, &mut waiting) }, 0);
            assert_eq!(waiting, 4, "round {round}");
            let mut word = [0; 4];
            stays.read_exact(&mut word).unwrap();
            assert_eq!(u32::from_ne_bytes(word), round);
        }
        drop(process);
        assert_eq!(stays.read(&mut [0]).unwrap(), 0);
    });
}

/// The pipe of a process may be at its end before anybody asks whether all is there.
#[test]
fn a_flush_after_the_end_waits_as_well() {
    within(|| {
        let cluster = Cluster::start();
        for round in 0..5 {
            let (token, mut process, mut stays) = leave(&cluster);
            // More than there is room for where it goes.
            let all: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
            process.write_all(&all).unwrap();
            drop(process);
            // The end has come to the master, or comes while it is asked.
            std::thread::sleep(Duration::from_millis(100 * round));
            let (mut client, (done, told)) = (cluster.slave.client(), channel());
            let asked = std::thread::spawn(move || {
                assert!(client.flush(token).unwrap());
                done.send(()).unwrap();
            });
            assert_eq!(told.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout), "round {round}");
            let mut came = Vec::new();
            stays.read_to_end(&mut came).unwrap();
            assert_eq!(came, all);
            asked.join().unwrap();
            told.recv().unwrap();
        }
        // Nor is anything left of them.
        let left = || [&cluster.master, &cluster.slave].map(|iod| iod.client().status().unwrap().processes);
        while left() != [0, 0] {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn who_writes_learns_that_the_reader_there_has_closed() {
    within(|| {
        let cluster = Cluster::start();
        let (_, mut process, stays) = leave(&cluster);
        drop(stays);
        let error = loop {
            if let Err(error) = process.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    });
}
