//! Who is under Landlock.

mod common;

use bproc_bpf::{Config, Monitor, Role};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Instant;

/// Access to files, to the network (Linux 6.7), and scopes (6.12): what rules can be about.
type Handled = [u64; 3];

const KINDS: [(&str, Handled); 3] = [("files", [2, 0, 0]), ("network", [0, 1, 0]), ("signals", [0, 0, 2])];

/// Forbids the calling thread all of this. Not where the kernel does not know it.
fn restrict(handled: &Handled) -> io::Result<()> {
    // SAFETY: words of the size that is told; no more memory is involved.
    let done = unsafe {
        let rules = libc::syscall(libc::SYS_landlock_create_ruleset, handled.as_ptr(), size_of::<Handled>(), 0);
        rules >= 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) == 0
            && libc::close(rules as i32) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A child that waits for the end of its input.
fn waiting(handled: Option<Handled>) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped());
    // SAFETY: system calls only.
    unsafe { command.pre_exec(move || handled.as_ref().map_or(Ok(()), restrict)) };
    command.spawn()
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

fn look(config: &Config) {
    let monitor = Monitor::start(config).unwrap();
    let feature = monitor.features().iter().find(|feature| feature.name == "landlock").unwrap().clone();
    if !feature.attached {
        assert!(feature.why.contains("has no Landlock"), "{}", feature.why);
        return eprintln!("skipped: {}", feature.why);
    }
    let me = std::process::id();
    // The thread that tried it is gone, but for what the kernel does after it has told of its end.
    let begin = Instant::now();
    while monitor.is_under_landlock(me).unwrap() {
        assert!(begin.elapsed() < common::LIMIT);
        std::thread::yield_now();
    }
    let free = waiting(None).unwrap();
    for (name, handled) in KINDS {
        let child = match waiting(Some(handled)) {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: rules about {name}: {error}");
                continue;
            }
        };
        assert!(monitor.is_under_landlock(child.id()).unwrap(), "{name}");
        let pid = child.id();
        end(child);
        assert!(!monitor.is_under_landlock(pid).unwrap(), "it has ended");
    }
    assert!(!monitor.is_under_landlock(free.id()).unwrap());
    let begin = Instant::now();
    (0..1000).for_each(|_| assert!(!monitor.is_under_landlock(free.id()).unwrap()));
    eprintln!("a question takes {} ns", begin.elapsed().as_nanos() / 1000);
    end(free);
    // One thread among many.
    let ((restricted, is_restricted), (over, is_over)) = (channel(), channel::<()>());
    std::thread::scope(|scope| {
        let (begun, has_begun) = channel();
        let others: Vec<_> = (0..100)
            .map(|_| {
                let ((go, goes), begun) = (channel::<()>(), begun.clone());
                scope.spawn(move || {
                    begun.send(()).unwrap();
                    let _ = goes.recv();
                });
                go
            })
            .collect();
        (0..others.len()).for_each(|_| has_begun.recv().unwrap());
        assert!(!monitor.is_under_landlock(me).unwrap());
        scope.spawn(move || {
            restrict(&[1, 0, 0]).unwrap();
            restricted.send(()).unwrap();
            let _ = is_over.recv();
        });
        is_restricted.recv().unwrap();
        assert!(monitor.is_under_landlock(me).unwrap());
        let begin = Instant::now();
        assert!(monitor.is_under_landlock(me).unwrap());
        eprintln!("of a process with a hundred threads {} ns", begin.elapsed().as_nanos());
        drop((others, over));
    });
}

#[test]
fn whoever_is_under_it_is_found_also_by_the_next_agent() {
    let Some(object) = common::object() else { return };
    let mut config = Config::new(object, Role::Master);
    look(&config);
    let dir = std::env::temp_dir().join(format!("bproc-bpf-{}-landlock", std::process::id()));
    struct Pins<'a>(&'a Path);
    impl Drop for Pins<'_> {
        fn drop(&mut self) {
            let _ = Monitor::remove(&self.0.join("bpf"));
            let _ = fs::remove_dir(self.0);
        }
    }
    fs::create_dir(&dir).unwrap();
    let _pins = Pins(&dir);
    config.pin_dir = Some(dir.join("bpf"));
    look(&config);
    assert!(Monitor::start(&config).unwrap().resumed());
    look(&config);
}
