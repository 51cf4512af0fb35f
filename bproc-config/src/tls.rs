//! Who is at the other end: certificates of one small CA that name a role in a cluster.
//!
//! A certificate carries the URI `bproc://CLUSTER/master` or `bproc://CLUSTER/node/N`, and a DNS name made from the
//! same, which is what a client asks for when it dials. So a node can be neither the master nor another node.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::rustls;

/// Largest certificate or key file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The files that a machine proves itself with, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the CA.
    pub ca: PathBuf,
    /// Certificate of this machine.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Someone of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The master.
    Master,
    /// The node with this number.
    Node(i32),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Master => f.write_str("master"),
            Peer::Node(n) => write!(f, "node {n}"),
        }
    }
}

impl Peer {
    /// The URI in the certificate.
    pub fn uri(self, cluster: &str) -> String {
        match self {
            Peer::Master => format!("bproc://{cluster}/master"),
            Peer::Node(n) => format!("bproc://{cluster}/node/{n}"),
        }
    }

    /// The DNS name in the certificate. It is resolved nowhere.
    pub fn dns_name(self, cluster: &str) -> String {
        match self {
            Peer::Master => format!("master.{cluster}.bproc.internal"),
            Peer::Node(n) => format!("node-{n}.{cluster}.bproc.internal"),
        }
    }

    /// Who a URI names; `None` for another cluster's or anything else.
    pub fn from_uri(uri: &str, cluster: &str) -> Option<Peer> {
        let role = uri.strip_prefix("bproc://")?.strip_prefix(cluster)?.strip_prefix('/')?;
        if role == "master" {
            return Some(Peer::Master);
        }
        let digits = role.strip_prefix("node/")?;
        let number: i32 = digits.parse().ok()?;
        (number >= 0 && number.to_string() == digits).then_some(Peer::Node(number))
    }

    /// Whom a certificate names. The caller has verified it.
    pub fn of_certificate(cert: &CertificateDer<'_>, cluster: &str) -> Option<Peer> {
        let cert = webpki::EndEntityCert::try_from(cert).ok()?;
        let mut peers = cert.valid_uri_names().filter_map(|uri| Peer::from_uri(uri, cluster));
        let peer = peers.next()?;
        // A certificate that names two would be whichever is looked at first.
        peers.next().is_none().then_some(peer)
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no such thing.
    #[error("{what} {}: {reason}", path.display())]
    File {
        /// What it should be.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key do not fit each other, or the CA.
    #[error("certificate {} with key {}: {reason}", cert.display(), key.display())]
    Pair {
        /// Certificate file.
        cert: PathBuf,
        /// Key file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificate names nobody in this cluster.
    #[error(
        "certificate {} names nobody in cluster {cluster}: it needs the URI bproc://{cluster}/master or \
         bproc://{cluster}/node/N",
        path.display()
    )]
    Nobody {
        /// Certificate file.
        path: PathBuf,
        /// Cluster.
        cluster: String,
    },
}

/// Loaded certificates and key of this machine.
pub struct Credentials {
    cluster: String,
    me: Peer,
    /// As a server that demands a certificate of its client; ALPN h2.
    pub server: Arc<ServerConfig>,
    /// As a client that shows its certificate; ALPN h2.
    pub client: Arc<ClientConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} of {})", self.me, self.cluster)
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let fail = |reason: String| TlsError::File { what, path: path.into(), reason };
    let file = std::fs::File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > MAX_FILE { Err(fail(format!("is larger than {MAX_FILE} bytes"))) } else { Ok(bytes) }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File { what, path: path.into(), reason };
    let found = CertificateDer::pem_slice_iter(&read(what, path)?).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(fail("holds no PEM certificate".into())),
        Ok(found) => Ok(found),
        Err(e) => Err(fail(format!("is not PEM: {e}"))),
    }
}

impl Credentials {
    /// Loads the files and sees that they fit each other and the cluster.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(files: &TlsFiles, cluster: &str) -> Result<Credentials, TlsError> {
        let pair = |reason: String| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), reason };
        let mut roots = RootCertStore::empty();
        for ca in certificates("CA certificate", &files.ca)? {
            roots.add(ca).map_err(|e| TlsError::File {
                what: "CA certificate",
                path: files.ca.clone(),
                reason: e.to_string(),
            })?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("certificate", &files.cert)?;
        let me = Peer::of_certificate(&chain[0], cluster)
            .ok_or_else(|| TlsError::Nobody { path: files.cert.clone(), cluster: cluster.into() })?;
        let key = PrivateKeyDer::from_pem_slice(&read("private key", &files.key)?).map_err(|e| TlsError::File {
            what: "private key",
            path: files.key.clone(),
            reason: format!("is not a PEM key: {e}"),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| pair(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| pair(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| pair(e.to_string()))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| pair(e.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| pair(e.to_string()))?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Credentials { cluster: cluster.into(), me, server: Arc::new(server), client: Arc::new(client) })
    }

    /// Who this machine's certificate says that it is.
    pub fn me(&self) -> Peer {
        self.me
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What to ask a server for, so that it is `peer` and no one else.
    pub(crate) fn server_name(&self, peer: Peer) -> std::io::Result<ServerName<'static>> {
        ServerName::try_from(peer.dns_name(&self.cluster)).map_err(std::io::Error::other)
    }
}
