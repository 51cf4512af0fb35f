//! What came out of a VM: the guest's result lines (see `guest/src/report.rs`),
//! the console, qemu's own end. The tables are in [`super::tables`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Marks a line of a test that says which ability of the kernel it used.
const EXERCISED: &str = "EXERCISED ";

/// A test prints this when the machine cannot run it; it then counts as passed.
const SKIPPED: &str = "skipped: ";

/// A job prints this line before it takes its own machine down on purpose:
/// the death of a node is something that tests ask for.
const CRASH: &str = "EXPECTED CRASH";
/// The outcome of such a job.
const CRASHED: &str = "crashed:expected";

/// What qemu says when the guest reported success: `2 * 0x10 + 1`.
const QEMU_PASSED: i32 = 33;
/// And when it reported failed jobs: `2 * 0x11 + 1`.
const QEMU_FAILED: i32 = 35;

/// What a job wrote, if this result line tells it.
pub(super) fn said(line: &str) -> Option<&str> {
    // An empty line has lost its blank at the end.
    line.strip_prefix("| ").or_else(|| line.strip_prefix('|').filter(|rest| rest.is_empty()))
}

/// What someone who waits wants to know of a result line: the job that runs, each test that is done, what is wrong.
pub(super) fn progress(line: &str) -> Option<String> {
    if let Some(text) = said(line) {
        let test = text.starts_with("test ") && !text.starts_with("test result");
        return test.then(|| format!("  {text}"));
    }
    let known = ["MACHINE ", "BEGIN ", "END ", "NOTE ", "LEFT "];
    known.iter().any(|word| line.starts_with(word)).then(|| line.to_owned())
}

/// One job and what became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobResult {
    /// Name of the job.
    pub(crate) name: String,
    /// `exit:0`, `signal:9`, `timeout`; None if it never ended.
    pub(crate) outcome: Option<String>,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Its output, line by line.
    pub(crate) output: Vec<String>,
    /// Processes that it left behind.
    pub(crate) left: Vec<String>,
}

impl JobResult {
    /// True if it ended with exit code 0, or crashed as it had announced.
    pub(crate) fn passed(&self) -> bool {
        matches!(self.outcome.as_deref(), Some("exit:0" | CRASHED))
    }

    /// Names of the tests that failed, from the list at the end of the output.
    pub(super) fn failed_tests(&self) -> Vec<&str> {
        let list = self.output.iter().rposition(|line| line == "failures:");
        let lines = self.output.iter().skip(list.map_or(self.output.len(), |at| at + 1));
        lines.map_while(|line| line.strip_prefix("    ")).collect()
    }

    /// Why tests, or parts of them, were not run there: each reason as often as it was said. Such tests count as passed.
    pub(super) fn skipped(&self) -> Vec<&str> {
        self.output.iter().filter_map(|line| line.split_once(SKIPPED)).map(|(_, why)| why.trim()).collect()
    }

    /// Counts of a Rust test program, or the outcome itself.
    pub(super) fn detail(&self) -> String {
        let counts = self
            .output
            .iter()
            .find_map(|line| line.split_once("test result: ").map(|(_, rest)| rest))
            .and_then(|rest| rest.split_once(". "))
            .map(|(_, rest)| {
                rest.split("; ")
                    .filter(|part| !part.starts_with('0') && !part.starts_with("finished"))
                    .collect::<Vec<_>>()
                    .join(", ")
            });
        let skipped = self.skipped().len();
        let counts = counts.map(|mut counts| {
            if skipped > 0 {
                counts.push_str(&format!(", of which {skipped} skipped"));
            }
            counts
        });
        match (&self.outcome, counts) {
            (Some(outcome), Some(counts)) if outcome == "exit:0" => counts,
            (Some(outcome), Some(counts)) => format!("{outcome}, {counts}"),
            (Some(outcome), None) if outcome == "exit:0" => String::new(),
            (Some(outcome), None) => outcome.clone(),
            (None, _) => "never ended".to_owned(),
        }
    }
}

/// Everything about one run of one VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Series of the kernel, such as `6.12`.
    pub(crate) series: String,
    /// What `uname -r` said; empty if the guest never spoke.
    pub(crate) release: String,
    /// The jobs, in order.
    pub(crate) jobs: Vec<JobResult>,
    /// Abilities of the kernel that tests used.
    pub(crate) exercised: BTreeSet<String>,
    /// What the guest had to say beside.
    pub(crate) notes: Vec<String>,
    /// From power-on to the first result line.
    pub(crate) boot: Duration,
    /// From power-on to qemu's end.
    pub(crate) total: Duration,
    /// Why the run as a whole is bad, whatever the jobs say.
    pub(crate) broken: Option<String>,
    /// Where the logs are.
    pub(crate) logs: PathBuf,
    /// A job said that it would take the machine down.
    crash_announced: bool,
    /// The guest said that it had come to the end of its jobs.
    done: bool,
}

impl Outcome {
    /// The outcome of a run that is about to begin.
    pub(super) fn of(series: &str, logs: &Path) -> Self {
        Self { series: series.to_owned(), logs: logs.to_owned(), ..Self::default() }
    }

    /// True if the VM ran to its end and every job passed.
    pub(crate) fn passed(&self) -> bool {
        self.broken.is_none() && self.jobs.iter().all(JobResult::passed)
    }

    /// Takes one result line.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(text) = said(line) {
            if let Some((_, feature)) = text.split_once(EXERCISED) {
                self.exercised.insert(feature.trim().to_owned());
            }
            self.crash_announced |= text.trim() == CRASH;
            if let Some(job) = self.jobs.last_mut() {
                job.output.push(text.to_owned());
            }
            return;
        }
        let mut words = line.split_whitespace();
        match words.next() {
            Some("MACHINE") => self.release = words.next().unwrap_or_default().to_owned(),
            Some("NOTE") => self.notes.push(words.collect::<Vec<_>>().join(" ")),
            Some("BEGIN") => {
                self.jobs.push(JobResult { name: words.next().unwrap_or_default().to_owned(), ..JobResult::default() })
            }
            Some("LEFT") => {
                if let Some(job) = self.jobs.last_mut() {
                    job.left.push(words.skip(1).collect::<Vec<_>>().join(" "));
                }
            }
            Some("END") => {
                if let Some(job) = self.jobs.last_mut() {
                    job.outcome = words.nth(1).map(str::to_owned);
                    job.seconds = words.next().and_then(|text| text.parse().ok()).unwrap_or_default();
                }
            }
            Some("DONE") => self.done = true,
            _ => {}
        }
    }

    /// Judges the run by qemu's exit code and the console.
    pub(super) fn judge(&mut self, code: Option<i32>, killed: bool, console: &str) {
        if self.crash_announced && !self.done && !killed {
            if let Some(job) = self.jobs.last_mut() {
                job.outcome.get_or_insert_with(|| CRASHED.to_owned());
            }
            return;
        }
        let trouble = console.lines().find(|line| {
            ["Kernel panic", "Oops:", "BUG:", "kernel BUG", "general protection"].iter().any(|sign| line.contains(sign))
        });
        self.broken = match (code, trouble) {
            (_, Some(line)) => Some(format!("the kernel complained: {}", line.trim())),
            _ if killed => Some("time limit of the whole VM".to_owned()),
            (Some(QEMU_PASSED | QEMU_FAILED), None) if self.done => None,
            (Some(0), None) => Some("the guest went down without a result".to_owned()),
            (Some(1), None) => Some("qemu could not start".to_owned()),
            (code, None) => Some(format!("qemu ended with {code:?}, results are not complete")),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    fn outcome(lines: &str) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines.lines() {
            outcome.line(line);
        }
        outcome
    }

    #[test]
    fn a_full_run_passes() {
        let mut run = outcome(
            "MACHINE 6.12.1-cloud 1.50\nBEGIN probe\n| test a ... EXERCISED bpf lsm\n| ok\n\
             | test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
             END probe exit:0 2.5\nDONE ok",
        );
        run.judge(Some(33), false, "[ 0.1] all quiet");
        assert!(run.passed(), "{run:?}");
        assert_eq!(run.release, "6.12.1-cloud");
        assert!(run.exercised.contains("bpf lsm"));
        assert_eq!(run.jobs[0].detail(), "3 passed, 1 ignored");
    }

    #[test]
    fn silence_panic_and_failure_do_not_pass() {
        let mut run = outcome("");
        run.judge(Some(0), false, "");
        assert!(!run.passed());
        let mut run = outcome("BEGIN a\nEND a exit:0 0.1\nDONE ok");
        run.judge(Some(33), false, "[ 1.0] BUG: unable to handle page fault");
        assert!(!run.passed());
        let mut run = outcome("BEGIN a\nEND a signal:11 0.1\nDONE failed");
        run.judge(Some(35), false, "");
        assert!(run.broken.is_none() && !run.passed());
        let run = outcome("BEGIN a\n| failures:\n| ---- x\n| failures:\n|     m::x\n|     y\n| ");
        assert_eq!(run.jobs[0].failed_tests(), ["m::x", "y"]);
        let mut run = outcome("BEGIN a\n| half");
        run.judge(Some(35), false, "");
        assert!(!run.passed());
    }

    #[test]
    fn an_announced_crash_passes_and_only_that() {
        let panic = "[ 1.0] Kernel panic - not syncing: sysrq triggered crash";
        let mut run = outcome("BEGIN a\n| EXPECTED CRASH");
        run.judge(Some(0), false, panic);
        assert!(run.passed(), "{run:?}");
        let mut run = outcome("BEGIN a\n| EXPECTED CRASH");
        run.judge(None, true, "");
        assert!(!run.passed(), "it hung instead");
        let mut run = outcome("BEGIN a");
        run.judge(Some(0), false, panic);
        assert!(!run.passed());
    }

    #[test]
    fn garbage_is_ignored() {
        let run = outcome("END\nLEFT\n| stray\nBEGIN\nEND x\n\u{fffd}\u{fffd}");
        assert_eq!(run.jobs.len(), 1);
        assert!(!run.passed());
    }
}
