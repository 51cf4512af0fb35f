//! Connections whose bytes another process carries: pages of a process that moves. Both ends prove here, where the
//! machine's key is, who they are; what is handed on opens this one connection and nothing else. So a program that
//! reads what came from elsewhere never holds the key of the machine.
//!
//! Between two ends on the loop-back interface nothing is encrypted: whoever can listen there is root already. The
//! address that was dialled decides, as both ends see it alike. Everywhere else there is TLS 1.3, or no connection.
//!
//! After the handshake the dialling end says a token, and waits for one byte: then nothing is on its way, and the
//! connection is at rest.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::net::Gate;
use crate::tls::{Credentials, Peer};

/// For connecting, for the handshake, and for the token.
const DIALLING: Duration = Duration::from_secs(10);
/// The same, at the end that is dialled: whoever is silent for so long is dropped.
const GREETING: Duration = DIALLING;
/// Until the one that is waited for has come.
const COMING: Duration = Duration::from_secs(60);
/// Greetings under way; of more the oldest is dropped.
const MOST_GREETINGS: usize = 64;
/// Neither HTTP/2 nor anything else that is spoken in a cluster.
const PROTOCOL: &[u8] = b"bproc-pages/1";
const WELCOME: u8 = b'W';

/// A connection, to be carried on by somebody else.
#[derive(Debug)]
pub struct Handed {
    /// Blocking.
    pub stream: std::net::TcpStream,
    /// What opens and seals its records; `None`: the bytes go as they are.
    pub keys: Option<SessionKeys>,
}

/// How the records of one connection are sealed (TLS 1.3, RFC 8446, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// AES with 128 bits.
    Aes128Gcm,
    /// AES with 256 bits.
    Aes256Gcm,
    /// For processors that do not compute AES.
    Chacha20Poly1305,
}

/// Both directions of one connection.
pub struct SessionKeys {
    /// How.
    pub suite: Suite,
    /// For what goes.
    pub send: TrafficKey,
    /// For what comes.
    pub receive: TrafficKey,
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionKeys({:?})", self.suite)
    }
}

/// One direction.
#[derive(Clone)]
pub struct TrafficKey {
    /// As long as the suite wants it.
    pub key: Vec<u8>,
    /// Mixed with the number of a record.
    pub iv: Vec<u8>,
    /// Number of the next record.
    pub sequence: u64,
}

/// Connects to `peer`, proves who we are, says the token.
///
/// # Errors
/// Why there is no connection.
pub async fn dial(gate: &Gate, address: SocketAddr, peer: Peer, token: &[u8]) -> io::Result<Handed> {
    let connected = async {
        let credentials = secured(gate, address.ip())?;
        introduce(TcpStream::connect(address).await?, credentials, peer, token).await
    };
    tokio::time::timeout(DIALLING, connected).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Waits for `peer` with the token. Others are turned away and hold nobody up.
///
/// # Errors
/// Nobody comes; this machine has no certificates for a connection that needs them.
pub async fn await_peer(listener: TcpListener, gate: &Gate, peer: Peer, token: &[u8]) -> io::Result<Handed> {
    let came = tokio::time::timeout(COMING, accept(listener, gate, peer, token)).await;
    came.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{peer} did not come")))?
}

async fn accept(listener: TcpListener, gate: &Gate, peer: Peer, token: &[u8]) -> io::Result<Handed> {
    let token: Arc<[u8]> = token.into();
    let mut greetings = JoinSet::new();
    let mut places: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, from) = accepted?;
                places.retain(|place| !place.is_finished());
                if places.len() >= MOST_GREETINGS && let Some(oldest) = places.pop_front() {
                    oldest.abort();
                }
                let (gate, token) = (gate.clone(), token.clone());
                places.push_back(greetings.spawn(async move {
                    let greeted = tokio::time::timeout(GREETING, greet(tcp, &gate, peer, &token)).await;
                    (from, greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
                }));
            }
            Some(greeted) = greetings.join_next() => match greeted {
                Ok((_, Ok(handed))) => return Ok(handed),
                Ok((from, Err(error))) => tracing::warn!(%from, %error, "not the one who is waited for"),
                Err(_) => {}
            }
        }
    }
}

async fn greet(tcp: TcpStream, gate: &Gate, peer: Peer, token: &[u8]) -> io::Result<Handed> {
    let credentials = secured(gate, tcp.local_addr()?.ip())?;
    welcome(tcp, credentials, peer, token).await
}

/// The dialling end's part.
async fn introduce(
    mut tcp: TcpStream,
    credentials: Option<Arc<Credentials>>,
    peer: Peer,
    token: &[u8],
) -> io::Result<Handed> {
    tcp.set_nodelay(true)?;
    let Some(credentials) = credentials else {
        say_token(&mut tcp, token).await?;
        return handed(tcp, None);
    };
    let connector = TlsConnector::from(Arc::new(client(&credentials)));
    let mut tls = connector.connect(credentials.server_name(peer)?, tcp).await?;
    say_token(&mut tls, token).await?;
    let (tcp, session) = tls.into_inner();
    handed(tcp, Some(session.dangerous_extract_secrets().map_err(io::Error::other)?))
}

/// The part of the end that is dialled.
async fn welcome(
    mut tcp: TcpStream,
    credentials: Option<Arc<Credentials>>,
    peer: Peer,
    token: &[u8],
) -> io::Result<Handed> {
    tcp.set_nodelay(true)?;
    let Some(credentials) = credentials else {
        hear_token(&mut tcp, token).await?;
        return handed(tcp, None);
    };
    let mut tls = TlsAcceptor::from(Arc::new(server(&credentials))).accept(tcp).await?;
    let session = tls.get_ref().1;
    let who = session.peer_certificates().unwrap_or_default().first();
    if who.and_then(|c| Peer::of_certificate(c, credentials.cluster())) != Some(peer) {
        return Err(refused(format!("it is not {peer}")));
    }
    if session.alpn_protocol() != Some(PROTOCOL) {
        return Err(refused("it wants something else".into()));
    }
    hear_token(&mut tls, token).await?;
    let (tcp, session) = tls.into_inner();
    handed(tcp, Some(session.dangerous_extract_secrets().map_err(io::Error::other)?))
}

/// Says the token, and hears that it was the right one.
async fn say_token(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), token: &[u8]) -> io::Result<()> {
    stream.write_all(token).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        WELCOME => Ok(()),
        _ => Err(refused("it did not know the token".into())),
    }
}

async fn hear_token(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), token: &[u8]) -> io::Result<()> {
    let mut got = vec![0; token.len()];
    stream.read_exact(&mut got).await?;
    // Unguessable and used once: how long the comparison takes tells nothing of use.
    if got.is_empty() || got != token {
        return Err(refused("it said another token".into()));
    }
    stream.write_all(&[WELCOME]).await?;
    stream.flush().await
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// The certificates for a connection to this address; `None`: it needs none.
fn secured(gate: &Gate, address: IpAddr) -> io::Result<Option<Arc<Credentials>>> {
    if address.to_canonical().is_loopback() {
        return Ok(None);
    }
    gate.credentials().map(Some).ok_or_else(|| {
        refused(format!("plaintext is for loop-back only; {address} needs certificates (tls in the configuration)"))
    })
}

/// Without resumption: the other end says nothing that it was not asked for.
fn client(credentials: &Credentials) -> ClientConfig {
    let mut config = ClientConfig::clone(&credentials.client);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_secret_extraction = true;
    config.resumption = Resumption::disabled();
    config
}

fn server(credentials: &Credentials) -> ServerConfig {
    let mut config = ServerConfig::clone(&credentials.server);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_secret_extraction = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn handed(tcp: TcpStream, secrets: Option<ExtractedSecrets>) -> io::Result<Handed> {
    let stream = tcp.into_std()?;
    stream.set_nonblocking(false)?;
    let Some(secrets) = secrets else { return Ok(Handed { stream, keys: None }) };
    let (suite, send) = traffic(secrets.tx)?;
    let (other, receive) = traffic(secrets.rx)?;
    if suite != other {
        return Err(io::Error::other("two suites on one connection"));
    }
    Ok(Handed { stream, keys: Some(SessionKeys { suite, send, receive }) })
}

fn traffic((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<(Suite, TrafficKey)> {
    let (suite, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::Chacha20Poly1305, key, iv),
        _ => return Err(io::Error::other("a suite that nobody here knows")),
    };
    Ok((suite, TrafficKey { key: key.as_ref().to_vec(), iv: iv.as_ref().to_vec(), sequence }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{files_of, make_cluster_certs};
    use std::io::{Read, Write};

    const TOKEN: &[u8] = b"0123456789abcdef";

    struct Ends {
        dialled: io::Result<Handed>,
        accepted: io::Result<Handed>,
    }

    /// Both ends of one connection: who they are, whom they want, and what is said.
    async fn connect(me: [Option<Peer>; 2], want: [Peer; 2], token: &[u8]) -> Ends {
        let dir = tempfile::tempdir().unwrap();
        make_cluster_certs(dir.path(), "here", &[0, 1]).unwrap();
        let load = |peer| Arc::new(Credentials::load(&files_of(dir.path(), peer), "here").unwrap());
        let [a, b] = me.map(|peer| peer.map(load));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialling = async { introduce(TcpStream::connect(address).await.unwrap(), a, want[0], token).await };
        let accepting = async { welcome(listener.accept().await.unwrap().0, b, want[1], TOKEN).await };
        let (dialled, accepted) = tokio::join!(dialling, accepting);
        Ends { dialled, accepted }
    }

    #[tokio::test]
    async fn keys_fit_each_other() {
        let (master, node) = (Peer::Master, Peer::Node(1));
        let ends = connect([Some(master), Some(node)], [node, master], TOKEN).await;
        let (a, b) = (ends.dialled.unwrap().keys.unwrap(), ends.accepted.unwrap().keys.unwrap());
        for (send, receive) in [(&a.send, &b.receive), (&b.send, &a.receive)] {
            assert_eq!((&send.key, &send.iv), (&receive.key, &receive.iv));
            assert_eq!((send.sequence, receive.sequence), (1, 1), "one record each");
        }
        assert!(a.suite == b.suite && a.send.key != a.receive.key);
    }

    #[tokio::test]
    async fn others_are_turned_away() {
        let (master, zero, one) = (Peer::Master, Peer::Node(0), Peer::Node(1));
        let ends = connect([Some(zero), Some(one)], [one, master], TOKEN).await;
        assert!(ends.dialled.is_err() && ends.accepted.is_err(), "another dials");
        let ends = connect([Some(master), Some(zero)], [one, master], TOKEN).await;
        assert!(ends.dialled.is_err() && ends.accepted.is_err(), "another answers");
        let ends = connect([Some(master), Some(one)], [one, master], b"fedcba9876543210").await;
        assert!(ends.dialled.is_err() && ends.accepted.is_err(), "another token");
        let ends = connect([None, Some(one)], [one, master], TOKEN).await;
        assert!(ends.dialled.is_err() && ends.accepted.is_err(), "plaintext");
    }

    #[tokio::test]
    async fn the_silent_hold_nobody_up() {
        let gate = Gate::new(&crate::Security::Plaintext, "here").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent: Vec<_> = (0..MOST_GREETINGS + 8).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let (peer, dialler) = (Peer::Node(0), gate.clone());
        let (came, dialled) =
            tokio::join!(await_peer(listener, &gate, peer, TOKEN), dial(&dialler, address, peer, TOKEN));
        dialled.unwrap().stream.write_all(b"x").unwrap();
        let mut byte = [0];
        came.unwrap().stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(silent);
    }

    #[tokio::test]
    async fn nothing_goes_elsewhere_without_certificates() {
        let gate = Gate::new(&crate::Security::Plaintext, "here").unwrap();
        let error = dial(&gate, "192.0.2.1:1".parse().unwrap(), Peer::Master, TOKEN).await.unwrap_err();
        assert!(error.to_string().contains("loop-back only"), "{error}");
    }
}
