//! The tools as processes, against a stand-in for the agent.
#![allow(missing_docs)]

mod fake;

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use fake::Fake;

fn output(fake: &Fake, args: &[&str], input: &[u8]) -> Output {
    let mut child =
        fake.tool(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A tool that does not read its input breaks the pipe.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn output_errors_and_status_come_back() {
    let fake = Fake::start("status");
    let got = output(&fake, &["bpsh", "1", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!((text(&got.stdout), text(&got.stderr), got.status.code()), ("out\n", "err\n", Some(7)));
}

#[test]
fn sorted_with_dividers_and_prefixes() {
    let fake = Fake::start("sorted");
    let got = output(&fake, &["bpsh", "-dp", "1,0,1", "sh", "-c", "echo $NODE; printf end"], b"");
    let head = |n| format!("{n}\t{}\n  {n}: {n}\n  {n}: end\n", "-".repeat(69));
    assert_eq!(text(&got.stdout), head(1) + &head(0) + &head(1));
}

#[test]
fn input_reaches_every_node_byte_for_byte() {
    let fake = Fake::start("input");
    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let got = output(&fake, &["bpsh", "-as", "cat"], &input);
    assert_eq!(got.stdout.len(), 2 * input.len());
    assert!(got.stdout[..input.len()] == input && got.stdout[input.len()..] == input);
}

#[test]
fn a_node_that_does_not_read_does_not_stop_the_others() {
    let fake = Fake::start("deaf");
    let got = output(&fake, &["bpsh", "0,1", "sh", "-c", "[ $NODE = 0 ] || cat"], &vec![b'x'; 1 << 20]);
    assert_eq!(got.stdout.len(), 1 << 20);
}

#[test]
fn files_and_null_instead_of_pipes() {
    let fake = Fake::start("files");
    let (from, to) = (fake.dir.join("from"), fake.dir.join("to"));
    std::fs::write(&from, "of the node").unwrap();
    let paths = (from.to_str().unwrap(), to.to_str().unwrap());
    let got = output(&fake, &["bpsh", "-I", paths.0, "-O", paths.1, "0", "cat"], b"");
    assert!(got.stdout.is_empty());
    // The fake runs the program beside its ghost, so the file may come after bpsh's end.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::fs::read_to_string(&to).is_ok_and(|t| t.is_empty()) && std::time::Instant::now() < limit {
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "of the node");
    assert_eq!(output(&fake, &["bpsh", "-n", "0", "cat"], b"ignored").stdout, b"");
}

#[test]
fn what_cannot_be_started_is_told() {
    let fake = Fake::start("refused");
    let got = output(&fake, &["bpsh", "2", "true"], b"");
    assert_eq!((text(&got.stderr), got.status.code()), ("2: Node is down\n", Some(1)));
    let got = output(&fake, &["bpsh", "9", "true"], b"");
    assert_eq!((text(&got.stderr), got.status.code()), ("bpsh: no node 9 is configured\n", Some(1)));
    let got = output(&fake, &["bpsh", "9,0", "true"], b"");
    assert_eq!((text(&got.stderr), got.status.code()), ("bpsh: no node 9 is configured\n", Some(0)));
    let got = output(&fake, &["bpsh", "0", "no-such-program"], b"");
    assert_eq!((text(&got.stderr), got.status.code()), ("bpsh: no-such-program: command not found\n", Some(127)));
    let got = output(&fake, &["bpsh", "0", "/etc/passwd"], b"");
    assert_eq!(got.status.code(), Some(126));
    let got = output(&fake, &["bpsh", "0", "echo", "no-ghost"], b"");
    assert!(text(&got.stderr).starts_with("0: cannot execute the ghost /no/ghost"), "{}", text(&got.stderr));
}

#[test]
fn without_an_agent_there_is_advice() {
    let fake = Fake::start("absent");
    let mut command = fake.tool(&["bpstat"]);
    let got = command.env("BPROC_SOCKET", fake.dir.join("nothing")).output().unwrap();
    assert_eq!(got.status.code(), Some(1));
    assert!(text(&got.stderr).contains("is bproc-agent running?"), "{}", text(&got.stderr));
}

#[test]
fn a_child_killed_by_a_signal_counts_255() {
    let fake = Fake::start("killed");
    let got = output(&fake, &["bpsh", "0", "sh", "-c", "kill -9 $$"], b"");
    assert_eq!(text(&got.stderr), "bpsh: Child process on node 0 exited abnormally.\n");
    assert_eq!(got.status.code(), Some(255));
}

#[test]
fn a_reader_that_leaves_ends_bpsh_by_sigpipe() {
    use std::os::unix::process::ExitStatusExt;
    let fake = Fake::start("head");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bproc"));
    command.args(["bpsh", "0", "yes"]).env("BPROC_SOCKET", fake.dir.join("agent.sock"));
    fake::die_with_test(&mut command);
    // SAFETY: signal is safe between fork and exec; the test harness ignores SIGPIPE, a shell does not.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut two = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut two).unwrap();
    assert_eq!((&two, child.wait().unwrap().signal()), (b"y\n", Some(libc::SIGPIPE)));
}

#[test]
fn as_much_environment_as_the_kernel_takes_arrives() {
    let fake = Fake::start("environment");
    // Linux takes 6 MiB of arguments and environment, pointers included, whatever the stack's limit.
    let mut command = fake.tool(&["bpsh", "0", "sh", "-c", "env | grep -c ^BIG_"]);
    command.envs((0..50_000).map(|i| (format!("BIG_{i}"), "v".repeat(90))));
    let got = command.output().unwrap();
    assert_eq!((text(&got.stdout), text(&got.stderr)), ("50000\n", ""));
}

#[test]
fn the_master_is_a_node_too() {
    let fake = Fake::start("master");
    let got = output(&fake, &["bpsh", "-1", "sh", "-c", "cat; exit 4"], b"plain");
    assert_eq!((text(&got.stdout), got.status.code()), ("plain", Some(4)));
    let got = output(&fake, &["bpsh", "-p", "master,0", "sh", "-c", "cat; exit 3"], b"both\n");
    let mut lines: Vec<&str> = text(&got.stdout).lines().collect();
    lines.sort_unstable();
    assert_eq!((lines, got.status.code()), (vec!["  0: both", " -1: both"], Some(3)));
}

#[test]
fn tables() {
    let fake = Fake::start("tables");
    let show = |args: &[&str]| text(&output(&fake, args, b"").stdout).to_owned();
    assert_eq!(show(&["bpstat"]).lines().nth(2).unwrap().split_whitespace().next(), Some("0-1"));
    assert_eq!(show(&["bpstat", "-n", "up"]), "2\n");
    assert_eq!(show(&["bpstat", "-t"]), "3\n");
    assert_eq!(show(&["bpstat", "-A", "127.0.0.2"]), "1\n");
    assert_eq!(show(&["bpstat", "-s", "2,0", "-O"]), "down\nup\n");
    assert_eq!(show(&["bpstat", "-p"]), "PID\tNode\n42\t1\n1343000\t0\n");
    assert!(show(&["bpstat", "--json"]).contains("\"status\": \"down\""));
    let ps = "    PID TTY\n     42 ?\n     43 ?\n1343000 ?\n";
    let got = output(&fake, &["bpstat", "-P"], ps.as_bytes());
    assert_eq!(text(&got.stdout), "NODE\t    PID TTY\n1\t     42 ?\n\t     43 ?\n0\t1343000 ?\n");
    assert_eq!(output(&fake, &["bpstat", "-P"], b"no header\n").status.code(), Some(1));
}

#[test]
fn changes_of_nodes() {
    let fake = Fake::start("changes");
    assert_eq!(output(&fake, &["bpctl", "-S", "0", "-m", "111", "-s", "up"], b"").status.code(), Some(0));
    let got = output(&fake, &["bpctl", "-S", "0-1", "-u", "root"], b"");
    assert_eq!((text(&got.stderr), got.status.code()), ("1: only root may do this\n", Some(1)));
}

#[test]
fn a_signal_to_bpsh_reaches_the_program_and_ends_both() {
    use std::os::unix::process::ExitStatusExt;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bproc"));
    command.args(["bpsh", "-p", "master", "sh", "-c", "echo ready; exec sleep 60"]);
    fake::die_with_test(&mut command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let got = child.wait_with_output().unwrap();
    assert_eq!(got.status.signal(), Some(libc::SIGTERM));
    assert_eq!(text(&got.stderr), "bpsh: Child process on node -1 exited abnormally.\n");
}
