//! Who is there: what runs for a cluster on this machine, and whether all is quiet.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, Role, eventually, leftover};
use crate::history::{History, TOLD};
use crate::procs::{self, Proc};

impl Cluster {
    /// The pid of the keeper on the master.
    ///
    /// # Errors
    /// There is none.
    pub fn keeper_pid(&self) -> Result<i32> {
        let program = self.dir().join("libexec/bproc/bproc-keeper");
        let keeper = procs::all().into_iter().find(|process| process.exe == program).context("no keeper runs")?;
        Ok(keeper.pid)
    }

    /// The eBPF programs that the agents have attached, by their names; those that the kernel refuses are not among them.
    pub fn attached(&self) -> BTreeSet<String> {
        let pins = self.lasting.borrow();
        let links = pins.iter().filter_map(|pin| pin.rsplit_once("/link-")).map(|(_, name)| name.to_owned());
        links.collect()
    }

    /// Tells what of the kernel this cluster uses, for the tables of `cargo xtask vm`.
    pub(super) fn tell_exercised(&self) {
        if std::env::var_os("BPROC_VM").is_some() {
            self.attached().iter().for_each(|name| println!("EXERCISED cluster: eBPF program {name} attached"));
        }
    }

    /// The pid of the stdio service of an agent.
    ///
    /// # Errors
    /// There is none.
    pub fn stdio_pid(&self, role: Role) -> Result<i32> {
        let socket = match role {
            Role::Master => self.run_dir().join("iod-master.sock"),
            Role::Node(number) => self.run_dir().join(format!("node-{number}/iod.sock")),
        };
        let program = self.dir().join("libexec/bproc/bproc-iod");
        let has_it = |process: &Proc| {
            let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == socket.as_os_str().as_encoded_bytes())
        };
        let service = procs::all().into_iter().find(|process| process.exe == program && has_it(process));
        Ok(service.with_context(|| format!("no stdio service of {role:?} runs"))?.pid)
    }

    fn ghost_program(&self) -> PathBuf {
        self.dir().join("libexec/bproc/bproc-ghost")
    }

    /// The inits of the spaces on this machine.
    pub fn inits(&self) -> Vec<Proc> {
        let program = self.ghost_program();
        procs::all().into_iter().filter(|p| p.exe == program && p.is_inside() && p.inner() == 1).collect()
    }

    /// The real processes on the nodes: no init, no skeleton. Zombies are among them.
    pub fn programs(&self) -> Vec<Proc> {
        let (inits, ghost) = (self.inits(), self.ghost_program());
        let inside = |process: &Proc| inits.iter().any(|init| init.space == process.space);
        procs::all().into_iter().filter(|p| p.exe != ghost && inside(p)).collect()
    }

    /// The ghosts on the master, without the nursery.
    pub fn ghosts(&self) -> Vec<Proc> {
        let (program, nursery) = (self.ghost_program(), fs::read_to_string(self.run_dir().join("nursery.pid")));
        let nursery: i32 = nursery.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        procs::all().into_iter().filter(|p| p.exe == program && !p.is_inside() && p.pid != nursery).collect()
    }

    /// Waits until the only program that was started has its ghost.
    ///
    /// A program may run, and write, before its start is answered, and an agent that is killed until then answers nobody. Who has
    /// the answer becomes the ghost.
    ///
    /// # Errors
    /// None, or several, for a minute.
    pub fn start_is_answered(&self) -> Result<()> {
        eventually("its ghost is there", Duration::from_secs(60), || {
            let ghosts = self.ghosts();
            Ok(if ghosts.len() == 1 { Ok(()) } else { Err(format!("there are {ghosts:?}")) })
        })
    }

    /// Skeletons on the nodes that speak for nobody who lives on the master's machine.
    fn idle_skeletons(&self, lives: &dyn Fn(i32) -> bool) -> Vec<Proc> {
        let (inits, ghost) = (self.inits(), self.ghost_program());
        let inside = |process: &Proc| inits.iter().any(|init| init.space == process.space && init.pid != process.pid);
        let skeletons = procs::all().into_iter().filter(|p| p.exe == ghost && inside(p));
        skeletons.filter(|p| !lives(p.inner())).collect()
    }

    /// Waits until nothing runs on any node, no ghost is left, and nothing else is more than it was at the start.
    ///
    /// # Errors
    /// What is left after half a minute.
    pub fn quiet(&self) -> Result<()> {
        self.quiet_but_for(&|pid| Proc::read(pid).is_some())
    }

    /// The same on any machine, when these processes live on the master's.
    pub(super) fn quiet_but_for(&self, lives: &dyn Fn(i32) -> bool) -> Result<()> {
        let left = std::cell::RefCell::new(BTreeSet::new());
        let nobody = eventually("nothing runs on the nodes", Duration::from_secs(30), || {
            let known = self.client()?.processes().map_err(|error| anyhow::anyhow!("{error}"))?;
            let (programs, ghosts, skeletons) = (self.programs(), self.ghosts(), self.idle_skeletons(lives));
            if known.is_empty() && programs.is_empty() && ghosts.is_empty() && skeletons.is_empty() {
                return Ok(Ok(()));
            }
            let inner = programs.iter().chain(&skeletons).map(Proc::inner);
            left.replace(inner.chain(ghosts.iter().map(|ghost| ghost.pid)).collect());
            Ok(Err(format!(
                "left: on nodes {programs:#?}, ghosts {ghosts:#?}, skeletons of the dead {skeletons:#?}, the agent knows {known:?}"
            )))
        });
        if nobody.is_err() {
            let history = History { dir: self.dir() };
            left.take().into_iter().take(TOLD).for_each(|pid| history.tell(pid));
        }
        nobody?;
        eventually("mounts, control groups and pins are as at the start", Duration::from_secs(30), || {
            let (now, then) = (leftover::lasting(&self.name)?, self.lasting.borrow());
            Ok(if now == *then { Ok(()) } else { Err(format!("now {now:#?}, then {then:#?}")) })
        })
    }
}
