//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// File.
    pub file: Arc<Path>,
    /// Line from 1; 0 means the file as a whole.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// One thing that is wrong, or doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.reason)
    }
}

/// Every mistake of a configuration, in the order found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(
    /// Never empty.
    pub Vec<Mistake>,
);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl ConfigError {
    pub(crate) fn whole_file(file: &Path, reason: String) -> ConfigError {
        ConfigError(vec![Mistake { origin: Origin { file: file.into(), line: 0 }, reason }])
    }
}

/// Collects mistakes and warnings while files are read.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) mistakes: Vec<Mistake>,
    pub(crate) warnings: Vec<Mistake>,
    /// Files that were read.
    pub(crate) files: Vec<PathBuf>,
}

impl Findings {
    pub(crate) fn mistake(&mut self, origin: &Origin, reason: impl Into<String>) {
        self.mistakes.push(Mistake { origin: origin.clone(), reason: reason.into() });
    }

    pub(crate) fn warning(&mut self, origin: &Origin, reason: impl Into<String>) {
        self.warnings.push(Mistake { origin: origin.clone(), reason: reason.into() });
    }
}
