//! What the agents of a cluster logged of its processes, for a test that fails or hangs where nobody can look later.

use std::fs;
use std::path::PathBuf;

use crate::procs;

/// Of so many processes that are left it is told what was done with them.
pub(crate) const TOLD: usize = 8;

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// The cluster's directory.
    pub(crate) dir: PathBuf,
}

impl History {
    /// Prints what the agents logged of a process: all that they did with it, if `BPROC_TEST_LOG` is `trace`.
    pub(crate) fn tell(&self, pid: i32) {
        let number = pid.to_string();
        let of_it = |line: &&str| line.split(|c: char| !c.is_ascii_digit()).any(|word| word == number);
        let logs = fs::read_dir(self.dir.join("log")).into_iter().flatten().flatten();
        for log in logs.filter(|entry| entry.path().extension().is_some_and(|end| end == "log")) {
            let text = fs::read(log.path()).unwrap_or_default();
            let (name, text) = (log.file_name(), String::from_utf8_lossy(&text).into_owned());
            text.lines().filter(of_it).for_each(|line| println!("{}: {line}", name.to_string_lossy()));
        }
    }

    /// Prints who is there, but for the agents and their services, and what was done with some of them.
    pub(crate) fn tell_all(&self) {
        let ours = |process: &&procs::Proc| process.exe.starts_with(&self.dir) || process.is_inside();
        let read = |pid: i32, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let (mut left, mut zombies) = (Vec::new(), Vec::new());
        for process in procs::all().iter().filter(ours) {
            let (waits, call) = (read(process.pid, "wchan"), read(process.pid, "syscall"));
            println!("{process:?} waits in {waits}, {}", call.trim_end());
            match process.state {
                'Z' => zombies.push(process.inner()),
                // Of orphans first: who had a parent waits for that.
                _ if process.exe.ends_with("bproc-ghost") && !process.is_inside() => match process.ppid {
                    1 => left.insert(0, process.pid),
                    _ => left.push(process.pid),
                },
                _ => {}
            }
        }
        zombies.into_iter().take(TOLD).chain(left.into_iter().take(TOLD)).for_each(|pid| self.tell(pid));
    }
}
