//! The user-space side of the eBPF programs.
//!
//! [`Monitor`] loads the object, keeps maps and links pinned so that nothing is
//! missed while the agent restarts, and hands out the events. [`Capabilities`]
//! finds out by trying what the running kernel offers. Which events matter is for others to decide.

mod control;
mod error;
mod landlock;
mod logs;
mod misses;
mod monitor;
mod offsets;
mod pins;
mod probe;
mod sys;
mod tasks;

pub use control::Control;
pub use error::Error;
pub use monitor::{Config, Feature, Monitor, Role};
pub use offsets::resolve as resolve_offsets;
pub use probe::{Capabilities, Need, Probe, Row, State};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
