//! Makes the small CA of a cluster and its certificates. What is there already is kept, so that nodes can be added.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::paths;
use crate::tls::{Peer, TlsFiles};

/// Days that a certificate is good for.
const LIFE_DAYS: i64 = 3650;

/// Where the files of one machine lie in the directory of [`make_cluster_certs`].
pub fn files_of(dir: &Path, peer: Peer) -> TlsFiles {
    let stem = match peer {
        Peer::Master => "master".to_owned(),
        Peer::Node(n) => format!("node-{n}"),
    };
    TlsFiles { ca: dir.join("ca.pem"), cert: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}-key.pem")) }
}

/// Makes, in `dir`, a CA (`ca.pem`, `ca-key.pem`), the master's certificate (`master.pem`, `master-key.pem`) and one
/// for each node (`node-N.pem`, `node-N-key.pem`). Keys have mode 0600. Files that are there stay as they are.
/// `ca-key.pem` belongs on no node.
///
/// # Errors
/// Names that cannot be in a certificate, and what the file system has, with the path.
pub fn make_cluster_certs(dir: &Path, cluster: &str, nodes: &[i32]) -> io::Result<()> {
    if !paths::is_cluster_name(cluster) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{cluster:?} is no name of a cluster")));
    }
    if let Some(n) = nodes.iter().find(|n| **n < 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{n} is no number of a node")));
    }
    if !dir.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| told(dir, e))?;
    }
    let issuer = authority(dir, cluster)?;
    for peer in std::iter::once(Peer::Master).chain(nodes.iter().copied().map(Peer::Node)) {
        let files = files_of(dir, peer);
        if files.cert.exists() && files.key.exists() {
            continue;
        }
        let mut params = params(&format!("{peer} of {cluster}"));
        params.subject_alt_names = vec![
            SanType::URI(peer.uri(cluster).try_into().map_err(io::Error::other)?),
            SanType::DnsName(peer.dns_name(cluster).try_into().map_err(io::Error::other)?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let cert = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
        put(&files.key, &key.serialize_pem(), 0o600)?;
        put(&files.cert, &cert.pem(), 0o644)?;
    }
    Ok(())
}

fn authority(dir: &Path, cluster: &str) -> io::Result<Issuer<'static, KeyPair>> {
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    if cert_path.exists() {
        let cert = fs::read_to_string(&cert_path).map_err(|e| told(&cert_path, e))?;
        let key = fs::read_to_string(&key_path).map_err(|e| told(&key_path, e))?;
        let key = KeyPair::from_pem(&key).map_err(|e| told(&key_path, io::Error::other(e)))?;
        return Issuer::from_ca_cert_pem(&cert, key).map_err(|e| told(&cert_path, io::Error::other(e)));
    }
    let mut params = params(&format!("BProc cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let cert = params.self_signed(&key).map_err(io::Error::other)?;
    put(&key_path, &key.serialize_pem(), 0o600)?;
    put(&cert_path, &cert.pem(), 0o644)?;
    Ok(Issuer::new(params, key))
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    // A day back: clocks of fresh nodes are often behind.
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(LIFE_DAYS);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn put(path: &PathBuf, text: &str, mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| told(path, e))?;
    file.write_all(text.as_bytes()).map_err(|e| told(path, e))
}

fn told(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
