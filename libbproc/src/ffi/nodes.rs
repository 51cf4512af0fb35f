//! Questions about nodes and processes.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, IntoRawFd};

use bproc_common::errno::{BE_INVALIDNODE, BE_INVALIDPROC, BE_NODEDOWN};
use bproc_common::perm::{Access, Caller};
use libc::{c_char, c_int, c_void, sockaddr, sockaddr_in, sockaddr_in6};

use super::abi::{ADDR_XATTR, NODE_ANY, NODE_MASTER, NODE_NONE, NODE_SELF, NodeInfo, ProcInfo, STATE_XATTR, X_OK};
use super::io::Setup;
use super::map::Real;
use super::{Result, answer, beside, done, export, map, text};
use crate::{Client, Node};

/// The nodes by the numbers that the program knows them by, in their order.
pub(super) fn all() -> Result<Vec<Node>> {
    let mut nodes = Client::connect()?.nodes()?;
    let Some(map) = map::current() else {
        nodes.sort_by_key(|node| node.number);
        return Ok(nodes);
    };
    let find = |(at, real): (usize, &c_int)| {
        let node = nodes.iter().find(|node| node.number == *real)?;
        Some(Node { number: at as c_int, ..node.clone() })
    };
    Ok(map.iter().enumerate().filter_map(find).collect())
}

/// The master as a node: always up, open to all.
pub(super) fn master() -> Result<Node> {
    Ok(Client::connect()?.master()?)
}

/// One node. Its number is the one that was asked for.
pub(super) fn one(number: c_int) -> Result<Node> {
    let number = if number == NODE_SELF { here()? } else { number };
    if number == NODE_MASTER {
        return master();
    }
    all()?.into_iter().find(|node| node.number == number).ok_or(BE_INVALIDNODE)
}

/// The node that is to do something, of a number that the program uses.
pub(super) fn target(number: c_int) -> Result<Real> {
    match number {
        NODE_SELF => whoami(),
        number if number < NODE_MASTER => Err(BE_INVALIDNODE),
        number => map::real(number),
    }
}

/// The node that the caller is on.
pub(super) fn whoami() -> Result<Real> {
    Ok(Client::connect()?.whoami()?.node.into())
}

fn here() -> Result<c_int> {
    Ok(map::known(whoami()?.number()))
}

/// What is known of nodes before anything is connected for a process that is to be there.
pub(super) struct Doors(Option<(Real, Vec<Node>)>);

impl Doors {
    /// Looks only if something is to be connected.
    pub(super) fn look(setup: Option<&Setup>) -> Result<Doors> {
        if !setup.is_some_and(Setup::connects) {
            return Ok(Doors(None));
        }
        Ok(Doors(Some((whoami()?, Client::connect()?.nodes()?))))
    }

    /// Refuses what the master would refuse anyway.
    pub(super) fn check(&self, node: Real) -> Result<Real> {
        let Some((here, nodes)) = &self.0 else { return Ok(node) };
        if node == *here || node == Real::MASTER {
            return Ok(node);
        }
        let found = nodes.iter().find(|n| n.number == node.number()).ok_or(BE_INVALIDNODE)?;
        let access = Access { mode: found.mode, user: found.user, group: found.group };
        match found.state.as_str() {
            "down" => Err(BE_NODEDOWN),
            _ if !accessible(&access) => Err(libc::EPERM),
            _ => Ok(node),
        }
    }
}

/// A socket address of any family that there is room for.
pub(super) struct Address {
    bytes: MaybeUninit<sockaddr_in6>,
    len: usize,
}

impl Address {
    /// EADDRNOTAVAIL when there is none.
    pub(super) fn parse(text: &str) -> Result<Address> {
        let mut address = Address { bytes: MaybeUninit::zeroed(), len: 0 };
        match text.parse().map_err(|_| libc::EADDRNOTAVAIL)? {
            IpAddr::V4(ip) => {
                let at = address.bytes.as_mut_ptr().cast::<sockaddr_in>();
                // SAFETY: sockaddr_in is the smaller one and both are aligned to 4 bytes.
                unsafe {
                    (*at).sin_family = libc::AF_INET as libc::sa_family_t;
                    (*at).sin_addr.s_addr = u32::from(ip).to_be();
                }
                address.len = size_of::<sockaddr_in>();
            }
            IpAddr::V6(ip) => {
                let at = address.bytes.as_mut_ptr();
                // SAFETY: all zeros is a valid address, and this is its own memory.
                unsafe {
                    (*at).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                    (*at).sin6_addr.s6_addr = ip.octets();
                }
                address.len = size_of::<sockaddr_in6>();
            }
        }
        Ok(address)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes of it are initialised (all are).
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }

    /// As the plain struct; all zeros (no family) for an address that is longer.
    fn short(&self) -> sockaddr {
        // SAFETY: all zeros is a valid sockaddr.
        let mut out: sockaddr = unsafe { std::mem::zeroed() };
        if self.len <= size_of::<sockaddr>() {
            // SAFETY: both have `len` bytes.
            unsafe { (&raw mut out).cast::<u8>().copy_from_nonoverlapping(self.bytes.as_ptr().cast(), self.len) };
        }
        out
    }
}

/// The IP address in a socket address.
///
/// # Safety
/// `addr` is null or points to `len` bytes.
pub(super) unsafe fn ip(addr: *const sockaddr, len: usize) -> Result<IpAddr> {
    if addr.is_null() {
        return Err(libc::EFAULT);
    }
    if len < size_of::<libc::sa_family_t>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the family is within `len`, and so is each address after the check of its size. Not aligned for sure.
    unsafe {
        match c_int::from((&raw const (*addr).sa_family).read_unaligned()) {
            libc::AF_INET if len >= size_of::<sockaddr_in>() => {
                let addr = addr.cast::<sockaddr_in>().read_unaligned();
                Ok(IpAddr::V4(u32::from_be(addr.sin_addr.s_addr).into()))
            }
            libc::AF_INET6 if len >= size_of::<sockaddr_in6>() => {
                Ok(IpAddr::V6(addr.cast::<sockaddr_in6>().read_unaligned().sin6_addr.s6_addr.into()))
            }
            libc::AF_INET | libc::AF_INET6 => Err(libc::EINVAL),
            _ => Err(libc::EAFNOSUPPORT),
        }
    }
}

/// A node as C sees it.
pub(super) fn info(node: &Node) -> NodeInfo {
    NodeInfo {
        node: node.number,
        status: text::field(node.state.as_bytes()),
        mode: node.mode,
        user: node.user,
        group: node.group,
        // SAFETY: all zeros is a valid sockaddr: of no family.
        addr: Address::parse(&node.address).map_or_else(|_| unsafe { std::mem::zeroed() }, |address| address.short()),
    }
}

/// May the calling process start something on a node?
pub(super) fn accessible(node: &Access) -> bool {
    // SAFETY: no pointers.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let groups = groups();
    Caller { uid, gid, groups: &groups }.may_start(node)
}

fn groups() -> Vec<libc::gid_t> {
    // SAFETY: a size of 0 asks for the number only.
    let n = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut groups = vec![0; usize::try_from(n).unwrap_or(0)];
    // SAFETY: there is room for `n`.
    let n = unsafe { libc::getgroups(groups.len() as c_int, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(n).unwrap_or(0));
    groups
}

unsafe extern "C" fn bproc_numnodes() -> c_int {
    answer(|| match map::current() {
        Some(map) => Ok(map.len() as c_int),
        None => all().map(|nodes| nodes.len() as c_int),
    })
}

unsafe extern "C" fn bproc_currnode() -> c_int {
    answer(here)
}

unsafe extern "C" fn bproc_nodeup(node: c_int) -> c_int {
    match beside(|| one(node)) {
        Ok(node) => (node.state == "up").into(),
        Err(number) => {
            super::set_errno(number);
            0
        }
    }
}

unsafe extern "C" fn bproc_nodestatus(node: c_int, status: *mut c_char, len: c_int) -> c_int {
    answer(|| {
        one(node).and_then(|node| {
            // SAFETY: the caller gives `len` bytes.
            unsafe { text::write(node.state.as_bytes(), status, usize::try_from(len).unwrap_or(0)) }?;
            Ok(node.state.len() as c_int)
        })
    })
}

/// # Safety
/// As the calls below.
unsafe fn give(address: &str, to: *mut sockaddr, size: *mut c_int) -> Result<()> {
    let address = Address::parse(address)?;
    if to.is_null() || size.is_null() {
        return Err(libc::EFAULT);
    }
    let bytes = address.bytes();
    // SAFETY: the caller gives `*size` bytes and gets told how many it is.
    unsafe {
        let room = usize::try_from(*size).unwrap_or(0);
        *size = bytes.len() as c_int;
        if room < bytes.len() {
            return Err(libc::EINVAL);
        }
        to.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
    Ok(())
}

unsafe extern "C" fn bproc_nodeaddr(node: c_int, addr: *mut sockaddr, size: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(|| one(node).and_then(|node| unsafe { give(&node.address, addr, size) }))
}

/// The form of 0.x.
unsafe extern "C" fn bproc_nodeaddr_sized(node: c_int, addr: *mut sockaddr, mut size: c_int) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { bproc_nodeaddr(node, addr, &raw mut size) }
}

unsafe extern "C" fn bproc_masteraddr(addr: *mut sockaddr, size: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(|| master().and_then(|node| unsafe { give(&node.address, addr, size) }))
}

fn by_address(ip: IpAddr) -> Result<c_int> {
    let is = |node: &Node| node.address.parse() == Ok(ip);
    match all()?.iter().find(|node| is(node)) {
        Some(node) => Ok(node.number),
        None if is(&master()?) => Ok(NODE_MASTER),
        None => Ok(NODE_NONE),
    }
}

unsafe extern "C" fn bproc_nodenumber(addr: *const sockaddr, size: c_int) -> c_int {
    // SAFETY: the caller gives `size` bytes.
    let number = unsafe { ip(addr, usize::try_from(size).unwrap_or(0)) }.and_then(|ip| beside(|| by_address(ip)));
    number.unwrap_or_else(|number| {
        super::set_errno(number);
        NODE_NONE
    })
}

fn by_name(name: &str) -> Result<c_int> {
    let exists = |number| all()?.iter().any(|node| node.number == number).then_some(number).ok_or(BE_INVALIDNODE);
    match name {
        "master" | "-1" => return Ok(NODE_MASTER),
        "self" => return here(),
        _ => {}
    }
    if let Ok(number) = name.strip_prefix(['n', '.']).unwrap_or(name).parse::<c_int>() {
        return exists(number);
    }
    let addresses = std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)).map_err(|_| BE_INVALIDNODE)?;
    for address in addresses {
        match by_address(address.ip())? {
            NODE_NONE => {}
            number => return Ok(number),
        }
    }
    Err(BE_INVALIDNODE)
}

unsafe extern "C" fn bproc_getnodebyname(name: *const c_char) -> c_int {
    // SAFETY: the caller gives a string.
    let number = unsafe { text::string(name) }.and_then(|name| beside(|| by_name(&name)));
    number.unwrap_or_else(|number| {
        super::set_errno(number);
        NODE_NONE
    })
}

unsafe extern "C" fn bproc_nodeinfo(node: c_int, to: *mut NodeInfo) -> c_int {
    done(|| {
        one(node).and_then(|node| {
            // SAFETY: null, or the caller's struct.
            unsafe { to.as_mut() }.map(|to| *to = info(&node)).ok_or(libc::EFAULT)
        })
    })
}

fn attribute(node: c_int, name: &[u8]) -> Result<Vec<u8>> {
    let of = one(node)?;
    match name {
        STATE_XATTR => Ok(of.state.into_bytes()),
        ADDR_XATTR => Ok(Address::parse(&of.address)?.bytes().to_vec()),
        name => {
            super::admin::attribute_name(name)?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| libc::EINVAL)?;
            Ok(Client::connect()?.attribute(target(node)?.number(), name)?)
        }
    }
}

unsafe extern "C" fn bproc_getnodeattr(node: c_int, name: *const c_char, value: *mut c_void, size: c_int) -> c_int {
    answer(|| {
        // SAFETY: the caller gives a string.
        let found = attribute(node, &unsafe { text::bytes(name) }?)?;
        let room = usize::try_from(size).map_err(|_| libc::EINVAL)?;
        if room == 0 {
            return Ok(found.len() as c_int);
        }
        if value.is_null() {
            return Err(libc::EFAULT);
        }
        if found.len() > room {
            return Err(libc::ERANGE);
        }
        // SAFETY: the caller gives `size` bytes; the NUL after it goes only where there is room.
        unsafe {
            value.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len());
            if found.len() < room {
                *value.cast::<u8>().add(found.len()) = 0;
            }
        }
        Ok(found.len() as c_int)
    })
}

unsafe extern "C" fn bproc_access(node: c_int, mode: c_int) -> c_int {
    done(|| {
        let node = one(node)?;
        if mode & !X_OK != 0 {
            return Err(libc::EINVAL);
        }
        let access = Access { mode: node.mode, user: node.user, group: node.group };
        if mode == 0 || accessible(&access) { Ok(()) } else { Err(libc::EACCES) }
    })
}

fn processes(node: c_int) -> Result<Vec<ProcInfo>> {
    let wanted = match node {
        NODE_ANY => None,
        NODE_MASTER => Some(NODE_MASTER),
        node => Some(one(node)?.number),
    };
    let list = Client::connect()?.processes()?;
    let list = list.iter().map(|p| ProcInfo { pid: p.pid, node: map::known(p.node) });
    Ok(list.filter(|p| wanted.is_none_or(|node| node == p.node)).collect())
}

unsafe extern "C" fn bproc_proclist(node: c_int, list: *mut *mut ProcInfo) -> c_int {
    answer(|| {
        processes(node).and_then(|found| {
            if list.is_null() {
                return Err(libc::EFAULT);
            }
            let bytes = size_of_val(found.as_slice());
            // SAFETY: at least one byte is asked for; what comes has room for `bytes`. The caller frees it.
            unsafe {
                let memory = libc::malloc(bytes.max(1)).cast::<ProcInfo>();
                if memory.is_null() {
                    return Err(libc::ENOMEM);
                }
                memory.copy_from_nonoverlapping(found.as_ptr(), found.len());
                *list = memory;
            }
            Ok(found.len() as c_int)
        })
    })
}

unsafe extern "C" fn bproc_pidnode(pid: c_int) -> c_int {
    let node = beside(|| processes(NODE_ANY)).and_then(|list| match list.iter().find(|p| p.pid == pid) {
        Some(found) => Ok(found.node),
        // Signal 0 to one process: a number above 0 means nobody else.
        // SAFETY: no pointers, nothing is sent.
        None if pid > 0 && (unsafe { libc::kill(pid, 0) } == 0 || super::errno() == libc::EPERM) => Ok(NODE_MASTER),
        None => Err(BE_INVALIDPROC),
    });
    node.unwrap_or_else(|number| {
        super::set_errno(number);
        NODE_NONE
    })
}

unsafe extern "C" fn bproc_notifier() -> c_int {
    answer(|| {
        let watch = Client::connect()?.watch()?;
        let fd = watch.descriptor().ok_or(libc::EIO)?.as_fd().try_clone_to_owned();
        fd.map(IntoRawFd::into_raw_fd).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    })
}

export!(
    bproc_numnodes,
    bproc_currnode,
    bproc_nodeup,
    bproc_nodestatus,
    bproc_nodeaddr,
    bproc_nodeaddr_sized,
    bproc_masteraddr,
    bproc_nodenumber,
    bproc_getnodebyname,
    bproc_nodeinfo,
    bproc_getnodeattr,
    bproc_access,
    bproc_proclist,
    bproc_pidnode,
    bproc_notifier,
);
