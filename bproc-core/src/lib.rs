//! Every decision of BProc, without IO, clock or randomness: facts in, actions out.
//!
//! - [`master`]: nodes, ghosts, signals, waits of the master
//! - [`slave`]: which skeletons a spawn needs, which block of pids forks take from
//! - [`group`]: signals to whole groups, of which stand-ins have copies
//! - [`session`]: numbered messages that survive a broken link
//! - [`lease`]: blocks of pids for the nodes
//!
//! The agent is the shell around it: it turns packets into calls, and performs the actions.
#![forbid(unsafe_code)]

pub mod group;
pub mod lease;
pub mod master;
pub mod session;
pub mod slave;
