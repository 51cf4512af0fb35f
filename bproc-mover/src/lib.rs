//! One half of a move: `bproc-mover` sends one process away, or receives one, and is ready for another then. The agent has
//! one for each half,
//! with a SEQPACKET connection as descriptor [`SOCKET`], and speaks [`wire`] on it. A program of its own because
//! ptrace binds a process to one thread, and because an agent must be able to die in the middle of a move. The
//! connection between the two is made by the agents, where the keys of the certificates are; a mover gets it with no
//! more than its own keys.
//!
//! ```text
//!  agent ── Send ──▶ source                          target ◀── Receive ── agent
//!        ── Line ──▶   │ (surveys before)              │
//!                      │     files, rights, ids        │
//!                      │ ─────────────────────────────▶│
//!                      │ what it has, or what it lacks │
//!                      │ ◀─────────────────────────────│
//!        ◀─ Frozen ─   │ freezes                       │
//!        ── Begin ────▶│ (if it has other children     │
//!                      │ than the target knows of)     │
//!                      │           image               │
//!                      │ ─────────────────────────────▶│ builds
//!                      │           READY or refusal    │ ── Ready ─▶  ◀─ Proceed ─
//!        ◀─ Committing │ ◀─────────────────────────────│
//!        ── Proceed ──▶│           GO                  │
//!                      │ ─────────────────────────────▶│ runs
//!                      │           RUNNING             │ ── Done ─▶
//!        ◀── Done ──── │ ◀─────────────────────────────│
//!        becomes the stand-in, in place
//! ```
//!
//! Before GO any failure, the death of either mover included, leaves the process running at the source. With GO the
//! source binds the process to itself: if it is killed from then on, the kernel kills the process in the same moment, so that
//! it never runs twice. It stands still until the source knows: RUNNING on the connection, or Decide of the agent, or of the
//! next one if this is gone.

pub mod doubt;
pub mod fault;
pub mod filters;
pub mod line;
pub mod receive;
pub mod send;
pub mod spread;
pub mod talk;
pub mod wire;

/// Descriptor of the connection to the agent.
pub const SOCKET: i32 = 3;

/// Name of a mover in the middle of a move.
pub const BUSY: &str = "bproc-moving";
