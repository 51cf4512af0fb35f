//! LSM programs, where the kernel takes them: what they refuse and what they let pass.

mod common;

use bproc_bpf::{Monitor, Role};
use bproc_common::event::kind;
use common::{Space, collect, fork, kill, monitor, of, text, wait};

/// A monitor whose program `name` is attached, or `None` with a printed reason.
fn guarded(name: &str) -> Option<Monitor> {
    let monitor = monitor(Role::Both)?;
    let feature = monitor.features().iter().find(|feature| feature.name == name);
    match feature {
        Some(feature) if feature.attached => Some(monitor),
        _ => {
            eprintln!("skipped: this kernel refuses the LSM program {name}");
            None
        }
    }
}

/// Reads a byte of another process; gives the errno, 0 for success.
fn peek(pid: i32) -> i32 {
    static MARK: u8 = 1;
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: (&raw const MARK).cast_mut().cast(), iov_len: 1 };
    // SAFETY: one writable byte here; a forked child has the same static.
    let done = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    if done == 1 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

#[test]
fn only_keepers_trace_ghosts() {
    let Some(mut monitor) = guarded("guard_ptrace") else {
        return;
    };
    let ghost = fork(|| {
        // SAFETY: no memory is involved.
        unsafe { libc::pause() };
        0
    });
    assert_eq!(peek(ghost), 0);
    monitor.add_ghost(ghost as u32).expect("add");
    assert_eq!(peek(ghost), libc::EPERM);
    // To look is allowed: ps needs it.
    assert!(std::fs::read_link(format!("/proc/{ghost}/exe")).is_ok());
    let me = std::process::id();
    monitor.add_keeper(me).expect("add");
    assert_eq!(peek(ghost), 0);
    kill(ghost, libc::SIGKILL);
    wait(ghost);
    let events = collect(&mut monitor, |events| !of(events, kind::SIGNAL).is_empty());
    let refused = of(&events, kind::REFUSED);
    assert_eq!(refused.len(), 1, "{}", text(&events));
    assert_eq!((refused[0].pid, refused[0].arg2, refused[0].arg3), (ghost as u32, me, 0));
    assert_ne!(refused[0].arg & 2, 0);
    eprintln!("EXERCISED eBPF: LSM ptrace_access_check refuses");
}

#[test]
fn forks_stay_in_the_lease() {
    let Some(monitor) = guarded("guard_lease") else {
        return;
    };
    // Tells how many forks in a row succeed, of at most 20.
    let space = Space::new(|| {
        for done in 0..20 {
            // SAFETY: the child ends at once.
            match unsafe { libc::fork() } {
                // SAFETY: ends the child.
                0 => unsafe { libc::_exit(0) },
                pid if pid > 0 => wait(pid),
                _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) => {
                    return done;
                }
                _ => return 99,
            };
        }
        20
    });
    // Init has pid 1, so the first forks get 2 to 6.
    monitor.set_lease(space.inum, 2, 6).expect("set");
    space.go();
    assert_eq!(space.end(), 5);
    let free = Space::new(|| if wait(fork(|| 0)) == 0 { 7 } else { 8 });
    free.go();
    assert_eq!(free.end(), 7);
    eprintln!("EXERCISED eBPF: LSM task_alloc refuses");
}
