//! What an agent and its mover say to each other: SEQPACKET, one message a packet.

/// Longest packet in bytes.
pub const MAX_PACKET: usize = 64 << 10;

/// To the mover.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToMover {
    /// What.
    #[prost(oneof = "Task", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub task: Option<Task>,
}

/// What the agent says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Task {
    /// Be the target. Descriptors travel beside it.
    #[prost(message, tag = "1")]
    Receive(Receive),
    /// Be the source.
    #[prost(message, tag = "2")]
    Send(Send),
    /// Target, told to wait: the body is yours now. Source: the target knows the children.
    #[prost(message, tag = "3")]
    Begin(Empty),
    /// Go on with the last step; else give up.
    #[prost(bool, tag = "4")]
    Proceed(bool),
    /// Source in doubt: it runs at the target, or does not and never will.
    #[prost(bool, tag = "5")]
    Decide(bool),
    /// Hold a process still, whose image many get.
    #[prost(message, tag = "6")]
    Hold(Hold),
    /// The image from this byte on. Whoever holds the process writes it into the socket beside this message, the source
    /// of one that gets it reads it there.
    #[prost(uint64, tag = "7")]
    Feed(u64),
    /// Target: from whom the image comes, and to whom it goes on.
    #[prost(message, tag = "8")]
    Relay(Relay),
    /// Source: the connection to the other mover, which is the descriptor beside this message.
    #[prost(message, tag = "9")]
    Line(Line),
    /// Instead of Proceed: give up, since the process may not go.
    #[prost(message, tag = "10")]
    Stay(Stay),
}

/// Why a process stays where it is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stay {
    /// An errno.
    #[prost(sint32, tag = "1")]
    pub number: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A connection to the other mover.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Line {
    /// What opens and seals it. Absent: nothing.
    #[prost(message, tag = "1")]
    pub keys: Option<Keys>,
}

/// Nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// A program for execve(2).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Program {
    /// Its path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Environment entries.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub envp: Vec<Vec<u8>>,
}

/// Suite of [`Keys`]: AES-GCM with 128 bits.
pub const AES_128_GCM: u32 = 1;
/// AES-GCM with 256 bits.
pub const AES_256_GCM: u32 = 2;
/// For processors that do not compute AES.
pub const CHACHA20_POLY1305: u32 = 3;

/// The keys of one connection (TLS 1.3), after its handshake.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Keys {
    /// [`AES_128_GCM`] and so on.
    #[prost(uint32, tag = "1")]
    pub suite: u32,
    /// For what goes.
    #[prost(message, tag = "2")]
    pub send: Option<Key>,
    /// For what comes.
    #[prost(message, tag = "3")]
    pub receive: Option<Key>,
}

/// One direction.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct Key {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// What record numbers are mixed with.
    #[prost(bytes = "vec", tag = "2")]
    pub iv: Vec<u8>,
    /// Number of the next record.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// A process whose image many get.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hold {
    /// Who, as the mover sees it. It ends with the mover.
    #[prost(sint32, tag = "1")]
    pub pid: i32,
    /// Which read-only mappings travel as data.
    #[prost(uint32, tag = "2")]
    pub flags: u32,
}

/// The place of a target among those that get the same image.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Relay {
    /// The first connection beside this message gives the image. Else the source does.
    #[prost(bool, tag = "1")]
    pub fed: bool,
    /// Of each connection beside this message. All but the one that gives are passed on to.
    #[prost(message, repeated, tag = "2")]
    pub lines: Vec<Seal>,
}

/// What opens and seals a connection, if it is sealed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Seal {
    /// The keys.
    #[prost(message, tag = "1")]
    pub keys: Option<Keys>,
}

/// Build a process.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Receive {
    /// The process that it becomes, as the mover sees it.
    #[prost(sint32, tag = "1")]
    pub body: i32,
    /// Pid of the image that is to come, as the image tells it.
    #[prost(sint32, tag = "2")]
    pub pid: i32,
    /// What opens and seals the connection to the other mover, which is the first descriptor beside this message.
    /// Absent: nothing.
    #[prost(message, tag = "3")]
    pub keys: Option<Keys>,
    /// Numbers that the other descriptors beside this message get in the process.
    #[prost(sint32, repeated, tag = "5")]
    pub fds: Vec<i32>,
    /// Who owns the process: it gets no right beyond this user's. Absent for root's.
    #[prost(message, tag = "6")]
    pub owner: Option<Owner>,
    /// What the body executes first, to gain the rights that building needs.
    #[prost(message, tag = "7")]
    pub elevate: Option<Program>,
    /// What the body executes when nothing comes of it; absent: it is killed.
    #[prost(message, tag = "8")]
    pub fallback: Option<Program>,
    /// Begin with the body when told.
    #[prost(bool, tag = "9")]
    pub wait: bool,
    /// Other files that are not found are closed.
    #[prost(bool, tag = "10")]
    pub drop_files: bool,
    /// It gets the descriptors beside this message and no others.
    #[prost(bool, tag = "11")]
    pub only_given: bool,
    /// Others get the same image: [`Task::Relay`] says from whom, and to whom it goes on.
    #[prost(bool, tag = "12")]
    pub relay: bool,
    /// There is no body: the source is told why, and nothing is built.
    #[prost(message, tag = "13")]
    pub refusal: Option<Refusal>,
}

/// Why a process cannot come.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Refusal {
    /// errno, or a number of BProc's own.
    #[prost(sint32, tag = "1")]
    pub number: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A user.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Owner {
    /// uid.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// gid.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
    /// Further users that it may have.
    #[prost(uint32, repeated, tag = "4")]
    pub uids: Vec<u32>,
    /// Further groups.
    #[prost(uint32, repeated, tag = "5")]
    pub gids: Vec<u32>,
    /// Capabilities that may be in its sets.
    #[prost(uint64, tag = "6")]
    pub caps: u64,
    /// Most that its bounding set may have.
    #[prost(uint64, tag = "7")]
    pub bounding: u64,
    /// Most that its hard limits may be, by RLIMIT number; missing ones have no end.
    #[prost(uint64, repeated, tag = "8")]
    pub limits: Vec<u64>,
}

/// Send a process away.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Send {
    /// Who, as the mover sees it.
    #[prost(sint32, tag = "1")]
    pub pid: i32,
    /// 0: carry open files or refuse; 1: drop what cannot be carried; 2: standard streams only.
    #[prost(uint32, tag = "4")]
    pub files: u32,
    /// Which read-only mappings travel as data.
    #[prost(uint32, tag = "5")]
    pub flags: u32,
    /// What the process becomes when it has gone. It keeps its arguments.
    #[prost(message, tag = "6")]
    pub stand_in: Option<Program>,
    /// Its children that the target knows of, as the mover sees them.
    #[prost(sint32, repeated, tag = "7")]
    pub children: Vec<i32>,
    /// What its descriptors 0 to 2 lead to, as /proc tells; empty for closed ones. The target has streams for these.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub stdio: Vec<Vec<u8>>,
    /// Its image is another's, that many get: the target has it from elsewhere, or asks for it.
    #[prost(bool, tag = "9")]
    pub spread: bool,
    /// Those of the children that have ended, as the target knows.
    #[prost(sint32, repeated, tag = "10")]
    pub ended: Vec<i32>,
    /// Those of the children that are stopped, and whose stop the process has been told, as the target knows.
    #[prost(sint32, repeated, tag = "11")]
    pub halted: Vec<i32>,
    /// What the next agent is told if this one is gone when the mover is in doubt.
    #[prost(message, tag = "12")]
    pub doubt: Option<Doubt>,
}

/// A move whose source does not know what became of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Doubt {
    /// Where the next agent listens.
    #[prost(bytes = "vec", tag = "1")]
    pub socket: Vec<u8>,
    /// Number of the process in the space.
    #[prost(sint32, tag = "2")]
    pub pid: i32,
    /// Number of the move.
    #[prost(uint64, tag = "3")]
    pub id: u64,
    /// Where to: a node, -1 for the master.
    #[prost(sint32, tag = "4")]
    pub to: i32,
    /// Inputs that the process takes along.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<Input>,
}

/// A standard stream.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Input {
    /// Whose.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Which of them.
    #[prost(sint32, tag = "2")]
    pub stream: i32,
}

/// From the mover.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromMover {
    /// What.
    #[prost(oneof = "Report", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub report: Option<Report>,
}

/// What the mover tells.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Report {
    /// Source: the process stands still. True: it has other children than the target knows of, or they have ended or
    /// stopped since. Answered by Begin then.
    #[prost(bool, tag = "2")]
    Frozen(bool),
    /// Target: the process is built. Answered by Proceed.
    #[prost(message, tag = "3")]
    Ready(Empty),
    /// Source: the target is ready. Answered by Proceed.
    #[prost(message, tag = "4")]
    Committing(Empty),
    /// Source: the link was lost after GO. Answered by Decide.
    #[prost(message, tag = "5")]
    InDoubt(Empty),
    /// Source: from now on the process dies with the mover; the word to go is next.
    #[prost(message, tag = "7")]
    Leaving(Empty),
    /// The end.
    #[prost(message, tag = "6")]
    Done(Done),
    /// The process that was to be held stands still.
    #[prost(message, tag = "8")]
    Held(Empty),
    /// Source: the target wants the image from this byte on. Answered by Feed.
    #[prost(uint64, tag = "9")]
    Wanted(u64),
    /// Source in doubt, to an agent that did not begin it. Answered by Decide.
    #[prost(message, tag = "10")]
    Doubt(Doubt),
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// 0: the process runs at the target. Else errno or a number of BProc's own.
    #[prost(sint32, tag = "1")]
    pub number: i32,
    /// Why it failed.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Source: from the stop here to the word that it runs there, nanoseconds.
    #[prost(uint64, tag = "3")]
    pub frozen_ns: u64,
    /// Source: bytes of the image.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// Source: the process went, but died on the way to becoming the stand-in.
    #[prost(bool, tag = "5")]
    pub no_stand_in: bool,
    /// Source: SIGKILL or SIGSTOP that somebody sent to the process here after its image was made; 0 for none. Other
    /// signals are read by its stand-in.
    #[prost(sint32, tag = "6")]
    pub signal: i32,
    /// Source: the process was stopped, and its stand-in is, unless somebody has continued it since.
    #[prost(bool, tag = "7")]
    pub stopped: bool,
}
