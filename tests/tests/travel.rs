//! Programs travel: on nodes whose root directory is nearly empty, the master's programs run with the master's
//! libraries.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::cluster::{Cluster, Options, Role, eventually};
use bproc_tests::run::{self, finish};
use bproc_tests::runner::{self, Test};

const LONG: Duration = Duration::from_secs(120);
/// Of the cache of each node.
const MEGABYTES: u64 = 24;

/// The nodes' root directory: `/tmp`, and empty directories where distributions have their programs.
struct Place {
    cluster: Cluster,
    root: PathBuf,
}

impl Place {
    fn start() -> Result<Place> {
        let root = PathBuf::from(format!("/var/tmp/bproc-travel-{}", std::process::id()));
        for dir in ["tmp", "bin", "lib", "usr/lib", "etc"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        let settings =
            format!("slave.root = \"{}\"\ncache.megabytes = {MEGABYTES}\ncache.fan_out = 1\n", root.display());
        match Cluster::start_with(&Options { nodes: 3, settings, ..Options::default() }) {
            Ok(cluster) => Ok(Place { cluster, root }),
            Err(error) => {
                fs::remove_dir_all(&root)?;
                Err(error)
            }
        }
    }

    fn close(self) -> Result<()> {
        let closed = self.cluster.close();
        fs::remove_dir_all(&self.root)?;
        closed
    }

    /// A directory that exists on the master only.
    fn here(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cluster.dir().join("travel").join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// What a line gives in the shell of the master.
    fn gives(&self, line: &str, wanted: &str) -> Result<()> {
        let done = finish(self.cluster.command("sh").args(["-c", line]), b"", LONG)?;
        ensure!(done.status == 0 && done.out() == wanted, "`{line}` gave {done:?}, not {wanted:?}");
        Ok(())
    }

    /// The same from a node as from here.
    fn same(&self, program: &str) -> Result<()> {
        let native = finish(self.cluster.command("sh").args(["-c", program]), b"", LONG)?;
        let through = finish(self.cluster.command("sh").args(["-c", &format!("bpsh 0 {program}")]), b"", LONG)?;
        ensure!(native.out() == through.out() && native.status == through.status, "{through:?}, natively {native:?}");
        Ok(())
    }

    /// The same from two nodes as from here, started in a directory.
    fn same_in(&self, dir: &Path, program: &str) -> Result<()> {
        let native = self.cluster.shell(&format!("cd {} && {program}", dir.display()))?;
        let through = self.cluster.shell(&format!("cd {} && bpsh 0,1 {program}", dir.display()))?;
        ensure!(native.status == 0 && through.out() == native.out().repeat(2), "{through:?}, natively {native:?}");
        Ok(())
    }

    fn cache(&self, node: i32) -> PathBuf {
        self.cluster.dir().join(format!("cache/node-{node}"))
    }

    fn cached_bytes(&self, node: i32) -> Result<u64> {
        let mut sum = 0;
        for entry in fs::read_dir(self.cache(node).join("objects"))? {
            // Evicted meanwhile.
            sum += entry?.metadata().map_or(0, |meta| meta.len());
        }
        Ok(sum)
    }
}

fn executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !there {
        println!("skipped: no {program} on this machine");
    }
    there
}

fn compile(source: &str, arguments: &[&str], to: &Path) -> Result<()> {
    let file = to.with_extension("cc");
    fs::write(&file, source)?;
    let mut command = Command::new("g++");
    let done = finish(command.arg(&file).args(arguments).arg("-o").arg(to), b"", LONG)?;
    ensure!(done.status == 0, "g++: {}", done.err());
    Ok(())
}

fn everyday_programs(place: &Place) -> Result<()> {
    place.same("bash -c 'echo $BASH_VERSION $0'")?;
    place.gives("seq 1000 | bpsh 1 sort -rn | head -1", "1000\n")?;
    place.gives("printf 'b\\na\\n' | LC_ALL=C bpsh -a sort", &"a\nb\n".repeat(3))?;
    if has("perl") {
        place.same("perl -e 'print join(\",\", map { $_ * 2 } 1 .. 5), \" $^X\\n\"'")?;
    }
    // The program of the node's own root is not there at all.
    let done = place.cluster.shell("bpsh 0 bash -c 'echo /usr/bin/*; type sort'")?;
    ensure!(done.out() == "/usr/bin/bash\n" && done.status == 1, "{done:?}");
    Ok(())
}

/// Names, and what is mapped, are those of the master.
fn looks_as_on_the_master(place: &Place) -> Result<()> {
    place.same("readlink /proc/self/exe")?;
    place.same("sh -c 'echo $0 $#' a b")?;
    place.same("cat /proc/self/cmdline")?;
    place.same("cat /proc/self/comm")?;
    // Directories that are links on the master are none in this root.
    let maps = "| sed -n 's/.* \\/.*\\/\\([^ ]*\\)$/\\1/p' | sort -u";
    let native = place.cluster.shell(&format!("cat /proc/self/maps {maps}"))?;
    let through = place.cluster.shell(&format!("bpsh 0 cat /proc/self/maps {maps}"))?;
    let libraries =
        |text: String| text.lines().filter(|l| !l.contains("locale")).map(str::to_owned).collect::<Vec<_>>();
    ensure!(libraries(native.out()) == libraries(through.out()), "{native:?} {through:?}");
    Ok(())
}

/// 40 libraries, in an order that matters, found by the program's own search path; one is opened later.
fn forty_libraries(place: &Place) -> Result<()> {
    if !has("g++") {
        return Ok(());
    }
    let dir = place.here("forty")?;
    fs::create_dir_all(dir.join("lib"))?;
    let mut link: Vec<String> = vec!["-L".into(), dir.join("lib").display().to_string(), "-Wl,--no-as-needed".into()];
    for number in 0..40 {
        let source = format!(
            "#include <string>\nextern \"C\" int who() {{ return {number}; }}\nint f{number}(const std::string &s) {{ return s.size() + {number}; }}"
        );
        compile(&source, &["-shared", "-fPIC"], &dir.join(format!("lib/libn{number}.so")))?;
        link.push(format!("-ln{number}"));
    }
    compile("extern \"C\" int later() { return 7; }", &["-shared", "-fPIC"], &dir.join("lib/liblater.so"))?;
    let declared: String = (0..40).map(|n| format!("int f{n}(const std::string &);")).collect();
    let called: String = (0..40).map(|n| format!(" + f{n}(s)")).collect();
    let source = format!(
        "#include <string>\n#include <iostream>\n#include <unistd.h>\n#include <dlfcn.h>\nextern \"C\" int who();\n{declared}\n\
         int main(int argc, char **argv) {{\n std::string s = \"x\"; char exe[4096] = {{0}}; readlink(\"/proc/self/exe\", exe, 4095);\n\
         int later = 0; if (argc > 1) {{ void *l = dlopen(argv[1], RTLD_NOW); later = l ? ((int (*)())dlsym(l, \"later\"))() : -1; }}\n\
         std::cout << (0 {called}) << ' ' << who() << ' ' << later << ' ' << argv[0] << ' ' << exe << std::endl; }}"
    );
    link.push("-Wl,-rpath,$ORIGIN/lib".into());
    let program = dir.join("forty");
    compile(&source, &link.iter().map(String::as_str).collect::<Vec<_>>(), &program)?;
    place.same(&program.display().to_string())?;
    // What nobody told of is not there, what is in the list of libraries is.
    let line = format!("{} liblater.so", program.display());
    place.gives(&format!("bpsh 0 {line} | cut -d' ' -f3"), "-1\n")?;
    place.gives(&format!("bplib -a {}/lib/liblater.so; bpsh 0 {line} | cut -d' ' -f3", dir.display()), "7\n")?;
    place.gives("bplib -c; bplib -l", "")
}

fn scripts(place: &Place) -> Result<()> {
    let dir = place.here("scripts")?;
    executable(&dir.join("plain"), "#!/bin/bash -e\necho \"$0 $* $BASH\"\n")?;
    place.same(&format!("{}/plain 'a b' c", dir.display()))?;
    executable(&dir.join("found"), "#!/usr/bin/env -S bash -u\necho \"$0 $BASH\"\n")?;
    place.same(&format!("{}/found", dir.display()))?;
    executable(&dir.join("chained"), &format!("#!{}/plain x\n", dir.display()))?;
    place.same(&format!("{}/chained y", dir.display()))
}

/// Whatever the node has at the program's place, and at the libraries', the master's are used.
fn another_version_on_the_node(place: &Place) -> Result<()> {
    if !has("g++") {
        return Ok(());
    }
    let dir = place.here("versions")?;
    let on_node = place.root.join(dir.strip_prefix("/")?);
    fs::create_dir_all(&on_node)?;
    let library = |text: &str| format!("extern \"C\" const char *version() {{ return \"{text}\"; }}");
    let program = |text: &str| {
        format!(
            "#include <cstdio>\nextern \"C\" const char *version();\nint main() {{ std::printf(\"{text} %s\\n\", version()); }}"
        )
    };
    for (at, text) in [(&dir, "master"), (&on_node, "node")] {
        compile(&library(text), &["-shared", "-fPIC"], &at.join("libversion.so"))?;
        let (search, rpath) = (format!("-L{}", at.display()), format!("-Wl,-rpath,{}", dir.display()));
        compile(&program(text), &[&search, "-lversion", &rpath], &at.join("version"))?;
    }
    let line = format!("bpsh 0 {}/version", dir.display());
    place.gives(&line, "master master\n")?;
    // A new version on the master is used from the next start on, by no program before.
    compile(&library("newer"), &["-shared", "-fPIC"], &dir.join("new.so"))?;
    fs::rename(dir.join("new.so"), dir.join("libversion.so"))?;
    place.gives(&line, "master newer\n")?;
    // Once the node has the same, it is its own that runs; nothing can be told apart.
    for file in ["version", "libversion.so"] {
        fs::copy(dir.join(file), on_node.join(file))?;
    }
    place.gives(&line, "master newer\n")?;
    Ok(fs::remove_dir_all(place.root.join("var"))?)
}

/// A directory of users keeps what it has, and can be written to.
fn directories_of_users(place: &Place) -> Result<()> {
    let dir = PathBuf::from(format!("/tmp/bproc-travel-{}", std::process::id()));
    fs::create_dir_all(place.root.join(dir.strip_prefix("/")?))?;
    fs::create_dir_all(&dir)?;
    let result = (|| {
        executable(&dir.join("script"), "#!/bin/bash\ncd \"${0%/*}\" && echo \"${0##*/}\"; echo here > \"$1\"\n")?;
        place.gives(&format!("bpsh 0 {0}/script {0}/written", dir.display()), "script\n")?;
        let written = fs::read_to_string(place.root.join(dir.strip_prefix("/")?).join("written"))?;
        ensure!(written == "here\n" && !dir.join("written").exists(), "written elsewhere");
        Ok(())
    })();
    fs::remove_dir_all(&dir)?;
    result
}

fn rights(place: &Place) -> Result<()> {
    let dir = place.here("rights")?;
    let private = dir.join("private");
    executable(&private, "#!/bin/bash\nid -u\necho run\n")?;
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(&private, Some(65534), Some(65534))?;
    let as_user = |uid: u32| format!("setpriv --reuid {uid} --regid {uid} --clear-groups bpsh 0 {}", private.display());
    let done = place.cluster.shell(&as_user(65534))?;
    ensure!(done.out() == "run\n", "{done:?}");
    let done = place.cluster.shell(&as_user(1234))?;
    ensure!(done.status == 126 && done.err().contains("Permission denied") && done.out().is_empty(), "{done:?}");
    // Whoever is on the node sees no other's files in the cache.
    let done =
        place.cluster.shell("setpriv --reuid 1234 --regid 1234 --clear-groups bpsh 0 bash -c 'echo /.bproc*'")?;
    ensure!(done.out() == "/.bproc*\n", "{done:?}");
    let done = place.cluster.shell(&format!(
        "setpriv --reuid 1234 --regid 1234 --clear-groups ls {0} {0}/objects 2>&1 | grep -c denied",
        place.cache(0).display()
    ))?;
    ensure!(done.out() == "2\n", "{done:?}");
    // Only root tells nodes what to keep.
    let done = place.cluster.shell("setpriv --reuid 1234 --regid 1234 --clear-groups bplib -a /etc/passwd")?;
    ensure!(done.status == 1 && done.err().contains("CAP_SYS_ADMIN"), "{done:?}");
    Ok(())
}

fn libraries_kept_at_hand(place: &Place) -> Result<()> {
    let dir = place.here("hints")?;
    fs::create_dir_all(dir.join("modules/deep"))?;
    fs::write(dir.join("modules/one"), "one\n")?;
    fs::write(dir.join("modules/deep/two"), "two\n")?;
    let list = format!("{0}/modules/deep/two\n{0}/modules/one\n", dir.display());
    place.gives(&format!("bplib -a {}/modules && bplib -l", dir.display()), &list)?;
    let read = format!("bpsh 2 cat {0}/modules/one {0}/modules/deep/two", dir.display());
    place.gives(&read, "one\ntwo\n")?;
    place.gives(
        &format!("echo {0}/modules/one | bplib -d - && bplib", dir.display()),
        &format!("{}/modules/deep/two\n", dir.display()),
    )?;
    place.gives(&format!("{read} 2>/dev/null || echo gone"), "two\ngone\n")?;
    let done = place.cluster.shell("bplib -d /no/such; bplib -a /no/such")?;
    ensure!(done.status == 1 && done.err().lines().count() == 2, "{done:?}");
    place.gives("bplib -c; bplib --json", "[]\n")
}

/// Bytes that no compression or sparseness makes less of.
fn big_program(path: &Path, megabytes: usize, seed: u64) -> Result<()> {
    let mut bytes = fs::read("/bin/true")?;
    let mut state = seed | 1;
    while bytes.len() < megabytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    fs::write(path, bytes)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Without the colours that logs have.
fn plain(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or("", |(_, rest)| rest))
}

/// With a fan-out of 1 the three nodes make a chain: the master gives the file once.
fn nodes_give_to_each_other(place: &Place) -> Result<()> {
    let program = place.here("big")?.join("big");
    big_program(&program, 8, 1)?;
    place.gives(&format!("bpsh -a {} && echo ran", program.display()), "ran\n")?;
    let given: Vec<String> = (0..3)
        .filter_map(|node| {
            let log = plain(&place.cluster.log_tail(Role::Node(node), 100_000));
            let line = log.lines().rfind(|line| line.contains("fetched") && line.contains("bytes=8388608"))?;
            Some(line.to_owned())
        })
        .collect();
    let from_master = given.iter().filter(|line| line.contains("from=-1")).count();
    ensure!(given.len() == 3 && from_master == 1, "{given:#?}");
    Ok(())
}

/// The limit is kept, by what was used least recently; what a program uses stays, under its feet too.
fn the_cache_has_a_limit(place: &Place) -> Result<()> {
    let dir = place.here("limit")?;
    let waits = "echo started; read line; exec \"$BASH\" -c 'echo went on'";
    let mut runs = place.cluster.command("bpsh");
    let runs = run::tie(runs.args(["0", "bash", "-c", waits]));
    let mut runs = runs.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut output = std::io::BufReader::new(runs.stdout.take().context("no output")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    ensure!(line == "started\n", "{line}");
    for number in 0..8 {
        let program = dir.join(format!("big-{number}"));
        big_program(&program, 6, number + 100)?;
        place.gives(&format!("bpsh 0 {} && echo ran", program.display()), "ran\n")?;
    }
    let limit = MEGABYTES << 20;
    eventually("the cache keeps its limit", Duration::from_secs(60), || {
        // The newest program is used until its end is known.
        let bytes = place.cached_bytes(0)?;
        Ok(if bytes <= limit { Ok(()) } else { Err(format!("{bytes} bytes of {limit}")) })
    })?;
    drop(runs.stdin.take().map(|mut input| std::io::Write::write_all(&mut input, b"\n")));
    line.clear();
    std::io::Read::read_to_string(&mut output, &mut line)?;
    let status = runs.wait()?;
    ensure!(line == "went on\n" && status.success(), "{line} {status}");
    Ok(())
}

/// What an agent finds in the cache is believed only when its hash is right; programs outlive the agent.
fn a_new_agent_and_a_damaged_cache(place: &Place) -> Result<()> {
    place.gives("bpsh 1 bash -c 'echo before'", "before\n")?;
    let mut runs = place.cluster.command("bpsh");
    let runs = run::tie(runs.args(["1", "bash", "-c", "read line; echo $line"]));
    let mut runs = runs.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    place.cluster.start_is_answered()?;
    place.cluster.stop_agent(Role::Node(1), libc::SIGKILL)?;
    let mut damaged = 0;
    for entry in fs::read_dir(place.cache(1).join("objects"))? {
        let path = entry?.path();
        // What the running program uses is left alone.
        if std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&path)?) > 1 {
            continue;
        }
        let mut bytes = fs::read(&path)?;
        bytes[0] ^= 1;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        fs::write(&path, bytes)?;
        damaged += 1;
    }
    println!("{damaged} files damaged");
    place.cluster.start_agent(Role::Node(1))?;
    place.cluster.wait_up()?;
    place.gives("bpsh 1 bash -c 'echo after'; seq 3 | bpsh 1 sort -rn | head -1", "after\n3\n")?;
    drop(runs.stdin.take().map(|mut input| std::io::Write::write_all(&mut input, b"through\n")));
    let output = runs.wait_with_output()?;
    ensure!(output.stdout == b"through\n", "{output:?}");
    Ok(())
}

fn what_cannot_travel(place: &Place) -> Result<()> {
    let dir = place.here("wrong")?;
    executable(&dir.join("lost"), "#!/no/such/interpreter\n")?;
    let done = place.cluster.bpsh(&["0", &dir.join("lost").display().to_string()])?;
    ensure!(done.status == 127 && done.err().contains("/no/such/interpreter"), "{done:?}");
    executable(&dir.join("nothing"), "")?;
    // A script without a line, to a shell.
    let done = place.cluster.bpsh(&["0", &dir.join("nothing").display().to_string()])?;
    ensure!(done.status == 0 && done.err().is_empty(), "{done:?}");
    executable(&dir.join("plain"), "echo $0 $#\n")?;
    let plain = dir.join("plain").display().to_string();
    let done = place.cluster.bpsh(&["0", &plain, "a b"])?;
    ensure!(done.status == 0 && done.out().trim_end().ends_with("wrong/plain 1"), "{done:?}");
    // A directory of the node where a file should be.
    let path = place.here("wrong")?.join("blocked");
    executable(&path, "#!/bin/bash\n")?;
    let on_node = place.root.join(path.strip_prefix("/")?);
    fs::create_dir_all(&on_node)?;
    let done = place.cluster.bpsh(&["0", &path.display().to_string()])?;
    fs::remove_dir_all(place.root.join("var"))?;
    ensure!(done.status != 0 && done.err().contains("the node has a directory there"), "{done:?}");
    place.cluster.quiet()
}

/// A list that no cache can hold hinders nobody.
fn a_list_may_be_too_long(place: &Place) -> Result<()> {
    let dir = place.here("long")?;
    for number in 0..3000 {
        fs::write(dir.join(format!("small-{number:04}")), format!("{number}\n"))?;
    }
    for number in 0..6 {
        big_program(&dir.join(format!("tall-{number}")), 6, 2 * number + 300)?;
    }
    let done = place.cluster.shell(&format!("bplib -a {}", dir.display()))?;
    ensure!(done.status == 0 && done.err().contains("the cache of a node 24 MB"), "{done:?}");
    let read = format!("{0}/small-0000 {0}/small-2999", dir.display());
    place.gives(&format!("bpsh -a cat {read}"), &"0\n2999\n".repeat(3))?;
    place.gives("bpsh 0 bash -c 'echo runs'", "runs\n")?;
    let limit = MEGABYTES << 20;
    for node in 0..3 {
        eventually("the cache keeps its limit", Duration::from_secs(60), || {
            let bytes = place.cached_bytes(node)?;
            Ok(if bytes <= limit { Ok(()) } else { Err(format!("node {node}: {bytes} bytes of {limit}")) })
        })?;
    }
    place.gives("bplib -c; bplib -l", "")
}

/// Programs and interpreters are found by the names that they have natively, and see these.
fn names_with_dots(place: &Place) -> Result<()> {
    let dir = place.here("dots")?;
    fs::create_dir_all(dir.join("a/b"))?;
    executable(&dir.join("plain"), "#!/bin/bash\necho \"$0 $* ${PWD##*/}\"\n")?;
    fs::copy("/bin/echo", dir.join("prg"))?;
    executable(&dir.join("up"), &format!("#!{}/a/../plain x\n", dir.display()))?;
    executable(&dir.join("a/relative"), "#!../plain y\n")?;
    executable(&dir.join("here"), "#!./plain z\n")?;
    executable(&dir.join("shell"), "echo \"$0 $*\"\n")?;
    let at = dir.display().to_string();
    for (from, program) in [
        ("a", "../prg words"),
        ("a", "../plain words"),
        ("a/b", "../../plain words"),
        ("", "./a/../plain words"),
        ("", &format!("{at}/a/b/../../prg words")),
        ("", &format!("{at}/a/../plain words")),
        ("a", "../up words"),
        ("a", "./relative words"),
        ("", "./here words"),
        ("", "a/../here words"),
    ] {
        place.same_in(&dir.join(from), program)?;
    }
    place.gives(&format!("cd {at}; PATH=$PATH:a/.. bpsh 0,1 plain x"), &"a/../plain x dots\n".repeat(2))?;
    place.gives(&format!("cd {at}; bpsh 0,1 ./shell x"), &"./shell x\n".repeat(2))?;
    // On a node with a directory of the same name, which is the users' and gets no other in it.
    let users = PathBuf::from(format!("/tmp/bproc-travel-dots-{}", std::process::id()));
    let on_node = place.root.join(users.strip_prefix("/")?);
    fs::create_dir_all(users.join("a"))?;
    fs::create_dir_all(&on_node)?;
    fs::write(on_node.join("other"), "")?;
    let result = (|| {
        fs::copy("/bin/echo", users.join("prg"))?;
        let line = format!("cd {}/a && bpsh 0 ../prg words", users.display());
        place.gives(&line, "words\n")?;
        fs::write(on_node.join("prg"), "another")?;
        place.gives(&line, "words\n")
    })();
    fs::remove_dir_all(&users)?;
    fs::remove_dir_all(&on_node)?;
    result
}

/// A search path from the working directory.
fn a_relative_search_path(place: &Place) -> Result<()> {
    if !has("g++") {
        return Ok(());
    }
    let dir = place.here("rpath")?;
    fs::create_dir_all(dir.join("lib"))?;
    compile("int two() { return 2; }", &["-shared", "-fPIC"], &dir.join("lib/libtwo.so"))?;
    let source = "#include <cstdio>\nint two();\nint main() { std::printf(\"%d\\n\", two()); }";
    let search = format!("-L{}/lib", dir.display());
    compile(source, &[&search, "-ltwo", "-Wl,-rpath,lib"], &dir.join("two"))?;
    place.same_in(&dir, "./two")?;
    place.same_in(&dir, &format!("{}/two", dir.display()))
}

/// Nobody waits for the other end of a FIFO, whatever it is named as.
fn fifos_are_no_files(place: &Place) -> Result<()> {
    let dir = place.here("fifos")?;
    for name in ["program", "interpreter", "listed"] {
        let done = finish(Command::new("mkfifo").args(["-m", "755"]).arg(dir.join(name)), b"", LONG)?;
        ensure!(done.status == 0, "{done:?}");
    }
    let dir = dir.display();
    executable(Path::new(&format!("{dir}/script")), &format!("#!{dir}/interpreter\n"))?;
    for (program, named) in [("program", "program"), ("script", "interpreter")] {
        let done = place.cluster.shell(&format!("timeout -s KILL 20 bpsh 1 {dir}/{program}"))?;
        ensure!(done.status == 126 && done.err().contains(&format!("{named}: this is no file")), "{done:?}");
    }
    let done = place.cluster.shell(&format!("timeout -s KILL 20 bplib -a {dir}/listed"))?;
    ensure!(done.status == 1 && done.err().contains("neither a file nor a directory"), "{done:?}");
    // Among others, or in the place of one, it is left out.
    place.gives(&format!("timeout -s KILL 20 bplib -a {dir} && bplib -l"), &format!("{dir}/script\n"))?;
    place.gives(
        &format!("echo x >{dir}/later; bplib -a {dir}/later; rm {dir}/later; mkfifo {dir}/later; sleep 6"),
        "",
    )?;
    place.gives("timeout -s KILL 20 bpsh 1 echo ran; timeout -s KILL 20 bplib -c; bplib -l", "ran\n")
}

fn many_at_once(place: &Place) -> Result<()> {
    let nodes = ["0", "1", "2"].repeat(20).join(",");
    let done = place.cluster.bpsh(&[&nodes, "bash", "-c", "echo $$"])?;
    let mut pids: Vec<String> = done.out().lines().map(str::to_owned).collect();
    pids.sort();
    pids.dedup();
    ensure!(done.status == 0 && pids.len() == 60, "{} pids, {}", pids.len(), done.err());
    place.cluster.quiet()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(line) = mounts.lines().find(|line| line.contains("bproc-travel") || line.contains("cache/node-")) {
        bail!("a mount is to be seen outside: {line}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("everyday_programs", everyday_programs),
        Test::new("looks_as_on_the_master", looks_as_on_the_master),
        Test::new("forty_libraries", forty_libraries),
        Test::new("scripts", scripts),
        Test::new("another_version_on_the_node", another_version_on_the_node),
        Test::new("directories_of_users", directories_of_users),
        Test::new("rights", rights),
        Test::new("libraries_kept_at_hand", libraries_kept_at_hand),
        Test::new("nodes_give_to_each_other", nodes_give_to_each_other),
        Test::new("the_cache_has_a_limit", the_cache_has_a_limit),
        Test::new("a_new_agent_and_a_damaged_cache", a_new_agent_and_a_damaged_cache),
        Test::new("what_cannot_travel", what_cannot_travel),
        Test::new("a_list_may_be_too_long", a_list_may_be_too_long),
        Test::new("names_with_dots", names_with_dots),
        Test::new("a_relative_search_path", a_relative_search_path),
        Test::new("fifos_are_no_files", fifos_are_no_files),
        Test::new("many_at_once", many_at_once),
    ];
    runner::main(Place::start, tests, Place::close)
}
