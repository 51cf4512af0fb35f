//! Signals that come while a process is on its way: kept, and delivered where it comes to run.

use super::{Move, Phase};
use crate::master::model::{Order, Stopped};
use crate::master::{Master, Out};
use bproc_common::id::{NodeId, Pid};

impl Master {
    /// Keeps a signal of a ghost whose process is on its way; gives it back if it is not.
    pub(in crate::master) fn hold_signal(&mut self, pid: Pid, number: u32, siginfo: Vec<u8>) -> Option<Vec<u8>> {
        match self.moves.get_mut(&pid).filter(|m| m.phase == Phase::Sending) {
            Some(m) => {
                m.signals.push((number, siginfo));
                None
            }
            None => Some(siginfo),
        }
    }

    /// It is to be killed, wherever it comes to run.
    pub(in crate::master) fn kill_on_arrival(&mut self, pid: Pid) {
        if let Some(m) = self.moves.get_mut(&pid) {
            m.kill = true;
        }
    }

    /// What was sent while it was on its way.
    pub(super) fn deliver_held(&mut self, pid: Pid, node: NodeId, m: Move, out: &mut Out) {
        for (number, siginfo) in m.signals {
            self.forward_signal(pid, node, number, siginfo, out);
        }
        let Some(process) = self.processes.get(&pid) else { return };
        if m.kill && process.end.is_none() {
            self.order(node, Order::Kill(pid), out);
        } else if process.ghost_stopped == Some(Stopped::FromHere) {
            self.order(node, Order::Stop(pid), out);
        }
    }
}
