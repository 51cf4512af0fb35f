//! Certificates: who may be whom; state file.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bproc_config::certs::{files_of, make_cluster_certs};
use bproc_config::net::{Gate, connect, incoming};
use bproc_config::tls::{Credentials, Peer};
use bproc_config::{Security, paths, state_file};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;

fn gate(dir: &Path, peer: Peer, cluster: &str) -> Gate {
    Gate::new(&Security::Tls(files_of(dir, peer)), cluster).unwrap()
}

/// Who `client` is to a server that is `server`, and who it takes the server for when it asks for `wanted`.
async fn meet(server: Gate, client: Gate, wanted: Peer) -> Option<Option<Peer>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut connections = incoming(listener, server);
    let dialled = tokio::spawn(async move {
        let mut conn = connect(&client, &address, wanted, Some(SocketAddr::from(([127, 0, 0, 9], 0)))).await?;
        conn.write_all(b"x").await?;
        Ok::<_, std::io::Error>(conn)
    });
    let limit = std::time::Duration::from_secs(2);
    let accepted = tokio::time::timeout(limit, connections.next()).await.ok().flatten()?.unwrap();
    dialled.await.unwrap().ok()?;
    assert_eq!(accepted.info().address.ip().to_string(), "127.0.0.9");
    Some(accepted.info().peer)
}

#[tokio::test]
async fn each_is_who_its_certificate_says() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make_cluster_certs(dir, "one", &[3, 4]).unwrap();
    let at = |peer| gate(dir, peer, "one");
    assert_eq!(meet(at(Peer::Master), at(Peer::Node(3)), Peer::Master).await, Some(Some(Peer::Node(3))));
    assert_eq!(meet(at(Peer::Node(3)), at(Peer::Node(4)), Peer::Node(3)).await, Some(Some(Peer::Node(4))));
    // A node is neither the master nor another node.
    assert_eq!(meet(at(Peer::Node(3)), at(Peer::Node(4)), Peer::Master).await, None);
    assert_eq!(meet(at(Peer::Node(3)), at(Peer::Node(4)), Peer::Node(4)).await, None);
    // Plaintext on loop-back is anonymous, and does not get through to TLS.
    let plain = || Gate::new(&Security::Plaintext, "one").unwrap();
    assert_eq!(meet(plain(), plain(), Peer::Master).await, Some(None));
    assert_eq!(meet(at(Peer::Master), plain(), Peer::Master).await, None);
}

#[tokio::test]
async fn another_cluster_is_not_ours() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_cluster_certs(one.path(), "one", &[3]).unwrap();
    make_cluster_certs(two.path(), "one", &[3]).unwrap();
    let ours = gate(one.path(), Peer::Master, "one");
    assert_eq!(meet(ours, gate(two.path(), Peer::Node(3), "one"), Peer::Master).await, None, "another authority");
    assert!(Credentials::load(&files_of(one.path(), Peer::Node(3)), "two").is_err(), "another name");
}

#[tokio::test]
async fn renewed_certificates_are_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    make_cluster_certs(dir.path(), "one", &[3, 4]).unwrap();
    let files = files_of(dir.path(), Peer::Node(3));
    let gate = Gate::new(&Security::Tls(files.clone()), "one").unwrap();
    assert_eq!(gate.credentials().unwrap().me(), Peer::Node(3));
    let other = files_of(dir.path(), Peer::Node(4));
    let stamp = |p: &Path| {
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
        std::fs::File::options().write(true).open(p).unwrap().set_modified(later).unwrap();
    };
    std::fs::write(&files.cert, "half").unwrap();
    stamp(&files.cert);
    assert_eq!(gate.credentials().unwrap().me(), Peer::Node(3), "broken files change nothing");
    std::fs::copy(&other.cert, &files.cert).unwrap();
    std::fs::copy(&other.key, &files.key).unwrap();
    stamp(&files.key);
    assert_eq!(gate.credentials().unwrap().me(), Peer::Node(4));
}

#[test]
fn keys_are_private_and_nodes_can_be_added() {
    let dir = tempfile::tempdir().unwrap();
    make_cluster_certs(dir.path(), "one", &[0]).unwrap();
    let before = std::fs::read(files_of(dir.path(), Peer::Node(0)).cert).unwrap();
    make_cluster_certs(dir.path(), "one", &[0, 1]).unwrap();
    assert_eq!(std::fs::read(files_of(dir.path(), Peer::Node(0)).cert).unwrap(), before);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().ends_with("-key.pem") {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
    }
    assert_eq!(Credentials::load(&files_of(dir.path(), Peer::Node(1)), "one").unwrap().me(), Peer::Node(1));
    assert!(make_cluster_certs(dir.path(), "../x", &[]).is_err());
}

#[test]
fn uris_name_exactly_one() {
    assert_eq!(Peer::from_uri("bproc://one/node/3", "one"), Some(Peer::Node(3)));
    for odd in ["bproc://one/node/03", "bproc://one/node/+3", "bproc://one/node/-1", "bproc://one2/master", "x", ""] {
        assert_eq!(Peer::from_uri(odd, "one"), None, "{odd}");
    }
}

#[test]
fn state_file_as_old_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bproc");
    let nodes = [(true, "10.0.0.1".parse().unwrap()), (false, "10.0.0.2".parse().unwrap())];
    state_file::write(&path, &nodes).unwrap();
    state_file::write(&path, &nodes).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n1 10.0.0.1\n0 10.0.0.2\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(state_file::write(dir.path(), &nodes).is_err(), "a directory is in the way");
    assert_eq!(paths::state_files("default", &paths::run_dir("default")).len(), 2);
    assert_eq!(paths::state_files("default", dir.path()).len(), 1, "a test's cluster leaves /var/run alone");
    assert_eq!(paths::state_files("other", &paths::run_dir("other")).len(), 1);
}
