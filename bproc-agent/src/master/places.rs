//! Where processes are, when nothing of it is under way.

use super::clients::{Asker, ClientFact, Desk};
use super::{Actor, Fact, following};
use bproc_common::id::{NodeId, Pid};
use bproc_core::master::moving::Speaker;
use bproc_sys::process::Process;
use std::os::unix::fs::MetadataExt;
use tokio::sync::oneshot;

/// How long a process may take to be known where it is. It was forked on its node a moment ago and is quicker than its
/// ghost; or it has just moved, and is quicker than both ends are in telling.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(10);

/// Pid in the space of a process of a node that runs on this machine; none for one of the machine's own.
pub fn in_space(host_pid: i32) -> Option<i32> {
    let status = Process::open(Pid::new(host_pid)?).ok()?.status().ok()?;
    if status.ns_pids.len() < 2 { None } else { status.ns_pids.last().copied() }
}

/// Is it in the space of one of this cluster's nodes on this machine? Others have pid namespaces too.
pub fn is_of_a_node(host_pid: i32, desk: &Desk) -> bool {
    let Ok(own) = std::fs::metadata(format!("/proc/{host_pid}/ns/pid")) else { return false };
    let run_dir = desk.ghost_socket.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let records =
        run_dir.into_iter().flatten().flatten().filter_map(|e| std::fs::read(e.path().join("space.json")).ok());
    let spaces = records.filter_map(|r| serde_json::from_slice::<serde_json::Value>(&r).ok()?.get("pid_ns")?.as_u64());
    spaces.into_iter().any(|space| space == own.ino())
}

/// Where a process is (0: the one that asks), when no move of it is under way; none: on the master.
pub async fn whereabouts(pid: i32, asker: &Asker, desk: &Desk) -> Option<NodeId> {
    let remote = asker.number();
    let number = if pid == 0 { remote.unwrap_or(asker.pid) } else { pid };
    settled(Pid::new(number)?, remote == Some(number), desk).await
}

/// Where a process is; `on_node`: on a node it is, whether that is known already or not.
pub async fn settled(pid: Pid, on_node: bool, desk: &Desk) -> Option<NodeId> {
    let (answer, place) = oneshot::channel();
    desk.facts.send(Fact::Client(ClientFact::Settled { pid, on_node, answer })).await.ok();
    match tokio::time::timeout(SETTLE, place).await {
        Ok(place) => place.ok().flatten(),
        Err(_) => {
            // The core decides by what it knows.
            tracing::warn!(%pid, "where it is does not settle");
            let (answer, place) = oneshot::channel();
            desk.facts.send(Fact::Client(ClientFact::Where(pid, answer))).await.ok();
            place.await.ok().flatten()
        }
    }
}

/// Waits until those around a ghost have ghosts, which have followed, or for so long as for one.
pub async fn settled_around(pid: Pid, desk: &Desk) {
    let all = async {
        for pid in following::around(pid).into_iter().filter_map(Pid::new) {
            settled(pid, false, desk).await;
        }
    };
    let _ = tokio::time::timeout(SETTLE, all).await;
    desk.following.settle(pid).await;
}

/// The node that speaks for the asker, and what is known here of him: his ghost, if his number is one's there.
pub async fn speaker(asker: &Asker, desk: &Desk) -> Option<Speaker> {
    let node = asker.node()?;
    let pid = asker.number().and_then(Pid::new).filter(|pid| pid.get() > 1);
    let there = match pid {
        Some(pid) => {
            let place = settled(pid, true, desk).await;
            desk.following.settle(pid).await;
            place == Some(node)
        }
        None => false,
    };
    let ghost = pid.filter(|_| there).and_then(|pid| Process::open(pid).ok()?.status().ok());
    Some(Speaker { node, ghost: ghost.map(|status| status.uids.effective) })
}

impl Actor {
    /// Tells those who wait for it that a process is where it is.
    pub(super) fn answer_settled(&mut self) {
        let settled = |core: &bproc_core::master::Master, (pid, on_node, _): &mut (Pid, bool, _)| {
            core.is_settled(*pid) && (!*on_node || core.whereabouts(*pid).is_some())
        };
        let core = &self.core;
        for (pid, _, answer) in self.settling.extract_if(.., |waiting| settled(core, waiting)) {
            let _ = answer.send(core.whereabouts(pid));
        }
        self.settling.retain(|(_, _, answer)| !answer.is_closed());
    }
}
