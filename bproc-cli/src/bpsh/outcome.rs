//! How bpsh ends, from how its children did. Pure.

use std::path::PathBuf;

use bproc_common::errno;
use bproc_common::wait::Status;

/// Exit status for a child that was killed by a signal.
const KILLED: i32 = 255;

/// How bpsh ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit status.
    Exit(i32),
    /// By this signal, so that a shell sees what it would have seen natively.
    Signal(i32),
}

/// What happened to bpsh itself meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meanwhile {
    /// The signal that asked it to end.
    pub(crate) interrupted: Option<i32>,
    /// Nobody reads its output any more and SIGPIPE was not ignored.
    pub(crate) broken_pipe: bool,
    /// Its output could not be written, for another reason.
    pub(crate) write_failed: bool,
}

/// Messages for standard error, and the end.
pub(crate) fn conclude(children: &[(i32, Status)], meanwhile: Meanwhile) -> (Vec<String>, End) {
    let mut messages = Vec::new();
    let mut largest = i32::from(meanwhile.write_failed);
    let mut as_asked = false;
    for (node, status) in children {
        match status {
            Status::Exited(code) => largest = largest.max(i32::from(*code)),
            Status::Killed { signal, .. } => {
                let signal = i32::from(*signal);
                largest = KILLED;
                as_asked |= meanwhile.interrupted == Some(signal);
                // Natively the writer would die as silently.
                if !(signal == libc::SIGPIPE && meanwhile.broken_pipe) {
                    messages.push(format!("bpsh: Child process on node {node} exited abnormally."));
                }
            }
            Status::Stopped(_) | Status::Continued => {}
        }
    }
    let end = match meanwhile.interrupted {
        Some(signal) if as_asked => End::Signal(signal),
        _ if meanwhile.broken_pipe => End::Signal(libc::SIGPIPE),
        _ => End::Exit(largest),
    };
    (messages, end)
}

/// The same, when streams of the programs on these nodes were lost with their connections.
pub(crate) fn add_losses(nodes: &[i32], (mut messages, end): (Vec<String>, End)) -> (Vec<String>, End) {
    let told =
        |node| format!("bpsh: The connection to node {node} was lost: what its process read or wrote is not whole.");
    messages.extend(nodes.iter().map(told));
    match end {
        End::Exit(_) if !nodes.is_empty() => (messages, End::Exit(KILLED)),
        end => (messages, end),
    }
}

/// Exit status of a child whose program could not be started. As a shell's when the program, or what it needs, is missing or
/// cannot be run. A file for one of its streams (`-I FILE`), whose path begins the words then, is another reason.
pub(crate) fn start_failed<'p>(error: &bproc::Error, files: impl IntoIterator<Item = &'p PathBuf>) -> i32 {
    let is_of = |file: &PathBuf| error.message.starts_with(&format!("{}: ", file.display()));
    match error.number {
        _ if files.into_iter().any(is_of) => 1,
        libc::ENOENT => 127,
        libc::EACCES | libc::ENOEXEC | libc::EISDIR => 126,
        _ => 1,
    }
}

/// The reason after `N: `. BProc's own errors have fixed words, since scripts look for them.
pub(crate) fn reason(error: &bproc::Error) -> String {
    errno::describe(error.number).map_or_else(|| error.message.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINATED: Status = Status::Killed { signal: 2, core: false };
    const PIPE: Status = Status::Killed { signal: 13, core: false };

    #[test]
    fn the_largest_status_wins() {
        let children = [(0, Status::Exited(0)), (1, Status::Exited(7)), (2, Status::Exited(3))];
        assert_eq!(conclude(&children, Meanwhile::default()), (vec![], End::Exit(7)));
        assert_eq!(conclude(&[], Meanwhile::default()).1, End::Exit(0));
    }

    #[test]
    fn a_signal_counts_255_and_is_told() {
        let (messages, end) = conclude(&[(4, TERMINATED), (5, Status::Exited(1))], Meanwhile::default());
        assert_eq!(messages, ["bpsh: Child process on node 4 exited abnormally."]);
        assert_eq!(end, End::Exit(255));
    }

    #[test]
    fn an_interrupt_that_ended_children_ends_bpsh_the_same_way() {
        let meanwhile = Meanwhile { interrupted: Some(2), ..Meanwhile::default() };
        assert_eq!(conclude(&[(0, TERMINATED)], meanwhile).1, End::Signal(2));
        assert_eq!(conclude(&[(0, Status::Exited(3))], meanwhile).1, End::Exit(3));
    }

    #[test]
    fn a_lost_connection_is_told() {
        let ended = || conclude(&[(3, Status::Exited(0)), (4, Status::Exited(0))], Meanwhile::default());
        assert_eq!(add_losses(&[], ended()), (vec![], End::Exit(0)));
        let (messages, end) = add_losses(&[4], ended());
        assert_eq!((messages.len(), end), (1, End::Exit(255)));
        assert!(messages[0].contains("node 4"));
    }

    #[test]
    fn a_broken_pipe_is_silent() {
        let meanwhile = Meanwhile { broken_pipe: true, ..Meanwhile::default() };
        assert_eq!(conclude(&[(0, PIPE)], meanwhile), (vec![], End::Signal(13)));
        assert_eq!(conclude(&[(0, PIPE)], Meanwhile::default()).1, End::Exit(255));
    }

    #[test]
    fn reasons() {
        let down = bproc::Error::new(301, "node 3 does not answer since noon");
        assert_eq!(reason(&down), "Node is down");
        let none = bproc::Error::new(libc::ENOENT, "/bin/x: No such file or directory");
        assert_eq!(reason(&none), "/bin/x: No such file or directory");
        let file = PathBuf::from("/tmp/x");
        let statuses = |path| [2, 13, 12].map(|n| start_failed(&bproc::Error::new(n, format!("{path}: why")), [&file]));
        assert_eq!(statuses("/bin/x"), [127, 126, 1]);
        assert_eq!(statuses("/tmp/x.sh"), [127, 126, 1]);
        assert_eq!(statuses("/tmp/x"), [1; 3]);
        assert_eq!(start_failed(&down, []), 1);
    }
}
