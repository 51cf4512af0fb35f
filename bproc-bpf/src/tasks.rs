//! What /proc does not tell of a process: an iterator over the kernel's tasks, narrowed to those asked for, runs the program that
//! looks. It costs nothing while nobody asks, and loads where programs that need a trampoline are refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramInfo},
};

use crate::error::chain;
use crate::sys::bpf;

/// The program that tells who gets the children of a process when it ends (`PR_SET_CHILD_SUBREAPER`).
pub(crate) const SUBREAPER: &str = "subreaper";
/// The program that tells who is under Landlock.
pub(crate) const LANDLOCK: &str = "landlock";

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_attr` of BPF_LINK_CREATE for an iterator.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    zero: u32,
}

/// `union bpf_iter_link_info` of tasks.
#[repr(C)]
struct Tasks {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// `union bpf_attr` of BPF_ITER_CREATE.
#[repr(C)]
struct Iterator {
    link: u32,
    flags: u32,
}

/// Who is looked at, by numbers of the caller's pid namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    Thread(u32),
    /// All its threads.
    Process(u32),
}

/// Loads a program; pins it where a set of pins is made.
pub(crate) fn load(ebpf: &mut Ebpf, btf: &Btf, name: &str, pin: Option<&Path>) -> Result<OwnedFd, String> {
    let Some(Program::Iter(program)) = ebpf.program_mut(name) else {
        return Err("it is not in the object; is the object from this build?".into());
    };
    program.load("task", btf).map_err(|error| chain(&error))?;
    if let Some(set) = pin {
        program.pin(path(set, name)).map_err(|error| chain(&error))?;
    }
    let fd = program.fd().map_err(|error| chain(&error))?;
    fd.as_fd().try_clone_to_owned().map_err(|error| chain(&error))
}

/// A program that was pinned.
pub(crate) fn reopen(set: &Path, name: &str) -> Result<OwnedFd, String> {
    let program = ProgramInfo::from_pin(path(set, name)).and_then(|info| info.fd()).map_err(|error| chain(&error))?;
    program.as_fd().try_clone_to_owned().map_err(|error| chain(&error))
}

fn path(set: &Path, name: &str) -> PathBuf {
    set.join(format!("prog-{name}"))
}

/// A program runs when this is read, which gives what it writes.
pub(crate) fn look(program: &OwnedFd, of: Of) -> io::Result<File> {
    let tasks = match of {
        Of::Thread(tid) => Tasks { tid, pid: 0, pid_fd: 0 },
        Of::Process(pid) => Tasks { tid: 0, pid, pid_fd: 0 },
    };
    let link = Link {
        program: program.as_raw_fd() as u32,
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        info: std::ptr::from_ref(&tasks) as u64,
        info_len: size_of::<Tasks>() as u32,
        zero: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &link)?;
    let iterator = bpf(BPF_ITER_CREATE, &Iterator { link: link.as_raw_fd() as u32, flags: 0 })?;
    Ok(iterator.into())
}
