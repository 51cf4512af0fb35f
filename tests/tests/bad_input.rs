//! Bad input of every kind: a clear message, an exit status, nothing lost and nothing hung.

mod garbage;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bproc_tests::case::parent::Child;
use bproc_tests::cluster::{Cluster, LIMIT, Options, Role, eventually};
use bproc_tests::run::{self, Finished, finish};
use bproc_tests::runner::{self, Test};

const SOON: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

/// A program on node 0 that lives through it all, and then still answers.
struct Witness {
    process: Process,
    lines: Child,
}

impl Witness {
    fn start(cluster: &Cluster) -> Result<Witness> {
        let mut command = cluster.command("bpsh");
        run::tie(command.args(["0", "cat"])).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let (stdin, stdout) = (process.stdin.take().context("no input")?, process.stdout.take().context("no output")?);
        let lines = Child::of(process.id() as i32, stdin.into(), stdout.into());
        let mut witness = Witness { process, lines };
        witness.answers("here I am")?;
        Ok(witness)
    }

    fn answers(&mut self, word: &str) -> Result<()> {
        let answer = self.lines.ask(word).context("the program that was there before")?;
        ensure!(answer == word, "the program that was there before says {answer}");
        Ok(())
    }

    /// It lives, others can be started, and nobody had to be replaced.
    fn all_is_well(mut self, cluster: &Cluster) -> Result<()> {
        self.answers("and still")?;
        let done = cluster.bpsh(&["0-1", "echo", "fine"])?;
        ensure!(done.status == 0 && done.out() == "fine\nfine\n", "{done:?}");
        self.lines.close_stdin();
        let status = run::wait(&mut self.process, SOON)?;
        ensure!(status == 0, "the program that was there before ends with {status}");
        cluster.quiet()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a wrong command ends with: its status, and what its message says.
struct Wrong {
    name: &'static str,
    line: &'static str,
    status: i32,
    says: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong { name: "unknown_node", line: "bpsh 99 true", status: 1, says: &["no node 99"] },
    Wrong { name: "nodes_in_no_order", line: "bpsh 1-0 true", status: 1, says: &["1-0"] },
    Wrong { name: "no_list_of_nodes", line: "bpsh , true", status: 1, says: &["bpsh: "] },
    Wrong {
        name: "number_too_large",
        line: "bpsh 99999999999999999999 true",
        status: 1,
        says: &["99999999999999999999"],
    },
    Wrong {
        name: "no_agent",
        line: "BPROC_SOCKET=/nowhere/sock bpsh 0 true",
        status: 1,
        says: &["/nowhere/sock", "is bproc-agent running?"],
    },
    Wrong { name: "no_socket", line: "BPROC_SOCKET=/etc/passwd bpsh 0 true", status: 1, says: &["/etc/passwd"] },
    Wrong {
        name: "no_agent_for_bpstat",
        line: "BPROC_SOCKET=/nowhere/sock bpstat",
        status: 1,
        says: &["/nowhere/sock"],
    },
    Wrong {
        name: "no_program",
        line: "bpsh 0 /no/such/program",
        status: 127,
        says: &["/no/such/program: No such file"],
    },
    Wrong { name: "a_directory_as_program", line: "bpsh 0 /etc", status: 126, says: &["/etc: Is a directory"] },
    Wrong { name: "no_node_in_that_state", line: "bpsh notup true", status: 1, says: &["no node is 'notup'"] },
    Wrong {
        name: "bpsh_on_a_node",
        line: "bpsh 1 bpsh 0 echo x",
        status: 1,
        says: &["0: bpsh runs on node 1", "from the master only"],
    },
    Wrong {
        name: "root_without_rights",
        line: "setpriv --securebits +noroot --inh-caps=-all bpsh 0 echo x",
        status: 1,
        says: &["0: process", "root's rights"],
    },
    Wrong { name: "no_program_at_all", line: "bpsh 0 ''", status: 127, says: &["bpsh: "] },
];

fn wrong(cluster: &Cluster, case: &Wrong) -> Result<()> {
    let done = cluster.shell(case.line)?;
    ensure!(done.status == case.status && case.says.iter().all(|part| done.err().contains(part)), "{done:?}");
    ensure!(done.out().is_empty() && done.err().lines().count() <= 3, "{done:?}");
    cluster.quiet()
}

/// It would be killed right after its start, by numbers that mean others there.
fn pid_namespace(cluster: &Cluster) -> Result<()> {
    if cluster.shell("unshare -pf true")?.status != 0 {
        println!("skipped: no pid namespaces here");
        return Ok(());
    }
    let done = cluster.shell("unshare -pf bpsh 0-1 echo x")?;
    ensure!(done.status == 1 && done.out().is_empty(), "{done:?}");
    ensure!(done.err().lines().count() == 2 && done.err().contains("pid namespace of its own"), "{done:?}");
    cluster.quiet()
}

/// A filter that allows everything is one, too.
fn seccomp_filter(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command("bpsh");
    command.args(["0", "echo", "x"]);
    let mut allow = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    // SAFETY: one system call with a program that lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: 1, filter: allow.as_mut_ptr() };
            let mode = libc::SECCOMP_MODE_FILTER;
            match libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let done = finish(&mut command, b"", LIMIT)?;
    ensure!(done.status == 1 && done.out().is_empty() && done.err().contains("seccomp filters"), "{done:?}");
    cluster.quiet()
}

fn node_down(cluster: &Cluster) -> Result<()> {
    cluster.stop_agent(Role::Node(1), libc::SIGKILL)?;
    let down = cluster.wait_states("node 1 is down", |states| states.get(1).is_some_and(|state| state == "down"));
    let done = down.and_then(|()| cluster.bpsh(&["1", "true"]));
    let both = cluster.bpsh(&["0-1", "echo", "here"]);
    cluster.start_agent(Role::Node(1))?;
    cluster.wait_up()?;
    let done = done?;
    ensure!(done.status != 0 && done.err().contains("1: Node is down"), "{done:?}");
    let both = both?;
    ensure!(both.status != 0 && both.out() == "here\n" && both.err().contains("1: Node is down"), "{both:?}");
    cluster.quiet()
}

/// The program natively and through the system, with these descriptors closed.
fn closed_stdio(cluster: &Cluster) -> Result<()> {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let script = "cat; echo out; echo err >&2; exit 3";
        let through = cluster.shell(&format!("bpsh 0 sh -c '{script}' {closed}"))?;
        let native = cluster.shell(&format!("sh -c '{script}' {closed}"))?;
        let good = through.status == 3 && through.out() == native.out() && through.err().trim() == native.err().trim();
        ensure!(good, "with {closed}: {through:?} instead of {native:?}");
    }
    cluster.quiet()
}

/// As that user, with a limit to the number of his processes.
fn limited(cluster: &Cluster, processes: u64, arguments: &[&str]) -> Result<Finished> {
    let mut command = cluster.command("bpsh");
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    let limit = libc::rlimit { rlim_cur: processes, rlim_max: processes };
    // SAFETY: one system call with a record that lives in the closure.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NPROC, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    finish(&mut command, b"", LIMIT)
}

fn too_many_processes(cluster: &Cluster) -> Result<()> {
    let done = limited(cluster, 0, &["0", "true"])?;
    ensure!(done.status != 0 && done.err().contains("Resource temporarily unavailable"), "{done:?}");
    cluster.quiet()
}

/// Room for bpsh and its child, not for a hundred more, wherever the limit strikes.
fn a_hundred_too_many(cluster: &Cluster) -> Result<()> {
    let nodes = vec!["0"; 100].join(",");
    let done = limited(cluster, 20, &[&nodes, "true"])?;
    ensure!(done.status != 0 && done.err().contains("Resource temporarily unavailable"), "{done:?}");
    cluster.quiet()
}

/// A bomb on the node meets the limit there, harms nobody else, and is gone at its end.
fn a_fork_bomb(cluster: &Cluster) -> Result<()> {
    let bomb = "bomb() { bomb | bomb & wait; }; bomb 2>/dev/null; exit 5";
    let witness = Witness::start(cluster)?;
    let done = limited(cluster, 40, &["0", "timeout", "-s", "KILL", "3", "bash", "-c", bomb])?;
    ensure!(done.status != 0, "{done:?}");
    let ended = cluster.shell("setpriv --reuid 65534 --clear-groups bpsh 0 sh -c 'kill -9 -1'")?;
    // All that is his and known there, bpsh too, whose skeleton is its parent there; as natively.
    ensure!([0, 255, 128 + libc::SIGKILL].contains(&ended.status), "{ended:?}");
    witness.all_is_well(cluster)
}

/// As the native exec has it.
fn long_arguments(cluster: &Cluster) -> Result<()> {
    let witness = Witness::start(cluster)?;
    for (bytes, status) in [(10 << 20, libc::E2BIG), (80 << 20, libc::E2BIG), (1 << 20, 0)] {
        let mut command = cluster.command("bproc-case");
        let done = finish(command.args(["burden", &bytes.to_string()]), b"", LIMIT)?;
        let words = ["Argument list too long", "is longer than"];
        let said = status == 0 || words.iter().any(|words| done.err().contains(words));
        ensure!(done.status == status && said, "{bytes} bytes of arguments: {done:?}");
        let length = done.out().trim().parse::<usize>().unwrap_or(0);
        ensure!(status != 0 || length >= bytes, "{bytes} bytes of arguments: {done:?}");
    }
    witness.all_is_well(cluster)
}

fn many_variables(cluster: &Cluster) -> Result<()> {
    let run = |mut command: Command| {
        (0..100_000).for_each(|number| {
            command.env(format!("V{number}"), "x");
        });
        finish(&mut command, b"", LIMIT)
    };
    let mut through = cluster.command("bpsh");
    through.args(["0", "env"]);
    let (through, native) = (run(through)?, run(cluster.command("env"))?);
    let lines = |done: &Finished| {
        let mut lines: Vec<String> = done.out().lines().filter(|l| l.starts_with('V')).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    ensure!(through.status == 0 && lines(&through) == lines(&native), "{through:?}");
    ensure!(lines(&through).len() == 100_000);
    cluster.quiet()
}

fn protocol_garbage(cluster: &Cluster) -> Result<()> {
    let witness = Witness::start(cluster)?;
    let agents = [Role::Master, Role::Node(0), Role::Node(1)].map(|role| cluster.agent_pid(role));
    let open = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |list| list.count());
    let before: Vec<(i32, usize)> =
        agents.into_iter().map(|pid| pid.map(|pid| (pid, open(pid)))).collect::<Result<_>>()?;
    garbage::to_all(cluster)?;
    let silent = garbage::say_nothing(cluster)?;
    let done = cluster.bpsh(&["0-1", "echo", "fine"])?;
    ensure!(done.status == 0, "while some connect and say nothing: {done:?}");
    drop(silent);
    for (pid, count) in before {
        eventually("the agents have closed what came", SOON, || {
            let now = open(pid);
            // Connections of their own come and go by a few.
            Ok(if now <= count + 4 {
                Ok(())
            } else {
                Err(format!("agent {pid} has {now} descriptors, {count} before"))
            })
        })?;
        ensure!(cluster.agent_pids().contains(&pid), "agent {pid} is not there any more");
    }
    witness.all_is_well(cluster)
}

/// An agent of node 0 from another directory, as on another machine, with other certificates: says so in its log, and
/// the node is left alone.
struct Stranger {
    name: &'static str,
    /// Below the cluster's directory; `None`: a CA of its own.
    certificate: Option<&'static str>,
    says: &'static str,
}

const STRANGERS: &[Stranger] = &[
    Stranger { name: "second_agent_of_a_node", certificate: Some("node-0"), says: "attached already" },
    Stranger {
        name: "certificate_of_the_master",
        certificate: Some("master"),
        says: "must not use the master's certificate",
    },
    Stranger { name: "certificate_of_another_authority", certificate: None, says: "certificate" },
];

fn stranger(cluster: &Cluster, case: &Stranger) -> Result<()> {
    let witness = Witness::start(cluster)?;
    let name = format!("{}-second", cluster.name());
    let dir = cluster.dir().join("second");
    fs::create_dir_all(dir.join("tls"))?;
    let tls = cluster.dir().join("etc/tls");
    match case.certificate {
        Some(certificate) => {
            for (from, to) in [
                ("ca.pem", "ca.pem"),
                (&format!("{certificate}.pem"), "own.pem"),
                (&format!("{certificate}-key.pem"), "own-key.pem"),
            ] {
                fs::copy(tls.join(from), dir.join("tls").join(to)).with_context(|| format!("copying {from}"))?;
            }
        }
        None => {
            let mut command = cluster.command("bproc-agent");
            let made = finish(
                command.args(["certs", "--name", cluster.name(), "--nodes", "1", "--dir"]).arg(dir.join("tls")),
                b"",
                LIMIT,
            )?;
            ensure!(made.status == 0, "{made:?}");
            for end in ["", "-key"] {
                fs::rename(dir.join(format!("tls/node-0{end}.pem")), dir.join(format!("tls/own{end}.pem")))?;
            }
        }
    }
    let own = fs::read_to_string(cluster.config())?
        .replace(&format!("{}/master", tls.display()), &format!("{}/own", tls.display()));
    let own = own.replace(&tls.display().to_string(), &dir.join("tls").display().to_string());
    fs::write(dir.join("agent.toml"), format!("run_dir = \"/run/bproc.d/{name}\"\n{own}"))?;
    let log = dir.join("log");
    let output = File::create(&log)?;
    let mut command = cluster.command("bproc-agent");
    command.args(["slave", "--node", "0", "--config"]).arg(dir.join("agent.toml"));
    run::tie(&mut command).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut agent = command.spawn()?;
    let said = eventually(case.says, SOON, || {
        let text = fs::read_to_string(&log)?;
        if let Some(status) = agent.try_wait()? {
            bail!("the second agent ended: {status}\n{text}");
        }
        Ok(if text.contains(case.says) { Ok(()) } else { Err(text) })
    });
    agent.kill()?;
    agent.wait()?;
    let cleaned = finish(cluster.command("bproc-agent").args(["cleanup", "--name", &name]), b"", LIMIT)?;
    fs::remove_dir_all(&dir)?;
    said?;
    ensure!(cleaned.status == 0, "{cleaned:?}");
    witness.all_is_well(cluster)
}

/// On the same machine it does not come that far.
fn twice_here(cluster: &Cluster) -> Result<()> {
    let witness = Witness::start(cluster)?;
    for (arguments, says) in [
        (&["master"][..], "a master runs here already"),
        (&["slave", "--node", "0"], "an agent of node 0 runs here already"),
    ] {
        let mut command = cluster.command("bproc-agent");
        let done = finish(command.args(arguments).arg("--config").arg(cluster.config()), b"", LIMIT)?;
        ensure!(done.status != 0 && done.err().contains(says), "{done:?}");
    }
    witness.all_is_well(cluster)
}

/// Agents and stdio services that can write nothing into their logs do their work all the same.
fn full_disk(_: &Cluster) -> Result<()> {
    let options = Options { nodes: 2, log: Some("/dev/full".into()), ..Options::default() };
    let cluster = Cluster::start_with(&options)?;
    let witness = Witness::start(&cluster)?;
    let mut command = cluster.command("sh");
    let line = "bpsh 0 seq 1000000 | bpsh 1 sha256sum; bpsh 0 no-such-program; bpsh 0-1 sh -c 'kill -9 $$'";
    let done = finish(command.args(["-c", line]), b"", LIMIT)?;
    let native = cluster.shell("seq 1000000 | sha256sum")?;
    ensure!(done.out() == native.out() && done.status == 255, "{done:?}");
    for role in [Role::Master, Role::Node(0)] {
        cluster.stop_agent(role, libc::SIGKILL)?;
        cluster.start_agent(role)?;
    }
    cluster.wait_up()?;
    witness.all_is_well(&cluster)?;
    cluster.close()
}

/// Who reads our output has gone: the program on the node learns it, and nobody hangs.
fn reader_gone(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command("bpsh");
    run::tie(command.args(["0", "sh", "-c", "echo first; while echo more; do :; done"])).stdin(Stdio::null());
    let mut bpsh = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut first = [0; 6];
    let mut output = bpsh.stdout.take().context("no output")?;
    output.read_exact(&mut first)?;
    ensure!(output.as_raw_fd() >= 0 && &first == b"first\n");
    drop(output);
    run::wait(&mut bpsh, SOON)?;
    cluster.quiet()
}

fn main() -> ExitCode {
    let mut tests: Vec<Test<Cluster>> = Vec::new();
    for case in WRONG {
        tests.push(Test::new(case.name, move |c: &Cluster| wrong(c, case)));
    }
    tests.extend([
        Test::new("pid_namespace", pid_namespace),
        Test::new("seccomp_filter", seccomp_filter),
        Test::new("node_down", node_down),
        Test::new("closed_stdio", closed_stdio),
        Test::new("the_reader_is_gone", reader_gone),
        Test::new("too_many_processes", too_many_processes),
        Test::new("long_arguments", long_arguments),
        Test::new("many_variables", many_variables),
        Test::new("protocol_garbage", protocol_garbage),
        Test::new("agents_twice_on_one_machine", twice_here),
    ]);
    for case in STRANGERS {
        tests.push(Test::new(case.name, move |c: &Cluster| stranger(c, case)));
    }
    tests.extend([
        Test::new("a_hundred_too_many", a_hundred_too_many),
        Test::new("a_fork_bomb", a_fork_bomb),
        Test::new("full_disk_for_logs", full_disk),
    ]);
    runner::main(|| Cluster::start(2), tests, Cluster::close)
}
