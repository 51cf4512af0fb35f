//! Debian packages without installing them, from suites that this machine does
//! not have configured: apt with a sources list and a state of its own. Needs
//! no root and changes nothing outside of the cache.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::sh::{Cmd, which};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The archive that this machine's apt uses for Debian, else Debian's canonical name.
pub fn mirror() -> String {
    let configured = Cmd::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).said().unwrap_or_default();
    debian_archive(&configured).unwrap_or_else(|| "http://deb.debian.org/debian".into())
}

/// The first of these that is a Debian archive (not security, not a vendor's).
fn debian_archive(uris: &str) -> Option<String> {
    uris.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian")).map(str::to_owned)
}

/// apt with one suite only.
pub struct Private {
    suite: String,
    dir: PathBuf,
}

impl Private {
    /// Reads the suite's index (a few seconds).
    pub fn new(suite: &str) -> Result<Self> {
        if which("apt-get").is_none() {
            bail!("there is no apt-get on this machine");
        }
        let dir = paths::cache().join("apt").join(suite);
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot make {}/{part}", dir.display()))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror());
        fs::write(dir.join("sources.list"), source).with_context(|| format!("cannot write to {}", dir.display()))?;
        let private = Self { suite: suite.into(), dir };
        private.apt("apt-get").args(["-q", "update"]).quiet().with_context(|| format!("reading Debian's {suite}"))?;
        Ok(private)
    }

    /// The versions of a package, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let said = self.apt("apt-cache").args(["madison", package]).said()?;
        let mut versions: Vec<String> =
            said.lines().filter_map(|line| line.split('|').nth(1)).map(|version| version.trim().to_owned()).collect();
        versions.dedup();
        Ok(versions)
    }

    /// Names of packages that match a regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let said = self.apt("apt-cache").args(["search", "--names-only", pattern]).said()?;
        Ok(said.lines().filter_map(|line| line.split(" - ").next()).map(str::to_owned).collect())
    }

    /// Downloads this version of a package; the path of the .deb.
    pub fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        let dir = self.dir.join("archives");
        let wanted = format!("{package}={version}");
        self.apt("apt-get").args(["-q", "download", &wanted]).dir(&dir).quiet()?;
        let start = format!("{package}_{}_", version.replace(':', "%3a"));
        let files = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let found = files.flatten().find(|file| file.file_name().to_string_lossy().starts_with(&start));
        found.map(|file| file.path()).with_context(|| {
            format!("apt-get download {wanted} from {} left no {start}*.deb in {}", self.suite, dir.display())
        })
    }

    fn apt(&self, program: &str) -> Cmd {
        let dir = self.dir.display();
        let options = [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=-".into(),
            "Dir::Etc::PreferencesParts=-".into(),
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::Archives={dir}/archives"),
            "APT::Sandbox::User=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::http::Timeout=60".into(),
        ];
        let path = env::var("PATH").unwrap_or_default();
        let command = Cmd::new(program).env("LC_ALL", "C").env("PATH", format!("{path}:/usr/sbin:/sbin"));
        options.iter().fold(command, |command, option| command.args(["-o", option]))
    }
}

#[cfg(test)]
mod tests {
    use super::debian_archive;

    #[test]
    fn the_archive_is_neither_security_nor_a_vendors() {
        let uris = "https://example.org/apt/\nhttp://a.example/debian-security/\nhttp://b.example/debian/\n";
        assert_eq!(debian_archive(uris).as_deref(), Some("http://b.example/debian"));
        assert_eq!(debian_archive("https://example.org/ubuntu/\n"), None);
    }
}
