//! Addresses of a cluster's machines, and its port.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// BProc's port, and that of the default cluster.
const PORT: u16 = 2223;

/// Where the master listens.
pub(super) const MASTER: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The address of a node: 127.0.0.1 for node 0.
pub(super) fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number + 1)
}

/// The port of a cluster: the well-known one for the default, a free one for others.
pub(super) fn port(name: &str) -> Result<u16> {
    let wanted = if name == super::DEFAULT { PORT } else { 0 };
    let listener = TcpListener::bind((MASTER, wanted))
        .with_context(|| format!("port {wanted} of {MASTER} is taken; another cluster, or `up --name ANOTHER`"))?;
    Ok(listener.local_addr().context("a listening socket has an address")?.port())
}
