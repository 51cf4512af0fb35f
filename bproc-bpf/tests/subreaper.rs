//! Who gets the children of those that end.

mod common;

use bproc_bpf::{Config, Monitor, Role};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// `PR_SET_CHILD_SUBREAPER`.
fn be_subreaper(yes: bool) {
    // SAFETY: no memory involved.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(yes), 0, 0, 0) }, 0);
}

fn look(config: &Config) {
    let monitor = Monitor::start(config).unwrap();
    assert!(monitor.features().iter().any(|feature| feature.name == "subreaper" && feature.attached));
    let me = std::process::id();
    let above = monitor.subreaper(me).unwrap();
    assert_ne!(above, Some(me));
    // A shell with a child that waits for its input, which ends with this process.
    let script = "sh -c 'echo $$; read line'; exit 0";
    let mut shell = Command::new("sh");
    let mut shell = shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let grandchild: u32 = line.trim().parse().unwrap();
    assert_eq!(monitor.subreaper(grandchild).unwrap(), above);
    be_subreaper(true);
    assert_eq!(monitor.subreaper(grandchild).unwrap(), Some(me));
    assert_eq!(monitor.subreaper(shell.id()).unwrap(), Some(me));
    assert_eq!(monitor.subreaper(me).unwrap(), above);
    be_subreaper(false);
    assert_eq!(monitor.subreaper(grandchild).unwrap(), above);
    let ended = shell.id();
    drop(shell.stdin.take());
    shell.wait().unwrap();
    assert_eq!(monitor.subreaper(ended).unwrap(), None);
}

#[test]
fn the_nearest_one_is_found_also_by_the_next_agent() {
    let Some(object) = common::object() else { return };
    let mut config = Config::new(object, Role::Master);
    look(&config);
    let dir = std::env::temp_dir().join(format!("bproc-bpf-{}-subreaper", std::process::id()));
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
