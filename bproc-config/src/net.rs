//! Connections on which both ends have proved who they are, for tonic: [`incoming`] for servers, [`dial`] for
//! clients. TLS is terminated here and not in tonic, so that renewed certificates are taken up without a restart.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::machine::Security;
use crate::tls::{Credentials, Peer, TlsError, TlsFiles};

/// Time for connecting, and for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at once.
const MAX_HANDSHAKES: usize = 256;

/// Who is at the other end of a connection; an extension of each request
/// (`request.extensions().get::<PeerInfo>()`).
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Address of the other end.
    pub address: SocketAddr,
    /// Address of this end.
    pub local: SocketAddr,
    /// Whom its certificate names. `None` on a plaintext connection (loop-back only).
    pub peer: Option<Peer>,
}

/// A TCP connection, with TLS or without.
pub struct Conn {
    io: Io,
    info: PeerInfo,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Conn {
    /// Who is at the other end.
    pub fn info(&self) -> &PeerInfo {
        &self.info
    }
}

impl Connected for Conn {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Io::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Io::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Io::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_flush(cx),
            Io::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Io::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// How this machine proves who it is: plaintext, or files that are read again when they change.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

enum Inner {
    Plaintext,
    Tls { files: TlsFiles, cluster: String, loaded: Mutex<(Vec<Option<SystemTime>>, Arc<Credentials>)> },
}

fn stamps(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    [&files.ca, &files.cert, &files.key].map(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok()).into()
}

impl Gate {
    /// Loads the certificates of `cluster`, if any.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn new(security: &Security, cluster: &str) -> Result<Gate, TlsError> {
        Ok(Gate(Arc::new(match security {
            Security::Plaintext => Inner::Plaintext,
            Security::Tls(files) => Inner::Tls {
                files: files.clone(),
                cluster: cluster.into(),
                loaded: Mutex::new((stamps(files), Arc::new(Credentials::load(files, cluster)?))),
            },
        })))
    }

    /// The credentials as the files are now; the former ones while the new are broken. `None`: plaintext.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        let Inner::Tls { files, cluster, loaded } = &*self.0 else {
            return None;
        };
        let mut loaded = loaded.lock().unwrap_or_else(|e| e.into_inner());
        let now = stamps(files);
        if now != loaded.0 {
            match Credentials::load(files, cluster) {
                Ok(fresh) => loaded.1 = Arc::new(fresh),
                Err(e) => tracing::error!("changed certificates are not usable, the former ones stay: {e}"),
            }
            loaded.0 = now;
        }
        Some(loaded.1.clone())
    }
}

/// Connections of a listener whose peers have proved who they are, for `serve_with_incoming`. Handshakes run beside
/// each other and have a time limit; one that fails is logged and gone.
pub fn incoming(listener: TcpListener, gate: Gate) -> ReceiverStream<io::Result<Conn>> {
    let (out, stream) = mpsc::channel(16);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = out.closed() => return,
            };
            match accepted {
                Ok((tcp, address)) => {
                    let (gate, out) = (gate.clone(), out.clone());
                    tokio::spawn(async move {
                        match tokio::time::timeout(HANDSHAKE, accept(tcp, address, &gate)).await {
                            Ok(Ok(conn)) => drop(out.send(Ok(conn)).await),
                            Ok(Err(e)) => tracing::warn!("connection from {address} refused: {e}"),
                            Err(_) => tracing::warn!("connection from {address} refused: no TLS handshake in time"),
                        }
                        drop(place);
                    });
                }
                // Out of descriptors, or a connection that was reset: others may come.
                Err(e) => {
                    tracing::warn!("accept failed: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    ReceiverStream::new(stream)
}

async fn accept(tcp: TcpStream, address: SocketAddr, gate: &Gate) -> io::Result<Conn> {
    tcp.set_nodelay(true)?;
    let local = tcp.local_addr()?;
    let Some(credentials) = gate.credentials() else {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "plaintext is for loop-back only"));
        }
        return Ok(Conn { io: Io::Plain(tcp), info: PeerInfo { address, local, peer: None } });
    };
    let tls = TlsAcceptor::from(credentials.server.clone()).accept(tcp).await?;
    let certs = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = certs.first().and_then(|c| Peer::of_certificate(c, credentials.cluster()));
    let Some(peer) = peer else {
        let why = format!("its certificate names nobody in cluster {}", credentials.cluster());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    };
    Ok(Conn { io: Io::Tls(Box::new(tls.into())), info: PeerInfo { address, local, peer: Some(peer) } })
}

/// Connects to `peer` at `address` (`HOST:PORT`), from the local address `from` if one is said. The other end must
/// prove that it is `peer`.
///
/// # Errors
/// Why there is no connection, with the address.
pub async fn connect(gate: &Gate, address: &str, peer: Peer, from: Option<SocketAddr>) -> io::Result<Conn> {
    let told = |e: io::Error| io::Error::new(e.kind(), format!("{peer} at {address}: {e}"));
    let late = || told(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(HANDSHAKE, connect_once(gate, address, peer, from)).await.map_err(|_| late())?.map_err(told)
}

async fn connect_once(gate: &Gate, address: &str, peer: Peer, from: Option<SocketAddr>) -> io::Result<Conn> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut found = None;
    for target in tokio::net::lookup_host(address).await? {
        match connect_tcp(target, from).await {
            Ok(tcp) => {
                found = Some((tcp, target));
                break;
            }
            Err(e) => last = e,
        }
    }
    let Some((tcp, target)) = found else {
        return Err(last);
    };
    tcp.set_nodelay(true)?;
    let local = tcp.local_addr()?;
    let Some(credentials) = gate.credentials() else {
        if !target.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "plaintext is for loop-back only"));
        }
        return Ok(Conn { io: Io::Plain(tcp), info: PeerInfo { address: target, local, peer: None } });
    };
    let name = credentials.server_name(peer)?;
    let tls = TlsConnector::from(credentials.client.clone()).connect(name, tcp).await?;
    Ok(Conn { io: Io::Tls(Box::new(tls.into())), info: PeerInfo { address: target, local, peer: Some(peer) } })
}

async fn connect_tcp(target: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    if let Some(from) = from.filter(|f| f.is_ipv4() == target.is_ipv4()) {
        socket.bind(from)?;
    }
    socket.connect(target).await
}

/// A tonic channel over one connection made by [`connect`]. `endpoint` brings windows, keep-alive and the like
/// ([`endpoint`]); its address is not used. When the connection is lost, calls fail: dial again.
///
/// # Errors
/// Why there is no connection, with the address.
pub async fn dial(
    gate: &Gate,
    endpoint: Endpoint,
    address: &str,
    peer: Peer,
    from: Option<SocketAddr>,
) -> io::Result<Channel> {
    let mut ready = Some(connect(gate, address, peer, from).await?);
    let connector = tower::service_fn(move |_: Uri| {
        let conn = ready.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
        async move { conn.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(io::Error::other)
}

/// An endpoint for [`dial`], to be adjusted.
pub fn endpoint() -> Endpoint {
    Endpoint::from_static("http://bproc.internal")
}
