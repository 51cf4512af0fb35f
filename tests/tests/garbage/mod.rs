//! Nonsense for every socket of a cluster.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_sys::seqpacket::Conn;
use bproc_tests::cluster::Cluster;
use bproc_tests::procs;

/// Connections that say nothing.
pub struct Silent(
    #[expect(dead_code, reason = "they are held, that is all")] Vec<Conn>,
    #[expect(dead_code)] Vec<TcpStream>,
);

/// The local sockets: for users, for ghosts, of the keeper and of the stdio services.
fn local(cluster: &Cluster) -> Vec<PathBuf> {
    let names = ["agent.sock", "ghost.sock", "keeper.sock", "iod-master.sock", "node-0/ghost.sock", "node-0/iod.sock"];
    names.iter().map(|name| cluster.run_dir().join(name)).collect()
}

/// Ports of the cluster: the master's for nodes and for streams, and everybody's for files.
fn ports(cluster: &Cluster) -> Result<Vec<SocketAddrV4>> {
    let below = procs::from_below(&cluster.dir());
    let inodes: Vec<String> = (below.iter())
        .flat_map(|process| fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten())
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").context("listening sockets")?;
    let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Listening ones have state 0A.
    let own =
        words.filter(|w| w.get(3) == Some(&"0A") && w.get(9).is_some_and(|inode| inodes.iter().any(|i| i == inode)));
    let address = |text: &str| {
        let (ip, port) = text.split_once(':')?;
        // The four bytes stand there as the number that they are in memory.
        let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
        Some(SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_str_radix(port, 16).ok()?))
    };
    let ports: Vec<SocketAddrV4> = own.filter_map(|w| address(w[1])).collect();
    ensure!(ports.len() > 2, "the cluster listens on {ports:?}: for nodes, for streams and for files was expected");
    Ok(ports)
}

fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn messages() -> Vec<Vec<u8>> {
    let mut all = vec![vec![0], vec![0xff; 47], vec![0; 48], vec![0xff; 48], vec![0; 8192], vec![0xff; 60_000]];
    all.extend((1..40).map(|seed| noise(seed * 37, (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    all.push(noise(60_000, 77));
    // The numbers of commands and reports with nonsense for arguments, and with lengths that are not theirs.
    for op in (0..32u32).chain(100..112) {
        let mut message = noise(48, u64::from(op) + 1);
        message[..4].copy_from_slice(&op.to_ne_bytes());
        all.push(message.clone());
        message[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        all.push(message.clone());
        message[8..16].copy_from_slice(&(-1i64).to_ne_bytes());
        message[40..48].fill(0);
        all.push(message);
    }
    all.push(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec());
    all.push(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec());
    // A TLS record that promises more than comes.
    all.push([&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &noise(200, 5)].concat());
    all
}

/// Each message on a connection of its own, then all on one, with descriptors that nobody asked for.
pub fn to_all(cluster: &Cluster) -> Result<()> {
    let messages = messages();
    for path in local(cluster) {
        for message in &messages {
            let conn = Conn::connect(&path).with_context(|| format!("{}", path.display()))?;
            // It may have been refused already.
            let _ = conn.send(message, &[]);
        }
        let conn = Conn::connect(&path).with_context(|| format!("{}", path.display()))?;
        conn.set_nonblocking(true)?;
        let null = fs::File::open("/dev/null")?;
        for message in &messages {
            let _ = conn.send(message, &[null.as_fd(); 200]);
        }
    }
    for port in ports(cluster)? {
        for message in &messages {
            let mut stream = TcpStream::connect(port).with_context(|| format!("address {port}"))?;
            stream.set_read_timeout(Some(Duration::from_millis(20)))?;
            // Whether it answers or hangs up is its own affair.
            let _ = stream.write_all(message);
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

/// Many connections to each, and not a word.
pub fn say_nothing(cluster: &Cluster) -> Result<Silent> {
    let mut conns = Vec::new();
    for path in local(cluster).into_iter().filter(|path| !path.ends_with("keeper.sock")) {
        for _ in 0..50 {
            conns.push(Conn::connect(&path).with_context(|| format!("{}", path.display()))?);
        }
    }
    let mut streams = Vec::new();
    for port in ports(cluster)? {
        for _ in 0..50 {
            streams.push(TcpStream::connect(port)?);
        }
    }
    Ok(Silent(conns, streams))
}
