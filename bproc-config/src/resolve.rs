//! Names to numbers: hosts, interfaces, services, users, groups.

use std::net::{IpAddr, ToSocketAddrs};

/// Resolves the names of a configuration. Tests have one of their own.
pub trait Resolver {
    /// Addresses of a host, best first.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String>;
    /// First address of a network interface, IPv4 preferred.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn interface(&self, name: &str) -> Result<IpAddr, String>;
    /// TCP port of a service.
    fn service(&self, name: &str) -> Option<u16>;
    /// uid of a user.
    fn user(&self, name: &str) -> Option<u32>;
    /// gid of a group.
    fn group(&self, name: &str) -> Option<u32>;
}

/// The machine's own resolver and databases.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(addr) = name.parse() {
            return Ok(vec![addr]);
        }
        let found: Vec<IpAddr> = (name, 0).to_socket_addrs().map_err(|e| e.to_string())?.map(|a| a.ip()).collect();
        if found.is_empty() { Err("it has no address".into()) } else { Ok(found) }
    }

    fn interface(&self, name: &str) -> Result<IpAddr, String> {
        let all = nix::ifaddrs::getifaddrs().map_err(|e| format!("the interfaces cannot be listed: {e}"))?;
        let mut known = false;
        let mut v6 = None;
        for one in all.filter(|i| i.interface_name == name) {
            known = true;
            let Some(addr) = one.address else { continue };
            if let Some(v4) = addr.as_sockaddr_in() {
                return Ok(IpAddr::V4(v4.ip()));
            }
            if let Some(a) = addr.as_sockaddr_in6() {
                v6.get_or_insert(IpAddr::V6(a.ip()));
            }
        }
        v6.ok_or_else(|| if known { "it has no address".into() } else { "there is no such interface".into() })
    }

    fn service(&self, name: &str) -> Option<u16> {
        let services = std::fs::read_to_string("/etc/services").ok()?;
        services.lines().find_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let official = words.next()?;
            let port = words.next()?.strip_suffix("/tcp")?.parse().ok()?;
            (official == name || words.any(|alias| alias == name)).then_some(port)
        })
    }

    fn user(&self, name: &str) -> Option<u32> {
        nix::unistd::User::from_name(name).ok()?.map(|u| u.uid.as_raw())
    }

    fn group(&self, name: &str) -> Option<u32> {
        nix::unistd::Group::from_name(name).ok()?.map(|g| g.gid.as_raw())
    }
}
