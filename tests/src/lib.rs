//! Clusters of real agents on this machine, and what tests need to look at them.
//!
//! - [`cluster`]: a cluster of its own for each test program, which leaves nothing behind
//! - [`runner`]: the tests of a program that share one cluster
//! - [`run`]: a program with a time limit
//! - [`procs`]: who lives, in which name space
//! - [`pty`]: a person at a terminal
//! - [`traveller`]: programs that move
//! - [`midway`]: processes that are caught in the middle of a move
//! - [`order`]: what comes in the order in which it was written
//! - [`positions`]: files at whose position several write
//! - [`case`]: what a parent sees of its child, natively and through the system

pub mod case;
pub mod cluster;
pub mod corners;
mod history;
pub mod landlock;
pub mod leading;
pub mod midway;
pub mod order;
pub mod positions;
pub mod procs;
pub mod pty;
pub mod run;
pub mod runner;
pub mod shared_input;
pub mod traveller;
