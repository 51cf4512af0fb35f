//! The file that old programs read to learn the state of the machine: the number of nodes, then a line
//! `1 IP` (up) or `0 IP` for each. Readers see the old one or the new one, never half of it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The text of the file. `nodes` are in the order of their numbers: true is up.
pub fn render(nodes: &[(bool, IpAddr)]) -> String {
    let mut text = format!("{}\n", nodes.len());
    for (up, addr) in nodes {
        text.push_str(&format!("{} {addr}\n", u8::from(*up)));
    }
    text
}

/// Addresses of the nodes that are up, as the text of such a file has it; lines that mean nothing are passed over.
pub fn up(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| line.strip_prefix("1 ")?.trim().parse().ok()).collect()
}

/// Replaces the file at `path`, readable by all, atomically.
///
/// # Errors
/// As the file system has them, with the path; a directory in the way is one.
pub fn write(path: &Path, nodes: &[(bool, IpAddr)]) -> io::Result<()> {
    let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut name = path.file_name().ok_or_else(|| told(io::ErrorKind::InvalidInput.into()))?.to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let _ = fs::remove_file(&fresh);
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
        file.write_all(render(nodes).as_bytes())?;
        fs::rename(&fresh, path)
    };
    put().map_err(|e| {
        let _ = fs::remove_file(&fresh);
        told(e)
    })
}
