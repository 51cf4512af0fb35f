//! The tool while it waits for what it has made of an image.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Traveller, compile, dir, has, in_namespace};

const LIMIT: Duration = Duration::from_secs(30);
/// It says again and again that it runs, and what it is told.
const TELLING: &str = "trap 'echo told' USR1; while :; do echo runs; done";

struct Tool {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Tool {
    /// Has the image running.
    fn undump(image: &Path, more: &[&str]) -> Tool {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
        tool.arg("undump").args(more).arg(image).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = tool.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut tool = Tool { child, output };
        tool.until("runs");
        tool
    }

    fn until(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim_end() != wanted {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended before {wanted:?}");
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Nobody writes any more; the tool's exit code.
    fn ends(mut self) -> Option<i32> {
        std::io::copy(&mut self.output.by_ref(), &mut std::io::sink()).unwrap();
        self.child.wait().unwrap().code()
    }
}

#[test]
fn what_it_is_told_its_process_is_told() {
    in_namespace("what_it_is_told_its_process_is_told", LIMIT, || {
        let mut program = Traveller::start(Command::new("sh").args(["-c", TELLING]));
        assert_eq!(program.line(), "runs");
        program.dump_and_end();
        let mut tool = Tool::undump(&program.image, &[]);
        for _ in 0..3 {
            tool.signal(libc::SIGUSR1);
            tool.until("told");
        }
        tool.signal(libc::SIGTERM);
        assert_eq!(tool.ends(), Some(128 + libc::SIGTERM));
        // It goes with the tool, however that ends.
        let tool = Tool::undump(&program.image, &[]);
        tool.signal(libc::SIGKILL);
        assert_eq!(tool.ends(), None);
        // One that nobody waits for stays.
        let mut tool = Tool::undump(&program.image, &["--detach"]);
        assert!(tool.child.wait().unwrap().success());
        (0..100_000).for_each(|_| tool.until("runs"));
    });
}

/// The tool itself has one, which its child is born with.
#[test]
fn a_process_without_a_signal_stack_gets_none() {
    in_namespace("a_process_without_a_signal_stack_gets_none", LIMIT, || {
        let mut program = Traveller::start(&mut Command::new(compile("onstack", &[])));
        assert_eq!(program.line(), "runs");
        program.dump_and_end();
        let mut tool = Tool::undump(&program.image, &[]);
        tool.signal(libc::SIGUSR1);
        tool.until("told");
        tool.signal(libc::SIGTERM);
        assert_eq!(tool.ends(), Some(128 + libc::SIGTERM));
    });
}

/// An empty directory.
fn empty(name: &str) -> PathBuf {
    let place = dir().join(name);
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir(&place).unwrap();
    place
}

/// Does it hold an image, after `before` bytes?
fn is_image(file: &Path, before: usize) -> bool {
    std::fs::read(file).is_ok_and(|all| whole(&all[before..]))
}

fn whole(image: &[u8]) -> bool {
    let mut reader = vmadump::image::Reader::new(image).unwrap();
    while let Some(block) = reader.block().unwrap() {
        reader.data(&block, &mut Vec::new()).unwrap();
    }
    true
}

/// `vmadump dump`, which must do it.
fn dump(pid: i32, file: &Path, output: impl Into<Stdio>) -> Vec<u8> {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
    tool.arg("dump").arg(pid.to_string()).arg(file).stdin(Stdio::null()).stdout(output);
    let done = tool.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert!(done.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&done.stderr));
    done.stdout
}

#[test]
fn nothing_that_is_there_is_taken_for_a_half_written_image() {
    in_namespace("nothing_that_is_there_is_taken_for_a_half_written_image", LIMIT, || {
        let mut program = Traveller::start(Command::new("sh").args(["-c", TELLING]));
        assert_eq!(program.line(), "runs");
        let place = empty("partial");
        let (image, victim) = (place.join("image"), place.join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, place.join("image.partial")).unwrap();
        dump(program.pid, &image, Stdio::null());
        assert!(is_image(&image, 0));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        // While one writes it another one does, too.
        let slow = |pid| {
            let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
            tool.args(["dump", "--flags", "all", &format!("{pid}")]).arg(&image).spawn().unwrap()
        };
        for _ in 0..5 {
            let other = Traveller::start(Command::new("perl").args(["-e", "$x = 'x' x 3e7; sleep 100"]));
            let mut both = [slow(program.pid), slow(other.pid)];
            assert!(both.iter_mut().all(|tool| tool.wait().unwrap().success()));
            assert!(is_image(&image, 0));
        }
        let mut left: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["image", "image.partial", "victim"]);
    });
}

#[test]
fn what_is_open_already_is_written_to() {
    in_namespace("what_is_open_already_is_written_to", LIMIT, || {
        let mut program = Traveller::start(Command::new("sh").args(["-c", TELLING]));
        assert_eq!(program.line(), "runs");
        let place = empty("open");
        let links = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
        let link = place.join("link");
        symlink("/dev/stdout", &link).unwrap();
        for file in links.iter().map(Path::new).chain([link.as_path()]) {
            assert!(whole(&dump(program.pid, file, Stdio::piped())), "{}", file.display());
            // Behind what is there, also when it has no name any more.
            for deleted in [false, true] {
                let path = place.join("output");
                let mut output =
                    File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
                output.write_all(b"before").unwrap();
                if deleted {
                    std::fs::remove_file(&path).unwrap();
                }
                dump(program.pid, file, OwnedFd::from(output.try_clone().unwrap()));
                output.rewind().unwrap();
                let mut all = Vec::new();
                output.read_to_end(&mut all).unwrap();
                assert!(all.starts_with(b"before") && whole(&all[6..]), "{} {deleted}", file.display());
                assert_eq!(path.exists(), !deleted);
            }
        }
        assert!(link.is_symlink() && Path::new("/dev/stdout").is_symlink());
        let closed = dump_fails(program.pid, Path::new("/dev/fd/77"));
        assert!(closed.contains("Bad file descriptor"), "{closed}");
        // A link to nothing says where the image goes.
        let dangling = place.join("dangling");
        symlink("new", &dangling).unwrap();
        dump(program.pid, &dangling, Stdio::null());
        assert!(dangling.is_symlink() && !place.join("new").is_symlink() && is_image(&place.join("new"), 0));
        dump_fails(program.pid, &place.join("none/image"));
    });
}

/// What it says when it does not.
fn dump_fails(pid: i32, file: &Path) -> String {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
    let done = tool.arg("dump").arg(pid.to_string()).arg(file).stdin(Stdio::null()).output().unwrap();
    assert!(!done.status.success());
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// What stands there is not even opened.
#[test]
fn no_pipe_is_taken_for_a_file() {
    in_namespace("no_pipe_is_taken_for_a_file", LIMIT, || {
        let place = empty("pipes");
        let [library, open, image, said] = ["sleep", "open", "image", "said"].map(|name| place.join(name));
        std::fs::copy("/bin/sleep", &library).unwrap();
        std::fs::write(&open, "text").unwrap();
        let mut program = Command::new("sh");
        program.args(["-c", "exec \"$0\" 100 9<\"$1\""]).arg(&library).arg(&open);
        let mut program = program.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        while std::fs::read_link(format!("/proc/{}/exe", program.id())).unwrap() != library {
            std::thread::yield_now();
        }
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
        tool.args(["dump", "--flags", "none", "--kill", &program.id().to_string()]).arg(&image);
        assert!(tool.status().unwrap().success());
        program.wait().unwrap();
        for (path, more, restored) in
            [(&open, None, false), (&open, Some("--drop-files"), true), (&library, None, false)]
        {
            std::fs::remove_file(path).unwrap();
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            let mut tool = Command::new("timeout");
            tool.args(["5", env!("CARGO_BIN_EXE_vmadump"), "undump", "--detach"]).args(more).arg(&image);
            // The process keeps what it is given.
            tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
            let done = tool.status().unwrap();
            let text = std::fs::read_to_string(&said).unwrap();
            assert_eq!(done.success(), restored, "{text}");
            match more {
                Some(_) => assert!(text.contains("descriptor 9 is closed"), "{text}"),
                None => {
                    let wanted = format!("{} is not the same here: it is no regular file", path.display());
                    assert!(text.contains(&wanted), "{text}");
                }
            }
        }
    });
}

/// What the tool says when it does not do it.
fn says(args: &[&str]) -> String {
    let mut tool = Command::new("timeout");
    let done = tool.args(["20", env!("CARGO_BIN_EXE_vmadump")]).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(!done.status.success());
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn it_says_what_can_be_done() {
    in_namespace("it_says_what_can_be_done", LIMIT, || {
        let place = empty("words");
        let image = place.join("image");
        let file = image.to_str().unwrap();
        let none = says(&["dump", "4999999", file]);
        assert!(none.contains("4999999: there is no such process"), "{none}");
        // What is taken, and by whom.
        let script = "import threading, time, os\n\
            threading.Thread(target=time.sleep, args=[100]).start()\n\
            print(os.listdir('/proc/self/task')[1], flush=True)";
        if has("python3") {
            let mut threaded = Traveller::start(Command::new("python3").args(["-c", script]));
            let tid = threaded.line();
            dump(threaded.pid, &image, Stdio::null());
            let taken = says(&["undump", file]);
            let wanted = format!("{tid} is taken here by process {}; end that first", threaded.pid);
            assert!(taken.contains(&wanted), "{taken}");
        }
        // Files in both directions.
        std::fs::write(place.join("open"), "text").unwrap();
        let script = format!("exec 8<{}; echo ready; while :; do :; done", place.join("open").display());
        let mut reader = Traveller::start(Command::new("sh").args(["-c", &script]));
        assert_eq!(reader.line(), "ready");
        dump(reader.pid, &image, Stdio::null());
        std::fs::remove_file(place.join("open")).unwrap();
        let missing = says(&["undump", file]);
        assert!(missing.contains("--drop-files") && missing.contains("--instead"), "{missing}");
        let deleted = says(&["dump", &reader.pid.to_string(), file]);
        assert!(deleted.contains("--files drop") && deleted.contains("--files stdio"), "{deleted}");
    });
}

#[test]
fn damaged_images_are_not_shown_as_whole() {
    in_namespace("damaged_images_are_not_shown_as_whole", LIMIT, || {
        let image = empty("damaged").join("image");
        let mut program = Traveller::start(Command::new("sh").args(["-c", TELLING]));
        assert_eq!(program.line(), "runs");
        dump(program.pid, &image, Stdio::null());
        let whole = std::fs::read(&image).unwrap();
        let inspect = || Command::new(env!("CARGO_BIN_EXE_vmadump")).arg("inspect").arg(&image).output().unwrap();
        assert_eq!(inspect().status.code(), Some(0));
        let mut other = whole.clone();
        other[whole.len() - 5000] ^= 1;
        for bytes in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &other] {
            std::fs::write(&image, bytes).unwrap();
            let out = inspect();
            assert_eq!((out.status.code(), out.stdout.len()), (Some(1), 0));
            assert!(!out.stderr.is_empty());
        }
    });
}

#[test]
fn names_that_are_no_text_are_told() {
    in_namespace("names_that_are_no_text_are_told", LIMIT, || {
        use std::os::unix::ffi::OsStrExt;
        let place = empty("names");
        let image = place.join("image");
        let odd = place.join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
        std::fs::create_dir(&odd).unwrap();
        let mut command = Command::new("sh");
        let mut program = Traveller::start(command.args(["-c", TELLING]).current_dir(&odd));
        assert_eq!(program.line(), "runs");
        dump(program.pid, &image, Stdio::null());
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vmadump"));
        let told = tool.args(["inspect", "--json"]).arg(&image).output().unwrap();
        let text = String::from_utf8(told.stdout).unwrap();
        assert!(text.contains(r#"names/odd-\\xff""#), "{text}");
    });
}
