//! Putting a process into the space: skeletons of those it refers to, the clone with the master's pid, the exec.

use crate::awake::Awake;
use crate::block::block;
use crate::ghosts::{CallError, Ghost};
use crate::stdio::{Iod, words};
use bproc_common::ghost::op;
use bproc_common::id::Pid;
use bproc_core::slave::{Relative, Step, plan};
use bproc_proto::stream::Kind;
use bproc_proto::{Failure, Luggage, SpawnSpec};
use bproc_stdio::IodError;
use bproc_sys::process::Process;
use bproc_sys::signal::SigInfo;
use bproc_travel::node::{Place, Traveller};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The ghosts of the space: init and skeletons, and those who are about to become programs.
#[derive(Default)]
pub struct Family {
    members: Mutex<HashMap<i32, Member>>,
    hellos: Mutex<HashMap<i32, oneshot::Sender<Member>>>,
    /// Those of a former agent's time that have not connected to this one yet.
    awaited: Mutex<BTreeSet<i32>>,
    arrived: tokio::sync::Notify,
    /// Skeletons are made by one task at a time.
    making: tokio::sync::Mutex<()>,
    /// Who gets orphans, besides init: as far as this agent has told them to.
    subreapers: Mutex<BTreeSet<i32>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Member {
    /// To talk to it.
    pub ghost: Ghost,
    /// Its pid here.
    pub host_pid: i32,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Family {
    /// Until this is dropped nobody else makes any: two that make the same one would kill it.
    pub(super) async fn making(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.making.lock().await
    }

    /// A ghost said hello.
    pub fn connected(&self, pid: i32, member: Member) {
        let waiting = lock(&self.hellos).remove(&pid);
        lock(&self.members).insert(pid, member.clone());
        // Only now: whoever is woken looks for it among the members.
        lock(&self.awaited).remove(&pid);
        self.arrived.notify_waiters();
        if let Some(waiting) = waiting {
            // Whoever waited may have given up.
            let _ = waiting.send(member);
        }
    }

    /// Its connection ended. True when it was the newest of that pid.
    pub fn closed(&self, pid: i32, id: u64) -> bool {
        let mut members = lock(&self.members);
        let newest = members.get(&pid).is_some_and(|m| m.ghost.id() == id);
        if newest {
            members.remove(&pid);
        }
        newest
    }

    /// Everybody's gone: a new life begins, and its init will connect.
    pub fn begin_anew(&self) {
        lock(&self.members).clear();
        lock(&self.hellos).clear();
        lock(&self.subreapers).clear();
        self.await_all(BTreeSet::from([1]));
    }

    /// From now on it gets the orphans among its descendants.
    fn make_subreaper(&self, pid: i32, member: &Member) {
        lock(&self.subreapers).insert(pid);
        member.ghost.tell(op::SUBREAPER, 1, 0, vec![]);
    }

    /// To whom children of a stand-in that has ended may be left.
    pub fn heirs(&self) -> Vec<Member> {
        let mut subreapers = lock(&self.subreapers);
        subreapers.retain(|pid| self.get(*pid).is_some());
        [1].iter().chain(&*subreapers).filter_map(|pid| self.get(*pid)).collect()
    }

    /// One of them.
    pub fn get(&self, pid: i32) -> Option<Member> {
        lock(&self.members).get(&pid).cloned()
    }

    /// These live and will connect. Until they have, nothing can be planned.
    pub fn await_all(&self, pids: BTreeSet<i32>) {
        *lock(&self.awaited) = pids;
    }

    /// Nobody is awaited.
    pub fn is_complete(&self) -> bool {
        lock(&self.awaited).is_empty()
    }

    /// It has ended, or is something else now.
    pub fn await_no_longer(&self, pid: i32) {
        lock(&self.awaited).remove(&pid);
        self.arrived.notify_waiters();
    }

    /// Returns when all have connected that were awaited, or after two seconds: they try twice a second, and whoever has
    /// not come by then is dead.
    pub async fn complete(&self) {
        let all = async {
            loop {
                let arrived = self.arrived.notified();
                if lock(&self.awaited).is_empty() {
                    return;
                }
                arrived.await;
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(2), all).await.is_err() {
            let missing = std::mem::take(&mut *lock(&self.awaited));
            tracing::warn!(?missing, "skeletons of a former agent's time do not connect; going on without them");
        }
    }

    /// Somebody who is in this session; init if nobody is.
    fn of_session(&self, sid: i32) -> i32 {
        if sid <= 1 {
            return 1;
        }
        let members = lock(&self.members);
        members.iter().find(|(_, member)| session_of(member) == Some(sid)).map_or(1, |(pid, _)| *pid)
    }

    /// All of them.
    pub fn pids(&self) -> BTreeSet<i32> {
        lock(&self.members).keys().copied().collect()
    }

    /// A number whose former holder has been told to go, or was reaped a moment ago, is free a little later: `insist`.
    pub(super) async fn clone_when_free(&self, by: i32, pid: i32, insist: bool) -> Result<Made, Failure> {
        const TRIES: usize = 1000;
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);
        for _ in 1..TRIES {
            match self.clone_by(by, pid).await {
                Err(failure) if insist && failure.number == libc::EEXIST => tokio::time::sleep(PAUSE).await,
                other => return other.map(|member| Made { member, stood: false }),
            }
            // It went a moment ago, and comes back: its stand-in was about to connect.
            if let Some(member) = self.get(pid) {
                return Ok(Made { member, stood: true });
            }
        }
        self.clone_by(by, pid).await.map(|member| Made { member, stood: false })
    }

    /// Its connection counts no longer: it is a process now.
    pub fn left(&self, pid: i32) {
        lock(&self.members).remove(&pid);
    }

    async fn clone_by(&self, by: i32, pid: i32) -> Result<Member, Failure> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
        let parent = self.get(by).ok_or_else(|| failed(libc::ESRCH, format!("skeleton {by} is not there")))?;
        let (hello, arrived) = oneshot::channel();
        lock(&self.hellos).insert(pid, hello);
        // '1': the child is a skeleton until it is told to be more.
        let mut made = parent.ghost.call(op::CLONE, pid.into(), 0, b"1".to_vec()).await;
        let init = self.get(1).map(|init| init.ghost);
        if let (Err(CallError::Gone), Some(init), true) = (&made, &init, by != 1) {
            // Killed, perhaps after it had made it: then that is a child of init's, as the other one will be.
            made = match init.call(op::CLONE, pid.into(), 0, b"1".to_vec()).await {
                Err(CallError::Errno(libc::EEXIST)) => Ok(0),
                other => other,
            };
        }
        let result = match made {
            Ok(made) => {
                let late = failed(libc::ETIMEDOUT, format!("process {pid} was made but does not speak"));
                let spoken = tokio::time::timeout(PATIENCE, arrived).await.ok().and_then(Result::ok).ok_or(late);
                if let (Err(_), Some(init), true) = (&spoken, init, made > 0) {
                    let kill = SigInfo::with(libc::SIGKILL, libc::SI_KERNEL, 0, 0).0.to_vec();
                    init.tell(op::SIGNAL, pid.into(), 0, kill);
                }
                spoken
            }
            Err(error) => Err(failed(error.errno(), format!("process {pid} cannot be made in the space: {error}"))),
        };
        if result.is_err() {
            lock(&self.hellos).remove(&pid);
        }
        result
    }
}

/// Who is to become a process.
pub(super) struct Made {
    pub(super) member: Member,
    /// It has stood for the process before: its parent may be here, or its children.
    pub(super) stood: bool,
}

/// Why a program was not started.
#[derive(Debug)]
pub struct NotStarted {
    /// The reason.
    pub failure: Failure,
    /// What was to become the process stands for it, as before.
    pub stands: bool,
}

impl From<Failure> for NotStarted {
    fn from(failure: Failure) -> NotStarted {
        NotStarted { failure, stands: false }
    }
}

/// The session in the space that a skeleton is in.
fn session_of(member: &Member) -> Option<i32> {
    let status = Process::open(Pid::new(member.host_pid)?).and_then(|p| p.status()).ok()?;
    status.ns_sids.last().copied()
}

fn failed(number: i32, message: String) -> Failure {
    Failure { number, message }
}

/// What a spawn needs of the agent.
pub struct Spawner {
    /// The ghosts of the space.
    pub family: Arc<Family>,
    /// The stdio service of this node.
    pub iod: Arc<Iod>,
    /// Number of this node, for messages.
    pub node: i32,
    /// Keeps this machine awake.
    pub awake: Awake,
    /// Makes the places of programs that travel.
    pub traveller: Arc<Traveller>,
    /// Pipes of forwarded streams by inode number, oldest first: token, number, input. For moves.
    pub pipes: Mutex<VecDeque<(u64, Pipe)>>,
}

/// Token, number and direction of a forwarded stream.
type Pipe = (Vec<u8>, i32, bool);

/// Pipes that are remembered. Numbers of pipes do not come again soon.
const PIPES: usize = 16384;

impl Spawner {
    /// Starts the program. `natives` are the pids of real processes in the space, as far
    /// as the spec names them. When this returns `Ok`, the exec has
    /// succeeded.
    pub async fn spawn(
        &self,
        spec: &SpawnSpec,
        stdio_address: &str,
        natives: BTreeSet<i32>,
        made: impl FnOnce(i32),
    ) -> Result<(), NotStarted> {
        // Beside making the process: most of the time nothing is to be done for it.
        let place = self.place(spec);
        let Made { member, stood } = self.make(spec, natives).await?;
        made(member.host_pid);
        // One who has been its stand-in stays that: the process runs on elsewhere, and tells its caller itself.
        let give_up = |failure| {
            if !stood {
                member.ghost.tell(op::EXIT, 127, 0, vec![]);
            }
            NotStarted { failure, stands: stood }
        };
        let (place, fds, forwarded) = match self.equip(spec, place).await {
            Ok(equipped) => equipped,
            Err(failure) => return Err(give_up(failure)),
        };
        // With the stdio service before the program can run: an agent that is killed in between leaves none without its
        // streams. Its answer is not waited for: what the process writes waits in its pipes.
        let attached = match self.attach(spec, forwarded, stdio_address).await {
            Ok(attached) => attached,
            Err(error) => {
                let text = format!("node {}: the stdio service does not answer: {error:#}", self.node);
                return Err(give_up(failed(libc::EIO, text)));
            }
        };
        let answer = member.ghost.ask(op::EXEC, stood.into(), 0, vec![], fds);
        let (answer, attached) = tokio::join!(answer, attached);
        // Until now the place was in use by nobody but us.
        drop(place);
        match answer {
            // The connection ends with the exec: that is the good answer.
            Err(_) => {
                if let Err(error) = attached {
                    tracing::error!(pid = spec.pid, %error, "the stdio service does not answer; a process has lost its streams");
                }
                Ok(())
            }
            Ok(value) => {
                if !spec.stdio_token.is_empty() {
                    self.iod.forget(&spec.stdio_token).await;
                }
                let number = -value as i32;
                let path = String::from_utf8_lossy(&spec.path);
                let why = std::io::Error::from_raw_os_error(number);
                let failure = failed(number, format!("{path}: {}", words(&why)));
                Err(NotStarted { failure, stands: stood })
            }
        }
    }

    /// All that the process needs to exec, as it is sent to it.
    async fn equip(
        &self,
        spec: &SpawnSpec,
        place: Option<JoinHandle<Result<Option<Place>, Failure>>>,
    ) -> Result<(Option<Place>, Vec<OwnedFd>, Forwarded), Failure> {
        let place = match place {
            Some(place) => place.await.unwrap_or_else(|error| Err(failed(libc::EIO, error.to_string())))?,
            None => None,
        };
        let block = block(spec, place.as_ref())
            .ok_or_else(|| failed(libc::EINVAL, "an argument contains a NUL byte, or they are too long".into()))?;
        let block = bproc_sys::memfd::seal_bytes(c"bproc-exec", &block)
            .map_err(|e| failed(e.errno(), format!("node {}: the exec block: {e}", self.node)))?;
        let mut fds = vec![block];
        if let Some(place) = &place {
            let mounts = place.mounts.try_clone().map_err(|error| {
                failed(error.raw_os_error().unwrap_or(libc::EMFILE), format!("node {}: {error}", self.node))
            })?;
            fds.push(mounts);
        }
        let (theirs, forwarded) = self.streams(spec).await?;
        fds.extend(theirs);
        Ok((place, fds, forwarded))
    }

    /// Begins to make the place where the program runs as on the master; `None` for one that does not travel.
    pub(super) fn place(&self, spec: &SpawnSpec) -> Option<JoinHandle<Result<Option<Place>, Failure>>> {
        let luggage = match &spec.luggage {
            Some(luggage) => luggage.clone(),
            None if self.traveller.has_own_root() => Luggage::default(),
            None => return None,
        };
        let (traveller, family) = (self.traveller.clone(), self.family.clone());
        Some(tokio::spawn(async move {
            family.complete().await;
            let init = family.get(1).ok_or_else(|| failed(libc::ESRCH, "the space has no init".into()))?;
            traveller.place(&luggage, init.host_pid).await
        }))
    }

    pub(super) async fn make(&self, spec: &SpawnSpec, natives: BTreeSet<i32>) -> Result<Made, Failure> {
        let _one_at_a_time = self.family.making().await;
        self.family.complete().await;
        let relatives: Vec<Relative> =
            spec.relatives.iter().map(|r| Relative { pid: r.pid, ppid: r.ppid, pgid: r.pgid, sid: r.sid }).collect();
        let new = Relative { pid: spec.pid, ppid: spec.ppid, pgid: spec.pgid, sid: spec.sid };
        // Only those that the plan can meet: there may be ten thousand others.
        let met = relatives.iter().chain([&new]).flat_map(|r| [r.pid, r.ppid, r.pgid, r.sid, 1]);
        let here = met.filter(|pid| natives.contains(pid) || self.family.get(*pid).is_some()).collect();
        self.tell_subreapers(spec);
        for leader in spec.relatives.iter().filter(|r| r.sid == r.pid && !natives.contains(&r.pid)) {
            self.lead(leader.pid).await?;
        }
        let mut last = None;
        for step in plan(new, &relatives, &here) {
            match step {
                // It has been the parent of others here: its skeleton becomes what it stood for.
                Step::Clone { pid, .. } if pid == spec.pid && self.family.get(pid).is_some() => {
                    last = self.family.get(pid).map(|member| Made { member, stood: true });
                }
                Step::Clone { by, pid } => {
                    // A parent that is here in person makes no children for us: init does, or for a skeleton somebody of
                    // its session, whose leader may be long gone.
                    let by = match natives.contains(&by) || self.family.get(by).is_none() {
                        false => by,
                        true if pid == spec.pid => 1,
                        true => self.family.of_session(relatives.iter().find(|r| r.pid == pid).map_or(0, |r| r.sid)),
                    };
                    let made = match self.family.clone_when_free(by, pid, pid == spec.pid).await {
                        Ok(made) => made,
                        // A leader that is dead while others of its group live: they keep its number taken, and it
                        // stands for the group without any process.
                        Err(failure) if failure.number == libc::EEXIST && pid != spec.pid => continue,
                        Err(failure) => return Err(failure),
                    };
                    if let Some(r) = spec.relatives.iter().find(|r| r.pid == pid) {
                        made.member.ghost.tell(op::CREDS, r.uid.into(), r.gid.into(), vec![]);
                        made.member.ghost.tell(op::NAME, 0, 0, r.comm.clone());
                        if r.subreaper {
                            self.family.make_subreaper(pid, &made.member);
                        }
                    }
                    last = Some(made);
                }
                // The process's own are in its exec block.
                Step::Session { pid } | Step::Group { pid, .. } if pid == spec.pid => {}
                Step::Session { pid } => self.settle(pid, op::SETSID, 0).await?,
                Step::Group { pid, pgid } => self.settle(pid, op::SETPGID, pgid).await?,
            }
        }
        last.ok_or_else(|| failed(libc::EINVAL, "nothing to make".into()))
    }

    /// Those whose skeletons are here already may have become subreapers since.
    pub(super) fn tell_subreapers(&self, spec: &SpawnSpec) {
        for pid in spec.relatives.iter().filter(|r| r.subreaper).map(|r| r.pid) {
            if let Some(member) = self.family.get(pid) {
                self.family.make_subreaper(pid, &member);
            }
        }
    }

    /// One whose skeleton was made before its process made a session: others are to be in it.
    async fn lead(&self, pid: i32) -> Result<(), Failure> {
        match self.family.get(pid) {
            Some(skeleton) if session_of(&skeleton).is_some_and(|sid| sid != pid) => {
                self.settle(pid, op::SETSID, 0).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn settle(&self, pid: i32, op: u32, pgid: i32) -> Result<(), Failure> {
        let Some(member) = self.family.get(pid) else { return Ok(()) };
        match member.ghost.call(op, 0, pgid.into(), vec![]).await {
            // A group whose leader is long gone cannot be joined; its number stays with the others of the group.
            Ok(_) | Err(CallError::Errno(libc::EPERM)) => Ok(()),
            Err(error) => Err(failed(error.errno(), format!("group and session of skeleton {pid}: {error}"))),
        }
    }

    /// Hands streams to the stdio service; its answer comes later.
    pub(super) async fn attach(
        &self,
        spec: &SpawnSpec,
        forwarded: Forwarded,
        stdio_address: &str,
    ) -> anyhow::Result<impl Future<Output = Result<(), IodError>> + Send + use<>> {
        let Forwarded { ends, numbers } = forwarded;
        let answer = match numbers.is_empty() {
            true => None,
            false => Some(self.iod.attach(&spec.stdio_token, stdio_address, &numbers, ends, spec.pty).await?),
        };
        Ok(async {
            match answer {
                Some(answer) => answer.await,
                None => Ok(()),
            }
        })
    }

    /// Ends of the streams for the process, in the order of the spec, and the other ends for the stdio service.
    pub(super) async fn streams(&self, spec: &SpawnSpec) -> Result<(Vec<OwnedFd>, Forwarded), Failure> {
        let io = |what: &str, error: std::io::Error| {
            failed(error.raw_os_error().unwrap_or(libc::EIO), format!("node {}: {what}: {}", self.node, words(&error)))
        };
        let (uid, gid) = spec.credentials.as_ref().map_or((0, 0), |c| (c.euid, c.egid));
        let terminal = match spec.pty {
            true => Some(terminal(spec, uid).map_err(|e| io("a pseudo terminal", e))?),
            false => None,
        };
        let mut theirs = Vec::new();
        let mut forwarded = Forwarded::default();
        for stream in &spec.streams {
            let (their, our) = match (stream.kind(), &terminal) {
                (Kind::Closed, _) => continue,
                (Kind::Null, _) => {
                    let null = File::options().read(true).write(true).open("/dev/null");
                    (null.map_err(|e| io("/dev/null", e))?.into(), None)
                }
                (Kind::File, _) => (crate::stdio::open_file(stream, spec).await?, None),
                (Kind::Same, _) => {
                    let like =
                        spec.streams.iter().filter(|s| s.kind() != Kind::Closed).position(|s| s.fd == stream.like);
                    let like = like.and_then(|at| theirs.get(at)).ok_or_else(|| {
                        let text =
                            format!("descriptor {} is to be like {}, which is none before it", stream.fd, stream.like);
                        failed(libc::EINVAL, text)
                    })?;
                    (OwnedFd::try_clone(like).map_err(|e| io("a copy of a descriptor", e))?, None)
                }
                (Kind::Forward, Some(terminal)) => {
                    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| io("a pseudo terminal", e));
                    (copy(&terminal.slave)?, Some(copy(&terminal.master)?))
                }
                (Kind::Forward, None) => {
                    let (reader, writer) = std::io::pipe().map_err(|e| io("a pipe", e))?;
                    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
                    let (their, our) = if stream.input { (reader, writer) } else { (writer, reader) };
                    self.note_pipe(&their, (spec.stdio_token.clone(), stream.fd, stream.input));
                    // So that the user can open /dev/stdout and the like.
                    std::os::unix::fs::fchown(&their, Some(uid), Some(gid)).map_err(|e| io("a pipe's owner", e))?;
                    (their, Some(our))
                }
            };
            theirs.push(their);
            if let Some(our) = our {
                forwarded.ends.push(our);
                forwarded.numbers.push((stream.fd, stream.input));
            }
        }
        Ok((theirs, forwarded))
    }

    fn note_pipe(&self, end: &OwnedFd, pipe: Pipe) {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::MetadataExt;
        let Ok(meta) = std::fs::metadata(format!("/proc/self/fd/{}", end.as_raw_fd())) else { return };
        let mut pipes = lock(&self.pipes);
        pipes.push_back((meta.ino(), pipe));
        if pipes.len() > PIPES {
            pipes.pop_front();
        }
    }

    /// The forwarded stream that a pipe belongs to. The stdio service knows those that a former agent made.
    pub(super) async fn pipe(&self, inode: u64) -> Option<Pipe> {
        let own = lock(&self.pipes).iter().rev().find(|(i, _)| *i == inode).map(|(_, pipe)| pipe.clone());
        match own {
            None => self.iod.stream_of(inode).await,
            own => own,
        }
    }
}

/// Streams for the stdio service.
#[derive(Default)]
pub(super) struct Forwarded {
    ends: Vec<OwnedFd>,
    /// Number in the process; whether it reads from it.
    numbers: Vec<(i32, bool)>,
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

/// A pseudo terminal that belongs to the user, with the size and the modes of the caller's.
fn terminal(spec: &SpawnSpec, uid: u32) -> std::io::Result<Terminal> {
    let (master, slave) = bproc_sys::terminal::open()?;
    std::os::unix::fs::fchown(&slave, Some(uid), None)?;
    if let Some(winsize) = spec.winsize.first_chunk() {
        bproc_sys::terminal::set_size(&slave, winsize)?;
    }
    bproc_sys::terminal::set_modes(&slave, &spec.termios)?;
    Ok(Terminal { master, slave })
}
