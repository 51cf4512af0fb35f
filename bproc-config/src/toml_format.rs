//! Our own format: `agent.toml`, then `conf.d/*.toml` beside it in the order of their names. A later file overrides
//! single values; nodes, masters and libraries add up. `bproc-agent check-config` prints what came out.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::draft::Draft;
use crate::machine::OnMasterLoss;
use crate::mistake::{Findings, Origin};
use crate::paths;
use crate::resolve::Resolver;
use crate::text_format::host_port;

/// More drop-ins are refused.
const MAX_DROP_INS: usize = 1000;

/// Drop-ins of the file at `path`.
pub(crate) fn drop_ins(path: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    let dir = path.with_file_name("conf.d");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .take(MAX_DROP_INS + 1)
        .collect();
    if found.len() > MAX_DROP_INS {
        let origin = Origin { file: dir.into(), line: 0 };
        findings.mistake(&origin, format!("holds more than {MAX_DROP_INS} files"));
        return Vec::new();
    }
    found.sort();
    found
}

/// Reads one file into `draft`.
pub(crate) fn read(path: &Path, text: &str, draft: &mut Draft, resolver: &dyn Resolver, findings: &mut Findings) {
    let line_ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i).collect();
    let mut reader = Reader { file: path.into(), line_ends, resolver, findings };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = reader.at(error.span().map_or(0, |s| s.start));
        reader.findings.mistake(&at, error.message().trim_end().replace('\n', "; "));
    }
    // After a broken line the rest means something else: its mistakes would mislead.
    if errors.is_empty() {
        reader.top(document.get_ref(), draft);
    }
}

struct Reader<'a> {
    file: Arc<Path>,
    /// Offsets of the line ends.
    line_ends: Vec<usize>,
    resolver: &'a dyn Resolver,
    findings: &'a mut Findings,
}

/// A table whose keys are taken one after the other; what is left over at the end is unknown.
struct Section<'t, 'i> {
    name: &'static str,
    table: &'t DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'t, 'i> Section<'t, 'i> {
    fn new(name: &'static str, table: &'t DeTable<'i>) -> Self {
        Section { name, table, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.get(key)
    }
}

impl Reader<'_> {
    fn at(&self, offset: usize) -> Origin {
        let line = 1 + self.line_ends.partition_point(|end| *end < offset);
        Origin { file: self.file.clone(), line }
    }

    fn close(&mut self, section: Section<'_, '_>) {
        for key in section.table.keys() {
            if !section.known.iter().any(|k| *k == key.get_ref()) {
                let place = if section.name.is_empty() { String::new() } else { format!(" in [{}]", section.name) };
                let at = self.at(key.span().start);
                let reason = format!("unknown key {:?}{place}; known are {}", key.get_ref(), section.known.join(", "));
                self.findings.mistake(&at, reason);
            }
        }
    }

    /// Takes a value and turns it by `turn`, which says what is wanted when it does not fit.
    fn get<T>(
        &mut self,
        section: &mut Section<'_, '_>,
        key: &'static str,
        turn: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<(T, Origin)> {
        let value = section.take(key)?;
        let at = self.at(value.span().start);
        match turn(value.get_ref()) {
            Ok(good) => Some((good, at)),
            Err(why) => {
                self.findings.mistake(&at, format!("{key}: {why}"));
                None
            }
        }
    }

    fn section<'t, 'i>(
        &mut self,
        parent: &mut Section<'t, 'i>,
        key: &'static str,
        use_it: impl FnOnce(&mut Self, &mut Section<'t, 'i>),
    ) {
        let Some(value) = parent.take(key) else {
            return;
        };
        match value.get_ref().as_table() {
            Some(table) => {
                let mut section = Section::new(key, table);
                use_it(self, &mut section);
                self.close(section);
            }
            None => {
                let at = self.at(value.span().start);
                self.findings.mistake(&at, format!("{key}: a table [{key}] is wanted"));
            }
        }
    }

    fn strings(&mut self, section: &mut Section<'_, '_>, key: &'static str) -> Vec<(String, Origin)> {
        let Some(value) = section.take(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            let at = self.at(value.span().start);
            self.findings.mistake(&at, format!("{key}: a list of strings is wanted"));
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in array.iter() {
            let at = self.at(item.span().start);
            match item.get_ref().as_str() {
                Some(text) => out.push((text.into(), at)),
                None => self.findings.mistake(&at, format!("{key}: a string is wanted")),
            }
        }
        out
    }

    fn top(&mut self, table: &DeTable<'_>, draft: &mut Draft) {
        let s = &mut Section::new("", table);
        let resolver = self.resolver;
        keep(&mut draft.name, self.get(s, "name", cluster_name));
        keep(&mut draft.run_dir, self.get(s, "run_dir", absolute));
        keep(&mut draft.ping_timeout_s, self.get(s, "ping_timeout", |v| number(v, 2, 86_400)));
        keep(&mut draft.node_up, self.get(s, "node_up", absolute));
        keep(&mut draft.libexec_dir, self.get(s, "libexec_dir", absolute));
        keep(&mut draft.on_master_loss, self.get(s, "on_master_loss", master_loss));
        keep(&mut draft.keep_awake, self.get(s, "keep_awake", boolean));
        self.section(s, "listen", |r, s| {
            keep(&mut draft.bind_addr, r.get(s, "address", |v| address(v, resolver)));
            keep(&mut draft.port, r.get(s, "port", |v| number(v, 1, 65_535)));
        });
        self.section(s, "tls", |r, s| {
            keep(&mut draft.tls_ca, r.get(s, "ca", absolute));
            keep(&mut draft.tls_cert, r.get(s, "cert", absolute));
            keep(&mut draft.tls_key, r.get(s, "key", absolute));
            keep(&mut draft.plaintext, r.get(s, "plaintext", boolean));
        });
        self.section(s, "pids", |r, s| {
            keep(&mut draft.boundary, r.get(s, "boundary", |v| number(v, 1000, 4_194_304)));
            keep(&mut draft.lease_block, r.get(s, "lease_block", |v| number(v, 16, 1_048_576)));
        });
        self.section(s, "node_defaults", |r, s| {
            if let Some((mode, _)) = r.get(s, "mode", octal_mode) {
                draft.node_defaults.mode = mode;
            }
            if let Some((uid, _)) = r.get(s, "user", |v| id(v, "user", |n| resolver.user(n))) {
                draft.node_defaults.uid = uid;
            }
            if let Some((gid, _)) = r.get(s, "group", |v| id(v, "group", |n| resolver.group(n))) {
                draft.node_defaults.gid = gid;
            }
        });
        self.section(s, "stdio", |r, s| {
            keep(&mut draft.stdio_addr, r.get(s, "address", |v| address(v, resolver)));
            keep(&mut draft.stdio_port, r.get(s, "port", |v| number(v, 0, 65_535)));
            keep(&mut draft.flush_timeout_s, r.get(s, "flush_timeout", |v| number(v, 0, 86_400)));
        });
        self.section(s, "libraries", |r, s| {
            draft.libraries.patterns.extend(r.strings(s, "patterns").into_iter().map(|(p, _)| p));
            draft.libraries.of_binaries.extend(r.strings(s, "of_binaries").into_iter().map(|(p, _)| p.into()));
        });
        self.section(s, "slave", |r, s| {
            if let Some((on, _)) = r.get(s, "timesync", boolean) {
                draft.slave.timesync = on;
            }
            if let Some((on, _)) = r.get(s, "privatefs", boolean) {
                draft.slave.privatefs = on;
            }
            keep(&mut draft.root, r.get(s, "root", absolute));
        });
        self.section(s, "cache", |r, s| {
            keep(&mut draft.cache_dir, r.get(s, "directory", absolute));
            keep(&mut draft.cache_megabytes, r.get(s, "megabytes", |v| number(v, 1, 1 << 30)));
            keep(&mut draft.cache_fan_out, r.get(s, "fan_out", |v| number(v, 1, 65_536)));
        });
        self.each_table(s, "master", |r, s| {
            let mut addresses = Vec::new();
            for (text, at) in r.strings(s, "addresses") {
                match host_port(&text) {
                    Ok(address) => addresses.push(address),
                    Err(why) => r.findings.mistake(&at, why),
                }
            }
            if addresses.is_empty() {
                let at = r.at(s.table.values().next().map_or(0, |v| v.span().start));
                r.findings.mistake(&at, "master: addresses = [\"HOST:PORT\", ...] is wanted");
            }
            draft.masters.push(addresses);
        });
        self.each_table(s, "node", |r, s| r.node(s, draft));
        let whole = std::mem::replace(s, Section::new("", table));
        self.close(whole);
    }

    /// `[[node]]`: `hosts`, or `first` and `last`; `number` is that of the first.
    fn node(&mut self, s: &mut Section<'_, '_>, draft: &mut Draft) {
        let start = s.table.values().map(|v| v.span().start).min().unwrap_or(0);
        let at = self.at(start);
        let mut next = self.get(s, "number", |v| number::<i32>(v, 0, 65_535)).map(|(n, _)| n);
        let hosts = self.strings(s, "hosts");
        let first = self.get(s, "first", string);
        let last = self.get(s, "last", string);
        match (hosts.is_empty(), first, last) {
            (false, None, None) => {
                for (host, at) in hosts {
                    draft.add_node(next, &host, &at, self.resolver, self.findings);
                    next = next.map(|n| n.saturating_add(1));
                }
            }
            (true, Some((first, at)), Some((last, _))) => draft.add_range(next, &first, &last, &at, self.findings),
            _ => self
                .findings
                .mistake(&at, "node: either hosts = [\"HOST\", ...], or first = \"ADDRESS\" with last = \"ADDRESS\""),
        }
    }

    fn each_table<'t, 'i>(
        &mut self,
        parent: &mut Section<'t, 'i>,
        key: &'static str,
        mut use_it: impl FnMut(&mut Self, &mut Section<'t, 'i>),
    ) {
        let Some(value) = parent.take(key) else {
            return;
        };
        let items = value.get_ref().as_array().map(|a| a.iter().collect()).unwrap_or_else(|| vec![value]);
        for item in items {
            match item.get_ref().as_table() {
                Some(table) => {
                    let mut section = Section::new(key, table);
                    use_it(self, &mut section);
                    self.close(section);
                }
                None => {
                    let at = self.at(item.span().start);
                    self.findings.mistake(&at, format!("{key}: tables [[{key}]] are wanted"));
                }
            }
        }
    }
}

fn keep<T>(slot: &mut Option<(T, Origin)>, new: Option<(T, Origin)>) {
    if new.is_some() {
        *slot = new;
    }
}

fn string(value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("a string is wanted, not {}", value.type_str()))
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("true or false is wanted, not {}", value.type_str()))
}

fn number<T: TryFrom<i64>>(value: &DeValue<'_>, least: i64, most: i64) -> Result<T, String> {
    let wanted = || format!("a whole number from {least} to {most} is wanted");
    let raw = value.as_integer().ok_or_else(wanted)?;
    let n = i64::from_str_radix(raw.as_str(), raw.radix()).map_err(|_| wanted())?;
    if !(least..=most).contains(&n) {
        return Err(wanted());
    }
    T::try_from(n).map_err(|_| wanted())
}

fn octal_mode(value: &DeValue<'_>) -> Result<u32, String> {
    let wanted = || "octal digits in quotes from \"0\" to \"0777\" are wanted".to_owned();
    match u32::from_str_radix(value.as_str().ok_or_else(wanted)?, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(wanted()),
    }
}

fn id(value: &DeValue<'_>, what: &str, find: impl Fn(&str) -> Option<u32>) -> Result<u32, String> {
    if value.is_integer() {
        return number(value, 0, i64::from(u32::MAX) - 1);
    }
    let name = string(value)?;
    find(&name).ok_or_else(|| format!("there is no {what} {name:?} on this machine; give the number"))
}

fn absolute(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(string(value)?);
    if path.is_absolute() { Ok(path) } else { Err(format!("{} is not an absolute path", path.display())) }
}

fn cluster_name(value: &DeValue<'_>) -> Result<String, String> {
    let name = string(value)?;
    if paths::is_cluster_name(&name) {
        Ok(name)
    } else {
        Err(format!("{name:?}: 1 to 40 lower-case letters, digits and inner hyphens are wanted"))
    }
}

fn master_loss(value: &DeValue<'_>) -> Result<OnMasterLoss, String> {
    match value.as_str() {
        Some("keep") => Ok(OnMasterLoss::Keep),
        Some("end") => Ok(OnMasterLoss::End),
        _ => Err("\"keep\" or \"end\" is wanted".into()),
    }
}

fn address(value: &DeValue<'_>, resolver: &dyn Resolver) -> Result<IpAddr, String> {
    let host = string(value)?;
    let found = resolver.host(&host).map_err(|why| format!("host {host} cannot be resolved: {why}"))?;
    let best = found.iter().find(|a| a.is_ipv4()).or(found.first());
    best.copied().ok_or_else(|| format!("host {host} has no address"))
}
