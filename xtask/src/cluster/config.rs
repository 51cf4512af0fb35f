//! Writes the configuration of a cluster's agents: one file for the master, one
//! for each node, since every machine has a certificate of its own. Settings of
//! the caller go beside them as a drop-in, which overrides.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Cluster, address};
use crate::sh::Cmd;

/// Writes all files, and has the agent make the certificates.
pub(super) fn write(
    cluster: &Cluster,
    nodes: u8,
    port: u16,
    settings: Option<&Path>,
) -> Result<()> {
    let etc = cluster.etc();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(etc.join("conf.d"))
        .with_context(|| format!("cannot make {}", etc.display()))?;
    let put = |file: PathBuf, text: String| {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    put(master_file(cluster), master(cluster, nodes, port))?;
    for number in 0..nodes {
        put(node_file(cluster, number), node(cluster, number, port))?;
    }
    if let Some(settings) = settings {
        let text = fs::read_to_string(settings)
            .with_context(|| format!("cannot read {}", settings.display()))?;
        put(etc.join("conf.d/50-yours.toml"), text)?;
    }
    Cmd::new(cluster.agent())
        .args([
            "certs",
            "--name",
            &cluster.name,
            "--nodes",
            &nodes.to_string(),
            "--dir",
        ])
        .arg(certificates(cluster))
        .quiet()
}

/// The master's configuration.
pub(super) fn master_file(cluster: &Cluster) -> PathBuf {
    cluster.etc().join("master.toml")
}

/// A node's configuration.
pub(super) fn node_file(cluster: &Cluster, number: u8) -> PathBuf {
    cluster.etc().join(format!("node-{number}.toml"))
}

/// A node's run directory: each machine has its own, and here are several on one.
pub(super) fn node_run_dir(cluster: &Cluster, number: u8) -> PathBuf {
    cluster.run_dir().join(format!("node-{number}"))
}

fn certificates(cluster: &Cluster) -> PathBuf {
    cluster.etc().join("tls")
}

fn master(cluster: &Cluster, nodes: u8, port: u16) -> String {
    let mut text = common(cluster, &cluster.run_dir(), "master");
    // Everybody may start on the nodes of a cluster to try things with.
    text += "[node_defaults]\nmode = \"0111\"\n\n";
    let _ = writeln!(
        text,
        "[listen]\naddress = \"{}\"\nport = {port}\n",
        address::MASTER
    );
    for number in 0..nodes {
        let _ = writeln!(
            text,
            "[[node]]\nnumber = {number}\nhosts = [\"{}\"]\n",
            address::node(number)
        );
    }
    text
}

fn node(cluster: &Cluster, number: u8, port: u16) -> String {
    let mut text = common(
        cluster,
        &node_run_dir(cluster, number),
        &format!("node-{number}"),
    );
    let _ = writeln!(
        text,
        "[listen]\naddress = \"{}\"\nport = {port}\n",
        address::node(number)
    );
    let _ = writeln!(
        text,
        "[[master]]\naddresses = [\"{}:{port}\"]",
        address::MASTER
    );
    text
}

fn common(cluster: &Cluster, run_dir: &Path, machine: &str) -> String {
    let (name, tls) = (&cluster.name, certificates(cluster));
    let (run_dir, libexec, tls) = (
        run_dir.display(),
        cluster.lib().join("libexec/bproc"),
        tls.display(),
    );
    format!(
        "# Written by `cargo xtask up`; settings of yours go to `up --config FILE`.\n\
         name = \"{name}\"\nrun_dir = \"{run_dir}\"\nlibexec_dir = \"{}\"\n\n\
         [tls]\nca = \"{tls}/ca.pem\"\ncert = \"{tls}/{machine}.pem\"\nkey = \"{tls}/{machine}-key.pem\"\n\n",
        libexec.display()
    )
}

#[cfg(test)]
mod tests {
    use super::{Cluster, master, node};

    #[test]
    fn each_machine_names_its_own_certificate_and_directory() {
        let cluster = Cluster::named("demo").expect("a good name");
        let (master, node) = (master(&cluster, 2, 4000), node(&cluster, 1, 4000));
        assert!(
            master.contains("tls/master-key.pem")
                && master.contains("run_dir = \"/run/bproc.d/demo\"")
        );
        assert!(master.contains("number = 1\nhosts = [\"127.0.0.2\"]"));
        assert!(
            node.contains("tls/node-1-key.pem")
                && node.contains("run_dir = \"/run/bproc.d/demo/node-1\"")
        );
        assert!(node.contains("addresses = [\"127.0.0.1:4000\"]"));
    }
}
