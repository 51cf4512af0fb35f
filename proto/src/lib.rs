//! Wire formats: generated from `proto/bproc/*.proto`, which tell what each field means.
#![allow(missing_docs, unreachable_pub, clippy::all)]

// Processes: what a fresh one is made from, failures.
include!(concat!(env!("OUT_DIR"), "/bproc.rs"));

/// Between the master's agent and a slave's.
#[cfg(feature = "rpc")]
pub mod link {
    include!(concat!(env!("OUT_DIR"), "/bproc.link.rs"));
}
/// Between the stdio services.
#[cfg(feature = "rpc")]
pub mod stdio {
    include!(concat!(env!("OUT_DIR"), "/bproc.stdio.rs"));
}
/// Content of files, between agents.
#[cfg(feature = "rpc")]
pub mod files {
    include!(concat!(env!("OUT_DIR"), "/bproc.files.rs"));
}
/// For schedulers, on the master's machine.
#[cfg(feature = "rpc")]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/bproc.api.rs"));
}
/// Between a process and the agent of its machine.
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/bproc.client.rs"));
}
