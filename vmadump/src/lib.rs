//! Images of processes: capture, format, restore.
//!
//! | module | owns |
//! |---|---|
//! | [`image`] | the format: pure bytes in, bytes out (docs/image-format.md) |
//! | [`ahead`] | what is asked of the restorer before a process is stopped |
//! | [`capture`] | a running process becomes a [`capture::Frozen`], which writes its image |
//! | [`plan`] | image and facts become a list of steps, or a [`Refusal`] |
//! | [`restore`] | the list carried out from outside, by ptrace: [`restore::Prepared`] |
//! | [`limits`] | limits that get in the way of what is done in a process |
//! | [`inside`] | dump and undump of the calling process, without privilege |
//! | `sys` | every system call and every unsafe block |

pub mod ahead;
mod batch;
pub mod capture;
mod compile;
pub mod cpu;
pub mod crc;
mod elf;
mod error;
pub mod facts;
mod habits;
pub mod image;
mod inject;
pub mod inside;
pub mod limits;
pub mod plan;
pub mod procfs;
pub mod restore;
mod sys;
mod tracee;
mod vdso;
pub mod wire;

pub use error::{Error, Refusal, Uncarried};
pub use inject::Program;
pub use sys::SysError;
pub use sys::files::{give_name, own_descriptor};
pub use sys::signals::{Proxy, no_signal_for_large_files};
pub use tracee::Tracee;

/// Waits for the end of a child: its wait status.
pub fn wait_child(pid: i32) -> std::io::Result<i32> {
    sys::process::reap(pid)
}
