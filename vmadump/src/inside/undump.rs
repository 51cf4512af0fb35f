//! The calling process becomes an image. Everything that can fail is done while there is a way back:
//! the image is read and verified as a whole, files are opened and compared, room is mapped. Then one
//! table of calls is run that does not return.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::{Quiet, one_thread};
use crate::batch::{Batch, find_hole};
use crate::compile::{Compiler, HEAD, NO_FILE, TO_LOOK, same_file};
use crate::error::{Error, Refusal};
use crate::facts::Facts;
use crate::image::{FileRef, Image, PAGE, Reader, Rseq, Run, TASK_END};
use crate::plan::{Op, Plan, Wishes, plan};
use crate::procfs;
use crate::sys::blob;
use crate::sys::inside::{self as own, Context, Region, leave, twin};
use crate::sys::ptrace::reg;

/// Pages read so far: where they lie now, where they belong.
struct Staged {
    region: Region,
    used: usize,
    runs: Vec<(u64, Run)>,
}

/// Replaces the calling process by the image in `from`: does not return then. On a bad image, a missing file or
/// anything else it returns, and the caller is as it was (what has been read from `from` is gone). Descriptors stay
/// as they are. The pid is the caller's.
pub fn undump_self(from: impl Read) -> Error {
    match prepare(from) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

enum Never {}

fn own_ranges() -> Result<Vec<(u64, u64)>, Error> {
    let text = std::fs::read("/proc/self/maps").map_err(|why| Error::Io { op: "find room for", why })?;
    Ok(procfs::maps(&text).iter().map(|m| (m.start, m.end)).collect())
}

fn prepare(from: impl Read) -> Result<Never, Error> {
    one_thread()?;
    let mut reader = Reader::new(from)?;
    let image = reader.image().clone();
    if image.threads.len() > 1 {
        return Err(Refusal::InsideThreads(image.threads.len()).into());
    }
    if !image.memory_files.is_empty() {
        return Err(Refusal::InsideMemoryFiles(image.memory_files.len()).into());
    }
    // Allocations of our own may map more memory: leave a wide berth by choosing the place last of all.
    let facts = Facts::here();
    let staging = (image.pages() * PAGE).max(PAGE);
    let wishes = Wishes { keep_creds: true, staging, avoid: own_ranges()?, ..Wishes::default() };
    let plan = plan(&image, &facts, &wishes)?;
    let (base, size) = plan.scratch;
    let mut staged = Staged { region: Region::map(base, staging)?, used: 0, runs: Vec::new() };
    stage(&mut reader, &mut staged)?;
    drop(reader);
    let files = open_files(&image)?;
    let quiet = Quiet::new();
    let rseq = own_rseq()?;
    let pid = std::process::id() as i32;
    rename_thread(&image, &mut staged, pid);
    // The exit: code, a short table, the frame. It stays mapped in the process, for it is running when all else is gone.
    let frame = Frame::new(&image, &plan);
    let exit_len = (2 * PAGE + frame.len()).next_multiple_of(PAGE);
    let mut avoid = own_ranges()?;
    avoid.extend(image.areas.iter().map(|a| (a.start, a.end)));
    avoid.extend(plan_ranges(&plan));
    avoid.push((base, base + size));
    let exit_at = find_hole(&mut avoid, exit_len).ok_or(Refusal::NoRoom)?;
    let mut exit = Region::map(exit_at, exit_len)?;
    exit.bytes()[..blob::code().len()].copy_from_slice(blob::code());
    let tables_at = base + staging;
    let mut tables = Region::map(tables_at, size - staging)?;
    let ready: Vec<(u32, i32)> = files.iter().map(|(i, f)| (*i, f.as_raw_fd())).collect();
    let mut last = Batch::new(exit_at + PAGE);
    last.must(libc::SYS_munmap, &[base, size], "unmap the tables");
    let fs = image.leader().regs[reg::FS_BASE];
    let gs = image.leader().regs[reg::GS_BASE];
    last.must(libc::SYS_arch_prctl, &[0x1001, gs], "set gs");
    last.must(libc::SYS_arch_prctl, &[0x1002, fs], "set fs");
    let frame_at = exit_at + 2 * PAGE;
    last.sigreturn(frame_at);
    let mut batch = Batch::new(tables_at);
    if rseq.address != 0 {
        batch.may(libc::SYS_rseq, &[rseq.address, rseq.size.into(), 1, rseq.signature.into()], "unregister rseq");
    }
    everything(&mut batch, &image, &plan, &staged, &ready, (base, size), (exit_at, exit_len));
    batch.jump(last.entry());
    if batch.size() > size - staging || last.size() > PAGE {
        return Err(Error::Unexpected { pid, what: "the table of calls is too large".into() });
    }
    let bytes = batch.bytes();
    tables.bytes()[..bytes.len()].copy_from_slice(&bytes);
    let bytes = last.bytes();
    exit.bytes()[PAGE as usize..PAGE as usize + bytes.len()].copy_from_slice(&bytes);
    let bytes = frame.bytes(frame_at, quiet.0, &image);
    exit.bytes()[2 * PAGE as usize..2 * PAGE as usize + bytes.len()].copy_from_slice(&bytes);
    exit.make_code()?;
    leave(exit_at, batch.entry())
}

/// Ranges that the plan maps beside the image's areas.
fn plan_ranges(plan: &Plan) -> Vec<(u64, u64)> {
    plan.ops
        .iter()
        .filter_map(|op| match op {
            Op::Vdso(at) => Some((*at, at + 64 * PAGE)),
            Op::Brought { data_start, start, code } => Some((*data_start, start + code.len() as u64)),
            _ => None,
        })
        .collect()
}

fn stage<R: Read>(reader: &mut Reader<R>, staged: &mut Staged) -> Result<(), Error> {
    let mut data = Vec::new();
    while let Some(block) = reader.block()? {
        reader.data(&block, &mut data)?;
        let at = staged.used;
        let Some(room) = staged.region.bytes().get_mut(at..at + data.len()) else {
            return Err(crate::image::FormatError::Malformed(crate::wire::Malformed(
                "it has more pages than its areas",
            ))
            .into());
        };
        room.copy_from_slice(&data);
        let mut from = staged.region.at() + at as u64;
        for run in &block.runs {
            staged.runs.push((from, *run));
            from += run.len();
        }
        staged.used += data.len();
    }
    Ok(())
}

/// Does its path lead to this very file (by size, and build id or time), where the caller is and as it may open it?
pub fn is_here(file: &FileRef) -> bool {
    open_file(file).is_ok()
}

fn open_file(file: &FileRef) -> Result<File, Error> {
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&file.path));
    let missing = |e: std::io::Error| Refusal::FileMissing { path: file.path.text(), why: e.to_string() };
    let differs = |why: String| Refusal::FileDiffers { path: file.path.text(), why };
    // To open some devices does something.
    if !std::fs::metadata(path).map_err(missing)?.is_file() {
        return Err(differs(NO_FILE.into()).into());
    }
    let open = File::options().read(true).custom_flags(TO_LOOK).open(path).map_err(missing)?;
    let meta = open.metadata().map_err(|e| differs(e.to_string()))?;
    let mut head = vec![0; HEAD];
    let got = open.read_at(&mut head, 0).unwrap_or(0);
    same_file(file, &stat_of(&meta), &head[..got]).map_err(differs)?;
    Ok(open)
}

fn open_files(image: &Image) -> Result<Vec<(u32, File)>, Error> {
    let mut files = Vec::new();
    for (index, file) in image.mapped_files() {
        files.push((index, open_file(file)?));
    }
    Ok(files)
}

/// The fields of `struct stat` that are compared.
fn stat_of(meta: &std::fs::Metadata) -> [u8; 144] {
    use std::os::unix::fs::MetadataExt;
    let mut stat = [0; 144];
    for (at, value) in
        [(24, meta.mode().into()), (48, meta.len()), (88, meta.mtime() as u64), (96, meta.mtime_nsec() as u64)]
    {
        stat[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    stat
}

fn own_rseq() -> Result<Rseq, Error> {
    let mut context = Context::default();
    match twin(&mut context)? {
        Some(twin) => super::dump::rseq_of(&twin),
        None => Ok(Rseq { address: 0, size: 0, signature: 0, flags: 0 }),
    }
}

/// A C library keeps the thread's id at the address that the kernel clears at its end: now it is another.
fn rename_thread(image: &Image, staged: &mut Staged, pid: i32) {
    let thread = image.leader();
    let at = thread.tid_address;
    let Some((from, run)) = staged.runs.iter().find(|(_, r)| r.start <= at && at + 4 <= r.start + r.len()) else {
        return;
    };
    let offset = (from - staged.region.at() + (at - run.start)) as usize;
    if let Some(word) = staged.region.bytes().get_mut(offset..offset + 4)
        && word == thread.tid.to_ne_bytes()
    {
        word.copy_from_slice(&pid.to_ne_bytes());
    }
}

fn everything(
    batch: &mut Batch,
    image: &Image,
    plan: &Plan,
    staged: &Staged,
    ready: &[(u32, i32)],
    scratch: (u64, u64),
    exit: (u64, u64),
) {
    let mut keep = [(scratch.0, scratch.0 + scratch.1), (exit.0, exit.0 + exit.1)];
    keep.sort_unstable();
    let mut at = 0;
    for (start, end) in keep {
        batch.must(libc::SYS_munmap, &[at, start - at], "empty the address space");
        at = end;
    }
    batch.must(libc::SYS_munmap, &[at, TASK_END - at], "empty the address space");
    let pid = std::process::id() as i32;
    let mut compiler = Compiler::new(image, batch, -1, &[]);
    compiler.ready = ready;
    for op in &plan.ops {
        match op {
            Op::Pages => staged.runs.iter().for_each(|(from, run)| {
                compiler.batch.copy(run.start, *from, run.len());
            }),
            Op::ThreadState => {
                compiler.thread(image.leader());
                compiler.thread_habits(0);
                compiler.signals(image.leader(), pid, pid);
                compiler.scheduling(
                    image.leader(),
                    image.io_priority(0),
                    image.processors.first().map_or(&[], |set| &set.0),
                );
                compiler.after_creds(image.leader());
                compiler.late_limits(plan);
                compiler.told(pid);
            }
            Op::Pending => compiler.pending(pid, |_| false),
            Op::Clear | Op::Fds | Op::Threads | Op::Creds | Op::Filters | Op::Registers => {}
            op => {
                compiler.memory(op);
                compiler.process(op);
            }
        }
    }
    for (_, fd) in ready {
        batch.may(libc::SYS_close, &[*fd as u64], "close a mapped file");
    }
    let name = batch.text(b"vmadump");
    // So that the next dump knows that nobody needs it.
    batch.may(libc::SYS_prctl, &[0x5356_4d41, 0, exit.0, exit.1, name], "name the exit");
}

/// The frame of a signal that never was: registers, extended state, mask.
struct Frame {
    xstate: Vec<u8>,
    regs: [u64; 27],
}

const UCONTEXT: usize = 320;

impl Frame {
    fn new(_image: &Image, plan: &Plan) -> Self {
        Frame { xstate: plan.xstate[0].clone(), regs: plan.regs[0] }
    }

    fn len(&self) -> u64 {
        (UCONTEXT + self.xstate.len() + 64) as u64
    }

    fn bytes(&self, at: u64, _caller: u64, image: &Image) -> Vec<u8> {
        let thread = image.leader();
        let r = &self.regs;
        let mut words = vec![7, 0];
        words.extend([thread.altstack.sp, u64::from(thread.altstack.flags), thread.altstack.size]);
        // r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags
        words.extend([9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18].map(|i| r[i]));
        words.push(r[reg::CS] & 0xffff | (r[20] & 0xffff) << 48);
        words.extend([0, 0, 0, 0]);
        words.push(at + UCONTEXT as u64);
        words.extend([0; 8]);
        words.push(thread.blocked);
        let mut bytes: Vec<u8> = words.iter().flat_map(|w: &u64| w.to_ne_bytes()).collect();
        bytes.resize(UCONTEXT, 0);
        let mut state = self.xstate.clone();
        let size = state.len() as u32;
        state[464..468].copy_from_slice(&0x4650_5853u32.to_ne_bytes());
        state[468..472].copy_from_slice(&(size + 4).to_ne_bytes());
        state[472..480].copy_from_slice(&own::enabled().to_ne_bytes());
        state[480..484].copy_from_slice(&size.to_ne_bytes());
        bytes.extend(state);
        bytes.extend(0x4650_5845u32.to_ne_bytes());
        bytes
    }
}
