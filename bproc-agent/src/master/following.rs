//! Ghosts that have yet to follow their processes into another group, session or owner. What /proc says of them is not
//! what their processes are.

use crate::ghosts::Ghost;
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_sys::process::Process;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A ghost that does not answer for so long is not waited for.
const WAIT: Duration = Duration::from_secs(1);

/// Pauses before a group is tried to be joined again.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// After so long it is not tried again.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Which ghosts these are, and how many orders each has yet to carry out. Clones share it.
#[derive(Clone, Debug)]
pub struct Following(Arc<watch::Sender<HashMap<i32, u32>>>);

impl Default for Following {
    fn default() -> Following {
        Following(Arc::new(watch::Sender::default()))
    }
}

impl Following {
    /// Tells a ghost to follow.
    pub fn follow(&self, pid: Pid, ghost: &Ghost, op: u32, a: i64, b: i64) {
        let answer = ghost.ask(op, a, b, vec![], Vec::new());
        // Refused, or its connection ended: it is not going to follow any more.
        self.until(pid, async { drop(answer.await) });
    }

    /// Tells a ghost to join a group, again and again while its leader has yet to make that.
    pub fn join(&self, pid: Pid, ghost: &Ghost, group: i32) {
        let join = move |ghost: &Ghost| ghost.ask(op::SETPGID, 0, group.into(), vec![], Vec::new());
        let (first, ghost, following) = (join(ghost), ghost.clone(), self.clone());
        self.until(pid, async move {
            let (mut answer, mut pause, since) = (first.await, FIRST_PAUSE, Instant::now());
            while answer == Ok(-i64::from(libc::EPERM)) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
                // It may have been told of another meanwhile.
                let newest = following.0.borrow().get(&pid.get()) == Some(&1);
                let is_gone = state(group).is_none_or(|state| matches!(state, b'Z' | b'X'));
                if !newest || is_gone || since.elapsed() > GIVE_UP {
                    tracing::debug!(%pid, group, "the ghost does not join the group of its process");
                    return;
                }
                answer = join(&ghost).await;
            }
        });
    }

    fn until(&self, pid: Pid, done: impl Future<Output = ()> + Send + 'static) {
        self.0.send_modify(|all| *all.entry(pid.get()).or_default() += 1);
        let all = self.0.clone();
        tokio::spawn(async move {
            done.await;
            all.send_modify(|all| {
                if let Some(left) = all.get_mut(&pid.get()) {
                    *left -= 1;
                }
                all.retain(|_, left| *left > 0);
            });
        });
    }

    /// Waits until a ghost and those around it have followed. One that is stopped follows when it goes on, and is not waited
    /// for.
    pub async fn settle(&self, pid: Pid) {
        self.wait(&[pid.get()]).await;
        if !self.0.borrow().is_empty() {
            self.wait(&around(pid)).await;
        }
    }

    async fn wait(&self, pids: &[i32]) {
        let mut all = self.0.subscribe();
        let done = all.wait_for(|all| !pids.iter().any(|pid| all.contains_key(pid) && !is_stopped(*pid)));
        let _ = tokio::time::timeout(WAIT, done).await;
    }
}

fn state(pid: i32) -> Option<u8> {
    Some(Process::open(Pid::new(pid)?).ok()?.stat().ok()?.state)
}

fn is_stopped(pid: i32) -> bool {
    state(pid).is_some_and(|state| matches!(state, b'T' | b't'))
}

/// Parent, leaders of group and session, and children.
pub fn around(pid: Pid) -> Vec<i32> {
    let Ok(process) = Process::open(pid) else { return Vec::new() };
    let numbers = process.stat().map(|stat| vec![stat.ppid, stat.pgrp, stat.session]).unwrap_or_default();
    let children = process.children().unwrap_or_default().into_iter().map(Pid::get);
    numbers.into_iter().filter(|number| *number > 1).chain(children).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::channel;

    #[tokio::test]
    async fn a_move_waits_for_ghosts_that_follow() {
        let following = Following::default();
        let own = Pid::new(std::process::id() as i32).unwrap();
        let parent = Pid::new(std::os::unix::process::parent_id() as i32).unwrap();
        let (of_own, of_parent) = (channel::<()>(), channel::<()>());
        following.until(own, async { drop(of_own.1.await) });
        following.until(parent, async { drop(of_parent.1.await) });
        let waits = tokio::spawn({
            let following = following.clone();
            async move { following.settle(own).await }
        });
        tokio::task::yield_now().await;
        of_own.0.send(()).unwrap();
        while following.0.borrow().contains_key(&own.get()) {
            tokio::task::yield_now().await;
        }
        assert!(!waits.is_finished());
        // A connection that ends is an answer, too.
        drop(of_parent.0);
        waits.await.unwrap();
        assert!(following.0.borrow().is_empty());
    }
}
