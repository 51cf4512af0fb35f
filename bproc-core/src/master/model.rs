//! The master's state and its words: what it is told to do and to refuse.

use super::moving::MoveId;
use super::starters::Starter;
use crate::session::{Inbox, Outbox};
use bproc_common::id::{Epoch, NodeId, Pid};
use std::collections::{BTreeSet, VecDeque};

/// A question of a client that waits for its answer. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ask(pub u64);

/// What a spawn is decided by.
#[derive(Clone, Debug)]
pub struct SpawnFacts {
    /// The caller, which becomes the ghost.
    pub pid: Pid,
    /// Its parent.
    pub parent: Option<Pid>,
    /// Where to.
    pub node: NodeId,
    /// Caller's effective uid.
    pub uid: u32,
    /// Caller's effective gid and supplementary groups.
    pub gids: BTreeSet<u32>,
    /// Pids that the new process refers to: parent, leaders of its group and session.
    pub relatives: Vec<Pid>,
    /// Its parent, if that is a `bpsh`, which takes it along when it is killed.
    pub starter: Option<Starter>,
}

/// A process that was forked on a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its pid.
    pub pid: Pid,
    /// User that its ghost runs as.
    pub uid: u32,
    /// Group that its ghost runs as.
    pub gid: u32,
}

/// Why a request is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No node has this number.
    NoSuchNode(NodeId),
    /// The node is in a state in which nothing can be started.
    NodeDown(NodeId, String),
    /// Owner, group and mode of the node do not admit the caller.
    NotAllowed(NodeId),
    /// The caller is a ghost already, or asks twice.
    Busy(Pid),
    /// The keeper could not hold the caller (errno).
    CannotHold(Pid, i32),
    /// The node could not start the program: errno or BProc's own number, and words.
    Failed(NodeId, i32, String),
    /// The node's agent was restarted while it started the program, which may be tried again.
    Interrupted(NodeId),
    /// The node was lost meanwhile.
    NodeDied(NodeId),
    /// It belongs to another user.
    NotYours(Pid),
    /// A node asks for somebody whom it cannot vouch for, about a process that is not its own.
    Unvouched(Pid, NodeId),
    /// It has ended or is about to.
    Ended(Pid),
}

/// What a ghost is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GhostCommand {
    /// End with this code.
    Exit(i32),
    /// Die by this signal.
    Die(i32),
    /// Stop by this signal.
    Stop(i32),
    /// Make a child with this pid: the ghost of a process that was forked.
    Clone(Pid),
    /// Reap this child.
    Reap(Pid),
    /// Join this process group.
    Group(i32),
    /// Become a session leader.
    Session,
    /// Take on this uid and gid.
    Owner(u32, u32),
    /// Take this name.
    Name(Vec<u8>),
    /// Show this command line (NUL-separated).
    CommandLine(Vec<u8>),
    /// Signals up to this number have arrived.
    Ack(u32),
    /// Send this group this signal, as its process has done.
    SignalGroup(i32, i32),
    /// Tell when children stop and go on.
    WatchChildren,
    /// Get orphans, as its process does.
    Subreaper,
    /// It was to become the process, and left signals for that one: it takes them again.
    TakeSignals,
    /// Know by whom its process was started.
    Starter(Starter),
    /// Say when all this is done; goes to `ghost_ready`.
    Report,
}

/// What a node is told. Orders are numbered and survive a broken link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Start the program that the process's spec describes.
    Spawn(Pid),
    /// Deliver a signal with this siginfo; `number` counts the signals of one ghost.
    Signal {
        /// Receiver.
        pid: Pid,
        /// Number at the ghost, 0 for one that was not queued there.
        number: u32,
        /// siginfo_t as bytes.
        siginfo: Vec<u8>,
    },
    /// Deliver a signal with this siginfo to all of a group.
    SignalGroup {
        /// Which.
        group: i32,
        /// siginfo_t as bytes.
        siginfo: Vec<u8>,
        /// Tells it apart from all others.
        call: u64,
        /// Whose ghosts have copies, which follow.
        copied: Vec<Pid>,
    },
    /// A ghost's copy of what [`Order::SignalGroup`] has brought, for one that is in the group: noted, and delivered only to one
    /// that is not.
    Copy {
        /// Receiver.
        pid: Pid,
        /// Number at the ghost.
        number: u32,
        /// siginfo_t as bytes.
        siginfo: Vec<u8>,
        /// Which group.
        group: i32,
        /// Which order.
        call: u64,
    },
    /// SIGKILL.
    Kill(Pid),
    /// SIGSTOP.
    Stop(Pid),
    /// SIGCONT that its ghost got and could not pass on.
    Continue(Pid),
    /// A process that has a skeleton there has ended with this wait status.
    RelativeGone(Pid, i32),
    /// Can it move?
    Survey(Pid, MoveId),
    /// Make room for a process that comes, and listen.
    Receive(Pid, MoveId),
    /// Send it away.
    Depart(Pid, MoveId),
    /// It comes with other children than were told.
    Children(Pid, MoveId),
    /// The target has them.
    GoOn(Pid, MoveId),
    /// It runs at the target (true), or never will.
    Decide(Pid, MoveId, bool),
    /// It does not come.
    Cancel(Pid, MoveId),
    /// From whom its image comes, and to whom it goes on.
    Relay(Pid, MoveId),
    /// A child that is elsewhere, of a process there, has stopped by this signal.
    RelativeStopped(Pid, i32),
    /// It goes on.
    RelativeContinued(Pid),
    /// One that has ended has left these children to one above it there, whom the node's kernel knows.
    Orphans {
        /// Who has ended.
        dead: Pid,
        /// Those of its children that have no skeletons there.
        orphans: Vec<Pid>,
        /// Its ancestors, its parent first, below one that runs there. Empty where it has a skeleton.
        line: Vec<Pid>,
    },
    /// The end of this process has been replayed.
    Forget(Pid),
    /// The terminal of this process gets another size (`struct winsize`).
    Resize(Pid, Vec<u8>),
    /// It is scheduled or limited in another way, in the wire's words.
    Tune(Pid, Vec<u8>),
    /// A block of pids.
    Lease(crate::lease::Block),
    /// reboot, halt, poweroff, end.
    Power(String),
}

/// What the agent is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Answer a client.
    Answer(Ask, Result<(), Refusal>),
    /// Keeper: seize the process and gate its exit; the answer goes to `held`.
    Hold(Pid),
    /// Keeper: open the gate.
    Release(Pid),
    /// Keeper: let go of a process that is no ghost.
    LetGo(Pid),
    /// Send to a node, if its link is up.
    Send(NodeId, u64, Order),
    /// Tell a ghost; result of `Clone` goes to `cloned`.
    Ghost(Pid, GhostCommand),
    /// SIGKILL to the ghost itself.
    KillGhost(Pid),
    /// SIGKILL to a process that has come home, before its move is answered.
    KillHome(Pid),
    /// SIGCONT to the ghost that it does not forward.
    WakeGhost(Pid),
    /// Keeper: have a stopped ghost obey, though it stays stopped to everybody.
    Thaw(Pid),
    /// Keeper: no more.
    Freeze(Pid),
    /// Tell when this process of the master's own is gone.
    Watch(Pid),
    /// Signal a process of the master's own.
    SignalLocal(Pid, Vec<u8>),
    /// Have signals that a process cannot see reported.
    TrackSignals(Pid),
    /// No more.
    UntrackSignals(Pid),
    /// A ghost whose parent has none is made by the nursery.
    NurseryClone(Child),
    /// Prepare to build a process into its ghost, and listen: the answer goes to `receiving`.
    ReceiveHere(Pid, MoveId),
    /// Send a process of the master's own away; it is told by `committing` and `departed`.
    SendFromHere(Pid, MoveId),
    /// Its source stands still: the ghost obeys what it was told, is let go by the keeper and becomes the process.
    TakeGhost(Pid, MoveId),
    /// The target of a process of the master's own knows its children.
    GoOnHere(Pid, MoveId),
    /// A process of the master's own may go, or not.
    ProceedHere(Pid, MoveId, bool),
    /// What became of a move that the master's own mover is in doubt about.
    DecideHere(Pid, MoveId, bool),
    /// Give up receiving.
    CancelHere(Pid, MoveId),
    /// A signal for a process that has come home.
    SignalHome(Pid, Vec<u8>),
    /// End the link with these words.
    Unlink(NodeId, String),
    /// States, owners or modes of nodes changed.
    NodesChanged,
    /// Worth a warning in the log.
    Trouble(String),
}

/// What is shown of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// up, down, boot, error, ...
    pub state: String,
    /// x bits.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Processes there.
    pub processes: usize,
}

/// A node as the master knows it.
#[derive(Debug)]
pub struct Node {
    /// up, down, boot, error, ...
    pub state: String,
    /// x bits for owner, group, others (0111).
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    pub(super) epoch: Option<Epoch>,
    pub(super) instance: u64,
    pub(super) linked: bool,
    pub(super) orders: Outbox<Order>,
    pub(super) events: Inbox,
}

impl Node {
    /// A node that is down.
    pub fn new(mode: u32, user: u32, group: u32) -> Node {
        Node {
            state: "down".into(),
            mode,
            user,
            group,
            epoch: None,
            instance: 0,
            linked: false,
            orders: Outbox::default(),
            events: Inbox::default(),
        }
    }

    pub(super) fn is_reachable(&self) -> bool {
        // A node in any other state is there, and root may want to repair it by running things on it.
        self.epoch.is_some() && self.state != "down"
    }

    pub(super) fn admits(&self, uid: u32, gids: &BTreeSet<u32>) -> bool {
        if uid == 0 {
            return true;
        }
        let shift = if uid == self.user {
            6
        } else if gids.contains(&self.group) {
            3
        } else {
            0
        };
        self.state == "up" && (self.mode >> shift) & 1 == 1
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Starting { ask: Ask, held: Option<Result<(), i32>>, started: Option<Result<(), Refusal>> },
    Running,
}

/// Why a ghost is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// Someone sent SIGSTOP to it; the process is on its way to stop too.
    FromHere,
    /// The process is stopped.
    AsThere,
    /// The process was, when it left; the keeper has not said so yet of what became its ghost.
    Before,
}

#[derive(Debug)]
pub(super) struct Process {
    /// `None` while not known again after a restart of the master.
    pub node: Option<NodeId>,
    pub parent: Option<Pid>,
    pub phase: Phase,
    /// Known from before the restart of this agent, by one of its halves at least.
    pub inherited: bool,
    pub connected: bool,
    /// Its ghost is known to be there, or to have been.
    pub made: bool,
    /// It was forked on a node, and nobody has seen its ghost yet.
    pub unborn: bool,
    /// The keeper holds its ghost. (One that is stopped cannot connect.)
    pub held: bool,
    /// Its ghost is being made of a process that goes, or the other way round, and the keeper does not hold it yet: a child
    /// that it made now would not be held either.
    pub unheld: bool,
    /// Commands for the ghost until it connects.
    pub queue: VecDeque<GhostCommand>,
    /// Newest signal of the ghost that was passed on.
    pub signals: u32,
    /// Highest number of a signal that its ghost is known to have given.
    pub counted: u32,
    /// Newest one of its ghost's that was not dropped as a copy, and the newest of these that has arrived.
    pub passed_on: u32,
    pub arrived: u32,
    /// Newest one that was dropped as a copy.
    pub dropped: u32,
    /// Signals that came while the node was not known, or it was not known whether it starts there: number and siginfo.
    pub early_signals: Vec<(u32, Vec<u8>)>,
    pub ghost_stopped: Option<Stopped>,
    /// The node said so last.
    pub stopped_there: bool,
    /// The ghost was continued from here and has not passed on the SIGCONT.
    pub continue_due: bool,
    /// SIGCONTs on their way to the node.
    pub continues: u32,
    pub killed: bool,
    /// Status, when the process is over on its node.
    pub end: Option<i32>,
    pub at_gate: bool,
    pub ghost_gone: bool,
    pub reap: bool,
    /// Children that have ended and that it has not reaped, as far as is known.
    pub unreaped: Vec<Pid>,
    /// Whose ghost is still to be made by its parent's; the nursery makes it if that one dies first.
    pub orphan: Option<Child>,
    /// The `bpsh` that it comes from.
    pub starter: Option<Starter>,
}

impl Process {
    pub(super) fn new(node: Option<NodeId>, parent: Option<Pid>) -> Process {
        Process {
            node,
            parent,
            phase: Phase::Running,
            inherited: false,
            connected: false,
            made: false,
            unborn: false,
            held: false,
            unheld: false,
            queue: VecDeque::new(),
            signals: 0,
            counted: 0,
            passed_on: 0,
            arrived: 0,
            dropped: 0,
            early_signals: Vec::new(),
            ghost_stopped: None,
            stopped_there: false,
            continue_due: false,
            continues: 0,
            killed: false,
            end: None,
            at_gate: false,
            ghost_gone: false,
            reap: false,
            unreaped: Vec::new(),
            orphan: None,
            starter: None,
        }
    }

    /// One that was there before this agent.
    pub(super) fn inherited(parent: Option<Pid>) -> Process {
        Process { inherited: true, ..Process::new(None, parent) }
    }

    /// Its node has said that it could not be started.
    pub(super) fn has_not_started(&self) -> bool {
        matches!(self.phase, Phase::Starting { started: Some(Err(_)), .. })
    }

    /// It is not known yet whether it runs on its node.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// The node has not said whether it runs.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self.phase, Phase::Starting { started: None, .. })
    }

    /// Its ghost can still carry out commands.
    pub(super) fn can_act(&self) -> bool {
        !self.at_gate && !self.ghost_gone && self.end.is_none()
    }

    pub(super) fn tell(&mut self, pid: Pid, command: GhostCommand, out: &mut Vec<Action>) {
        if self.at_gate || self.ghost_gone {
            return;
        }
        if self.connected && !self.unheld {
            out.push(Action::Ghost(pid, command));
        } else {
            self.queue.push_back(command);
        }
    }

    /// A signal of its ghost has arrived, and with it those dropped since, if all before them have.
    pub(super) fn arrived(&mut self, pid: Pid, number: u32, out: &mut Vec<Action>) {
        self.arrived = self.arrived.max(number);
        let all = if self.arrived >= self.passed_on { self.dropped } else { 0 };
        self.tell(pid, GhostCommand::Ack(number.max(all)), out);
    }

    /// A signal of its ghost is a copy that goes nowhere.
    pub(super) fn drop_copy(&mut self, pid: Pid, number: u32, out: &mut Vec<Action>) {
        self.dropped = number;
        if self.arrived >= self.passed_on {
            self.tell(pid, GhostCommand::Ack(number), out);
        }
    }

    /// Tells the ghost what has waited for it.
    pub(super) fn tell_queue(&mut self, pid: Pid, out: &mut Vec<Action>) {
        if self.connected && !self.unheld {
            out.extend(self.queue.drain(..).map(|command| Action::Ghost(pid, command)));
        }
    }

    /// It was stopped when it left, and its ghost was from the first. What its node tells of that is no news.
    pub(super) fn left_stopped(&mut self) {
        self.queue.retain(|command| !matches!(command, GhostCommand::Stop(_)));
        match self.connected {
            // Continued already, since it has spoken; it tells of that.
            true => self.continue_due = true,
            false => self.ghost_stopped = Some(Stopped::Before),
        }
    }

    pub(super) fn wake(&mut self, pid: Pid, out: &mut Vec<Action>) {
        if self.ghost_stopped.take().is_some() {
            out.push(Action::WakeGhost(pid));
        }
    }
}
