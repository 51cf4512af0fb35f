//! A cluster of real agents, for one test program.
//!
//! It has its own name, port and directory, so that any number of them, and a user's own, live side by side. The
//! agents die with the test; a guard process ends what outlives agents by design when the test itself was killed.

pub mod apart;
mod install;
mod leftover;
mod looks;
pub mod pair;

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bproc::Client;
use bproc_common::id::Pid;
use bproc_sys::pidfd::PidFd;

use crate::history::History;
use crate::run::{self, Finished, finish};
use crate::runner;

/// Above all clusters' directories; every user may come here, unlike to a checkout below /root.
pub const LIB: &str = "/var/lib/bproc";
/// Emulated machines are slow.
const READY: Duration = Duration::from_secs(60);
/// For one command.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One agent.
struct Agent {
    child: Child,
    log: PathBuf,
}

/// Who an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The master's.
    Master,
    /// That of a node.
    Node(i32),
}

/// A running cluster. Take it down with [`Cluster::close`], which tells what is left.
pub struct Cluster {
    name: String,
    nodes: i32,
    log: Option<PathBuf>,
    agents: RefCell<Vec<(Role, Agent)>>,
    /// What there was when all were up.
    lasting: RefCell<Vec<String>>,
    /// Ends the cluster when its standard input ends: when this process does.
    guard: RefCell<Option<Child>>,
    closed: Cell<bool>,
    /// Of each node, if it is not the master's machine.
    machines: Vec<apart::Machine>,
}

/// What differs from the ordinary.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes.
    pub nodes: i32,
    /// Lines for the top of the configuration.
    pub settings: String,
    /// Seconds without a word after which a node counts as down.
    pub ping_timeout: u32,
    /// Where the agents write their logs, if not into files of their own.
    pub log: Option<PathBuf>,
    /// Each node is a machine of its own. This process must have left for a network of its own: [`apart::leave`].
    pub apart: bool,
    /// Addresses of the master's machine and of its only node's, whose agent somebody starts there: [`pair::Pair`].
    pub pair: Option<[String; 2]>,
}

impl Default for Options {
    fn default() -> Self {
        Options { nodes: 1, settings: String::new(), ping_timeout: 5, log: None, apart: false, pair: None }
    }
}

impl Cluster {
    /// A cluster with so many nodes, all of them up.
    ///
    /// # Errors
    /// What keeps it from starting, with the end of the agent's log.
    pub fn start(nodes: i32) -> Result<Cluster> {
        Cluster::start_with(&Options { nodes, ..Options::default() })
    }

    /// A cluster that differs from the ordinary.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(options: &Options) -> Result<Cluster> {
        let cluster = Cluster::begin(options)?;
        for node in 0..options.nodes {
            cluster.launch(Role::Node(node))?.ready(&cluster)?;
        }
        cluster.settle()?;
        Ok(cluster)
    }

    /// Nothing but its programs, and room for the rest.
    fn bare(options: &Options) -> Result<Cluster> {
        install::sweep()?;
        let name = if options.pair.is_some() { pair::name() } else { install::unused_name()? };
        let cluster = Cluster {
            guard: RefCell::new(Some(install::guard(&name)?)),
            name,
            nodes: options.nodes,
            log: options.log.clone(),
            agents: RefCell::default(),
            lasting: RefCell::default(),
            closed: Cell::new(false),
            machines: if options.apart {
                (0..options.nodes).map(apart::machine).collect::<Result<_>>()?
            } else {
                vec![]
            },
        };
        install::copy(&cluster)?;
        let history = History { dir: cluster.dir() };
        runner::at_a_hang(move || history.tell_all());
        Ok(cluster)
    }

    /// The master, without nodes so far.
    fn begin(options: &Options) -> Result<Cluster> {
        let cluster = Cluster::bare(options)?;
        cluster.configure(options)?;
        cluster.start_agent(Role::Master)?;
        Ok(cluster)
    }

    /// Waits until all nodes are up, and notes what there is then.
    fn settle(&self) -> Result<()> {
        self.wait_up()?;
        self.lasting.replace(leftover::lasting(&self.name)?);
        self.tell_exercised();
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its programs lie.
    pub fn dir(&self) -> PathBuf {
        Path::new(LIB).join(&self.name)
    }

    /// Where its sockets are.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/bproc.d").join(&self.name)
    }

    /// The agent's socket for programs on this machine.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    /// A program of the cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir().join("bin").join(name)
    }

    /// The configuration of all agents.
    pub fn config(&self) -> PathBuf {
        self.dir().join("etc/agent.toml")
    }

    /// Has the command find the programs and the agent of this cluster.
    pub fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into());
        command
            .env("PATH", format!("{}:{path}", self.dir().join("bin").display()))
            .env("BPROC_SOCKET", self.socket())
            .env("LC_ALL", "C")
    }

    /// A command that finds the programs and the agent of this cluster.
    pub fn command(&self, program: &str) -> Command {
        let own = self.program(program);
        let mut command = Command::new(if own.exists() { own } else { PathBuf::from(program) });
        self.environment(&mut command).current_dir("/");
        command
    }

    /// The same on a node's machine, outside of its space.
    ///
    /// # Errors
    /// The node has no machine of its own.
    pub fn command_on(&self, node: i32, program: &str) -> Result<Command> {
        let machine =
            self.machine(Role::Node(node)).with_context(|| format!("node {node} is no machine of its own"))?;
        let mut command = self.command(program);
        machine.inhabit(&mut command);
        Ok(command)
    }

    /// bpsh with these arguments and this input.
    ///
    /// # Errors
    /// It does not end.
    pub fn bpsh_with(&self, arguments: &[&str], input: &[u8]) -> Result<Finished> {
        finish(self.command("bpsh").args(arguments), input, LIMIT)
    }

    /// bpsh with these arguments.
    ///
    /// # Errors
    /// It does not end.
    pub fn bpsh(&self, arguments: &[&str]) -> Result<Finished> {
        self.bpsh_with(arguments, b"")
    }

    /// A line for the shell.
    ///
    /// # Errors
    /// It does not end.
    pub fn shell(&self, line: &str) -> Result<Finished> {
        finish(self.command("sh").args(["-c", line]), b"", LIMIT)
    }

    /// A connection to the master's agent.
    ///
    /// # Errors
    /// It does not listen.
    pub fn client(&self) -> Result<Client> {
        Client::connect_to(&self.socket()).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// States of the nodes, in their order.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn states(&self) -> Result<Vec<String>> {
        let nodes = self.client()?.nodes().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(nodes.into_iter().map(|node| node.state).collect())
    }

    /// Waits until all nodes are up.
    ///
    /// # Errors
    /// They are not within a minute.
    pub fn wait_up(&self) -> Result<()> {
        self.wait_states("all nodes up", |states| states.iter().all(|state| state == "up"))
    }

    /// Waits until the states of the nodes are as wanted.
    ///
    /// # Errors
    /// They are not within a minute.
    pub fn wait_states(&self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
        eventually(what, READY, || {
            // An agent that has just been started may not listen yet.
            let states = self.states().unwrap_or_default();
            Ok(if !states.is_empty() && wanted(&states) { Ok(()) } else { Err(format!("nodes are {states:?}")) })
        })
    }

    /// Starts an agent and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends instead, or says nothing for a minute.
    pub fn start_agent(&self, role: Role) -> Result<()> {
        self.launch(role)?.ready(self)
    }

    fn launch(&self, role: Role) -> Result<Launch> {
        let label = match role {
            Role::Master => "master".to_owned(),
            Role::Node(number) => format!("node-{number}"),
        };
        let socket = self.dir().join(format!("ready-{label}"));
        let _ = fs::remove_file(&socket);
        let ready = UnixDatagram::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        ready.set_read_timeout(Some(Duration::from_millis(100)))?;
        let log = self.log.clone().unwrap_or_else(|| self.dir().join(format!("log/{label}.log")));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(self.program("bproc-agent"));
        match role {
            Role::Master => command.arg("master"),
            Role::Node(number) => command.args(["slave", "--node", &number.to_string()]),
        };
        command.args(["--name", &self.name, "--config"]).arg(self.config());
        let level = std::env::var("BPROC_TEST_LOG")
            .unwrap_or_else(|_| "debug,h2=info,tower=info,hyper=info,rustls=info".into());
        command.env("NOTIFY_SOCKET", &socket).env("RUST_LOG", level).current_dir("/");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        if let Some(machine) = self.machine(role) {
            machine.inhabit(&mut command);
        }
        let child = run::tie(&mut command).spawn().context("cannot start an agent")?;
        Ok(Launch { role, agent: Agent { child, log }, ready, label })
    }

    fn machine(&self, role: Role) -> Option<&apart::Machine> {
        match role {
            Role::Master => None,
            Role::Node(number) => self.machines.get(usize::try_from(number).ok()?),
        }
    }

    /// Cuts the cable of a node's machine, or joins it again.
    ///
    /// # Errors
    /// It has none.
    pub fn cable(&self, node: i32, joined: bool) -> Result<()> {
        apart::cable(node, joined)
    }

    /// Lets no more than so many megabits a second through each cable, in either direction.
    ///
    /// # Errors
    /// They have none; `tc` cannot do it.
    pub fn narrow(&self, megabits: u32) -> Result<()> {
        apart::narrow(None, megabits)?;
        (0..).zip(&self.machines).try_for_each(|machine| apart::narrow(Some(machine), megabits))
    }

    fn take(&self, role: Role) -> Result<Agent> {
        let mut agents = self.agents.borrow_mut();
        let at = agents.iter().position(|(r, _)| *r == role).with_context(|| format!("{role:?} does not run"))?;
        Ok(agents.remove(at).1)
    }

    /// Ends an agent: SIGTERM for good manners, SIGKILL for a crash.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_agent(&self, role: Role, signal: i32) -> Result<()> {
        let mut agent = self.take(role)?;
        signal_to(agent.child.id() as i32, signal)?;
        run::wait(&mut agent.child, Duration::from_secs(20))?;
        Ok(())
    }

    /// The pid of an agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent_pid(&self, role: Role) -> Result<i32> {
        let agents = self.agents.borrow();
        let agent = agents.iter().find(|(r, _)| *r == role).with_context(|| format!("{role:?} does not run"))?;
        Ok(agent.1.child.id() as i32)
    }

    /// The pids of all agents that were started and have not ended.
    pub fn agent_pids(&self) -> Vec<i32> {
        let mut agents = self.agents.borrow_mut();
        let running = agents.iter_mut().filter_map(|(_, agent)| match agent.child.try_wait() {
            Ok(None) => Some(agent.child.id() as i32),
            _ => None,
        });
        running.collect()
    }

    /// The end of an agent's log.
    pub fn log_tail(&self, role: Role, lines: usize) -> String {
        let label = match role {
            Role::Master => "master".to_owned(),
            Role::Node(number) => format!("node-{number}"),
        };
        tail(&self.dir().join(format!("log/{label}.log")), lines)
    }

    /// Prints what an agent warned of: where its machine ends with the test, nobody can look later.
    fn tell_warnings(&self, role: Role) {
        let all = std::env::var_os("BPROC_TEST_LOG").is_some();
        let log = self.log_tail(role, if all { 500 } else { usize::MAX });
        let grave = |line: &&str| all || line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("anew");
        log.lines().filter(grave).for_each(|line| println!("{role:?}: {line}"));
    }

    fn configure(&self, options: &Options) -> Result<()> {
        let etc = self.dir().join("etc");
        let (name, tls) = (&self.name, etc.join("tls"));
        let made = finish(
            self.command("bproc-agent")
                .args(["certs", "--name", name, "--nodes", &self.nodes.to_string(), "--dir"])
                .arg(&tls),
            b"",
            LIMIT,
        )?;
        if made.status != 0 {
            bail!("no certificates: {}", made.err());
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = |node| match &options.pair {
            Some([_, there]) => there.clone(),
            None if options.apart => apart::node(node),
            None => format!("127.0.0.{}", node + 1),
        };
        let hosts: Vec<String> = (0..self.nodes).map(|node| format!("\"{}\"", host(node))).collect();
        let master = match &options.pair {
            Some([here, _]) => here.clone(),
            None if options.apart => apart::master(),
            None => "127.0.0.1".into(),
        };
        let (tls, libexec) = (tls.display(), self.dir().join("libexec/bproc"));
        let text = format!(
            "name = \"{name}\"\nping_timeout = {}\nlibexec_dir = \"{}\"\ncache.directory = \"{}\"\n{}\n\
             [listen]\naddress = \"{master}\"\nport = {port}\n\n\
             [tls]\nca = \"{tls}/ca.pem\"\ncert = \"{tls}/master.pem\"\nkey = \"{tls}/master-key.pem\"\n\n\
             [node_defaults]\nmode = \"0111\"\nuser = \"root\"\ngroup = \"root\"\n\n\
             [[node]]\nhosts = [{}]\n\n[[master]]\naddresses = [\"{master}:{port}\"]\n",
            run::patience(Duration::from_secs(options.ping_timeout.into())).as_secs(),
            libexec.display(),
            self.dir().join("cache").display(),
            options.settings,
            hosts.join(", ")
        );
        fs::write(self.config(), text).with_context(|| format!("cannot write {}", self.config().display()))
    }

    /// Ends the cluster and tells what is left that should not be: an agent that ended before its time, too.
    ///
    /// # Errors
    /// What is left.
    pub fn close(self) -> Result<()> {
        self.closed.set(true);
        let ended: Vec<String> = (self.agents.borrow_mut().iter_mut())
            .filter_map(|(role, agent)| Some(format!("{role:?} had ended: {}", agent.child.try_wait().ok()??)))
            .collect();
        let result = self.end();
        if let Some(mut guard) = self.guard.borrow_mut().take() {
            // It would find nothing more to do.
            guard.kill()?;
            guard.wait()?;
        }
        if !ended.is_empty() {
            bail!("{}", ended.join("; "));
        }
        result
    }

    fn end(&self) -> Result<()> {
        for (_, agent) in self.agents.borrow_mut().iter_mut() {
            signal_to(agent.child.id() as i32, libc::SIGTERM)?;
        }
        for (role, mut agent) in self.agents.borrow_mut().drain(..) {
            run::wait(&mut agent.child, Duration::from_secs(20)).with_context(|| format!("{role:?}"))?;
        }
        end_of(&self.name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that failed half way: the guard does the rest.
        if !self.closed.get() {
            for (_, agent) in self.agents.borrow_mut().iter_mut() {
                let _ = agent.child.kill();
                let _ = agent.child.wait();
            }
            if let Some(mut guard) = self.guard.borrow_mut().take() {
                drop(guard.stdin.take());
                let _ = guard.wait();
            }
        }
    }
}

/// An agent that was started and is not ready yet.
struct Launch {
    role: Role,
    agent: Agent,
    ready: UnixDatagram,
    label: String,
}

impl Launch {
    fn ready(mut self, cluster: &Cluster) -> Result<()> {
        let end = Instant::now() + run::patience(READY);
        let mut text = [0; 4096];
        loop {
            if let Ok(length) = self.ready.recv(&mut text)
                && text[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
            {
                break;
            }
            if let Some(status) = self.agent.child.try_wait()? {
                bail!("the agent of {} ended: {status}\n{}", self.label, tail(&self.agent.log, 12));
            }
            if Instant::now() > end {
                self.agent.child.kill()?;
                self.agent.child.wait()?;
                bail!("the agent of {} is not ready after a minute\n{}", self.label, tail(&self.agent.log, 12));
            }
        }
        cluster.agents.borrow_mut().push((self.role, self.agent));
        Ok(())
    }
}

fn tail(log: &Path, lines: usize) -> String {
    let bytes = if log.is_file() { fs::read(log).unwrap_or_default() } else { Vec::new() };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let all: Vec<&str> = text.lines().collect();
    format!("{} ends with:\n  {}", log.display(), all[all.len().saturating_sub(lines)..].join("\n  "))
}

/// A signal to a process that is known to be ours, by pidfd.
///
/// # Errors
/// It is gone.
pub fn signal_to(pid: i32, signal: i32) -> Result<()> {
    let pid = Pid::new(pid).with_context(|| format!("{pid} is no pid"))?;
    Ok(PidFd::open(pid)?.send_signal(signal)?)
}

/// Looks again and again, for what no event tells, until it is as wanted.
///
/// # Errors
/// It is not within the limit, with the last reason why not; or looking itself fails.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let limit = run::patience(limit);
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        match look()? {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() > end => bail!("not within {} s: {what}\n{why}", limit.as_secs()),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Ends what a cluster's agents left by design, and removes its files.
///
/// # Errors
/// What is left after that.
pub fn end_of(name: &str) -> Result<()> {
    install::clean_up(name)
}

/// Waits for the end of its standard input, then ends the cluster: for a test program that was killed.
///
/// # Errors
/// As [`end_of`].
pub fn guard(name: &str) -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    end_of(name)
}
