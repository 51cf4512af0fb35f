//! Wire formats: generated from `proto/bproc/*.proto`, which tell what each field means.
#![allow(missing_docs, unreachable_pub, clippy::all)]

// Processes: what a fresh one is made from, failures.
tonic::include_proto!("bproc");

/// Between the master's agent and a slave's.
pub mod link {
    tonic::include_proto!("bproc.link");
}
/// Between the stdio services.
pub mod stdio {
    tonic::include_proto!("bproc.stdio");
}
/// Between a process and the agent of its machine.
pub mod client {
    tonic::include_proto!("bproc.client");
}
