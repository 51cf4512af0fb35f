//! A thread of its own for the events: they must not queue behind other work.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread::JoinHandle,
};

use bproc_common::event::Event;

use crate::{Error, Monitor, Result, control::Control};

/// The thread that reads events; it ends with this.
pub struct Reader {
    control: Control,
    stop: OwnedFd,
    thread: Option<JoinHandle<Monitor>>,
}

fn check(what: &'static str, result: i32) -> Result<i32> {
    if result < 0 {
        return Err(Error::Reader { what, source: io::Error::last_os_error() });
    }
    Ok(result)
}

/// Starts the thread `bpf-events`, which calls `each` for every event in the
/// order in which they happened. A callback that waits makes the ring fill up.
///
/// # Errors
/// [`Error::Reader`] when descriptors or threads are short.
pub fn spawn_reader(mut monitor: Monitor, mut each: impl FnMut(&Event) + Send + 'static) -> Result<Reader> {
    // SAFETY: plain calls that make descriptors, which are owned at once.
    let (stop, epoll) = unsafe {
        let stop = check("eventfd", libc::eventfd(0, libc::EFD_CLOEXEC))?;
        let stop = OwnedFd::from_raw_fd(stop);
        let epoll = check("epoll_create1", libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
        (stop, OwnedFd::from_raw_fd(epoll))
    };
    for (token, fd) in [(0, monitor.fd().as_raw_fd()), (1, stop.as_raw_fd())] {
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        let epoll = epoll.as_raw_fd();
        // SAFETY: open descriptors and a valid record.
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut interest) };
        check("epoll_ctl", added)?;
    }
    let control = monitor.control();
    let run = move || {
        loop {
            monitor.drain(&mut each);
            let mut ready = [libc::epoll_event { events: 0, u64: 0 }; 2];
            // SAFETY: the array has room for two records.
            let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), ready.as_mut_ptr(), 2, -1) };
            let count = usize::try_from(count).unwrap_or(0);
            if ready[..count].iter().any(|event| event.u64 == 1) {
                monitor.drain(&mut each);
                return monitor;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("bpf-events".into())
        .spawn(run)
        .map_err(|source| Error::Reader { what: "thread", source })?;
    Ok(Reader { control, stop, thread: Some(thread) })
}

impl Reader {
    /// Sets what is watched.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Ends the thread after a last look into the ring, and gives the monitor
    /// back; `None` when the callback panicked.
    pub fn stop(mut self) -> Option<Monitor> {
        self.end()
    }

    fn end(&mut self) -> Option<Monitor> {
        let thread = self.thread.take()?;
        let one = 1u64;
        // SAFETY: eight readable bytes; an eventfd takes them without waiting.
        unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), 8) };
        thread.join().ok()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}
