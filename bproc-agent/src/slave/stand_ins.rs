//! Stand-ins of processes that are elsewhere: what is sent to them here, and what becomes of them.

use super::Actor;
use crate::checked;
use bproc_common::event::Event;
use bproc_common::id::Pid;
use bproc_common::wait::Status;
use bproc_proto::link::{self as wire, event};
use bproc_sys::process::Process;
use bproc_sys::signal::SigInfo;

/// SIGKILL in a wait status.
const KILL: u8 = libc::SIGKILL as u8;

impl Actor {
    /// What a skeleton cannot read: SIGKILL and SIGSTOP that a process here has sent to the one that it stands for. Our own
    /// come from outside, or from init.
    pub(super) fn stand_in_signalled(&mut self, event: &Event) {
        let (pid, sender) = (event.pid as i32, event.arg2 as i32);
        let unread = [libc::SIGKILL, libc::SIGSTOP].contains(&(event.arg as i32));
        // It stops itself when it is told to.
        let by_another = sender > 1 && sender != pid;
        let Some(skeleton) = self.family.get(pid).filter(|_| unread && by_another) else { return };
        let siginfo = SigInfo::with(event.arg as i32, event.code, sender, event.arg3).0.to_vec();
        let group = if event.call == 0 { 0 } else { event.pgid as i32 };
        self.tell(event::Body::Signal(wire::Signal { pid, ghost_number: 0, siginfo, group, call: event.call }));
        if event.arg == libc::SIGSTOP as u32
            && !self.halted_by_kin(pid, &skeleton)
            && let Some(handle) = checked::member(skeleton.host_pid, pid)
        {
            // It is not the one that is to stop.
            let _ = handle.sigqueue(libc::SIGCONT, crate::ghosts::WAKE);
        }
    }

    /// A stand-in has connected, and what it is sent is told from now on. If it has been killed by now, whoever has its zombie
    /// tells of that.
    pub(super) fn stand_in_connected(&mut self, pid: i32, host: i32) {
        let lives = || checked::member(host, pid).is_some_and(|handle| checked::lives(&handle, host));
        if self.young.contains(&pid) && lives() {
            self.young.remove(&pid);
        }
    }

    /// What stands here for a process has ended. One whose signals nobody told yet, that was killed, was sent it by somebody
    /// here: none of ours would.
    pub(super) fn stand_in_ended(&mut self, pid: i32, status: i32) {
        let killed = matches!(Status::from_raw(status), Status::Killed { signal: KILL, .. });
        if self.young.remove(&pid) && killed && !self.ended_early.contains_key(&pid) {
            let siginfo = SigInfo::with(libc::SIGKILL, libc::SI_KERNEL, 0, 0).0.to_vec();
            self.tell(event::Body::Signal(wire::Signal { pid, siginfo, ..Default::default() }));
        }
    }

    /// A connection ended, after which nobody has this one's. What has been a body is its stand-in again, and connects anew.
    pub(super) fn stand_in_closed(&mut self, pid: i32, host: Pid) {
        if self.halves.contains_key(&pid) || self.table.is_here(pid) {
            return;
        }
        let is_stand_in = Process::open(host).and_then(|p| p.exe()).is_ok_and(|exe| exe == self.ghost_exe);
        if is_stand_in && checked::member(host.get(), pid).is_some() {
            self.unconnected.insert(pid);
        } else if !self.unconnected.contains(&pid) {
            self.ended_early.remove(&pid);
        }
    }
}
