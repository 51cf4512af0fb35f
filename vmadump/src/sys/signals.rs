//! What a process whose part another one plays is told.

use std::io;
use std::mem::MaybeUninit;

use super::process::kill;

/// What others tell a process, and the terminal's keys. Stops are left to the caller: who stops it does not mean the
/// other one.
const PASSED_ON: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGCONT,
];
/// `si_code` of what the kernel sends by itself: the terminal's, here.
const SI_KERNEL: i32 = 0x80;

/// From now on a file that grows beyond what the process may write is an error of the call, and does not end the process.
pub fn no_signal_for_large_files() {
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Signals to the calling process that are meant for a child of it. From now on they wait, until [`Proxy::wait`] passes
/// them on; those that the process ignores it does not get. It has one thread.
#[derive(Debug)]
pub struct Proxy {
    set: libc::sigset_t,
}

impl Proxy {
    /// Begins before there is a child.
    pub fn begin() -> Proxy {
        let mut set = MaybeUninit::zeroed();
        // SAFETY: the set and the actions live through the calls, whose other arguments are signals; no handlers.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in PASSED_ON {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed();
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
                if action.assume_init().sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            // Where it is ignored nobody is told of an end.
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            let set = set.assume_init();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        Proxy { set }
    }

    /// Passes on what comes until the child ends: its wait status.
    ///
    /// # Errors
    /// ECHILD: it is none.
    pub fn wait(&self, child: i32) -> io::Result<i32> {
        loop {
            if let Some(status) = ended(child)? {
                return Ok(status);
            }
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: both live through the call, which fills in what it returns for; no pointers in the others.
            let (signal, code, same_group) = unsafe {
                let signal = libc::sigwaitinfo(&raw const self.set, info.as_mut_ptr());
                (signal, info.assume_init().si_code, libc::getpgid(child) == libc::getpgrp())
            };
            // The terminal has told the whole group.
            if signal > 0 && signal != libc::SIGCHLD && !(code == SI_KERNEL && same_group) {
                // A child that has not been waited for has its number to itself; one of other rights cannot be told.
                let _ = kill(child, signal);
            }
        }
    }
}

/// The wait status of a child that has ended, which is taken away.
fn ended(child: i32) -> io::Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    match unsafe { libc::waitpid(child, &raw mut status, libc::__WALL | libc::WNOHANG) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(status)),
    }
}
