//! The tool while it waits for what it has made of an image.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Traveller, compile, in_namespace};

const LIMIT: Duration = Duration::from_secs(30);
/// It says again and again that it runs, and what it is told.
const TELLING: &str = "trap 'echo told' USR1; while :; do echo runs; done";

struct Tool {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Tool {
    /// Has the image running.
    fn undump(image: &Path, more: &[&str]) -> Tool {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
        tool.arg("undump").args(more).arg(image).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = tool.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut tool = Tool { child, output };
        tool.until("runs");
        tool
    }

    fn until(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim_end() != wanted {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended before {wanted:?}");
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Nobody writes any more; the tool's exit code.
    fn ends(mut self) -> Option<i32> {
        std::io::copy(&mut self.output.by_ref(), &mut std::io::sink()).unwrap();
        self.child.wait().unwrap().code()
    }
}

#[test]
fn what_it_is_told_its_process_is_told() {
    in_namespace("what_it_is_told_its_process_is_told", LIMIT, || {
        let mut program = Traveller::start(Command::new("sh").args(["-c", TELLING]));
        assert_eq!(program.line(), "runs");
        program.dump_and_end();
        let mut tool = Tool::undump(&program.image, &[]);
        for _ in 0..3 {
            tool.signal(libc::SIGUSR1);
            tool.until("told");
        }
        tool.signal(libc::SIGTERM);
        assert_eq!(tool.ends(), Some(128 + libc::SIGTERM));
        // It goes with the tool, however that ends.
        let tool = Tool::undump(&program.image, &[]);
        tool.signal(libc::SIGKILL);
        assert_eq!(tool.ends(), None);
        // One that nobody waits for stays.
        let mut tool = Tool::undump(&program.image, &["--detach"]);
        assert!(tool.child.wait().unwrap().success());
        (0..100_000).for_each(|_| tool.until("runs"));
    });
}

/// The tool itself has one, which its child is born with.
#[test]
fn a_process_without_a_signal_stack_gets_none() {
    in_namespace("a_process_without_a_signal_stack_gets_none", LIMIT, || {
        let mut program = Traveller::start(&mut Command::new(compile("onstack", &[])));
        assert_eq!(program.line(), "runs");
        program.dump_and_end();
        let mut tool = Tool::undump(&program.image, &[]);
        tool.signal(libc::SIGUSR1);
        tool.until("told");
        tool.signal(libc::SIGTERM);
        assert_eq!(tool.ends(), Some(128 + libc::SIGTERM));
    });
}
