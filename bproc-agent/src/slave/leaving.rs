//! What a process that leaves takes along: its streams.

use super::spawn::Spawner;
use bproc_proto::Failure;
use bproc_proto::link as wire;

/// The forwarded streams of a process, and what its descriptors 0 to 2 lead to.
pub(super) type Leaving = (Vec<wire::ForwardedStream>, Vec<Vec<u8>>);

impl Spawner {
    /// The standard streams of a process that are forwarded.
    pub(super) async fn streams_of(&self, host_pid: i32, strict: bool) -> Result<Leaving, Failure> {
        let mut all = Vec::new();
        let stdio = bproc_mover::send::stdio(host_pid);
        for (fd, link) in (0..).zip(&stdio).filter(|(_, link)| !link.is_empty()) {
            let link = String::from_utf8_lossy(link).into_owned();
            let inode = link.strip_prefix("pipe:[").and_then(|l| l.strip_suffix(']')).and_then(|n| n.parse().ok());
            let known = match inode {
                Some(inode) => self.pipe(inode).await,
                None => None,
            };
            match known {
                Some((token, stream, input)) => all.push(wire::ForwardedStream { fd, token, stream, input }),
                None if strict && (link.starts_with("/dev/pts/") || !link.starts_with('/')) => {
                    let message = format!("its descriptor {fd} leads to {link}, which stays on node {}", self.node);
                    return Err(Failure { number: libc::EOPNOTSUPP, message });
                }
                None => {}
            }
        }
        Ok((all, stdio))
    }
}
