//! What /proc tells about memory, time and processes.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// All processes.
pub fn pids() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Fields of a file with lines `Name:  NUMBER kB`, in KiB.
fn fields(path: &str) -> Result<BTreeMap<String, i64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let field = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(field).collect())
}

/// Memory of the whole system, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// What programs can still get, as the kernel estimates.
    pub available: i64,
    /// What the kernel holds: slab, stacks, page tables, per-CPU areas.
    pub kernel: i64,
}

impl Memory {
    /// Now.
    pub fn now() -> Result<Self> {
        let fields = fields("/proc/meminfo")?;
        let get = |name: &str| fields.get(name).copied().unwrap_or(0);
        let kernel = ["SUnreclaim", "KernelStack", "PageTables", "Percpu"].map(get).iter().sum();
        Ok(Self { available: get("MemAvailable"), kernel })
    }
}

/// What a process has for itself of its memory (its private pages), in KiB; 0 when it is gone.
pub fn private(pid: i32) -> i64 {
    let Ok(fields) = fields(&format!("/proc/{pid}/smaps_rollup")) else { return 0 };
    let get = |name: &str| fields.get(name).copied().unwrap_or(0);
    get("Private_Clean") + get("Private_Dirty")
}

/// The words of /proc/PID/stat after the name: state, parent, ...
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// State, as ps shows it.
pub fn state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// CPU time that a process has used so far, in ticks of 10 ms; 0 when it is gone.
pub fn ticks(pid: i32) -> u64 {
    let Some(words) = stat(pid) else { return 0 };
    [11, 12].iter().filter_map(|index| words.get(*index)?.parse::<u64>().ok()).sum()
}

/// Context switches of all threads of a process so far.
pub fn switches(pid: i32) -> i64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of = |thread: std::fs::DirEntry| {
        let fields = fields(&format!("{}/status", thread.path().display())).unwrap_or_default();
        ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
            .iter()
            .filter_map(|name| fields.get(*name))
            .sum::<i64>()
    };
    threads.flatten().map(of).sum()
}

/// Children of a process, all threads' of it.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The load average of one minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}
