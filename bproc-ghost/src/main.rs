//! The ghost: a static program without libc or heap that stands for a process which
//! runs elsewhere, or (as `init`) holds a node's part of the space.
//!
//! Where things are: [`entry`] starts; [`ghost`] is the state and the loop; [`link`]
//! the connection to the agent; [`queue`] the signals not yet acknowledged;
//! [`children`] what became of children; [`command`] takes orders, which [`signals`],
//! [`family`], [`title`] and [`exec`] carry out, [`delivered`] with a memory for those
//! sent; [`trial`] tries a program before; [`lease`] ends an init without agent; [`sys`] is the only place with
//! system calls, [`abi`] their numbers and records, [`mem`] what a compiler takes for
//! granted.
//!
//! A fault of its own ends the program at once (`ud2`); it never panics with words, as
//! there is nobody to read them.
#![no_std]
#![no_main]

mod abi;
mod children;
mod command;
mod delivered;
mod entry;
mod exec;
mod family;
mod ghost;
mod lease;
mod link;
mod mem;
mod queue;
mod signals;
mod sys;
mod title;
mod trial;
