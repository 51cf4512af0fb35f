//! Client of the machine's agent: a small synchronous interface over its local socket.
//!
//! Meant to live inside anybody's process: no threads, no signal handlers but one while it forks (`sys/fork.rs`), no hidden
//! state, descriptors closed on exec. One [`Client`] is one connection; what must happen between fork and exec is prepared
//! before ([`Prepared`]).
//!
//! [`frame`] is the format of the packets; the agent uses the same module.

mod calls;
mod client;
pub mod error;
mod ffi;
pub mod frame;
mod reply;
mod spawn;
mod sys;

pub use bproc_proto::client::change_libraries::How as HowLibraries;
pub use bproc_proto::client::{Node, ProcessOnNode, SetNode};
pub use client::{Client, Files, Identity, MoveRequest, Moved, Watch, socket_path};
pub use error::Error;
pub use spawn::{Prepared, Signals, Source, SpawnRequest, Stream, Terminal, spawn_in_place};
