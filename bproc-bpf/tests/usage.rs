//! What is told of children that ran elsewhere: by each call that tells it, to parents and theirs, and only once waited for.

mod common;

use std::mem::zeroed;
use std::ptr::null_mut;

use bproc_bpf::{Control, Role};
use bproc_common::event::Usage;
use common::{fork, monitor, pipe, read_byte, wait, write_byte};

/// 1.5 s and 2.75 s, 4000 KiB, some counts.
const USED: Usage = [1, 500_000, 2, 750_000, 400_000, 0, 0, 0, 11, 12, 0, 13, 14, 0, 0, 0, 15, 16];

/// Forks one that has `USED` before it ends.
fn ghost(control: &Control) -> i32 {
    let (wait_go, go) = pipe();
    let pid = fork(|| {
        read_byte(&wait_go);
        0
    });
    control.set_usage(pid as u32, &USED).expect("set");
    write_byte(&go);
    pid
}

fn numbers(rusage: &libc::rusage) -> Usage {
    // SAFETY: both are as many 64-bit numbers.
    unsafe { std::mem::transmute_copy(rusage) }
}

fn children() -> Usage {
    // SAFETY: the structure is plain and live.
    unsafe {
        let mut rusage = zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut rusage), 0);
        numbers(&rusage)
    }
}

fn wait4(pid: i32) -> Usage {
    // SAFETY: a child of ours, and a live structure.
    unsafe {
        let mut rusage = zeroed();
        assert_eq!(libc::wait4(pid, null_mut(), 0, &mut rusage), pid);
        numbers(&rusage)
    }
}

fn waitid(pid: i32) -> Usage {
    // SAFETY: a child of ours, and a live structure.
    unsafe {
        let mut rusage: libc::rusage = zeroed();
        let place = &raw mut rusage;
        let done =
            libc::syscall(libc::SYS_waitid, libc::P_PID, pid, null_mut::<libc::siginfo_t>(), libc::WEXITED, place);
        assert_eq!(done, 0);
        numbers(&rusage)
    }
}

/// Microseconds in user mode and in the kernel.
fn times_of(usage: &Usage) -> [u64; 2] {
    [usage[0] * 1_000_000 + usage[1], usage[2] * 1_000_000 + usage[3]]
}

/// Whether these are so many times what is in `USED`, and a little more of one's own.
fn is(usage: &Usage, times: u64) -> bool {
    let (found, used) = (times_of(usage), times_of(&USED));
    (0..2).all(|i| (used[i] * times..used[i] * times + used[i] / 2).contains(&found[i]))
        && usage[1].max(usage[3]) < 1_000_000
}

/// In a process of its own, which has had no children.
fn family(control: &Control) -> i32 {
    assert_eq!(wait4(ghost(control)), USED);
    assert!(is(&children(), 1), "{:?}", children());
    assert_eq!(waitid(ghost(control)), USED);
    // Nobody asks: it counts all the same.
    wait(ghost(control));
    let sum = children();
    assert!(is(&sum, 3) && sum[4] >= USED[4] && sum[8] >= 3 * USED[8] && sum[17] >= 3 * USED[17], "{sum:?}");
    // SAFETY: the structure is plain and live.
    let ticks = unsafe {
        let mut tms: libc::tms = zeroed();
        assert!(libc::times(&mut tms) >= 0);
        [tms.tms_cutime, tms.tms_cstime]
    };
    assert!(ticks[0] >= 450 && ticks[0] < 500 && ticks[1] >= 825 && ticks[1] < 900, "{ticks:?}");
    // A child that has waited for two: what it used comes beside its own.
    let child = fork(|| {
        wait(ghost(control));
        wait(ghost(control));
        0
    });
    let used = wait4(child);
    assert!(is(&used, 2), "{used:?}");
    assert!(is(&children(), 5), "{:?}", children());
    // One that nobody waits for.
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let ignored = ghost(control);
    // SAFETY: waits for the end of all children.
    assert_eq!(unsafe { libc::waitpid(ignored, null_mut(), 0) }, -1);
    assert!(is(&children(), 5), "{:?}", children());
    0
}

#[test]
fn parents_are_told() {
    let Some(monitor) = monitor(Role::Master) else { return };
    if let Some(missing) = monitor.features().iter().find(|f| f.name.starts_with("usage_") && !f.attached) {
        // A refusal by the verifier is no property of the kernel.
        assert!(!missing.why.contains("processed "), "{}", missing.why);
        eprintln!("skipped: this kernel refuses {}", missing.name);
        return;
    }
    let control = monitor.control();
    assert_eq!(wait(fork(|| family(&control))), 0);
    eprintln!("EXERCISED eBPF: fexit tells what children used on nodes");
}
