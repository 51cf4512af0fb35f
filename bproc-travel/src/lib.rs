//! Programs travel: what a program is made of on the master, its way to the nodes, and where they keep it.
//!
//! ```text
//!  master                                              node
//!  pack ── resolve, elf, ldcache: its files            plan: what the node lacks ─▶ view (bproc-sys)
//!   │ by digest, in the order to spawn ──────────────▶  node ─▶ fetch ─▶ store: cache, trees
//!  offers ◀── serve, broker: who asks whom ◀────────────────────┘  └─ serve: to other nodes
//! ```
//! A program that the node has as the master has it costs a few calls of stat on each side, made while other things
//! are waited for, and nothing else: no file, no round trip, no view.
//!
//! Neighbours: the agent's two roles use it ([`pack`], [`serve`] there, [`node`] here); it knows no processes.
#![forbid(unsafe_code)]

pub mod broker;
pub mod digest;
pub mod elf;
pub mod fetch;
pub mod glob;
pub mod ldcache;
pub mod node;
pub mod offers;
pub mod open;
pub mod pack;
pub mod plan;
pub mod resolve;
pub mod serve;
pub mod store;
