//! What whoever is to restore a process can be asked while that still runs, so that it need not be stopped for a refusal.

use crate::image::{Creds, FileRef};
use crate::wire::{Bytes, wire_struct};

wire_struct! {
    /// A file, a directory or a device that the process has open, and that is to be opened again.
    pub struct OpenFile {
        /// Its number.
        pub fd: i32,
        /// File status flags (O_*).
        pub flags: u32,
        /// Absolute path as the process sees it.
        pub path: Bytes,
    }
}

wire_struct! {
    /// What is asked.
    #[derive(Default)]
    pub struct Question {
        /// Files that are mapped and not written: are they there?
        pub mapped: Vec<FileRef>,
        /// Files that must be there.
        pub open: Vec<OpenFile>,
        /// Credentials of the first thread; secure bits are not known before the stop.
        pub creds: Option<Creds>,
        /// Threads.
        pub threads: u32,
        /// It has seccomp filters.
        pub filtered: bool,
        /// Ids of its POSIX timers, ascending.
        pub timers: Vec<u32>,
    }
}

wire_struct! {
    /// What is answered.
    #[derive(Default)]
    pub struct Answer {
        /// Of each of [`Question::mapped`] whether the same is there.
        pub there: Vec<bool>,
        /// Numbers of those of [`Question::open`] that cannot be opened.
        pub missing: Vec<i32>,
        /// There is more that stands against it than missing files.
        pub more: bool,
        /// errno of a refusal, 0 if there is none.
        pub number: i32,
        /// All reasons in words.
        pub words: Bytes,
    }
}
