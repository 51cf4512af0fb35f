//! Network of the VM: loop-back, and one card if the host gave an address.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};

use crate::jobs::own;
use crate::sys::check;

/// Brings an interface up, with an address and the length of its prefix if given.
pub(crate) fn up(name: &str, address: Option<(Ipv4Addr, u8)>) -> io::Result<()> {
    // SAFETY: socket touches no memory.
    let socket = own(check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?);
    let fd = socket.as_raw_fd();
    if let Some((address, length)) = address {
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0));
        request(fd, name, libc::SIOCSIFADDR, inet(address))?;
        request(fd, name, libc::SIOCSIFNETMASK, inet(mask))?;
    }
    let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
    request(fd, name, libc::SIOCSIFFLAGS, flags)
}

fn request(fd: RawFd, name: &str, what: libc::c_ulong, value: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let argument = libc::ifreq { ifr_name, ifr_ifru: value };
    // SAFETY: `argument` lives until the call returns, and these requests read it.
    check(unsafe { libc::ioctl(fd, what, &raw const argument) }).map(drop)
}

fn inet(address: Ipv4Addr) -> libc::__c_anonymous_ifr_ifru {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    libc::__c_anonymous_ifr_ifru {
        // SAFETY: sockaddr_in and sockaddr have the same size; the kernel reads
        // the address by its family.
        ifru_addr: unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) },
    }
}
