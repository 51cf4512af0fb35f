//! Files of /proc. They tell no size, so that the standard library reads them in many small pieces.

use std::fs::File;
use std::io::{self, Read};

/// Larger than what most of them have; the kernel gives one page of a list at a time.
const ROOM: usize = 8 << 10;

/// All that a file has.
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut all = vec![0; ROOM];
    let mut length = 0;
    loop {
        match file.read(&mut all[length..])? {
            0 => break,
            n => length += n,
        }
        if all.len() - length < ROOM / 2 {
            all.resize(all.len() * 2, 0);
        }
    }
    all.truncate(length);
    Ok(all)
}

/// The same of a file that the kernel writes in one piece (status, stat, fdinfo and the like, no lists).
pub fn read_record(path: &str) -> io::Result<Vec<u8>> {
    let mut record = vec![0; ROOM];
    let length = File::open(path)?.read(&mut record)?;
    if length == record.len() {
        return read(path);
    }
    record.truncate(length);
    Ok(record)
}
