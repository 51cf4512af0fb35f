//! A cluster on two machines that share nothing but a cable: the master on one, its only node on the other, a test
//! program on each. The one on the master's machine leads: it sends the other certificates and configuration, and asks
//! it whether all is quiet there.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, Options, Role, eventually};
use crate::procs;
use crate::run::patience;

/// The name on both machines. It looks like that of a process which never ends: neither sweeps it away.
const NAME: &str = "t-1-pair";
/// Where the leading test listens.
const PORT: u16 = 7100;
/// For the other machine to boot, and for one question.
const LIMIT: Duration = Duration::from_secs(90);
/// What the node needs of the master's files.
const FILES: [&str; 4] = ["agent.toml", "tls/ca.pem", "tls/node-0.pem", "tls/node-0-key.pem"];

/// The master's machine, and the way to the other's test program.
pub struct Pair {
    /// The cluster, as this machine sees it.
    pub cluster: Cluster,
    other: RefCell<BufReader<TcpStream>>,
}

/// The node's machine.
pub struct Follower {
    cluster: Cluster,
    leader: RefCell<BufReader<TcpStream>>,
}

/// One line, without its end.
fn line(from: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    ensure!(from.read_line(&mut text)? > 0, "the test program on the other machine is gone");
    Ok(text.trim_end().to_owned())
}

fn limited(stream: TcpStream) -> Result<BufReader<TcpStream>> {
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

impl Pair {
    /// Starts the master here, and waits for the node at that address.
    ///
    /// # Errors
    /// What keeps either from starting.
    pub fn lead(here: &str, there: &str) -> Result<Pair> {
        let listener = TcpListener::bind((here, PORT)).with_context(|| format!("listening on {here}"))?;
        let options = Options { pair: Some([here.to_owned(), there.to_owned()]), ..Options::default() };
        let cluster = Cluster::begin(&options)?;
        listener.set_nonblocking(true)?;
        let stream = eventually("the other machine's test program", LIMIT, || match listener.accept() {
            Ok((stream, _)) => Ok(Ok(stream)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Err("it does not call".into())),
            Err(error) => Err(error.into()),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience(LIMIT)))?;
        let mut other = limited(stream)?;
        for name in FILES {
            let bytes = fs::read(cluster.dir().join("etc").join(name)).with_context(|| format!("reading {name}"))?;
            writeln!(other.get_mut(), "file {name} {}", bytes.len())?;
            other.get_mut().write_all(&bytes)?;
        }
        let pair = Pair { cluster, other: RefCell::new(other) };
        pair.ask("start")?;
        pair.cluster.settle()?;
        pair.ask("settle")?;
        Ok(pair)
    }

    /// Has the other test program do something.
    ///
    /// # Errors
    /// Its words.
    fn ask(&self, what: &str) -> Result<()> {
        let mut other = self.other.borrow_mut();
        writeln!(other.get_mut(), "{what}")?;
        match line(&mut *other)?.split_once(' ') {
            Some(("failed", why)) => bail!("on the other machine: {}", why.replace("\\n", "\n")),
            _ => Ok(()),
        }
    }

    /// Waits until nothing of the cluster runs or is left on either machine.
    ///
    /// # Errors
    /// What is left after half a minute.
    pub fn quiet(&self) -> Result<()> {
        self.cluster.quiet()?;
        let living: Vec<String> = procs::all().iter().map(|process| process.pid.to_string()).collect();
        self.ask(&format!("quiet {}", living.join(" ")))
    }

    /// Ends the node, then the master.
    ///
    /// # Errors
    /// What is left on either machine.
    pub fn close(self) -> Result<()> {
        self.cluster.tell_warnings(Role::Master);
        let there = self.ask("close");
        self.cluster.close()?;
        there
    }
}

impl Follower {
    /// Calls the leading test program and starts the node with what it sends.
    ///
    /// # Errors
    /// It does not answer, or the node does not start.
    pub fn follow(leader: &str) -> Result<Follower> {
        let stream = eventually("the master's test program", LIMIT, || {
            Ok(TcpStream::connect((leader, PORT)).map_err(|error| error.to_string()))
        })?;
        let mut leader = limited(stream)?;
        let cluster = Cluster::bare(&Options { pair: Some([String::new(), String::new()]), ..Options::default() })?;
        loop {
            let said = line(&mut leader)?;
            if said == "start" {
                break;
            }
            let words: Vec<&str> = said.split(' ').collect();
            let [_, name, length] = words[..] else { bail!("`{said}` is no file") };
            ensure!(FILES.contains(&name), "`{name}` is no file of a node");
            let mut bytes = vec![0; length.parse()?];
            leader.read_exact(&mut bytes)?;
            let path = cluster.dir().join("etc").join(name);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
        let follower = Follower { cluster, leader: RefCell::new(leader) };
        let started = follower.cluster.start_agent(Role::Node(0));
        follower.answer(&started)?;
        started.map(|()| follower)
    }

    fn answer(&self, result: &Result<()>) -> Result<()> {
        let text = match result {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("failed {error:#}").replace('\n', "\\n"),
        };
        Ok(writeln!(self.leader.borrow_mut().get_mut(), "{text}")?)
    }

    /// Does what the leading test program asks, until it wants the node to end.
    ///
    /// # Errors
    /// That is gone.
    pub fn serve(&self) -> Result<()> {
        loop {
            let said = line(&mut *self.leader.borrow_mut())?;
            let (what, rest) = said.split_once(' ').unwrap_or((&said, ""));
            match what {
                "settle" => self.answer(&self.cluster.settle())?,
                "quiet" => {
                    let living: Vec<i32> = rest.split(' ').filter_map(|pid| pid.parse().ok()).collect();
                    self.answer(&self.cluster.quiet_but_for(&|pid| living.contains(&pid)))?;
                }
                "close" => return Ok(()),
                _ => bail!("`{said}` is no question"),
            }
        }
    }

    /// Ends the node, and tells the other test program how.
    ///
    /// # Errors
    /// What is left.
    pub fn close(self) -> Result<()> {
        let Follower { cluster, leader } = self;
        cluster.tell_warnings(Role::Node(0));
        let result = cluster.close();
        let text = result.as_ref().err().map_or("done".to_owned(), |e| format!("failed {e:#}").replace('\n', "\\n"));
        writeln!(leader.borrow_mut().get_mut(), "{text}")?;
        // The other may end its machine's processes only after it has read this.
        let end = Instant::now() + patience(LIMIT);
        leader.borrow().get_ref().set_read_timeout(Some(end.saturating_duration_since(Instant::now())))?;
        let _ = leader.borrow_mut().read_line(&mut String::new());
        result
    }
}

/// The name of such a cluster.
pub(super) fn name() -> String {
    NAME.to_owned()
}
