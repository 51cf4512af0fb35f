//! What a program is made of: the files that the kernel and the loader would open to start it here, in their order.
//!
//! The loader is not run, as a program may name any file as its loader: its rules are followed instead (ld.so(8), and
//! musl's). A test compares with what the loader itself tells of every program of the machine.

use crate::elf::{self, Elf};
use crate::ldcache::LdCache;
use crate::open;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Who is given what the kernel takes for no program.
const SHELL: &str = "/bin/sh";
/// Interpreters of interpreters that are followed, as in the kernel.
const MAX_INTERPRETERS: usize = 5;
/// Libraries of one program.
const MAX_OBJECTS: usize = 8192;
/// What the kernel reads of a script's first line.
const FIRST_LINE: usize = 256;
/// What libc and the loader may open later, on their own account: parts of libc, which fit their own version only.
const COMPANIONS: [&str; 9] = [
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libgcc_s.so.1",
];

/// What the caller would execute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Want {
    /// Absolute path.
    pub path: Vec<u8>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// `LD_LIBRARY_PATH`.
    pub library_path: Option<Vec<u8>>,
    /// `LD_PRELOAD`.
    pub preload: Option<Vec<u8>>,
    /// `PATH`, for `#!/usr/bin/env`.
    pub search_path: Option<Vec<u8>>,
}

/// One file.
#[derive(Debug)]
pub struct Part {
    /// As kernel or loader ask for it.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// Not needed to start.
    pub companion: bool,
}

/// All files of a program.
#[derive(Debug, Default)]
pub struct Bundle {
    /// The program first.
    pub parts: Vec<Part>,
    /// Directories in which something was looked for and not found: what appears there may change the result.
    pub searched: BTreeSet<PathBuf>,
    /// Something was looked for from the working directory.
    pub relative: bool,
}

/// A file that should be there, and what open said.
#[derive(Debug)]
pub struct Missing {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// Opens files with the rights that the caller has.
pub type Open<'o> = dyn Fn(&Path) -> io::Result<File> + 'o;

/// Finds the files of a program.
///
/// # Errors
/// The program or an interpreter is not there. A library that is not there is left out: the loader will say so.
pub fn bundle(want: &Want, open: &Open<'_>) -> Result<Bundle, Missing> {
    let mut gather = Gather { want, open, bundle: Bundle::default(), cache: None, relative: Cell::new(false) };
    let program = gather.absolute(&want.path);
    gather.program(&program, 0)?;
    Ok(Bundle { relative: gather.relative.get(), ..gather.bundle })
}

struct Gather<'w> {
    want: &'w Want,
    open: &'w Open<'w>,
    bundle: Bundle,
    cache: Option<LdCache>,
    relative: Cell<bool>,
}

/// A file that was mapped by the loader.
struct Object {
    elf: Elf,
    origin: PathBuf,
    /// Whose library it is.
    loader: Option<usize>,
}

impl Gather<'_> {
    fn add(&mut self, path: &Path, file: File, companion: bool) {
        if !self.bundle.parts.iter().any(|part| part.path == path) {
            self.bundle.parts.push(Part { path: path.into(), file, companion });
        }
    }

    fn program(&mut self, path: &Path, depth: usize) -> Result<(), Missing> {
        let missing = |error| Missing { path: path.into(), error };
        let file = (self.open)(path).map_err(missing)?;
        let mut line = vec![0; FIRST_LINE];
        let got = file.read_at(&mut line, 0).map_err(missing)?;
        line.truncate(got);
        let elf = elf::read(&file).map_err(missing)?;
        self.add(path, file, false);
        if let Some(elf) = elf {
            return self.dynamic(path, elf);
        }
        let Some((interpreter, argument)) = script(&line).filter(|_| depth < MAX_INTERPRETERS) else {
            if depth == 0 {
                // No program to the kernel: a shell may be given it. Without one here it does without one there.
                let _ = self.program(Path::new(SHELL), depth + 1);
            }
            return Ok(());
        };
        let interpreter = self.absolute(&interpreter);
        self.program(&interpreter, depth + 1)?;
        // `#!/usr/bin/env python3`: what env will look for goes too. If it is not found, env will say so.
        if interpreter.file_name() == Some(OsStr::new("env"))
            && let Some(found) = env_program(&argument).and_then(|name| self.on_path(&name))
            && !self.bundle.parts.iter().any(|part| part.path == found)
        {
            self.program(&found, depth + 1)?;
        }
        Ok(())
    }

    /// As kernel and loader take it: from the working directory.
    fn absolute(&self, path: &[u8]) -> PathBuf {
        if !path.starts_with(b"/") {
            self.relative.set(true);
        }
        Path::new(OsStr::from_bytes(&self.want.cwd)).join(OsStr::from_bytes(path))
    }

    fn on_path(&self, name: &[u8]) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        if name.contains(&b'/') {
            return Some(self.absolute(name));
        }
        let path = self.want.search_path.as_deref().unwrap_or(b"/usr/local/bin:/usr/bin:/bin");
        let dirs = path.split(|b| *b == b':').map(|dir| self.absolute(dir).join(OsStr::from_bytes(name)));
        dirs.into_iter()
            .find(|file| std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
    }

    fn dynamic(&mut self, path: &Path, elf: Elf) -> Result<(), Missing> {
        let Some(interpreter) = elf.interpreter.clone() else { return Ok(()) };
        let loader = self.absolute(&interpreter);
        let file = (self.open)(&loader).map_err(|error| Missing { path: loader.clone(), error })?;
        let loader_elf = elf::read(&file).ok().flatten().unwrap_or_default();
        self.add(&loader, file, false);
        let musl = loader.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-musl-"));
        let rules = if musl { Rules::Musl { loader: &loader } } else { Rules::Glibc };
        let cache = Path::new("/etc/ld.so.cache");
        let cache_file = if musl { None } else { (self.open)(cache).ok() };
        if cache_file.is_some() && self.cache.is_none() {
            self.cache = Some(LdCache::parse(&open::read(cache).unwrap_or_default()));
        }
        self.libraries(path_origin(path, elf), loader_elf, &loader, &rules);
        if let Some(file) = cache_file {
            self.add(cache, file, false);
        }
        Ok(())
    }

    /// Breadth first, as the loader does it: what is preloaded, then what each object wants, in its order.
    fn libraries(&mut self, program: Object, loader_elf: Elf, loader: &Path, rules: &Rules<'_>) {
        let mut names: HashMap<Vec<u8>, ()> = HashMap::new();
        names.extend(loader_elf.soname.map(|name| (name, ())));
        names.extend(loader.file_name().map(|name| (name.as_bytes().to_vec(), ())));
        let mut objects = vec![program];
        let separators = |b: &u8| matches!(b, b':' | b' ' | b'\t' | b'\n');
        let mut first: Vec<Vec<u8>> = Vec::new();
        if let Some(preload) = &self.want.preload {
            first.extend(preload.split(separators).map(<[u8]>::to_vec));
        }
        if matches!(rules, Rules::Glibc)
            && let Ok(bytes) = open::read(Path::new("/etc/ld.so.preload"))
            && let Ok(file) = (self.open)(Path::new("/etc/ld.so.preload"))
        {
            self.add(Path::new("/etc/ld.so.preload"), file, false);
            first.extend(bytes.split(separators).map(<[u8]>::to_vec));
        }
        for name in first.into_iter().filter(|name| !name.is_empty()) {
            self.library(&name, 0, &mut objects, &mut names, rules);
        }
        let mut at = 0;
        while at < objects.len() {
            for name in objects[at].elf.needed.clone() {
                self.library(&name, at, &mut objects, &mut names, rules);
            }
            at += 1;
        }
        if matches!(rules, Rules::Glibc) {
            self.companions(&objects[0].elf.clone());
        }
    }

    fn library(
        &mut self,
        name: &[u8],
        of: usize,
        objects: &mut Vec<Object>,
        names: &mut HashMap<Vec<u8>, ()>,
        rules: &Rules<'_>,
    ) {
        if names.contains_key(name) || objects.len() >= MAX_OBJECTS || rules.is_loader(name) {
            return;
        }
        let Some((path, file, elf)) = self.search(name, of, objects, rules) else { return };
        names.insert(name.to_vec(), ());
        if self.bundle.parts.iter().any(|part| part.path == path) {
            return;
        }
        names.extend(elf.soname.clone().map(|soname| (soname, ())));
        let origin = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        self.add(&path, file, false);
        objects.push(Object { elf, origin, loader: Some(of) });
    }

    fn search(
        &mut self,
        name: &[u8],
        of: usize,
        objects: &[Object],
        rules: &Rules<'_>,
    ) -> Option<(PathBuf, File, Elf)> {
        let program = &objects[0].elf;
        let kind = (program.wide, program.machine);
        if name.contains(&b'/') {
            let path = self.absolute(&expand(name, &objects[of].origin, program));
            return self.candidate(path, kind);
        }
        let levels = if matches!(rules, Rules::Glibc) { levels(program) } else { Vec::new() };
        let library_path = self.want.library_path.clone().unwrap_or_default();
        let mut lists: Vec<(Vec<u8>, PathBuf)> = Vec::new();
        let chain = || std::iter::successors(Some(of), |at| objects[*at].loader);
        match rules {
            Rules::Glibc => {
                if objects[of].elf.runpath.is_none() {
                    let old = chain().chain([0]).filter(|at| objects[*at].elf.runpath.is_none());
                    lists.extend(
                        old.filter_map(|at| Some((objects[at].elf.rpath.clone()?, objects[at].origin.clone()))),
                    );
                }
                lists.push((library_path, objects[0].origin.clone()));
                lists.extend(objects[of].elf.runpath.clone().map(|path| (path, objects[of].origin.clone())));
            }
            Rules::Musl { .. } => {
                lists.push((library_path, objects[0].origin.clone()));
                lists.extend(chain().filter_map(|at| {
                    let elf = &objects[at].elf;
                    Some((elf.runpath.clone().or_else(|| elf.rpath.clone())?, objects[at].origin.clone()))
                }));
            }
        }
        for (list, origin) in lists.iter().filter(|(list, _)| !list.is_empty()) {
            for dir in list.split(|b| matches!(b, b':' | b';')) {
                let dir = self.absolute(&expand(dir, origin, program));
                if let Some(found) = self.in_dir(&dir, name, &levels, kind) {
                    return Some(found);
                }
            }
        }
        if matches!(rules, Rules::Glibc) {
            let flags = cache_flags(program);
            let cached: Vec<PathBuf> = self.cache.as_ref().map_or_else(Vec::new, |cache| {
                cache.find(name, flags, &levels).map(|path| PathBuf::from(OsStr::from_bytes(path))).collect()
            });
            let dirs = default_dirs(program);
            for path in cached {
                let in_default = path.parent().is_some_and(|parent| dirs.iter().any(|dir| parent.starts_with(dir)));
                if !(objects[of].elf.no_default && in_default)
                    && let Some(found) = self.candidate(path, kind)
                {
                    return Some(found);
                }
            }
        }
        if objects[of].elf.no_default {
            return None;
        }
        let dirs = match rules {
            Rules::Glibc => default_dirs(program),
            Rules::Musl { loader } => musl_dirs(loader),
        };
        dirs.iter().find_map(|dir| self.in_dir(dir, name, &levels, kind))
    }

    fn in_dir(&mut self, dir: &Path, name: &[u8], levels: &[&str], kind: (bool, u16)) -> Option<(PathBuf, File, Elf)> {
        let name = OsStr::from_bytes(name);
        for level in levels {
            if let Some(found) = self.candidate(dir.join("glibc-hwcaps").join(level).join(name), kind) {
                return Some(found);
            }
        }
        let found = self.candidate(dir.join(name), kind);
        if found.is_none() {
            self.bundle.searched.insert(dir.into());
        }
        found
    }

    /// The loader passes over what is for other machines.
    fn candidate(&self, path: PathBuf, kind: (bool, u16)) -> Option<(PathBuf, File, Elf)> {
        let file = (self.open)(&path).ok()?;
        let elf = elf::read(&file).ok().flatten()?;
        ((elf.wide, elf.machine) == kind).then_some((path, file, elf))
    }

    fn companions(&mut self, program: &Elf) {
        let libc = self.bundle.parts.iter().find(|part| part.path.file_name() == Some(OsStr::new("libc.so.6")));
        let Some(dir) = libc.and_then(|part| part.path.parent()).map(Path::to_path_buf) else { return };
        for name in COMPANIONS {
            if let Some((path, file, _)) = self.candidate(dir.join(name), (program.wide, program.machine)) {
                self.add(&path, file, true);
            }
        }
    }
}

fn path_origin(path: &Path, elf: Elf) -> Object {
    // What /proc/self/exe will say.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    Object { elf, origin: real.parent().unwrap_or(Path::new("/")).into(), loader: None }
}

/// Whose rules are followed.
enum Rules<'l> {
    Glibc,
    Musl { loader: &'l Path },
}

impl Rules<'_> {
    /// Names that mean the loader itself: musl's libc is its loader.
    fn is_loader(&self, name: &[u8]) -> bool {
        let part = |name: &[u8]| {
            let rest = name.strip_prefix(b"lib")?;
            rest.iter().position(|b| *b == b'.').map(|end| rest[..end].to_vec())
        };
        let own: [&[u8]; 7] = [b"c", b"pthread", b"rt", b"m", b"dl", b"util", b"xnet"];
        matches!(self, Rules::Musl { .. }) && part(name).is_some_and(|part| own.contains(&part.as_slice()))
    }
}

/// Interpreter and argument of a script.
fn script(head: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = line.trim_ascii();
    let end = line.iter().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(end);
    (!interpreter.is_empty() && !interpreter.contains(&0)).then(|| (interpreter.to_vec(), rest.trim_ascii().to_vec()))
}

/// What `env ARGUMENT` executes: options and assignments are passed over.
fn env_program(argument: &[u8]) -> Option<Vec<u8>> {
    let mut words = argument.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    words.find(|word| !word.starts_with(b"-") && !word.contains(&b'=')).map(<[u8]>::to_vec)
}

/// Replaces `$ORIGIN`, `$LIB` and `$PLATFORM`.
fn expand(text: &[u8], origin: &Path, program: &Elf) -> Vec<u8> {
    let lib: &[u8] = match (program.wide, program.machine) {
        (true, 62) if Path::new("/lib/x86_64-linux-gnu").is_dir() => b"lib/x86_64-linux-gnu",
        (true, 183) if Path::new("/lib/aarch64-linux-gnu").is_dir() => b"lib/aarch64-linux-gnu",
        (true, _) => b"lib64",
        (false, _) => b"lib",
    };
    let platform: &[u8] = if program.machine == 183 { b"aarch64" } else { b"x86_64" };
    let known: [(&[u8], &[u8]); 3] =
        [(b"ORIGIN", origin.as_os_str().as_bytes()), (b"LIB", lib), (b"PLATFORM", platform)];
    let mut out = Vec::new();
    let mut rest = text;
    'text: while let [byte, tail @ ..] = rest {
        if *byte == b'$' {
            for (name, value) in known {
                let braced =
                    tail.strip_prefix(b"{").and_then(|t| t.strip_prefix(name)).and_then(|t| t.strip_prefix(b"}"));
                if let Some(after) = braced.or_else(|| tail.strip_prefix(name)) {
                    out.extend(value);
                    rest = after;
                    continue 'text;
                }
            }
        }
        out.push(*byte);
        rest = tail;
    }
    out
}

/// Directories below `glibc-hwcaps` that this processor can use, the best first.
fn levels(program: &Elf) -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if program.wide && program.machine == 62 {
        use std::arch::is_x86_feature_detected as has;
        let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
        let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("movbe");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
        let all = [("x86-64-v4", v4), ("x86-64-v3", v3), ("x86-64-v2", v2)];
        return all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    }
    let _ = program;
    Vec::new()
}

/// How the cache marks libraries of this kind.
fn cache_flags(program: &Elf) -> u32 {
    match (program.wide, program.machine) {
        (true, 62) => 0x303,
        (false, 62) => 0x803,
        (true, 183) => 0xa03,
        _ => 3,
    }
}

fn default_dirs(program: &Elf) -> Vec<PathBuf> {
    let multiarch = match (program.wide, program.machine) {
        (true, 62) => "x86_64-linux-gnu",
        (true, 183) => "aarch64-linux-gnu",
        _ => "i386-linux-gnu",
    };
    let mut dirs: Vec<PathBuf> = ["/lib", "/usr/lib"].iter().map(|dir| Path::new(dir).join(multiarch)).collect();
    if program.wide {
        dirs.extend(["/lib64", "/usr/lib64"].map(PathBuf::from));
    }
    dirs.extend(["/lib", "/usr/lib"].map(PathBuf::from));
    dirs
}

fn musl_dirs(loader: &Path) -> Vec<PathBuf> {
    let name = loader.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = Path::new("/etc").join(name.split(".so").next().unwrap_or_default()).with_extension("path");
    let text = open::read(&file).unwrap_or_else(|_| b"/lib:/usr/local/lib:/usr/lib".to_vec());
    let dirs = text.split(|b| matches!(b, b':' | b'\n')).filter(|dir| !dir.is_empty());
    dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_of_scripts() {
        assert_eq!(script(b"#! /bin/sh -e \nx"), Some((b"/bin/sh".to_vec(), b"-e".to_vec())));
        assert_eq!(script(b"#!\n"), None);
        assert_eq!(script(b"echo"), None);
        assert_eq!(env_program(b"-S A=b python3 -u"), Some(b"python3".to_vec()));
        assert_eq!(env_program(b""), None);
    }

    #[test]
    fn tokens_in_search_paths() {
        let elf = Elf { wide: true, machine: 62, ..Elf::default() };
        assert_eq!(expand(b"$ORIGIN/../x:${ORIGIN}", Path::new("/a/b"), &elf), b"/a/b/../x:/a/b");
        assert_eq!(expand(b"a$b", Path::new("/"), &elf), b"a$b");
    }
}
