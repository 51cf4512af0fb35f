//! Steps of a plan become system calls in a batch. Nothing here knows which driver runs it.

use crate::batch::{Batch, Index};
use crate::image::{AreaKind, Creds, FileRef, Image, PosixTimer, Thread};
use crate::limits::LATE;
use crate::plan::{MapAt, Op, Plan, SIGPENDING, TimerStep};
use crate::wire::Bytes;

const FIXED: i32 = libc::MAP_FIXED_NOREPLACE;
/// Bytes of `struct stat`.
const STAT: usize = 144;
/// Bytes of a file's head that are read to see its build id.
pub(crate) const HEAD: usize = 4096;
/// Bytes of the auxiliary vector that kernels before 6.3 have room for; later ones take more.
const SMALL_AUXV: usize = 384;
/// How files are opened to be compared and mapped: whatever else stands there, nobody waits for it.
pub(crate) const TO_LOOK: i32 = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
/// Of a signal stack's flags: there is none.
const SS_DISABLE: u32 = libc::SS_DISABLE as u32;
/// Before Linux 6.15 a process gives its timers numbers that only go up, also after an exec.
const COUNT_UP: &str =
    "give a timer its number again (before Linux 6.15 not where it, or its stand-in, has been before)";

/// A file that was opened in the target, to be compared with what the image says.
pub(crate) struct Opened {
    pub(crate) file: u32,
    pub(crate) open: Index,
    pub(crate) stat: u64,
    pub(crate) head: u64,
    pub(crate) read: Index,
}

/// Turns steps into calls.
pub(crate) struct Compiler<'a> {
    pub(crate) image: &'a Image,
    pub(crate) batch: &'a mut Batch,
    /// The lowest free descriptor, which every open takes and gives back.
    pub(crate) slot: i32,
    pub(crate) opened: Vec<Opened>,
    /// Writes, and how many bytes each has to take.
    pub(crate) filled: Vec<(Index, u64)>,
    /// Paths that stand for files of the image: index, path.
    pub(crate) instead: &'a [(u32, Vec<u8>)],
    /// Files that are open and verified already: index, descriptor.
    pub(crate) ready: &'a [(u32, i32)],
    /// Descriptor at which the first memory file waits; the others follow.
    pub(crate) memory_files: i32,
}

/// Is it of those signals of which each that was sent comes, in the order in which they were sent?
pub(crate) fn is_queued(info: &[u8]) -> bool {
    info.first_chunk().is_some_and(|raw| i32::from_ne_bytes(*raw) >= 32)
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(image: &'a Image, batch: &'a mut Batch, slot: i32, instead: &'a [(u32, Vec<u8>)]) -> Self {
        Compiler { image, batch, slot, opened: Vec::new(), filled: Vec::new(), instead, ready: &[], memory_files: 0 }
    }

    /// Steps that build the memory, up to the pages.
    pub(crate) fn memory(&mut self, op: &Op) {
        match op {
            Op::Vdso(at) => {
                self.batch.must(libc::SYS_arch_prctl, &[0x2003, *at], "map the vdso");
            }
            Op::Brought { data_start, start, code } => {
                let anon = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | FIXED) as u64;
                if start > data_start {
                    self.batch.must(
                        libc::SYS_mmap,
                        &[*data_start, start - data_start, 1, anon, u64::MAX, 0],
                        "map the old vdso's data",
                    );
                }
                let len = code.len() as u64;
                self.batch.must(libc::SYS_mmap, &[*start, len, 3, anon, u64::MAX, 0], "map the old vdso");
                let from = self.batch.data(code);
                self.batch.copy(*start, from, len);
                self.batch.must(libc::SYS_mprotect, &[*start, len, 5], "protect the old vdso");
            }
            Op::Anon(map) => self.map(map, libc::MAP_ANONYMOUS, -1),
            Op::Shared(size, maps) => self.shared(*size, maps),
            Op::File(file, maps) => self.file(*file, maps),
            Op::MemoryFile(file, maps) => self.memory_file(*file, maps),
            Op::Advise { start, len, advice } => {
                self.batch.may(libc::SYS_madvise, &[*start, *len, *advice as u64], "advise an area");
            }
            Op::Place { start, len, policy } => self.place(*start, *len, policy),
            _ => {}
        }
    }

    fn map(&mut self, map: &MapAt, more: i32, fd: i32) {
        let flags = (map.flags | FIXED | more) as u64;
        self.batch.must(
            libc::SYS_mmap,
            &[map.start, map.len, u64::from(map.prot), flags, fd as u64, map.offset],
            "map an area",
        );
    }

    fn shared(&mut self, size: u64, maps: &[MapAt]) {
        if let [one] = maps
            && one.offset == 0
        {
            return self.map(one, libc::MAP_ANONYMOUS, -1);
        }
        let name = self.batch.text(b"shared");
        self.batch.must(libc::SYS_memfd_create, &[name, 0], "make shared memory");
        self.batch.must(libc::SYS_ftruncate, &[self.slot as u64, size], "size shared memory");
        for map in maps {
            self.map(map, 0, self.slot);
        }
        self.batch.must(libc::SYS_close, &[self.slot as u64], "close shared memory");
    }

    /// Permission bits are those of a fresh one until it is sealed.
    fn memory_file(&mut self, index: u32, maps: &[MapAt]) {
        let file = &self.image.memory_files[index as usize];
        let (slot, place) = (self.slot as u64, (self.memory_files + index as i32) as u64);
        let name = self.batch.text(&file.name);
        let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        self.batch.must(libc::SYS_memfd_create, &[name, flags], "make a memory file");
        self.batch.must(libc::SYS_ftruncate, &[slot, file.size], "size a memory file");
        self.batch.must(libc::SYS_dup3, &[slot, place, libc::O_CLOEXEC as u64], "place a descriptor");
        self.batch.must(libc::SYS_close, &[slot], "close a descriptor");
        maps.iter().for_each(|map| self.map(map, 0, place as i32));
    }

    fn sealed(&mut self, index: u32, contents: Option<(u64, u64)>, maps: &[MapAt]) {
        const F_SEAL_EXEC: u32 = 0x20;
        const FRESH: u32 = 0o777;
        let file = &self.image.memory_files[index as usize];
        let place = self.memory_files + index as i32;
        if let Some((start, len)) = contents {
            self.batch.must(libc::SYS_munmap, &[start, len], "unmap a memory file");
        }
        if file.mode & FRESH != FRESH {
            self.batch.may(
                libc::SYS_fchmod,
                &[place as u64, (file.mode & FRESH).into()],
                "set the mode of a memory file",
            );
        }
        // Before Linux 6.3 there was no such seal; it comes before the one that forbids others.
        for (seals, must) in [(file.seals & F_SEAL_EXEC, false), (file.seals & !F_SEAL_EXEC, true)] {
            let args = [place as u64, libc::F_ADD_SEALS as u64, seals.into()];
            match must {
                _ if seals == 0 => {}
                true => drop(self.batch.must(libc::SYS_fcntl, &args, "seal a memory file")),
                false => drop(self.batch.may(libc::SYS_fcntl, &args, "seal a memory file")),
            }
        }
        maps.iter().for_each(|map| self.map(map, 0, place));
    }

    fn path(&mut self, file: u32) -> u64 {
        let path =
            self.instead.iter().find(|(i, _)| *i == file).map_or(&self.image.files[file as usize].path.0, |(_, p)| p);
        self.batch.text(path)
    }

    fn file(&mut self, file: u32, maps: &[MapAt]) {
        if let Some((_, fd)) = self.ready.iter().find(|(i, _)| *i == file) {
            maps.iter().for_each(|map| self.map(map, 0, *fd));
            return;
        }
        let path = self.path(file);
        let slot = self.slot as u64;
        let open =
            self.batch.must(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, TO_LOOK as u64], "open a mapped file");
        let (stat, head) = (self.batch.room(STAT), self.batch.room(HEAD));
        self.batch.must(libc::SYS_fstat, &[slot, stat], "look at a mapped file");
        let read = self.batch.may(libc::SYS_pread64, &[slot, head, HEAD as u64, 0], "read a mapped file");
        self.opened.push(Opened { file, open, stat, head, read });
        for map in maps {
            self.map(map, 0, self.slot);
        }
        self.batch.must(libc::SYS_close, &[slot], "close a mapped file");
    }

    /// Steps after the pages that concern the process as a whole.
    pub(crate) fn process(&mut self, op: &Op) {
        let image = self.image;
        match op {
            Op::Protect { start, len, prot } => {
                self.batch.must(libc::SYS_mprotect, &[*start, *len, u64::from(*prot)], "protect an area");
            }
            Op::Advise { start, len, advice } => {
                self.batch.may(libc::SYS_madvise, &[*start, *len, *advice as u64], "advise an area");
            }
            Op::Lock { start, len, late } => {
                self.batch.may(libc::SYS_mlock2, &[*start, *len, u64::from(*late)], "lock an area");
            }
            Op::Sealed(file, contents, maps) => self.sealed(*file, *contents, maps),
            Op::Marks => self.marks(),
            Op::Actions => self.actions(),
            Op::Surroundings => {
                let process = &image.process;
                self.batch.must(libc::SYS_umask, &[u64::from(process.umask)], "set the umask");
                let (cwd, root) = (self.batch.text(&process.cwd), self.batch.text(b"/"));
                // The same path, else the root.
                self.batch.may(libc::SYS_chdir, &[root], "change the directory");
                self.batch.may(libc::SYS_chdir, &[cwd], "change the directory");
                self.prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(process.subreaper));
                self.prctl(41, u64::from(image.mm.thp_disabled));
                if let Some(settings) = &image.settings {
                    self.prctl(67, u64::from(settings.merges_memory));
                    self.batch.may(libc::SYS_personality, &[settings.personality.into()], "set the personality");
                    self.tell_kernel(b"/proc/self/coredump_filter", &format!("{:#x}", settings.core_filter));
                }
                self.habits();
            }
            Op::Limits(limits) => {
                let now = |(which, _): &(usize, _)| !LATE.contains(which);
                limits.iter().enumerate().filter(now).for_each(|(which, pair)| self.limit(which, *pair));
            }
            Op::WideQueue(pairs) => pairs.iter().for_each(|pair| self.limit(SIGPENDING, *pair)),
            Op::Queue(pair) => self.limit(SIGPENDING, *pair),
            Op::Timers(steps) => self.timers(steps),
            _ => {}
        }
    }

    pub(crate) fn prctl(&mut self, option: i32, value: u64) {
        self.batch.may(libc::SYS_prctl, &[option as u64, value, 0, 0, 0], "set a process option");
    }

    /// Writes to a file of the process's own in /proc, if it may. Descriptors are not made yet; where they are those of
    /// the caller, nobody knows which number it would have.
    pub(crate) fn tell_kernel(&mut self, path: &[u8], text: &str) {
        if self.slot < 0 {
            return;
        }
        let (path, at, len) = (self.batch.text(path), self.batch.data(text.as_bytes()), text.len() as u64);
        let slot = self.slot as u64;
        let flags = libc::O_WRONLY as u64;
        self.batch.may(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags], "open a setting");
        self.batch.may(libc::SYS_write, &[slot, at, len], "set a setting");
        self.batch.may(libc::SYS_close, &[slot], "close a setting");
    }

    fn marks(&mut self) {
        let mm = &self.image.mm;
        if !mm.auxv.is_empty() && mm.marks.iter().all(|m| *m != 0) {
            let map = |batch: &mut Batch, auxv: &[u8], exe: u32| {
                let len = auxv.len() as u64;
                let auxv = batch.data(auxv);
                let mut words = mm.marks.to_vec();
                words.extend([auxv, len | u64::from(exe) << 32]);
                let at = batch.words(&words);
                batch.may(libc::SYS_prctl, &[libc::PR_SET_MM as u64, 14, at, 13 * 8, 0], "set the memory marks");
            };
            if mm.auxv.len() > SMALL_AUXV {
                map(self.batch, &older_auxv(&mm.auxv), u32::MAX);
            }
            map(self.batch, &mm.auxv, u32::MAX);
            if let Some(file) = mm.exe {
                // Needs CAP_CHECKPOINT_RESTORE; without it /proc/PID/exe shows the restorer's.
                let path = self.path(file);
                let slot = self.slot as u64;
                self.batch.may(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, TO_LOOK as u64], "open the program");
                map(self.batch, &mm.auxv, self.slot as u32);
                self.batch.may(libc::SYS_close, &[slot], "close the program");
            }
        }
    }

    fn actions(&mut self) {
        let none = self.batch.words(&[0; 4]);
        for signal in (1..=64u32).filter(|s| *s != libc::SIGKILL as u32 && *s != libc::SIGSTOP as u32) {
            let at = match self.image.signals.actions.iter().find(|a| a.signal == signal) {
                Some(a) => self.batch.words(&[a.handler, a.flags, a.restorer, a.mask]),
                None => none,
            };
            self.batch.must(libc::SYS_rt_sigaction, &[u64::from(signal), at, 0, 8], "set a signal handler");
        }
    }

    fn timers(&mut self, steps: &[TimerStep]) {
        for (which, value) in self.image.timers.itimers.iter().enumerate() {
            let at = self.batch.words(value);
            self.batch.must(libc::SYS_setitimer, &[which as u64, at, 0], "set a timer");
        }
        let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
        for step in steps {
            match step {
                TimerStep::ChooseIds(on) => {
                    self.batch.must(libc::SYS_prctl, &[77, u64::from(*on), 0, 0, 0], "choose timer ids");
                }
                TimerStep::Make(i) => self.make_timer(&self.image.timers.posix[*i]),
                TimerStep::Skip(id) => {
                    let out = self.batch.room(4);
                    self.batch.must(libc::SYS_timer_create, &[libc::CLOCK_MONOTONIC as u64, 0, out], COUNT_UP);
                    self.batch.must(libc::SYS_timer_delete, &[u64::from(*id)], COUNT_UP);
                }
                TimerStep::Arm(i) => {
                    let timer = &self.image.timers.posix[*i];
                    let ([a, b], [c, d]) = (split(timer.interval_ns), split(timer.left_ns));
                    let at = self.batch.words(&[a, b, c, d]);
                    self.batch.must(libc::SYS_timer_settime, &[u64::from(timer.id), 0, at, 0], "set a timer");
                }
            }
        }
    }

    fn make_timer(&mut self, timer: &PosixTimer) {
        let id = self.batch.data(&timer.id.to_ne_bytes());
        let mut event = [0u64; 8];
        event[0] = timer.value;
        event[1] = u64::from(timer.signal) | u64::from(timer.notify) << 32;
        event[2] = timer.tid as u32 as u64;
        let event = self.batch.words(&event);
        self.batch.must(libc::SYS_timer_create, &[timer.clock as u64, event, id], "make a timer");
        // Reaching for an id that was not given fails here, not in the program.
        let out = self.batch.room(32);
        self.batch.must(libc::SYS_timer_gettime, &[u64::from(timer.id), out], "make a timer with its id");
    }

    /// How a thread is scheduled: run in that thread.
    pub(crate) fn scheduling(&mut self, thread: &Thread, io_priority: Option<u32>, processors: &[u8]) {
        let batch = &mut *self.batch;
        if let Some(value) = io_priority {
            batch.may(libc::SYS_ioprio_set, &[1, 0, value.into()], "set the input and output priority");
        }
        if !processors.is_empty() {
            let mut words = processors.to_vec();
            words.resize(words.len().next_multiple_of(8), 0);
            let at = batch.data(&words);
            // Where none of them is here, those that the body has are as good.
            batch.may(libc::SYS_sched_setaffinity, &[0, words.len() as u64, at], "bind to processors");
        }
        let param = batch.words(&[u64::from(thread.priority)]);
        let args = [0, u64::from(thread.policy), param];
        // Whoever counts on real time must not go on without it.
        match thread.priority {
            0 => batch.may(libc::SYS_sched_setscheduler, &args, "set the scheduling"),
            _ => batch.must(libc::SYS_sched_setscheduler, &args, "have real-time scheduling"),
        };
        batch.may(libc::SYS_setpriority, &[0, 0, thread.nice as u64], "set the priority");
    }

    /// What is a thread's own: run in that thread.
    pub(crate) fn thread(&mut self, thread: &Thread) {
        let batch = &mut *self.batch;
        // SS_ONSTACK (1) is no setting.
        let flags = thread.altstack.flags & !1;
        if flags & SS_DISABLE == 0 && thread.altstack.size > 0 {
            let stack = batch.words(&[thread.altstack.sp, u64::from(flags), thread.altstack.size]);
            batch.must(libc::SYS_sigaltstack, &[stack, 0], "set the signal stack");
        } else if self.slot >= 0 {
            // The body may have had one, which is not mapped any more. Where it is the caller the last frame says so, whichever
            // stack it called from.
            let none = batch.words(&[0, u64::from(SS_DISABLE), 0]);
            batch.must(libc::SYS_sigaltstack, &[none, 0], "take the signal stack away");
        }
        batch.must(libc::SYS_set_tid_address, &[thread.tid_address], "set the tid address");
        if thread.robust[1] != 0 {
            batch.may(libc::SYS_set_robust_list, &thread.robust, "set the robust list");
        }
        let rseq = &thread.rseq;
        if rseq.address != 0 {
            batch.must(
                libc::SYS_rseq,
                &[rseq.address, rseq.size.into(), rseq.flags.into(), rseq.signature.into()],
                "register rseq",
            );
        }
        let name = batch.text(&thread.comm);
        batch.may(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name], "set the name");
        if thread.timer_slack != 0 {
            batch.may(libc::SYS_prctl, &[libc::PR_SET_TIMERSLACK as u64, thread.timer_slack], "set the timer slack");
        }
    }

    /// Signals that are pending for a thread, run in that thread. `tid` is the one that it has now.
    pub(crate) fn signals(&mut self, thread: &Thread, pid: i32, tid: i32) {
        let batch = &mut *self.batch;
        // Of queued ones of the only thread's process: behind its own, and before those that the body got meanwhile, for the kernel
        // gives a thread its own first.
        let only = self.image.threads.len() == 1;
        let queued = self.image.signals.pending.iter().filter(|info| only && is_queued(info));
        for info in thread.pending.iter().chain(queued) {
            let at = batch.data(info);
            let args = [pid as u64, tid as u64, info[0].into(), at];
            batch.must(libc::SYS_rt_tgsigqueueinfo, &args, "queue a signal");
        }
    }

    /// Pending signals of the process, to the pid that it has now, but those that its only thread gets and what `comes_again`.
    pub(crate) fn pending(&mut self, pid: i32, comes_again: impl Fn(&[u8]) -> bool) {
        let only = self.image.threads.len() == 1;
        for info in self.image.signals.pending.iter().filter(|info| !(comes_again(info) || only && is_queued(info))) {
            let at = self.batch.data(info);
            self.batch.must(libc::SYS_rt_sigqueueinfo, &[pid as u64, u64::from(info[0]), at], "queue a signal");
        }
    }

    /// Limits that would have been in the way of all before. After the credentials, whose change looks at that of processes, and marks
    /// one of a user who has more: it could execute nothing.
    pub(crate) fn late_limits(&mut self, plan: &Plan) {
        for limits in plan.ops.iter().filter_map(|op| if let Op::Limits(limits) = op { Some(limits) } else { None }) {
            LATE.iter().for_each(|which| self.limit(*which, limits[*which]));
        }
    }

    /// Sets a limit, soft and hard.
    fn limit(&mut self, which: usize, pair: [u64; 2]) {
        let at = self.batch.words(&pair);
        self.batch.may(libc::SYS_prlimit64, &[0, which as u64, at, 0], "set a limit");
    }

    /// Credentials of a thread, and what changing them resets. `has`: capabilities that it may use while they are set.
    pub(crate) fn creds(&mut self, creds: &Creds, has: u64, most_bounding: u64) {
        const KEEP_CAPS: u64 = libc::PR_SET_KEEPCAPS as u64;
        let batch = &mut *self.batch;
        let [inheritable, permitted, effective, bounding, ambient] = creds.caps;
        let bounding = bounding & most_bounding;
        let header = batch.words(&[0x2008_0522]);
        let caps = |p: u64, e: u64| -> Vec<u8> {
            let i = inheritable;
            [e as u32, p as u32, i as u32, (e >> 32) as u32, (p >> 32) as u32, (i >> 32) as u32]
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect()
        };
        // What is inherited is taken from the bounding set while that is whole.
        if inheritable != 0 {
            let all = batch.data(&caps(has, has));
            batch.must(libc::SYS_capset, &[header, all], "set the inheritable capabilities");
        }
        let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let groups_at = batch.data(&groups);
        batch.must(libc::SYS_setgroups, &[creds.groups.len() as u64, groups_at], "set the groups");
        for cap in (0..41u64).filter(|c| bounding >> c & 1 == 0) {
            batch.may(libc::SYS_prctl, &[libc::PR_CAPBSET_DROP as u64, cap], "drop a capability");
        }
        let id = |v: [u32; 4]| [u64::from(v[0]), u64::from(v[1]), u64::from(v[2])];
        batch.must(libc::SYS_setresgid, &id(creds.gids), "set the gids");
        batch.may(libc::SYS_setfsgid, &[creds.gids[3].into()], "set the file system gid");
        batch.must(libc::SYS_prctl, &[KEEP_CAPS, 1], "keep capabilities");
        batch.must(libc::SYS_setresuid, &id(creds.uids), "set the uids");
        batch.may(libc::SYS_setfsuid, &[creds.uids[3].into()], "set the file system uid");
        // Secure bits need CAP_SETPCAP, which the final set may lack.
        let setpcap = 1u64 << 8;
        let raise = |batch: &mut Batch| {
            for cap in (0..41u64).filter(|c| ambient >> c & 1 == 1) {
                let args = [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, cap];
                batch.may(libc::SYS_prctl, &args, "raise an ambient capability");
            }
        };
        if creds.securebits != 0 {
            let first = batch.data(&caps(permitted | setpcap, effective | setpcap));
            batch.may(libc::SYS_capset, &[header, first], "set the capabilities");
            // One of these bits forbids it.
            raise(batch);
            batch.may(
                libc::SYS_prctl,
                &[libc::PR_SET_SECUREBITS as u64, creds.securebits.into()],
                "set the secure bits",
            );
        }
        let last = batch.data(&caps(permitted, effective));
        batch.must(libc::SYS_capset, &[header, last], "set the capabilities");
        if creds.securebits == 0 {
            raise(batch);
        }
        if creds.securebits & 16 == 0 {
            batch.may(libc::SYS_prctl, &[KEEP_CAPS, 0], "keep capabilities");
        }
        if creds.no_new_privs {
            batch.may(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1], "set no_new_privs");
        }
    }

    /// After credentials: what they reset.
    pub(crate) fn after_creds(&mut self, thread: &Thread) {
        self.prctl(libc::PR_SET_PDEATHSIG, u64::from(thread.pdeathsig));
        if self.image.mm.dumpable != 2 {
            self.prctl(libc::PR_SET_DUMPABLE, u64::from(self.image.mm.dumpable));
        }
    }

    /// Seccomp filters, oldest first. The tracer suspends their effect meanwhile.
    pub(crate) fn filters(&mut self, filters: &[Bytes]) {
        for filter in filters {
            let code = self.batch.data(filter);
            let prog = self.batch.words(&[(filter.len() / 8) as u64, code]);
            self.batch.must(libc::SYS_seccomp, &[1, 0, prog], "set a seccomp filter");
        }
    }
}

/// The auxiliary vector without what came last: restartable sequences' sizes, and further words of features. It is what
/// /proc/PID/auxv shows; the program has read its own.
fn older_auxv(auxv: &[u8]) -> Vec<u8> {
    const YOUNG: std::ops::RangeInclusive<u64> = 27..=30;
    let young = |pair: &&[u8; 16]| YOUNG.contains(&u64::from(pair[0])) && pair[1..8].iter().all(|b| *b == 0);
    auxv.as_chunks::<16>().0.iter().filter(|pair| !young(pair)).flatten().copied().collect()
}

/// File system identity for opening mapped files: groups, gid, uid of the image's owner.
pub(crate) fn as_user(batch: &mut Batch, creds: &Creds) {
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
    let at = batch.data(&groups);
    batch.must(libc::SYS_setgroups, &[creds.groups.len() as u64, at], "take the user's groups");
    batch.may(libc::SYS_setfsgid, &[creds.gids[3].into()], "take the user's gid");
    batch.may(libc::SYS_setfsuid, &[creds.uids[3].into()], "take the user's uid");
}

/// Back to root's.
pub(crate) fn as_root(batch: &mut Batch) {
    batch.may(libc::SYS_setfsuid, &[0], "become root again");
    batch.may(libc::SYS_setfsgid, &[0], "become root again");
}

/// What differs where something else than a regular file stands.
pub(crate) const NO_FILE: &str = "it is no regular file";

/// Is the opened file the one that the image means?
pub(crate) fn same_file(file: &FileRef, stat: &[u8], head: &[u8]) -> Result<(), String> {
    let word = |at: usize| {
        stat.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    };
    let mode = word(24) as u32;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Err(NO_FILE.into());
    }
    is_same(file, word(48), (word(88) as i64, word(96) as u32), head)
}

/// Is a file with these bytes, this time of last change and this front the one that the image means?
pub(crate) fn is_same(file: &FileRef, size: u64, mtime: (i64, u32), head: &[u8]) -> Result<(), String> {
    if size != file.size {
        return Err(format!("it has {size} bytes, not {}", file.size));
    }
    if !file.build_id.is_empty() {
        return match crate::elf::build_id(head) {
            Some(id) if id == file.build_id.0 => Ok(()),
            _ => Err("its build id is another".into()),
        };
    }
    if mtime != (file.mtime_s, file.mtime_ns) {
        return Err("it was changed at another time".into());
    }
    Ok(())
}

/// Is anything opened or made in the user's name before the pages come?
pub(crate) fn maps_files(image: &Image) -> bool {
    !image.memory_files.is_empty() || image.areas.iter().any(|a| matches!(a.kind, AreaKind::File { .. }))
}
