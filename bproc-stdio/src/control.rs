//! The local socket: requests of the agents.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::end::Held;
use crate::master::{End, HandedOn, Master, Report};
use crate::packet;
use crate::pump::Counters;
use crate::slave::Slave;
use crate::turn::{is_channel, write_later};
use crate::watched::{sent, watch};
use crate::wire::{Body, Kind, MAX_PACKET, MAX_STREAMS, Reply, Request, Settle, Status, StreamName, StreamSpec, Token};

/// What the requests are for.
pub(crate) enum Side {
    Master(Arc<Master>),
    Slave(Arc<Slave>),
}

/// What a connection needs to answer.
pub(crate) struct Control {
    pub(crate) side: Side,
    pub(crate) counters: Arc<Counters>,
    /// Address that the master's service listens on.
    pub(crate) listening: String,
    pub(crate) cluster: String,
    /// Asked to end.
    pub(crate) quit: mpsc::Sender<()>,
}

struct Refusal(i32, String);

fn refuse(errno: i32, why: impl Into<String>) -> Refusal {
    Refusal(errno, why.into())
}

/// Accepts agents until the service ends.
pub(crate) async fn serve(listener: OwnedFd, control: Arc<Control>) -> io::Result<()> {
    let listener = watch(listener, Interest::READABLE)?;
    loop {
        let fd = match listener.async_io(Interest::READABLE, packet::accept).await {
            Ok(fd) => fd,
            Err(e) => {
                tracing::warn!("local connection not accepted: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        match packet::peer_uid(&fd) {
            Ok(uid) if uid == 0 || uid == nix::unistd::geteuid().as_raw() => {
                let control = control.clone();
                tokio::spawn(async move {
                    if let Err(e) = connection(fd, control).await {
                        tracing::warn!("local connection closed: {e}");
                    }
                });
            }
            Ok(uid) => tracing::warn!("uid {uid} tried to speak to the stdio service: refused"),
            Err(e) => tracing::warn!("local connection without credentials: {e}"),
        }
    }
}

/// Inputs that an agent called back and has not settled: an agent that goes leaves the processes where they were.
struct Recalled(Arc<Control>, HashSet<(Token, i32)>);

impl Drop for Recalled {
    fn drop(&mut self) {
        if let Side::Slave(slave) = &self.0.side {
            self.1.drain().for_each(|(token, fd)| slave.settle(token, fd, false));
        }
    }
}

async fn connection(fd: OwnedFd, control: Arc<Control>) -> io::Result<()> {
    let fd = Arc::new(watch(fd, Interest::READABLE)?);
    let mut recalled = Recalled(control.clone(), HashSet::new());
    let mut buffer = vec![0; MAX_PACKET];
    let mut was_reset = false;
    loop {
        let got = match fd.async_io(Interest::READABLE, |fd| packet::receive(fd, &mut buffer)).await {
            // The agent ended with answers unread. The kernel says so first, and only then gives what was asked before.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !was_reset => {
                was_reset = true;
                continue;
            }
            got => got?,
        };
        let Some((len, fds)) = got else { return Ok(()) };
        let request = Request::decode(&buffer[..len]).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if let Some(Body::Flush(token)) = &request.body {
            let reply = flush(&control, token, request.tag);
            let fd = fd.clone();
            tokio::spawn(async move {
                // An agent that is gone asks again after its restart.
                let _ = answer(&fd, reply.await, &[]).await;
            });
            continue;
        }
        if let (Some(Body::There(inode)), Side::Master(master)) = (&request.body, &control.side) {
            let (there, fd, tag) = (master.leading.is_there(*inode), fd.clone(), request.tag);
            tokio::spawn(async move {
                there.await;
                let _ = answer(&fd, Reply { tag, ..Reply::default() }, &[]).await;
            });
            continue;
        }
        if let (Some(Body::Recall(name)), Side::Slave(slave)) = (&request.body, &control.side)
            && let Some(token) = Token::from_bytes(&name.token)
        {
            recalled.1.insert((token, name.fd));
            let (called, fd, tag) = (slave.recall(token, name.fd), fd.clone(), request.tag);
            tokio::spawn(async move {
                let reply = match called.await {
                    true => Reply { tag, ..Reply::default() },
                    false => Reply { tag, errno: libc::EIO, message: "the stream is lost".into(), ..Reply::default() },
                };
                // An agent that is gone has left it as it was.
                let _ = answer(&fd, reply, &[]).await;
            });
            continue;
        }
        if let Some(Body::Settle(Settle { stream: Some(name), .. })) = &request.body
            && let Some(token) = Token::from_bytes(&name.token)
        {
            recalled.1.remove(&(token, name.fd));
        }
        let tag = request.tag;
        let quit = matches!(request.body, Some(Body::Quit(_)));
        let (reply, fds) = match control.handle(request.body, fds) {
            Ok((reply, fds)) => (Reply { tag, ..reply }, fds),
            Err(Refusal(errno, message)) => (Reply { tag, errno, message, ..Reply::default() }, Vec::new()),
        };
        match answer(&fd, reply, &fds).await {
            // What it asked for before its end is done all the same.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            done => done?,
        }
        if quit {
            let _ = control.quit.send(()).await;
        }
    }
}

async fn answer(fd: &AsyncFd<OwnedFd>, reply: Reply, fds: &[OwnedFd]) -> io::Result<()> {
    let bytes = reply.encode_to_vec();
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    sent(fd.get_ref(), |fd| packet::send(fd, &bytes, &raw)).await
}

fn flush(control: &Control, token: &[u8], tag: u64) -> impl Future<Output = Reply> + Send + 'static {
    let slave = match &control.side {
        Side::Slave(slave) => Some(slave.clone()),
        Side::Master(_) => None,
    };
    let token = Token::from_bytes(token);
    async move {
        match (slave, token) {
            (Some(slave), Some(token)) => Reply { tag, complete: slave.flush(token).await, ..Reply::default() },
            _ => Reply {
                tag,
                errno: libc::EINVAL,
                message: "FLUSH is for a slave's service and a token of 16 bytes".into(),
                ..Reply::default()
            },
        }
    }
}

fn token(bytes: &[u8]) -> Result<Token, Refusal> {
    Token::from_bytes(bytes).ok_or_else(|| refuse(libc::EINVAL, format!("a token has 16 bytes, not {}", bytes.len())))
}

fn pair(specs: Vec<StreamSpec>, fds: Vec<OwnedFd>) -> Result<Vec<(StreamSpec, OwnedFd)>, Refusal> {
    if specs.len() != fds.len() {
        return Err(refuse(libc::EINVAL, format!("{} streams with {} descriptors", specs.len(), fds.len())));
    }
    check(&specs)?;
    Ok(specs.into_iter().zip(fds).collect())
}

fn check(specs: &[StreamSpec]) -> Result<(), Refusal> {
    if specs.len() > MAX_STREAMS {
        return Err(refuse(libc::EINVAL, format!("{} streams: {MAX_STREAMS} at most", specs.len())));
    }
    let mut seen = HashSet::new();
    for spec in specs {
        if !seen.insert(spec.fd) || crate::wire::Kind::try_from(spec.kind).is_err() {
            return Err(refuse(libc::EINVAL, format!("stream {}: given twice, or of no known kind", spec.fd)));
        }
    }
    Ok(())
}

fn names(streams: &[StreamName]) -> Result<Vec<(Token, i32, Kind)>, Refusal> {
    if streams.len() > MAX_STREAMS {
        return Err(refuse(libc::EINVAL, format!("{} streams: {MAX_STREAMS} at most", streams.len())));
    }
    let one = |s: &StreamName| match s.kind() {
        kind @ (Kind::Input | Kind::Output) => Ok((token(&s.token)?, s.fd, kind)),
        _ => Err(refuse(libc::EINVAL, "a terminal stays on its node")),
    };
    streams.iter().map(one).collect()
}

fn broken(error: io::Error) -> Refusal {
    refuse(error.raw_os_error().unwrap_or(libc::EIO), format!("duplicates of the descriptors: {error}"))
}

impl Control {
    fn handle(&self, body: Option<Body>, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        if let (Some(Body::Take(ask)), Side::Master(master)) = (&body, &self.side) {
            let (names, successor) = (names(&ask.streams)?, token(&ask.token)?);
            let ends = master.hand_on(&names, successor).map_err(broken)?;
            let waits = ends.iter().any(|end| end.stalls);
            let last: Vec<_> = ends.iter().filter_map(|end| master.leading.number(&end.fd)).collect();
            // When one waits, all do that can: the others need not be through when the process goes.
            let home = |(end, (_, _, kind)): (HandedOn, &(Token, i32, Kind))| match (kind, end.behind) {
                (Kind::Input, _) => crate::turn::come_home(end.turn, end.fd),
                (_, Some(behind)) if waits && is_channel(&end.fd) => write_later(end.fd, behind, &master.leading),
                _ => Ok(end.fd),
            };
            let fds: Vec<_> = ends.into_iter().zip(&names).map(home).collect::<io::Result<_>>().map_err(broken)?;
            // What has left the first is in the last.
            let first = fds.iter().filter_map(|fd| master.leading.number(fd)).filter(|number| !last.contains(number));
            let leading = first.chain(last.iter().copied()).collect();
            return Ok((Reply { waits, leading, ..Reply::default() }, fds));
        }
        self.handle_plain(body, fds).map(|reply| (reply, Vec::new()))
    }

    fn handle_plain(&self, body: Option<Body>, fds: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        let done = Ok(Reply::default());
        let in_use = || refuse(libc::EEXIST, "the token is in use");
        match (body, &self.side) {
            (Some(Body::Expect(ask)), Side::Master(master)) => {
                let mut streams = pair(ask.streams, fds)?;
                let report = streams.pop_if(|(spec, _)| spec.kind() == Kind::Report);
                if streams.iter().any(|(spec, _)| spec.kind() == Kind::Report) {
                    return Err(refuse(libc::EINVAL, "one report at most, and it is the last"));
                }
                let report = report.map(|(_, fd)| Report::new(fd, ask.owner));
                // Who has read it here until now may leave others behind who do.
                let end = |(spec, fd)| End { on_demand: ask.held, ..End::new(spec, fd) };
                let streams = streams.into_iter().map(end).collect();
                let expected = master.expect(token(&ask.token)?, streams, ask.node, ask.owner, ask.held, report);
                if expected { done } else { Err(in_use()) }
            }
            (Some(Body::Share(ask)), Side::Master(master)) => {
                let (names, successor) = (names(&ask.from)?, token(&ask.token)?);
                let specs = ask.fds.iter().zip(&names).map(|(fd, (_, _, kind))| StreamSpec::new(*fd, *kind)).collect();
                let (mut fds, mut rest) = (Vec::new(), Vec::new());
                for HandedOn { fd, turn, behind, .. } in master.hand_on(&names, successor).map_err(broken)? {
                    fds.push(fd);
                    rest.push((turn, behind));
                }
                let streams = pair(specs, fds)?.into_iter().zip(rest);
                let streams = streams.map(|((spec, fd), (turn, behind))| End {
                    turn,
                    behind,
                    on_demand: true,
                    ..End::new(spec, fd)
                });
                let expected = master.expect(successor, streams.collect(), None, 0, false, master.report_of(&names));
                if expected { done } else { Err(in_use()) }
            }
            (Some(Body::Back(ask)), Side::Master(master)) => {
                check(&ask.streams)?;
                if master.back(token(&ask.token)?, &ask.streams).map_err(broken)? { done } else { Err(in_use()) }
            }
            (Some(Body::Attach(ask)), Side::Slave(slave)) => {
                let streams = pair(ask.streams, fds)?;
                if streams.iter().any(|(spec, _)| spec.kind() == Kind::Report) {
                    return Err(refuse(libc::EINVAL, "the master's service reports"));
                }
                let held = if ask.back { Held::Shared } else { Held::Ours };
                if slave.attach(token(&ask.token)?, streams, ask.master.into(), held) { done } else { Err(in_use()) }
            }
            (Some(Body::Forget(bytes)), side) => {
                let token = token(&bytes)?;
                let mut used = false;
                match side {
                    Side::Master(master) => used = master.forget(token),
                    Side::Slave(slave) => slave.forget(token),
                }
                Ok(Reply { used, ..Reply::default() })
            }
            (Some(Body::Winsize(ask)), Side::Master(master)) => {
                let size = <[u8; 8]>::try_from(&ask.winsize[..])
                    .map_err(|_| refuse(libc::EINVAL, "struct winsize has 8 bytes"))?;
                if master.winsize(token(&ask.token)?, size) {
                    done
                } else {
                    Err(refuse(libc::ENOENT, "no process has this token"))
                }
            }
            (Some(Body::Sever(node)), Side::Master(master)) => {
                master.sever(node);
                done
            }
            (Some(Body::Open(bytes)), Side::Master(master)) => {
                master.open(if bytes.is_empty() { None } else { Some(token(&bytes)?) });
                done
            }
            (Some(Body::Settle(Settle { stream: Some(name), gone })), Side::Slave(slave)) => {
                slave.settle(token(&name.token)?, name.fd, gone);
                done
            }
            (Some(Body::Pipe(inode)), Side::Slave(slave)) => {
                Ok(Reply { stream: slave.pipes.stream(inode), ..Reply::default() })
            }
            (Some(Body::Leave(ask)), Side::Slave(slave)) => {
                slave.leave(token(&ask.token)?, token(&ask.successor)?);
                done
            }
            (Some(Body::Over(bytes)), Side::Slave(slave)) => {
                slave.over(token(&bytes)?);
                done
            }
            (Some(Body::Status(_)), _) => Ok(Reply { status: Some(self.status()), ..Reply::default() }),
            (Some(Body::Quit(_)), _) => done,
            (None, _) => Err(refuse(libc::ENOSYS, "unknown request: agent and stdio service differ in version")),
            (Some(_), Side::Master(_)) => Err(refuse(libc::EINVAL, "this request is for a slave's stdio service")),
            (Some(_), Side::Slave(_)) => Err(refuse(libc::EINVAL, "this request is for a master's stdio service")),
        }
    }

    fn status(&self) -> Status {
        let (processes, unclaimed) = match &self.side {
            Side::Master(master) => master.count(),
            Side::Slave(slave) => (slave.count(), 0),
        };
        Status {
            pid: std::process::id().cast_signed(),
            listening: self.listening.clone(),
            cluster: self.cluster.clone(),
            processes: processes as u64,
            unclaimed: unclaimed as u64,
            output_bytes: self.counters.output.load(Ordering::Relaxed),
            input_bytes: self.counters.input.load(Ordering::Relaxed),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}
