//! The configuration as the agent uses it: complete, checked, without a trace of the file that it came from.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::draft::Draft;
use crate::mistake::{ConfigError, Findings, Mistake};
use crate::resolve::{Resolver, SystemResolver};
use crate::tls::TlsFiles;
use crate::{text_format, toml_format};

/// Port of the master where none is configured.
pub const DEFAULT_PORT: u16 = 2223;
/// A larger file is refused, bytes.
pub(crate) const MAX_FILE: u64 = 1 << 20;
/// More nodes are refused.
pub(crate) const MAX_NODES: usize = 65_536;

/// A machine's configuration, for either role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Name of the cluster: lower-case letters, digits and `-`.
    pub name: String,
    /// Where sockets and state lie; see [`crate::paths`].
    pub run_dir: PathBuf,
    /// Where the master listens for its nodes.
    pub bind: SocketAddr,
    /// Nodes of the cluster, by number.
    pub nodes: Vec<NodeEntry>,
    /// Masters that a slave serves. Each is a list of addresses of one master.
    pub masters: Vec<Vec<MasterAddress>>,
    /// Seconds without a word after which a node is down; at least 2.
    pub ping_timeout_s: u32,
    /// Libraries that nodes have or get.
    pub libraries: Libraries,
    /// How machines prove who they are.
    pub security: Security,
    /// Division of the pids.
    pub pids: Pids,
    /// What a node has until someone changes it.
    pub node_defaults: NodeDefaults,
    /// Program run with the node's number when a node connects; absent file: the node is up at once.
    pub node_up: PathBuf,
    /// Directory with `bproc-ghost`, `bproc-keeper`, `bproc-iod` and `bproc.bpf.o`.
    pub libexec_dir: PathBuf,
    /// What a slave does with its processes when its master stays away.
    pub on_master_loss: OnMasterLoss,
    /// Whether processors do not sleep while a process starts or moves.
    pub keep_awake: bool,
    /// The stdio service.
    pub stdio: Stdio,
    /// What a slave does besides.
    pub slave: SlaveOptions,
    /// Directory of a node that is the root of the processes there; `/` for none of their own.
    pub root: PathBuf,
    /// Where nodes keep programs that travelled.
    pub cache: Cache,
    /// Slaves may dial from ports above 1023. Kept for old files: certificates decide, not ports.
    pub allow_insecure_ports: bool,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Number from 0.
    pub number: i32,
    /// As it was written: host name or address.
    pub host: String,
    /// What `host` resolves to.
    pub addr: IpAddr,
}

/// One address of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterAddress {
    /// Host name or address, resolved anew each time it is dialled.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Libraries that nodes have or get from the master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Glob patterns of paths.
    pub patterns: Vec<String>,
    /// Programs; the libraries that they need are meant.
    pub of_binaries: Vec<PathBuf>,
}

/// How machines prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all. Only on a loop-back address, where every user is on this machine anyway.
    Plaintext,
    /// Mutual TLS with these files.
    Tls(TlsFiles),
}

impl Security {
    /// The files, unless plaintext.
    pub fn tls(&self) -> Option<&TlsFiles> {
        match self {
            Security::Plaintext => None,
            Security::Tls(files) => Some(files),
        }
    }
}

/// Division of the pids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pids {
    /// Local pids of the master stay below this; leases for nodes begin here.
    pub boundary: i32,
    /// Pids in a block leased to a node.
    pub lease_block: i32,
}

/// What a node has until someone changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeDefaults {
    /// Permission bits, 0 to 0777; only the x bits have a meaning.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a slave does with its processes when its master stays away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMasterLoss {
    /// End them all: the default, since the master declares them dead.
    End,
    /// Keep them until a master returns.
    Keep,
}

/// The stdio service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stdio {
    /// Where the master's stdio service listens. Port 0: any.
    pub bind: SocketAddr,
    /// Longest time in seconds that an exit status is held back for output that is still under way.
    pub flush_timeout_s: u32,
}

/// Where nodes keep the files of programs that travelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Each node of a machine has a directory of its own in this one.
    pub dir: PathBuf,
    /// Bytes that it may hold, but for what is in use.
    pub limit: u64,
    /// How many nodes each holder of a file serves at once; the others are sent to those that have it.
    pub fan_out: u32,
}

/// What a slave does besides running processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlaveOptions {
    /// Set the clock to the master's.
    pub timesync: bool,
    /// Mounts of its own.
    pub privatefs: bool,
}

/// The first of `/etc/bproc/agent.toml`, `/etc/clustermatic/config`, `/etc/bproc.conf` that is there.
pub fn default_path() -> Option<PathBuf> {
    ["/etc/bproc/agent.toml", "/etc/clustermatic/config", "/etc/bproc.conf"]
        .into_iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
}

impl MachineConfig {
    /// Reads a configuration of any format. Warnings (unknown tags of old formats) come beside it.
    ///
    /// # Errors
    /// Every mistake in every file, with its line.
    pub fn load(path: &Path) -> Result<(MachineConfig, Vec<Mistake>), ConfigError> {
        Self::load_with(path, &SystemResolver)
    }

    /// Like [`MachineConfig::load`], with names resolved by `resolver`.
    ///
    /// # Errors
    /// Every mistake in every file, with its line.
    pub fn load_with(path: &Path, resolver: &dyn Resolver) -> Result<(MachineConfig, Vec<Mistake>), ConfigError> {
        let mut findings = Findings::default();
        let config = Self::gather(path, resolver, &mut findings)?;
        match config {
            Some(config) if findings.mistakes.is_empty() => Ok((config, findings.warnings)),
            _ => Err(ConfigError(findings.mistakes)),
        }
    }

    /// `None` only with mistakes found.
    pub(crate) fn gather(
        path: &Path,
        resolver: &dyn Resolver,
        findings: &mut Findings,
    ) -> Result<Option<MachineConfig>, ConfigError> {
        let text = read_limited(path)?;
        findings.files.push(path.to_path_buf());
        let mut draft = Draft::new(path);
        match text_format::Format::of(path, &text) {
            text_format::Format::Toml => {
                toml_format::read(path, &text, &mut draft, resolver, findings);
                for drop_in in toml_format::drop_ins(path, findings) {
                    match read_limited(&drop_in) {
                        Ok(text) => toml_format::read(&drop_in, &text, &mut draft, resolver, findings),
                        Err(e) => findings.mistakes.extend(e.0),
                    }
                    findings.files.push(drop_in);
                }
            }
            text_format::Format::BprocConf => text_format::read_bproc_conf(path, &text, &mut draft, resolver, findings),
            text_format::Format::Clustermatic => {
                text_format::read_clustermatic(path, &text, &mut draft, resolver, findings);
            }
        }
        Ok(draft.finish(findings))
    }
}

fn read_limited(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let fail = |reason: String| ConfigError::whole_file(path, reason);
    let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(fail("is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(format!("is larger than {MAX_FILE} bytes: not a configuration")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        fail(format!("line {line} is not UTF-8 text"))
    })
}
