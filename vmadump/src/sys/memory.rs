//! Memory of other processes: which pages there are, and reading many of them at once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::SysError;
use crate::image::PAGE;

/// Which pages of an area count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    /// Present or swapped out, and not the zero page.
    Present,
    /// Of those only the private copies, not pages of the file below.
    Private,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const SCAN: libc::c_ulong = 0xc060_6610;
const IS_FILE: u64 = 4;
const IS_PRESENT: u64 = 8;
const IS_SWAPPED: u64 = 16;
const IS_ZERO: u64 = 32;

/// `/proc/PID/pagemap`.
pub(crate) struct PageMap {
    file: File,
    pid: i32,
    scan: bool,
}

impl PageMap {
    /// Opens the page map of `pid`.
    pub(crate) fn open(pid: i32) -> Result<Self, SysError> {
        let file = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(|e| SysError::from_io("open the page map of", pid, &e))?;
        Ok(PageMap { file, pid, scan: true })
    }

    /// Ranges of pages in `start..end` that count, appended to `out`.
    pub(crate) fn ranges(
        &mut self,
        start: u64,
        end: u64,
        which: Which,
        out: &mut Vec<(u64, u64)>,
    ) -> Result<(), SysError> {
        if self.scan {
            match self.scan(start, end, which, out) {
                Err(e) if e.errno == libc::ENOTTY || e.errno == libc::EINVAL => self.scan = false,
                done => return done,
            }
        }
        self.walk(start, end, which, out)
    }

    fn scan(&self, mut start: u64, end: u64, which: Which, out: &mut Vec<(u64, u64)>) -> Result<(), SysError> {
        let mut regions = [[0u64; 3]; 256];
        let never = if which == Which::Private { IS_FILE | IS_ZERO } else { IS_ZERO };
        while start < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: never,
                category_mask: never,
                category_anyof_mask: IS_PRESENT | IS_SWAPPED,
                return_mask: IS_PRESENT,
            };
            // SAFETY: the argument is as the kernel declares it, the vector has vec_len regions.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), SCAN, &raw mut arg) };
            if n < 0 {
                return Err(SysError::last("scan the pages of", self.pid));
            }
            for [from, to, _] in &regions[..n as usize] {
                push(out, *from, *to);
            }
            if arg.walk_end <= start {
                break;
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    fn walk(&self, start: u64, end: u64, which: Which, out: &mut Vec<(u64, u64)>) -> Result<(), SysError> {
        self.entries(start, end, |at, entry| {
            let there = entry >> 62 != 0;
            let file = entry >> 61 & 1 == 1;
            if there && !(file && which == Which::Private) {
                push(out, at, at + PAGE);
            }
        })
    }

    fn entries(&self, start: u64, end: u64, mut each: impl FnMut(u64, u64)) -> Result<(), SysError> {
        let mut buf = vec![0u8; 64 << 10];
        let mut at = start;
        while at < end {
            let want = ((end - at) / PAGE * 8).min(buf.len() as u64) as usize;
            let got = self
                .file
                .read_at(&mut buf[..want], at / PAGE * 8)
                .map_err(|e| SysError::from_io("read the page map of", self.pid, &e))?;
            if got < 8 {
                break;
            }
            for entry in buf[..got].as_chunks::<8>().0 {
                each(at, u64::from_ne_bytes(*entry));
                at += PAGE;
            }
        }
        Ok(())
    }
}

fn push(out: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match out.last_mut() {
        Some(last) if last.1 == from => last.1 = to,
        _ => out.push((from, to)),
    }
}

/// Reads the ranges (address, bytes) of `pid` one after the other into `into`. Returns the bytes read:
/// fewer where a page cannot be read that way.
pub(crate) fn read_many(pid: i32, ranges: &[(u64, u64)], into: &mut [u8]) -> Result<usize, SysError> {
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .map(|(at, len)| libc::iovec { iov_base: *at as *mut libc::c_void, iov_len: *len as usize })
        .collect();
    let mut total = 0;
    for part in remote.chunks(1024) {
        let want: usize = part.iter().map(|v| v.iov_len).sum();
        let Some(room) = into.get_mut(total..total + want) else { break };
        let local = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        // SAFETY: the local vector covers `room`, remote addresses are checked by the kernel.
        let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, part.as_ptr(), part.len() as u64, 0) };
        if n < 0 {
            if total > 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) {
                return Ok(total);
            }
            return Err(SysError::last("read the memory of", pid));
        }
        total += n as usize;
        if (n as usize) < want {
            break;
        }
    }
    Ok(total)
}

/// `/proc/PID/mem`: reads what is not readable and writes what is not writable, as a tracer may.
pub struct MemFile {
    file: File,
    pid: i32,
}

impl MemFile {
    /// Opens the memory of `pid`.
    pub fn open(pid: i32) -> Result<Self, SysError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(|e| SysError::from_io("open the memory of", pid, &e))?;
        Ok(MemFile { file, pid })
    }

    /// Fills `into` from `at`.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), SysError> {
        self.file.read_exact_at(into, at).map_err(|e| SysError::from_io("read the memory of", self.pid, &e))
    }

    /// Writes `bytes` at `at`.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), SysError> {
        self.file.write_all_at(bytes, at).map_err(|e| SysError::from_io("write the memory of", self.pid, &e))
    }

    /// One word.
    pub fn word(&self, at: u64) -> Result<u64, SysError> {
        let mut raw = [0; 8];
        self.read(at, &mut raw)?;
        Ok(u64::from_ne_bytes(raw))
    }
}
