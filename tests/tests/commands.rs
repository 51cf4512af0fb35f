//! Real programs through bpsh, as a user runs them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_tests::cluster::{Cluster, LIMIT, eventually};
use bproc_tests::order;
use bproc_tests::procs::Proc;
use bproc_tests::run::finish;
use bproc_tests::runner::{self, Test};

const SOON: Duration = Duration::from_secs(20);

/// True when this machine has the program; says so otherwise.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !there {
        println!("skipped: no {program} on this machine");
    }
    there
}

/// Mebibytes of the large transfers.
fn mebibytes() -> usize {
    std::env::var("BPROC_TEST_MIB").ok().and_then(|number| number.parse().ok()).unwrap_or(64)
}

/// Lines with numbers in no order, so many bytes of them.
fn numbers(cluster: &Cluster, bytes: usize) -> Result<PathBuf> {
    let path = cluster.dir().join(format!("log/numbers-{bytes}"));
    let mut text = String::with_capacity(bytes + 16);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{}\n", state % 1_000_000_007));
    }
    fs::write(&path, text)?;
    Ok(path)
}

fn same(cluster: &Cluster, through: &str, natively: &str) -> Result<()> {
    let limit = Duration::from_secs(300);
    let run = |line: &str| finish(cluster.command("sh").args(["-c", line]), b"", limit);
    let (through_it, native) = (run(through)?, run(natively)?);
    ensure!(through_it == native, "`{through}` gave {through_it:?}, `{natively}` {native:?}");
    Ok(())
}

fn hostname_everywhere(cluster: &Cluster) -> Result<()> {
    let native = cluster.shell("hostname")?.out();
    let done = cluster.bpsh(&["-a", "-p", "hostname"])?;
    let mut lines: Vec<String> = done.out().lines().map(str::to_owned).collect();
    lines.sort();
    let wanted: Vec<String> = (0..3).map(|node| format!("{node:>3}: {}", native.trim())).collect();
    ensure!(done.status == 0 && lines == wanted, "{done:?}");
    let done = cluster.bpsh(&["-s", "-L", "2,0,1", "sh", "-c", "echo $$ > /dev/null; uname -n"])?;
    ensure!(done.out() == native.repeat(3), "{done:?}");
    let done = cluster.bpsh(&["0,2", "date"])?;
    ensure!(done.status == 0 && done.out().lines().count() == 2, "{done:?}");
    Ok(())
}

fn statuses(cluster: &Cluster) -> Result<()> {
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -SEGV $$", 255), ("kill -9 $$", 255)]
    {
        let done = cluster.bpsh(&["0", "sh", "-c", script])?;
        ensure!(done.status == status, "`{script}`: {done:?}");
        let told = done.err().contains("bpsh: Child process on node 0 exited abnormally.");
        ensure!(told == script.starts_with("kill"), "`{script}`: {done:?}");
    }
    let done = cluster.bpsh(&["0,1,2", "sh", "-c", "exit $(($$ % 3 + 4))"])?;
    ensure!((4..=6).contains(&done.status), "{done:?}");
    let done = cluster.bpsh(&["0", "no-such-program-here"])?;
    ensure!(done.status == 127 && done.err().contains("no-such-program-here"), "{done:?}");
    Ok(())
}

fn sort_a_lot(cluster: &Cluster) -> Result<()> {
    let path = numbers(cluster, mebibytes() << 20)?;
    let path = path.display();
    same(cluster, &format!("bpsh 1 sort -n < {path} | sha256sum"), &format!("sort -n < {path} | sha256sum"))?;
    cluster.quiet()
}

fn cat_a_lot(cluster: &Cluster) -> Result<()> {
    let path = numbers(cluster, mebibytes() << 20)?;
    let path = path.display();
    same(cluster, &format!("bpsh 0 cat < {path} | sha256sum"), &format!("cat < {path} | sha256sum"))?;
    same(cluster, &format!("bpsh 0 cat < {path} | bpsh 1 cat | bpsh 2 sha256sum"), &format!("cat < {path} | sha256sum"))
}

fn input_to_all(cluster: &Cluster) -> Result<()> {
    let path = numbers(cluster, 4 << 20)?;
    let path = path.display();
    same(cluster, &format!("bpsh -a -s cat < {path} | sha256sum"), &format!("cat {path} {path} {path} | sha256sum"))?;
    same(
        cluster,
        &format!("bpsh -a -L cat < {path} | sort | sha256sum"),
        &format!("cat {path} {path} {path} | sort | sha256sum"),
    )
}

fn the_reader_leaves(cluster: &Cluster) -> Result<()> {
    let done = cluster.shell("bpsh 0 yes | head -1")?;
    ensure!(done.out() == "y\n", "{done:?}");
    let done = cluster.shell("bpsh -a yes | head -3")?;
    ensure!(done.out() == "y\n".repeat(3), "{done:?}");
    // The reader of the input leaves: the writer learns it.
    let done = cluster.shell("yes | bpsh 0 head -2")?;
    ensure!(done.out() == "y\ny\n", "{done:?}");
    cluster.quiet()
}

fn two_streams(cluster: &Cluster) -> Result<()> {
    let script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; exit 3";
    let done = cluster.bpsh(&["1", "sh", "-c", script])?;
    let lines = |word: &str| (0..2000).map(|i| format!("{word} {i}\n")).collect::<String>();
    ensure!(done.status == 3 && done.out() == lines("out") && done.err() == lines("err"), "streams are mixed or cut");
    Ok(())
}

fn redirections(cluster: &Cluster) -> Result<()> {
    let dir = cluster.dir().join("log");
    let (input, output, errors) = (dir.join("in"), dir.join("out"), dir.join("err"));
    fs::write(&input, "from a file of the node\n")?;
    let [i, o, e] = [&input, &output, &errors].map(|path| path.to_str().unwrap_or_default());
    let done = cluster.bpsh(&["-I", i, "-O", o, "-E", e, "0", "sh", "-c", "cat; echo wrong >&2"])?;
    ensure!(done.status == 0 && done.stdout.is_empty() && done.stderr.is_empty(), "{done:?}");
    ensure!(fs::read_to_string(&output)? == "from a file of the node\n" && fs::read_to_string(&errors)? == "wrong\n");
    let done = cluster.bpsh_with(&["-n", "0", "cat"], b"not for the node")?;
    ensure!(done.status == 0 && done.stdout.is_empty(), "{done:?}");
    let done = cluster.bpsh(&["-I", "/no/such/file", "0", "cat"])?;
    ensure!(done.status == 1 && done.err() == "0: /no/such/file: No such file or directory\n", "{done:?}");
    let done = cluster.bpsh(&["-O", "/etc", "0", "cat"])?;
    ensure!(done.status == 1 && done.err() == "0: /etc: Is a directory\n", "{done:?}");
    Ok(())
}

fn interpreters(cluster: &Cluster) -> Result<()> {
    if has("perl") {
        let done = cluster.bpsh(&["0", "perl", "-e", "my $n = 0; $n += $_ for 1..1000; print \"$n\\n\"; exit 4"])?;
        ensure!(done.status == 4 && done.out() == "500500\n", "{done:?}");
    }
    if has("python3") {
        let script = "import os,sys,subprocess\n\
                      print(subprocess.run(['sh','-c','exit 9']).returncode)\n\
                      pid = os.fork()\n\
                      if pid == 0: os._exit(6)\n\
                      print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n\
                      print(os.getpid() == int(os.readlink('/proc/self')) or 'elsewhere')\n\
                      import threading\n\
                      t = [threading.Thread(target=lambda: sum(range(100000))) for _ in range(8)]\n\
                      [x.start() for x in t]; [x.join() for x in t]\n\
                      sys.exit(5)";
        let done = cluster.bpsh(&["1", "python3", "-c", script])?;
        ensure!(done.status == 5 && done.out().starts_with("9\n6\n"), "{done:?}");
    }
    let script =
        "set -o pipefail; seq 100000 | (sleep 0; cat) | grep 7 | sort -n | tail -1; (exit 3) & wait $!; echo $?";
    let done = cluster.bpsh(&["2", "bash", "-c", script])?;
    ensure!(done.status == 0 && done.out() == "99997\n3\n", "{done:?}");
    cluster.quiet()
}

fn compiler(cluster: &Cluster) -> Result<()> {
    if !has("cc") {
        return Ok(());
    }
    let dir = cluster.dir().join("log");
    fs::write(dir.join("hello.c"), "#include <stdio.h>\nint main(void) { puts(\"compiled there\"); return 42; }\n")?;
    let (source, program) = (dir.join("hello.c"), dir.join("hello"));
    let done = cluster.bpsh(&["0", "cc", "-o", program.to_str().context("path")?, source.to_str().context("path")?])?;
    ensure!(done.status == 0, "{done:?}");
    let done = cluster.bpsh(&["1", program.to_str().context("path")?])?;
    ensure!(done.status == 42 && done.out() == "compiled there\n", "{done:?}");
    cluster.quiet()
}

fn a_user(cluster: &Cluster) -> Result<()> {
    let user = "setpriv --reuid 65534 --regid 65534 --groups 65534,100";
    same(cluster, &format!("{user} bpsh 0 id"), &format!("{user} id"))?;
    same(cluster, &format!("{user} bpsh 0 cat /etc/shadow"), &format!("{user} cat /etc/shadow"))?;
    same(
        cluster,
        &format!("{user} bpsh 1 sh -c 'echo $$ > /proc/self/oom_adj; kill -9 1; echo $?; umask'"),
        &format!("{user} sh -c 'echo $$ > /proc/self/oom_adj; kill -9 1; echo $?; umask'"),
    )
    .or_else(|error| if error.to_string().contains("oom_adj") { Ok(()) } else { Err(error) })?;
    // /dev/stdout and friends belong to him.
    let done = cluster.shell(&format!("{user} bpsh 0 sh -c 'echo to himself > /dev/stdout'"))?;
    ensure!(done.status == 0 && done.out() == "to himself\n", "{done:?}");
    // The ghost is his in ps, and his alone.
    let line = format!(
        "{user} bpsh 0 sleep 60 & job=$!; \
         until ghost=$(ps -o pid= --ppid $job) && [ -n \"$ghost\" ] && ps -o args= -p $ghost | grep -q '^sleep'; do :; done; \
         ps -o user:20=,args= -p $ghost; setpriv --reuid 1234 --clear-groups kill -9 $ghost 2>/dev/null; echo $?; \
         {user} kill $ghost; wait $job; echo $?"
    );
    let done = cluster.shell(&line)?;
    ensure!(done.out() == "nobody               sleep 60\n1\n255\n", "{done:?}");
    cluster.quiet()
}

fn permission_of_nodes(cluster: &Cluster) -> Result<()> {
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let done = cluster.shell("bpctl -S 2 -m 0100")?;
    ensure!(done.status == 0, "{done:?}");
    let refused = cluster.shell(&format!("{user} bpsh 2 true"))?;
    let root = cluster.bpsh(&["2", "true"])?;
    let done = cluster.shell("bpctl -S 2 -m 0111")?;
    ensure!(done.status == 0, "{done:?}");
    ensure!(refused.status != 0 && refused.err().starts_with("2: "), "{refused:?}");
    ensure!(root.status == 0, "{root:?}");
    let refused = cluster.shell(&format!("{user} bpctl -S 2 -s error"))?;
    ensure!(refused.status != 0, "{refused:?}");
    Ok(())
}

fn processes_in_the_list(cluster: &Cluster) -> Result<()> {
    let line = "bpsh 0-1 sleep 77 & job=$!; \
                until [ \"$(ps -o args= --ppid $job | grep -c '^sleep 77$')\" = 2 ]; do :; done; \
                echo '-- ps'; ps xfo pid,args | bpstat -P | grep 'sleep 77' | grep -v -e grep -e bpsh -e 'sh -c'; \
                echo '-- list'; bpstat -p | tail -n +2 | cut -f2 | sort; kill $job; wait";
    let done = cluster.shell(line)?;
    let text = done.out();
    let (ps, list) = text.split_once("-- list\n").context("no list")?;
    // The nodes are this machine, too: the processes themselves stand there without a number.
    let mut nodes: Vec<&str> = ps.lines().filter_map(|line| line.split_once('\t')).map(|(node, _)| node).collect();
    nodes.sort_unstable();
    ensure!(nodes == ["", "", "0", "1"], "ps | bpstat -P: {done:?}");
    ensure!(list == "0\n1\n", "bpstat -p: {done:?}");
    cluster.quiet()
}

fn ghosts_look_like_their_processes(cluster: &Cluster) -> Result<()> {
    let line = "exec bpsh 1 bash -c 'sleep 88 & exec -a renamed sleep 99'";
    let mut command = cluster.command("bash");
    let mut shell =
        bproc_tests::run::tie(command.args(["-c", line])).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let looks = |ghost: &Proc| fs::read(format!("/proc/{}/cmdline", ghost.pid)).unwrap_or_default();
    let result = eventually("both ghosts look right", SOON, || {
        let ghosts = cluster.ghosts();
        let lines: Vec<Vec<u8>> = ghosts.iter().map(looks).collect();
        let with = |line: &[u8]| Some(ghosts[lines.iter().position(|other| other == line)?].clone());
        match (with(b"sleep\x0088\0"), with(b"renamed\x0099\0")) {
            (Some(child), Some(parent)) if ghosts.len() == 2 => Ok(Ok((child, parent))),
            _ => Ok(Err(format!("{ghosts:?} {lines:?}"))),
        }
    });
    shell.kill()?;
    shell.wait()?;
    let (child, parent) = result?;
    ensure!(child.ppid == parent.pid, "the tree is another: {child:?} {parent:?}");
    // bpsh takes all along.
    cluster.quiet()
}

/// A program that writes another title over its arguments, long after its start.
fn titles(cluster: &Cluster) -> Result<()> {
    if !has("perl") {
        return Ok(());
    }
    let mut command = cluster.command("bpsh");
    let script = "<STDIN>; $0 = 'another title'; <STDIN>";
    let mut bpsh = bproc_tests::run::tie(command.args(["1", "perl", "-e", script])).stdin(Stdio::piped()).spawn()?;
    let shows = |begin: &str| {
        eventually(begin, SOON, || {
            let ghosts = cluster.ghosts();
            let line = |ghost: &Proc| fs::read(format!("/proc/{}/cmdline", ghost.pid)).unwrap_or_default();
            let lines: Vec<_> = ghosts.iter().map(|g| String::from_utf8_lossy(&line(g)).into_owned()).collect();
            Ok(if lines.iter().any(|line| line.starts_with(begin)) { Ok(()) } else { Err(format!("{lines:?}")) })
        })
    };
    let mut input = bpsh.stdin.take().context("no input")?;
    let result = shows("perl\0-e\0").and_then(|()| Ok(input.write_all(b"go\n")?)).and_then(|()| shows("another title"));
    drop(input);
    let status = bpsh.wait()?;
    result?;
    ensure!(status.success(), "{status}");
    cluster.quiet()
}

/// It is a node that nothing can be changed of.
fn the_master_as_a_node(cluster: &Cluster) -> Result<()> {
    for nodes in ["master", "-- -1"] {
        let done = cluster.shell(&format!("bpstat {nodes}"))?;
        let line = done.out().lines().nth(1).unwrap_or_default().to_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(done.status == 0 && words == ["-1", "up", "---x--x--x", "root", "root"], "{done:?}");
    }
    for change in ["-s up", "-m 111", "-u root", "-g root", "-R"] {
        let done = cluster.shell(&format!("bpctl -M {change}"))?;
        ensure!(done.status == 1 && done.err().starts_with("-1: the master is always up"), "{done:?}");
    }
    Ok(())
}

/// Not even root reads a ghost's memory, where the kernel takes the program that refuses it.
fn ghosts_are_guarded(cluster: &Cluster) -> Result<()> {
    const GUARD: &str = "guard_ptrace";
    if !cluster.attached().contains(GUARD) {
        println!("skipped: this kernel refuses the LSM program {GUARD}");
        return Ok(());
    }
    let mut command = cluster.command("bpsh");
    let mut bpsh = bproc_tests::run::tie(command.args(["1", "sleep", "1000"])).stdin(Stdio::null()).spawn()?;
    let ghost = eventually("its ghost is there", SOON, || {
        let ghosts = cluster.ghosts();
        Ok(ghosts.into_iter().find(|ghost| ghost.comm == "sleep").ok_or_else(|| "there is none".to_owned()))
    });
    let read = ghost.map(|ghost| bproc_tests::procs::peek(ghost.pid));
    bpsh.kill()?;
    bpsh.wait()?;
    let refused = read?;
    ensure!(refused == Err(libc::EPERM), "reading a ghost: {refused:?}");
    println!("EXERCISED cluster: LSM refuses root to read a ghost");
    cluster.quiet()
}

/// `time` of a shell tells what a program on a node used, where the kernel takes the programs for it.
fn time_of_children(cluster: &Cluster) -> Result<()> {
    const PROGRAM: &str = "usage_release";
    if !cluster.attached().contains(PROGRAM) {
        println!("skipped: this kernel refuses the fexit program {PROGRAM}");
        return Ok(());
    }
    let busy = r"i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; times";
    let mut bash = cluster.command("bash");
    let done = finish(bash.args(["-c", r#"TIMEFORMAT=%U; time bpsh 0 sh -c "$0""#, busy]), b"", LIMIT)?;
    // "0m0.51s 0m0.02s": what the shell on the node says of itself.
    let (out, err) = (done.out(), done.err());
    let own = out.split_whitespace().next().and_then(|t| t.strip_prefix("0m")?.strip_suffix('s')?.parse::<f64>().ok());
    let told: Option<f64> = err.trim().parse().ok();
    let (Some(own), Some(told)) = (own, told) else { anyhow::bail!("{done:?}") };
    ensure!(own > 0.05 && told >= own * 0.95 && told < own * 1.5 + 0.3, "it used {own} s, and time says {told}");
    println!("EXERCISED cluster: time tells what a program on a node used");
    cluster.quiet()
}

fn scripts(cluster: &Cluster) -> Result<()> {
    let path = cluster.dir().join("log/script");
    fs::write(&path, "#!/bin/sh\necho \"$0 $1 $#\"\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let path = path.to_str().context("path")?;
    same(cluster, &format!("bpsh 0 {path} 'a b' c"), &format!("{path} 'a b' c"))?;
    // Without the line that names it, what runs it is a shell.
    let plain = format!("{path}-plain");
    fs::write(&plain, "echo \"$0 $1 $#\"; (exit 9)\n")?;
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o755))?;
    for node in ["0", "master"] {
        same(cluster, &format!("bpsh {node} {plain} 'a b' c"), &format!("env {plain} 'a b' c"))?;
    }
    Ok(())
}

/// Standard streams that bpsh was started without are closed to the program, too.
fn closed_streams(cluster: &Cluster) -> Result<()> {
    let file = cluster.dir().join("log/closed");
    for closed in ["", "<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let script =
            format!("s=; for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && s=$s$n; done; echo \"$s\" >{}", file.display());
        let of = |how: &str| -> Result<String> {
            let done = cluster.shell(&format!("{how} sh -c '{script}' {closed}"))?;
            ensure!(done.status == 0, "{how} {closed}: {done:?}");
            Ok(fs::read_to_string(&file)?)
        };
        let (native, through, master) = (of("env")?, of("bpsh 0")?, of("bpsh master")?);
        ensure!(native == through && native == master, "{closed}: {native:?}, {through:?}, {master:?} are open");
    }
    Ok(())
}

fn time_option(cluster: &Cluster) -> Result<()> {
    let done = cluster.bpsh(&["--time", "0", "true"])?;
    let good = done.err().trim().split_once('.').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.len() == 6);
    ensure!(done.status == 0 && good, "{done:?}");
    Ok(())
}

fn attributes_of_nodes(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.client()?;
    let name = || "bproc.rack".to_owned();
    let number = |result: std::result::Result<(), bproc::Error>| result.map_err(|error| error.number);
    ensure!(client.attribute(1, name()).map_err(|error| error.number) == Err(libc::ENODATA), "there before");
    ensure!(number(client.set_attribute(1, name(), Some(b"7".to_vec()))) == Ok(()), "not set");
    ensure!(cluster.client()?.attribute(1, name()).map_err(|error| error.number) == Ok(b"7".to_vec()), "not kept");
    ensure!(client.attribute(0, name()).is_err(), "of another node");
    ensure!(number(client.set_attribute(99, name(), None)) == Err(bproc_common::errno::BE_INVALIDNODE), "no such node");
    ensure!(number(client.set_attribute(1, name(), None)) == Ok(()), "not taken away");
    Ok(())
}

fn many_at_once(cluster: &Cluster) -> Result<()> {
    let nodes = ["0", "1", "2"].repeat(40).join(",");
    let done = cluster.bpsh(&[&nodes, "sh", "-c", "echo $$"])?;
    let mut pids: Vec<String> = done.out().lines().map(str::to_owned).collect();
    pids.sort();
    pids.dedup();
    ensure!(done.status == 0 && pids.len() == 120, "{} pids, status {}, {}", pids.len(), done.status, done.err());
    finish(cluster.command("bpstat").arg("-l"), b"", LIMIT)?;
    cluster.quiet()
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("hostname_everywhere", hostname_everywhere),
        Test::new("statuses", statuses),
        Test::new("sort_a_lot", sort_a_lot),
        Test::new("cat_a_lot", cat_a_lot),
        Test::new("input_to_all", input_to_all),
        Test::new("the_reader_leaves", the_reader_leaves),
        Test::new("two_streams_stay_apart", two_streams),
        Test::new("order_of_outputs", order::of_starts),
        Test::new("redirections_on_the_node", redirections),
        Test::new("interpreters", interpreters),
        Test::new("compiler", compiler),
        Test::new("a_user_other_than_root", a_user),
        Test::new("permission_of_nodes", permission_of_nodes),
        Test::new("processes_in_the_list", processes_in_the_list),
        Test::new("ghosts_look_like_their_processes", ghosts_look_like_their_processes),
        Test::new("ghosts_have_new_titles", titles),
        Test::new("the_master_as_a_node", the_master_as_a_node),
        Test::new("ghosts_are_guarded", ghosts_are_guarded),
        Test::new("time_of_children", time_of_children),
        Test::new("scripts", scripts),
        Test::new("closed_streams", closed_streams),
        Test::new("time_option", time_option),
        Test::new("attributes_of_nodes", attributes_of_nodes),
        Test::new("many_at_once", many_at_once),
    ];
    runner::main(|| Cluster::start(3), tests, Cluster::close)
}
