//! What is read from each format, and every mistake with its line.

use std::net::IpAddr;
use std::path::Path;

use bproc_config::{ConfigError, MachineConfig, OnMasterLoss, Resolver, Security, check};

/// Knows `manager` and `eN`, the interface eth1, the service bproc, user and group `staff`.
struct Names;

impl Resolver for Names {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(addr) = name.parse() {
            return Ok(vec![addr]);
        }
        let number = name.strip_prefix('e').and_then(|n| n.parse::<u8>().ok());
        match (name, number) {
            ("manager", _) => Ok(vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
            (_, Some(n)) => Ok(vec![IpAddr::from([10, 0, 1, n])]),
            _ => Err("no such name".into()),
        }
    }
    fn interface(&self, name: &str) -> Result<IpAddr, String> {
        if name == "eth1" { Ok(IpAddr::from([10, 0, 0, 7])) } else { Err("there is no such interface".into()) }
    }
    fn service(&self, name: &str) -> Option<u16> {
        (name == "bproc").then_some(2223)
    }
    fn user(&self, name: &str) -> Option<u32> {
        (name == "staff").then_some(50)
    }
    fn group(&self, name: &str) -> Option<u32> {
        (name == "staff").then_some(51)
    }
}

fn read_named(name: &str, text: &str) -> (Result<MachineConfig, ConfigError>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    match MachineConfig::load_with(&path, &Names) {
        Ok((config, warnings)) => {
            (Ok(config), warnings.iter().map(|w| format!("{} {}", w.origin.line, w.reason)).collect())
        }
        Err(e) => (Err(e), Vec::new()),
    }
}

fn good(name: &str, text: &str) -> MachineConfig {
    read_named(name, text).0.unwrap_or_else(|e| panic!("{e}"))
}

/// Lines of the mistakes, and their reasons one below the other.
fn bad(name: &str, text: &str) -> (Vec<usize>, String) {
    let error = read_named(name, text).0.expect_err("mistakes");
    let reasons = error.0.iter().map(|m| m.reason.clone()).collect::<Vec<_>>().join("\n");
    (error.0.iter().map(|m| m.origin.line).collect(), reasons)
}

#[test]
fn bproc_conf_of_a_real_cluster() {
    let c = good(
        "bproc.conf",
        "# Sample node configuration file.\nbind manager 2224\n# Node list\nnode  e1  e2  e3\nnode e17 # last\n",
    );
    assert_eq!(c.bind, "10.0.0.1:2224".parse().unwrap());
    let nodes: Vec<_> = c.nodes.iter().map(|n| (n.number, n.host.as_str(), n.addr.to_string())).collect();
    assert_eq!(nodes[3], (3, "e17", "10.0.1.17".into()));
    assert_eq!(nodes.len(), 4);
    assert!(matches!(c.security, Security::Tls(_)), "not on loop-back: certificates are needed");
    assert_eq!((c.ping_timeout_s, c.node_defaults.mode, c.name.as_str()), (30, 0o100, "default"));
    assert_eq!(c.run_dir, Path::new("/run/bproc.d/default"));
}

#[test]
fn bproc_conf_of_one_machine() {
    let c = good("bproc.conf", "node 127.0.0.1 127.0.0.2 127.0.0.3\n");
    assert_eq!(c.bind, "127.0.0.1:2223".parse().unwrap());
    assert_eq!(c.security, Security::Plaintext);
    assert_eq!(c.nodes.len(), 3);
}

#[test]
fn bproc_conf_tells_every_mistake() {
    let (lines, reasons) = bad(
        "bproc.conf",
        "bind manager 99999\nbind\nnode\nnode e1 nowhere e1\nnudel e2\nnode 0.0.0.0\nbind manager x\n",
    );
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 7, 4], "{reasons}");
    for part in
        ["99999 is not a port", "nowhere cannot be resolved", "nudel", "same address 10.0.1.1", "neither a port"]
    {
        assert!(reasons.contains(part), "{part}: {reasons}");
    }
}

const CLUSTERMATIC: &str = "\
bprocport bproc
interface eth1
ip 10.0.2.1 10.0.2.2
ip 7 10.0.2.9
iprange 10 10.0.3.1 10.0.3.4
master manager:3000 [fd00::9]:4000
master other
pingtimeout 12
slave timesync yes
slave privatefs no
logfacility daemon
allowinsecureports
libraries /lib/libc* /lib/libm*
librariesfrombinary /bin/ls
bootfile /boot.img
node 00:11:22:33:44:55
wibble 3
";

#[test]
fn clustermatic() {
    let (config, warnings) = read_named("clustermatic/config", CLUSTERMATIC);
    let c = config.unwrap();
    assert_eq!(c.bind, "10.0.0.7:2223".parse().unwrap());
    let nodes: Vec<_> = c.nodes.iter().map(|n| (n.number, n.addr.to_string())).collect();
    assert_eq!(nodes[..3], [(0, "10.0.2.1".into()), (1, "10.0.2.2".into()), (7, "10.0.2.9".into())]);
    assert_eq!(nodes[3..], [10, 11, 12, 13].map(|n| (n, format!("10.0.3.{}", n - 9)))[..]);
    let masters: Vec<Vec<_>> =
        c.masters.iter().map(|m| m.iter().map(|a| (a.host.as_str(), a.port)).collect()).collect();
    assert_eq!(masters, [vec![("manager", 3000), ("fd00::9", 4000)], vec![("other", 2223)]]);
    assert_eq!(c.ping_timeout_s, 12);
    assert!(c.slave.timesync && !c.slave.privatefs && c.allow_insecure_ports);
    assert_eq!(c.libraries.patterns, ["/lib/libc*", "/lib/libm*"]);
    assert_eq!(c.libraries.of_binaries, [Path::new("/bin/ls")]);
    assert_eq!(warnings, ["17 unknown tag \"wibble\" is ignored"]);
}

#[test]
fn clustermatic_tells_every_mistake() {
    let (lines, reasons) = bad(
        "clustermatic/config",
        "bprocport 0\ninterface nope\niprange 10.0.0.9 10.0.0.1\npingtimeout 1\nslave timesync maybe\n\
         iprange 0.0.0.1 255.255.255.254\nip 3 10.0.0.1\nip 3 10.0.0.2\nip 4 10.0.0.1\nmaster a:b\n\
         interface eth1 10.0.0.300\niprange 10.0.0.1\nip 99999999999 10.0.0.5\n",
    );
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 8, 9], "{reasons}");
    assert!(reasons.contains("upside down") && reasons.contains("given twice"), "{reasons}");
}

#[test]
fn formats_are_told_apart_by_content() {
    let c = good("whatever", CLUSTERMATIC);
    assert_eq!(c.nodes.len(), 7);
    assert_eq!(good("whatever", "node e1 e2\n").nodes.len(), 2);
    assert_eq!(good("whatever", "[[node]]\nhosts = [\"e1\"]\n").nodes.len(), 1);
}

const OURS: &str = r#"
name = "lab-1"
ping_timeout = 5
on_master_loss = "keep"
keep_awake = false
libexec_dir = "/opt/bproc"
[listen]
address = "manager"
port = 3333
[tls]
ca = "/c/ca.pem"
cert = "/c/me.pem"
key = "/c/me-key.pem"
[pids]
boundary = 100_000
lease_block = 0x200
[node_defaults]
mode = "0111"
user = "staff"
group = 7
[stdio]
port = 3334
flush_timeout = 9
[libraries]
patterns = ["/lib/*.so"]
[[master]]
addresses = ["manager:3333"]
[[node]]
hosts = ["e1", "e2"]
[[node]]
number = 10
first = "10.0.9.1"
last = "10.0.9.3"
"#;

#[test]
fn ours_with_drop_ins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, OURS).unwrap();
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(dir.path().join("conf.d/20-b.toml"), "ping_timeout = 8\n[[node]]\nhosts = [\"e9\"]\n").unwrap();
    std::fs::write(dir.path().join("conf.d/10-a.toml"), "ping_timeout = 7\n").unwrap();
    std::fs::write(dir.path().join("conf.d/10-a.toml.bak"), "junk").unwrap();
    let (c, warnings) = MachineConfig::load_with(&path, &Names).unwrap_or_else(|e| panic!("{e}"));
    assert!(warnings.is_empty());
    assert_eq!((c.name.as_str(), c.ping_timeout_s, c.on_master_loss), ("lab-1", 8, OnMasterLoss::Keep));
    assert!(!c.keep_awake && good("whatever", "[[node]]\nhosts = [\"e1\"]\n").keep_awake);
    assert_eq!(c.bind, "10.0.0.1:3333".parse().unwrap());
    assert_eq!(c.stdio.bind, "10.0.0.1:3334".parse().unwrap());
    assert_eq!((c.stdio.flush_timeout_s, c.pids.boundary, c.pids.lease_block), (9, 100_000, 512));
    assert_eq!((c.node_defaults.mode, c.node_defaults.uid, c.node_defaults.gid), (0o111, 50, 7));
    assert_eq!(c.nodes.iter().map(|n| n.number).collect::<Vec<_>>(), [0, 1, 10, 11, 12, 13]);
    assert_eq!(c.run_dir, Path::new("/run/bproc.d/lab-1"));
    assert_eq!(c.security.tls().unwrap().key, Path::new("/c/me-key.pem"));
}

#[test]
fn ours_tells_every_mistake() {
    let (lines, reasons) = bad(
        "agent.toml",
        "name = \"Big\"\nping_timeout = 1\nspeed = 3\nrun_dir = \"here\"\n[listen]\naddress = \"nowhere\"\nport = 70000\n\
         [node_defaults]\nmode = \"99\"\nuser = \"nobody-at-all\"\n[[node]]\nhosts = [\"e1\", 5]\n[[node]]\nfirst = \"e1\"\n\
         [pids]\nboundary = 4194304\n",
    );
    assert_eq!(lines, [1, 4, 2, 6, 7, 16 - 7, 10, 12, 14, 3, 16], "{reasons}");
}

#[test]
fn broken_toml_is_told_with_its_lines() {
    let (lines, _) = bad("agent.toml", "name = \nport == 3\n\n[listen\n");
    assert!(lines.contains(&1) && lines.contains(&2) && lines.contains(&4), "{lines:?}");
}

#[test]
fn plaintext_beyond_loop_back_is_refused() {
    let (lines, reasons) = bad("agent.toml", "[listen]\naddress = \"10.0.0.1\"\n[tls]\nplaintext = true\n");
    assert_eq!(lines, [4]);
    assert!(reasons.contains("only where machines listen on a loop-back address"), "{reasons}");
    let (lines, _) = bad(
        "agent.toml",
        "[listen]\naddress = \"127.0.0.1\"\n[stdio]\naddress = \"10.0.0.1\"\n[tls]\nplaintext = true\n",
    );
    assert_eq!(lines, [6]);
    let c = good("agent.toml", "[listen]\naddress = \"127.0.0.1\"\n[tls]\nplaintext = true\n");
    assert_eq!(c.security, Security::Plaintext);
}

#[test]
fn foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("big.toml");
    std::fs::write(&big, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(check(&big).to_string().contains("larger"));
    let binary = dir.path().join("binary.conf");
    std::fs::write(&binary, b"node e1\n\xff\xfe").unwrap();
    assert!(check(&binary).to_string().contains("line 2 is not UTF-8"));
    assert!(!check(dir.path()).is_good());
    assert!(!check(&dir.path().join("absent")).is_good());
    // Bytes of every kind in every format: an answer, never a panic.
    let mut x = 88_172_645_463_325_252u64;
    for round in 0..600 {
        let mut text = match round % 3 {
            0 => OURS.to_owned(),
            1 => CLUSTERMATIC.to_owned(),
            _ => "bind manager 2\nnode e1 e2\n".to_owned(),
        }
        .into_bytes();
        for _ in 0..1 + round % 5 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = x as usize % text.len();
            text[at] = [b'\n', b'"', b'=', b'[', b' ', b'9', b'-', b'#', b'\t', b'z'][(x >> 32) as usize % 10];
        }
        let name = if round % 3 == 0 { "agent.toml" } else { "config" };
        let path = dir.path().join(name);
        std::fs::write(&path, &text).unwrap();
        let _ = MachineConfig::load_with(&path, &Names);
    }
}

#[test]
fn check_looks_at_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    bproc_config::certs::make_cluster_certs(&certs, "default", &[0]).unwrap();
    let at = |name: &str| certs.join(name).display().to_string();
    let text = |key: &str| {
        format!(
            "[listen]\naddress = \"127.0.0.1\"\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n[[node]]\nhosts = [\"127.0.0.2\"]\n",
            at("ca.pem"),
            at("master.pem"),
            at(key)
        )
    };
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text("master-key.pem")).unwrap();
    let report = check(&path);
    assert!(report.is_good(), "{report}");
    assert!(report.to_string().contains("mutual TLS"), "{report}");
    std::fs::write(&path, text("node-0-key.pem")).unwrap();
    assert!(check(&path).to_string().contains("error:"), "key of another certificate");
    std::fs::write(&path, text("nothing.pem")).unwrap();
    assert!(check(&path).to_string().contains("nothing.pem"));
}
