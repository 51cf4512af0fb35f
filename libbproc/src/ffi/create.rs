//! Processes on nodes: the caller becomes one, or its children do.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bproc_proto::client as wire;
use bproc_sys::signal::AllBlocked;
use libc::{c_char, c_int};

use super::abi::Io;
use super::io::Setup;
use super::map::Real;
use super::moving::{self, Side, pipe};
use super::nodes::{self, Doors, whoami};
use super::{Number, Result, alone, answer, errno, export, image, text};
use crate::spawn::Scratch;
use crate::{Prepared, SpawnRequest, sys};

pub(super) type Strings = *const *const c_char;

/// The entry of an environment that gets a rank in its place.
const RANKED: &[u8] = b"BPROC_RANK=XXXXXXX";

/// A program with its arguments and environment.
pub(super) struct Program {
    path: Vec<u8>,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
    /// It is this machine's, and not the node's.
    travels: bool,
}

impl Program {
    /// # Safety
    /// A string or null, and arrays of strings ended by null, or null.
    pub(super) unsafe fn new(cmd: *const c_char, argv: Strings, envp: Strings) -> Result<Program> {
        // SAFETY: as the caller promises.
        unsafe {
            let (path, mut argv, envp) = (text::bytes(cmd)?, text::list(argv), text::list(envp));
            if argv.is_empty() {
                // As Linux gives every program a name.
                argv.push(Vec::new());
            }
            Ok(Program { path, argv, envp, travels: false })
        }
    }

    /// Checks that exec would find the program here. A caller on a node may come to another directory with it, so that it gets a
    /// name by which it is found from any; from the master it goes by its own, which a script is told.
    fn found_here(mut self) -> Result<Program> {
        if self.path.is_empty() {
            return Err(libc::ENOENT);
        }
        if !self.path.starts_with(b"/") && !at_home() {
            let cwd = std::env::current_dir().map_err(|e| e.raw_os_error().unwrap_or(libc::ENOENT))?;
            self.path = cwd.join(OsStr::from_bytes(&self.path)).as_os_str().as_bytes().to_vec();
        }
        let path = Path::new(OsStr::from_bytes(&self.path));
        let found = std::fs::metadata(path).map_err(|e| e.raw_os_error().unwrap_or(libc::ENOENT))?;
        if !found.is_file() {
            return Err(libc::EACCES);
        }
        let name = std::ffi::CString::new(self.path.clone()).map_err(|_| libc::EINVAL)?;
        // SAFETY: `name` is NUL-terminated.
        if unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::X_OK, libc::AT_EACCESS) } < 0 {
            return Err(errno());
        }
        self.travels = true;
        Ok(self)
    }

    /// What is tried where the caller is going to execute it.
    fn to_be_tried(&self) -> wire::Program {
        wire::Program { path: self.path.clone(), argv: self.argv.clone(), envp: self.envp.clone() }
    }

    /// Its environment as number `rank`.
    fn environment(&self, rank: Option<usize>) -> Vec<Vec<u8>> {
        let ranked = |entry: &Vec<u8>| match rank {
            Some(rank) if entry == RANKED => format!("BPROC_RANK={rank:07}").into_bytes(),
            _ => entry.clone(),
        };
        self.envp.iter().map(ranked).collect()
    }

    /// What differs in the environment of number `rank`, and how far from its beginning, when the entries lie one after the
    /// other.
    pub(super) fn digits(&self, rank: usize) -> Vec<(u64, u8)> {
        let mut start = 0;
        let mut digits = Vec::new();
        for (entry, ranked) in self.envp.iter().zip(self.environment(Some(rank))) {
            if entry == RANKED {
                digits.extend((start..).zip(ranked));
            }
            start += entry.len() as u64 + 1;
        }
        digits
    }

    /// As it goes to a node as number `rank`.
    fn request<'s>(&self, node: Real, setup: &'s Setup, rank: Option<usize>) -> Result<Prepared<'s>> {
        Ok(Prepared::new(SpawnRequest {
            node: node.number(),
            path: self.path.clone(),
            argv: self.argv.clone(),
            envp: self.environment(rank),
            streams: setup.streams(),
            terminal: None,
            pdeathsig: sys::pdeathsig(),
            die_with_parent: false,
            travel: self.travels,
            shell: false,
            report: None,
            signals: None,
        })?)
    }

    /// Plain exec, here.
    pub(super) fn exec(&self) -> Number {
        let strings = |list: &[Vec<u8>]| -> Result<Vec<std::ffi::CString>> {
            list.iter().map(|s| std::ffi::CString::new(s.clone()).map_err(|_| libc::EINVAL)).collect()
        };
        let ready = strings(&self.argv)
            .and_then(|argv| Ok((argv, strings(&self.envp)?, strings(std::slice::from_ref(&self.path))?)));
        match ready {
            Ok((argv, envp, path)) => {
                let path: &CStr = path.first().map_or(c"", |path| path.as_c_str());
                sys::exec(path, &sys::pointers(&argv), &sys::pointers(&envp)).raw_os_error().unwrap_or(libc::EIO)
            }
            Err(number) => number,
        }
    }
}

/// Replaces the caller; returns only when that failed.
fn replace(node: Real, program: &Program, setup: Setup) -> Number {
    match Doors::look(Some(&setup)).and_then(|doors| doors.check(node)) {
        Ok(Real::MASTER) => take_place(Real::MASTER, program, setup),
        // Where the list is set up is to be known before its sockets are connected.
        Ok(node) if setup.is_listed() && !at_home() => take_place(node, program, setup),
        Ok(node) => {
            let prepared = program.request(node, &setup, None);
            match prepared.and_then(|prepared| setup.connect().map(|()| prepared)).map(|prepared| prepared.go().number)
            {
                Ok(libc::EREMOTE) => take_place(node, program, setup),
                Ok(number) | Err(number) => number,
            }
        }
        Err(number) => number,
    }
}

/// Where nobody is left behind as a ghost: from a node the caller goes there first; where it is, it executes at once.
fn take_place(node: Real, program: &Program, setup: Setup) -> Number {
    let here = match whoami() {
        Ok(here) => here,
        // Without an agent everybody is at home.
        Err(_) if node == Real::MASTER => Real::MASTER,
        Err(number) => return number,
    };
    let listed = setup.is_listed();
    if node != here {
        // The file is where the caller is. Others of its threads would have to end first, as by exec.
        let image = match program.travels && vmadump::inside::one_thread().is_ok() {
            true => image::of_program(program, image::Kept::own()).map(Some),
            false => Ok(None),
        };
        let gone = image.and_then(|image| {
            // One that goes along need not be there.
            let program = image.is_none().then(|| program.to_be_tried());
            moving::go_for(node, moving::FLAGS, listed.then_some(setup), program)?;
            Ok(image)
        });
        match gone {
            Ok(Some(image)) if !image::is_here(&image) => sys::exit_with(image::become_program(&image)),
            Ok(_) => {}
            Err(number) => return number,
        }
    } else if listed {
        match setup.ready() {
            Ok(ready) => ready.take(),
            Err(number) => return number,
        }
        std::mem::forget(setup);
    } else {
        return program.exec();
    }
    // It is elsewhere, or has other descriptors: the caller cannot go on as it was.
    sys::exit_with(program.exec())
}

/// # Safety
/// As [`Program::new`].
unsafe fn rexec(
    node: c_int,
    setup: impl FnOnce() -> Result<Setup>,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    alone(|| {
        let setup = setup()?;
        // SAFETY: as the caller promises.
        let program = unsafe { Program::new(cmd, argv, envp) }?;
        Err(replace(nodes::target(node)?, &program, setup))
    })
}

/// # Safety
/// As [`Program::new`].
unsafe fn execmove(
    node: c_int,
    setup: impl FnOnce() -> Result<Setup>,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    alone(|| {
        let setup = setup()?;
        // SAFETY: as the caller promises.
        let program = unsafe { Program::new(cmd, argv, envp) }?.found_here()?;
        Err(replace(nodes::target(node)?, &program, setup))
    })
}

/// On the master, or where no agent says otherwise.
fn at_home() -> bool {
    whoami().map_or(true, |node| node == Real::MASTER)
}

unsafe extern "C" fn bproc_rexec(node: c_int, cmd: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { rexec(node, || Ok(Setup::plain()), cmd, argv, envp) }
}

unsafe extern "C" fn bproc_rexec_io(
    node: c_int,
    io: *const Io,
    iolen: c_int,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { rexec(node, || Setup::listed(io, iolen), cmd, argv, envp) }
}

unsafe extern "C" fn bproc_execmove(node: c_int, cmd: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { execmove(node, || Ok(Setup::plain()), cmd, argv, envp) }
}

unsafe extern "C" fn bproc_execmove_io(
    node: c_int,
    io: *const Io,
    iolen: c_int,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { execmove(node, || Setup::listed(io, iolen), cmd, argv, envp) }
}

unsafe extern "C" fn bproc_execve(cmd: *const c_char, argv: Strings, envp: Strings) -> c_int {
    alone(|| {
        // SAFETY: as the caller promises.
        let program = unsafe { Program::new(cmd, argv, envp) }?;
        Err(exec_from_master(program))
    })
}

/// Executes the master's program where the caller is; returns only when that failed.
fn exec_from_master(program: Program) -> Number {
    let here = match whoami() {
        Ok(Real::MASTER) | Err(_) => return program.exec(),
        Ok(node) => node,
    };
    // What a program is made of is known at home: it starts from there, as a program of the master's that travels.
    if let Err(number) = moving::go_for(Real::MASTER, moving::FLAGS, None, Some(program.to_be_tried())) {
        return number;
    }
    let number = match program.found_here() {
        Ok(program) => replace(here, &program, Setup::plain()),
        Err(number) => number,
    };
    // A caller that could not be replaced goes on where it was, if it may.
    let _ = moving::go_to(here, moving::FLAGS, None);
    number
}

/// What a child that failed tells its parent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Failed {
    rank: c_int,
    number: c_int,
}

/// Starts one child; its pid. It has no signal for its end until it runs the ghost: a child that never got so far
/// is taken away before anybody hears of it.
fn start(prepared: &Prepared<'_>, setup: &Setup, rank: usize, tell: &OwnedFd, scratch: &mut Scratch) -> Result<c_int> {
    // No handler of the caller's may run in the child.
    let blocked = AllBlocked::new();
    let cloned = sys::clone_without_signal();
    if let Ok(0) = cloned {
        let number = match setup.connect() {
            Ok(()) => prepared.go_without_memory(scratch),
            Err(number) => number,
        };
        let failed = Failed { rank: rank as c_int, number };
        sys::tell_and_exit(tell, &failed);
    }
    drop(blocked);
    cloned.map_err(|e| e.raw_os_error().unwrap_or(libc::EAGAIN))
}

/// Goes on as the program, in a child that has come to where it is to run.
fn become_ranked(mut program: Program, rank: usize) -> ! {
    program.envp = program.environment(Some(rank));
    sys::exit_with(program.exec())
}

/// From a node: each child goes there, and executes the program where that has the same, or becomes it.
fn spread_from_node(nodes: &[c_int], pids: &mut [c_int], program: Program, setup: Setup) -> Result<()> {
    // The file is where the caller is.
    let image = image::of_program(&program, image::Kept::of_child())?;
    let setup = setup.is_listed().then_some(setup);
    match moving::fork(nodes, pids, moving::FLAGS, setup.as_ref())? {
        Side::Parent => Ok(()),
        Side::Child(rank, _) => {
            // What a list holds open is not there any more.
            std::mem::forget(setup);
            if image::is_here(&image) {
                become_ranked(program, rank);
            }
            let ranked = image::ranked(&image, &program, rank);
            sys::exit_with(ranked.map_or_else(|number| number, |image| image::become_program(&image)))
        }
    }
}

/// Runs the program on all nodes at once. `pids` gets a pid or a negative number for each.
fn spread(nodes: &[c_int], pids: &mut [c_int], program: Program, setup: Setup) -> Result<()> {
    if whoami()? != Real::MASTER {
        return spread_from_node(nodes, pids, program, setup);
    }
    let (doors, (hear, tell)) = (Doors::look(Some(&setup))?, pipe()?);
    let mut scratch = Scratch::new();
    for (rank, (node, pid)) in nodes.iter().zip(pids.iter_mut()).enumerate() {
        let target = nodes::target(*node).and_then(|node| doors.check(node));
        if target == Ok(Real::MASTER) {
            match moving::fork_here(Some(&setup).filter(|setup| setup.is_listed())) {
                Ok((0, _)) => become_ranked(program, rank),
                Ok((child, _)) => *pid = child,
                Err(number) => *pid = -number,
            }
            continue;
        }
        let prepared = target.and_then(|node| program.request(node, &setup, Some(rank)));
        let started = prepared.and_then(|prepared| start(&prepared, &setup, rank, &tell, &mut scratch));
        *pid = started.unwrap_or_else(|number| -number);
    }
    drop(tell);
    // The pipe ends when every child has told its failure or runs something else.
    while let Some(failed) = sys::hear::<Failed>(hear.as_raw_fd()) {
        if let Some(pid) = usize::try_from(failed.rank).ok().and_then(|rank| pids.get_mut(rank)).filter(|pid| **pid > 0)
        {
            sys::reap(*pid);
            *pid = -failed.number.max(1);
        }
    }
    for pid in pids.iter_mut().filter(|pid| **pid > 0) {
        // Killed on the way: nobody would ever hear of it.
        if sys::reap_signalless(*pid) {
            *pid = -libc::EINTR;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
/// # Safety
/// `nodes` and `pids` have `n` numbers; the rest as [`Program::new`].
unsafe fn vexecmove(
    n: c_int,
    nodes: *const c_int,
    pids: *mut c_int,
    setup: Result<Setup>,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> Result<c_int> {
    let len = usize::try_from(n).map_err(|_| libc::EINVAL)?;
    if len == 0 {
        return Ok(0);
    }
    if nodes.is_null() || pids.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the caller gives `n` numbers in both. They may be one array: so a copy.
    let nodes = unsafe { std::slice::from_raw_parts(nodes, len) }.to_vec();
    // SAFETY: as above.
    let pids = unsafe { std::slice::from_raw_parts_mut(pids, len) };
    let ready = || {
        // SAFETY: as the caller promises.
        let program = unsafe { Program::new(cmd, argv, envp) }?.found_here()?;
        Ok((program, setup?))
    };
    let result = ready().and_then(|(program, setup)| spread(&nodes, pids, program, setup));
    if let Err(number) = result {
        pids.fill(-number);
    }
    result.map(|()| n)
}

unsafe extern "C" fn bproc_vexecmove(
    n: c_int,
    nodes: *const c_int,
    pids: *mut c_int,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { vexecmove(n, nodes, pids, Ok(Setup::plain()), cmd, argv, envp) })
}

unsafe extern "C" fn bproc_vexecmove_io(
    n: c_int,
    nodes: *const c_int,
    pids: *mut c_int,
    io: *const Io,
    iolen: c_int,
    cmd: *const c_char,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| unsafe { vexecmove(n, nodes, pids, Setup::listed(io, iolen), cmd, argv, envp) })
}

export!(
    bproc_rexec,
    bproc_rexec_io,
    bproc_execmove,
    bproc_execmove_io,
    bproc_execve,
    bproc_vexecmove,
    bproc_vexecmove_io,
);
