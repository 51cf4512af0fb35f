//! What the benchmarks run beside themselves, mostly on a node: this same binary, found there at the same path.

use std::io::Read;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bproc::{Prepared, Source, SpawnRequest, Stream};

use crate::shared::Shared;
use crate::sys;

/// Counter with the pid of the process that counts.
pub const PID: usize = 0;
/// Counter of signals, or of processes.
pub const COUNT: usize = 1;
/// When the last signal came, or the first and the last fork was made.
pub const LAST: usize = 2;
/// When the first fork was made.
pub const FIRST: usize = 3;
/// From here on: how often each value came.
pub const VALUES: usize = 4;

static COUNTERS: OnceLock<&'static [AtomicU64]> = OnceLock::new();

/// The signal that is counted: queued, never coalesced.
pub fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

extern "C" fn handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let now = sys::now();
    let Some(words) = COUNTERS.get() else { return };
    // SAFETY: the kernel hands a valid siginfo to a handler that was set with SA_SIGINFO.
    let value = unsafe { (*info).si_value() }.sival_ptr as usize;
    words[LAST].store(now, Ordering::Relaxed);
    if let Some(times) = words.get(VALUES + value) {
        times.fetch_add(1, Ordering::Relaxed);
    }
    words[COUNT].fetch_add(1, Ordering::Release);
}

/// Counts signals until it is killed.
pub fn count_signals(file: &Path) -> Result<()> {
    sys::die_with_parent();
    let shared = Shared::open(file)?;
    let _ = COUNTERS.set(shared.words());
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler only reads a clock and touches atomics.
    if unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot handle the signal");
    }
    shared.words()[PID].store(u64::from(std::process::id()), Ordering::Release);
    loop {
        // SAFETY: no preconditions.
        unsafe { libc::pause() };
    }
}

/// Forks processes that sleep, and sleeps itself; all end together.
pub fn fork_sleepers(number: usize, file: &Path) -> Result<()> {
    sys::die_with_parent();
    let shared = Shared::open(file)?;
    let words = shared.words();
    words[FIRST].store(sys::now(), Ordering::Relaxed);
    for _ in 0..number {
        sys::fork(|| {
            sys::die_with_parent();
            loop {
                // SAFETY: no preconditions.
                unsafe { libc::pause() };
            }
        })?;
        words[COUNT].fetch_add(1, Ordering::Release);
    }
    words[LAST].store(sys::now(), Ordering::Relaxed);
    words[PID].store(u64::from(std::process::id()), Ordering::Release);
    loop {
        // SAFETY: no preconditions.
        unsafe { libc::pause() };
    }
}

/// How many spawns are under way at once.
const BATCH: usize = 100;

/// Spawns processes on node 0, whose ghosts are its children, and sleeps; all end together.
pub fn spawn_sleepers(number: usize, file: &Path) -> Result<()> {
    sys::die_with_parent();
    let shared = Shared::open(file)?;
    let words = shared.words();
    let null = |fd| Stream { fd, input: fd == 0, source: Source::Null };
    let prepared = Prepared::new(SpawnRequest {
        node: 0,
        path: b"/bin/sleep".to_vec(),
        argv: vec![b"sleep".to_vec(), b"100000".to_vec()],
        envp: vec![b"PATH=/usr/bin:/bin".to_vec()],
        streams: vec![null(0), null(1), null(2)],
        terminal: None,
        pdeathsig: 0,
        die_with_parent: true,
        travel: true,
        shell: false,
        report: None,
        signals: None,
    })?;
    words[FIRST].store(sys::now(), Ordering::Relaxed);
    let mut left = number;
    while left > 0 {
        // A child that has become a ghost has closed its end.
        let (mut failures, end) = std::io::pipe().context("no pipe")?;
        let batch = left.min(BATCH);
        for _ in 0..batch {
            sys::fork(|| {
                let error = prepared.go();
                eprintln!("bproc-bench: {error}");
                let _ = std::io::Write::write_all(&mut &end, b"x");
                1
            })?;
        }
        drop(end);
        let mut failed = Vec::new();
        failures.read_to_end(&mut failed).context("cannot read a pipe")?;
        if !failed.is_empty() {
            bail!("{} of {batch} spawns failed", failed.len());
        }
        words[COUNT].fetch_add(batch as u64, Ordering::Release);
        left -= batch;
    }
    words[LAST].store(sys::now(), Ordering::Relaxed);
    words[PID].store(u64::from(std::process::id()), Ordering::Release);
    loop {
        // SAFETY: no preconditions.
        unsafe { libc::pause() };
    }
}
