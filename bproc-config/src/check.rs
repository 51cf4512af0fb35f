//! `bproc-agent check-config`: all that is wrong or doubtful, also on the machine itself (certificates, programs).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::machine::{MachineConfig, Security};
use crate::mistake::{Findings, Mistake, Origin};
use crate::resolve::SystemResolver;
use crate::tls;

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// Files that were read.
    pub files: Vec<PathBuf>,
    /// What keeps the agent from starting.
    pub mistakes: Vec<Mistake>,
    /// What is doubtful.
    pub warnings: Vec<Mistake>,
    /// The configuration, when it could be made.
    pub config: Option<MachineConfig>,
}

impl Report {
    /// True when the agent would start.
    pub fn is_good(&self) -> bool {
        self.mistakes.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for m in &self.mistakes {
            writeln!(f, "error: {m}")?;
        }
        for w in &self.warnings {
            writeln!(f, "warning: {w}")?;
        }
        let files = self.files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        match &self.config {
            Some(c) if self.is_good() => {
                let security = match c.security {
                    Security::Plaintext => "plaintext on loop-back",
                    Security::Tls(_) => "mutual TLS",
                };
                writeln!(f, "good: {files}: cluster {}, {} nodes, {} ({security})", c.name, c.nodes.len(), c.bind)
            }
            _ => writeln!(f, "{} mistakes in {files}", self.mistakes.len()),
        }
    }
}

/// Reads the configuration at `path` as the agent would, and looks at the files that it names.
pub fn check(path: &Path) -> Report {
    let mut findings = Findings::default();
    let config = match MachineConfig::gather(path, &SystemResolver, &mut findings) {
        Ok(config) => config,
        Err(e) => {
            findings.mistakes.extend(e.0);
            None
        }
    };
    if let Some(config) = &config {
        let whole = Origin { file: path.into(), line: 0 };
        machine_itself(config, &whole, &mut findings);
    }
    Report { files: findings.files, mistakes: findings.mistakes, warnings: findings.warnings, config }
}

fn machine_itself(config: &MachineConfig, whole: &Origin, findings: &mut Findings) {
    if let Security::Tls(files) = &config.security {
        match tls::Credentials::load(files, &config.name) {
            Ok(_) => {}
            Err(e) => findings.mistake(whole, e.to_string()),
        }
        if let Ok(meta) = std::fs::metadata(&files.key)
            && meta.mode() & 0o077 != 0
        {
            findings.mistake(
                whole,
                format!(
                    "private key {} may be read by others (mode {:04o}); chmod 600 it",
                    files.key.display(),
                    meta.mode() & 0o7777
                ),
            );
        }
    }
    if !config.libexec_dir.is_dir() {
        findings.warning(whole, format!("libexec_dir {} is not a directory", config.libexec_dir.display()));
    }
    match std::fs::metadata(&config.node_up) {
        Ok(meta) if meta.is_file() && meta.mode() & 0o111 == 0 => {
            findings.mistake(whole, format!("node_up {} is not executable", config.node_up.display()));
        }
        _ => {}
    }
    if config.nodes.is_empty() && config.masters.is_empty() {
        findings.warning(whole, "neither a node nor a master is given: there is nothing to do for either role");
    }
}
