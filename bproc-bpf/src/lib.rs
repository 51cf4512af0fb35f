//! The user-space side of the eBPF programs.
//!
//! [`Monitor`] loads the object, keeps maps and links pinned so that nothing is
//! missed while the agent restarts, and hands out the events; [`spawn_reader`]
//! gives them a thread of their own. [`Capabilities`] finds out by trying what
//! the running kernel offers. Which events matter is for others to decide.

mod control;
mod error;
mod logs;
mod monitor;
mod offsets;
mod pins;
mod probe;
mod reader;

pub use control::Control;
pub use error::Error;
pub use monitor::{Config, Feature, Monitor, Role};
pub use offsets::resolve as resolve_offsets;
pub use probe::{Capabilities, Need, Probe, Row, State};
pub use reader::{Reader, spawn_reader};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
