//! What an agent and the stdio service of its machine say to each other: SEQPACKET, one [`Request`] or [`Reply`] a
//! packet, descriptors beside the request in the order of its streams.
//!
//! Requests are answered in any order, by tag. Several agents may be connected at once (one that starts while its
//! predecessor ends). The service talks only to root and to its own user.

/// Largest packet, bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// Most streams of one process.
pub const MAX_STREAMS: usize = 64;

/// Names the streams of one process between the two services; unguessable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

impl Token {
    /// A fresh one from the kernel's random numbers.
    ///
    /// # Errors
    /// As `/dev/urandom` has them.
    pub fn random() -> std::io::Result<Token> {
        use std::io::Read;
        let mut bytes = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Token(bytes))
    }

    /// From exactly 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Token> {
        bytes.try_into().ok().map(Token)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    /// Its first bytes only: logs must not let anyone claim a stream.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}..", self.0[0], self.0[1], self.0[2])
    }
}

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// The process writes, the master's descriptor is written to.
    Output = 0,
    /// The process reads, the master's descriptor is read from.
    Input = 1,
    /// Input of a pseudo terminal: besides, carries its size, and the end of file becomes the terminal's end-of-file
    /// character. On the node the descriptor is the terminal's master side; give the same again for an output stream
    /// of another number.
    PtyInput = 2,
    /// Output of a pseudo terminal.
    PtyOutput = 3,
    /// No stream of the process: a pipe on which the master's service tells of each of its streams that is lost with the
    /// connection: pid and number of the descriptor, two `int`. One at most.
    Report = 4,
}

/// One stream of a process; its descriptor travels beside the packet.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct StreamSpec {
    /// Number of the descriptor in the process; each only once.
    #[prost(sint32, tag = "1")]
    pub fd: i32,
    /// What it is.
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
}

impl StreamSpec {
    /// A stream.
    pub fn new(fd: i32, kind: Kind) -> StreamSpec {
        StreamSpec { fd, kind: kind as i32 }
    }
}

/// A request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Returned in the reply.
    #[prost(uint64, tag = "1")]
    pub tag: u64,
    /// What is asked.
    #[prost(oneof = "Body", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub body: Option<Body>,
}

/// What is asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Master: a node is going to call for these.
    #[prost(message, tag = "2")]
    Expect(Expect),
    /// Slave: forward these.
    #[prost(message, tag = "3")]
    Attach(Attach),
    /// Close what belongs to the token; it need not be known (the spawn failed).
    #[prost(bytes, tag = "4")]
    Forget(Vec<u8>),
    /// Slave: the process has exited. The reply comes when all that it wrote is written on the master's side, or
    /// cannot be any more. Streams that have ended before count as written: the reply is at once for an unknown token.
    #[prost(bytes, tag = "5")]
    Flush(Vec<u8>),
    /// Master: the terminal of this process has a new size.
    #[prost(message, tag = "6")]
    Winsize(Winsize),
    /// Master: this node is down; end its streams.
    #[prost(sint32, tag = "7")]
    Sever(i32),
    /// How are you?
    #[prost(message, tag = "8")]
    Status(Empty),
    /// End all streams and the service.
    #[prost(message, tag = "9")]
    Quit(Empty),
    /// Master: a process moves to another node, which is going to call for these streams of it under another name.
    /// Output goes on under the old name too, for those who stay behind; under the new one it waits for Leave. Input begins under the new name when it has ended
    /// under the old one, with what was called back.
    #[prost(message, tag = "10")]
    Share(Share),
    /// Master: a process comes home: duplicates of the descriptors of these streams come with the reply. For input, which
    /// begins when it has ended under the old name, it may be a pipe; for output too, if nobody reads now: then what
    /// comes by it waits for Leave.
    #[prost(message, tag = "11")]
    Take(Take),
    /// Slave: the process stands still and is about to go elsewhere: what was sent ahead to this input and not read
    /// comes back to the master. The reply comes when it is there. Then Settle; if the agent goes, so that it stays.
    #[prost(message, tag = "12")]
    Recall(StreamName),
    /// Slave: what became of a process whose input was called back.
    #[prost(message, tag = "13")]
    Settle(Settle),
    /// Slave: the process has ended: nobody calls back its inputs any more.
    #[prost(bytes, tag = "14")]
    Over(Vec<u8>),
    /// Master: the process of this token, or of any if it is empty, runs on its node: inputs that were held are read.
    #[prost(bytes, tag = "15")]
    Open(Vec<u8>),
    /// Slave: which stream is the pipe with this inode number the node's end of? An agent that has just begun asks.
    #[prost(uint64, tag = "16")]
    Pipe(u64),
    /// Slave: the process stands still and is about to go elsewhere. What it has written is passed on in its time; what comes
    /// under its new name waits for that. The reply is at once.
    #[prost(message, tag = "17")]
    Leave(Leave),
    /// Master: a process leaves its node, and these streams of it lead back there: the node calls for them, with descriptors that
    /// others have, too. One Share or Take with these names gives them to where the process goes.
    #[prost(message, tag = "18")]
    Back(Back),
    /// Master: a process has ended that had the pipe with this inode number. The reply comes when what is in it is on the node to
    /// which it leads back; at once for any other.
    #[prost(uint64, tag = "19")]
    There(u64),
}

/// See [`Body::Leave`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Leave {
    /// [`Token`] of its streams here.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// [`Token`] of its streams where it goes.
    #[prost(bytes = "vec", tag = "2")]
    pub successor: Vec<u8>,
}

/// See [`Body::Back`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Back {
    /// [`Token`].
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Streams as the process has them: what it writes to is an output, though the node is sent it.
    #[prost(message, repeated, tag = "2")]
    pub streams: Vec<StreamSpec>,
}

/// Names one stream.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamName {
    /// [`Token`].
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Its number there.
    #[prost(sint32, tag = "2")]
    pub fd: i32,
    /// What it is, for one that has ended: then it is broken, or at its end, under the new name too.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
}

/// See [`Body::Share`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Share {
    /// The old names.
    #[prost(message, repeated, tag = "1")]
    pub from: Vec<StreamName>,
    /// The new [`Token`].
    #[prost(bytes = "vec", tag = "2")]
    pub token: Vec<u8>,
    /// The new numbers, in the same order.
    #[prost(sint32, repeated, tag = "3")]
    pub fds: Vec<i32>,
}

/// See [`Body::Settle`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Settle {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub stream: Option<StreamName>,
    /// It has gone: the stream ends here. Else it stays and reads on.
    #[prost(bool, tag = "2")]
    pub gone: bool,
}

/// See [`Body::Take`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Take {
    /// Which.
    #[prost(message, repeated, tag = "1")]
    pub streams: Vec<StreamName>,
    /// What [`Leave`] will call the successor: for outputs that nobody reads now.
    #[prost(bytes = "vec", tag = "2")]
    pub token: Vec<u8>,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// See [`Body::Expect`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Expect {
    /// [`Token`].
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Streams, one for each descriptor of the packet.
    #[prost(message, repeated, tag = "2")]
    pub streams: Vec<StreamSpec>,
    /// The node that may claim them; absent: any.
    #[prost(sint32, optional, tag = "3")]
    pub node: Option<i32>,
    /// Pid of the process on the master that the streams are for, or 0: when it is gone, nobody will call for what was
    /// not called for. (An agent that is killed in the middle of a start cannot say FORGET.)
    #[prost(sint32, tag = "4")]
    pub owner: i32,
    /// Inputs are not read before Open: the process still reads them here. Then only what somebody reads on the node: others here
    /// may read the rest.
    #[prost(bool, tag = "5")]
    pub held: bool,
}

/// See [`Body::Attach`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// [`Token`].
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Streams, one for each descriptor of the packet.
    #[prost(message, repeated, tag = "2")]
    pub streams: Vec<StreamSpec>,
    /// `HOST:PORT` of the master's stdio service.
    #[prost(string, tag = "3")]
    pub master: String,
    /// The descriptors are those of a process that leaves ([`Body::Back`]): others have them, too, and each is the other way
    /// round: what the process writes to is an input.
    #[prost(bool, tag = "4")]
    pub back: bool,
}

/// See [`Body::Winsize`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Winsize {
    /// [`Token`].
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// struct winsize, 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub winsize: Vec<u8>,
}

/// A reply.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// That of the request.
    #[prost(uint64, tag = "1")]
    pub tag: u64,
    /// errno of a failure, 0 for success.
    #[prost(sint32, tag = "2")]
    pub errno: i32,
    /// The failure in words.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Answer to [`Body::Status`].
    #[prost(message, optional, tag = "4")]
    pub status: Option<Status>,
    /// Answer to [`Body::Flush`]: false when something could not be written because the connection was lost.
    #[prost(bool, tag = "5")]
    pub complete: bool,
    /// Answer to [`Body::Forget`] on the master: something has passed already, or may have been read.
    #[prost(bool, tag = "6")]
    pub used: bool,
    /// Answer to [`Body::Pipe`]; absent: of none.
    #[prost(message, optional, tag = "7")]
    pub stream: Option<StreamName>,
    /// Answer to [`Body::Take`]: some output waits for Leave.
    #[prost(bool, tag = "8")]
    pub waits: bool,
    /// Answer to [`Body::Take`]: inode numbers of pipes among them that lead back to a node.
    #[prost(uint64, repeated, tag = "9")]
    pub leading: Vec<u64>,
}

/// How the service is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// Its pid.
    #[prost(sint32, tag = "1")]
    pub pid: i32,
    /// Master: address that it listens on, with the port that it got. Empty on a slave.
    #[prost(string, tag = "2")]
    pub listening: String,
    /// Cluster.
    #[prost(string, tag = "3")]
    pub cluster: String,
    /// Processes with streams.
    #[prost(uint64, tag = "4")]
    pub processes: u64,
    /// Of these on the master: streams that no node has called for yet.
    #[prost(uint64, tag = "5")]
    pub unclaimed: u64,
    /// Bytes of output carried since the start.
    #[prost(uint64, tag = "6")]
    pub output_bytes: u64,
    /// Bytes of input carried since the start.
    #[prost(uint64, tag = "7")]
    pub input_bytes: u64,
    /// Version.
    #[prost(string, tag = "8")]
    pub version: String,
}
