//! Writes the configuration of a cluster: one file for all its agents, which
//! find their own address, certificate and directory by their node's number.
//! Settings of the caller go beside it as a drop-in, which overrides.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Cluster, address};
use crate::sh::Cmd;

/// Writes all files, and has the agent make the certificates.
pub(super) fn write(cluster: &Cluster, nodes: u8, port: u16, settings: Option<&Path>) -> Result<()> {
    let etc = cluster.etc();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(etc.join("conf.d"))
        .with_context(|| format!("cannot make {}", etc.display()))?;
    let put = |file: PathBuf, text: String| {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    put(file(cluster), text(cluster, nodes, port))?;
    if let Some(settings) = settings {
        let text = fs::read_to_string(settings).with_context(|| format!("cannot read {}", settings.display()))?;
        put(etc.join("conf.d/50-yours.toml"), text)?;
    }
    Cmd::new(cluster.agent())
        .args(["certs", "--name", &cluster.name, "--nodes", &nodes.to_string(), "--dir"])
        .arg(certificates(cluster))
        .quiet()?;
    Cmd::new(cluster.agent()).arg("check-config").arg(file(cluster)).quiet()
}

/// The configuration of all agents of a cluster.
pub(super) fn file(cluster: &Cluster) -> PathBuf {
    cluster.etc().join("agent.toml")
}

fn certificates(cluster: &Cluster) -> PathBuf {
    cluster.etc().join("tls")
}

fn text(cluster: &Cluster, nodes: u8, port: u16) -> String {
    let (name, tls) = (&cluster.name, certificates(cluster));
    let (run_dir, libexec, tls) = (cluster.run_dir(), cluster.lib().join("libexec/bproc"), tls.display());
    let mut text = format!(
        "# Written by `cargo xtask up`; settings of yours go to `up --config FILE`.\n\
         name = \"{name}\"\nrun_dir = \"{}\"\nlibexec_dir = \"{}\"\n\n\
         [tls]\nca = \"{tls}/ca.pem\"\ncert = \"{tls}/master.pem\"\nkey = \"{tls}/master-key.pem\"\n\n\
         [listen]\naddress = \"{}\"\nport = {port}\n\n\
         [cache]\ndirectory = \"{}\"\n\n\
         # Everybody may start on the nodes of a cluster to try things with.\n\
         [node_defaults]\nmode = \"0111\"\n",
        run_dir.display(),
        libexec.display(),
        address::MASTER,
        cluster.lib().join("cache").display()
    );
    for number in 0..nodes {
        let _ = write!(text, "\n[[node]]\nnumber = {number}\nhosts = [\"{}\"]\n", address::node(number));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Cluster, text};

    #[test]
    fn a_cluster_stays_in_its_own_places() {
        let cluster = Cluster::named("demo").expect("a good name");
        let text = text(&cluster, 2, 4000);
        assert!(text.contains("run_dir = \"/run/bproc.d/demo\"\nlibexec_dir = \"/var/lib/bproc/demo/libexec/bproc\""));
        assert!(text.contains("key = \"/var/lib/bproc/demo/etc/tls/master-key.pem\""));
        assert!(text.contains("port = 4000"));
        assert!(text.contains("number = 1\nhosts = [\"127.0.0.2\"]"));
    }
}
