//! Lives of the node: how long one goes on without its master, its end, and the beginning of the next.

use super::space::Space;
use super::table::Table;
use super::{Actor, Fact};
use crate::watched::watched;
use bproc_common::ghost::op;
use bproc_core::session::Inbox;
use bproc_core::slave::Blocks;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::io::Interest;

impl Actor {
    /// As long as this agent has its master, or nothing to end, or was told to keep what it has, the space lives on.
    /// Init counts by itself, so that it ends also when this agent hangs.
    pub(super) fn renew_lease(&self) {
        let safe = self.keep_on_loss || self.table.is_empty();
        let left = lease(self.patience).saturating_sub(if safe { Duration::ZERO } else { self.heard.elapsed() });
        if let Some(init) = self.init.as_ref().filter(|_| !left.is_zero()) {
            init.tell(op::LEASE, left.as_millis() as i64, 0, vec![]);
        }
    }

    /// The master gives the node up a little later: by then nothing of this life may run on.
    pub(super) async fn look_at_clock(&mut self) {
        if self.heard.elapsed() < lease(self.patience) || self.keep_on_loss || self.table.is_empty() {
            return;
        }
        tracing::error!(seconds = self.patience.as_secs(), "the master stays away: ending this life of the node");
        self.begin_anew().await;
    }

    pub(super) async fn begin_anew(&mut self) {
        self.kernel.remove_space(self.space.record.pid_ns);
        if let Err(error) = self.space.end() {
            tracing::error!(error = %format!("{error:#}"), "the old space");
        }
        self.family.begin_anew();
        self.traveller.forget_views();
        // The link stands for one life: it is made again for the next.
        self.to_master = None;
        self.asks_lost();
        self.init = None;
        self.for_init.clear();
        self.halves.clear();
        self.rooms.clear();
        self.kept.clear();
        self.forget_halts();
        self.groups = Default::default();
        self.departures.clear();
        self.ended_early.clear();
        self.unconnected.clear();
        self.young.clear();
        self.streams_of_moves.clear();
        self.surveys.clear();
        self.table = Table::default();
        self.blocks = Blocks::default();
        self.events.reset();
        self.orders = Inbox::default();
        self.forget_orders();
        self.named.clear();
        self.ended_when_named.clear();
        self.dead_leaders.clear();
        self.former.clear();
        self.dismissed = Some(HashMap::new());
        let clocks = self.space.record.offsets();
        match Space::make(&self.dir, &self.ghost, &self.title, lease(self.patience).as_secs() as u32, clocks) {
            Ok(space) => {
                self.kernel.add_space(space.record.pid_ns);
                self.space = space;
                self.watch_init();
            }
            Err(error) => tracing::error!(error = %format!("{error:#}"), "no new space; the node can run nothing"),
        }
    }

    /// Has the end of the space told.
    pub(super) fn watch_init(&self) {
        let (facts, pid_ns) = (self.facts.clone(), self.space.record.pid_ns);
        let watched = self.space.init.as_fd().try_clone_to_owned().and_then(|fd| watched(fd, Interest::READABLE));
        match watched {
            Ok(fd) => {
                tokio::spawn(async move {
                    if fd.readable().await.is_ok() {
                        facts.send(Fact::SpaceGone(pid_ns)).await.ok();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "the end of the space's init will not be noticed"),
        }
    }
}

/// How long a node goes on without its master: less than the time after which the master declares its processes dead,
/// counted by each side's own clock from the last word.
pub fn lease(patience: Duration) -> Duration {
    (patience * 4 / 5).max(Duration::from_secs(1))
}
