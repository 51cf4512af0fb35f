//! A file of counters that this process and one on a node (of this machine) have mapped.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

/// A mapped file of 64-bit counters.
pub struct Shared {
    path: PathBuf,
    words: &'static [AtomicU64],
    owner: bool,
}

impl Shared {
    /// A new file with this many counters, all 0; removed with this value.
    pub fn create(name: &str, words: usize) -> Result<Self> {
        let path = PathBuf::from(format!("/dev/shm/bproc-bench-{}-{name}", std::process::id()));
        let file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(words as u64 * 8).with_context(|| format!("cannot extend {}", path.display()))?;
        drop(file);
        let mut shared = Self::open(&path)?;
        shared.owner = true;
        Ok(shared)
    }

    /// Maps a file that is there.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = usize::try_from(file.metadata().context("a file has no length")?.len()).context("a small file")?;
        // SAFETY: a new mapping of a file that is open for reading and writing; it stays for the life of the process.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot map {}", path.display()));
        }
        // SAFETY: the mapping is page-aligned, of this length, and everybody uses it through atomics.
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), bytes / 8) };
        Ok(Self { path: path.to_owned(), words, owner: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The counters.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// Waits until this counter is at least `least`.
    pub fn wait(&self, word: usize, least: u64, seconds: u64) -> Result<u64> {
        let end = crate::sys::now() + seconds * 1_000_000_000;
        loop {
            let value = self.words[word].load(Ordering::Acquire);
            if value >= least {
                return Ok(value);
            }
            if crate::sys::now() > end {
                bail!("waited {seconds} s for {least} and got {value}");
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.owner {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
