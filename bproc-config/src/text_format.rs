//! The two old formats, lines of words: `/etc/bproc.conf` and `/etc/clustermatic/config`.

use std::path::Path;
use std::sync::Arc;

use crate::draft::Draft;
use crate::machine::{DEFAULT_PORT, MasterAddress};
use crate::mistake::{Findings, Origin};
use crate::resolve::Resolver;

/// Which format a file has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Toml,
    BprocConf,
    Clustermatic,
}

/// Tags of the boot system that shared the file; they have no meaning here.
const BOOT_TAGS: &[&str] = &[
    "bootfile",
    "bootport",
    "bootmodule",
    "modarg",
    "modules",
    "insmod",
    "kernel",
    "kernelimage",
    "kernelcommandline",
    "initrd",
    "image",
    "node",
    "nodeassign",
    "unknown",
    "mac",
    "rarp",
    "rarpport",
    "pci",
    "fsck",
    "mkfs",
    "mkpart",
    "setupfs",
    "nodeinfo",
    "appliance",
    "linuxbios",
    "hardreboot",
    "sendfile",
];
const TAGS: &[&str] = &[
    "bprocport",
    "interface",
    "ip",
    "iprange",
    "master",
    "pingtimeout",
    "slave",
    "logfacility",
    "allowinsecureports",
    "libraries",
    "librariesfrombinary",
];

/// Lines that say something: their place and words.
fn lines<'a>(path: &Path, text: &'a str) -> impl Iterator<Item = (Origin, Vec<&'a str>)> {
    let file: Arc<Path> = path.into();
    text.lines().enumerate().filter_map(move |(i, line)| {
        let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
        (!words.is_empty()).then(|| (Origin { file: file.clone(), line: i + 1 }, words))
    })
}

fn is_mac(word: &str) -> bool {
    let parts: Vec<&str> = word.split(':').collect();
    parts.len() == 6 && parts.iter().all(|p| (1..=2).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl Format {
    /// By name where the name tells, else by content.
    pub(crate) fn of(path: &Path, text: &str) -> Format {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".toml") {
            return Format::Toml;
        }
        let mut bproc_conf = 0;
        for (_, words) in lines(path, text) {
            let tag = words[0].to_ascii_lowercase();
            if tag.starts_with('[') || tag.contains('=') || words.get(1).is_some_and(|w| w.starts_with('=')) {
                return Format::Toml;
            }
            if tag == "bind" || tag == "node" && words.get(1).is_some_and(|w| !is_mac(w)) {
                bproc_conf += 1;
            } else if TAGS.contains(&tag.as_str()) {
                return Format::Clustermatic;
            }
        }
        if bproc_conf == 0 && path.components().any(|c| c.as_os_str() == "clustermatic") {
            Format::Clustermatic
        } else {
            Format::BprocConf
        }
    }
}

/// `host[:port]`, IPv6 in brackets where a port follows.
pub(crate) fn host_port(text: &str) -> Result<MasterAddress, String> {
    let bad = || format!("{text} is not HOST or HOST:PORT");
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or_else(bad)?),
        };
        (host, port)
    } else {
        match text.split_once(':') {
            // More than one colon: an IPv6 address without a port.
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err(bad());
    }
    Ok(MasterAddress { host: host.into(), port: port.map_or(Ok(DEFAULT_PORT), port_number)? })
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text} is not a port: a number from 1 to 65535 is wanted")),
    }
}

pub(crate) fn read_bproc_conf(
    path: &Path,
    text: &str,
    draft: &mut Draft,
    resolver: &dyn Resolver,
    findings: &mut Findings,
) {
    for (at, words) in lines(path, text) {
        match words[0] {
            "bind" => {
                if !(2..=3).contains(&words.len()) {
                    findings.mistake(&at, "bind wants a host and a port: bind HOST PORT");
                    continue;
                }
                if let Some((_, first)) = &draft.bind_addr {
                    findings.mistake(&at, format!("bind is given twice; first at {first}"));
                }
                bind_host(words[1], &at, draft, resolver, findings);
                if let Some(port) = words.get(2) {
                    set_port(port, &at, draft, resolver, findings);
                }
            }
            "node" => {
                if words.len() == 1 {
                    findings.mistake(&at, "node wants at least one host: node HOST...");
                }
                for host in &words[1..] {
                    draft.add_node(None, host, &at, resolver, findings);
                }
            }
            other => findings.mistake(&at, format!("unknown word {other:?}: a line begins with bind or node")),
        }
    }
    if draft.nodes.is_empty() && findings.mistakes.is_empty() {
        findings.mistake(&draft.main, "no node is given: a line `node HOST...` is wanted");
    }
}

fn bind_host(host: &str, at: &Origin, draft: &mut Draft, resolver: &dyn Resolver, findings: &mut Findings) {
    match resolver.host(host) {
        Ok(found) => match found.iter().find(|a| a.is_ipv4()).or(found.first()) {
            Some(addr) => draft.bind_addr = Some((*addr, at.clone())),
            None => findings.mistake(at, format!("host {host} has no address")),
        },
        Err(why) => findings.mistake(at, format!("host {host} cannot be resolved: {why}")),
    }
}

fn set_port(text: &str, at: &Origin, draft: &mut Draft, resolver: &dyn Resolver, findings: &mut Findings) {
    let numeric = text.bytes().all(|b| b.is_ascii_digit());
    let port = match (numeric, resolver.service(text)) {
        (false, Some(port)) => Ok(port),
        (false, None) => Err(format!("{text} is neither a port from 1 to 65535 nor a known TCP service")),
        (true, _) => port_number(text),
    };
    match port {
        Ok(port) => draft.port = Some((port, at.clone())),
        Err(why) => findings.mistake(at, why),
    }
}

pub(crate) fn read_clustermatic(
    path: &Path,
    text: &str,
    draft: &mut Draft,
    resolver: &dyn Resolver,
    findings: &mut Findings,
) {
    for (at, words) in lines(path, text) {
        let tag = words[0].to_ascii_lowercase();
        clustermatic_line(&tag, &words[1..], &at, draft, resolver, findings);
    }
}

/// Splits a leading node number off.
fn numbered<'a, 'b>(words: &'b [&'a str], wanted: usize) -> (Option<&'a str>, &'b [&'a str]) {
    let first_is_number = words.first().is_some_and(|w| w.bytes().all(|b| b.is_ascii_digit()));
    if first_is_number && words.len() > wanted { (Some(words[0]), &words[1..]) } else { (None, words) }
}

fn node_number(text: Option<&str>, at: &Origin, findings: &mut Findings) -> Result<Option<i32>, ()> {
    match text.map(str::parse::<i32>) {
        None => Ok(None),
        Some(Ok(n)) => Ok(Some(n)),
        Some(Err(_)) => {
            findings.mistake(at, format!("{} is not a node number", text.unwrap_or_default()));
            Err(())
        }
    }
}

fn clustermatic_line(
    tag: &str,
    args: &[&str],
    at: &Origin,
    draft: &mut Draft,
    resolver: &dyn Resolver,
    findings: &mut Findings,
) {
    match (tag, args) {
        ("bprocport", [port]) => set_port(port, at, draft, resolver, findings),
        ("bprocport", _) => findings.mistake(at, "bprocport wants one port number or service"),
        ("interface", [name]) => match resolver.interface(name) {
            Ok(addr) => draft.bind_addr = Some((addr, at.clone())),
            Err(why) => findings.mistake(at, format!("interface {name}: {why}")),
        },
        // The address of the interface may be said; then the interface need not be up yet.
        ("interface", [_, ip] | [_, ip, _]) => {
            match ip.parse() {
                Ok(ip) => draft.bind_addr = Some((ip, at.clone())),
                Err(_) => findings.mistake(at, format!("{ip} is not an IP address")),
            }
            if let Some(mask) = args.get(2).filter(|m| !is_mask(m)) {
                findings.mistake(at, format!("{mask} is not a network mask"));
            }
        }
        ("interface", _) => findings.mistake(at, "interface wants a name: interface IF [ADDRESS MASK]"),
        ("ip", []) => findings.mistake(at, "ip wants at least one address: ip [NODE] ADDRESS..."),
        ("ip", args) => {
            let (number, addrs) = numbered(args, 1);
            let Ok(mut number) = node_number(number, at, findings) else {
                return;
            };
            for addr in addrs {
                draft.add_node(number, addr, at, resolver, findings);
                number = number.map(|n| n.saturating_add(1));
            }
        }
        ("iprange", args) => match numbered(args, 2) {
            (number, [first, last]) => {
                let Ok(number) = node_number(number, at, findings) else {
                    return;
                };
                draft.add_range(number, first, last, at, findings);
            }
            _ => findings.mistake(at, "iprange wants two addresses: iprange [NODE] FIRST LAST"),
        },
        ("master", []) => findings.mistake(at, "master wants at least one host: master HOST[:PORT]..."),
        ("master", hosts) => {
            let mut addresses = Vec::new();
            for host in hosts {
                match host_port(host) {
                    Ok(address) => addresses.push(address),
                    Err(why) => findings.mistake(at, why),
                }
            }
            draft.masters.push(addresses);
        }
        ("pingtimeout", [text]) => match text.parse::<u32>() {
            Ok(s) if (2..=86_400).contains(&s) => draft.ping_timeout_s = Some((s, at.clone())),
            _ => findings.mistake(at, format!("pingtimeout {text}: 2 to 86400 seconds are wanted")),
        },
        ("pingtimeout", _) => findings.mistake(at, "pingtimeout wants one number of seconds"),
        ("slave", [what, yes_no]) => match (*what, yes_or_no(yes_no)) {
            ("timesync", Some(on)) => draft.slave.timesync = on,
            ("privatefs", Some(on)) => draft.slave.privatefs = on,
            ("timesync" | "privatefs", None) => findings.mistake(at, format!("slave {what}: yes or no is wanted")),
            _ => findings.mistake(at, format!("slave {what}: timesync or privatefs is wanted")),
        },
        ("slave", _) => findings.mistake(at, "slave wants two words: slave timesync|privatefs yes|no"),
        ("logfacility", [_]) => tracing::debug!("{at}: logfacility is left to the journal"),
        ("logfacility", _) => findings.mistake(at, "logfacility wants one facility"),
        ("allowinsecureports", []) => draft.allow_insecure_ports = true,
        ("allowinsecureports", [word]) if yes_or_no(word).is_some() => {
            draft.allow_insecure_ports = yes_or_no(word) == Some(true);
        }
        ("allowinsecureports", _) => findings.mistake(at, "allowinsecureports wants yes or no, or nothing"),
        ("libraries", patterns) => draft.libraries.patterns.extend(patterns.iter().map(|p| p.to_string())),
        ("librariesfrombinary", files) => draft.libraries.of_binaries.extend(files.iter().map(Into::into)),
        (tag, _) if BOOT_TAGS.contains(&tag) => {
            tracing::debug!("{at}: {tag} concerns booting; ignored")
        }
        (tag, _) => findings.warning(at, format!("unknown tag {tag:?} is ignored")),
    }
}

pub(crate) fn yes_or_no(word: &str) -> Option<bool> {
    match word {
        "yes" | "on" | "true" | "1" => Some(true),
        "no" | "off" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn is_mask(text: &str) -> bool {
    text.parse::<std::net::Ipv4Addr>().is_ok_and(|m| {
        let raw = u32::from(m);
        raw.leading_ones() + raw.trailing_zeros() == 32
    })
}
