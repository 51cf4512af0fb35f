//! Why something was not done: refusals, which come before anything is stopped or
//! lost, and errors, which leave the process as it was.

use crate::image::FormatError;
use crate::sys::SysError;

/// A descriptor that cannot travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncarried {
    /// Its number.
    pub fd: i32,
    /// What it is.
    pub what: String,
}

fn list(all: &[Uncarried]) -> String {
    all.iter().map(|u| format!("{} ({})", u.fd, u.what)).collect::<Vec<_>>().join(", ")
}

fn owner(pid: i32) -> String {
    if pid > 0 { format!(" by process {pid}") } else { String::new() }
}

/// Why a process cannot be dumped, or an image not restored here. Nothing has been touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// io_uring queues live in the kernel.
    #[error("it uses io_uring")]
    IoUring,
    /// Asynchronous I/O contexts live in the kernel.
    #[error("it uses asynchronous I/O (io_setup)")]
    Aio,
    /// Memory of a device.
    #[error("it maps the device {0}")]
    DeviceMapping(String),
    /// Memory that another process fills on demand.
    #[error("it uses userfaultfd")]
    Userfaultfd,
    /// Memory shared with a living process.
    #[error("it shares the memory {what} with process {with}")]
    SharedMemory {
        /// Name or address of the memory.
        what: String,
        /// The other process.
        with: i32,
    },
    /// A file that it writes through shared memory.
    #[error("it has {0} mapped shared and writable; another machine would not see the changes")]
    SharedFile(String),
    /// Huge pages from the reserved pool.
    #[error("it uses reserved huge pages (hugetlb) at {0:#x}")]
    HugeTlb(u64),
    /// Memory that may never be changed.
    #[error("it has sealed memory (mseal) at {0:#x}")]
    SealedMemory(u64),
    /// It may never have memory that can be written and executed, where calls could be made for it.
    #[error(
        "it may have no memory that can be written and executed (PR_SET_MDWE, or the security policy of the machine)"
    )]
    NoNewCode,
    /// Nodes of memory that are not there.
    #[error("its memory is bound to nodes of which none is here (bits {0:#x})")]
    MemoryNodes(u64),
    /// Hardware shadow stack.
    #[error("it uses a shadow stack")]
    ShadowStack,
    /// Memory that may not be looked at.
    #[error("it has secret memory (memfd_secret)")]
    SecretMemory,
    /// Waits for a vfork child that runs on its memory.
    #[error("thread {0} waits for a vfork child")]
    VforkParent(i32),
    /// Memory that is shared with another process as a whole.
    #[error("it shares its whole address space or its descriptor table with another process")]
    SharedSpace,
    /// 32-bit code or another architecture.
    #[error("it is not a 64-bit x86 process")]
    Architecture,
    /// Debuggers and the like.
    #[error("process {0} traces it already")]
    Traced(i32),
    /// It is a debugger or the like.
    #[error("it traces process {0} (strace, a debugger)")]
    Traces(i32),
    /// Other threads run on.
    #[error("its first thread has ended, and the others run on; it cannot be moved")]
    FirstThreadEnded,
    /// Zombie or kernel thread.
    #[error("it has no memory (a zombie or a kernel thread)")]
    NoMemory,
    /// It becomes another program in this moment.
    #[error("it executes a program just now; try again")]
    Executing,
    /// A seccomp filter cannot be read.
    #[error("it has a seccomp filter, which only root (CAP_SYS_ADMIN) can carry")]
    Seccomp,
    /// A timer that cannot be carried.
    #[error("it has a timer of a kind that cannot be carried")]
    Timer,
    /// Open files that cannot be carried.
    #[error("these open files cannot be carried: {}", list(.0))]
    OpenFiles(Vec<Uncarried>),
    /// More than one thread, from inside.
    #[error("a process can dump itself only while it has one thread; this one has {0}")]
    Threads(usize),
    /// Memory that a fork does not copy.
    #[error("it has memory marked MADV_DONTFORK or MADV_WIPEONFORK, which a dump from inside cannot see")]
    DontFork,
    /// The CPU here lacks something.
    #[error("the CPU here lacks {}", .0.join(", "))]
    CpuFeatures(Vec<&'static str>),
    /// The CPU of the machine where it is to go lacks something.
    #[error("the CPU there lacks {}", .0.join(", "))]
    CpuFeaturesThere(Vec<&'static str>),
    /// The CPU here lacks a register set in use.
    #[error("the CPU here lacks a register set (XSAVE component) that thread {0} uses, or lays it out in another way")]
    CpuState(i32),
    /// A file that the image needs is not here.
    #[error("the file {path} cannot be opened here: {why}")]
    FileMissing {
        /// Its path.
        path: String,
        /// The system's reason.
        why: String,
    },
    /// A file that the image needs is another one here.
    #[error("the file {path} is not the same here: {why}")]
    FileDiffers {
        /// Its path.
        path: String,
        /// What differs.
        why: String,
    },
    /// Threads need their ids.
    #[error("restoring {0} threads with their ids needs CAP_CHECKPOINT_RESTORE")]
    ThreadIds(usize),
    /// A thread's id is another one's.
    #[error("its threads keep their ids, of which {tid} is taken here{}; end that first", owner(*.by))]
    ThreadTaken {
        /// The id.
        tid: i32,
        /// Process that has it, 0 if that is not known.
        by: i32,
    },
    /// The inside driver cannot make threads.
    #[error("the image has {0} threads; a process cannot turn itself into it (use vmadump undump)")]
    InsideThreads(usize),
    /// The inside driver makes no descriptors.
    #[error("the image has {0} memory files (memfd); a process cannot turn itself into it (use vmadump undump)")]
    InsideMemoryFiles(usize),
    /// More rights than allowed.
    #[error("the image asks for rights that its owner does not have here: {0}")]
    Rights(String),
    /// No free place in the address space.
    #[error("the image leaves no free room in the address space")]
    NoRoom,
    /// What is to be done in it, or to stand for it, needs more.
    #[error(
        "the hard limit of {what} is {is}, where what stands for a process needs {least}, and this machine lets nobody raise it \
         (CAP_SYS_RESOURCE)"
    )]
    LowLimit {
        /// Of what.
        what: &'static str,
        /// It.
        is: u64,
        /// What is needed.
        least: u64,
    },
    /// The image's vdso cannot be replaced by the one of this kernel.
    #[error("this kernel's vdso lacks {0}")]
    Vdso(String),
    /// The kernel knows less of restartable sequences.
    #[error("a thread has registered {0} bytes for restartable sequences, more than the kernel here fills")]
    Rseq(u32),
    /// The process to restore into is not fit for it.
    #[error("process {0} cannot be replaced: it has several threads")]
    Target(i32),
    /// Seccomp filters cannot be taken off.
    #[error("process {0}, in whose place it would go on, has other seccomp filters than it")]
    OtherFilters(i32),
    /// A body that can gain no rights.
    #[error("process {pid}, in whose place it would go on, may gain no rights (no_new_privs), and {what}")]
    NoNewPrivs {
        /// The body.
        pid: i32,
        /// What cannot be done without.
        what: &'static str,
    },
    /// Several of these.
    #[error("{}", .0.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Refusal>),
}

impl Refusal {
    /// All of them, each once; `None` when there is none.
    pub fn all(mut refusals: Vec<Refusal>) -> Option<Refusal> {
        let mut each: Vec<Refusal> = Vec::new();
        for refusal in refusals.drain(..) {
            if !each.contains(&refusal) {
                each.push(refusal);
            }
        }
        if each.len() > 1 { Some(Refusal::Several(each)) } else { each.pop() }
    }
}

/// Why an operation failed. The process that it concerned goes on as if nothing had been tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The image is none, damaged or foreign.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Not possible, found before anything was touched.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The process ended meanwhile.
    #[error("process {0} ended meanwhile")]
    Gone(i32),
    /// A call made inside of the process failed.
    #[error("cannot {op} in process {pid}: {why}")]
    Inside {
        /// What was tried.
        op: &'static str,
        /// Where.
        pid: i32,
        /// The system's reason.
        why: std::io::Error,
    },
    /// The image could not be written or read.
    #[error("cannot {op} the image: {why}")]
    Io {
        /// write or read.
        op: &'static str,
        /// The system's reason.
        why: std::io::Error,
    },
    /// The process or the kernel is not as expected.
    #[error("process {pid}: {what}")]
    Unexpected {
        /// Who.
        pid: i32,
        /// What was seen.
        what: String,
    },
}

impl Error {
    /// The number for errno.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Sys(e) => e.errno,
            Error::Format(FormatError::Io(e)) | Error::Io { why: e, .. } | Error::Inside { why: e, .. } => {
                e.raw_os_error().unwrap_or(libc::EIO)
            }
            Error::Format(FormatError::NotAnImage | FormatError::Architecture(_)) => libc::ENOEXEC,
            Error::Format(_) => libc::EINVAL,
            Error::Refused(Refusal::Traced(_) | Refusal::Rights(_) | Refusal::ThreadIds(_) | Refusal::Seccomp) => {
                libc::EPERM
            }
            Error::Refused(Refusal::ThreadTaken { .. }) => libc::EEXIST,
            // It soon waits no more.
            Error::Refused(Refusal::VforkParent(_) | Refusal::Executing) => libc::EAGAIN,
            Error::Refused(Refusal::FileMissing { .. }) => libc::ENOENT,
            Error::Refused(Refusal::FileDiffers { .. }) => libc::ESTALE,
            Error::Refused(Refusal::Several(all)) => {
                let mut numbers = all.iter().map(|refusal| Error::Refused(refusal.clone()).errno());
                let first = numbers.next().unwrap_or(libc::EOPNOTSUPP);
                if numbers.all(|number| number == first) { first } else { libc::EOPNOTSUPP }
            }
            Error::Refused(_) => libc::EOPNOTSUPP,
            Error::Gone(_) => libc::ESRCH,
            Error::Unexpected { .. } => libc::EIO,
        }
    }
}
