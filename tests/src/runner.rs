//! Runs the tests of one program one after the other on one cluster, and speaks as Rust's own test programs do: a
//! cluster takes seconds to start, and must be taken down, and looked over, after the last test.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// No test takes as long.
const LIMIT: Duration = Duration::from_secs(600);
/// Nor on an emulated processor.
const EMULATED_LIMIT: Duration = Duration::from_secs(1500);

type Body<T> = Box<dyn Fn(&T) -> Result<()>>;

/// A test: its name, and what it does with what all tests of the program share.
pub struct Test<T> {
    name: String,
    body: Body<T>,
}

impl<T> Test<T> {
    /// A test.
    pub fn new(name: impl Into<String>, body: impl Fn(&T) -> Result<()> + 'static) -> Self {
        Test { name: name.into(), body: Box::new(body) }
    }
}

/// What the command line asks for, as far as it concerns us. Other options of Rust's test programs change nothing.
struct Wanted {
    list: bool,
    exact: bool,
    words: Vec<String>,
    skip: Vec<String>,
}

impl Wanted {
    fn of(arguments: impl Iterator<Item = String>) -> Wanted {
        let mut wanted = Wanted { list: false, exact: false, words: Vec::new(), skip: Vec::new() };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => wanted.list = true,
                "--exact" => wanted.exact = true,
                "--skip" => wanted.skip.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" => drop(arguments.next()),
                option if option.starts_with('-') => {}
                word => wanted.words.push(word.to_owned()),
            }
        }
        wanted
    }

    fn has(&self, name: &str) -> bool {
        let fits = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        (self.words.is_empty() || self.words.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

fn tell(name: &str, began: Instant, result: &Result<()>) -> bool {
    let seconds = began.elapsed().as_secs_f64();
    match result {
        Ok(()) => println!("test {name} ... ok ({seconds:.2} s)"),
        Err(error) => println!("{error:#}\ntest {name} ... FAILED ({seconds:.2} s)"),
    }
    result.is_ok()
}

/// Runs the tests that the command line asks for. `open` makes what they share, `close` ends it; both count as tests.
/// Without root nothing can run, and says so.
pub fn main<T>(open: impl FnOnce() -> Result<T>, tests: Vec<Test<T>>, close: impl FnOnce(T) -> Result<()>) -> ExitCode {
    let wanted = Wanted::of(std::env::args().skip(1));
    let chosen: Vec<&Test<T>> = tests.iter().filter(|test| wanted.has(&test.name)).collect();
    if wanted.list {
        chosen.iter().for_each(|test| println!("{}: test", test.name));
        return ExitCode::SUCCESS;
    }
    crate::run::as_after_login();
    let began = Instant::now();
    if chosen.is_empty() || !is_root() {
        println!("skipped: {}", if chosen.is_empty() { "no test has such a name" } else { "a cluster needs root" });
        return summary(began, 0, &[]);
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = Vec::new();
    let mut passed = 0;
    let mut note = |name: &str, good: bool| if good { passed += 1 } else { failed.push(name.to_owned()) };
    let (now, tests) = channel();
    std::thread::spawn(move || end_with_one_that_hangs(&tests));
    match open() {
        Err(error) => note("cluster_starts", tell("cluster_starts", began, &Err(error))),
        Ok(shared) => {
            for test in chosen {
                let began = Instant::now();
                // It listens as long as this program runs.
                let _ = now.send(test.name.clone());
                let result = (test.body)(&shared);
                note(&test.name, tell(&test.name, began, &result));
            }
            let began = Instant::now();
            let result = close(shared);
            note("nothing_is_left", tell("nothing_is_left", began, &result));
        }
    }
    summary(began, passed, &failed)
}

/// What is done before a program of which a test hangs is ended: tell what there is to see.
static AT_A_HANG: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// Has this done if a test hangs.
pub fn at_a_hang(tell: impl Fn() + Send + 'static) {
    *AT_A_HANG.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tell));
}

/// Ends this program if a test hangs; whoever watches over its cluster takes that down.
fn end_with_one_that_hangs(tests: &Receiver<String>) {
    let mut name = "cluster_starts".to_owned();
    let limit = if std::env::var_os("BPROC_VM").is_some() { EMULATED_LIMIT } else { LIMIT };
    loop {
        match tests.recv_timeout(limit) {
            Ok(next) => name = next,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(tell) = &*AT_A_HANG.lock().unwrap_or_else(PoisonError::into_inner) {
                    tell();
                }
                println!("test {name} ... FAILED (hangs)");
                std::process::exit(101);
            }
        }
    }
}

fn summary(began: Instant, passed: usize, failed: &[String]) -> ExitCode {
    if !failed.is_empty() {
        println!("\nfailures:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        began.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    fn wanted(line: &str) -> Wanted {
        Wanted::of(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn words_choose_and_foreign_options_do_not() {
        assert!(wanted("--nocapture --test-threads=1").has("a"));
        assert!(wanted("--test-threads 1 wait").has("kill_and_wait"));
        assert!(!wanted("--exact wait").has("kill_and_wait"));
        assert!(!wanted("--skip kill").has("kill_and_wait"));
    }
}
