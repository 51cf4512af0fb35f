//! What can go wrong between the agent and the kernel's eBPF.

use std::{io, path::PathBuf};

/// Why eBPF monitoring failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no type information about itself.
    #[error("cannot read the kernel's BTF from {path}: {why}; a kernel with CONFIG_DEBUG_INFO_BTF is needed")]
    Btf {
        /// Where it should be.
        path: &'static str,
        /// What the reader said.
        why: String,
    },
    /// A structure of the kernel does not have a field that the programs read.
    #[error("the kernel's {path} is missing in its BTF; this kernel is not supported yet")]
    Field {
        /// Structure and fields.
        path: String,
    },
    /// The object file cannot be loaded.
    #[error("cannot load the eBPF object {path}: {why}; is it from this build, and are we root?")]
    Object {
        /// The object.
        path: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// A program that monitoring cannot do without was refused.
    #[error("the kernel refused the eBPF program {name}: {why}")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// What the loader said, with the end of the verifier's log.
        why: String,
    },
    /// A map cannot be opened, read or changed.
    #[error("eBPF map {name}: {why}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// What the kernel said.
        why: String,
    },
    /// Pins cannot be made, read or removed.
    #[error("cannot {what} {path}: {source}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// All causes of an error in one line: loaders hide the kernel's answer deep down.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}
