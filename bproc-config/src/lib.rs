//! Configuration of a BProc machine: what its files say, where its things lie, and who may speak for whom.
//!
//! * [`MachineConfig`]: read from `agent.toml` with its `conf.d`, from `/etc/bproc.conf`, or from
//!   `/etc/clustermatic/config`. A file is read to its end: every [`Mistake`] is told with file, line and reason.
//! * [`paths`]: run directory and sockets of a cluster; [`state_file`]: `/var/run/bproc` as old programs read it.
//! * [`tls`], [`certs`], [`net`], [`handoff`]: certificates that name a node, and connections on which both
//!   ends have proved who they are, for ourselves or for another process.
//!
//! Neighbours: the agent and the stdio service use it; it knows neither of them.

mod check;
mod draft;
mod machine;
mod mistake;
mod resolve;
mod text_format;
mod toml_format;

pub mod certs;
pub mod handoff;
pub mod net;
pub mod paths;
pub mod state_file;
pub mod tls;

pub use check::{Report, check};
pub use machine::{
    Cache, DEFAULT_PORT, Libraries, MachineConfig, MasterAddress, NodeDefaults, NodeEntry, OnMasterLoss, Pids,
    Security, SlaveOptions, Stdio, default_path,
};
pub use mistake::{ConfigError, Mistake, Origin};
pub use resolve::{Resolver, SystemResolver};
