//! What parents of held processes see. Needs root.

mod common;

use bproc_common::id::Pid;
use bproc_common::keeper::{ev, op, state};
use bproc_common::wait::Status;
use bproc_sys::signal::kill;
use common::*;

#[test]
fn a_killed_process_is_waited_for_only_after_release() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    kill(pid, libc::SIGKILL).unwrap();
    assert_eq!(agent.expect(ev::EXITING, pid).value, 9);
    kill(pid, libc::SIGKILL).unwrap();
    assert_eq!(agent.ask_plain(op::PING), 0);
    assert!(is_quiet(pid));
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    agent.expect(ev::GONE, pid);
    assert_eq!(wait(pid, 0), KILLED);
    assert_eq!(agent.ask(op::RELEASE, pid), -libc::ESRCH);
}

#[test]
fn an_exit_code_is_held_and_then_seen() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (r, w) = pipe();
    let pid = child(|| i32::from(take(&r)));
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    put(&w, 42);
    assert_eq!(agent.expect(ev::EXITING, pid).value, 42 << 8);
    assert!(is_quiet(pid));
    // It cannot be hurried.
    kill(pid, libc::SIGKILL).unwrap();
    agent.ask_plain(op::PING);
    assert!(is_quiet(pid));
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), Status::Exited(42));
}

#[test]
fn an_open_gate_lets_the_end_through_at_once() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert!(is_quiet(pid));
    kill(pid, libc::SIGTERM).unwrap();
    assert_eq!(wait(pid, 0), Status::Killed { signal: 15, core: false });
    agent.expect(ev::GONE, pid);
    assert!(!agent.has_seen(ev::EXITING, pid));
}

#[test]
fn stop_and_continue_are_seen_by_parent_and_agent() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    for signal in [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        kill(pid, signal).unwrap();
        assert_eq!(agent.expect(ev::STOPPED, pid).value, signal);
        assert_eq!(wait(pid, libc::WUNTRACED), Status::Stopped(signal as u8));
        assert_eq!(agent.list(), [(pid.get(), state::STOPPED, signal as u64)]);
        kill(pid, libc::SIGCONT).unwrap();
        agent.expect(ev::CONTINUED, pid);
        assert_eq!(wait(pid, libc::WCONTINUED), Status::Continued);
        assert_eq!(agent.list(), [(pid.get(), state::RUNNING, 0)]);
    }
    assert!(is_quiet(pid));
}

#[test]
fn the_gate_holds_a_stopped_process_too() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    kill(pid, libc::SIGSTOP).unwrap();
    agent.expect(ev::STOPPED, pid);
    assert_eq!(wait(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP as u8));
    kill(pid, libc::SIGKILL).unwrap();
    assert_eq!(agent.expect(ev::EXITING, pid).value, 9);
    assert!(is_quiet(pid));
    assert_eq!(agent.list(), [(pid.get(), state::EXITING, 9)]);
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), KILLED);
}

#[test]
fn a_process_that_was_stopped_before_is_found_stopped() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    kill(pid, libc::SIGSTOP).unwrap();
    assert_eq!(wait(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP as u8));
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    assert_eq!(agent.expect(ev::STOPPED, pid).value, libc::SIGSTOP);
    kill(pid, libc::SIGCONT).unwrap();
    agent.expect(ev::CONTINUED, pid);
}

/// Forks in a child of the test; the grandchild does nothing, the child reports its pid and does nothing.
fn forker(start: &std::os::fd::OwnedFd, told: &std::os::fd::OwnedFd) -> Pid {
    use std::os::fd::AsRawFd;
    child(|| {
        take(start);
        // SAFETY: plain system calls; the grandchild dies with the child, that with the test.
        unsafe {
            let parent = libc::getpid();
            let pid = libc::fork();
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    libc::_exit(99);
                }
            } else {
                libc::write(told.as_raw_fd(), (&raw const pid).cast(), 4);
            }
            loop {
                libc::pause();
            }
        }
    })
}

#[test]
fn children_are_adopted() {
    use std::io::Read;
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (start, go) = pipe();
    let (told, tell) = pipe();
    let pid = forker(&start, &tell);
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    put(&go, 1);
    let mut raw = [0; 4];
    std::fs::File::from(told).read_exact(&mut raw).unwrap();
    let grandchild = Pid::new(i32::from_ne_bytes(raw)).unwrap();
    assert_eq!(agent.expect(ev::ADOPTED, grandchild).value, pid.get());
    kill(grandchild, libc::SIGKILL).unwrap();
    assert_eq!(agent.expect(ev::EXITING, grandchild).value, 9);
    assert_eq!(agent.ask(op::RELEASE, grandchild), 0);
    agent.expect(ev::GONE, grandchild);
    kill(pid, libc::SIGKILL).unwrap();
    agent.expect(ev::EXITING, pid);
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), KILLED);
}

#[test]
fn an_ordinary_process_gets_its_signals_until_it_executes() {
    use std::os::fd::AsRawFd;
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (r, w) = pipe();
    let (told, tell) = pipe();
    let pid = child(|| {
        // SAFETY: plain system calls on constants and descriptors that are open.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            libc::dup2(r.as_raw_fd(), 0);
            libc::dup2(tell.as_raw_fd(), 1);
            let sh = c"sh".as_ptr();
            let script = c"trap 'echo t' USR1; echo r; read x; read y; exec sh -c 'exit 6'";
            libc::execl(c"/bin/sh".as_ptr(), sh, c"-c".as_ptr(), script.as_ptr(), std::ptr::null::<libc::c_char>());
            98
        }
    });
    drop(tell);
    assert_eq!(take(&told), b'r');
    take(&told);
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    kill(pid, libc::SIGUSR1).unwrap();
    put(&w, b'\n');
    assert_eq!(take(&told), b't');
    put(&w, b'\n');
    // dash ends `read` at a trap, other shells go on with it.
    put(&w, b'\n');
    agent.expect(ev::EXECED, pid);
    assert_eq!(agent.expect(ev::EXITING, pid).value, 6 << 8);
    assert!(is_quiet(pid));
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), Status::Exited(6));
}

#[test]
fn a_thread_may_execute_in_place_of_its_process() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (r, w) = pipe();
    let pid = child(|| {
        std::thread::scope(|s| {
            s.spawn(|| {
                take(&r);
                let none = std::ptr::null::<libc::c_char>();
                // SAFETY: constants; the list ends with null.
                unsafe { libc::execl(c"/bin/sh".as_ptr(), c"sh".as_ptr(), c"-c".as_ptr(), c"exit 7".as_ptr(), none) };
            });
        });
        98
    });
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    put(&w, 1);
    // Nobody holds the exec back; the keeper loses the process and says so.
    assert_eq!(wait(pid, 0), Status::Exited(7));
    let list = agent.list();
    assert_eq!(list, []);
}

#[test]
fn a_process_with_threads_is_held_at_its_end() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    for by_kill in [true, false].into_iter().cycle().take(40) {
        let (r, w) = pipe();
        let (start, go) = pipe();
        let pid = child(|| {
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        put(&w, 1);
                        if take(&start) == 1 {
                            // SAFETY: ends the process, all threads.
                            unsafe { libc::_exit(0) };
                        }
                    });
                }
            });
            98
        });
        for _ in 0..3 {
            take(&r);
        }
        assert_eq!(agent.ask(op::SEIZE, pid), 0);
        let (raw, status) = if by_kill { (9, KILLED) } else { (0, Status::Exited(0)) };
        if by_kill {
            kill(pid, libc::SIGKILL).unwrap();
        } else {
            put(&go, 1);
        }
        assert_eq!(agent.expect(ev::EXITING, pid).value, raw);
        assert!(is_quiet(pid));
        assert_eq!(agent.ask(op::RELEASE, pid), 0);
        assert_eq!(wait(pid, 0), status);
    }
}

#[test]
fn detached_processes_are_nobodys() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let (running, stopped, dying) = (sleeper(), sleeper(), sleeper());
    for pid in [running, stopped, dying] {
        assert_eq!(agent.ask(op::SEIZE, pid), 0);
    }
    kill(stopped, libc::SIGSTOP).unwrap();
    agent.expect(ev::STOPPED, stopped);
    kill(dying, libc::SIGKILL).unwrap();
    agent.expect(ev::EXITING, dying);
    for pid in [running, stopped, dying] {
        assert_eq!(agent.ask(op::DETACH, pid), 0);
    }
    assert_eq!(agent.list(), []);
    assert_eq!(wait(dying, 0), KILLED);
    assert_eq!(wait(stopped, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP as u8));
    for pid in [running, stopped] {
        kill(pid, libc::SIGKILL).unwrap();
        assert_eq!(wait(pid, 0), KILLED);
    }
}

#[test]
fn a_stopped_process_can_be_made_to_run_without_its_parents_notice() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let ((reader, orders), (answers, writer)) = (pipe(), pipe());
    let pid = child(|| {
        loop {
            match take(&reader) {
                0 => return 7,
                // That it makes a child is seen by the keeper, and no sign of having been continued.
                byte => {
                    sleeper();
                    put(&writer, byte + 1);
                }
            }
        }
    });
    assert_eq!(agent.ask(op::SEIZE, pid), 0);
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        kill(pid, signal).unwrap();
        agent.expect(ev::STOPPED, pid);
        assert_eq!(wait(pid, libc::WUNTRACED), Status::Stopped(signal as u8));
        for byte in [1, 3] {
            put(&orders, byte);
            assert_eq!(agent.ask(op::THAW, pid), 0);
            assert_eq!(take(&answers), byte + 1);
            assert!(is_quiet(pid));
            assert_eq!(agent.ask(op::FREEZE, pid), 0);
        }
        // An agent that begins anew finds it standing still, whatever the former one wanted.
        assert_eq!(agent.ask(op::THAW, pid), 0);
        assert!(agent.list().contains(&(pid.get(), state::STOPPED, signal as u64)));
        put(&orders, 5);
        assert!(!agent.has_seen(ev::CONTINUED, pid) && !agent.has_seen(ev::STOPPED, pid) && is_quiet(pid));
        kill(pid, libc::SIGCONT).unwrap();
        agent.expect(ev::CONTINUED, pid);
        assert_eq!(wait(pid, libc::WCONTINUED), Status::Continued);
        assert_eq!(take(&answers), 6);
    }
    // Continued while it is made to run.
    kill(pid, libc::SIGSTOP).unwrap();
    agent.expect(ev::STOPPED, pid);
    assert_eq!(wait(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP as u8));
    assert_eq!(agent.ask(op::THAW, pid), 0);
    kill(pid, libc::SIGCONT).unwrap();
    assert_eq!(wait(pid, libc::WCONTINUED), Status::Continued);
    assert_eq!(agent.ask(op::FREEZE, pid), 0);
    agent.expect(ev::CONTINUED, pid);
    put(&orders, 8);
    assert_eq!(take(&answers), 9);
    put(&orders, 0);
    agent.expect(ev::EXITING, pid);
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), Status::Exited(7));
}

#[test]
fn one_that_is_about_to_be_let_go_of_can_be_held_again() {
    let keeper = Keeper::start();
    let mut agent = keeper.agent();
    let pid = sleeper();
    for _ in 0..100 {
        let tags = [op::SEIZE, op::DETACH, op::SEIZE].map(|op| agent.send(op, pid.get()));
        assert_eq!(tags.map(|tag| agent.done(tag)), [0; 3]);
        assert_eq!(agent.list(), [(pid.get(), state::RUNNING, 0)]);
    }
    kill(pid, libc::SIGKILL).unwrap();
    agent.expect(ev::EXITING, pid);
    assert!(is_quiet(pid));
    assert_eq!(agent.ask(op::RELEASE, pid), 0);
    assert_eq!(wait(pid, 0), KILLED);
}
