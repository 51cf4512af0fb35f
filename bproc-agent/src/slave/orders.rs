//! What the master orders: programs that start, blocks of pids, and where the rest goes.

use super::names::Naming;
use super::spawn::NotStarted;
use super::{Actor, Fact, run};
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_core::lease::Block;
use bproc_core::slave::Cursor;
use bproc_mover::wire::{Empty, Task};
use bproc_proto::SpawnSpec;
use bproc_proto::link::{self as wire, event, order};
use bproc_sys::process::{Change, Limit};
use std::collections::BTreeSet;

impl Actor {
    pub(super) fn order(&mut self, number: u64, body: Option<order::Body>) {
        tracing::trace!(number, ?body, "order");
        let is_signal = matches!(body, Some(order::Body::Signal(_) | order::Body::SignalGroup(_)));
        if !self.groups.after.is_empty() || (!self.groups.under_way.is_empty() && !is_signal) {
            // Nobody is to see what came of a signal to a group before he has it.
            return self.groups.after.push_back((number, body));
        }
        match body {
            Some(order::Body::Spawn(spec)) => return self.spawn(number, spec),
            Some(order::Body::Signal(signal)) => return self.signal(number, signal),
            Some(order::Body::SignalGroup(signal)) => return self.signal_group(number, signal),
            Some(order::Body::RelativeGone(pid)) => self.relative_ended(pid, 0),
            Some(order::Body::RelativeEnded(ended)) => self.relative_ended(ended.pid, ended.status),
            Some(order::Body::Survey(order)) => self.survey(order),
            Some(order::Body::Receive(order)) => self.receive(order),
            Some(order::Body::Depart(order)) => {
                self.departures.push_back((number, order));
                return self.let_depart();
            }
            Some(order::Body::Resize(resize)) => {
                if let (Some(host), Some(size)) = (self.table.host_pid(resize.pid), resize.winsize.first_chunk()) {
                    // Whoever has closed his standard input has no size to tell.
                    let _ = bproc_sys::terminal::resize_of(host, size);
                }
            }
            Some(order::Body::Tune(order)) => self.tune(&order),
            Some(order::Body::Children(order)) => self.adopt_children(order),
            Some(order::Body::Relay(order)) => self.relay(order),
            Some(order::Body::Orphans(order)) => self.make_orphans(order),
            Some(order::Body::RelativeStopped(order)) => self.relative_stopped(order),
            Some(order::Body::GoOn(r#move)) => self.tell_mover(Some(r#move), Task::Begin(Empty {})),
            Some(order::Body::Decide(order)) => self.tell_mover(order.r#move, Task::Decide(order.moved)),
            Some(order::Body::Cancel(r#move)) => self.cancel(r#move),
            Some(order::Body::Lease(lease)) => self.lease(Block { start: lease.start, length: lease.length }),
            Some(order::Body::Reap(pid)) => self.reap(pid),
            Some(order::Body::EndAll(_)) | None => {}
            Some(order::Body::Power(what)) => run::power(&what),
        }
        self.done(number);
    }

    /// What was done to a ghost is done to its process.
    fn tune(&self, order: &wire::Tune) {
        let Some(host) = self.table.running(order.pid).and_then(Pid::new) else { return };
        let limits = order.limits.iter().map(|l| (l.resource, Limit { soft: l.soft, hard: l.hard }));
        let change = Change {
            nice: order.nice,
            policy: order.policy.map(|p| (p.policy, p.priority)),
            processors: order.processors.clone(),
            io_priority: order.io_priority,
            limits: limits.collect(),
        };
        if let Err(error) = change.apply(host) {
            tracing::warn!(pid = order.pid, %error, "what was done to a ghost was refused for its process");
        }
    }

    fn lease(&mut self, block: Block) {
        let cursor = self.blocks.add(block);
        self.move_cursor(cursor);
        self.save();
        self.kernel.set_leases(self.space.record.pid_ns, self.blocks.held());
    }

    pub(super) fn move_cursor(&self, cursor: Cursor) {
        if let (Cursor::MoveTo(block), Some(init)) = (cursor, &self.init) {
            init.tell(op::LAST_PID, i64::from(block.start) - 1, 0, vec![]);
        }
    }

    /// Init is there: where its forks are, if it has been for a while.
    pub(super) fn ask_for_cursor(&self) {
        let Some(init) = self.init.as_ref().filter(|_| !self.blocks.held().is_empty()) else { return };
        let (last, facts) = (init.ask(op::LAST_PID, 0, 0, vec![], vec![]), self.facts.clone());
        tokio::spawn(async move {
            let last = last.await.ok().and_then(|last| i32::try_from(last).ok()).unwrap_or(0);
            facts.send(Fact::LastPid(last)).await.ok();
        });
    }

    /// Those whom a spec names and who are here in person.
    pub(super) fn natives(&self, spec: &SpawnSpec) -> BTreeSet<i32> {
        let relatives = spec.relatives.iter().flat_map(|r| [r.pid, r.ppid, r.pgid, r.sid]);
        let named = [spec.pid, spec.ppid, spec.pgid, spec.sid].into_iter().chain(relatives);
        named.filter(|pid| self.table.is_here(*pid)).collect()
    }

    fn spawn(&mut self, number: u64, spec: SpawnSpec) {
        let (spawner, facts) = (self.spawner.clone(), self.facts.clone());
        let (address, natives) = (self.stdio_address.clone(), self.natives(&spec));
        self.name(Naming::Start(number), &spec, &[]);
        self.rouse_named(&spec);
        self.table.expect(&spec);
        tokio::spawn(async move {
            let pid = spec.pid;
            let made = |host_pid| {
                facts.try_send(Fact::Made(pid, host_pid)).ok();
            };
            let result = spawner.awake.during(spawner.spawn(&spec, &address, natives, made)).await;
            facts.send(Fact::Spawned(number, pid, result)).await.ok();
        });
    }

    pub(super) fn spawned(&mut self, pid: i32, why: Option<NotStarted>) {
        let stands = why.as_ref().map(|why| why.stands);
        self.tell(event::Body::Spawned(wire::Spawned { pid, failure: why.map(|why| why.failure) }));
        if let Some(stands) = stands {
            if let Some(parent) = self.table.failed(pid, stands).and_then(|by| self.family.get(by)) {
                parent.ghost.tell(op::REAP, pid.into(), 0, vec![]);
            }
            return;
        }
        self.looks.born(pid);
        if let Some((status, raw)) = self.table.started(pid) {
            self.end_after_output(pid, status, raw);
        }
    }

    /// The end is told when what the process wrote is out on the master's side: whoever waits for it finds the output
    /// complete. After SIGKILL nobody waits for output.
    pub(super) fn end_after_output(&mut self, pid: i32, status: i32, raw: Vec<u8>) {
        let exited = wire::Exited { pid, status, rusage: Some(bproc_proto::RUsage { raw }) };
        match self.table.token(pid).filter(|_| status != libc::SIGKILL) {
            None => self.tell(event::Body::Exited(exited)),
            Some(token) => {
                let (spawner, facts, limit) = (self.spawner.clone(), self.facts.clone(), self.flush_limit);
                tokio::spawn(async move {
                    spawner.iod.flush(&token, limit).await;
                    facts.send(Fact::Flushed(exited)).await.ok();
                });
            }
        }
    }
}
