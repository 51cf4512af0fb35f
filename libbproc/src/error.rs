//! The one error of the client: a number for programs, words for people.

use std::fmt;
use std::io;
use std::path::Path;

use bproc_common::errno;

/// What failed, where, why and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// errno, or one of BProc's own numbers (`BE_*`, from 300). Positive.
    pub number: i32,
    /// The same in words; never empty.
    pub message: String,
}

impl Error {
    /// An error with these words; without words those of the number are taken.
    pub fn new(number: i32, message: impl Into<String>) -> Error {
        let message = message.into();
        let message = if message.is_empty() { describe(number) } else { message };
        Error { number, message }
    }

    pub(crate) fn io(what: &str, error: &io::Error) -> Error {
        Error::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {error}"))
    }

    /// The number of [`Error::unreachable`]. Takes no memory.
    pub(crate) fn unreachable_number(error: &io::Error) -> i32 {
        match error.raw_os_error() {
            None | Some(libc::ENOENT | libc::ECONNREFUSED) => libc::ENOSYS,
            Some(number) => number,
        }
    }

    /// The agent cannot be reached. Where nobody listens the number is ENOSYS, as BProc's users know it.
    pub(crate) fn unreachable(path: &Path, error: &io::Error) -> Error {
        let number = Error::unreachable_number(error);
        let advice = if number == libc::ENOSYS {
            "is bproc-agent running? (BPROC_SOCKET names its socket if it is elsewhere)"
        } else {
            "is BPROC_SOCKET right?"
        };
        Error::new(number, format!("cannot reach the agent at {}: {error}; {advice}", path.display()))
    }

    /// The agent broke the connection off or does not speak as it should.
    pub(crate) fn broken(path: &Path, why: impl fmt::Display) -> Error {
        let path = path.display();
        Error::new(
            libc::EPROTO,
            format!("no usable answer from the agent at {path}: {why}; its log tells more, try again when it is back"),
        )
    }
}

/// Words for an errno or a number of BProc's own, of either sign.
pub fn describe(number: i32) -> String {
    let number = number.saturating_abs();
    match errno::describe(number) {
        Some(words) => words.to_owned(),
        None => {
            let text = io::Error::from_raw_os_error(number).to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_either_sign_have_words() {
        assert_eq!(describe(-301), "Node is down");
        assert_eq!(describe(libc::ENOENT), "No such file or directory");
        assert_eq!(Error::new(300, "").message, "Invalid node number");
        assert!(!describe(i32::MIN).is_empty());
    }

    #[test]
    fn nobody_listening_says_what_to_do() {
        let error = Error::unreachable(Path::new("/x/agent.sock"), &io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.number, libc::ENOSYS);
        assert!(error.message.starts_with("cannot reach the agent at /x/agent.sock: No such file"), "{error}");
        assert!(error.message.contains("is bproc-agent running?"));
    }
}
