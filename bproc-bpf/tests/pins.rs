//! Pins outlive the monitor, hand over what happened meanwhile, and go away.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use bproc_bpf::{Config, Monitor, Role};
use bproc_common::event::{Event, kind};
use common::{Space, collect, fork, object, of, text, wait};

/// A directory that is gone at the end, with what is mounted on it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let name = format!("bproc-bpf-{}-{name}", std::process::id());
        let dir = Dir(std::env::temp_dir().join(name));
        fs::create_dir(&dir.0).expect("directory");
        dir
    }

    fn pins(&self) -> PathBuf {
        self.0.join("bpf")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = Monitor::remove(&self.pins());
        let _ = fs::remove_dir(&self.0);
    }
}

fn config(dir: &Dir) -> Option<Config> {
    let mut config = Config::new(object()?, Role::Node);
    config.pin_dir = Some(dir.pins());
    Some(config)
}

/// The sets of pins that are there.
fn sets(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list");
    let names = entries.map(|entry| entry.expect("entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    // A fresh bpffs shows some files of the kernel's own.
    names.filter(|name| !name.ends_with(".debug")).collect()
}

fn forks(count: u32) -> Space {
    Space::new(move || {
        for _ in 0..count {
            wait(fork(|| 0));
        }
        0
    })
}

#[test]
fn a_restart_misses_and_doubles_nothing() {
    let dir = Dir::new("restart");
    let Some(config) = config(&dir) else {
        return;
    };
    let spaces = [forks(3), forks(50), forks(5)];
    let inums: Vec<u32> = spaces.iter().map(|space| space.inum).collect();
    let in_space = |inum: u32| {
        move |events: &[Event]| {
            let mut last = events.iter().filter(|event| event.pidns == inum);
            last.any(|event| event.kind == kind::EXIT && event.pid == 1)
        }
    };
    let [before, between, after] = spaces;
    let mut monitor = Monitor::start(&config).expect("first");
    assert!(!monitor.resumed());
    for inum in &inums {
        monitor.add_space(*inum).expect("add");
    }
    before.go();
    before.end();
    let events = collect(&mut monitor, in_space(inums[0]));
    assert_eq!(of(&events, kind::FORK).len(), 3, "{}", text(&events));
    drop(monitor);

    between.go();
    between.end();

    let mut monitor = Monitor::start(&config).expect("second");
    assert!(monitor.resumed());
    assert_eq!(monitor.spaces().expect("list").len(), 3);
    let events = collect(&mut monitor, in_space(inums[1]));
    let other = |event: &Event| event.pidns != inums[1] && event.kind != kind::FREE;
    assert!(!events.iter().any(other), "{}", text(&events));
    assert_eq!(of(&events, kind::FORK).len(), 50);
    assert_eq!(of(&events, kind::EXIT).len(), 51);

    after.go();
    after.end();
    let events = collect(&mut monitor, in_space(inums[2]));
    assert_eq!(of(&events, kind::FORK).len(), 5, "{}", text(&events));
    assert_eq!(monitor.dropped().expect("count"), 0);
    drop(monitor);
    Monitor::remove(&dir.pins()).expect("remove");
    assert!(!dir.pins().exists());
    Monitor::remove(&dir.pins()).expect("a second time is no error");
}

#[test]
fn other_and_partial_pins_are_replaced() {
    let dir = Dir::new("partial");
    let Some(mut config) = config(&dir) else {
        return;
    };
    drop(Monitor::start(&config).expect("first"));
    let first = sets(&dir.pins());
    assert_eq!(first.len(), 1);
    // An agent that died while it pinned, and one of another version.
    for name in ["new", "v0-00"] {
        fs::create_dir(dir.pins().join(name)).expect("leftover");
    }
    assert!(Monitor::start(&config).expect("again").resumed());
    assert_eq!(sets(&dir.pins()), first);
    // A set that lost a link cannot be trusted.
    let link = dir.pins().join(&first[0]).join("link-process_exit");
    fs::remove_file(link).expect("unlink");
    let monitor = Monitor::start(&config).expect("repaired");
    assert!(!monitor.resumed());
    drop(monitor);
    config.ring_bytes = Some(1 << 16);
    let monitor = Monitor::start(&config).expect("other ring");
    assert!(!monitor.resumed());
    assert_ne!(sets(&dir.pins()), first);
    assert_eq!(sets(&dir.pins()).len(), 1);
    assert!(monitor.features().iter().any(|feature| feature.attached));
}
