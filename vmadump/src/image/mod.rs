//! The image format: pure, reads and writes bytes only. See docs/image-format.md.
//!
//! ```text
//! header │ section │ section │ … │ pages │ pages │ … │ end
//! ```
//!
//! Everything that a plan needs comes before the first page, so that a target can
//! check and build while the pages are still on their way.

mod check;
mod reader;
mod types;
mod writer;

pub use check::Unsound;
pub use reader::{FormatError, PageBlock, Reader, read_header};
pub use types::*;
pub use writer::{Writer, header};

use crate::wire::Bytes;

/// First bytes of an image.
pub const MAGIC: [u8; 8] = *b"VMADUMP\n";
/// Version that this library writes; another major version is refused.
pub const VERSION: (u16, u16) = (1, 0);
/// Architecture number of x86_64 (BPROC_ARCH_X86_64).
pub const ARCH_X86_64: u32 = 4;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most vdsos of other kernels that an image has.
pub(crate) const MOST_VDSOS: usize = 16;
/// First address that no process can have.
pub const TASK_END: u64 = 0x7fff_ffff_f000;
/// Bytes of the file header.
pub const HEADER_LEN: usize = 32;
/// Bytes of a section header.
pub const SECTION_LEN: usize = 32;
/// Most bytes of a section that is no page block.
pub const MAX_SECTION: u64 = 64 << 20;
/// Most bytes of pages in one block.
pub const MAX_BLOCK: u64 = 16 << 20;
/// Most runs in one block.
pub const MAX_RUNS: u32 = 8192;
/// Section flag: a reader that does not know the type must refuse the image.
pub const CRITICAL: u32 = 1;

/// Section types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Section {
    /// [`Meta`].
    Meta = 1,
    /// [`Cpu`].
    Cpu = 2,
    /// [`Mm`].
    Mm = 3,
    /// Table of [`FileRef`].
    Files = 4,
    /// List of [`Area`].
    Areas = 5,
    /// [`Vdso`].
    Vdso = 6,
    /// Table of [`Creds`].
    Creds = 7,
    /// List of [`Thread`].
    Threads = 8,
    /// [`Signals`].
    Signals = 9,
    /// [`Timers`].
    Timers = 10,
    /// [`Process`].
    Process = 11,
    /// List of [`Fd`].
    Fds = 12,
    /// A block of pages.
    Pages = 13,
    /// Number of pages and checksum over all section checksums.
    End = 14,
    /// Of each thread, in their order: processors that it may run on. Optional.
    Processors = 15,
    /// Table of [`MemoryFile`].
    MemoryFiles = 16,
    /// [`Settings`]. Optional.
    Settings = 17,
    /// Empty: pages come next, and may take a while. Optional.
    Front = 18,
    /// [`Habits`], if it has any. Optional.
    Habits = 19,
    /// [`Vdso`]s of other kernels, if it has any.
    Vdsos = 20,
}

/// All of an image but its pages.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// Who and where from.
    pub meta: Meta,
    /// CPU features.
    pub cpu: Cpu,
    /// Memory marks.
    pub mm: Mm,
    /// Files that areas, descriptors and the program refer to.
    pub files: Vec<FileRef>,
    /// Mappings by address.
    pub areas: Vec<Area>,
    /// The vdso, if the process had one.
    pub vdso: Option<Vdso>,
    /// Vdsos of other kernels that handlers of signals may return into.
    pub vdsos: Vec<Vdso>,
    /// Credentials that threads refer to.
    pub creds: Vec<Creds>,
    /// Threads, the main one first.
    pub threads: Vec<Thread>,
    /// Signals.
    pub signals: Signals,
    /// Timers.
    pub timers: Timers,
    /// Limits and the like.
    pub process: Process,
    /// Descriptors by number.
    pub fds: Vec<Fd>,
    /// Of each thread: processors that it is bound to, a bit each; empty: it may run on all. Or no thread is bound.
    pub processors: Vec<Bytes>,
    /// Memory files that descriptors lead to.
    pub memory_files: Vec<MemoryFile>,
    /// What else can be set.
    pub settings: Option<Settings>,
    /// What few have set.
    pub habits: Option<Habits>,
}

impl Image {
    /// Files that some area maps, with index; these must be the same where the image is restored.
    pub fn mapped_files(&self) -> impl Iterator<Item = (u32, &FileRef)> {
        self.files
            .iter()
            .enumerate()
            .map(|(i, f)| (i as u32, f))
            .filter(|(i, _)| self.areas.iter().any(|a| matches!(a.kind, AreaKind::File { file, .. } if file == *i)))
    }

    /// The main thread.
    pub fn leader(&self) -> &Thread {
        &self.threads[0]
    }

    /// Signals that are pending for the process or a thread of it.
    pub(crate) fn signals(&self) -> usize {
        self.signals.pending.len() + self.threads.iter().map(|thread| thread.pending.len()).sum::<usize>()
    }

    /// Priority of input and output of a thread, by its place in the list.
    pub(crate) fn io_priority(&self, thread: usize) -> Option<u32> {
        self.settings.as_ref().and_then(|settings| settings.io_priorities.get(thread).copied())
    }

    /// Most pages that may follow.
    pub fn pages(&self) -> u64 {
        self.areas.iter().map(|a| a.pages).sum()
    }

    /// Command line for people.
    pub fn command(&self) -> String {
        let words: Vec<String> =
            self.meta.cmdline.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| Bytes(w.to_vec()).text()).collect();
        if words.is_empty() { format!("[{}]", self.meta.comm.text()) } else { words.join(" ") }
    }
}

/// Consecutive pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Number of pages.
    pub pages: u32,
}

impl Run {
    /// Bytes.
    pub fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// Never in an image.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }
}
