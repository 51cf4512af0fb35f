//! What every part of BProc shares, down to the ghost and the eBPF programs.
//!
//! No IO, no system calls, no allocation unless the `alloc` feature is on. The
//! wire records here ([`ghost`], [`keeper`], [`event`], [`exec`]) are `repr(C)`,
//! their padding is written out and their sizes are asserted.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod errno;
pub mod event;
pub mod exec;
pub mod ghost;
pub mod id;
pub mod keeper;
pub mod landlock;
#[cfg(feature = "alloc")]
pub mod nodeset;
pub mod perm;
pub mod shown;
pub mod wait;
pub mod wire;
