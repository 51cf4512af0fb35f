//! What the programs tell about processes in a space, against what really happened.

mod common;

use std::{ffi::CString, ptr};

use bproc_bpf::Role;
use bproc_common::event::{Event, kind};
use common::{Space, await_free, collect, ended, fork, kill, monitor, of, pipe, read_byte, text, wait, write_byte};

/// Kinds and pids in the order in which they came, without FREE, whose time is the kernel's.
fn order(events: &[Event]) -> Vec<(u32, u32)> {
    let told = events.iter().filter(|event| event.kind != kind::FREE);
    told.map(|event| (event.kind, event.pid)).collect()
}

#[test]
fn a_tree_is_told_exactly() {
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    let space = Space::new(|| {
        let child = fork(|| {
            // SAFETY: system calls without memory; the argument list is static and ends with null.
            unsafe {
                libc::setsid();
                libc::setgid(7);
                libc::setuid(5);
                let argv = [c"true".as_ptr(), ptr::null()];
                libc::execv(c"/bin/true".as_ptr(), argv.as_ptr());
            }
            98
        });
        wait(child);
        let child = fork(|| {
            let grandchild = fork(|| 3);
            wait(grandchild);
            42
        });
        wait(child);
        0
    });
    monitor.add_space(space.inum).expect("add");
    let inum = space.inum;
    space.go();
    assert_eq!(space.end(), 0);
    let mut events = collect(&mut monitor, ended);
    await_free(&mut monitor, &mut events, 4);
    let shown = text(&events);
    use kind::{EXEC, EXIT, FORK, RENAME};
    assert_eq!(
        order(&events),
        [(FORK, 1), (RENAME, 2), (EXEC, 2), (EXIT, 2), (FORK, 1), (FORK, 3), (EXIT, 4), (EXIT, 3), (EXIT, 1)],
        "{shown}"
    );
    assert!(events.iter().all(|event| event.pidns == inum), "{shown}");
    let mut free: Vec<u32> = of(&events, kind::FREE).iter().map(|e| e.pid).collect();
    free.sort_unstable();
    assert!(free.is_sorted_by(|a, b| a < b), "{shown}");
    assert!(free.iter().all(|pid| (1..=4).contains(pid)), "{shown}");
    assert!(free.len() > 2, "{shown}");
    let forks = of(&events, FORK);
    assert_eq!((forks[0].arg, forks[0].ppid, forks[0].sid), (2, 1, 0));
    assert_eq!((forks[2].arg, forks[2].ppid), (4, 3));
    let exec = of(&events, EXEC)[0];
    assert_eq!((exec.ppid, exec.pgid, exec.sid), (1, 2, 2), "{shown}");
    assert_eq!((exec.uid, exec.gid), (5, 7));
    assert_eq!(&exec.comm().0[..exec.comm().1], b"true");
    let exits = of(&events, EXIT);
    let codes: Vec<u32> = exits.iter().map(|event| event.arg).collect();
    assert_eq!(codes, [0, 3 << 8, 42 << 8, 0], "{shown}");
    // One process is the same in all that is told about it.
    assert_eq!(forks[0].arg2, exec.host_pid);
    assert_eq!((forks[0].start_ns, exec.start_ns), (exits[0].start_ns, exits[0].start_ns));
    if let Some(free) = of(&events, kind::FREE).iter().find(|event| event.pid == 2) {
        assert_eq!((free.start_ns, free.host_pid), (exec.start_ns, exec.host_pid));
    }
    assert!(events.windows(2).all(|pair| pair[0].time_ns <= pair[1].time_ns));
    assert_eq!(monitor.dropped().expect("count"), 0);
}

#[test]
fn a_fatal_signal_is_the_status() {
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    let space = Space::new(|| {
        for signal in [libc::SIGKILL, libc::SIGTERM] {
            let child = fork(|| {
                // SAFETY: no memory is involved.
                unsafe { libc::pause() };
                0
            });
            kill(child, signal);
            wait(child);
        }
        0
    });
    monitor.add_space(space.inum).expect("add");
    space.go();
    space.end();
    let events = collect(&mut monitor, ended);
    let codes: Vec<u32> = of(&events, kind::EXIT).iter().map(|e| e.arg).collect();
    assert_eq!(codes, [9, 15, 0], "{}", text(&events));
}

/// Ends the whole process from a thread that is not its first.
extern "C" fn end_group(_: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: ends the process.
    unsafe { libc::_exit(37) }
}

extern "C" fn end_thread(_: *mut libc::c_void) -> *mut libc::c_void {
    ptr::null_mut()
}

fn thread(run: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) -> libc::pthread_t {
    let mut thread = 0;
    // SAFETY: a valid place for the id; the function touches nothing of ours.
    let made = unsafe { libc::pthread_create(&mut thread, ptr::null(), run, ptr::null_mut()) };
    assert_eq!(made, 0);
    thread
}

#[test]
fn threads_are_not_processes() {
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    let space = Space::new(|| {
        let child = fork(|| {
            for _ in 0..3 {
                let made = thread(end_thread);
                // SAFETY: a thread that was just made.
                unsafe { libc::pthread_join(made, ptr::null_mut()) };
            }
            thread(end_group);
            loop {
                // SAFETY: no memory is involved.
                unsafe { libc::pause() };
            }
        });
        libc::WEXITSTATUS(wait(child))
    });
    monitor.add_space(space.inum).expect("add");
    space.go();
    assert_eq!(space.end(), 37);
    let events = collect(&mut monitor, ended);
    use kind::{EXIT, FORK};
    assert_eq!(order(&events), [(FORK, 1), (EXIT, 2), (EXIT, 1)], "{}", text(&events));
    assert_eq!(of(&events, EXIT)[0].arg, 37 << 8);
}

#[test]
fn other_namespaces_are_silent() {
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    let work = || {
        wait(fork(|| 0));
        0
    };
    let (other, space) = (Space::new(work), Space::new(work));
    monitor.add_space(space.inum).expect("add");
    other.go();
    other.end();
    wait(fork(|| 0));
    let inum = space.inum;
    space.go();
    space.end();
    let events = collect(&mut monitor, ended);
    assert!(events.iter().all(|event| event.pidns == inum), "{}", text(&events));
    assert_eq!(of(&events, kind::FORK).len(), 1);
    monitor.remove_space(inum).expect("remove");
    monitor.remove_space(inum).expect("a second time is no error");
    assert_eq!(monitor.spaces().expect("list"), [0u32; 0]);
}

#[test]
fn stops_and_names_are_told() {
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    let space = Space::new(|| {
        let (is_ready, ready) = pipe();
        let child = fork(|| {
            // SAFETY: a static name; SIGTTIN is ignored and so must not be told.
            unsafe {
                // Stop signals of the terminal are dropped in an orphaned group, so
                // this is one whose parent is in another group of the session.
                libc::setpgid(0, 0);
                libc::prctl(libc::PR_SET_NAME, c"newname".as_ptr());
                libc::prctl(libc::PR_SET_NAME, c"newname".as_ptr());
                libc::signal(libc::SIGTTIN, libc::SIG_IGN);
                write_byte(&ready);
                libc::pause();
            }
            0
        });
        read_byte(&is_ready);
        kill(child, libc::SIGTTIN);
        for signal in [libc::SIGSTOP, libc::SIGTSTP] {
            let mut status = 0;
            kill(child, signal);
            // SAFETY: a child of ours and valid places.
            unsafe { libc::waitpid(child, &mut status, libc::WUNTRACED) };
            kill(child, libc::SIGCONT);
            // SAFETY: as above.
            unsafe { libc::waitpid(child, &mut status, libc::WCONTINUED) };
        }
        kill(child, libc::SIGKILL);
        wait(child);
        0
    });
    monitor.add_space(space.inum).expect("add");
    space.go();
    space.end();
    let events = collect(&mut monitor, ended);
    let shown = text(&events);
    let told = |what| -> Vec<(u32, u32)> { of(&events, what).iter().map(|e| (e.pid, e.arg)).collect() };
    assert_eq!(told(kind::STOP), [(2, 19), (2, 20)], "{shown}");
    assert_eq!(told(kind::CONT), [(2, 18), (2, 18)], "{shown}");
    let names = of(&events, kind::RENAME);
    assert_eq!(names.len(), 1, "{shown}");
    assert_eq!(&names[0].comm().0[..names[0].comm().1], b"newname");
}

#[test]
fn many_forks_are_told_or_counted() {
    const FORKS: u32 = 10_000;
    let Some(mut monitor) = monitor(Role::Node) else {
        return;
    };
    // A shell, because forks of this process, which has parsed BTF, are slow.
    let script = format!("i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i+1)); done; exit 0");
    let script = CString::new(script).expect("no zero in it");
    let space = Space::new(move || {
        let argv = [c"sh".as_ptr(), c"-c".as_ptr(), script.as_ptr(), ptr::null()];
        // SAFETY: a list of terminated strings that ends with null.
        unsafe { libc::execv(c"/bin/sh".as_ptr(), argv.as_ptr()) };
        97
    });
    monitor.add_space(space.inum).expect("add");
    space.go();
    // The last FREE may be very late, so the end is init's EXIT.
    let events = collect(&mut monitor, ended);
    assert_eq!(space.end(), 0);
    let [forks, exits, frees] = [kind::FORK, kind::EXIT, kind::FREE].map(|what| of(&events, what).len() as u32);
    let lost = monitor.dropped().expect("count");
    eprintln!("{forks} forks, {exits} exits, {frees} frees told, {lost} lost");
    assert!(u64::from(forks + exits) + lost >= u64::from(2 * FORKS + 1));
    if lost == 0 {
        assert_eq!((forks, exits), (FORKS, FORKS + 1));
        assert!(frees > FORKS / 2);
    }
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_ring_is_counted_and_logged() {
    let Some(object) = common::object() else {
        return;
    };
    let mut config = bproc_bpf::Config::new(object, Role::Node);
    config.ring_bytes = Some(4096);
    let mut monitor = bproc_bpf::Monitor::start(&config).expect("monitor");
    let space = Space::new(|| {
        for _ in 0..100 {
            wait(fork(|| 0));
        }
        0
    });
    monitor.add_space(space.inum).expect("add");
    space.go();
    space.end();
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let told = tracing::subscriber::with_default(subscriber, || monitor.drain(|_| {})) as u64;
    let log = String::from_utf8(sink.0.lock().expect("lock").clone()).expect("text");
    assert!(log.contains("events lost on one CPU"), "{log}");
    let lost = monitor.dropped().expect("count");
    assert!((1..=34).contains(&told), "{told}");
    // FREEs may still be on their way.
    assert!(told + lost >= 200, "{told} told, {lost} lost");
}
