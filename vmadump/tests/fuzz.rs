//! Hostile images, made from those in `tests/corpus` by changes of which most keep the checksums right: the parser and
//! the plan answer each with an image or an error, never with a panic, and never with more memory than arrived.
//!
//! `BPROC_FUZZ_SECONDS` says how long (10 by default; tests of the whole take 60), `BPROC_FUZZ_SEED` where to begin: a number, or `now` for one that
//! never was. What does harm is written to a file, whose name is told: it belongs into the corpus, with the mending.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Traveller, compile, in_namespace};
use vmadump::crc::crc32c;
use vmadump::facts::Facts;
use vmadump::image::{FormatError, PAGE, Reader, Run, Writer};
use vmadump::plan::{Wishes, plan};
use vmadump::wire::Bytes;

/// More than any image of the corpus can need, far less than a length in one can ask for.
const MOST_MEMORY: usize = 64 << 20;
const HEAD: usize = 32;

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A reproducible stream of numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One time in `of`.
    fn rarely(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

/// A section: its head, and the payload.
#[derive(Clone)]
struct Section {
    head: [u8; HEAD],
    payload: Vec<u8>,
}

/// An image in parts.
#[derive(Clone)]
struct Parts {
    header: Vec<u8>,
    sections: Vec<Section>,
}

impl Parts {
    fn of(image: &[u8]) -> Parts {
        let (header, mut rest) = image.split_at(HEAD);
        let mut sections = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
            let len = u64::from_le_bytes(head[8..16].try_into().unwrap()) as usize;
            let (payload, next) = after.split_at(len);
            sections.push(Section { head: *head, payload: payload.to_vec() });
            rest = next;
        }
        Parts { header: header.to_vec(), sections }
    }

    /// The image again. With `sealed` all lengths, numbers and checksums are right, those of page blocks' data apart.
    fn image(&self, sealed: bool) -> Vec<u8> {
        let mut all = self.header.clone();
        let mut sums = Vec::new();
        for (number, section) in self.sections.iter().enumerate() {
            let (mut head, mut payload) = (section.head, section.payload.clone());
            let kind = u32::from_le_bytes(head[..4].try_into().unwrap());
            if sealed {
                if kind == 14 && payload.len() == 12 {
                    payload[8..].copy_from_slice(&crc32c(&sums).to_le_bytes());
                }
                head[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
                head[24..28].copy_from_slice(&(number as u32).to_le_bytes());
                if kind == 13 {
                    let runs = payload.first_chunk::<4>().map_or(0, |n| u32::from_le_bytes(*n) as usize);
                    let table = payload.get(..4 + 12 * runs.min(10_000)).unwrap_or(&payload);
                    head[20..24].copy_from_slice(&crc32c(table).to_le_bytes());
                } else {
                    head[16..20].copy_from_slice(&crc32c(&payload).to_le_bytes());
                }
                let sum = crc32c(&head[..28]);
                head[28..].copy_from_slice(&sum.to_le_bytes());
            }
            sums.extend(&head[16..20]);
            all.extend(head);
            all.extend(payload);
        }
        all
    }

    /// Changes one thing; `other` is another image of the corpus.
    fn change(&mut self, random: &mut Random, other: &Parts) {
        /// Values at which sums overflow, signs turn, and ranges end.
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            0x7f,
            0xff,
            0xfff,
            PAGE,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_f000,
            0x7fff_ffff_ffff_ffff,
            u64::MAX,
        ];
        if self.sections.is_empty() {
            return;
        }
        let at = random.below(self.sections.len());
        let last = self.sections.len() - 1;
        let section = &mut self.sections[at];
        let place = random.below(section.payload.len().max(1));
        match random.below(12) {
            0..=2 => {
                if let Some(byte) = section.payload.get_mut(place) {
                    *byte = random.next() as u8;
                }
            }
            3 => {
                if let Some(byte) = section.payload.get_mut(place) {
                    *byte ^= 1 << random.below(8);
                }
            }
            4..=6 => {
                let width = [2, 4, 8][random.below(3)];
                let near = if random.rarely(2) { section.payload.len() as u64 } else { EDGES[random.below(14)] };
                let value = near.wrapping_add(random.next() % 3).wrapping_sub(1).to_le_bytes();
                let end = section.payload.len().min(place + width);
                section.payload[place.min(end)..end].copy_from_slice(&value[..end - place.min(end)]);
            }
            7 => section.payload.truncate(place),
            8 => {
                let from = &other.sections[random.below(other.sections.len())].payload;
                let start = random.below(from.len().max(1));
                let len = random.below(64).min(from.len() - start.min(from.len()));
                let place = place.min(section.payload.len());
                section.payload.splice(place..place, from[start..start + len].iter().copied());
            }
            9 => drop(self.sections.remove(at)),
            10 => {
                let twice = section.clone();
                self.sections.insert(random.below(last + 1), twice);
            }
            _ => self.sections.swap(at, random.below(last + 1)),
        }
    }
}

fn read(bytes: &[u8]) -> Result<u64, FormatError> {
    let mut reader = Reader::new(bytes)?;
    // A plan of anything that parses must not panic either.
    let _ = plan(reader.image(), &Facts::here(), &Wishes::default());
    let (mut data, mut pages) = (Vec::new(), 0);
    while let Some(block) = reader.block()? {
        reader.data(&block, &mut data)?;
        pages += block.len / PAGE;
    }
    Ok(pages)
}

/// Reads one input; what harm it does.
fn harm(bytes: &[u8]) -> Option<String> {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    if catch_unwind(AssertUnwindSafe(|| read(bytes).is_ok())).is_err() {
        return Some("a panic".into());
    }
    let memory = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    (memory > MOST_MEMORY + 2 * bytes.len()).then(|| format!("{memory} bytes of memory"))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where to begin: the same images every time, but for who asks for others.
fn seed() -> u64 {
    match std::env::var("BPROC_FUZZ_SEED") {
        Ok(now) if now == "now" => std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64),
        Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("BPROC_FUZZ_SEED={seed}: a number, or now")),
        Err(_) => 1,
    }
}

fn fuzz_limit() -> Duration {
    Duration::from_secs(number("BPROC_FUZZ_SECONDS").unwrap_or(10))
}

#[test]
fn the_parser_is_fuzzed() {
    let limit = fuzz_limit();
    let seed = seed();
    println!("BPROC_FUZZ_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let corpus = corpus();
    for (path, bytes) in &corpus {
        assert_eq!(harm(bytes), None, "{}", path.display());
    }
    let whole: Vec<Parts> =
        corpus.iter().filter(|(_, bytes)| read(bytes).is_ok()).map(|(_, bytes)| Parts::of(bytes)).collect();
    assert!(whole.len() >= 3, "only {} images of the corpus are whole", whole.len());
    let (began, mut runs, mut parsed) = (Instant::now(), 0u64, 0u64);
    while began.elapsed() < limit {
        let mut parts = whole[random.below(whole.len())].clone();
        for _ in 0..random.below(5) {
            let other = &whole[random.below(whole.len())];
            parts.change(&mut random, other);
        }
        let sealed = !random.rarely(20);
        let mut bytes = parts.image(sealed);
        if random.rarely(20) {
            bytes.truncate(random.below(bytes.len()));
        }
        if let Some(harm) = harm(&bytes) {
            let path = common::dir().join(format!("harm-{seed}-{runs}"));
            std::fs::write(&path, &bytes).unwrap();
            panic!("{harm}: {} (seed {seed}, run {runs})", path.display());
        }
        runs += 1;
        parsed += u64::from(Reader::new(&bytes[..]).is_ok());
    }
    println!("{runs} images, {parsed} of them parsed");
    assert!(parsed * 100 > runs, "hardly any input gets past the checksums: {parsed} of {runs}");
}

/// The same for who becomes such an image: he ends by what the image does, or goes on with an error.
#[test]
fn hostile_images_are_undumped() {
    in_namespace("hostile_images_are_undumped", Duration::from_secs(200), || {
        let mut program = Traveller::start(Command::new(compile("count", &["-static"])).arg("3"));
        program.line();
        program.dump_and_end();
        let whole = Parts::of(&std::fs::read(&program.image).unwrap());
        // Where a user without rights may read.
        let place = PathBuf::from(format!("/tmp/vmadump-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let (tool, image) = (place.join("tool"), place.join("image"));
        std::fs::copy(env!("CARGO_BIN_EXE_vmadump"), &tool).unwrap();
        let undump = || {
            let mut command = Command::new("timeout");
            // A restored program may well run for ever.
            command.args(["-s", "KILL", "2", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
            command.arg(&tool).arg("undump").arg(&image).output().unwrap()
        };
        std::fs::write(&image, whole.image(true)).unwrap();
        assert_eq!(undump().status.code(), Some(7), "the image as it was");
        let seed = seed();
        println!("BPROC_FUZZ_SEED={seed}");
        let (mut random, began, mut runs) = (Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), Instant::now(), 0);
        while began.elapsed() < fuzz_limit() / 2 {
            let mut parts = whole.clone();
            for _ in 0..1 + random.below(3) {
                parts.change(&mut random, &whole);
            }
            std::fs::write(&image, parts.image(true)).unwrap();
            let out = undump();
            let said = String::from_utf8_lossy(&out.stderr);
            if said.contains("panicked") {
                let kept = common::dir().join(format!("undump-{runs}"));
                std::fs::copy(&image, &kept).unwrap();
                panic!("{}: {said}", kept.display());
            }
            runs += 1;
        }
        println!("{runs} images became somebody, or did not");
        std::fs::remove_dir_all(&place).unwrap();
    });
}

/// Without words that tell on which machine, kernel or directory it was made: all that look like a path of ours or a
/// version of the kernel's build become dots.
fn anonymous(image: &[u8]) -> Vec<u8> {
    let mut parts = Parts::of(image);
    let ours = env!("CARGO_TARGET_TMPDIR").as_bytes();
    for section in &mut parts.sections {
        let words: Vec<(usize, usize)> = section
            .payload
            .chunk_by(|a, b| a.is_ascii_graphic() == b.is_ascii_graphic())
            .scan(0, |at, word| {
                let start = *at;
                *at += word.len();
                Some((start, word))
            })
            .filter(|(_, word)| {
                let has = |part: &[u8]| word.windows(part.len()).any(|w| w == part);
                let version = word.len() > 12 && has(b"x86_6") && word[0].is_ascii_digit();
                let of_ours = [ours, b"fuzz", b"make_co", b"/root", b"lead"].into_iter().any(has);
                version || of_ours || (has(b"/lib") && word.len() > 60)
            })
            .map(|(start, word)| (start, word.len()))
            .collect();
        for (start, len) in words {
            // A path stays one.
            let first = start + usize::from(section.payload[start] == b'/');
            section.payload[first..start + len].fill(b'.');
        }
    }
    parts.image(true)
}

/// Makes the images of the corpus anew, of programs as they are today; by hand, and looked at before they are kept.
#[test]
#[ignore = "writes into the sources"]
fn make_corpus() {
    in_namespace("make_corpus", Duration::from_secs(60), || {
        let habits = "barriers late futurelate faults policy told";
        let programs = [("count", "-static", "3"), ("all", "-g", "3"), ("threads", "-g", "3"), ("memory", "-g", "3")];
        for (name, flag, arguments) in programs.into_iter().chain([("habits", "-static", habits)]) {
            let mut command = Command::new(compile(name, &[flag]));
            let mut program = Traveller::start(command.args(arguments.split(' ')).env_clear());
            program.line();
            program.dump_and_end();
            let bytes = std::fs::read(&program.image).unwrap();
            let mut reader = Reader::new(&bytes[..]).unwrap();
            let block = reader.block().unwrap().unwrap();
            let mut image = reader.image().clone();
            image.meta.host = Bytes(b"master".to_vec());
            image.meta.kernel = Bytes(b"6.1.0".to_vec());
            image.meta.cmdline = Bytes(name.as_bytes().to_vec());
            image.process.cwd = Bytes(b"/".to_vec());
            let mut out = Vec::new();
            let mut writer = Writer::new(&mut out, &image).unwrap();
            writer.block(&[Run { start: block.runs[0].start, pages: 1 }], &[7; PAGE as usize]).unwrap();
            writer.finish().unwrap();
            std::fs::create_dir_all(directory()).unwrap();
            std::fs::write(directory().join(format!("{name}.image")), anonymous(&out)).unwrap();
        }
    });
}
