//! What a process that leaves takes along: its streams.

use super::Actor;
use super::spawn::Spawner;
use bproc_common::id::Pid;
use bproc_proto::Failure;
use bproc_proto::link as wire;
use bproc_stdio::Token;
use bproc_sys::files::same_open_file;
use bproc_sys::pidfd::PidFd;
use std::os::fd::OwnedFd;

/// The forwarded streams of a process, and what its descriptors 0 to 2 lead to.
pub(super) type Leaving = (Vec<wire::ForwardedStream>, Vec<Vec<u8>>);

impl Spawner {
    /// The standard streams of a process, of which those that are this node's are to lead back here. `strict`: it takes its
    /// files along. `listed`: it has told itself what it is to have.
    pub(super) async fn streams_of(&self, host_pid: i32, strict: bool, listed: bool) -> Result<Leaving, Failure> {
        let (mut all, mut back) = (Vec::new(), Vec::new());
        let stdio = bproc_mover::send::stdio(host_pid);
        for (fd, link) in (0..).zip(&stdio).filter(|(_, link)| !link.is_empty()) {
            let link = String::from_utf8_lossy(link).into_owned();
            let inode = link.strip_prefix("pipe:[").and_then(|l| l.strip_suffix(']')).and_then(|n| n.parse().ok());
            let known = match inode {
                Some(inode) => self.pipe(inode).await,
                None => None,
            };
            let stays = link.starts_with("/dev/pts/") || !link.starts_with('/');
            match known {
                Some((token, stream, input)) => {
                    all.push(wire::ForwardedStream { fd, token, stream, input, back: false });
                }
                // What was read here for a process that does not go after all could not be put back.
                None if strict && stays && fd == 0 => {
                    let message = format!("its descriptor {fd} leads to {link}, which stays on node {}", self.node);
                    return Err(Failure { number: libc::EOPNOTSUPP, message });
                }
                None if listed || fd == 0 || link == "/dev/null" => {}
                // Where it went on at a position of its own it would write over the output of whoever has the file here.
                None if stays || !strict || shares_position(host_pid, fd).await => back.push(fd),
                None => {}
            }
        }
        if !back.is_empty() {
            let token = Token::random().map_err(|e| self.broken(&e))?.as_bytes().to_vec();
            let first = first_of_each(host_pid, &back, &stdio);
            let told =
                |(fd, stream)| wire::ForwardedStream { fd, token: token.clone(), stream, input: false, back: true };
            all.extend(back.into_iter().zip(first).map(told));
        }
        Ok((all, stdio))
    }

    /// Has descriptors (number in the process, whether it reads from it) called for by the stdio service.
    pub(super) async fn lead_back(
        &self,
        token: &[u8],
        streams: &[(i32, bool)],
        fds: &[OwnedFd],
        master: &str,
    ) -> Result<(), Failure> {
        self.iod.attach_back(token, master, streams, fds).await.map_err(|e| self.broken(&format!("{e:#}")))
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure { number: libc::EIO, message: format!("the stdio service of node {}: {why}", self.node) }
    }
}

/// For each of these descriptors of a process the first that leads to the same open file. A shell leads the one to the other for a
/// moment: `stdio` is what they are known to lead to, and what is looked at when the process stands still.
fn first_of_each(host_pid: i32, fds: &[i32], stdio: &[Vec<u8>]) -> Vec<i32> {
    let process = Pid::new(host_pid).and_then(|pid| PidFd::open(pid).ok());
    let copy = |fd: i32| process.as_ref()?.get_fd(fd).ok();
    let link = |fd: i32| usize::try_from(fd).ok().and_then(|at| stdio.get(at));
    let is_same =
        |a: i32, b: i32| link(a) == link(b) && copy(a).zip(copy(b)).is_some_and(|(a, b)| same_open_file(a, b));
    fds.iter().map(|fd| fds.iter().copied().find(|first| first == fd || is_same(*first, *fd)).unwrap_or(*fd)).collect()
}

/// Has another process the open file to which this descriptor writes at a position?
async fn shares_position(host_pid: i32, fd: i32) -> bool {
    let look = move || vmadump::capture::who_shares_position(host_pid, fd).is_some();
    tokio::task::spawn_blocking(look).await.unwrap_or(false)
}

impl Actor {
    /// What a process that is about to go writes from then on, and is this node's, comes back here.
    pub(super) fn leading_back(
        &self,
        host_pid: i32,
        streams: &[wire::ForwardedStream],
    ) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let (spawner, master) = (self.spawner.clone(), self.stdio_address.clone());
        let streams: Vec<_> = streams.iter().filter(|s| s.back && s.stream == s.fd).cloned().collect();
        async move {
            let Some((pid, first)) = Pid::new(host_pid).zip(streams.first()) else { return Ok(()) };
            let gone = |e: bproc_sys::Error| Failure { number: e.errno(), message: format!("its descriptors: {e}") };
            let process = PidFd::open(pid).map_err(gone)?;
            let fds: Vec<OwnedFd> =
                streams.iter().map(|s| process.get_fd(s.fd)).collect::<Result<_, _>>().map_err(gone)?;
            let numbers: Vec<(i32, bool)> = streams.iter().map(|s| (s.stream, s.input)).collect();
            spawner.lead_back(&first.token, &numbers, &fds, &master).await
        }
    }
}
