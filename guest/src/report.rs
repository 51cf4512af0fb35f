//! The results, line by line, on the second serial line.
//!
//! ```text
//! MACHINE <kernel release> <seconds since power-on>
//! NOTE <something the reader of a failure wants to know>
//! BEGIN <job>
//! | <line of output of the job>
//! LEFT <job> <pid> <state> <comm>      a process that the job left behind
//! END <job> <exit:N|signal:N|timeout|error:why> <seconds>
//! DONE <ok|failed>
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::sys;

/// Longest line of output; longer ones are broken.
const LINE: usize = 4096;

/// Writer of the result lines.
pub(crate) struct Report {
    line: Option<File>,
    partial: Vec<u8>,
}

impl Report {
    /// Opens the second serial line; without it the console must do.
    pub(crate) fn open() -> Self {
        let line = OpenOptions::new().write(true).open("/dev/ttyS1").ok();
        if let Some(file) = &line {
            sys::raw_mode(file.as_raw_fd());
        } else {
            eprintln!("bproc-guest: no /dev/ttyS1, results go to the console");
        }
        Self { line, partial: Vec::new() }
    }

    fn emit(&mut self, bytes: &[u8]) {
        // A failed write has nobody to be told to: the host misses the line
        // and counts the job as failed.
        let _ = match &mut self.line {
            Some(file) => file.write_all(bytes),
            None => std::io::stdout().write_all(bytes),
        };
    }

    fn line(&mut self, text: &str) {
        self.flush_output();
        let mut text = text.replace(['\n', '\r'], " ");
        text.push('\n');
        self.emit(text.as_bytes());
    }

    pub(crate) fn machine(&mut self, release: &str, uptime: Duration) {
        self.line(&format!("MACHINE {release} {:.2}", uptime.as_secs_f64()));
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.line(&format!("NOTE {text}"));
    }

    pub(crate) fn begin(&mut self, job: &str) {
        self.line(&format!("BEGIN {job}"));
    }

    pub(crate) fn left(&mut self, job: &str, pid: i32, state: char, comm: &str) {
        self.line(&format!("LEFT {job} {pid} {state} {comm}"));
    }

    pub(crate) fn end(&mut self, job: &str, outcome: &str, took: Duration) {
        self.line(&format!("END {job} {outcome} {:.2}", took.as_secs_f64()));
    }

    pub(crate) fn done(&mut self, passed: bool) {
        self.line(if passed { "DONE ok" } else { "DONE failed" });
        if let Some(file) = &self.line {
            sys::drain(file.as_raw_fd());
        }
    }

    /// Output of a job, in pieces as they come from its pipe.
    pub(crate) fn output(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() >= LINE {
                self.flush_line();
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    fn flush_line(&mut self) {
        let mut text = Vec::with_capacity(self.partial.len() + 3);
        text.extend_from_slice(b"| ");
        text.append(&mut self.partial);
        text.push(b'\n');
        self.emit(&text);
    }

    fn flush_output(&mut self) {
        if !self.partial.is_empty() {
            self.flush_line();
        }
    }
}
