//! A configuration in the making: what files have said so far, each with its place, and the checks that need more
//! than one line.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::machine::{
    Cache, DEFAULT_PORT, Libraries, MAX_NODES, MachineConfig, MasterAddress, NodeDefaults, NodeEntry, OnMasterLoss,
    Pids, Security, SlaveOptions, Stdio,
};
use crate::mistake::{Findings, Origin};
use crate::paths;
use crate::resolve::Resolver;
use crate::tls::TlsFiles;

/// A value and where it was said.
pub(crate) type Said<T> = Option<(T, Origin)>;

pub(crate) struct Draft {
    pub(crate) main: Origin,
    pub(crate) name: Said<String>,
    pub(crate) run_dir: Said<PathBuf>,
    pub(crate) bind_addr: Said<IpAddr>,
    pub(crate) port: Said<u16>,
    pub(crate) nodes: Vec<(NodeEntry, Origin)>,
    /// The number that follows the highest so far.
    next_number: i32,
    pub(crate) masters: Vec<Vec<MasterAddress>>,
    pub(crate) ping_timeout_s: Said<u32>,
    pub(crate) libraries: Libraries,
    pub(crate) tls_ca: Said<PathBuf>,
    pub(crate) tls_cert: Said<PathBuf>,
    pub(crate) tls_key: Said<PathBuf>,
    pub(crate) plaintext: Said<bool>,
    pub(crate) boundary: Said<i32>,
    pub(crate) lease_block: Said<i32>,
    pub(crate) node_defaults: NodeDefaults,
    pub(crate) node_up: Said<PathBuf>,
    pub(crate) libexec_dir: Said<PathBuf>,
    pub(crate) on_master_loss: Said<OnMasterLoss>,
    pub(crate) keep_awake: Said<bool>,
    pub(crate) stdio_addr: Said<IpAddr>,
    pub(crate) stdio_port: Said<u16>,
    pub(crate) flush_timeout_s: Said<u32>,
    pub(crate) slave: SlaveOptions,
    pub(crate) root: Said<PathBuf>,
    pub(crate) cache_dir: Said<PathBuf>,
    pub(crate) cache_megabytes: Said<u32>,
    pub(crate) cache_fan_out: Said<u32>,
    pub(crate) allow_insecure_ports: bool,
}

fn value<T: Clone>(said: &Said<T>) -> Option<T> {
    said.as_ref().map(|(v, _)| v.clone())
}

impl Draft {
    pub(crate) fn new(main: &Path) -> Draft {
        Draft {
            main: Origin { file: main.into(), line: 0 },
            name: None,
            run_dir: None,
            bind_addr: None,
            port: None,
            nodes: Vec::new(),
            next_number: 0,
            masters: Vec::new(),
            ping_timeout_s: None,
            libraries: Libraries::default(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            plaintext: None,
            boundary: None,
            lease_block: None,
            node_defaults: NodeDefaults { mode: 0o100, uid: 0, gid: 0 },
            node_up: None,
            libexec_dir: None,
            on_master_loss: None,
            keep_awake: None,
            stdio_addr: None,
            stdio_port: None,
            flush_timeout_s: None,
            slave: SlaveOptions::default(),
            root: None,
            cache_dir: None,
            cache_megabytes: None,
            cache_fan_out: None,
            allow_insecure_ports: false,
        }
    }

    /// Resolves `host` and adds it as a node; `number` none is the next one.
    pub(crate) fn add_node(
        &mut self,
        number: Option<i32>,
        host: &str,
        origin: &Origin,
        resolver: &dyn Resolver,
        findings: &mut Findings,
    ) {
        let number = number.unwrap_or(self.next_number);
        match resolver.host(host) {
            Ok(found) => match found.iter().find(|a| a.is_ipv4()).or(found.first()) {
                Some(addr) => self.add_address(number, host, *addr, origin, findings),
                None => findings.mistake(origin, format!("node {number}: host {host} has no address")),
            },
            Err(why) => {
                findings.mistake(origin, format!("node {number}: host {host} cannot be resolved: {why}"));
            }
        }
    }

    /// Adds a node whose address is known.
    pub(crate) fn add_address(
        &mut self,
        number: i32,
        host: &str,
        addr: IpAddr,
        origin: &Origin,
        findings: &mut Findings,
    ) {
        if addr.is_unspecified() || addr.is_multicast() || addr == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return findings.mistake(origin, format!("node {number}: {addr} is no machine's address"));
        }
        if !(0..MAX_NODES as i32).contains(&number) {
            return findings.mistake(origin, format!("node number {number}: numbers go from 0 to {}", MAX_NODES - 1));
        }
        self.next_number = self.next_number.max(number + 1);
        self.nodes.push((NodeEntry { number, host: host.into(), addr }, origin.clone()));
    }

    /// Adds the addresses `first` to `last` as nodes from `number` on.
    pub(crate) fn add_range(
        &mut self,
        number: Option<i32>,
        first: &str,
        last: &str,
        origin: &Origin,
        findings: &mut Findings,
    ) {
        let mut number = number.unwrap_or(self.next_number);
        let mut bad = |text: &str| findings.mistake(origin, format!("{text} is not an IPv4 address"));
        let (a, b) = match (first.parse::<Ipv4Addr>(), last.parse::<Ipv4Addr>()) {
            (Ok(a), Ok(b)) => (u32::from(a), u32::from(b)),
            (a, b) => {
                if a.is_err() {
                    bad(first);
                }
                if b.is_err() {
                    bad(last);
                }
                return;
            }
        };
        if a > b {
            return findings
                .mistake(origin, format!("the range is upside down: {first} comes after {last}; swap the two"));
        }
        if (b - a) as usize >= MAX_NODES {
            return findings
                .mistake(origin, format!("the range {first} to {last} has more than {MAX_NODES} addresses"));
        }
        for raw in a..=b {
            let addr = Ipv4Addr::from(raw);
            self.add_address(number, &addr.to_string(), IpAddr::V4(addr), origin, findings);
            number = number.saturating_add(1);
        }
    }

    /// Checks what needs the whole, and fills in what nobody said. `None` only with mistakes.
    pub(crate) fn finish(mut self, findings: &mut Findings) -> Option<MachineConfig> {
        self.check_nodes(findings);
        let name = value(&self.name).unwrap_or_else(|| paths::DEFAULT_CLUSTER.into());
        let only_here = !self.nodes.is_empty() && self.nodes.iter().all(|(n, _)| n.addr.is_loopback());
        let address = value(&self.bind_addr).unwrap_or(IpAddr::V4(if only_here {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        }));
        let stdio_address = value(&self.stdio_addr).unwrap_or(address);
        let security = self.security(&[(address, &self.bind_addr), (stdio_address, &self.stdio_addr)], findings);
        let pids = Pids {
            boundary: value(&self.boundary).unwrap_or(1 << 20),
            lease_block: value(&self.lease_block).unwrap_or(4096),
        };
        if i64::from(pids.boundary) + i64::from(pids.lease_block) > 1 << 22 {
            let origin = self.boundary.as_ref().or(self.lease_block.as_ref()).map_or(&self.main, |(_, o)| o);
            findings.mistake(
                origin,
                format!("pids end at 4194304: a boundary of {} leaves no room for one block of leases", pids.boundary),
            );
        }
        if !findings.mistakes.is_empty() {
            return None;
        }
        self.nodes.sort_by_key(|(n, _)| n.number);
        Some(MachineConfig {
            run_dir: value(&self.run_dir).unwrap_or_else(|| paths::run_dir(&name)),
            root: value(&self.root).unwrap_or_else(|| "/".into()),
            cache: Cache {
                dir: value(&self.cache_dir).unwrap_or_else(|| paths::cache_dir(&name)),
                limit: u64::from(value(&self.cache_megabytes).unwrap_or(1024)) << 20,
                fan_out: value(&self.cache_fan_out).unwrap_or(2),
            },
            name,
            bind: SocketAddr::new(address, value(&self.port).unwrap_or(DEFAULT_PORT)),
            nodes: self.nodes.into_iter().map(|(n, _)| n).collect(),
            masters: self.masters,
            ping_timeout_s: value(&self.ping_timeout_s).unwrap_or(30),
            libraries: self.libraries,
            security,
            pids,
            node_defaults: self.node_defaults,
            node_up: value(&self.node_up).unwrap_or_else(|| "/etc/bproc/node_up".into()),
            libexec_dir: value(&self.libexec_dir).unwrap_or_else(|| "/usr/libexec/bproc".into()),
            on_master_loss: value(&self.on_master_loss).unwrap_or(OnMasterLoss::End),
            keep_awake: value(&self.keep_awake).unwrap_or(true),
            stdio: Stdio {
                bind: SocketAddr::new(stdio_address, value(&self.stdio_port).unwrap_or(0)),
                flush_timeout_s: value(&self.flush_timeout_s).unwrap_or(30),
            },
            slave: self.slave,
            allow_insecure_ports: self.allow_insecure_ports,
        })
    }

    fn check_nodes(&self, findings: &mut Findings) {
        let mut by_addr: HashMap<IpAddr, (i32, &Origin)> = HashMap::new();
        let mut by_number: HashMap<i32, &Origin> = HashMap::new();
        for (node, origin) in &self.nodes {
            if let Some(first) = by_number.insert(node.number, origin) {
                findings.mistake(origin, format!("node number {} is given twice; first at {first}", node.number));
            } else if let Some((other, first)) = by_addr.get(&node.addr) {
                findings.mistake(
                    origin,
                    format!(
                        "nodes {other} and {} have the same address {} (node {other}: {first}); each node needs its own",
                        node.number, node.addr
                    ),
                );
            }
            by_addr.entry(node.addr).or_insert((node.number, origin));
        }
    }

    fn security(&self, binds: &[(IpAddr, &Said<IpAddr>)], findings: &mut Findings) -> Security {
        let tls_said = self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_key.is_some();
        let open = binds.iter().find(|(addr, _)| !addr.is_loopback());
        let plaintext = match &self.plaintext {
            Some((true, origin)) => {
                if let Some((addr, said)) = open {
                    let at = said.as_ref().map_or("by default".into(), |(_, o)| format!("at {o}"));
                    findings.mistake(
                        origin,
                        format!(
                            "plaintext is allowed only where machines listen on a loop-back address, not on {addr} \
                             ({at}): anyone in the network could run processes here; give certificates in [tls]"
                        ),
                    );
                }
                if tls_said {
                    findings.mistake(origin, "plaintext and certificates exclude each other; drop one of them");
                }
                true
            }
            Some((false, _)) => false,
            None => open.is_none() && !tls_said,
        };
        if plaintext {
            return Security::Plaintext;
        }
        let file = |said: &Said<PathBuf>, default: &str| value(said).unwrap_or_else(|| default.into());
        Security::Tls(TlsFiles {
            ca: file(&self.tls_ca, "/etc/bproc/tls/ca.pem"),
            cert: file(&self.tls_cert, "/etc/bproc/tls/cert.pem"),
            key: file(&self.tls_key, "/etc/bproc/tls/key.pem"),
        })
    }
}
