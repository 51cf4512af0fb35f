//! The agent's side of the stdio service: starts it where none runs, and again when it is lost.

use anyhow::{Context, Result};
use bproc_common::id::Pid;
use bproc_config::MachineConfig;
use bproc_proto::Failure;
use bproc_stdio::{AsyncIodClient, IodError, Kind, Launch, Role, Status, StreamName, StreamSpec, Taken, Token, launch};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long what a process wrote may take to be out.
pub const FLUSH: Duration = Duration::from_secs(5);
/// The same before it goes, where somebody reads it: it stands still meanwhile, and may try again.
const FLUSH_READ: Duration = Duration::from_secs(1);
/// The same, where what nobody reads need not be out.
const FLUSH_HOME: Duration = Duration::from_millis(100);

/// The stdio service of this machine in one role.
pub struct Iod {
    config: MachineConfig,
    program: PathBuf,
    socket: PathBuf,
    role: Role,
    client: Mutex<Option<AsyncIodClient>>,
}

impl Iod {
    /// Connects to the service at `socket`, or starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(config: &MachineConfig, socket: PathBuf, role: Role) -> Result<Iod> {
        let program = config.libexec_dir.join("bproc-iod");
        let iod = Iod { config: config.clone(), program, socket, role, client: Mutex::new(None) };
        iod.client().await?;
        Ok(iod)
    }

    async fn client(&self) -> Result<AsyncIodClient> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref().filter(|c| !c.is_lost()) {
            return Ok(client.clone());
        }
        let (config, program) = (self.config.clone(), self.program.clone());
        let (socket, role) = (self.socket.clone(), self.role);
        tokio::task::spawn_blocking(move || {
            let how = Launch {
                program: &program,
                socket,
                role,
                listen: config.stdio.bind,
                security: &config.security,
                cluster: &config.name,
                timeout_s: config.ping_timeout_s,
            };
            launch(&how).map(drop)
        })
        .await?
        .with_context(|| format!("starting the stdio service {}", self.program.display()))?;
        let fresh = AsyncIodClient::connect(&self.socket)?;
        *client = Some(fresh.clone());
        Ok(fresh)
    }

    /// How the service is.
    ///
    /// # Errors
    /// It is lost.
    pub async fn status(&self) -> Result<Status> {
        Ok(self.client().await?.status().await?)
    }

    /// Master: a node is going to call for these streams (number in the process, whether it reads from it) of the
    /// process `owner` of this machine. When that is gone, what was not called for is closed. Those that are lost are told
    /// on `report`.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn expect(
        &self,
        token: &[u8],
        streams: &[(i32, bool)],
        fds: Vec<OwnedFd>,
        report: Option<OwnedFd>,
        pty: bool,
        owner: Pid,
    ) -> Result<()> {
        let (token, specs) = (known(token)?, specs(streams, pty));
        let report = report.as_ref().map(|fd| (StreamSpec::new(REPORT, Kind::Report), fd.as_fd()));
        let streams: Vec<_> = specs.into_iter().zip(fds.iter().map(|f| f.as_fd())).chain(report).collect();
        Ok(self.client().await?.expect_for(token, &streams, owner.get()).await?)
    }

    /// As [`Iod::expect`], for a process that still reads its input here: it is not read before [`Iod::open`], and then only what
    /// is read where the process is.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn expect_held(
        &self,
        token: &[u8],
        streams: &[(i32, bool)],
        fds: Vec<OwnedFd>,
        owner: Pid,
    ) -> Result<()> {
        let (token, specs) = (known(token)?, specs(streams, false));
        let streams: Vec<_> = specs.into_iter().zip(fds.iter().map(|f| f.as_fd())).collect();
        Ok(self.client().await?.expect_held(token, &streams, owner.get()).await?)
    }

    /// Master: the process of this token, or of any, runs on its node and reads its input there.
    pub async fn open(&self, token: Option<&[u8]>) {
        let token = token.map(known).transpose();
        if let (Ok(token), Ok(client)) = (token, self.client().await) {
            // A lost service has closed everything.
            let _ = client.open(token).await;
        }
    }

    /// Slave: what was sent ahead to an input (token, number) of a process that stands still comes back to the master.
    pub async fn recall(&self, token: &[u8], fd: i32) {
        let Ok(client) = self.client().await else { return };
        if let Err(error) = client.recall(input(token, fd)).await {
            tracing::warn!(%error, "calling back the input of a process");
        }
    }

    /// Slave: it has gone, or stays.
    pub async fn settle(&self, token: &[u8], fd: i32, gone: bool) {
        if let Ok(client) = self.client().await {
            let _ = client.settle(input(token, fd), gone).await;
        }
    }

    /// Slave: the stream that a pipe with this inode number belongs to: its token, number and whether it is input.
    pub async fn stream_of(&self, inode: u64) -> Option<(Vec<u8>, i32, bool)> {
        let stream = self.client().await.ok()?.stream_of(inode).await.ok()??;
        let input = stream.kind() == Kind::Input;
        Some((stream.token, stream.fd, input))
    }

    /// Slave: the process has ended.
    pub async fn over(&self, token: &[u8]) {
        if let (Ok(token), Ok(client)) = (known(token), self.client().await) {
            let _ = client.over(token).await;
        }
    }

    /// Master: these streams (token, number, input) go on as the numbers `fds` of another token.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn share(&self, from: &[(Vec<u8>, i32, bool)], token: &[u8], fds: Vec<i32>) -> Result<()> {
        Ok(self.client().await?.share(stream_names(from), known(token)?, fds).await?)
    }

    /// Master: what these streams lead to, for a process that comes home. If some wait, what nobody reads now is written when its
    /// node has said [`Iod::leave`] with the same token.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn take(&self, streams: &[(Vec<u8>, i32, bool)], token: &[u8]) -> Result<Taken> {
        Ok(self.client().await?.take(stream_names(streams), known(token)?).await?)
    }

    /// Slave: a process that stands still goes on elsewhere, where its streams have another token. False: the service is
    /// lost.
    pub async fn leave(&self, token: &[u8], successor: &[u8]) -> bool {
        let asked =
            async { Ok::<_, anyhow::Error>(self.client().await?.leave(known(token)?, known(successor)?).await?) };
        asked.await.inspect_err(|error| tracing::warn!(%error, "output of a process that moves")).is_ok()
    }

    /// Slave: forward these. Comes back when the service has them, whatever becomes of this agent from then on; its
    /// answer is awaited by the second `await`.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn attach(
        &self,
        token: &[u8],
        master: &str,
        streams: &[(i32, bool)],
        fds: Vec<OwnedFd>,
        pty: bool,
    ) -> Result<impl Future<Output = Result<(), IodError>> + Send + use<>> {
        let (token, specs) = (known(token)?, specs(streams, pty));
        let streams: Vec<_> = specs.into_iter().zip(fds.iter().map(|f| f.as_fd())).collect();
        Ok(self.client().await?.attach(token, &streams, master).await?)
    }

    /// Slave: descriptors (number in the process, whether it reads from it) of a process that is about to leave, which stay here.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn attach_back(
        &self,
        token: &[u8],
        master: &str,
        streams: &[(i32, bool)],
        fds: &[OwnedFd],
    ) -> Result<()> {
        let streams: Vec<_> = specs(streams, false).into_iter().zip(fds.iter().map(|f| f.as_fd())).collect();
        Ok(self.client().await?.attach_back(known(token)?, &streams, master).await?)
    }

    /// Master: these streams (number, whether the process reads from it) of this name lead back to a node, which calls for them.
    ///
    /// # Errors
    /// The service is lost.
    pub async fn back(&self, token: &[u8], streams: &[(i32, bool)]) -> Result<()> {
        Ok(self.client().await?.back(known(token)?, specs(streams, false)).await?)
    }

    /// Master: waits until what was written to pipes with these inode numbers is on the node to which they lead back, if they do.
    pub async fn are_there(&self, pipes: &[u64]) {
        let Ok(client) = self.client().await else { return };
        let all = async {
            for inode in pipes {
                let _ = client.is_there(*inode).await;
            }
        };
        if tokio::time::timeout(FLUSH, all).await.is_err() {
            tracing::debug!("nobody on a node reads what a process wrote that has ended here");
        }
    }

    /// Close what belongs to the token. On the master, true: something has passed by its streams, or may have.
    pub async fn forget(&self, token: &[u8]) -> bool {
        match (known(token), self.client().await) {
            // A lost service has closed everything, and cannot say what has passed.
            (Ok(token), Ok(client)) => client.forget(token).await.unwrap_or(true),
            (_, client) => client.is_err(),
        }
    }

    /// Slave: a process that stands still is about to go. What it has not read comes back, by its inputs (token, number); what it
    /// has written goes on by its streams. Where it goes on as `successor` what it writes there waits for that; else it must
    /// be out first. False: it is not, in time, or the service is lost.
    pub async fn let_go(
        &self,
        inputs: Vec<(Vec<u8>, i32)>,
        streams: BTreeSet<Vec<u8>>,
        successor: &[u8],
        home: bool,
    ) -> bool {
        for (token, stream) in inputs {
            self.recall(&token, stream).await;
        }
        for token in streams {
            if !successor.is_empty() && !self.leave(&token, successor).await {
                return false;
            }
            match (successor.is_empty(), home) {
                // He who read when this was decided does no more, it seems: the next try will know.
                (true, _) if !self.flush(&token, FLUSH_READ).await => return false,
                // What is no pipe at home does not wait, and needs no more time than it takes.
                (false, true) => drop(self.flush(&token, FLUSH_HOME).await),
                _ => {}
            }
        }
        true
    }

    /// Slave: waits until what the process wrote is out on the master's side, or lost, at most `limit`. False: that was not enough.
    pub async fn flush(&self, token: &[u8], limit: std::time::Duration) -> bool {
        let (Ok(token), Ok(client)) = (known(token), self.client().await) else { return true };
        match tokio::time::timeout(limit, client.flush(token)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Ok(Err(IodError::Lost(_))) => {
                tracing::warn!("output of a process was lost with its connection")
            }
            Ok(Err(error)) => tracing::warn!(%error, "waiting for the output of a process"),
            Err(_) => {
                tracing::debug!("nobody reads the output of a process that has ended or is about to go");
                return false;
            }
        }
        true
    }

    /// Master: the node is down; end its streams.
    pub async fn sever(&self, node: i32) {
        if let Ok(client) = self.client().await {
            let _ = client.sever(node).await;
        }
    }
}

/// Number of the descriptor that is no stream.
const REPORT: i32 = -1;

fn input(token: &[u8], fd: i32) -> StreamName {
    StreamName { token: token.to_vec(), fd, kind: Kind::Input as i32 }
}

/// Opens the file that a stream names, with the rights of the user whose process it is for. May take its time.
///
/// # Errors
/// What open(2) and lseek(2) say, with the path.
pub async fn open_file(stream: &bproc_proto::Stream, spec: &bproc_proto::SpawnSpec) -> Result<OwnedFd, Failure> {
    let path = String::from_utf8_lossy(&stream.path).into_owned();
    let credentials = spec.credentials.clone().unwrap_or_default();
    let (bytes, flags, mode) = (stream.path.clone(), stream.flags as i32, stream.mode & !spec.umask);
    let (cwd, offset) = (spec.cwd.clone(), stream.offset);
    // With the user's rights, and not on a thread that others wait for: the file system may be slow.
    let opened = tokio::task::spawn_blocking(move || {
        let (uid, gid, groups) = (credentials.euid, credentials.egid, credentials.groups);
        let fd = bproc_sys::as_user::open(uid, gid, &groups, &cwd, &bytes, flags, mode)
            .map_err(|e| (e.errno(), words(&std::io::Error::from_raw_os_error(e.errno()))))?;
        let mut file = std::fs::File::from(fd);
        if offset != 0 {
            use std::io::Seek;
            let at = u64::try_from(offset).map_err(|_| (libc::EINVAL, format!("position {offset}")))?;
            file.seek(std::io::SeekFrom::Start(at)).map_err(|e| (e.raw_os_error().unwrap_or(libc::EIO), words(&e)))?;
        }
        Ok(OwnedFd::from(file))
    });
    match opened.await {
        Ok(Ok(fd)) => Ok(fd),
        Ok(Err((number, why))) => Err(Failure { number, message: format!("{path}: {why}") }),
        Err(error) => Err(Failure { number: libc::EIO, message: format!("{path}: {error}") }),
    }
}

/// What an errno says, without the number that `io::Error` adds.
pub fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn known(token: &[u8]) -> Result<Token> {
    Token::from_bytes(token).context("a token of another length")
}

fn stream_names(streams: &[(Vec<u8>, i32, bool)]) -> Vec<StreamName> {
    let kind = |input: bool| if input { Kind::Input } else { Kind::Output };
    streams.iter().map(|(token, fd, i)| StreamName { token: token.clone(), fd: *fd, kind: kind(*i) as i32 }).collect()
}

fn specs(streams: &[(i32, bool)], pty: bool) -> Vec<StreamSpec> {
    let kind = |input: bool| match (pty, input) {
        (true, true) => Kind::PtyInput,
        (true, false) => Kind::PtyOutput,
        (false, true) => Kind::Input,
        (false, false) => Kind::Output,
    };
    streams.iter().map(|(fd, input)| StreamSpec::new(*fd, kind(*input))).collect()
}
