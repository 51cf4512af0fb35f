//! The stdio service of a machine: carries the standard streams of processes between master and nodes.
//!
//! `bproc-iod` is a process of its own that outlives agents, so that output is complete, byte for byte, when an
//! agent is restarted or killed in between. Its agent speaks to it over a local SEQPACKET socket ([`wire`]) by
//! [`IodClient`] or [`AsyncIodClient`], and starts it by [`launch`].
//!
//! ```text
//!  master                                            node
//!  bpsh ─pipe─▶ iod ── HTTP/2, mTLS, a call a stream ── iod ─pipe─▶ process
//!               ▲ EXPECT token, descriptors            ▲ ATTACH token, descriptors; FLUSH at exit
//!              agent                                  agent
//! ```
//!
//! Each stream has a call of its own, hence a window of its own: memory is bounded for each, and a reader that
//! stalls holds up nobody else, not even the other streams of its own process. A stream ends by `end` (end of file,
//! passed on by closing), by `broken` (the reader is gone; the writer gets SIGPIPE or EPIPE), or with the connection
//! (both: readers see the end, writers EPIPE).

mod client;
mod closed;
mod control;
mod end;
mod launch;
mod links;
mod master;
mod packet;
mod pipes;
mod pump;
mod service;
mod slave;
mod through;
mod turn;
mod wanted;
mod watched;
pub mod wire;

pub use client::{AsyncIodClient, IodClient, IodError, Stream, Taken};
pub use launch::{Launch, launch};
pub use service::{Options, Role, run};
pub use wire::{Kind, Status, StreamName, StreamSpec, Token};
