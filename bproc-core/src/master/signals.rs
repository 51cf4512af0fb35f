//! Signals, stop and continue between a ghost and its process.
//!
//! Whatever the ghost can see comes from it, numbered. SIGSTOP stops the ghost natively; the keeper sees that and the
//! process is stopped too. The other way round the ghost stops when its process did. STOP and CONT may cross on the
//! wire; the rules that keep a late report from overwriting a newer wish:
//! - a stop of the ghost that came from here outranks a "continued" of the node until the node confirms the stop;
//! - while a SIGCONT is on its way, or with a ghost that has not passed it on yet, a "stopped" of the node is old news;
//! - a ghost that stops as told, though the process has gone on since, is woken;
//! - a stop signal that finds the ghost stopped is passed on at once, for waking the ghost would lose it.

use super::groups::GroupCall;
use super::model::{Action, GhostCommand, Order, Phase, Process, Stopped};
use super::{Master, Out};
use bproc_common::id::{NodeId, Pid};

const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// SIGTSTP, SIGTTIN, SIGTTOU.
const TERMINAL_STOPS: [i32; 3] = [20, 21, 22];

/// Whom an order continues.
pub(super) fn continues(order: &Order) -> Option<Pid> {
    match order {
        Order::Continue(pid) => Some(*pid),
        Order::Signal { pid, siginfo, .. } if signal_of(siginfo) == SIGCONT => Some(*pid),
        _ => None,
    }
}

fn signal_of(siginfo: &[u8]) -> i32 {
    siginfo.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b))
}

impl Master {
    /// A ghost forwards a signal. Repetitions (after a reconnect) are acknowledged again and dropped.
    pub fn ghost_signal(&mut self, pid: Pid, number: u32, siginfo: Vec<u8>, out: &mut Out) {
        if self.processes.get(&pid).is_none_or(|process| number <= process.signals) {
            return;
        }
        self.settle_calls_of(pid, out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.signals = number;
        process.counted = process.counted.max(number);
        match self.copies.take(pid.get(), &siginfo) {
            Some(None) => process.drop_copy(pid, number, out),
            Some(Some(call)) => {
                process.passed_on = number;
                self.copy_of_group(pid, number, siginfo, call, out);
            }
            None => {
                process.passed_on = number;
                self.pass_on(pid, number, siginfo, out);
            }
        }
    }

    /// Passes a signal of a ghost on, as soon as it is known where its process runs.
    pub(super) fn pass_on(&mut self, pid: Pid, number: u32, siginfo: Vec<u8>, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(node) = process.node else {
            process.early_signals.push((number, siginfo));
            return;
        };
        if let Some(siginfo) = self.hold_signal(pid, number, siginfo) {
            self.forward_signal(pid, node, number, siginfo, out);
        }
    }

    /// Passes a signal of a ghost on to where its process runs.
    pub(super) fn forward_signal(&mut self, pid: Pid, node: NodeId, number: u32, siginfo: Vec<u8>, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.end.is_some() {
            process.arrived(pid, number, out);
            return;
        }
        let signal = signal_of(&siginfo);
        // A stop signal makes the kernel drop a SIGCONT that the ghost has not read yet.
        let overtaken = TERMINAL_STOPS.contains(&signal) && process.continue_due;
        if signal == SIGCONT || overtaken {
            process.continues += 1;
            process.continue_due = false;
        }
        let stop_again = signal == SIGCONT && process.ghost_stopped == Some(Stopped::FromHere);
        if overtaken {
            self.order(node, Order::Continue(pid), out);
        }
        self.order(node, Order::Signal { pid, number, siginfo }, out);
        if stop_again {
            self.order(node, Order::Stop(pid), out);
        }
    }

    /// eBPF: a stop signal came to a ghost that is stopped, and can never be read there: the SIGCONT that lets the ghost
    /// go on takes it away. The ghost may only be late, and its process have gone on, so it is that one's.
    pub fn unread_stop(&mut self, pid: Pid, siginfo: Vec<u8>, out: &mut Out) {
        let Some(process) = self.processes.get(&pid) else { return };
        let (Some(node), None) = (process.node, process.end) else { return };
        if siginfo.first_chunk().map(|b| i32::from_ne_bytes(*b)) == Some(SIGSTOP) {
            if !self.on_its_way(pid) {
                self.order(node, Order::Stop(pid), out);
            }
        } else if let Some(siginfo) = self.hold_signal(pid, 0, siginfo) {
            self.order(node, Order::Signal { pid, number: 0, siginfo }, out);
        }
    }

    /// Keeper: the ghost stopped. Unless it did so because it was told to (`own`), someone stopped it: pass it on.
    pub fn ghost_stopped(&mut self, pid: Pid, own: bool, out: &mut Out) {
        if self.is_cloning(pid) || self.is_being_taken(pid) {
            // What it was told before is done all the same.
            out.push(Action::Thaw(pid));
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.ghost_stopped.is_some_and(|why| why != Stopped::Before) {
            return;
        }
        process.continue_due = false;
        let before = process.ghost_stopped.is_some();
        process.ghost_stopped = Some(if own || before { Stopped::AsThere } else { Stopped::FromHere });
        // Overtaken by a continue, or to end, which nobody can stop any more.
        if before {
            // What its node has told since has been heeded.
        } else if process.end.is_some() || (own && !process.stopped_there) {
            process.wake(pid, out);
        } else if let (Some(node), false, false) = (process.node, own, self.on_its_way(pid)) {
            self.order(node, Order::Stop(pid), out);
        }
        let connects = |p: &Process| matches!(p.phase, Phase::Running) && p.made && !p.connected && p.can_act();
        let new = |p: &&Process| !p.inherited && p.ghost_stopped.is_some();
        if self.processes.get(&pid).filter(new).is_some_and(connects) {
            // It learns its name and more.
            out.push(Action::Thaw(pid));
        }
    }

    /// A ghost has done all that it was told.
    pub fn ghost_ready(&mut self, pid: Pid, out: &mut Out) {
        if !self.is_cloning(pid)
            && !self.is_being_taken(pid)
            && self.processes.get(&pid).is_some_and(|p| p.ghost_stopped.is_some() && p.can_act())
        {
            out.push(Action::Freeze(pid));
        }
    }

    /// Keeper: the ghost goes on.
    pub fn ghost_continued(&mut self, pid: Pid) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.continue_due = process.ghost_stopped.take().is_some();
        }
    }

    /// Node: the process stopped.
    pub fn stopped(&mut self, pid: Pid, signal: i32, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.continues > 0 || process.continue_due || process.end.is_some() {
            return;
        }
        process.stopped_there = true;
        match &mut process.ghost_stopped {
            Some(Stopped::Before) => {}
            Some(why) => *why = Stopped::AsThere,
            None => process.tell(pid, GhostCommand::Stop(signal), out),
        }
    }

    /// Node: the process was sent SIGCONT and goes on if it was stopped.
    pub fn continued(&mut self, pid: Pid, out: &mut Out) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.continues = process.continues.saturating_sub(1);
        process.stopped_there = false;
        if matches!(process.ghost_stopped, Some(Stopped::AsThere | Stopped::Before)) && process.continues == 0 {
            process.wake(pid, out);
        }
    }

    /// A process on a node signals one that is not there; `group` tells of which group's members it is one.
    pub fn signal_from_node(
        &mut self,
        from: NodeId,
        target: Pid,
        siginfo: Vec<u8>,
        group: Option<GroupCall>,
        out: &mut Out,
    ) {
        if group.is_some_and(|group| self.repeat(from, group, &siginfo, out)) {
            return;
        }
        match self.processes.get(&target).map(|p| p.node) {
            // Also what came to it in its last moment there, or to its stand-in before all of the move is told.
            Some(_) if self.on_its_way(target) => drop(self.hold_signal(target, 0, siginfo)),
            Some(Some(node)) if node != from => {
                self.order(node, Order::Signal { pid: target, number: 0, siginfo }, out);
            }
            // To the stand-in that is to become it: it gets it there, or here, if nothing comes of that.
            Some(_) => {
                if let Some(process) = self.processes.get_mut(&target).filter(|p| p.is_starting()) {
                    process.early_signals.push((0, siginfo));
                }
            }
            // Only those that have a skeleton on that node can be reached from it.
            None if self.relatives.get(&target).is_some_and(|nodes| nodes.contains(&from)) => {
                out.push(Action::SignalLocal(target, siginfo));
            }
            None => out.push(Action::Trouble(format!(
                "node {from} signals process {target}, which it has no skeleton of; ignored"
            ))),
        }
    }

    /// A ghost tells up to which number it has counted its signals.
    pub fn ghost_counts(&mut self, pid: Pid, newest: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.counted = process.counted.max(newest);
        }
    }

    /// From where a ghost counts on that becomes one again: beyond all that the former one can have counted to. Its node
    /// takes a lower number for one that it knows.
    pub fn counts_from(&self, pid: Pid) -> u32 {
        /// More than a ghost can send before it has become the process.
        const GAP: u32 = 1 << 16;
        self.processes.get(&pid).map_or(0, |process| process.counted.saturating_add(GAP))
    }

    /// The node has carried out or taken over the orders up to `number`: their signals are safe.
    pub fn orders_acknowledged(&mut self, node: NodeId, number: u64, out: &mut Out) {
        let Some(n) = self.nodes.get_mut(&node.0) else { return };
        for order in n.orders.take_acknowledged(number) {
            if let Order::Signal { pid, number, .. } | Order::Copy { pid, number, .. } = order
                && number > 0
                && let Some(process) = self.processes.get_mut(&pid)
            {
                process.arrived(pid, number, out);
            }
        }
    }
}
