//! Open files, to which descriptors lead.

use std::os::fd::{AsFd, AsRawFd};

/// Do two descriptors of the caller lead to the same open file, as after dup(2)? Where the kernel does not tell: no.
pub fn same_open_file(a: impl AsFd, b: impl AsFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let pid = std::process::id();
    let (a, b) = (a.as_fd().as_raw_fd(), b.as_fd().as_raw_fd());
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a as libc::c_ulong, b as libc::c_ulong) == 0 }
}

#[cfg(test)]
mod tests {
    use super::same_open_file;

    #[test]
    fn duplicates_are_the_same_and_others_are_not() {
        let open = || std::fs::File::open("/dev/null").expect("/dev/null");
        let (one, other) = (open(), open());
        assert!(same_open_file(&one, one.try_clone().expect("a duplicate")));
        assert!(!same_open_file(&one, &other));
    }
}
