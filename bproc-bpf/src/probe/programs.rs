//! Trial loads of the eBPF programs.

use std::{io, path::Path};

use aya::{Btf, Ebpf, maps::HashMap, programs::FExit};

use super::{About, Need, Row, row, syscalls::Child};
use crate::{
    Config, Error, Role,
    error::chain,
    landlock,
    monitor::{attach, kernel_btf, load_object},
    offsets, tasks,
};

const BTF: About = ("btf", Need::Required, "eBPF programs cannot find the kernel's fields");
const OBJECT: About = ("ringbuf", Need::Required, "no events: nobody tells what happens to processes");
const TRACE: About = ("tp_btf", Need::Required, "no events: nobody tells what happens to processes");
const PTRACE: About =
    ("lsm-ptrace", Need::Better, "root can trace a ghost and so take it from its keeper; users cannot either way");
const LEASE: About = (
    "lsm-fork",
    Need::Better,
    "a burst of forks on a node can leave its lease of pids; it is then repaired afterwards",
);
const FEXIT: About =
    ("fexit", Need::Better, "time, wait, ps and top tell what the ghost used, not what the process did");
const LANDLOCK: About = (
    "landlock",
    Need::Better,
    "nobody can tell who is under Landlock: such processes move, and leave its rules behind",
);

pub(super) fn rows(object: &Path) -> Vec<Row> {
    let mut rows = vec![row(BTF, offsets::resolve().map(|_| String::new()).map_err(text))];
    let config = Config::new(object, Role::Both);
    let loaded = std::fs::read(object)
        .map_err(|error| format!("{}: {error}", object.display()))
        .and_then(|bytes| load_object(&config, &bytes).map_err(text))
        .and_then(|ebpf| Ok((ebpf, kernel_btf().map_err(text)?)));
    let (mut ebpf, btf) = match loaded {
        Ok(loaded) => loaded,
        Err(why) => {
            let all = [OBJECT, TRACE, PTRACE, LEASE, FEXIT, LANDLOCK];
            rows.extend(all.map(|about| row(about, Err(why.clone()))));
            return rows;
        }
    };
    rows.push(row(OBJECT, Ok(String::new())));
    let mut trial = |name, hook| attach(&mut ebpf, name, hook, &btf, false).map(|_| String::new());
    rows.push(row(TRACE, trial("process_exec", "sched_process_exec")));
    rows.push(row(LEASE, trial("guard_lease", "task_alloc")));
    rows.push(row(PTRACE, enforcing(&mut ebpf, &btf)));
    rows.push(row(FEXIT, fexit(&mut ebpf, &btf)));
    let landlock = landlock::find(tasks::load(&mut ebpf, &btf, tasks::LANDLOCK, None));
    let detail = |found: Option<_>| if found.is_some() { "" } else { "this kernel has none" }.to_owned();
    rows.push(row(LANDLOCK, landlock.map(detail)));
    rows
}

fn text(error: Error) -> String {
    error.to_string()
}

/// Attaches the guard and tries to read a ghost: where `bpf` is not among the
/// kernel's LSMs, a program attaches and does nothing.
fn enforcing(ebpf: &mut Ebpf, btf: &Btf) -> Result<String, String> {
    attach(ebpf, "guard_ptrace", "ptrace_access_check", btf, false)?;
    let ghosts = ebpf.map_mut("GHOSTS").ok_or("the object has no map of ghosts")?;
    let mut ghosts: HashMap<_, u32, u8> = ghosts.try_into().map_err(|e| chain(&e))?;
    let child = Child::sleeper().map_err(|error| format!("fork: {error}"))?;
    // The probe runs in the initial pid namespace or not at all: elsewhere the
    // number is another's, and the trial fails.
    ghosts.insert(child.pid() as u32, 1, 0).map_err(|e| chain(&e))?;
    match child.read() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(String::new()),
        Err(error) => Err(format!("reading a ghost failed in another way: {error}")),
        Ok(()) => Err("the program attaches but is not asked; boot with lsm=...,bpf".into()),
    }
}

fn fexit(ebpf: &mut Ebpf, btf: &Btf) -> Result<String, String> {
    let missing = || chain(&io::Error::other("the object has no fexit program"));
    let program = ebpf.program_mut("probe_fexit").ok_or_else(missing)?;
    let program: &mut FExit = program.try_into().map_err(|e| chain(&e))?;
    program.load("bpf_fentry_test1", btf).map_err(|e| chain(&e))?;
    program.attach().map_err(|e| chain(&e))?;
    Ok(String::new())
}
