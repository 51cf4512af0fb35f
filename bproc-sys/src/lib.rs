//! The system calls that BProc makes, safe to use.
//!
//! Every `unsafe` of the agents lives here. No policy, no runtime, no threads: a function does one thing, tells what
//! it tried and to whom when it fails ([`Error`]), and never waits unless its name or its documentation says so.
//! Pids are [`bproc_common::id::Pid`], so that the numbers with which `kill(2)` means "everybody" cannot come here.

pub mod as_user;
pub mod caps;
pub mod daemon;
mod error;
pub mod files;
mod launch;
pub mod limits;
pub mod memfd;
pub mod pidfd;
pub mod pids;
mod pod;
pub mod poll;
pub mod process;
pub mod queue_room;
pub mod seqpacket;
pub mod signal;
pub mod space;
pub mod terminal;
pub mod time;
pub mod trace;
pub mod view;

pub use error::{Error, Result};
